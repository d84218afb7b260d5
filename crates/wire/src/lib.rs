//! The protocols guests speak: the wire server at 168.63.129.16, instance metadata and the NoCloud seed at
//! 169.254.169.254, and what stands on the provisioning disk. A guest is known by the address it asks from, which the data
//! plane does not let it forge, so it can only ever see what is its own.

mod documents;
mod guest;
mod iso;
mod metadata;
mod script;
mod seed;
mod wire_server;

pub use guest::{
    Guest, Guests, HealthReport, Member, MemberEndpoint, Planned, ScriptReport, Word, event_id, system_uuid,
};
pub use iso::iso_image;
pub use metadata::metadata_router;
pub use seed::{PROVISIONING_LABEL, provisioning_files};
pub use wire_server::{plugin_router, wire_server_router};

/// Most bytes of a guest's request.
const BODY_BYTES_MAX: usize = 64 << 10;

#[cfg(test)]
mod tests;
