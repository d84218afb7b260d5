//! What a definition and a configuration have to agree about, and the files that a configuration refers to.

use std::collections::BTreeMap;

use mayfly_model::guest::{
    ADMIN_USER_SETTING, GuestGoal, PASSWORD_HASH_SETTING, PLATFORM_SETTING, Platform, REMOTE_ACCESS,
    SCRIPT_FAILURE_SETTING, SCRIPT_RUN_SETTING, SCRIPT_SETTING, SCRIPT_TIMEOUT_SETTING, SCRIPT_TRIES_SETTING,
    SSH_KEYS_SETTING, TIME_ZONE_SETTING, day,
};
use mayfly_model::{DISK_SETTING, DiskModel};
use mayfly_model::{
    RoleConfiguration, RoleDefinition, RoleKind, ServiceConfiguration, ServiceDefinition, USER_DATA_SETTING, limits,
};
use roxmltree::{Document, Node};

use crate::diagnostic::{Diagnostics, Source};
use crate::element::{HasLocalName, Reader};
use crate::nearest::with_nearest;
use crate::setting::{SETTINGS, check_text, check_value, user_name, windows_user_name};

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
            let help = with_nearest(role.name.as_str(), names, &help);
            reader.error_in(node, "name", &format!("the definition has no role `{}`", role.name), Some(&help));
            continue;
        };
        check_settings(&mut reader, node, defined.settings.as_slice());
        check_certificates(&mut reader, node, defined);
        check_remote_access(&mut reader, node, defined, role);
        check_disks(&mut reader, node, defined, role);
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
            let help = with_nearest(name, defined.iter().map(String::as_str), &help);
            reader.error_in(*node, "name", &format!("the definition has no setting `{name}`"), Some(&help));
        }
        if name.starts_with("Mayfly.") && !SETTINGS.contains(&name) {
            let mut known = SETTINGS;
            known.sort_unstable();
            let help = with_nearest(name, known, &format!("Mayfly's settings are {}", known.join(", ")));
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

/// The configuration says which certificate each of the definition's names means, and no other.
fn check_certificates(reader: &mut Reader<'_>, role: Node<'_, '_>, defined: &RoleDefinition) {
    let nodes: Vec<_> = role.descendants().filter(|node| node.has_tag_name_local("Certificate")).collect();
    let is_defined = |name: Option<&str>| defined.certificates.iter().any(|one| Some(one.name.as_str()) == name);
    for node in nodes.iter().filter(|node| !is_defined(node.attribute("name"))) {
        let name = node.attribute("name").unwrap_or_default();
        let help = format!("add <Certificate name=\"{name}\"/> to the role's <Certificates> in the definition");
        reader.error_in(*node, "name", &format!("the definition has no certificate `{name}`"), Some(&help));
    }
    for one in &defined.certificates {
        // That of a module is needed only by who uses the module.
        let optional = one.name.starts_with(REMOTE_ACCESS);
        if !optional && !nodes.iter().any(|node| node.attribute("name") == Some(&one.name)) {
            let message =
                format!("the configuration lacks the certificate `{}` that the definition declares", one.name);
            let help = format!(
                "add <Certificate name=\"{}\" thumbprint=\"…\" thumbprintAlgorithm=\"sha1\"/> to its <Certificates>",
                one.name
            );
            reader.error_at(role, &message, Some(&help));
        }
    }
}

/// The user for remote access needs a module, a certificate and a password in an envelope.
fn check_remote_access(
    reader: &mut Reader<'_>,
    node: Node<'_, '_>,
    defined: &RoleDefinition,
    role: &RoleConfiguration,
) {
    let guest = GuestGoal::of(defined, role);
    let value = |name: &str| role.setting(&format!("{REMOTE_ACCESS}{name}")).unwrap_or_default().trim();
    if !value("Enabled").eq_ignore_ascii_case("true") {
        return;
    }
    let setting = |name: &str| {
        let name = format!("{REMOTE_ACCESS}{name}");
        node.descendants().find(|node| node.has_tag_name_local("Setting") && node.attribute("name") == Some(&name))
    };
    let mut wrong = |name: &str, message: &str, help: Option<&str>| {
        reader.error_in(setting(name).unwrap_or(node), "value", message, help);
    };
    if !defined.imports.iter().any(|import| import == "RemoteAccess") {
        let help = "add <Import moduleName=\"RemoteAccess\"/> to the role's <Imports> in the definition";
        wrong("Enabled", "remote access is switched on, but the role does not import it", Some(help));
    } else if guest.password_certificate().is_none() {
        let help = "add <Certificate name=\"Microsoft.WindowsAzure.Plugins.RemoteAccess.PasswordEncryption\" …/>";
        wrong("Enabled", "remote access needs a certificate that opens its password", Some(help));
    }
    if guest.admin.is_some() {
        let message = format!("a role has one user: that of `{ADMIN_USER_SETTING}` or that for remote access");
        wrong("AccountUsername", &message, Some("take one of the two away"));
    }
    let name = match guest.platform {
        Platform::Windows => windows_user_name(value("AccountUsername")),
        Platform::NoCloud | Platform::Azure => user_name(value("AccountUsername")),
    };
    if let Err(message) = name {
        wrong("AccountUsername", &message, None);
    }
    if value("AccountEncryptedPassword").is_empty() {
        wrong("AccountEncryptedPassword", "remote access is switched on, and its user has no password", None);
    }
    // Without an end there is no account, as in the original; one that was mistyped would be no account by mistake.
    let expiration = value("AccountExpiration");
    if !expiration.is_empty() && day(expiration).is_none() {
        let message = format!("`{expiration}` is no time such as 2027-03-31T23:59:59");
        wrong("AccountExpiration", &message, Some("leave it empty if there is to be no account"));
    }
}

/// A SATA controller has six ports: the disk, the drive, and four more. And no NTFS is smaller than 1 MiB, beside its
/// partition table.
fn check_disks(reader: &mut Reader<'_>, node: Node<'_, '_>, defined: &RoleDefinition, role: &RoleConfiguration) {
    const SATA_MOST: usize = 4;
    const NTFS_LEAST_MB: u64 = 4;
    let count = defined.local_storage.len();
    if count > SATA_MOST && role.disk() == DiskModel::Sata {
        let message =
            format!("{count} of <LocalStorage> do not fit beside a SATA disk, which leaves room for {SATA_MOST}");
        reader.error_at(node, &message, Some(&format!("use another `{DISK_SETTING}`, or fewer and larger ones")));
    }
    let windows = role.platform() == Platform::Windows;
    for storage in defined.local_storage.iter().filter(|one| windows && one.size_mb < NTFS_LEAST_MB) {
        let message = format!("the local storage `{}` is too small for NTFS, which Windows guests get", storage.name);
        reader.error_at(node, &message, Some(&format!("give it a sizeInMB of at least {NTFS_LEAST_MB}")));
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
    if let Some(node) = find(ADMIN_USER_SETTING).filter(|_| windows)
        && let Err(message) = windows_user_name(&value(ADMIN_USER_SETTING))
    {
        reader.error_in(node, "value", &message, None);
    }
    // The two name time zones differently; `UTC` is a name of both.
    let (strange, whose, example) = match windows {
        true => ('/', "Windows", "W. Europe Standard Time"),
        false => (' ', "Linux", "Europe/Berlin"),
    };
    if let Some(node) = find(TIME_ZONE_SETTING).filter(|_| value(TIME_ZONE_SETTING).contains(strange)) {
        let message = format!("`{}` is no time zone of {whose}", value(TIME_ZONE_SETTING));
        reader.error_in(node, "value", &message, Some(&format!("its names are such as `{example}`")));
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
