//! Limits of the service model, most of them the original platform's (its schema pages and its table of quotas).

/// Most update domains that a definition may ask for.
pub const UPDATE_DOMAINS_MAX: u32 = 20;
/// Update domains where the definition does not say.
pub const UPDATE_DOMAINS_DEFAULT: u32 = 5;
/// Most roles in one definition.
pub const ROLES_MAX: usize = 25;
/// Most input endpoints in one definition.
pub const INPUT_ENDPOINTS_MAX: usize = 25;
/// Most instances of one role.
pub const INSTANCES_MAX: u32 = 1000;
/// Most bytes in the user data of a role; cloud-init's and the original platform's custom data share this limit.
pub const USER_DATA_BYTES_MAX: usize = 64 * 1024;
/// Most bytes of a definition or configuration file.
pub const SOURCE_BYTES_MAX: usize = 1024 * 1024;
/// Events that are kept; older ones are dropped.
pub const EVENTS_KEPT: u64 = 5000;
/// Seconds that an instance may take from its VM's start to its first Ready, unless its role says otherwise.
pub const START_TIMEOUT_SECONDS: u64 = 600;
/// Seconds that a guest may be silent, once the host has noticed, before it is taken for sick.
pub const UNRESPONSIVE_SECONDS: u64 = 60;
/// Answered requests that are remembered, so that a repeated one is not carried out twice.
pub const REQUESTS_KEPT: usize = 4096;
/// Numbers that a service may push for each role.
pub const METRICS_MAX: usize = 16;

/// Seconds for which requests that are under way are waited for before a planned stop, unless the role says otherwise.
pub const DRAIN_SECONDS: u32 = 10;

/// Seconds that a post-boot script may take, unless the role says otherwise.
pub const SCRIPT_SECONDS: u32 = 600;

/// Seconds that a guest has for ending in good order, unless the role says otherwise.
pub const SHUTDOWN_SECONDS: u32 = 10;

/// Most MB of one local storage: what a VHD holds (2040 GiB).
pub const LOCAL_STORAGE_MB_MAX: u64 = 2_088_960;

/// Most certificates of a service (the original allowed so many to a deployment).
pub const CERTIFICATES_MAX: usize = 199;
