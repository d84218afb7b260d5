//! What a service definition (.csdef) says, after parsing.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::certificate::CertificateDefinition;
use crate::name::RoleName;
use crate::size::VmSize;

/// A whole service definition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceDefinition {
    /// The name that the configuration has to repeat.
    pub name: String,
    /// Update domains that each role's instances are spread over, 1 to 20.
    pub update_domain_count: u32,
    /// Probes that input endpoints may name.
    pub probes: Vec<LoadBalancerProbe>,
    /// The roles, in the order of the file.
    pub roles: Vec<RoleDefinition>,
    /// `NetworkTrafficRules`: who may call which internal endpoint.
    pub traffic_rules: Vec<TrafficRule>,
}

impl ServiceDefinition {
    /// The role of that name.
    pub fn role(&self, name: &RoleName) -> Option<&RoleDefinition> {
        self.roles.iter().find(|role| role.name == *name)
    }

    /// The probe of that name.
    pub fn probe(&self, name: &str) -> Option<&LoadBalancerProbe> {
        self.probes.iter().find(|probe| probe.name == name)
    }
}

/// A load-balancer probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadBalancerProbe {
    /// Its name within the definition.
    pub name: String,
    /// How it asks.
    pub protocol: ProbeProtocol,
    /// The port it asks, in the guest; the local port of the endpoint where the definition gives none.
    pub port: Option<u16>,
    /// Seconds between two questions (at least 5).
    pub interval_seconds: u32,
    /// Seconds without an answer after which a backend leaves the rotation (at least 11).
    pub timeout_seconds: u32,
}

/// How a probe asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeProtocol {
    /// A connection is an answer.
    Tcp,
    /// Status 200 for this path is an answer.
    Http {
        /// The path, with its leading slash.
        path: String,
    },
}

/// The kind of a role, with what only that kind has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RoleKind {
    /// Instances of a base image.
    VirtualMachine,
    /// A web role.
    Web(RoleCode),
    /// A worker role.
    Worker(RoleCode),
}

impl RoleKind {
    /// The element's name in a service definition.
    pub fn element(&self) -> &'static str {
        match self {
            RoleKind::VirtualMachine => "VirtualMachineRole",
            RoleKind::Web(_) => "WebRole",
            RoleKind::Worker(_) => "WorkerRole",
        }
    }
}

/// What a web or worker role runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleCode {
    /// Startup tasks, in order.
    pub startup: Vec<StartupTask>,
    /// The command line of a `ProgramEntryPoint`, or the assembly of a `NetFxEntryPoint`.
    pub entry_point: Option<String>,
    /// Names of the sites of a web role.
    pub sites: Vec<String>,
}

/// A startup task of a web or worker role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartupTask {
    /// The command, relative to the role's `bin` folder.
    pub command_line: String,
    /// Whether it runs with administrator rights.
    pub elevated: bool,
    /// `simple`, `foreground` or `background`.
    pub task_type: String,
}

/// One role of a service definition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleDefinition {
    /// Its name.
    pub name: RoleName,
    /// What it is.
    pub kind: RoleKind,
    /// The size of its instances.
    pub size: VmSize,
    /// Names of its configuration settings.
    pub settings: Vec<String>,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
    /// Its local storage.
    pub local_storage: Vec<LocalStorage>,
    /// The certificates it wants.
    pub certificates: Vec<CertificateDefinition>,
    /// Modules it imports, such as `RemoteAccess`.
    pub imports: Vec<String>,
}

/// Local storage on the scratch disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalStorage {
    /// Its name.
    pub name: String,
    /// Its size in MB.
    pub size_mb: u64,
    /// Whether a role restart empties it.
    pub clean_on_role_recycle: bool,
}

/// The protocol of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndpointProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// TCP that carries HTTP.
    Http,
    /// TCP that carries HTTPS, passed through.
    Https,
    /// Any protocol; internal endpoints only.
    Any,
}

impl EndpointProtocol {
    /// The name as service definitions write it.
    pub fn as_str(self) -> &'static str {
        match self {
            EndpointProtocol::Tcp => "tcp",
            EndpointProtocol::Udp => "udp",
            EndpointProtocol::Http => "http",
            EndpointProtocol::Https => "https",
            EndpointProtocol::Any => "any",
        }
    }

    /// Whether packets of it are UDP.
    pub fn is_udp(self) -> bool {
        self == EndpointProtocol::Udp
    }
}

impl fmt::Display for EndpointProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What a load balancer chooses a backend by. Packets of one connection always go to the same one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Distribution {
    /// Each connection by itself (the original's hash of the 5-tuple).
    #[default]
    Connection,
    /// All connections of a client with one protocol to the same backend (3-tuple).
    SourceIpProtocol,
    /// All connections of a client to the same backend (2-tuple).
    SourceIp,
}

/// A range of ports, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PortRange {
    /// The lowest port.
    pub min: u16,
    /// The highest port.
    pub max: u16,
}

/// An endpoint of a role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Endpoint {
    /// Load balanced on the deployment's VIP.
    Input {
        /// Its name.
        name: String,
        /// Its protocol.
        protocol: EndpointProtocol,
        /// The port on the VIP.
        port: u16,
        /// The port in the guest.
        local_port: u16,
        /// The probe that decides about rotation, where one is named.
        probe: Option<String>,
        /// Whether the endpoint stays in rotation whatever the role's status.
        ignore_role_instance_status: bool,
        /// What a backend is chosen by.
        #[serde(default)]
        distribution: Distribution,
    },
    /// Between instances of the deployment.
    Internal {
        /// Its name.
        name: String,
        /// Its protocol.
        protocol: EndpointProtocol,
        /// Its ports; none means that the platform chooses.
        ports: Option<PortRange>,
    },
    /// One public port for each instance.
    InstanceInput {
        /// Its name.
        name: String,
        /// Its protocol.
        protocol: EndpointProtocol,
        /// The port in the guest.
        local_port: u16,
        /// Public ports to choose from.
        public_ports: PortRange,
    },
}

impl Endpoint {
    /// The endpoint's name.
    pub fn name(&self) -> &str {
        match self {
            Endpoint::Input { name, .. } | Endpoint::Internal { name, .. } | Endpoint::InstanceInput { name, .. } => {
                name
            }
        }
    }
}

/// One rule of `NetworkTrafficRules`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficRule {
    /// Destinations as (role, endpoint).
    pub destinations: Vec<(String, String)>,
    /// Roles that may call them; empty means all.
    pub from_roles: Vec<String>,
}
