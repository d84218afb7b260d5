//! What a service configuration (.cscfg) says, after parsing.

use serde::{Deserialize, Serialize};

use crate::autoscale::Autoscale;
use crate::certificate::Thumbprint;
use crate::egress::Egress;
use crate::guest::{PLATFORM_SETTING, Platform};
use crate::host::IPV6_FEATURE;
use crate::limits;
use crate::name::{ImageName, ReservedName, RoleName};
use crate::requirements::{Requirements, Spread};
use crate::subnet::Subnet;

/// The setting that holds a role's post-boot script or cloud-config, as text or as `@file`.
pub const USER_DATA_SETTING: &str = "Mayfly.UserData";

/// The setting that says how many seconds an instance may take until its first Ready.
pub const START_TIMEOUT_SETTING: &str = "Mayfly.StartTimeoutSeconds";

/// The setting that says what an instance's guest sees its disk as: one of [`DiskModel::ALL`].
pub const DISK_SETTING: &str = "Mayfly.Disk";

/// The setting that says how strictly instances are spread over fault domains: `strict` or `soft`.
pub const SPREAD_SETTING: &str = "Mayfly.Spread";

/// The setting that says what hosts have to have, see [`Requirements`].
pub const REQUIRE_SETTING: &str = "Mayfly.Require";

/// The setting that says how changed settings reach running guests: `live` (the default) or `reboot`.
pub const APPLY_SETTING: &str = "Mayfly.ApplySettings";

/// The setting that says after how many seconds of silence a guest is taken for sick.
pub const UNRESPONSIVE_SETTING: &str = "Mayfly.UnresponsiveSeconds";

/// The setting that holds the role's rules of [`Autoscale`].
pub const AUTOSCALE_SETTING: &str = "Mayfly.Autoscale";

/// The setting that says how many seconds requests that are under way are waited for before a planned stop.
pub const DRAIN_SETTING: &str = "Mayfly.DrainSeconds";

/// The setting that says where a role's guests may go, see [`Egress`].
pub const EGRESS_SETTING: &str = "Mayfly.Egress";

/// The setting that says whether a role's instances and endpoints have IPv6 addresses too: `on` or `off`.
pub const IPV6_SETTING: &str = "Mayfly.IPv6";

/// The setting that says how many milliseconds lie between two questions of the role's probes, 100 to 60000, in place of
/// what the definition says.
pub const PROBE_INTERVAL_SETTING: &str = "Mayfly.ProbeIntervalMilliseconds";

/// The setting that says what a guest sees its network card as: one of [`NetworkCard::ALL`].
pub const CARD_SETTING: &str = "Mayfly.NetworkCard";

/// What a guest sees its network card as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkCard {
    /// virtio: the quickest.
    #[default]
    Virtio,
    /// An Intel card, for guests that know no virtio.
    E1000e,
}

impl NetworkCard {
    /// All cards, by the names that settings use.
    pub const ALL: [(&str, NetworkCard); 2] = [("virtio", NetworkCard::Virtio), ("e1000e", NetworkCard::E1000e)];

    /// The card of that name.
    pub fn named(name: &str) -> Option<NetworkCard> {
        NetworkCard::ALL.into_iter().find(|(known, _)| *known == name).map(|(_, card)| card)
    }
}

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
    /// Who may come in at endpoints; at those that are not named, everybody.
    pub endpoint_acls: Vec<EndpointAcl>,
    /// The reserved public address that a new deployment gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserved_address: Option<ReservedName>,
}

/// Who may come in at an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointAcl {
    /// The role.
    pub role: String,
    /// Its endpoint.
    pub endpoint: String,
    /// The rules; the first that fits decides.
    pub rules: Vec<AccessRule>,
}

/// One rule of an access control: lets a network in, or keeps it out. Where rules let some in, others stay out; where rules
/// only keep some out, others may come in (azure-model.md 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessRule {
    /// Whether it lets in.
    pub permit: bool,
    /// The network's address.
    #[serde(with = "crate::subnet::plain")]
    pub network: std::net::IpAddr,
    /// The bits of its prefix, 0 to 32, for IPv6 to 128.
    pub prefix: u8,
}

impl AccessRule {
    /// Whom it concerns.
    pub fn subnet(&self) -> Subnet {
        Subnet { address: self.network, prefix: self.prefix }
    }
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
    pub certificates: Vec<(String, Thumbprint)>,
}

impl RoleConfiguration {
    /// The value of a setting.
    pub fn setting(&self, name: &str) -> Option<&str> {
        self.settings.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// What its guests find themselves on.
    pub fn platform(&self) -> Platform {
        self.setting(PLATFORM_SETTING).and_then(Platform::named).unwrap_or_default()
    }

    /// What its guests see their disk as.
    pub fn disk(&self) -> DiskModel {
        self.setting(DISK_SETTING).and_then(DiskModel::named).unwrap_or_default()
    }

    /// What its guests see their network card as.
    pub fn card(&self) -> NetworkCard {
        self.setting(CARD_SETTING).and_then(NetworkCard::named).unwrap_or_default()
    }

    /// Says what hardware Windows guests find where nobody has: it knows no virtio by itself. What is said is stored, so that a
    /// guest that is there already finds what it found before.
    pub fn say_hardware(&mut self) {
        if self.platform() != Platform::Windows {
            return;
        }
        for (name, value) in [(DISK_SETTING, "sata"), (CARD_SETTING, "e1000e")] {
            if self.setting(name).is_none() {
                self.settings.push((name.to_owned(), value.to_owned()));
            }
        }
    }

    /// What it asks of hosts. What cannot be read was refused before it got here.
    pub fn requirements(&self) -> Requirements {
        let said = self.setting(REQUIRE_SETTING).and_then(|text| text.parse().ok());
        let mut requirements: Requirements = said.unwrap_or_default();
        if self.ipv6() {
            requirements.features.insert(IPV6_FEATURE.to_owned());
        }
        requirements
    }

    /// How strictly it is spread.
    pub fn spread(&self) -> Spread {
        self.setting(SPREAD_SETTING).and_then(|text| text.parse().ok()).unwrap_or_default()
    }

    /// The rules by which its count changes.
    pub fn autoscale(&self) -> Option<Autoscale> {
        self.setting(AUTOSCALE_SETTING)?.parse().ok()
    }

    /// Whether its guests want a reboot for changed settings.
    pub fn reboots_for_settings(&self) -> bool {
        self.setting(APPLY_SETTING) == Some("reboot")
    }

    /// How many seconds requests that are under way are waited for at the most before a planned stop.
    pub fn drain_seconds(&self) -> u32 {
        let seconds = self.setting(DRAIN_SETTING).and_then(|text| text.parse().ok());
        seconds.unwrap_or(limits::DRAIN_SECONDS)
    }

    /// Where its guests may go.
    pub fn egress(&self) -> Egress {
        self.setting(EGRESS_SETTING).and_then(|text| text.parse().ok()).unwrap_or_default()
    }

    /// Whether its instances and endpoints have IPv6 addresses too.
    pub fn ipv6(&self) -> bool {
        self.setting(IPV6_SETTING) == Some("on")
    }

    /// Milliseconds between two questions of its probes, where it does not leave that to the definition.
    pub fn probe_interval_millis(&self) -> Option<u32> {
        self.setting(PROBE_INTERVAL_SETTING)?.parse().ok()
    }

    /// Milliseconds of silence after which a guest is taken for sick.
    pub fn unresponsive_after(&self) -> u64 {
        let seconds = self.setting(UNRESPONSIVE_SETTING).and_then(|text| text.parse().ok());
        seconds.unwrap_or(limits::UNRESPONSIVE_SECONDS).saturating_mul(1000)
    }
}
