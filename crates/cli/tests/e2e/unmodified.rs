//! Unmodified Debian, with cloud-init and the Azure Linux agent, on both platforms.

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use mayfly_xtask::fabric::wait_until;

use crate::guests::{STORAGE, configuration, definition, put, talk};
use crate::{Stage, debian};

/// Says what the guest has made of what it was told.
const SCRIPT: &str = "#!/bin/sh\n\
    look='import crypt, spwd; hash = spwd.getspnam(\"ada\").sp_pwdp; print(crypt.crypt(\"secret\", hash) == hash)'\n\
    echo \"name $(hostname), zone $(cat /etc/timezone), $(cat /etc/told)\"\n\
    echo \"key $(cat /home/ada/.ssh/authorized_keys | grep -c ada), machine $(cat /etc/machine-id)\"\n\
    echo \"password $(python3 -W ignore -c \"$look\"), until 2039: $(chage -l ada | grep -c 2039)\"\n\
    echo \"host $(cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub), agent $(systemctl is-active walinuxagent)\"\n\
    ip -6 -o address show scope global | grep -o 'fd6d[^/]*'\n\
    mount | grep -o 'on /mnt/keep type ext4'\n";

/// The same for two roles, told in different ways: `az` as on the original platform, `nc` by NoCloud.
struct Told {
    definition: String,
    thumbprint: String,
    hash: String,
    encrypted: String,
}

impl Told {
    fn new(stage: &Stage) -> Told {
        let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGtt7+uJEPQ0V49BNXbSyYTa1QD2ekkywoTU5RpnJXXx ada\n";
        stage.file("key.pub", key);
        stage.file("user-data", "#cloud-config\nwrite_files: [{path: /etc/told, content: by cloud-config}]\n");
        stage.file("role.sh", SCRIPT);
        let (thumbprint, encrypted) = certificate(stage);
        let inner = format!(
            "<Certificates><Certificate name=\"Site\"/></Certificates>\
             <Imports><Import moduleName=\"RemoteAccess\"/></Imports>\
             <ConfigurationSettings><Setting name=\"Colour\"/></ConfigurationSettings>{}",
            &STORAGE[..STORAGE.find("<Endpoints>").unwrap()]
        );
        Told { definition: definition(&[("az", &inner), ("nc", &inner)]), thumbprint, hash: openssl_hash(), encrypted }
    }

    /// The user `ada` with the password `secret`: for `az` by a hash and with a key, for `nc` by remote access.
    fn configuration(&self, colour: &str) -> String {
        let common = [
            ("Colour", colour),
            ("Mayfly.TimeZone", "Europe/Berlin"),
            ("Mayfly.UserData", "@user-data"),
            ("Mayfly.Script", "@role.sh"),
            ("Mayfly.ScriptRun", "boot"),
        ];
        let own = [
            ("Mayfly.Platform", "azure"),
            ("Mayfly.IPv6", "on"),
            ("Mayfly.AdminUser", "ada"),
            ("Mayfly.AdminPasswordHash", &self.hash),
            ("Mayfly.SshKeys", "@key.pub"),
        ];
        let remote = [
            ("Mayfly.Template", "on"),
            ("Microsoft.WindowsAzure.Plugins.RemoteAccess.Enabled", "true"),
            ("Microsoft.WindowsAzure.Plugins.RemoteAccess.AccountUsername", "ada"),
            ("Microsoft.WindowsAzure.Plugins.RemoteAccess.AccountEncryptedPassword", &self.encrypted),
            ("Microsoft.WindowsAzure.Plugins.RemoteAccess.AccountExpiration", "2039-06-30T23:59:59.0000000-08:00"),
        ];
        let (azure, nocloud) = ([&common[..], &own].concat(), [&common[..], &remote].concat());
        let certificates = ["Site", "Microsoft.WindowsAzure.Plugins.RemoteAccess.PasswordEncryption"].map(|name| {
            let thumbprint = &self.thumbprint;
            format!("<Certificate name=\"{name}\" thumbprint=\"{thumbprint}\" thumbprintAlgorithm=\"sha1\"/>")
        });
        let certificates = format!("</ConfigurationSettings><Certificates>{}</Certificates>", certificates.concat());
        let plain = configuration(&[("az", "debian", &azure), ("nc", "debian", &nocloud)]);
        plain.replace("</ConfigurationSettings>", &certificates)
    }
}

#[test]
fn unmodified_debian_reaches_ready_on_both_platforms() {
    let stage = Stage::up();
    let fabric = &stage.fabric;
    fabric.run(&["image", "push", debian().to_str().unwrap(), "--name", "debian"]).unwrap();
    fabric.run(&["service", "create", "shop"]).unwrap();
    let told = Told::new(&stage);
    put(&stage, "deploy", &told.definition, &told.configuration("red"));
    let outputs: Vec<String> = ["az", "nc"].map(|role| check_debian(&stage, role)).to_vec();
    let own = |text: &str, word: &str| text.split(word).nth(1).unwrap().split([',', '\n']).next().unwrap().to_owned();
    for word in ["machine ", "host "] {
        assert_ne!(own(&outputs[0], word), own(&outputs[1], word), "each VM has its own");
    }
    for (output, keys, end) in [(&outputs[0], 1, 0), (&outputs[1], 0, 1)] {
        assert!(output.contains(&format!("key {keys},")), "{output}");
        assert!(output.contains(&format!("password True, until 2039: {end}")), "{output}");
    }
    assert!(outputs[0].contains("agent active") && !outputs[1].contains("agent active"), "{outputs:?}");
    assert!(provisioning_disks(&stage).is_empty(), "{:?}", provisioning_disks(&stage));
    // A change of settings reaches the agent's own files; somebody logs in to see it.
    put(&stage, "upgrade", &told.definition, &told.configuration("blue"));
    let look =
        "sudo grep -o 'Colour[^/]*' /var/lib/waagent/HostingEnvironmentConfig.xml; sudo ls /var/lib/waagent; exit\n";
    let mut talked = String::new();
    wait_until("the agent has the new setting", Duration::from_secs(120), || {
        talked =
            talk(&stage, "shop/az_IN_0", &[(500, "\n"), (2000, "ada\n"), (4000, "secret\n"), (7000, look), (4000, "")]);
        Ok(talked.contains("value=\"blue\""))
    })
    .unwrap_or_else(|error| panic!("{error}: {talked}"));
    assert!(talked.contains(&format!("{}.prv", told.thumbprint)), "the agent has its certificate's key: {talked}");
    // An agent that was provisioned in an earlier boot reports in another way, and the script runs again.
    let mut reboot = fabric.command(&["instance", "reboot", "shop/az_IN_0", "--wait", "--timeout", "300s"]);
    let mut reboot = reboot.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // The other one's next VM goes on from a template, and is another machine all the same.
    let template = |host: &str| fabric.host_folder(host).join("templates");
    let host = fabric.instance("shop", "nc_IN_0").unwrap()["host"].as_str().unwrap().to_owned();
    wait_until("there is a template", Duration::from_secs(200), || {
        let mut all = std::fs::read_dir(template(&host)).into_iter().flatten().flatten();
        Ok(all.any(|one| one.path().join("ready").exists()))
    })
    .unwrap();
    fabric.run(&["instance", "reimage", "shop/nc_IN_0", "--wait", "--timeout", "240s"]).unwrap();
    let steps = fabric.run(&["instance", "show", "shop/nc_IN_0"]).unwrap();
    assert!(steps.contains("it goes on from a template"), "{steps}");
    let copy = check_debian(&stage, "nc");
    for word in ["machine ", "host "] {
        assert_ne!(own(&outputs[1], word), own(&copy, word), "the copy has its own");
    }
    assert!(reboot.wait().unwrap().success(), "{}", fabric.run(&["instance", "show", "shop/az_IN_0"]).unwrap());
    check_debian(&stage, "az");
}

/// Provisioning disks that have not been taken away.
fn provisioning_disks(stage: &Stage) -> Vec<std::path::PathBuf> {
    // They lie in a file system of memory, which each host mounts for itself.
    let status = stage.fabric.json(&["dev", "status"]).unwrap();
    let all = status["hosts"].as_array().unwrap().iter().map(|host| {
        let folder = stage.fabric.host_folder(host["name"].as_str().unwrap()).join("secrets");
        format!("/proc/{}/root{}", host["first_process"], folder.display())
    });
    let disks = |folder: String| std::fs::read_dir(folder).unwrap().flatten();
    all.flat_map(disks).map(|disk| disk.path()).collect()
}

/// What Debian's own guest says of itself, by the script.
fn check_debian(stage: &Stage, role: &str) -> String {
    let name = format!("{role}_IN_0");
    let instance = stage.fabric.instance("shop", &name).unwrap();
    let output = stage.fabric.run(&["instance", "log", &format!("shop/{name}")]).unwrap();
    let computer = instance["computer_name"].as_str().unwrap();
    for part in [format!("name {computer}, zone Europe/Berlin, by cloud-config"), "on /mnt/keep type ext4".to_owned()] {
        assert!(output.contains(&part), "{role}: `{part}` is missing in\n{output}");
    }
    // On the original platform, cloud-init is told that there is IPv6, and asks for its address.
    let ipv6 = instance["ipv6"].as_str();
    assert_eq!(ipv6.is_some(), role == "az");
    assert!(ipv6.is_none_or(|ipv6| output.contains(ipv6)), "{ipv6:?} is missing in\n{output}");
    output
}

/// Gives `shop` a certificate. Returns its thumbprint, and the password `secret` encrypted to it.
fn certificate(stage: &Stage) -> (String, String) {
    let folder = stage.folder.path();
    let openssl = |arguments: &str| {
        let mut command = std::process::Command::new("openssl");
        let output = command.args(arguments.split_whitespace()).current_dir(folder).output().unwrap();
        assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    };
    openssl("req -x509 -newkey rsa:2048 -nodes -keyout site.key -out site.pem -days 2 -subj /CN=shop.example");
    openssl("pkcs12 -export -inkey site.key -in site.pem -passout pass:opens -out site.pfx");
    let pfx = folder.join("site.pfx").display().to_string();
    let (right, wrong) = (stage.file("right", "opens\n"), stage.file("wrong", "shuts\n"));
    let refused = stage.refused(&["certificate", "add", "shop", &pfx, "--password-file", &wrong]);
    assert!(refused.contains("the password is wrong"), "{refused}");
    let added = stage.fabric.run(&["certificate", "add", "shop", &pfx, "--password-file", &right]).unwrap();
    let thumbprint = added.trim().to_owned();
    let list = stage.fabric.run(&["certificate", "list", "shop"]).unwrap();
    assert!(list.contains(&thumbprint) && list.contains("CN=shop.example"), "{list}");
    let mut command = stage.fabric.command(&["certificate", "encrypt", "shop", &thumbprint]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"secret\n").unwrap();
    let encrypted = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    (thumbprint, encrypted.trim().to_owned())
}

/// A hash of `secret`, made as the error message says.
fn openssl_hash() -> String {
    let output = std::process::Command::new("openssl").args(["passwd", "-6", "secret"]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
