//! What a definition and a configuration have to agree about, and the files that a configuration refers to.

use std::collections::BTreeMap;

use mayfly_model::configuration::{
    APPLY_SETTING, AUTOSCALE_SETTING, DRAIN_SETTING, EGRESS_SETTING, PROBE_INTERVAL_SETTING, REQUIRE_SETTING,
    SPREAD_SETTING, START_TIMEOUT_SETTING, UNRESPONSIVE_SETTING,
};
use mayfly_model::{Autoscale, DISK_SETTING, DiskModel, Egress, Requirements, Spread};
use mayfly_model::{RoleKind, ServiceConfiguration, ServiceDefinition, USER_DATA_SETTING, limits};
use roxmltree::{Document, Node};

use crate::diagnostic::{Diagnostics, Source};
use crate::element::{HasLocalName, Reader};

/// The settings that Mayfly itself understands.
const SETTINGS: [&str; 11] = [
    USER_DATA_SETTING,
    START_TIMEOUT_SETTING,
    DISK_SETTING,
    SPREAD_SETTING,
    REQUIRE_SETTING,
    APPLY_SETTING,
    UNRESPONSIVE_SETTING,
    AUTOSCALE_SETTING,
    DRAIN_SETTING,
    EGRESS_SETTING,
    PROBE_INTERVAL_SETTING,
];

/// Texts of files that a configuration refers to as `@name`, by that name.
pub type PackageFiles = BTreeMap<String, String>;

/// Finds what a definition and its configuration contradict each other in. Errors point into the configuration.
///
/// # Errors
/// All contradictions, at once.
pub fn check(
    definition: &ServiceDefinition,
    configuration: &ServiceConfiguration,
    source: &Source,
) -> Result<(), Diagnostics> {
    let mut reader = Reader::new(source);
    let Ok(document) = Document::parse(&source.text) else { return Ok(()) };
    let root = document.root_element();
    if configuration.service_name != definition.name {
        let message = format!(
            "the configuration is for `{}`, the definition is `{}`",
            configuration.service_name, definition.name
        );
        reader.error_in(root, "serviceName", &message, Some("the two names have to be the same"));
    }
    for node in root.children().filter(|node| node.has_tag_name_local("Role")) {
        let Some(role) = configuration.roles.iter().find(|role| Some(role.name.as_str()) == node.attribute("name"))
        else {
            continue;
        };
        let Some(defined) = definition.role(&role.name) else {
            let names: Vec<&str> = definition.roles.iter().map(|role| role.name.as_str()).collect();
            let help = format!("the definition has {}", names.join(", "));
            reader.error_in(node, "name", &format!("the definition has no role `{}`", role.name), Some(&help));
            continue;
        };
        check_settings(&mut reader, node, defined.settings.as_slice());
        let is_vm = defined.kind == RoleKind::VirtualMachine;
        match (is_vm, &role.image) {
            (true, None) => {
                let help = "add <OsImage href=\"NAME\"/> with the name of an uploaded image";
                reader.error_at(node, &format!("the VM role `{}` lacks its base image", role.name), Some(help));
            }
            (false, Some(_)) => {
                let message = format!("`{}` is a {}, which has no <OsImage>", role.name, defined.kind.element());
                reader.error_at(node, &message, None);
            }
            _ => {}
        }
    }
    for role in &definition.roles {
        if configuration.role(&role.name).is_none() {
            let help = format!("add <Role name=\"{}\"> with <Instances count=\"1\"/>", role.name);
            reader.error_at(root, &format!("the configuration lacks the role `{}`", role.name), Some(&help));
        }
    }
    reader.diagnostics.or(())
}

fn check_settings(reader: &mut Reader<'_>, role: Node<'_, '_>, defined: &[String]) {
    let settings = role.descendants().filter(|node| node.has_tag_name_local("Setting")).collect::<Vec<_>>();
    for node in &settings {
        let (name, value) = (node.attribute("name").unwrap_or(""), node.attribute("value").unwrap_or(""));
        // The platform's own settings need no place in the definition, as plug-ins' did not.
        let platform = name.starts_with("Mayfly.") || name.starts_with("Microsoft.WindowsAzure.Plugins.");
        if !platform && !defined.iter().any(|setting| setting == name) {
            let help =
                format!("add <Setting name=\"{name}\"/> to the role's <ConfigurationSettings> in the definition");
            reader.error_in(*node, "name", &format!("the definition has no setting `{name}`"), Some(&help));
        }
        if name.starts_with("Mayfly.") && !SETTINGS.contains(&name) {
            let help = format!("Mayfly's settings are {}", SETTINGS.join(", "));
            reader.error_in(*node, "name", &format!("Mayfly has no setting `{name}`"), Some(&help));
        }
        let written = node.attribute_node("value").map_or("", |value| &reader.source.text[value.range_value()]);
        if name == USER_DATA_SETTING && written.contains('\n') {
            let help = "use `@file`, or write each end of a line as &#10;";
            let message = "XML turns the ends of lines in an attribute into spaces, so this script would be one line";
            reader.error_in(*node, "value", message, Some(help));
        }
        if let Err(message) = check_value(name, value) {
            reader.error_in(*node, "value", &message, None);
        }
    }
    for name in defined {
        if !settings.iter().any(|node| node.attribute("name") == Some(name)) {
            let message = format!("the configuration lacks the setting `{name}` that the definition declares");
            reader.error_at(role, &message, Some(&format!("add <Setting name=\"{name}\" value=\"…\"/>")));
        }
    }
}

/// What is wrong with the value of one of Mayfly's settings.
fn check_value(name: &str, value: &str) -> Result<(), String> {
    match name {
        START_TIMEOUT_SETTING | UNRESPONSIVE_SETTING => match value.parse::<u64>() {
            Ok(1..=86_400) => Ok(()),
            _ => Err(format!("`{value}` is not a whole number of seconds from 1 to 86400")),
        },
        DRAIN_SETTING => match value.parse::<u32>() {
            Ok(0..=600) => Ok(()),
            _ => Err(format!("`{value}` is not a whole number of seconds from 0 to 600")),
        },
        DISK_SETTING if DiskModel::named(value).is_none() => {
            let known = DiskModel::ALL.map(|(name, _)| name).join(", ");
            Err(format!("`{value}` is none of {known}"))
        }
        PROBE_INTERVAL_SETTING => match value.parse::<u32>() {
            Ok(100..=60_000) => Ok(()),
            _ => Err(format!("`{value}` is not a whole number of milliseconds from 100 to 60000")),
        },
        EGRESS_SETTING => value.parse::<Egress>().map(drop),
        SPREAD_SETTING => value.parse::<Spread>().map(drop),
        REQUIRE_SETTING => value.parse::<Requirements>().map(drop),
        AUTOSCALE_SETTING => value.parse::<Autoscale>().map(drop),
        APPLY_SETTING if !["live", "reboot"].contains(&value) => Err(format!("`{value}` is neither live nor reboot")),
        _ => Ok(()),
    }
}

/// Puts the texts of files in place of `@name` in the user data of all roles.
///
/// # Errors
/// Those that name a file which is missing in `files`, and user data that is too long.
pub fn resolve_user_data(
    configuration: &mut ServiceConfiguration,
    files: &PackageFiles,
    source: &Source,
) -> Result<(), Diagnostics> {
    let mut reader = Reader::new(source);
    let Ok(document) = Document::parse(&source.text) else { return Ok(()) };
    for role in &mut configuration.roles {
        let node = document.descendants().find(|node| {
            node.has_tag_name_local("Setting")
                && node.attribute("name") == Some(USER_DATA_SETTING)
                && node
                    .ancestors()
                    .any(|up| up.has_tag_name_local("Role") && up.attribute("name") == Some(role.name.as_str()))
        });
        let Some((node, (_, value))) = node.zip(role.settings.iter_mut().find(|(name, _)| name == USER_DATA_SETTING))
        else {
            continue;
        };
        if let Some(name) = value.strip_prefix('@') {
            match files.get(name) {
                Some(text) => *value = text.clone(),
                None => {
                    let message = format!("the file `{name}` was not given");
                    reader.error_in(node, "value", &message, Some("the path counts from the configuration's folder"));
                }
            }
        }
        if value.len() > limits::USER_DATA_BYTES_MAX {
            let message = format!("{} bytes of user data are more than {}", value.len(), limits::USER_DATA_BYTES_MAX);
            reader.error_in(node, "value", &message, None);
        }
    }
    reader.diagnostics.or(())
}
