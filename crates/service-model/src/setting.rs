//! Mayfly's own settings, and what is wrong with the value of one.

use mayfly_model::USER_DATA_SETTING;
use mayfly_model::configuration::{
    APPLY_SETTING, AUTOSCALE_SETTING, CARD_SETTING, DRAIN_SETTING, EGRESS_SETTING, IPV6_SETTING, NetworkCard,
    PROBE_INTERVAL_SETTING, REQUIRE_SETTING, SPREAD_SETTING, START_TIMEOUT_SETTING, UNRESPONSIVE_SETTING,
};
use mayfly_model::guest::{
    ADMIN_USER_SETTING, ENCRYPTED_PASSWORD_SETTING, LOCALE_SETTING, PASSWORD_HASH_SETTING, PLATFORM_SETTING, Platform,
    SCRIPT_FAILURE_SETTING, SCRIPT_RUN_SETTING, SCRIPT_SETTING, SCRIPT_TIMEOUT_SETTING, SCRIPT_TRIES_SETTING,
    SHUTDOWN_SETTING, SSH_KEYS_SETTING, TEMPLATE_SETTING, TIME_ZONE_SETTING,
};
use mayfly_model::{Autoscale, DISK_SETTING, DiskModel, Egress, Requirements, Spread};

/// The settings that Mayfly itself understands.
pub(crate) const SETTINGS: [&str; 26] = [
    USER_DATA_SETTING,
    START_TIMEOUT_SETTING,
    DISK_SETTING,
    CARD_SETTING,
    SPREAD_SETTING,
    REQUIRE_SETTING,
    APPLY_SETTING,
    UNRESPONSIVE_SETTING,
    AUTOSCALE_SETTING,
    DRAIN_SETTING,
    EGRESS_SETTING,
    IPV6_SETTING,
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

/// What is wrong with the value of one of Mayfly's settings.
pub(crate) fn check_value(name: &str, value: &str) -> Result<(), String> {
    match name {
        START_TIMEOUT_SETTING | UNRESPONSIVE_SETTING | SCRIPT_TIMEOUT_SETTING => {
            number(value, 1, 86_400, " of seconds")
        }
        DRAIN_SETTING | SHUTDOWN_SETTING => number(value, 0, 600, " of seconds"),
        SCRIPT_TRIES_SETTING => number(value, 1, 100, ""),
        CARD_SETTING => one_of(value, NetworkCard::ALL.map(|(name, _)| name)),
        DISK_SETTING if DiskModel::named(value).is_none() => {
            let known = DiskModel::ALL.map(|(name, _)| name).join(", ");
            Err(format!("`{value}` is none of {known}"))
        }
        PROBE_INTERVAL_SETTING => number(value, 100, 60_000, " of milliseconds"),
        PLATFORM_SETTING if Platform::named(value).is_none() => {
            Err(format!("`{value}` is none of {}", Platform::ALL.map(|(name, _)| name).join(", ")))
        }
        ENCRYPTED_PASSWORD_SETTING => envelope(value),
        ADMIN_USER_SETTING => user_name(value),
        PASSWORD_HASH_SETTING => password_hash(value),
        TIME_ZONE_SETTING => {
            word(value, "/_+-. ()", "a time zone, such as Europe/Berlin, or W. Europe Standard Time for Windows")
        }
        LOCALE_SETTING => word(value, "._@-", "a locale, such as en_US.UTF-8"),
        SCRIPT_RUN_SETTING => one_of(value, ["once", "boot"]),
        SCRIPT_FAILURE_SETTING => one_of(value, ["fail", "ignore"]),
        TEMPLATE_SETTING | IPV6_SETTING => one_of(value, ["on", "off"]),
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

/// A password in an envelope: base64 of DER, which begins so. Clear text is not repeated.
fn envelope(value: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "+/=".contains(c) || c.is_whitespace();
    match value.is_empty() || (value.starts_with("MI") && value.len() >= 64 && value.chars().all(allowed)) {
        true => Ok(()),
        false => {
            Err("that is no password in an envelope (PKCS #7, base64): `mayfly certificate encrypt` makes one, and \
                      clear text is never stored"
                .to_owned())
        }
    }
}

/// A name that Windows takes for a user's.
pub(crate) fn windows_user_name(value: &str) -> Result<(), String> {
    let forbidden = |c: char| c.is_control() || "\"/\\[]:;|=,+*?<>@".contains(c);
    let known = ["administrator", "guest", "system"].contains(&value.to_ascii_lowercase().as_str());
    match (1..=20).contains(&value.chars().count()) && !value.contains(forbidden) && !known {
        true => Ok(()),
        false => Err(format!("`{value}` is no name for a user of Windows: 1 to 20 letters, none that it has already")),
    }
}

/// A name that useradd(8) takes, and no user that images have.
pub(crate) fn user_name(value: &str) -> Result<(), String> {
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
pub(crate) fn check_text(name: &str, text: &str) -> Result<(), String> {
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
