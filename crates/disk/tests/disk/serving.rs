//! The disk server, used by QEMU's own tools over its sockets.

use std::path::Path;
use std::sync::Arc;

use mayfly_disk::{Base, DiskClient, DiskServer, Export, Transport};
use mayfly_vhd::{Access, CreateOptions, Vhd, create_differencing};

use crate::tool::{qemu_io, run};

/// A base made by qemu-img, of which the first 4 MiB are sevens.
fn base(folder: &Path, subformat: &str) -> std::path::PathBuf {
    let (raw, vhd) = (folder.join("base.raw"), folder.join("base.vhd"));
    let mut data = vec![7u8; 4 << 20];
    data.resize(16 << 20, 0);
    std::fs::write(&raw, data).unwrap();
    let options = format!("subformat={subformat},force_size=on");
    let (raw, vhd_text) = (raw.to_str().unwrap(), vhd.to_str().unwrap());
    run("qemu-img", &["convert", "-f", "raw", "-O", "vpc", "-o", &options, raw, vhd_text]);
    vhd
}

fn export(folder: &Path, subformat: &str) -> Export {
    let base = base(folder, subformat);
    let parent = Vhd::open(&base, Access::ReadOnly, None).unwrap();
    let disk = folder.join("child.vhd");
    create_differencing(&disk, &parent, &CreateOptions { unique_id: [1; 16], timestamp: 1, durable: false }).unwrap();
    Export {
        name: "d1".to_owned(),
        disk,
        base: Base::File(base),
        socket: folder.join("d1.sock"),
        quota_bytes: None,
        transport: Transport::Nbd,
    }
}

#[test]
fn qemu_reads_the_base_and_writes_the_child() {
    for subformat in ["fixed", "dynamic"] {
        let folder = tempfile::tempdir().unwrap();
        let export = export(folder.path(), subformat);
        let base = folder.path().join("base.vhd");
        let before = std::fs::read(&base).unwrap();
        let server = DiskServer::start(&folder.path().join("exports"), &folder.path().join("images")).unwrap();
        server.open(export.clone()).unwrap();
        qemu_io(&export.socket, &["read -P 7 0 4M", "read -P 0 4M 12M", "write -P 9 1M 64k", "flush"]);
        qemu_io(&export.socket, &["read -P 7 0 1M", "read -P 9 1M 64k", "read -P 7 1088k 1M", "write -z 2M 1M"]);
        qemu_io(&export.socket, &["read -P 0 2M 1M", "read -P 7 3M 1M"]);
        assert!(std::fs::read(&base).unwrap() == before, "the base must never change");
    }
}

#[test]
fn a_new_server_goes_on_where_the_old_one_was() {
    let folder = tempfile::tempdir().unwrap();
    let export = export(folder.path(), "fixed");
    let exports = folder.path().join("exports");
    let old = DiskServer::start(&exports, &folder.path().join("images")).unwrap();
    old.open(export.clone()).unwrap();
    qemu_io(&export.socket, &["write -P 5 0 512"]);
    old.stop();
    let server = DiskServer::start(&exports, &folder.path().join("images")).unwrap();
    assert_eq!(server.names(), ["d1"]);
    qemu_io(&export.socket, &["read -P 5 0 512", "read -P 7 512 512"]);
    server.close("d1").unwrap();
    server.close("d1").unwrap();
    assert!(!export.socket.exists());
    assert_eq!(DiskServer::start(&exports, &folder.path().join("images")).unwrap().names(), Vec::<String>::new());
}

#[test]
fn the_agent_is_told_what_went_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let control = folder.path().join("control.sock");
    let server = DiskServer::start(&folder.path().join("exports"), &folder.path().join("images")).unwrap();
    let (thread_server, path) = (server.clone(), control.clone());
    std::thread::spawn(move || thread_server.control(&path));
    let client = DiskClient::new(control.clone());
    for _ in 0..100 {
        if control.exists() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let mut export = export(folder.path(), "fixed");
    client.open(export.clone()).unwrap();
    client.open(export.clone()).unwrap();
    assert_eq!(client.news().unwrap().exports[0].name, "d1");
    client.close("d1").unwrap();
    export.base = Base::File(folder.path().join("missing.vhd"));
    let error = client.open(export).unwrap_err().to_string();
    assert!(error.contains("missing.vhd") && error.contains("No such file"), "{error}");
}

#[test]
fn libvhdi_reads_the_differencing_disk_the_same() {
    // An independent reader of differencing VHDs; it follows the parent locator that was written.
    let folder = tempfile::tempdir().unwrap();
    let export = export(folder.path(), "dynamic");
    let parent = Arc::new(Vhd::open(&folder.path().join("base.vhd"), Access::ReadOnly, None).unwrap());
    let disk = Vhd::open(&export.disk, Access::ReadWrite, Some(parent)).unwrap();
    disk.write_at(&[9; 65536], 1 << 20).unwrap();
    let info = run("vhdiinfo", &[export.disk.to_str().unwrap()]);
    assert!(info.contains("Differential") && info.contains("base.vhd"), "{info}");
}

#[test]
fn holes_are_told_and_made() {
    let folder = tempfile::tempdir().unwrap();
    let export = export(folder.path(), "fixed");
    let server = DiskServer::start(&folder.path().join("exports"), &folder.path().join("images")).unwrap();
    server.open(export.clone()).unwrap();
    let uri = format!("nbd+unix:///?socket={}", export.socket.display());
    let map = |uri: &str| -> Vec<(u64, u64, bool)> {
        let text = run("qemu-img", &["map", "-f", "raw", "--output=json", uri]);
        let extents: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        let number = |one: &serde_json::Value, name: &str| one[name].as_u64().unwrap();
        extents.iter().map(|one| (number(one, "start"), number(one, "length"), one["zero"] == true)).collect()
    };
    assert_eq!(map(&uri), [(0, 4 << 20, false), (4 << 20, 12 << 20, true)], "data and zeros of the base");
    qemu_io(&export.socket, &["write -P 9 8M 1M", "flush"]);
    let used = || std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&export.disk).unwrap()) * 512;
    let before = used();
    assert!(before >= 1 << 20);
    qemu_io(&export.socket, &["discard 8M 1M", "read -P 0 8M 1M"]);
    assert!(used() <= before - (900 << 10), "trimming frees space: {} -> {}", before, used());
    qemu_io(&export.socket, &["write -z -u 0 2M", "read -P 0 0 2M", "read -P 7 2M 2M"]);
    assert!(map(&uri)[0].2, "the base's data is covered by zeros");
    let resize = std::process::Command::new("qemu-img").args(["resize", "-f", "raw", &uri, "32M"]).output().unwrap();
    assert!(!resize.status.success(), "a disk is as long as its base");
}

#[test]
fn a_small_write_stays_small() {
    let folder = tempfile::tempdir().unwrap();
    let export = export(folder.path(), "fixed");
    let server = DiskServer::start(&folder.path().join("exports"), &folder.path().join("images")).unwrap();
    server.open(export.clone()).unwrap();
    let used = || std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&export.disk).unwrap()) * 512;
    qemu_io(&export.socket, &["write -P 1 0 4k", "flush"]);
    let before = used();
    // A block's bitmaps are there now; each further page is a page.
    let commands: Vec<String> = (1..200).map(|page| format!("write -P 1 {}k 4k", page * 8)).collect();
    let commands: Vec<&str> = commands.iter().map(String::as_str).chain(["flush"]).collect();
    qemu_io(&export.socket, &commands);
    let amplification = (used() - before) as f64 / f64::from(199 * 4096);
    assert!(amplification <= 1.1, "{amplification} bytes for each byte that the guest wrote");
}

#[test]
fn a_quota_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let mut export = export(folder.path(), "fixed");
    export.quota_bytes = Some(3 << 20);
    let server = DiskServer::start(&folder.path().join("exports"), &folder.path().join("images")).unwrap();
    server.open(export.clone()).unwrap();
    let uri = format!("nbd+unix:///?socket={}", export.socket.display());
    let write =
        std::process::Command::new("qemu-io").args(["-f", "raw", "-c", "write -P 3 0 8M", &uri]).output().unwrap();
    assert!(!write.status.success(), "8 MiB are more than 3");
    assert!(server.news().exports[0].file_bytes <= (4 << 20) + (64 << 10), "{:?}", server.news());
    qemu_io(&export.socket, &["write -P 4 0 64k", "read -P 4 0 64k"]);
}

#[test]
fn a_full_host_disk_harms_nobody_else_and_waits_for_room() {
    let folder = tempfile::tempdir().unwrap();
    let small = folder.path().join("small");
    std::fs::create_dir(&small).unwrap();
    let room = |mebibytes: u32, more: &str| {
        let options = format!("{more}size={mebibytes}m");
        run("mount", &["-t", "tmpfs", "-o", &options, "tmpfs", small.to_str().unwrap()]);
    };
    room(6, "");
    let first = export(folder.path(), "fixed");
    let base = folder.path().join("base.vhd");
    let before = std::fs::read(&base).unwrap();
    let server = DiskServer::start(&folder.path().join("exports"), &folder.path().join("images")).unwrap();
    let [one, two] = ["one", "two"].map(|name| {
        let socket = folder.path().join(format!("{name}.sock"));
        let disk = small.join(format!("{name}.vhd"));
        Export { name: name.to_owned(), disk, socket, ..first.clone() }
    });
    server.open(one.clone()).unwrap();
    server.open(two.clone()).unwrap();
    qemu_io(&two.socket, &["write -P 2 0 1M", "flush"]);
    let uri = format!("nbd+unix:///?socket={}", one.socket.display());
    let write = ["-f", "raw", "-c", "write -P 1 0 8M", &uri];
    let full = std::process::Command::new("qemu-io").args(write).output().unwrap();
    let said = String::from_utf8_lossy(&full.stdout).into_owned() + &String::from_utf8_lossy(&full.stderr);
    assert!(said.contains("No space left on device"), "the hypervisor has to know that it is no other error: {said}");
    qemu_io(&two.socket, &["read -P 2 0 1M", "write -P 3 0 1M", "read -P 3 0 1M", "read -P 7 1M 3M"]);
    assert!(std::fs::read(&base).unwrap() == before, "the base must never change");
    room(32, "remount,");
    qemu_io(&one.socket, &["write -P 1 0 8M", "read -P 1 0 8M", "flush"]);
    server.close("one").unwrap();
    server.close("two").unwrap();
    run("umount", &[small.to_str().unwrap()]);
}
