//! How a role's guests are set up: what they are told at their first boot, what they run then, and how they are ended.

use serde::{Deserialize, Serialize};

use crate::certificate::GuestCertificate;
use crate::configuration::{NetworkCard, RoleConfiguration};
use crate::definition::{LocalStorage, RoleDefinition};
use crate::limits;

/// The setting that says what a guest finds itself on: one of [`Platform::ALL`].
pub const PLATFORM_SETTING: &str = "Mayfly.Platform";
/// The setting that names the user whom a guest makes for its people.
pub const ADMIN_USER_SETTING: &str = "Mayfly.AdminUser";
/// The setting with that user's password, as a hash of crypt(3); clear text is refused.
pub const PASSWORD_HASH_SETTING: &str = "Mayfly.AdminPasswordHash";
/// The setting with that user's SSH keys, one a line, as text or as `@file`.
pub const SSH_KEYS_SETTING: &str = "Mayfly.SshKeys";
/// The setting with a guest's time zone, for example `Europe/Berlin`.
pub const TIME_ZONE_SETTING: &str = "Mayfly.TimeZone";
/// The setting with a guest's locale, for example `en_US.UTF-8`.
pub const LOCALE_SETTING: &str = "Mayfly.Locale";
/// The setting with a role's post-boot script, as text or as `@file`.
pub const SCRIPT_SETTING: &str = "Mayfly.Script";
/// The setting that says how many seconds each run of that script may take.
pub const SCRIPT_TIMEOUT_SETTING: &str = "Mayfly.ScriptTimeoutSeconds";
/// The setting that says how often it is tried before it has failed.
pub const SCRIPT_TRIES_SETTING: &str = "Mayfly.ScriptTries";
/// The setting that says when it runs: `once` in each VM, or at each `boot`.
pub const SCRIPT_RUN_SETTING: &str = "Mayfly.ScriptRun";
/// The setting that says what its failure means: the instance is not Ready (`fail`), or nothing (`ignore`).
pub const SCRIPT_FAILURE_SETTING: &str = "Mayfly.ScriptFailure";
/// The setting that says how many seconds a guest has for ending in good order.
pub const SHUTDOWN_SETTING: &str = "Mayfly.ShutdownSeconds";
/// The setting that says whether further instances start from a template: `on` or `off`.
pub const TEMPLATE_SETTING: &str = "Mayfly.Template";

/// What the names of the settings and the certificate of the plug-in for remote access begin with.
pub const REMOTE_ACCESS: &str = "Microsoft.WindowsAzure.Plugins.RemoteAccess.";
/// The certificate to which the password for remote access is encrypted, without [`REMOTE_ACCESS`].
pub const PASSWORD_ENCRYPTION: &str = "PasswordEncryption";

/// The setting with the password for remote access, in an envelope.
pub const ENCRYPTED_PASSWORD_SETTING: &str = "Microsoft.WindowsAzure.Plugins.RemoteAccess.AccountEncryptedPassword";

/// Settings that are for the fabric, or that reach guests in another form.
pub const HIDDEN_SETTINGS: [&str; 5] =
    [crate::USER_DATA_SETTING, PASSWORD_HASH_SETTING, SSH_KEYS_SETTING, SCRIPT_SETTING, ENCRYPTED_PASSWORD_SETTING];

/// What a guest finds itself on: by this an image's agents know whom to ask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Platform {
    /// A machine with a NoCloud seed, for cloud-init.
    #[default]
    NoCloud,
    /// The original platform, as its Linux images' agents know it: firmware names, provisioning disk, wire server.
    Azure,
    /// The original platform, as its Windows images know it.
    Windows,
}

impl Platform {
    /// All platforms, by the names that settings use.
    pub const ALL: [(&str, Platform); 3] =
        [("nocloud", Platform::NoCloud), ("azure", Platform::Azure), ("windows", Platform::Windows)];

    /// The platform of that name.
    pub fn named(name: &str) -> Option<Platform> {
        Platform::ALL.into_iter().find(|(known, _)| *known == name).map(|(_, platform)| platform)
    }
}

/// The user whom a guest makes for its people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admin {
    /// Its name.
    pub name: String,
    /// Its password as a hash of crypt(3); without one, only keys let in.
    pub password_hash: Option<String>,
    /// Its SSH keys.
    pub ssh_keys: Vec<String>,
    /// The first day on which it is of no use any more, `2027-04-01`.
    #[serde(default)]
    pub expires: Option<String>,
}

/// The user whom a guest makes for remote access, as the original's plug-in has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteAccess {
    /// Its name.
    pub user: String,
    /// Its password in an envelope (PKCS #7, base64) that only the certificate `PasswordEncryption` of the role opens.
    pub password: String,
    /// Its last day, `2027-03-31`.
    pub expires: String,
}

impl RemoteAccess {
    /// What a configuration says, if it says that there is such a user. One of which it does not say when it ends is none, as
    /// in the original.
    fn of(configuration: &RoleConfiguration) -> Option<RemoteAccess> {
        let setting = |name: &str| configuration.setting(&format!("{REMOTE_ACCESS}{name}")).map(str::trim);
        if !setting("Enabled")?.eq_ignore_ascii_case("true") {
            return None;
        }
        let expires = setting("AccountExpiration").and_then(day)?.to_owned();
        let (user, password) = (setting("AccountUsername")?, setting("AccountEncryptedPassword")?);
        let password = password.split_whitespace().collect();
        Some(RemoteAccess { user: user.to_owned(), password, expires })
    }
}

/// The day at the beginning of a time such as `2027-03-31T23:59:59.0000000+02:00`.
pub fn day(text: &str) -> Option<&str> {
    let day = text.get(..10)?;
    let shape = |(at, c): (usize, char)| if at == 4 || at == 7 { c == '-' } else { c.is_ascii_digit() };
    let ends = text[10..].is_empty() || text[10..].starts_with('T');
    (day.char_indices().all(shape) && ends && is_in_calendar(day)).then_some(day)
}

fn is_in_calendar(day: &str) -> bool {
    let number = |from: usize, to: usize| day[from..to].parse::<u32>().unwrap_or(0);
    let (year, month, of_month) = (number(0, 4), number(5, 7), number(8, 10));
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let days = match month {
        2 => 28 + u32::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => 0,
    };
    (1..=days).contains(&of_month)
}

/// A role's post-boot script, and what is made of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Script {
    /// The script; its first line says what interprets it.
    pub text: String,
    /// Seconds that each run may take.
    pub timeout_seconds: u32,
    /// How often it is tried before it has failed.
    pub tries: u32,
    /// Whether it runs at each boot, and not once in each VM.
    pub each_boot: bool,
    /// Whether an instance is Ready only when it has succeeded.
    pub must_succeed: bool,
}

/// How a guest is set up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GuestGoal {
    /// What it finds itself on.
    pub platform: Platform,
    /// The user whom it makes.
    pub admin: Option<Admin>,
    /// Its time zone.
    pub time_zone: Option<String>,
    /// Its locale.
    pub locale: Option<String>,
    /// What it runs after its boot.
    pub script: Option<Script>,
    /// Seconds that it has for ending in good order.
    pub shutdown_seconds: u32,
    /// Its disks for what outlives a reimage and not a host.
    pub local_storage: Vec<LocalStorage>,
    /// Whether it may start from a template.
    pub template: bool,
    /// The certificates that it gets.
    pub certificates: Vec<GuestCertificate>,
    /// The user for remote access.
    pub remote_access: Option<RemoteAccess>,
    /// What it sees its network card as.
    pub card: NetworkCard,
}

impl GuestGoal {
    /// What a role's definition and configuration say. What cannot be read was refused before it got here.
    pub fn of(role: &RoleDefinition, configuration: &RoleConfiguration) -> GuestGoal {
        let text = |name: &str| configuration.setting(name).filter(|value| !value.is_empty()).map(str::to_owned);
        let number = |name: &str, default: u32| text(name).and_then(|value| value.parse().ok()).unwrap_or(default);
        let keys = text(SSH_KEYS_SETTING).unwrap_or_default();
        let keys = keys.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let ssh_keys: Vec<String> = keys.map(str::to_owned).collect();
        let platform = configuration.platform();
        GuestGoal {
            platform,
            admin: text(ADMIN_USER_SETTING).map(|name| Admin {
                name,
                password_hash: text(PASSWORD_HASH_SETTING),
                ssh_keys,
                expires: None,
            }),
            time_zone: text(TIME_ZONE_SETTING),
            locale: text(LOCALE_SETTING),
            script: text(SCRIPT_SETTING).map(|text| Script {
                text,
                timeout_seconds: number(SCRIPT_TIMEOUT_SETTING, limits::SCRIPT_SECONDS),
                tries: number(SCRIPT_TRIES_SETTING, 1),
                each_boot: configuration.setting(SCRIPT_RUN_SETTING) == Some("boot"),
                // Nothing in Windows tells what became of it.
                must_succeed: configuration.setting(SCRIPT_FAILURE_SETTING) != Some("ignore")
                    && platform != Platform::Windows,
            }),
            shutdown_seconds: number(SHUTDOWN_SETTING, limits::SHUTDOWN_SECONDS),
            local_storage: role.local_storage.clone(),
            template: configuration.setting(TEMPLATE_SETTING) == Some("on"),
            certificates: certificates(role, configuration),
            remote_access: RemoteAccess::of(configuration),
            card: configuration.card(),
        }
    }

    /// The certificate that opens the password for remote access.
    pub fn password_certificate(&self) -> Option<&GuestCertificate> {
        self.certificates.iter().find(|one| one.opens_password())
    }

    /// The certificates that the guest itself gets: all but that one, as whatever runs in the guest could read the password.
    pub fn own_certificates(&self) -> impl Iterator<Item = &GuestCertificate> {
        self.certificates.iter().filter(|one| !one.opens_password())
    }
}

fn certificates(role: &RoleDefinition, configuration: &RoleConfiguration) -> Vec<GuestCertificate> {
    let of_name = |name: &str| configuration.certificates.iter().find(|(of, _)| of == name).map(|(_, one)| one.clone());
    let defined = role.certificates.iter();
    let with_thumbprint = defined.map(|definition| Some((definition.clone(), of_name(&definition.name)?)));
    with_thumbprint.flatten().map(|(definition, thumbprint)| GuestCertificate { definition, thumbprint }).collect()
}
