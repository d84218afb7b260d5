//! Hosts as the core keeps them.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::name::HostName;
use crate::size::Resources;
use crate::time::Time;

/// A host: a machine that runs the host agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Its name.
    pub name: HostName,
    /// Its number in the location, from 1; the overlay address is made of it.
    pub number: u16,
    /// The fault domain it stands in.
    pub fault_domain: String,
    /// Its address in the data centre's network.
    pub address: Ipv4Addr,
    /// What it may carry, overcommit included.
    pub capacity: Resources,
    /// How it is doing.
    pub condition: HostCondition,
    /// When its first report came.
    pub registered: Time,
    /// Changes with each start of the host.
    #[serde(default)]
    pub boot_id: u64,
    /// The last incident of it that was made an event.
    #[serde(default)]
    pub last_incident: u64,
}

impl Host {
    /// The host's address inside the overlay: 100.64.0.0/16 plus its number (shared address space of RFC 6598).
    pub fn overlay_address(&self) -> Ipv4Addr {
        let [high, low] = self.number.to_be_bytes();
        Ipv4Addr::new(100, 64, high, low)
    }

    /// The hardware address of its tunnel device, locally administered.
    pub fn overlay_mac(&self) -> [u8; 6] {
        let [high, low] = self.number.to_be_bytes();
        [0x02, 0x6d, 0x66, 0x00, high, low]
    }
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
