//! What a controller is started with, as a JSON file.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use mayfly_fabric::address::AddressRange;
use mayfly_fabric::{Config, HealingPolicy, Overcommit};
use mayfly_model::LeaseTimings;
use mayfly_store::EtcdConfig;
use serde::{Deserialize, Serialize};

use crate::images::ObjectStoreConfig;

/// A controller's configuration.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ControllerConfig {
    /// Where records and images are kept.
    pub folder: PathBuf,
    /// Where the API is served, for users and for hosts.
    pub listen: Vec<SocketAddr>,
    /// What users show to be let in.
    pub user_token: String,
    /// What hosts show.
    pub host_token: String,
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
            timings: self.timings,
            overcommit: self.overcommit,
            healing: self.healing,
        }
    }
}
