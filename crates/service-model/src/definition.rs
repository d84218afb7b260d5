//! Reading a service definition.

use std::collections::HashSet;

use mayfly_model::definition::{RoleCode, StartupTask, TrafficRule};
use mayfly_model::{
    CertificateDefinition, Distribution, Endpoint, EndpointProtocol, LoadBalancerProbe, LocalStorage, PortRange,
    ProbeProtocol, RoleDefinition, RoleKind, RoleName, ServiceDefinition, VmSize, limits,
};
use roxmltree::Node;

use crate::diagnostic::{Diagnostics, Source};
use crate::element::{HasLocalName, Reader};

const NAMESPACE: &str = "http://schemas.microsoft.com/ServiceHosting/2008/10/ServiceDefinition";
const ROLE_ELEMENTS: [&str; 3] = ["VirtualMachineRole", "WebRole", "WorkerRole"];

/// Reads a service definition.
///
/// # Errors
/// Everything that is wrong with it, at once.
pub fn parse_definition(source: &Source) -> Result<ServiceDefinition, Diagnostics> {
    let mut reader = Reader::new(source);
    let Some(document) = reader.document("ServiceDefinition", NAMESPACE) else {
        return Err(reader.diagnostics);
    };
    let definition = read_definition(&mut reader, document.root_element());
    reader.diagnostics.or(definition)
}

fn read_definition(reader: &mut Reader<'_>, root: Node<'_, '_>) -> ServiceDefinition {
    reader.attributes(root, &["name", "upgradeDomainCount", "schemaVersion", "topologyChangeDiscovery"]);
    let name = reader.required(root, "name").unwrap_or_default().to_owned();
    let domains = 1..=limits::UPDATE_DOMAINS_MAX;
    let update_domain_count = reader.number(root, "upgradeDomainCount", domains, limits::UPDATE_DOMAINS_DEFAULT);
    let known = ["LoadBalancerProbes", "VirtualMachineRole", "WebRole", "WorkerRole", "NetworkTrafficRules"];
    let children = reader.children(root, &known);
    let probes = reader.child(&children, "LoadBalancerProbes").map_or_else(Vec::new, |node| read_probes(reader, node));
    let mut names = HashSet::new();
    let mut ports = HashSet::new();
    let mut roles = Vec::new();
    for node in children.iter().filter(|node| ROLE_ELEMENTS.contains(&node.tag_name().name())) {
        roles.extend(read_role(reader, *node, &mut names, &mut ports, &probes));
    }
    if !children.iter().any(|node| ROLE_ELEMENTS.contains(&node.tag_name().name())) {
        reader.error_at(root, "a service definition needs at least one role", Some("add a <VirtualMachineRole>"));
    }
    if roles.len() > limits::ROLES_MAX {
        reader.error_at(root, &format!("{} roles are more than {}", roles.len(), limits::ROLES_MAX), None);
    }
    if ports.len() > limits::INPUT_ENDPOINTS_MAX {
        let message = format!("{} input endpoints are more than {}", ports.len(), limits::INPUT_ENDPOINTS_MAX);
        reader.error_at(root, &message, None);
    }
    check_public_ports(reader, root, &roles);
    let traffic_rules = reader
        .child(&children, "NetworkTrafficRules")
        .map_or_else(Vec::new, |node| read_traffic_rules(reader, node, &roles));
    ServiceDefinition { name, update_domain_count, probes, roles, traffic_rules }
}

/// Ranges of instances' public ports must not meet each other, nor other endpoints' ports.
fn check_public_ports(reader: &mut Reader<'_>, root: Node<'_, '_>, roles: &[RoleDefinition]) {
    let mut taken: Vec<(bool, PortRange, String)> = Vec::new();
    for (role, endpoint) in roles.iter().flat_map(|role| role.endpoints.iter().map(move |one| (role, one))) {
        let (udp, range) = match endpoint {
            Endpoint::Input { protocol, port, .. } => (protocol.is_udp(), PortRange { min: *port, max: *port }),
            Endpoint::InstanceInput { protocol, public_ports, .. } => (protocol.is_udp(), *public_ports),
            Endpoint::Internal { .. } => continue,
        };
        let name = format!("`{}` of `{}`", endpoint.name(), role.name);
        // Two single ports that are the same have been told of already.
        let is_single = |range: PortRange| range.min == range.max;
        let meets = |(other_udp, other, _): &&(bool, PortRange, String)| {
            *other_udp == udp
                && range.min <= other.max
                && other.min <= range.max
                && !(is_single(range) && is_single(*other))
        };
        if let Some((_, _, other)) = taken.iter().find(meets) {
            let message = format!("the public ports of {name} and {other} overlap");
            reader.error_at(root, &message, Some("all input endpoints of a service share one public address"));
        }
        taken.push((udp, range, name));
    }
}

fn read_probes(reader: &mut Reader<'_>, parent: Node<'_, '_>) -> Vec<LoadBalancerProbe> {
    let mut seen = HashSet::new();
    let mut probes = Vec::new();
    for node in reader.children(parent, &["LoadBalancerProbe"]) {
        reader.attributes(node, &["name", "protocol", "path", "port", "intervalInSeconds", "timeoutInSeconds"]);
        let name = reader.unique(node, "name", &mut seen);
        let http = reader.choice(node, "protocol", &[("http", true), ("tcp", false)]);
        let path = node.attribute("path");
        if http == Some(true) && path.is_none() {
            reader.error_at(node, "an http probe needs a `path`", Some("add path=\"/\""));
        }
        if http == Some(false) && path.is_some() {
            reader.error_in(node, "path", "a tcp probe has no path", Some("remove `path`, or use protocol=\"http\""));
        }
        let port = node.attribute("port").map(|_| reader.number(node, "port", 1..=u16::MAX, 1));
        let interval_seconds = reader.number(node, "intervalInSeconds", 5..=2_147_483, 15);
        let timeout_seconds = reader.number(node, "timeoutInSeconds", 11..=2_147_483, 31);
        let protocol = match (http, path) {
            (Some(true), Some(path)) => ProbeProtocol::Http { path: format!("/{}", path.trim_start_matches('/')) },
            _ => ProbeProtocol::Tcp,
        };
        probes.extend(name.map(|name| LoadBalancerProbe {
            name: name.to_owned(),
            protocol,
            port,
            interval_seconds,
            timeout_seconds,
        }));
    }
    probes
}

fn read_role(
    reader: &mut Reader<'_>,
    node: Node<'_, '_>,
    names: &mut HashSet<String>,
    ports: &mut HashSet<(bool, u16)>,
    probes: &[LoadBalancerProbe],
) -> Option<RoleDefinition> {
    reader.attributes(node, &["name", "vmsize", "enableNativeCodeExecution"]);
    let name = reader.unique(node, "name", names).and_then(|name| match RoleName::new(name) {
        Ok(name) => Some(name),
        Err(error) => {
            reader.error_in(node, "name", &error.to_string(), None);
            None
        }
    });
    let size = match node.attribute("vmsize") {
        None => VmSize::default(),
        Some(text) => text.parse().unwrap_or_else(|()| {
            let names = VmSize::ALL.map(VmSize::as_str).join(", ");
            reader.error_in(node, "vmsize", &format!("`{text}` is not a VM size"), Some(&format!("sizes are {names}")));
            VmSize::default()
        }),
    };
    let common = ["Certificates", "ConfigurationSettings", "Imports", "Endpoints", "LocalResources", "LocalStorage"];
    let code = ["Runtime", "Startup", "Contents", "Sites"];
    let is_vm = node.has_tag_name_local("VirtualMachineRole");
    let known: Vec<&str> = common.iter().chain(code.iter().filter(|_| !is_vm)).copied().collect();
    let children = reader.children(node, &known);
    let kind = match node.tag_name().name() {
        "WebRole" => RoleKind::Web(read_code(reader, &children)),
        "WorkerRole" => RoleKind::Worker(read_code(reader, &children)),
        _ => RoleKind::VirtualMachine,
    };
    let mut named = |container: &str, element: &str, attribute: &str| {
        let mut seen = HashSet::new();
        let Some(parent) = reader.child(&children, container) else { return Vec::new() };
        let nodes = reader.children(parent, &[element]);
        nodes.into_iter().filter_map(|node| reader.unique(node, attribute, &mut seen).map(str::to_owned)).collect()
    };
    let settings = named("ConfigurationSettings", "Setting", "name");
    let imports: Vec<String> = named("Imports", "Import", "moduleName");
    let mut certificates = read_certificates(reader, &children);
    let imported = PLUGIN_CERTIFICATES.iter().filter(|(module, _)| imports.iter().any(|import| import == module));
    certificates.extend(imported.map(|(_, name)| CertificateDefinition::of_machine(*name)));
    let endpoints = match reader.child(&children, "Endpoints") {
        Some(parent) => read_endpoints(reader, parent, ports, probes),
        None => Vec::new(),
    };
    let local_storage = read_local_storage(reader, &children);
    Some(RoleDefinition { name: name?, kind, size, settings, endpoints, local_storage, certificates, imports })
}

/// The certificates that modules bring with them: (module, name of the certificate).
const PLUGIN_CERTIFICATES: [(&str, &str); 1] =
    [("RemoteAccess", "Microsoft.WindowsAzure.Plugins.RemoteAccess.PasswordEncryption")];

fn read_certificates(reader: &mut Reader<'_>, children: &[Node<'_, '_>]) -> Vec<CertificateDefinition> {
    let Some(parent) = reader.child(children, "Certificates") else { return Vec::new() };
    let (mut seen, mut certificates) = (HashSet::new(), Vec::new());
    for node in reader.children(parent, &["Certificate"]) {
        reader.attributes(node, &["name", "storeLocation", "storeName", "permissionLevel"]);
        let name = reader.unique(node, "name", &mut seen).map(str::to_owned);
        let location = match node.attribute("storeLocation") {
            None => "LocalMachine",
            Some(_) => {
                let known = [("LocalMachine", "LocalMachine"), ("CurrentUser", "CurrentUser")];
                reader.choice(node, "storeLocation", &known).unwrap_or("LocalMachine")
            }
        };
        let store = node.attribute("storeName").unwrap_or("My");
        certificates.extend(name.map(|name| CertificateDefinition {
            name,
            store_location: location.to_owned(),
            store_name: store.to_owned(),
        }));
    }
    certificates
}

fn read_endpoints(
    reader: &mut Reader<'_>,
    parent: Node<'_, '_>,
    ports: &mut HashSet<(bool, u16)>,
    probes: &[LoadBalancerProbe],
) -> Vec<Endpoint> {
    let mut seen = HashSet::new();
    let mut endpoints = Vec::new();
    for node in reader.children(parent, &["InputEndpoint", "InternalEndpoint", "InstanceInputEndpoint"]) {
        let name = reader.unique(node, "name", &mut seen).map(str::to_owned);
        let endpoint = match node.tag_name().name() {
            "InputEndpoint" => read_input_endpoint(reader, node, name, ports, probes),
            "InternalEndpoint" => read_internal_endpoint(reader, node, name),
            _ => read_instance_input_endpoint(reader, node, name),
        };
        endpoints.extend(endpoint);
    }
    endpoints
}

fn read_input_endpoint(
    reader: &mut Reader<'_>,
    node: Node<'_, '_>,
    name: Option<String>,
    ports: &mut HashSet<(bool, u16)>,
    probes: &[LoadBalancerProbe],
) -> Option<Endpoint> {
    let (affinity, probe) = ("loadBalancerDistribution", "loadBalancerProbe");
    let known = ["name", "protocol", "port", "localPort", "certificate", "ignoreRoleInstanceStatus", probe, affinity];
    reader.attributes(node, &known);
    use EndpointProtocol::{Http, Https, Tcp, Udp};
    let protocol = reader.choice(node, "protocol", &[("tcp", Tcp), ("udp", Udp), ("http", Http), ("https", Https)]);
    reader.required(node, "port");
    let port: u16 = reader.number(node, "port", 1..=u16::MAX, 0);
    if let Some(protocol) = protocol
        && port != 0
        && !ports.insert((protocol.is_udp(), port))
    {
        let message = format!("port {port} is taken by another input endpoint of this service");
        reader.error_in(
            node,
            "port",
            &message,
            Some("input endpoints share one public address; give each a port of its own"),
        );
    }
    let local_port = match node.attribute("localPort") {
        // Any free port: the guest is alone on its address, so the public one is as free as any.
        None | Some("*") => port,
        Some(_) => reader.number(node, "localPort", 1..=u16::MAX, port),
    };
    let probe = node.attribute("loadBalancerProbe").map(str::to_owned);
    if let Some(wanted) = &probe
        && !probes.iter().any(|probe| probe.name == *wanted)
    {
        let names: Vec<&str> = probes.iter().map(|probe| probe.name.as_str()).collect();
        let help = match names.as_slice() {
            [] => "the definition has no <LoadBalancerProbes>".to_owned(),
            names => format!("the definition has {}", names.join(", ")),
        };
        reader.error_in(node, "loadBalancerProbe", &format!("there is no probe `{wanted}`"), Some(&help));
    }
    let ignore_role_instance_status = reader.flag(node, "ignoreRoleInstanceStatus", false);
    let distribution = read_distribution(reader, node);
    let (name, protocol) = (name?, protocol?);
    Some(Endpoint::Input { name, protocol, port, local_port, probe, ignore_role_instance_status, distribution })
}

/// The names are the ones that the original's tools wrote: `none` is the 5-tuple.
fn read_distribution(reader: &mut Reader<'_>, node: Node<'_, '_>) -> Distribution {
    use Distribution::{Connection, SourceIp, SourceIpProtocol};
    if node.attribute("loadBalancerDistribution").is_none() {
        return Connection;
    }
    let names = [("none", Connection), ("sourceIP", SourceIp), ("sourceIPProtocol", SourceIpProtocol)];
    reader.choice(node, "loadBalancerDistribution", &names).unwrap_or_default()
}

fn read_internal_endpoint(reader: &mut Reader<'_>, node: Node<'_, '_>, name: Option<String>) -> Option<Endpoint> {
    reader.attributes(node, &["name", "protocol", "port"]);
    use EndpointProtocol::{Any, Http, Tcp, Udp};
    let protocol = reader.choice(node, "protocol", &[("tcp", Tcp), ("udp", Udp), ("http", Http), ("any", Any)]);
    let mut ports = node.attribute("port").filter(|port| *port != "*").map(|_| {
        let port = reader.number(node, "port", 1..=u16::MAX, 1);
        PortRange { min: port, max: port }
    });
    for child in reader.children(node, &["FixedPort", "FixedPortRange"]) {
        ports = Some(read_ports(reader, child));
    }
    Some(Endpoint::Internal { name: name?, protocol: protocol?, ports })
}

fn read_instance_input_endpoint(reader: &mut Reader<'_>, node: Node<'_, '_>, name: Option<String>) -> Option<Endpoint> {
    reader.attributes(node, &["name", "protocol", "localPort"]);
    let protocol = reader.choice(node, "protocol", &[("tcp", EndpointProtocol::Tcp), ("udp", EndpointProtocol::Udp)]);
    reader.required(node, "localPort");
    let local_port = reader.number(node, "localPort", 1..=u16::MAX, 1);
    let children = reader.children(node, &["AllocatePublicPortFrom"]);
    let ranges = children.first().map_or_else(Vec::new, |parent| reader.children(*parent, &["FixedPortRange"]));
    let Some(range) = ranges.first() else {
        let help = "add <AllocatePublicPortFrom><FixedPortRange min=\"…\" max=\"…\"/></AllocatePublicPortFrom>";
        reader.error_at(node, "an instance input endpoint needs a range of public ports", Some(help));
        return None;
    };
    let public_ports = read_ports(reader, *range);
    Some(Endpoint::InstanceInput { name: name?, protocol: protocol?, local_port, public_ports })
}

fn read_ports(reader: &mut Reader<'_>, node: Node<'_, '_>) -> PortRange {
    if node.has_tag_name_local("FixedPort") {
        reader.attributes(node, &["port"]);
        reader.required(node, "port");
        let port = reader.number(node, "port", 1..=u16::MAX, 1);
        return PortRange { min: port, max: port };
    }
    reader.attributes(node, &["min", "max"]);
    reader.required(node, "min");
    reader.required(node, "max");
    let min = reader.number(node, "min", 1..=u16::MAX, 1);
    let max = reader.number(node, "max", 1..=u16::MAX, u16::MAX);
    if min > max {
        reader.error_in(node, "max", &format!("the range ends at {max}, before it starts at {min}"), None);
    }
    PortRange { min, max }
}

fn read_local_storage(reader: &mut Reader<'_>, children: &[Node<'_, '_>]) -> Vec<LocalStorage> {
    let mut nodes: Vec<_> = children.iter().copied().filter(|node| node.has_tag_name_local("LocalStorage")).collect();
    if let Some(parent) = reader.child(children, "LocalResources") {
        nodes.extend(reader.children(parent, &["LocalStorage"]));
    }
    let mut seen = HashSet::new();
    let mut storage = Vec::new();
    for node in nodes {
        reader.attributes(node, &["name", "sizeInMB", "cleanOnRoleRecycle"]);
        let name = reader.unique(node, "name", &mut seen).and_then(|name| {
            // It becomes the label of a file system and the serial number of a disk.
            let fits = name.len() <= 16 && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
            if !fits || name.starts_with('.') {
                let message = format!("`{name}` is no name for local storage");
                reader.error_in(node, "name", &message, Some("1 to 16 letters, digits, `-`, `_` and `.`"));
            }
            fits.then(|| name.to_owned())
        });
        let size_mb = reader.number(node, "sizeInMB", 1..=limits::LOCAL_STORAGE_MB_MAX, 100);
        let clean_on_role_recycle = reader.flag(node, "cleanOnRoleRecycle", true);
        storage.extend(name.map(|name| LocalStorage { name, size_mb, clean_on_role_recycle }));
    }
    storage
}

fn read_code(reader: &mut Reader<'_>, children: &[Node<'_, '_>]) -> RoleCode {
    let mut code = RoleCode::default();
    if let Some(parent) = reader.child(children, "Startup") {
        for node in reader.children(parent, &["Task"]) {
            reader.attributes(node, &["commandLine", "executionContext", "taskType"]);
            code.startup.extend(reader.required(node, "commandLine").map(|command_line| StartupTask {
                command_line: command_line.to_owned(),
                elevated: node.attribute("executionContext") == Some("elevated"),
                task_type: node.attribute("taskType").unwrap_or("simple").to_owned(),
            }));
        }
    }
    if let Some(parent) = reader.child(children, "Runtime") {
        let runtime = reader.children(parent, &["Environment", "EntryPoint"]);
        if let Some(entry) = reader.child(&runtime, "EntryPoint") {
            for node in reader.children(entry, &["NetFxEntryPoint", "ProgramEntryPoint"]) {
                let attribute = if node.has_tag_name_local("NetFxEntryPoint") { "assemblyName" } else { "commandLine" };
                code.entry_point = reader.required(node, attribute).map(str::to_owned);
            }
        }
    }
    if let Some(parent) = reader.child(children, "Sites") {
        for node in reader.children(parent, &["Site"]) {
            code.sites.extend(reader.required(node, "name").map(str::to_owned));
        }
    }
    code
}

fn read_traffic_rules(reader: &mut Reader<'_>, parent: Node<'_, '_>, roles: &[RoleDefinition]) -> Vec<TrafficRule> {
    let find = |name: &str| roles.iter().find(|role| role.name.as_str() == name);
    let mut rules = Vec::new();
    for node in reader.children(parent, &["OnlyAllowTrafficTo"]) {
        let children = reader.children(node, &["Destinations", "AllowAllTraffic", "WhenSource"]);
        let mut rule = TrafficRule { destinations: Vec::new(), from_roles: Vec::new() };
        if let Some(destinations) = reader.child(&children, "Destinations") {
            for endpoint in reader.children(destinations, &["RoleEndpoint"]) {
                let pair = (reader.required(endpoint, "roleName"), reader.required(endpoint, "endpointName"));
                if let (Some(role), Some(name)) = pair {
                    let is_it = |one: &&Endpoint| one.name() == name && matches!(one, Endpoint::Internal { .. });
                    if find(role).and_then(|role| role.endpoints.iter().find(is_it)).is_none() {
                        let message = format!("the role `{role}` has no internal endpoint `{name}`");
                        reader.error_at(endpoint, &message, None);
                    }
                    let endpoint = name;
                    rule.destinations.push((role.to_owned(), endpoint.to_owned()));
                }
            }
        }
        if let Some(source) = reader.child(&children, "WhenSource") {
            for from in reader.children(source, &["FromRole"]) {
                let name = reader.required(from, "roleName");
                if let Some(name) = name.filter(|name| find(name).is_none()) {
                    reader.error_in(from, "roleName", &format!("there is no role `{name}`"), None);
                }
                rule.from_roles.extend(name.map(str::to_owned));
            }
        }
        // A rule that names nobody must not be taken for one that lets everybody through.
        if rule.from_roles.is_empty() && reader.child(&children, "AllowAllTraffic").is_none() {
            let help =
                "add <WhenSource matches=\"AnyRule\"><FromRole roleName=\"…\"/></WhenSource>, or <AllowAllTraffic/>";
            reader.error_at(node, "the rule does not say who may call its destinations", Some(help));
        }
        rules.push(rule);
    }
    rules
}
