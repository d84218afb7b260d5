//! What a controller is started with, as a JSON file.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;

use mayfly_fabric::address::AddressRange;
use mayfly_fabric::{Config, HealingPolicy, Overcommit};
use mayfly_model::{Ipv6Prefix, LeaseTimings};
use mayfly_store::EtcdConfig;
use serde::{Deserialize, Serialize};

use crate::images::ObjectStoreConfig;

/// A controller's configuration.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ControllerConfig {
    /// Where records and images are kept.
    pub folder: PathBuf,
    /// Where the API is served to users, in clear text: loopback, or behind something that does TLS.
    pub listen: Vec<SocketAddr>,
    /// Where it is served to hosts, by mutual TLS.
    #[serde(default)]
    pub listen_hosts: Vec<SocketAddr>,
    /// Where services' names are told to the outside by DNS, while this controller leads.
    #[serde(default)]
    pub dns: Vec<SocketAddrV4>,
    /// Other addresses under which hosts reach this controller, for its certificate.
    #[serde(default)]
    pub advertise: Vec<IpAddr>,
    /// The folder of the fabric's authority, `authority.pem` and `authority.key`; a folder beside the records unless this
    /// says otherwise. Controllers of one fabric have the same.
    #[serde(default)]
    pub authority: Option<PathBuf>,
    /// How many days a host's certificate lasts. It is renewed after a third of that.
    #[serde(default = "host_certificate_days")]
    pub host_certificate_days: u32,
    /// What users show to be let in.
    pub user_token: String,
    /// Where the records are kept.
    #[serde(default)]
    pub store: StoreConfig,
    /// By what other controllers and people know this one: its address for users.
    #[serde(default)]
    pub name: String,
    /// Where images are kept; a folder beside the records unless this says otherwise.
    #[serde(default)]
    pub images: Option<ObjectStoreConfig>,
    /// The fabric's own settings.
    pub fabric: FabricConfig,
}

fn host_certificate_days() -> u32 {
    (mayfly_identity::HOST_LIFE / 86_400) as u32
}

/// Where the records are kept.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreConfig {
    /// In a file in the controller's folder. There is one controller.
    #[default]
    Embedded,
    /// In etcd. There may be several controllers, of which one leads.
    Etcd(EtcdConfig),
}

/// The fabric's own settings.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FabricConfig {
    /// The DNS zone.
    pub zone: String,
    /// The network of DIPs.
    pub dips: (Ipv4Addr, u8),
    /// The network of VIPs.
    pub vips: (Ipv4Addr, u8),
    /// What IPv6 addresses begin with; without it, there are none.
    #[serde(default)]
    pub ipv6: Option<Ipv6Prefix>,
    /// The leases' times.
    #[serde(default)]
    pub timings: LeaseTimings,
    /// How much of its hosts may be promised.
    #[serde(default)]
    pub overcommit: Overcommit,
    /// How sick instances and lost hosts are dealt with.
    #[serde(default)]
    pub healing: HealingPolicy,
}

impl FabricConfig {
    pub(crate) fn to_core(&self) -> Config {
        let range = |(network, prefix)| AddressRange { network, prefix };
        Config {
            zone: self.zone.clone(),
            dips: range(self.dips),
            vips: range(self.vips),
            ipv6: self.ipv6,
            timings: self.timings,
            overcommit: self.overcommit,
            healing: self.healing,
        }
    }
}
