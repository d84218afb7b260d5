//! Hosts as the core keeps them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::image::Digest;
use crate::name::HostName;
use crate::size::Resources;
use crate::time::Time;
use crate::transit::Transit;
use crate::tunnel_key::TunnelKey;

/// The feature of hosts that let guests leave the fabric.
pub const EGRESS_FEATURE: &str = "egress";
/// The feature of hosts whose kernels have IPv6.
pub const IPV6_FEATURE: &str = "ipv6";
/// The feature of hosts that let guests leave it over IPv6.
pub const EGRESS6_FEATURE: &str = "egress6";

/// A host: a machine that runs the host agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Its name.
    pub name: HostName,
    /// Its number in the location, from 1; the overlay address is made of it.
    pub number: u32,
    /// The fault domain it stands in: a rack, `rack-7`, or a path that ends with one, `room-1/rack-7`.
    pub fault_domain: String,
    /// Its address in the data centre's network.
    pub address: Ipv4Addr,
    /// What it may carry, overcommit included.
    pub capacity: Resources,
    /// What the operator says of it, for roles that ask for it: `disk=ssd`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// What it can do, as it has found out itself: `kvm`, `avx2`.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub features: BTreeSet<String>,
    /// The base images that it has.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub images: BTreeSet<Digest>,
    /// How it is doing.
    pub condition: HostCondition,
    /// What people have decided about it.
    #[serde(default)]
    pub admission: Admission,
    /// When its first report came.
    pub registered: Time,
    /// Changes with each start of the host.
    #[serde(default)]
    pub boot_id: u64,
    /// Whether it counts among the voters of the location; see `lease`.
    #[serde(default)]
    pub voter: bool,
    /// Whether it counted among them before the last change, which not everybody may know of yet.
    #[serde(default)]
    pub voted: bool,
    /// The last incident of it that was made an event.
    #[serde(default)]
    pub last_incident: u64,
    /// How it carries packets to other hosts' guests; nothing if an earlier version wrote this down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transit: Option<Transit>,
    /// The public key of its end of the tunnels between hosts, where they are encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel_key: Option<TunnelKey>,
}

impl Host {
    /// The host's address inside the overlay: 100.64.0.0/10 plus its number (shared address space of RFC 6598).
    pub fn overlay_address(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 64, 0, 0)) + (self.number & 0x003f_ffff))
    }

    /// The hardware address of its tunnel device, locally administered.
    pub fn overlay_mac(&self) -> [u8; 6] {
        let [_, high, middle, low] = self.number.to_be_bytes();
        [0x02, 0x6d, 0x66, high, middle, low]
    }

    /// The boot that a planned reboot is to end, if one has been asked for.
    pub fn reboot(&self) -> Option<u64> {
        matches!(self.admission, Admission::Rebooting { .. }).then_some(self.boot_id)
    }

    /// Whether new instances may be placed on it.
    pub fn is_open(&self) -> bool {
        self.condition == HostCondition::Up && self.admission == Admission::Open
    }

    /// Its state in one word for people: what is wrong comes before what is wanted.
    pub fn state(&self) -> &'static str {
        match (self.condition, &self.admission) {
            (HostCondition::Up, Admission::Open) => "Up",
            (HostCondition::Up, Admission::Draining { .. }) => "Draining",
            (HostCondition::Up, Admission::Rebooting { .. }) => "Rebooting",
            (HostCondition::Up, Admission::Quarantined { .. }) => "Quarantined",
            (_, Admission::Leaving) => "Leaving",
            (condition, _) => condition.name(),
        }
    }
}

/// What people, or the fabric when it cannot trust a host, have decided about it.
///
/// ```text
///   Open ──drain──▶ Draining ──empty, and a reboot was asked for──▶ Rebooting ──it is back──▶ Open
///    ▲  ◀─undrain──────┘
///    └──undrain── Quarantined ◀── first boots fail here again and again, and elsewhere they do not
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Admission {
    /// It takes instances.
    #[default]
    Open,
    /// Its instances move away, one update domain of each deployment at a time; it takes no new ones.
    Draining {
        /// Since when.
        since: Time,
        /// Whether it is to be rebooted, and opened again, when it is empty.
        reboot: bool,
    },
    /// It is empty and has been asked to reboot; when it is back, it is open.
    Rebooting {
        /// Since when.
        since: Time,
    },
    /// It is lost and will be forgotten as soon as the voters may change.
    Leaving,
    /// It takes no new instances until a person has looked.
    Quarantined {
        /// Since when.
        since: Time,
        /// Why.
        why: String,
    },
}

/// How a host is doing. The lease itself is not stored: after a restart the controller waits a whole lease before it
/// judges anybody.
///
/// ```text
///   first report ──▶ Up ──(no report for two thirds of a lease)──▶ Suspect ──(lease and drift over, majority held)──▶ Lost
///                    ▲                                       │                                                │
///                    └────────────── a report ◀──────────────┴────────────────────────────────────────────────┘
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostCondition {
    /// It reports.
    Up,
    /// Its report is late.
    Suspect {
        /// When the last report came.
        since: Time,
    },
    /// Its lease is over: it has fenced itself, and its instances are made anew elsewhere.
    Lost {
        /// When it was given up.
        since: Time,
    },
}

impl HostCondition {
    /// One word for people.
    pub fn name(self) -> &'static str {
        match self {
            HostCondition::Up => "Up",
            HostCondition::Suspect { .. } => "Suspect",
            HostCondition::Lost { .. } => "Lost",
        }
    }
}
