//! Reading a service configuration.

use std::collections::{BTreeMap, HashSet};

use mayfly_model::{
    AccessRule, EndpointAcl, ImageName, ReservedName, RoleConfiguration, RoleName, ServiceConfiguration, Subnet,
    Thumbprint, ThumbprintError, limits,
};
use roxmltree::Node;

use crate::diagnostic::{Diagnostics, Source};
use crate::element::{HasLocalName, Reader};

pub(crate) const NAMESPACE: &str = "http://schemas.microsoft.com/ServiceHosting/2008/10/ServiceConfiguration";

/// Reads a service configuration.
///
/// # Errors
/// Everything that is wrong with it, at once.
pub fn parse_configuration(source: &Source) -> Result<ServiceConfiguration, Diagnostics> {
    let mut reader = Reader::new(source);
    let Some(document) = reader.document("ServiceConfiguration", NAMESPACE) else {
        return Err(reader.diagnostics);
    };
    let root = document.root_element();
    reader.attributes(root, &["serviceName", "osFamily", "osVersion", "schemaVersion"]);
    let service_name = reader.required(root, "serviceName").unwrap_or_default().to_owned();
    let mut seen = HashSet::new();
    let mut roles = Vec::new();
    let (mut endpoint_acls, mut reserved_address) = (Vec::new(), None);
    for node in reader.children(root, &["Role", "NetworkConfiguration"]) {
        if node.tag_name().name() == "Role" {
            let mut role = read_role(&mut reader, node, &mut seen);
            role.iter_mut().for_each(RoleConfiguration::say_hardware);
            roles.extend(role);
        } else {
            endpoint_acls.extend(read_acls(&mut reader, node));
            reserved_address = read_reserved(&mut reader, node).or(reserved_address);
        }
    }
    reader.diagnostics.or(ServiceConfiguration { service_name, roles, endpoint_acls, reserved_address })
}

/// The reserved public address. The schema has room for several, the original took one.
fn read_reserved(reader: &mut Reader<'_>, network: Node<'_, '_>) -> Option<ReservedName> {
    let mut reserved = None;
    for node in network.descendants().filter(|node| node.has_tag_name_local("ReservedIP")) {
        reader.attributes(node, &["name"]);
        if reserved.is_some() {
            reader.error_at(node, "a deployment has one public address, so it can have one reserved one", None);
        }
        let name = reader.required(node, "name").map(ReservedName::new)?;
        reserved = name.map_err(|error| reader.error_in(node, "name", &error.to_string(), None)).ok();
    }
    reserved
}

/// The access controls of endpoints: who refers to which is settled here.
fn read_acls(reader: &mut Reader<'_>, network: Node<'_, '_>) -> Vec<EndpointAcl> {
    let named = |name: &'static str| network.descendants().filter(move |node| node.has_tag_name_local(name));
    let mut controls = BTreeMap::new();
    let mut seen = HashSet::new();
    for control in named("AccessControl") {
        reader.attributes(control, &["name"]);
        let rules = read_rules(reader, control);
        if let Some(name) = reader.unique(control, "name", &mut seen) {
            controls.insert(name.to_owned(), rules);
        }
    }
    let mut acls = Vec::new();
    for acl in named("EndpointAcl") {
        reader.attributes(acl, &["role", "endpoint", "accessControl"]);
        let pair = reader.required(acl, "role").zip(reader.required(acl, "endpoint"));
        let Some(((role, endpoint), control)) = pair.zip(reader.required(acl, "accessControl")) else { continue };
        match controls.get(control) {
            Some(rules) => {
                acls.push(EndpointAcl { role: role.to_owned(), endpoint: endpoint.to_owned(), rules: rules.clone() });
            }
            None => {
                let names: Vec<&str> = controls.keys().map(String::as_str).collect();
                let help = format!("the configuration has {}", names.join(", "));
                reader.error_in(acl, "accessControl", &format!("there is no access control `{control}`"), Some(&help));
            }
        }
    }
    acls
}

fn read_rules(reader: &mut Reader<'_>, control: Node<'_, '_>) -> Vec<AccessRule> {
    let mut rules = Vec::new();
    for node in reader.children(control, &["Rule"]) {
        reader.attributes(node, &["order", "action", "remoteSubnet", "description"]);
        reader.required(node, "order");
        let order: u32 = reader.number(node, "order", 0..=u32::MAX, 0);
        let permit = reader.choice(node, "action", &[("permit", true), ("deny", false)]);
        let Some(subnet) = reader.required(node, "remoteSubnet") else { continue };
        match subnet.parse::<Subnet>() {
            Ok(Subnet { address: network, prefix }) => {
                rules.extend(permit.map(|permit| (order, AccessRule { permit, network, prefix })));
            }
            Err(message) => {
                reader.error_in(
                    node,
                    "remoteSubnet",
                    &message,
                    Some("write ADDRESS/BITS, for example 10.1.0.0/16 or 2001:db8::/32"),
                );
            }
        }
    }
    // The lower order comes first.
    rules.sort_by_key(|(order, _)| *order);
    rules.into_iter().map(|(_, rule)| rule).collect()
}

fn read_role(reader: &mut Reader<'_>, node: Node<'_, '_>, seen: &mut HashSet<String>) -> Option<RoleConfiguration> {
    reader.attributes(node, &["name", "vmName"]);
    let name = reader.unique(node, "name", seen).and_then(|name| {
        RoleName::new(name).map_err(|error| reader.error_in(node, "name", &error.to_string(), None)).ok()
    });
    let children = reader.children(node, &["OsImage", "Instances", "ConfigurationSettings", "Certificates"]);
    let image = reader.child(&children, "OsImage").and_then(|os_image| {
        reader.attributes(os_image, &["href"]);
        let href = reader.required(os_image, "href")?;
        let image = ImageName::new(href.strip_suffix(".vhd").unwrap_or(href));
        image.map_err(|error| reader.error_in(os_image, "href", &error.to_string(), None)).ok()
    });
    let instances = match reader.child(&children, "Instances") {
        Some(instances) => {
            reader.attributes(instances, &["count"]);
            reader.required(instances, "count");
            reader.number(instances, "count", 0..=limits::INSTANCES_MAX, 0)
        }
        None => {
            reader.error_at(node, "<Role> lacks <Instances>", Some("add <Instances count=\"1\"/>"));
            0
        }
    };
    let settings = read_settings(reader, &children);
    let certificates = read_certificates(reader, &children);
    Some(RoleConfiguration { name: name?, instances, image, settings, certificates })
}

fn read_settings(reader: &mut Reader<'_>, children: &[Node<'_, '_>]) -> Vec<(String, String)> {
    let Some(parent) = reader.child(children, "ConfigurationSettings") else { return Vec::new() };
    let (mut seen, mut settings) = (HashSet::new(), Vec::new());
    for node in reader.children(parent, &["Setting"]) {
        let name = reader.unique(node, "name", &mut seen);
        if node.attribute("value").is_none() {
            reader.required(node, "value");
        }
        settings.extend(name.zip(node.attribute("value")).map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
    settings
}

fn read_certificates(reader: &mut Reader<'_>, children: &[Node<'_, '_>]) -> Vec<(String, Thumbprint)> {
    let Some(parent) = reader.child(children, "Certificates") else { return Vec::new() };
    let (mut seen, mut certificates) = (HashSet::new(), Vec::new());
    for node in reader.children(parent, &["Certificate"]) {
        reader.attributes(node, &["name", "thumbprint", "thumbprintAlgorithm"]);
        if node.attribute("thumbprintAlgorithm").is_some() {
            reader.choice(node, "thumbprintAlgorithm", &[("sha1", ())]);
        }
        let name = reader.unique(node, "name", &mut seen).map(str::to_owned);
        let thumbprint = reader.required(node, "thumbprint").and_then(|text| {
            let help = "`mayfly certificate list SERVICE` shows those of the service's certificates";
            let failed = |error: ThumbprintError| reader.error_in(node, "thumbprint", &error.to_string(), Some(help));
            Thumbprint::new(text).map_err(failed).ok()
        });
        certificates.extend(name.zip(thumbprint));
    }
    certificates
}
