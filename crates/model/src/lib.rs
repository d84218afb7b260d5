//! The nouns of Mayfly: names, sizes, records, states, goal states, reports and the arithmetic of leases.
//!
//! Nothing here does I/O, reads a clock or is async. The types derive serde because they are stored as records and
//! sent between controller and host as they are; what users see through the API is a type of its own in `api`.

pub mod autoscale;
pub mod breaker;
pub mod certificate;
pub mod configuration;
pub mod definition;
pub mod egress;
pub mod enrolment;
pub mod event;
pub mod goal;
pub mod guest;
pub mod host;
pub mod image;
pub mod instance;
pub mod ipv6;
pub mod lease;
pub mod limits;
pub mod manifest;
pub mod name;
pub mod report;
pub mod requirements;
pub mod reservation;
pub mod service;
pub mod size;
pub mod subnet;
pub mod time;
pub mod transit;
pub mod tunnel_key;
pub mod upgrade;
pub mod usage;

pub use autoscale::Autoscale;
pub use breaker::{Breaker, Scope, Trip};
pub use certificate::{CertificateDefinition, GuestCertificate, ServiceCertificate, Thumbprint, ThumbprintError};
pub use configuration::{
    AccessRule, DISK_SETTING, DiskModel, EndpointAcl, NetworkCard, RoleConfiguration, ServiceConfiguration,
    USER_DATA_SETTING,
};
pub use definition::{
    Distribution, Endpoint, EndpointProtocol, LoadBalancerProbe, LocalStorage, PortRange, ProbeProtocol,
    RoleDefinition, RoleKind, ServiceDefinition,
};
pub use egress::{Destination, Egress, Target, Transport};
pub use enrolment::{Enrolment, HostToken};
pub use event::{Event, EventKind};
pub use goal::{
    Backend, DnsRecord, EndpointGoal, GoalState, GuardGoal, KeptDisks, NetworkGoal, Pass, PeerGoal, ProbeGoal,
    RouteGoal, ServiceRecord, VipGoal, VmGoal,
};
pub use guest::{Admin, GuestGoal, Platform, RemoteAccess, Script};
pub use host::{Admission, EGRESS_FEATURE, EGRESS6_FEATURE, Host, HostCondition, IPV6_FEATURE};
pub use image::{Digest, Image};
pub use instance::{Expectation, Health, Instance, InstanceState, InstanceStatus, Rung, Then, Vm, VmPhase};
pub use ipv6::Ipv6Prefix;
pub use lease::{HostLease, LeaseGrant, LeaseTimings};
pub use manifest::{CHUNK_BYTES, ChunkDigest, Manifest};
pub use name::{
    DeploymentKey, HostName, ImageName, InstanceKey, NameError, NamePool, ReservedName, RoleName, ServiceName, Slot,
};
pub use report::{BootStep, HostFacts, HostReport, Incident, Observed, Readiness, Traffic, VmReport};
pub use requirements::{Requirements, Spread};
pub use reservation::Reservation;
pub use service::{Deployment, DeploymentEvent, DeploymentStatus, Metric, Service, Version};
pub use size::{Resources, VmSize};
pub use subnet::Subnet;
pub use time::Time;
pub use transit::Transit;
pub use tunnel_key::TunnelKey;
pub use upgrade::{RoleChange, Upgrade, UpgradeMode};
pub use usage::Usage;

use serde::{Deserialize, Serialize};

/// The identity of one VM, never used twice. An instance gets a new one with every new differencing disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VmId(pub u64);

impl std::fmt::Display for VmId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "vm{}", self.0)
    }
}

impl std::str::FromStr for VmId {
    type Err = String;

    fn from_str(text: &str) -> Result<VmId, String> {
        let number = text.strip_prefix("vm").and_then(|number| number.parse().ok());
        number.map(VmId).ok_or_else(|| format!("`{text}` is not the name of a VM"))
    }
}

/// The number of a goal state. It only grows; a host refuses one that is lower than what it has applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(pub u64);

impl std::fmt::Display for Incarnation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}
