//! What a guest is told at its first boot: cloud-config for cloud-init, the files of the provisioning disk for the
//! original platform's images.

use mayfly_model::{Admin, GuestGoal, Platform, VmGoal};
use quick_xml::escape::escape;
use serde_json::{Map, Value, json};

use crate::script::RUNNER;

/// The folder below which local storage is mounted.
const MOUNTS: &str = "/mnt";
/// By this file cloudbase-init knows the provisioning disk.
const CLOUDBASE_TAG: &str = "E6DA6616-8EC4-48E0-BE93-58CE6ACE3CFB.tag";

/// The label of the provisioning disk, by which some versions of cloud-init know it.
pub const PROVISIONING_LABEL: &str = "rd_rdfe_stable.1";

/// What Mayfly says to cloud-init itself, beside what the role's user data say: those win where both speak of the same.
pub(crate) fn vendor_data(guest: &GuestGoal) -> String {
    let mut config = common(guest);
    if let Some(admin) = &guest.admin {
        config.insert("users".to_owned(), json!(["default", user(admin)]));
        config.insert("ssh_pwauth".to_owned(), json!(admin.password_hash.is_some()));
    }
    parts(&own_parts(config))
}

/// Mayfly's own parts of user or vendor data. Lists of a cloud-config are replaced by the user's, scripts are not.
fn own_parts(config: Map<String, Value>) -> Vec<(&'static str, String)> {
    vec![
        ("text/cloud-boothook", format!("{BOOT_HOOK}cat > $runner <<'MAYFLY'\n{RUNNER}MAYFLY\nchmod 755 $runner\n")),
        ("text/cloud-config", cloud_config(config)),
    ]
}

fn cloud_config(config: Map<String, Value>) -> String {
    // JSON is YAML.
    format!("#cloud-config\n{}\n", Value::Object(config))
}

fn user(admin: &Admin) -> Value {
    let mut user = json!({
        "name": admin.name,
        "gecos": admin.name,
        "sudo": "ALL=(ALL) NOPASSWD:ALL",
        "shell": "/bin/bash",
        "lock_passwd": admin.password_hash.is_none(),
        "ssh_authorized_keys": admin.ssh_keys,
    });
    if let Some(hash) = &admin.password_hash {
        user["passwd"] = json!(hash);
    }
    if let Some(day) = &admin.expires {
        user["expiredate"] = json!(day);
    }
    user
}

/// Runs early in each boot. An image may have been made of a machine that had an id already, so each VM makes one of its own;
/// and the runner of the post-boot script is put where cloud-init looks for what runs at each boot.
const BOOT_HOOK: &str = "#cloud-boothook
#!/bin/sh
mark=/var/lib/cloud/instance/mayfly-machine-id
if [ ! -e $mark ]; then
  rm -f /var/lib/dbus/machine-id
  tr -d - < /proc/sys/kernel/random/uuid > /etc/machine-id
  touch $mark
fi
runner=/var/lib/cloud/scripts/per-boot/50-mayfly
mkdir -p ${runner%/*}
";

/// What is said on every platform.
fn common(guest: &GuestGoal) -> Map<String, Value> {
    let mut config = Map::new();
    if let Some(zone) = &guest.time_zone {
        config.insert("timezone".to_owned(), json!(zone));
    }
    if let Some(locale) = &guest.locale {
        config.insert("locale".to_owned(), json!(locale));
    }
    if !guest.local_storage.is_empty() {
        let mounts = guest.local_storage.iter().map(|one| {
            let (device, folder) = (format!("/dev/disk/by-label/{}", one.name), format!("{MOUNTS}/{}", one.name));
            json!([device, folder, "ext4", "defaults,nofail", "0", "2"])
        });
        config.insert("mounts".to_owned(), mounts.collect());
    }
    config
}

/// The custom data of an image of the original platform: the role's user data and Mayfly's own, in one.
pub(crate) fn custom_data(goal: &VmGoal) -> String {
    if goal.guest.platform == Platform::Windows {
        // cloudbase-init takes one thing; nothing there runs the script as cloud-init's guests do.
        let script = goal.guest.script.as_ref().map_or("", |script| script.text.as_str());
        return if goal.user_data.is_empty() { script.to_owned() } else { goal.user_data.clone() };
    }
    let mut config = common(&goal.guest);
    if let Some(hash) = goal.guest.admin.as_ref().and_then(|admin| admin.password_hash.as_ref()) {
        // The user itself is made of what the provisioning disk says.
        let name = goal.guest.admin.as_ref().map_or("", |admin| admin.name.as_str());
        config.insert("chpasswd".to_owned(), json!({ "expire": false, "list": [format!("{name}:{hash}")] }));
        config.insert("ssh_pwauth".to_owned(), json!(true));
    }
    let mut all = own_parts(config);
    if !goal.user_data.trim().is_empty() {
        // Last, as the later of two wins.
        all.push((mime_type(&goal.user_data), goal.user_data.clone()));
    }
    parts(&all)
}

/// User data of several parts, as MIME has them (cloud-init's documentation, "User-data formats").
fn parts(all: &[(&str, String)]) -> String {
    const BOUNDARY: &str = "===============mayfly==";
    let part = |(kind, text): &(&str, String)| {
        // In a form that keeps every letter. What has parts of its own is found out by who reads it.
        let lines = base64(text).into_bytes();
        let lines: Vec<String> = lines.chunks(76).map(|line| String::from_utf8_lossy(line).into_owned()).collect();
        format!(
            "--{BOUNDARY}\nContent-Type: {kind}; charset=\"utf-8\"\nContent-Transfer-Encoding: base64\n\
             MIME-Version: 1.0\n\n{}\n",
            lines.join("\n")
        )
    };
    let head = format!("Content-Type: multipart/mixed; boundary=\"{BOUNDARY}\"\nMIME-Version: 1.0\n\n");
    let parts: String = all.iter().map(part).collect();
    format!("{head}{parts}--{BOUNDARY}--\n")
}

/// The type of a part, by how it begins.
fn mime_type(text: &str) -> &'static str {
    const TYPES: [(&str, &str); 8] = [
        ("#!", "text/x-shellscript"),
        ("#cloud-config-archive", "text/cloud-config-archive"),
        ("#cloud-config", "text/cloud-config"),
        ("#cloud-boothook", "text/cloud-boothook"),
        ("#include-once", "text/x-include-once-url"),
        ("#include", "text/x-include-url"),
        ("#part-handler", "text/part-handler"),
        ("## template: jinja", "text/jinja2"),
    ];
    TYPES.iter().find(|(start, _)| text.starts_with(start)).map_or("text/plain", |(_, kind)| kind)
}

/// The files of the provisioning disk. `secret` becomes the password of Windows' own administrator, which has to have one.
/// A NoCloud guest needs no such disk.
pub fn provisioning_files(goal: &VmGoal, secret: &str) -> Vec<(String, Vec<u8>)> {
    let custom = custom_data(goal);
    let file = |name: &str, content: String| (name.to_owned(), content.into_bytes());
    match goal.guest.platform {
        Platform::NoCloud => Vec::new(),
        Platform::Azure => vec![file("ovf-env.xml", environment(&linux_set(goal, &custom)))],
        Platform::Windows => vec![
            file("ovf-env.xml", environment(&windows_set(goal, &custom, secret))),
            file("CustomData.bin", custom),
            file(CLOUDBASE_TAG, String::new()),
            file("unattend.xml", unattend(goal, secret)),
        ],
    }
}

fn environment(set: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n\
         <Environment xmlns=\"http://schemas.dmtf.org/ovf/environment/1\" \
         xmlns:oe=\"http://schemas.dmtf.org/ovf/environment/1\" \
         xmlns:wa=\"http://schemas.microsoft.com/windowsazure\" \
         xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\">\
         <wa:ProvisioningSection><wa:Version>1.0</wa:Version>{set}</wa:ProvisioningSection>\
         <wa:PlatformSettingsSection><wa:Version>1.0</wa:Version><wa:PlatformSettings>\
         <wa:KmsServerHostname>kms.core.windows.net</wa:KmsServerHostname>\
         <wa:ProvisionGuestAgent>true</wa:ProvisionGuestAgent><wa:GuestAgentPackageName xsi:nil=\"true\"/>\
         <wa:PreprovisionedVm>false</wa:PreprovisionedVm></wa:PlatformSettings></wa:PlatformSettingsSection>\
         </Environment>\n"
    )
}

fn base64(text: &str) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(text)
}

fn linux_set(goal: &VmGoal, custom: &str) -> String {
    let admin = goal.guest.admin.as_ref();
    // The agents insist on a user; this one can let nobody in.
    let name = admin.map_or("mayfly", |admin| admin.name.as_str());
    let key = |key: &String| {
        format!(
            "<PublicKey><Fingerprint></Fingerprint><Path>/home/{name}/.ssh/authorized_keys</Path>\
             <Value>{}</Value></PublicKey>",
            escape(key)
        )
    };
    let keys: String = admin.map_or(&[][..], |admin| &admin.ssh_keys).iter().map(key).collect();
    let locked = admin.is_none_or(|admin| admin.password_hash.is_none());
    format!(
        "<LinuxProvisioningConfigurationSet xmlns=\"http://schemas.microsoft.com/windowsazure\" \
         xmlns:i=\"http://www.w3.org/2001/XMLSchema-instance\">\
         <ConfigurationSetType>LinuxProvisioningConfiguration</ConfigurationSetType>\
         <HostName>{}</HostName><UserName>{}</UserName>\
         <DisableSshPasswordAuthentication>{locked}</DisableSshPasswordAuthentication>\
         <SSH><PublicKeys>{keys}</PublicKeys></SSH>\
         <CustomData>{}</CustomData></LinuxProvisioningConfigurationSet>",
        escape(&goal.computer_name),
        escape(name),
        base64(custom),
    )
}

fn windows_set(goal: &VmGoal, custom: &str, secret: &str) -> String {
    let admin = goal.guest.admin.as_ref().map_or("Administrator", |admin| admin.name.as_str());
    let zone = goal.guest.time_zone.as_deref().unwrap_or("UTC");
    format!(
        "<WindowsProvisioningConfigurationSet xmlns=\"http://schemas.microsoft.com/windowsazure\" \
         xmlns:i=\"http://www.w3.org/2001/XMLSchema-instance\">\
         <ConfigurationSetType>WindowsProvisioningConfiguration</ConfigurationSetType>\
         <ComputerName>{}</ComputerName><AdminPassword>{}</AdminPassword>\
         <ResetPasswordOnFirstLogon>false</ResetPasswordOnFirstLogon>\
         <EnableAutomaticUpdate>false</EnableAutomaticUpdate><TimeZone>{}</TimeZone>\
         <StoredCertificateSettings i:nil=\"true\"/><AdminUsername>{}</AdminUsername>\
         <CustomData>{}</CustomData></WindowsProvisioningConfigurationSet>",
        escape(&goal.computer_name),
        escape(secret),
        escape(zone),
        escape(admin),
        base64(custom),
    )
}

/// The answers of an image that was prepared with sysprep, for Windows on 64-bit machines.
fn unattend(goal: &VmGoal, secret: &str) -> String {
    let component = |name: &str, body: String| {
        format!(
            "<component name=\"{name}\" processorArchitecture=\"amd64\" publicKeyToken=\"31bf3856ad364e35\" \
             language=\"neutral\" versionScope=\"nonSxS\">{body}</component>"
        )
    };
    let locale = goal.guest.locale.as_deref().map_or_else(|| "en-US".to_owned(), windows_locale);
    let zone = escape(goal.guest.time_zone.as_deref().unwrap_or("UTC")).into_owned();
    let mut specialize = component(
        "Microsoft-Windows-Shell-Setup",
        format!("<ComputerName>{}</ComputerName><TimeZone>{zone}</TimeZone>", escape(&goal.computer_name)),
    );
    if goal.guest.remote_access.is_some() {
        specialize += &component(
            "Microsoft-Windows-TerminalServices-LocalSessionManager",
            "<fDenyTSConnections>false</fDenyTSConnections>".to_owned(),
        );
        specialize += &component(
            "Networking-MPSSVC-Svc",
            "<FirewallGroups><FirewallGroup wcm:action=\"add\" wcm:keyValue=\"RemoteDesktop\"><Active>true</Active>\
             <Group>@FirewallAPI.dll,-28752</Group><Profile>all</Profile></FirewallGroup></FirewallGroups>"
                .to_owned(),
        );
    }
    let international = component(
        "Microsoft-Windows-International-Core",
        format!(
            "<InputLocale>{locale}</InputLocale><SystemLocale>{locale}</SystemLocale>\
             <UILanguage>{locale}</UILanguage><UserLocale>{locale}</UserLocale>"
        ),
    );
    let user = goal.guest.admin.as_ref().map_or_else(String::new, |admin| {
        format!(
            "<LocalAccounts><LocalAccount wcm:action=\"add\"><Password><Value>{}</Value><PlainText>false</PlainText>\
             </Password><Group>Administrators</Group><Name>{}</Name></LocalAccount></LocalAccounts>",
            hidden(secret, "Password"),
            escape(&admin.name)
        )
    });
    let administrator = hidden(secret, "AdministratorPassword");
    let shell = component(
        "Microsoft-Windows-Shell-Setup",
        format!(
            "<OOBE><HideEULAPage>true</HideEULAPage><HideLocalAccountScreen>true</HideLocalAccountScreen>\
             <NetworkLocation>Work</NetworkLocation><ProtectYourPC>3</ProtectYourPC></OOBE>\
             <UserAccounts><AdministratorPassword><Value>{administrator}</Value><PlainText>false</PlainText>\
             </AdministratorPassword>{user}</UserAccounts>"
        ),
    );
    format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<unattend xmlns=\"urn:schemas-microsoft-com:unattend\" \
         xmlns:wcm=\"http://schemas.microsoft.com/WMIConfig/2002/State\">\
         <settings pass=\"specialize\">{specialize}</settings>\
         <settings pass=\"oobeSystem\">{international}{shell}</settings></unattend>\n"
    )
}

/// A password as an answer file hides it: the text with the element's name behind it, in UTF-16, in base64.
fn hidden(password: &str, element: &str) -> String {
    use base64::Engine;
    let bytes: Vec<u8> = format!("{password}{element}").encode_utf16().flat_map(u16::to_le_bytes).collect();
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// `de_DE.UTF-8` as Windows writes it.
fn windows_locale(locale: &str) -> String {
    locale.split(['.', '@']).next().unwrap_or("en_US").replace('_', "-")
}
