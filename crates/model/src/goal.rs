//! The goal state: what one host should be running, whole.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::configuration::{AccessRule, DiskModel};
use crate::definition::{Distribution, EndpointProtocol, LoadBalancerProbe, PortRange, ProbeProtocol};
use crate::egress::Egress;
use crate::guest::GuestGoal;
use crate::image::Digest;
use crate::ipv6::Ipv6Prefix;
use crate::name::{HostName, InstanceKey, RoleName};
use crate::size::VmSize;
use crate::tunnel_key::TunnelKey;
use crate::{Incarnation, VmId};

/// What one host should be running.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoalState {
    /// Its number; only grows.
    pub incarnation: Incarnation,
    /// The VMs of this host.
    pub vms: Vec<VmGoal>,
    /// The records come from a backup, and another host may have a later VM of the same identity, of which they do not know:
    /// guests that run go on, and none is made or started.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub restored: bool,
    /// Local disks that wait here for the next VM of their instance.
    #[serde(default)]
    pub kept: Vec<KeptDisks>,
    /// The network of the whole location, as this host has to know it.
    pub network: NetworkGoal,
    /// The host reboots, if this is the boot it is in.
    #[serde(default)]
    pub reboot: Option<u64>,
}

/// Local disks of an instance that has no VM at the moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptDisks {
    /// The deployment's id.
    pub deployment_id: String,
    /// The instance's name, `web_IN_0`.
    pub instance: String,
    /// The generation that they were made with.
    pub generation: u64,
}

fn on() -> bool {
    true
}

/// One VM that the host should be running.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmGoal {
    /// Which VM.
    pub vm: VmId,
    /// Whose identity it carries.
    pub instance: InstanceKey,
    /// The deployment's id.
    pub deployment_id: String,
    /// The number of the instance's differencing disk; only grows.
    pub generation: u64,
    /// The guest's own name.
    pub computer_name: String,
    /// The fault domain of the host.
    pub fault_domain: String,
    /// The instance's update domain.
    pub update_domain: u32,
    /// Its private address.
    pub dip: Ipv4Addr,
    /// Its private IPv6 address, if its role asks for one.
    #[serde(default)]
    pub ipv6: Option<Ipv6Addr>,
    /// The size of the VM.
    pub size: VmSize,
    /// The base image's digest.
    pub image: Digest,
    /// Bytes of the base image that are not zeros.
    pub image_bytes: u64,
    /// What the guest sees its disk as.
    #[serde(default)]
    pub disk: DiskModel,
    /// How many reboots have been asked for in this VM's life.
    pub reboots: u32,
    /// Whether its guest should run; if not, its disks are kept.
    #[serde(default = "on")]
    pub on: bool,
    /// The post-boot script or cloud-config.
    pub user_data: String,
    /// Configuration settings.
    pub settings: BTreeMap<String, String>,
    /// The probes of the instance's endpoints.
    pub probes: Vec<ProbeGoal>,
    /// How many seconds requests that are under way are waited for at the most before a planned stop.
    #[serde(default)]
    pub drain_seconds: u32,
    /// Where its guest may go.
    #[serde(default)]
    pub egress: Egress,
    /// How its guest is set up.
    #[serde(default)]
    pub guest: GuestGoal,
    /// The number of the instance's local disks: they are kept as long as it is the same.
    #[serde(default)]
    pub local_generation: u64,
}

impl VmGoal {
    /// The hardware address of the guest's card: locally administered, made of the DIP.
    pub fn mac(&self) -> [u8; 6] {
        let [a, b, c, d] = self.dip.octets();
        [0x02, 0x00, a, b, c, d]
    }
}

/// A probe that the host runs against one of its own instances.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProbeGoal {
    /// The port in the guest.
    pub port: u16,
    /// The path of an HTTP probe; a TCP probe has none.
    pub path: Option<String>,
    /// Milliseconds between questions.
    pub interval_millis: u32,
    /// Milliseconds without an answer until the backend leaves.
    pub timeout_millis: u32,
}

impl ProbeGoal {
    /// The probe of an endpoint whose port in the guest is `local_port`. With `interval_millis` the backend leaves after
    /// that many milliseconds three times over without an answer; without it, as the definition says.
    pub fn new(probe: &LoadBalancerProbe, local_port: u16, interval_millis: Option<u32>) -> ProbeGoal {
        let path = match &probe.protocol {
            ProbeProtocol::Tcp => None,
            ProbeProtocol::Http { path } => Some(path.clone()),
        };
        let of_definition = (probe.interval_seconds.saturating_mul(1000), probe.timeout_seconds.saturating_mul(1000));
        let quick = interval_millis.map(|interval| (interval, interval.saturating_mul(3)));
        let (interval_millis, timeout_millis) = quick.unwrap_or(of_definition);
        ProbeGoal { port: probe.port.unwrap_or(local_port), path, interval_millis, timeout_millis }
    }
}

/// The location's network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkGoal {
    /// The DNS zone.
    pub zone: String,
    /// What IPv6 addresses begin with, if the location has them.
    #[serde(default)]
    pub ipv6: Option<Ipv6Prefix>,
    /// All hosts, this one included.
    pub peers: Vec<PeerGoal>,
    /// Where every DIP lives.
    pub routes: Vec<RouteGoal>,
    /// The public addresses.
    pub vips: Vec<VipGoal>,
    /// Roles that only some may talk to.
    #[serde(default)]
    pub guards: Vec<GuardGoal>,
    /// Names and addresses.
    pub dns: Vec<DnsRecord>,
    /// Endpoints by their names.
    #[serde(default)]
    pub services: Vec<ServiceRecord>,
    /// Voters of the location, controllers included; see `lease`.
    pub voters: usize,
}

/// One host of the location.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerGoal {
    /// Its name.
    pub host: HostName,
    /// Its address in the data centre's network.
    pub address: Ipv4Addr,
    /// Its address in the overlay.
    pub overlay: Ipv4Addr,
    /// The hardware address of its tunnel device.
    pub mac: [u8; 6],
    /// Whether it counts among the voters; see `lease`.
    #[serde(default)]
    pub voter: bool,
    /// The public key of its end of the tunnel, where tunnels are encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel_key: Option<TunnelKey>,
}

/// Where a DIP lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteGoal {
    /// The address.
    pub dip: Ipv4Addr,
    /// The host that carries it.
    pub host: HostName,
    /// The deployment whose instances may talk to it.
    pub deployment_id: String,
    /// Its role in that.
    pub role: RoleName,
    /// The number of its instance in that.
    #[serde(default)]
    pub index: u32,
    /// The update domain of its instance.
    #[serde(default)]
    pub update_domain: u32,
    /// Whether it has an IPv6 address too, that of the location's prefix.
    #[serde(default)]
    pub ipv6: bool,
    /// The VM that has it.
    #[serde(default)]
    pub vm: Option<VmId>,
    /// Whether it is being drained: who talks to it may go on, and nobody new is sent to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leaving: bool,
}

/// A role that only some of its deployment may talk to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardGoal {
    /// The deployment.
    pub deployment_id: String,
    /// The role.
    pub role: RoleName,
    /// What is let through; nothing else between instances is.
    pub passes: Vec<Pass>,
}

/// What a guard lets through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pass {
    /// From instances of these roles; from all of the deployment if none is named.
    pub from_roles: Vec<RoleName>,
    /// The protocol.
    pub protocol: EndpointProtocol,
    /// The ports; all if none are named.
    pub ports: Option<PortRange>,
}

/// A public address and what is behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VipGoal {
    /// The address.
    pub vip: Ipv4Addr,
    /// The endpoints on it.
    pub endpoints: Vec<EndpointGoal>,
    /// Hosts in the order in which they take the address; the first live one has it.
    pub owners: Vec<HostName>,
    /// Whether it is there over IPv6 too, at the address of the location's prefix.
    #[serde(default)]
    pub ipv6: bool,
}

/// An input endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointGoal {
    /// `ROLE/ENDPOINT`.
    #[serde(default)]
    pub name: String,
    /// Whether it is UDP.
    pub udp: bool,
    /// The port on the VIP.
    pub port: u16,
    /// The port in the guests.
    pub local_port: u16,
    /// The instances that may be behind it. Which of them are, the hosts' probes decide.
    pub backends: Vec<Backend>,
    /// How many instances there are to be, those included that are not there at the moment.
    #[serde(default)]
    pub instances: u32,
    /// Who may come in; everybody if there are no rules. The first that fits decides.
    #[serde(default)]
    pub access: Vec<AccessRule>,
    /// What a backend is chosen by.
    #[serde(default)]
    pub distribution: Distribution,
}

/// An instance behind an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// The VM.
    pub vm: VmId,
    /// Its address.
    pub dip: Ipv4Addr,
    /// Its host.
    pub host: HostName,
    /// The health that decides: that of this probe, or the guest's own readiness where there is none.
    pub probe: Option<ProbeGoal>,
    /// In rotation whatever the probe says.
    pub always: bool,
}

/// A name and its address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DnsRecord {
    /// The full name in lower case, without a dot at the end.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// Whether it is the name that the address leads back to.
    #[serde(default)]
    pub canonical: bool,
}

/// Where a service is found by its name (an SRV record, RFC 2782).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServiceRecord {
    /// The full name, `_http._tcp.shop.<zone>`, in lower case, without a dot at the end.
    pub name: String,
    /// The port.
    pub port: u16,
    /// The name of the machine.
    pub target: String,
}
