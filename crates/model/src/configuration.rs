//! What a service configuration (.cscfg) says, after parsing.

use serde::{Deserialize, Serialize};

use crate::name::{ImageName, RoleName};

/// The setting that holds a role's post-boot script or cloud-config, as text or as `@file`.
pub const USER_DATA_SETTING: &str = "Mayfly.UserData";

/// The setting that says how many seconds an instance may take until its first Ready.
pub const START_TIMEOUT_SETTING: &str = "Mayfly.StartTimeoutSeconds";

/// The setting that says what an instance's guest sees its disk as: one of [`DiskModel::ALL`].
pub const DISK_SETTING: &str = "Mayfly.Disk";

/// What a guest sees its disk as, and how the hypervisor reaches it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskModel {
    /// virtio-blk over NBD: the quickest start.
    #[default]
    Virtio,
    /// virtio-blk over vhost-user: the most throughput.
    VhostUser,
    /// A SATA disk, for guests that know no virtio.
    Sata,
    /// An NVMe disk, for guests that know no virtio.
    Nvme,
}

impl DiskModel {
    /// All models, by the names that settings use.
    pub const ALL: [(&str, DiskModel); 4] = [
        ("virtio", DiskModel::Virtio),
        ("vhost-user", DiskModel::VhostUser),
        ("sata", DiskModel::Sata),
        ("nvme", DiskModel::Nvme),
    ];

    /// The model of that name.
    pub fn named(name: &str) -> Option<DiskModel> {
        DiskModel::ALL.into_iter().find(|(known, _)| *known == name).map(|(_, model)| model)
    }
}

/// A whole service configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceConfiguration {
    /// The definition's name, repeated.
    pub service_name: String,
    /// One entry for each role.
    pub roles: Vec<RoleConfiguration>,
    /// Endpoints as (role, endpoint) for which the configuration limits who may come in.
    pub endpoint_acls: Vec<(String, String)>,
}

impl ServiceConfiguration {
    /// The configuration of that role.
    pub fn role(&self, name: &RoleName) -> Option<&RoleConfiguration> {
        self.roles.iter().find(|role| role.name == *name)
    }
}

/// The configuration of one role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleConfiguration {
    /// The role.
    pub name: RoleName,
    /// How many instances.
    pub instances: u32,
    /// The base image of a VM role.
    pub image: Option<ImageName>,
    /// Settings by name, in the order of the file.
    pub settings: Vec<(String, String)>,
    /// Certificates as (name, thumbprint).
    pub certificates: Vec<(String, String)>,
}

impl RoleConfiguration {
    /// The value of a setting.
    pub fn setting(&self, name: &str) -> Option<&str> {
        self.settings.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}
