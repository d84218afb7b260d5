//! What a host reports: what it sees, never what it wants.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::image::Digest;
use crate::name::HostName;
use crate::size::Resources;
use crate::time::Time;
use crate::transit::Transit;
use crate::tunnel_key::TunnelKey;
use crate::{Incarnation, VmId};

/// Facts about a host that change rarely.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// The fault domain it stands in.
    pub fault_domain: String,
    /// Its address in the data centre's network.
    pub address: Ipv4Addr,
    /// What it may carry.
    pub capacity: Resources,
    /// What the operator says of it.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What it can do.
    #[serde(default)]
    pub features: BTreeSet<String>,
    /// The base images that it has.
    #[serde(default)]
    pub images: BTreeSet<Digest>,
    /// How it carries packets to other hosts' guests.
    #[serde(default)]
    pub transit: Transit,
    /// The public key of its end of the tunnels between hosts, where they are encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel_key: Option<TunnelKey>,
}

/// A host's report, which is also its request to renew the lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostReport {
    /// Who reports.
    pub host: HostName,
    /// Facts about it.
    pub facts: HostFacts,
    /// Random for each start of the host (not of the agent). A new one says that all guests are gone.
    pub boot_id: u64,
    /// Grows with each report of a boot: of two that arrive in the wrong order, the older is dropped.
    #[serde(default)]
    pub sequence: u64,
    /// The number of the last lease grant that the host has received; 0 for none.
    pub lease_ack: u64,
    /// The goal state that it has applied.
    pub applied: Incarnation,
    /// The VMs that exist on it, whether wanted or not. A VM that is not listed has no process and no disk.
    pub vms: Vec<VmReport>,
    /// What went wrong on the host lately and was mended; told again with each report.
    #[serde(default)]
    pub incidents: Vec<Incident>,
    /// What the host's kernel has counted, by name: connections of endpoints, packets that were dropped.
    #[serde(default)]
    pub counters: BTreeMap<String, u64>,
}

/// Something that people should know of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incident {
    /// Its number: grows, over restarts too, so that each is told once.
    pub number: u64,
    /// One line for people.
    pub message: String,
}

/// What a host sees of one VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmReport {
    /// Which VM.
    pub vm: VmId,
    /// The highest number of a requested reboot that has been carried out.
    pub reboots: u32,
    /// How often the VM was started again without being asked to.
    pub restarts: u32,
    /// What the host sees.
    pub observed: Observed,
    /// Bytes of the differencing disk's file.
    pub disk_bytes: u64,
    /// Bytes of its base image that are on the host.
    #[serde(default)]
    pub image_bytes: u64,
    /// Processor time that it has used lately, in thousandths of a core.
    #[serde(default)]
    pub cpu_milli: u64,
    /// What it has sent and received.
    #[serde(default)]
    pub traffic: Traffic,
    /// What has been reached on the way to Ready, in the order of time.
    #[serde(default)]
    pub steps: Vec<BootStep>,
}

/// Something that has been reached on a VM's way from its disk to Ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootStep {
    /// What.
    pub name: String,
    /// When, by the host's wall clock.
    pub at: Time,
}

/// Bytes that a VM has sent and received since it was made. They only grow, but a host that has lost power may have
/// forgotten the last of them, and reports overtake each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Sent.
    pub sent: u64,
    /// Received.
    pub received: u64,
}

impl Traffic {
    /// What has been added to `other`; all of it, if it cannot have come after that, as another count has begun.
    #[must_use]
    pub fn since(self, other: Traffic) -> Traffic {
        if self.sent < other.sent || self.received < other.received { self } else { self.beyond(other) }
    }

    /// What is more than in `other`.
    #[must_use]
    pub fn beyond(self, other: Traffic) -> Traffic {
        let (sent, received) = (self.sent.saturating_sub(other.sent), self.received.saturating_sub(other.received));
        Traffic { sent, received }
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Traffic) -> Traffic {
        Traffic { sent: self.sent + other.sent, received: self.received + other.received }
    }
}

/// The state of a VM as its host sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Observed {
    /// Disks and network are being made; the text says what is under way.
    Preparing(String),
    /// The guest has been started and has not said anything yet.
    Starting,
    /// The guest has asked for its address or its documents, and has not reported yet.
    Booting,
    /// The guest runs.
    Running(Readiness),
    /// The guest is being stopped, or stopped by itself and is about to be started again; the text says why.
    Stopped(String),
    /// The VM cannot be started; the text says why. The host keeps trying.
    Failed(String),
    /// There is no guest, as none is wanted now. Its disks are kept.
    Off,
}

/// Whether a running guest can be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Readiness {
    /// The guest says that it is ready, or, saying nothing, answers its probe.
    Ready,
    /// The guest says that it is not ready; the text is its own.
    NotReady(String),
    /// The guest was heard and has fallen silent.
    Silent,
}
