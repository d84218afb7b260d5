//! Reading a service configuration.

use std::collections::HashSet;

use mayfly_model::{ImageName, RoleConfiguration, RoleName, ServiceConfiguration, limits};
use roxmltree::Node;

use crate::diagnostic::{Diagnostics, Source};
use crate::element::Reader;

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
    let mut endpoint_acls = Vec::new();
    for node in reader.children(root, &["Role", "NetworkConfiguration"]) {
        if node.tag_name().name() == "Role" {
            roles.extend(read_role(&mut reader, node, &mut seen));
        } else {
            for acl in node.descendants().filter(|node| node.tag_name().name() == "EndpointAcl") {
                let pair = reader.required(acl, "role").zip(reader.required(acl, "endpoint"));
                endpoint_acls.extend(pair.map(|(role, endpoint)| (role.to_owned(), endpoint.to_owned())));
            }
        }
    }
    reader.diagnostics.or(ServiceConfiguration { service_name, roles, endpoint_acls })
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
    let mut pairs = |container: &str, element: &str, value: &str| {
        let mut seen = HashSet::new();
        let Some(parent) = reader.child(&children, container) else { return Vec::new() };
        let mut found = Vec::new();
        for node in reader.children(parent, &[element]) {
            let name = reader.unique(node, "name", &mut seen);
            if node.attribute(value).is_none() {
                reader.required(node, value);
            }
            found.extend(name.zip(node.attribute(value)).map(|(name, value)| (name.to_owned(), value.to_owned())));
        }
        found
    };
    let settings = pairs("ConfigurationSettings", "Setting", "value");
    let certificates = pairs("Certificates", "Certificate", "thumbprint");
    Some(RoleConfiguration { name: name?, instances, image, settings, certificates })
}
