//! Things as users see them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use mayfly_model::{Resources, Slot, Transit, UpgradeMode};
use serde::{Deserialize, Serialize};

/// A base image.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ImageView {
    /// Its name.
    pub name: String,
    /// The SHA-256 of its manifest.
    pub digest: String,
    /// Bytes of the disk that a guest sees.
    pub disk_bytes: u64,
    /// Bytes that are not zeros.
    pub data_bytes: u64,
    /// The identity of the VHD that was pushed, by which its children know it, in hexadecimal.
    pub vhd_id: String,
    /// When it was committed (RFC 3339).
    pub created: String,
}

/// A hosted service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServiceView {
    /// Its name.
    pub name: String,
    /// Its DNS name.
    pub dns_name: String,
    /// `Active` or `Deleting`.
    pub state: String,
    /// When it was created (RFC 3339).
    pub created: String,
    /// What runs in its slots.
    pub deployments: Vec<DeploymentView>,
}

/// A deployment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeploymentView {
    /// Its slot.
    pub slot: Slot,
    /// Its id.
    pub id: String,
    /// One of the original platform's eight deployment states.
    pub state: String,
    /// The number of the version that is wanted.
    #[serde(default)]
    pub version: u32,
    /// The update that is under way.
    #[serde(default)]
    pub update: Option<UpdateView>,
    /// Its public address.
    pub vip: Ipv4Addr,
    /// The same over IPv6, if a role with public endpoints asks for that.
    #[serde(default)]
    pub ipv6: Option<Ipv6Addr>,
    /// Its roles.
    pub roles: Vec<RoleView>,
}

/// An update under way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UpdateView {
    /// How it goes from one update domain to the next.
    pub mode: UpgradeMode,
    /// Whether it is a rollback.
    pub rollback: bool,
    /// The update domain that is being changed.
    pub walking: Option<u32>,
    /// Update domains that are done.
    pub walked: Vec<u32>,
    /// Instances of the new version.
    pub updated: u32,
    /// Instances of an older one.
    pub left: u32,
    /// Why it has stopped.
    pub stuck: Option<String>,
}

/// What a command would do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PlanView {
    /// In a sentence.
    pub summary: Vec<String>,
    /// Instance by instance.
    pub steps: Vec<PlanStep>,
}

/// What would happen to one instance.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PlanStep {
    /// Its name, `web_IN_0`.
    pub instance: String,
    /// `create`, `replace`, `reboot`, `keep running`, `wait` or `remove`.
    pub action: String,
    /// The host that would carry it, or carries it.
    pub host: Option<String>,
    /// The fault domain of that host.
    pub fault_domain: Option<String>,
    /// Its update domain.
    pub update_domain: Option<u32>,
    /// Why it stands there or waits, or when it is its turn.
    pub detail: Option<String>,
}

impl PlanStep {
    /// A step without a place.
    pub fn of(instance: String, action: &str, detail: Option<String>) -> PlanStep {
        PlanStep { instance, action: action.to_owned(), host: None, fault_domain: None, update_domain: None, detail }
    }
}

/// What healing has been stopped for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BreakerView {
    /// `fleet`, or a service (`shop`, `shop@staging`).
    pub scope: String,
    /// Since when (RFC 3339).
    pub since: String,
    /// The pattern that was seen.
    pub why: String,
}

/// What a service used on one day.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UsageView {
    /// The service.
    pub service: String,
    /// The day, UTC, as YYYY-MM-DD.
    pub day: String,
    /// Seconds that instances of each size existed.
    pub instance_seconds: BTreeMap<String, u64>,
    /// Bytes that they sent.
    pub sent_bytes: u64,
    /// Bytes that they received.
    pub received_bytes: u64,
}

/// A role of a deployment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RoleView {
    /// Its name.
    pub name: String,
    /// The size of its instances.
    pub size: String,
    /// Its base image.
    pub image: Option<String>,
    /// Instances that are wanted.
    pub wanted: u32,
    /// Instances that are ready.
    pub ready: u32,
    /// Its input endpoints.
    pub endpoints: Vec<EndpointView>,
}

/// An input endpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EndpointView {
    /// Its name.
    pub name: String,
    /// Its protocol.
    pub protocol: String,
    /// The port on the VIP; where each instance has one of its own, that of instance 0.
    pub port: u16,
    /// The last of the instances' own ports, if each has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_port: Option<u16>,
    /// The port in the guests.
    pub local_port: u16,
}

/// A role instance.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InstanceView {
    /// The service.
    pub service: String,
    /// The slot.
    pub slot: Slot,
    /// The role.
    pub role: String,
    /// Its name, `web_IN_0`.
    pub name: String,
    /// Its state, one of the original platform's instance states.
    pub state: String,
    /// The version of its deployment that it has.
    #[serde(default)]
    pub version: u32,
    /// More about the state.
    pub detail: Option<String>,
    /// The host that carries it.
    pub host: Option<String>,
    /// The fault domain of that host.
    pub fault_domain: Option<String>,
    /// Its update domain.
    pub update_domain: u32,
    /// The guest's own name.
    pub computer_name: Option<String>,
    /// Its private address.
    pub dip: Option<Ipv4Addr>,
    /// Its private IPv6 address, if its role asks for one.
    #[serde(default)]
    pub ipv6: Option<Ipv6Addr>,
    /// The number of its differencing disk.
    pub generation: u64,
    /// Its VM.
    pub vm: Option<String>,
    /// Reboots that were asked for in this VM's life.
    pub reboots: u32,
    /// Bytes that its differencing disk takes on the host.
    pub disk_bytes: Option<u64>,
    /// Bytes that it may take.
    pub disk_quota_bytes: Option<u64>,
    /// Bytes of its base image that have come to the host.
    pub image_bytes: Option<u64>,
    /// Bytes that its VM has sent.
    #[serde(default)]
    pub sent_bytes: Option<u64>,
    /// Bytes that its VM has received.
    #[serde(default)]
    pub received_bytes: Option<u64>,
    /// Whether it was told to stop, so that it is as wanted without a guest.
    #[serde(default)]
    pub stopped: bool,
    /// How its VM came to be, step by step.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<StepView>,
    /// Reboots among them that have not been carried out yet, or a VM that is being replaced: the instance is in motion.
    pub in_motion: bool,
}

/// One step of a VM's way from its disk to Ready.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StepView {
    /// What had been reached.
    pub step: String,
    /// When (RFC 3339).
    pub at: String,
    /// Milliseconds since the step before.
    pub millis: u64,
}

/// A host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostView {
    /// Its name.
    pub name: String,
    /// `Up`, `Suspect` or `Lost`.
    pub state: String,
    /// Its fault domain.
    pub fault_domain: String,
    /// Its address in the data centre's network.
    pub address: Ipv4Addr,
    /// What it may carry.
    pub capacity: Resources,
    /// What its VMs take of that.
    pub used: Resources,
    /// VMs on it.
    pub instances: usize,
    /// What its operator says of it.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What it can do.
    #[serde(default)]
    pub features: BTreeSet<String>,
    /// How it carries packets to other hosts' guests.
    #[serde(default)]
    pub transit: Transit,
}

/// An event.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EventView {
    /// Its number.
    pub number: u64,
    /// When (RFC 3339, with milliseconds).
    pub time: String,
    /// What kind.
    pub kind: String,
    /// What it is about.
    pub subject: String,
    /// One line for people.
    pub message: String,
}

/// A file of the user's.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SourceFile {
    /// Its name, for errors.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// A request to deploy.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeployRequest {
    /// The service definition.
    pub definition: SourceFile,
    /// The service configuration.
    pub configuration: SourceFile,
    /// Files that the configuration refers to as `@name`.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
}

/// A request to scale: the wanted number of instances of each role that is named.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ScaleRequest {
    /// Instances by role.
    pub instances: BTreeMap<String, u32>,
}

/// A change of a deployment in place.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UpgradeRequest {
    /// What it shall be.
    pub files: DeployRequest,
    /// How it goes from one update domain to the next.
    #[serde(default)]
    pub mode: UpgradeMode,
}

/// Lets an update that is done by hand go on.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct WalkRequest {
    /// The update domain; the lowest that is left if there is none.
    #[serde(default)]
    pub domain: Option<u32>,
}

/// Takes an update back.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct RollbackRequest {
    /// How it goes from one update domain to the next.
    #[serde(default)]
    pub mode: UpgradeMode,
}

/// A number that says how much a role has to do.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct MetricRequest {
    /// The number.
    pub value: i64,
}

/// Whether a packet would pass.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceView {
    /// Where to: `ADDRESS:PORT/PROTOCOL`.
    pub to: String,
    /// Whether it arrives.
    pub passes: bool,
    /// The rules that it meets; the last one decides.
    pub steps: Vec<TraceStep>,
}

/// One rule that a packet meets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceStep {
    /// What it says.
    pub rule: String,
    /// Whether it lets the packet pass.
    pub passes: bool,
}

/// A reserved public address.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AddressView {
    /// Its name.
    pub name: String,
    /// The address.
    pub address: Ipv4Addr,
    /// Since when it is reserved (RFC 3339).
    pub reserved: String,
    /// The deployment that has it.
    pub used_by: Option<String>,
}
