//! What a definition and a configuration have to agree about, and the files that a configuration refers to.

use std::collections::BTreeMap;

use mayfly_model::configuration::{
    APPLY_SETTING, AUTOSCALE_SETTING, DRAIN_SETTING, EGRESS_SETTING, PROBE_INTERVAL_SETTING, REQUIRE_SETTING,
    SPREAD_SETTING, START_TIMEOUT_SETTING, UNRESPONSIVE_SETTING,
};
use mayfly_model::guest::{
    ADMIN_USER_SETTING, LOCALE_SETTING, PASSWORD_HASH_SETTING, PLATFORM_SETTING, Platform, SCRIPT_FAILURE_SETTING,
    SCRIPT_RUN_SETTING, SCRIPT_SETTING, SCRIPT_TIMEOUT_SETTING, SCRIPT_TRIES_SETTING, SHUTDOWN_SETTING,
    SSH_KEYS_SETTING, TEMPLATE_SETTING, TIME_ZONE_SETTING,
};
use mayfly_model::{Autoscale, DISK_SETTING, DiskModel, Egress, Requirements, Spread};
use mayfly_model::{RoleKind, ServiceConfiguration, ServiceDefinition, USER_DATA_SETTING, limits};
use roxmltree::{Document, Node};

use crate::diagnostic::{Diagnostics, Source};
use crate::element::{HasLocalName, Reader};

/// The settings that Mayfly itself understands.
const SETTINGS: [&str; 24] = [
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
    PLATFORM_SETTING,
    ADMIN_USER_SETTING,
    PASSWORD_HASH_SETTING,
    SSH_KEYS_SETTING,
    TIME_ZONE_SETTING,
    LOCALE_SETTING,
    SCRIPT_SETTING,
    SCRIPT_TIMEOUT_SETTING,
    SCRIPT_TRIES_SETTING,
    SCRIPT_RUN_SETTING,
    SCRIPT_FAILURE_SETTING,
    SHUTDOWN_SETTING,
    TEMPLATE_SETTING,
];

/// The settings whose value may be a file, as `@name`.
pub const FILE_SETTINGS: [&str; 3] = [USER_DATA_SETTING, SCRIPT_SETTING, SSH_KEYS_SETTING];

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
        if FILE_SETTINGS.contains(&name) && written.contains('\n') {
            let help = "use `@file`, or write each end of a line as &#10;";
            let message = "XML turns the ends of lines in an attribute into spaces, so this would be one line";
            reader.error_in(*node, "value", message, Some(help));
        }
        if let Err(message) = check_value(name, value) {
            reader.error_in(*node, "value", &message, None);
        }
    }
    check_dependent(reader, &settings);
    for name in defined {
        if !settings.iter().any(|node| node.attribute("name") == Some(name)) {
            let message = format!("the configuration lacks the setting `{name}` that the definition declares");
            reader.error_at(role, &message, Some(&format!("add <Setting name=\"{name}\" value=\"…\"/>")));
        }
    }
}

/// Settings that have no meaning without another one.
fn check_dependent(reader: &mut Reader<'_>, settings: &[Node<'_, '_>]) {
    const NEEDS: [(&str, &str); 6] = [
        (SSH_KEYS_SETTING, ADMIN_USER_SETTING),
        (PASSWORD_HASH_SETTING, ADMIN_USER_SETTING),
        (SCRIPT_TIMEOUT_SETTING, SCRIPT_SETTING),
        (SCRIPT_TRIES_SETTING, SCRIPT_SETTING),
        (SCRIPT_RUN_SETTING, SCRIPT_SETTING),
        (SCRIPT_FAILURE_SETTING, SCRIPT_SETTING),
    ];
    let find = |name: &str| settings.iter().find(|node| node.attribute("name") == Some(name)).copied();
    for (name, needed) in NEEDS {
        if let Some(node) = find(name).filter(|_| find(needed).is_none()) {
            let message = format!("`{name}` means nothing without `{needed}`");
            reader.error_in(node, "name", &message, Some(&format!("add <Setting name=\"{needed}\" value=\"…\"/>")));
        }
    }
    let value = |name: &str| find(name).and_then(|node| node.attribute("value")).unwrap_or_default().to_owned();
    let windows = value(PLATFORM_SETTING) == "windows";
    if windows
        && !value(USER_DATA_SETTING).is_empty()
        && let Some(node) = find(SCRIPT_SETTING)
    {
        let message = format!("Windows guests take one of `{SCRIPT_SETTING}` and `{USER_DATA_SETTING}`");
        reader.error_in(node, "name", &message, Some("put both into one"));
    }
}

/// What is wrong with the value of one of Mayfly's settings.
fn check_value(name: &str, value: &str) -> Result<(), String> {
    match name {
        START_TIMEOUT_SETTING | UNRESPONSIVE_SETTING | SCRIPT_TIMEOUT_SETTING => {
            number(value, 1, 86_400, " of seconds")
        }
        DRAIN_SETTING | SHUTDOWN_SETTING => number(value, 0, 600, " of seconds"),
        SCRIPT_TRIES_SETTING => number(value, 1, 100, ""),
        DISK_SETTING if DiskModel::named(value).is_none() => {
            let known = DiskModel::ALL.map(|(name, _)| name).join(", ");
            Err(format!("`{value}` is none of {known}"))
        }
        PROBE_INTERVAL_SETTING => number(value, 100, 60_000, " of milliseconds"),
        PLATFORM_SETTING if Platform::named(value).is_none() => {
            Err(format!("`{value}` is none of {}", Platform::ALL.map(|(name, _)| name).join(", ")))
        }
        ADMIN_USER_SETTING => user_name(value),
        PASSWORD_HASH_SETTING => password_hash(value),
        TIME_ZONE_SETTING => word(value, "/_+-", "a time zone, such as Europe/Berlin"),
        LOCALE_SETTING => word(value, "._@-", "a locale, such as en_US.UTF-8"),
        SCRIPT_RUN_SETTING => one_of(value, ["once", "boot"]),
        SCRIPT_FAILURE_SETTING => one_of(value, ["fail", "ignore"]),
        TEMPLATE_SETTING => one_of(value, ["on", "off"]),
        EGRESS_SETTING => value.parse::<Egress>().map(drop),
        SPREAD_SETTING => value.parse::<Spread>().map(drop),
        REQUIRE_SETTING => value.parse::<Requirements>().map(drop),
        AUTOSCALE_SETTING => value.parse::<Autoscale>().map(drop),
        APPLY_SETTING => one_of(value, ["live", "reboot"]),
        _ => Ok(()),
    }
}

fn number(value: &str, least: u32, most: u32, unit: &str) -> Result<(), String> {
    match value.parse::<u32>() {
        Ok(number) if (least..=most).contains(&number) => Ok(()),
        _ => Err(format!("`{value}` is not a whole number{unit} from {least} to {most}")),
    }
}

fn one_of(value: &str, known: [&str; 2]) -> Result<(), String> {
    match known.contains(&value) {
        true => Ok(()),
        false => Err(format!("`{value}` is neither {} nor {}", known[0], known[1])),
    }
}

/// A name that useradd(8) takes, and no user that images have.
fn user_name(value: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    let starts_well = value.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
    match starts_well && value.len() <= 32 && value.chars().all(allowed) && value != "root" {
        true => Ok(()),
        false => Err(format!(
            "`{value}` is no name for a user: 1 to 32 of a-z, 0-9, `_` and `-`, a letter first, and not root"
        )),
    }
}

/// A hash as crypt(5) describes them. What is not one may be a password in clear text, so it is not repeated.
fn password_hash(value: &str) -> Result<(), String> {
    let kinds = ["$6$", "$5$", "$y$", "$2b$", "$7$"];
    let allowed = |c: char| c.is_ascii_alphanumeric() || "./$=,-".contains(c);
    match kinds.iter().any(|kind| value.starts_with(kind)) && value.len() >= 20 && value.chars().all(allowed) {
        true => Ok(()),
        false => {
            Err("that is no hash of a password; `openssl passwd -6` makes one (clear text is never stored)".to_owned())
        }
    }
}

fn word(value: &str, others: &str, what: &str) -> Result<(), String> {
    match value.len() <= 64 && value.chars().all(|c| c.is_ascii_alphanumeric() || others.contains(c)) {
        true => Ok(()),
        false => Err(format!("`{value}` is not {what}")),
    }
}

/// What is wrong with a text that may have come from a file.
fn check_text(name: &str, text: &str) -> Result<(), String> {
    match name {
        SCRIPT_SETTING
            if !text.is_empty() && !["#!", "#ps1", "rem cmd"].iter().any(|start| text.starts_with(start)) =>
        {
            Err("a post-boot script starts with `#!` and what interprets it, such as `#!/bin/sh`".to_owned())
        }
        SCRIPT_SETTING if text.starts_with("#!") && text.lines().next().is_some_and(|line| text[line.len()..].starts_with("\r")) => {
            Err("the script's lines end as in Windows, so no system finds its interpreter; save it with plain line ends".to_owned())
        }
        SSH_KEYS_SETTING => {
            let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
            let is_key = |line: &str| {
                let kinds = ["ssh-", "ecdsa-", "sk-"];
                kinds.iter().any(|kind| line.starts_with(kind)) && line.split_whitespace().count() >= 2
            };
            match lines.find(|line| !is_key(line)) {
                None => Ok(()),
                Some(line) => Err(format!(
                    "`{}` is not an SSH public key such as `ssh-ed25519 AAAA…`",
                    line.chars().take(40).collect::<String>()
                )),
            }
        }
        _ => Ok(()),
    }
}

/// Puts the texts of files in place of `@name` in the settings that may name one, of all roles.
///
/// # Errors
/// Those that name a file which is missing in `files`, and texts that are too long or not what they have to be.
pub fn resolve_files(
    configuration: &mut ServiceConfiguration,
    files: &PackageFiles,
    source: &Source,
) -> Result<(), Diagnostics> {
    let mut reader = Reader::new(source);
    let Ok(document) = Document::parse(&source.text) else { return Ok(()) };
    for role in &mut configuration.roles {
        for (name, value) in role.settings.iter_mut().filter(|(name, _)| FILE_SETTINGS.contains(&name.as_str())) {
            let node = document.descendants().find(|node| {
                let of_role = |up: Node<'_, '_>| {
                    up.has_tag_name_local("Role") && up.attribute("name") == Some(role.name.as_str())
                };
                node.has_tag_name_local("Setting")
                    && node.attribute("name") == Some(name.as_str())
                    && node.ancestors().any(of_role)
            });
            let Some(node) = node else { continue };
            if let Some(file) = value.strip_prefix('@') {
                match files.get(file) {
                    Some(text) => *value = text.clone(),
                    None => {
                        let message = format!("the file `{file}` was not given");
                        let help = "the path counts from the configuration's folder";
                        reader.error_in(node, "value", &message, Some(help));
                        continue;
                    }
                }
            }
            if value.len() > limits::USER_DATA_BYTES_MAX {
                let most = limits::USER_DATA_BYTES_MAX;
                let message = format!("{} bytes in `{name}` are more than {most}", value.len());
                reader.error_in(node, "value", &message, None);
            }
            if let Err(message) = check_text(name, value) {
                reader.error_in(node, "value", &message, None);
            }
        }
    }
    reader.diagnostics.or(())
}
