//! The dev fabric of an ordinary user.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use mayfly_xtask::fabric::wait_until;
use mayfly_xtask::visitor::get;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{Gid, Uid, chown};

/// Nobody, who is as ordinary as can be.
const USER: u32 = 65_534;

/// Runs a command of `mayfly` as that user, in a folder that is his. Most systems let everybody open /dev/net/tun; where this one
/// does not, he gets a device of his own in its place.
fn run(folder: &Path, arguments: &[&str]) -> Output {
    let script = "mount --bind \"$0/tun\" /dev/net/tun; f=$0; cd \"$f\"; exec setpriv --reuid=65534 --regid=65534 \
                  --clear-groups --no-new-privs env HOME=\"$f/home\" PATH=\"$PATH:/usr/sbin:/sbin\" \"$f/mayfly\" \
                  --state \"$f/home/state\" \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", script]).arg(folder).args(arguments);
    command.output().unwrap()
}

fn said(folder: &Path, arguments: &[&str]) -> String {
    let output = run(folder, arguments);
    let words = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{arguments:?}: {words}");
    words
}

/// A fabric is stopped whatever comes of the test.
struct Stopped<'f>(&'f Path);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        run(self.0, &["dev", "down", "--purge"]);
    }
}

#[test]
fn an_ordinary_user_has_a_fabric_of_his_own() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: this becomes an ordinary user, which needs root");
        return;
    }
    let work = tempfile::Builder::new().prefix("mayfly-rootless-").tempdir_in("/var/tmp").unwrap();
    let folder = work.path();
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    mknod(&folder.join("tun"), SFlag::S_IFCHR, Mode::empty(), makedev(10, 200)).unwrap();
    std::fs::set_permissions(folder.join("tun"), std::fs::Permissions::from_mode(0o666)).unwrap();
    std::fs::create_dir(folder.join("home")).unwrap();
    chown(&folder.join("home"), Some(Uid::from_raw(USER)), Some(Gid::from_raw(USER))).unwrap();
    let assets = mayfly_xtask::workspace().join("crates/xtask/assets");
    let files = [
        (Path::new(env!("CARGO_BIN_EXE_mayfly")).to_owned(), "mayfly", 0o755),
        (mayfly_xtask::image::build(&mayfly_xtask::workspace()).unwrap(), "hello.vhd", 0o644),
        (assets.join("ServiceDefinition.csdef"), "shop.csdef", 0o644),
        (assets.join("ServiceConfiguration.cscfg"), "shop.cscfg", 0o644),
        (assets.join("setup.sh"), "setup.sh", 0o644),
    ];
    for (from, name, mode) in files {
        std::fs::copy(&from, folder.join(name)).unwrap();
        std::fs::set_permissions(folder.join(name), std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let _stopped = Stopped(folder);
    let words = said(folder, &["dev", "up"]);
    assert!(words.contains("without root"), "{words}");
    said(folder, &["image", "push", "hello.vhd", "--name", "hello"]);
    said(folder, &["service", "create", "shop"]);
    let files = ["--definition", "shop.csdef", "--configuration", "shop.cscfg", "--wait", "--timeout", "300s"];
    said(folder, &[&["service", "deploy", "shop"], &files[..]].concat());
    // The public address is led to from outside.
    let mut outside = String::new();
    wait_until("a way leads in", Duration::from_secs(20), || {
        let status = said(folder, &["dev", "status"]);
        let way = status
            .lines()
            .find_map(|line| line.strip_prefix("leads in:")?.split_whitespace().next().map(str::to_owned));
        outside = way.unwrap_or_default();
        Ok(!outside.is_empty())
    })
    .unwrap();
    assert!(outside.starts_with("127.78.") && outside.ends_with(":8080"), "{outside}");
    let page = || get(&format!("http://{outside}/json"));
    assert!(page().unwrap()["instance"].as_str().unwrap().starts_with("web_IN_"));
    assert!(said(folder, &["dev", "exec", "--", "ip", "link"]).contains("mayfly"));
    // Without a controller the ways stay; without the host, the other instance answers.
    said(folder, &["dev", "kill", "controller"]);
    said(folder, &["dev", "kill", "host-1"]);
    wait_until("the other instance answers", Duration::from_secs(20), || Ok(page().is_ok())).unwrap();
    said(folder, &["dev", "up"]);
    said(folder, &["dev", "down", "--purge"]);
    assert!(!folder.join("home/state").exists());
    assert!(page().is_err());
}
