//! Disks in guests: a disk server that is killed under load, a child image, the commands for VHD files.

use std::time::Duration;

use mayfly_xtask::fabric::wait_until;
use mayfly_xtask::run::run;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::{Stage, image};

/// Writes, syncs, forgets what the kernel has cached, reads back; again and again. Says how often it was right.
const LOAD: &str = "#!/bin/sh
good=0
for round in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do
  dd if=/dev/urandom of=/tmp/pattern bs=64k count=48 2>/dev/null
  cp /tmp/pattern /data/copy || break
  sync
  echo 3 > /proc/sys/vm/drop_caches
  cmp -s /tmp/pattern /data/copy && good=$((good + 1))
done
echo $good of 16 rounds right, $(dmesg | grep -c 'I/O error') errors
";

#[test]
fn guests_do_not_notice_that_their_disk_server_is_killed() {
    let stage = Stage::up();
    let fabric = &stage.fabric;
    stage.file("load.sh", LOAD);
    let roles = [("plain", 1), ("nvme", 1), ("shared", 1)];
    let definition = stage.definition(&roles);
    let user_data = "<Setting name=\"Mayfly.UserData\" value=\"@load.sh\"/>";
    let configuration = stage.configuration(&roles, "hello", user_data);
    let mut text = std::fs::read_to_string(&configuration).unwrap();
    // Shared memory is what a host without KVM turns into NBD.
    for (role, disk) in [("nvme", "nvme"), ("shared", "vhost-user")] {
        let (first, second) = text.split_at(text.find(&format!("<Role name=\"{role}\"")).unwrap());
        let setting = format!("<ConfigurationSettings><Setting name=\"Mayfly.Disk\" value=\"{disk}\"/>");
        text = format!("{first}{}", second.replacen("<ConfigurationSettings>", &setting, 1));
    }
    std::fs::write(&configuration, text).unwrap();
    fabric.run(&["service", "create", "bank"]).unwrap();
    fabric.run(&["service", "deploy", "bank", "--definition", &definition, "--configuration", &configuration]).unwrap();
    // They boot, and begin to write.
    std::thread::sleep(Duration::from_secs(6));
    let mut kills = 0;
    let deadline = std::time::Instant::now() + Duration::from_secs(280);
    while fabric.instances("bank").unwrap().iter().any(|one| one["state"] != "ReadyRole") {
        assert!(std::time::Instant::now() < deadline, "{:?}", fabric.instances("bank").unwrap());
        for pid in fabric.processes("internal disk-server") {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            kills += 1;
        }
        std::thread::sleep(Duration::from_millis(1700));
    }
    assert!(kills > 3, "the guests were done before anything was killed");
    let vip = fabric.vip("bank").unwrap();
    for port in [80, 81, 82] {
        let mut page = Value::Null;
        wait_until("the page comes", Duration::from_secs(30), || {
            page = mayfly_xtask::visitor::get(&format!("http://{vip}:{port}/json"))?;
            Ok(page["script_output"].is_string())
        })
        .unwrap();
        assert_eq!(page["script_output"], "16 of 16 rounds right, 0 errors\n", "port {port}: {page}");
    }
}

#[test]
fn a_child_of_an_image_is_an_image_and_sends_only_what_differs() {
    let stage = Stage::up();
    let fabric = &stage.fabric;
    let again = fabric.run(&["image", "push", image().to_str().unwrap(), "--name", "again"]).unwrap();
    assert!(again.contains("of which 0.0 MiB had to be sent"), "{again}");
    // A child whose parent is not there any more as a file.
    let (parent, child) = (stage.file("parent.vhd", ""), stage.file("child.vhd", ""));
    std::fs::copy(image(), &parent).unwrap();
    std::fs::remove_file(&child).unwrap();
    let vhd = |arguments: &[&str]| fabric.run(&[&["vhd"], arguments].concat()).unwrap();
    vhd(&["create", &child, "--parent", &parent]);
    // Another name for the boot menu's message would do; here it is a mark at the end of the disk.
    let disk = mayfly_vhd::open_chain(child.as_ref(), mayfly_vhd::Access::ReadWrite).unwrap();
    let at = disk.disk_bytes() - 4096;
    disk.write_at(&[0x77; 4096], at).unwrap();
    disk.flush().unwrap();
    drop(disk);
    std::fs::remove_file(&parent).unwrap();
    let pushed = fabric.run(&["image", "push", &child, "--name", "child"]).unwrap();
    assert!(pushed.contains("of which 0.5 MiB had to be sent"), "{pushed}");
    let (definition, configuration) =
        (stage.definition(&[("web", 1)]), stage.configuration(&[("web", 1)], "child", ""));
    fabric.run(&["service", "create", "bank"]).unwrap();
    let files = ["--definition", &definition, "--configuration", &configuration, "--wait", "--timeout", "120s"];
    fabric.run(&[&["service", "deploy", "bank"], &files[..]].concat()).unwrap();
    let shown = fabric.run(&["instance", "show", "bank/web_IN_0"]).unwrap();
    assert!(shown.contains("write quota") && shown.contains("20480.0 MiB"), "{shown}");
    flip_a_bit(&stage);
    let used = stage.refused(&["image", "delete", "child"]);
    assert!(used.contains("in use by bank"), "{used}");
    // What the others share with it stays when they go.
    fabric.run(&["image", "delete", "hello"]).unwrap();
    fabric.run(&["image", "delete", "again"]).unwrap();
    fabric.run(&["instance", "reimage", "bank/web_IN_0", "--wait", "--timeout", "120s"]).unwrap();
}

/// What changes by itself on a host's disk is found, mended, and told.
fn flip_a_bit(stage: &Stage) {
    use std::os::unix::fs::FileExt;
    let fabric = &stage.fabric;
    let instance = fabric.instance("bank", "web_IN_0").unwrap();
    let images = fabric.json(&["image", "list"]).unwrap();
    let child = images.as_array().unwrap().iter().find(|one| one["name"] == "child").unwrap();
    let folder = fabric.host_folder(instance["host"].as_str().unwrap()).join("images");
    let path = folder.join(child["digest"].as_str().unwrap()).join("disk.vhd");
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 200).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 200).unwrap();
    wait_until("the damage is told", Duration::from_secs(60), || {
        Ok(fabric.run(&["event", "list"])?.contains("was damaged on this host's disk; it is fetched again"))
    })
    .unwrap();
    wait_until("the damage is mended", Duration::from_secs(20), || {
        let mut now = [0];
        file.read_exact_at(&mut now, 200)?;
        Ok(now == byte)
    })
    .unwrap();
}

#[test]
fn vhd_commands_do_what_they_say() {
    let stage = Stage::empty();
    let fabric = &stage.fabric;
    let path = |name: &str| stage.folder.path().join(name).to_str().unwrap().to_owned();
    let (base, child, merged) = (path("base.vhd"), path("child.vhd"), path("merged.vhd"));
    let vhd = |arguments: &[&str]| fabric.run(&[&["vhd"], arguments].concat()).unwrap();
    let raw = stage.file("disk.raw", [vec![5u8; 3 << 20], vec![0; 29 << 20]].concat());
    vhd(&["convert", &raw, &base, "--to", "dynamic"]);
    vhd(&["create", &child, "--parent", &base]);
    assert!(vhd(&["info", &child]).contains("differencing"));
    assert!(vhd(&["map", &child]).contains("its parent"));
    vhd(&["merge", &child, &merged]);
    assert!(vhd(&["check", &merged]).contains("no damage"));
    let back = path("back.raw");
    vhd(&["convert", &merged, &back]);
    assert_eq!(std::fs::read(&back).unwrap(), std::fs::read(&raw).unwrap());
    for format in ["qcow2", "vhdx"] {
        let other = path(&format!("disk.{format}"));
        vhd(&["convert", &child, &other]);
        let compared = run("qemu-img", &["compare", "-f", format, "-F", "raw", &other, &raw]);
        assert!(compared.is_ok(), "{format}: {compared:?}");
        let again = path(&format!("from-{format}.vhd"));
        vhd(&["convert", &other, &again]);
        assert!(vhd(&["info", &again]).contains("fixed"));
    }
    assert!(stage.refused(&["vhd", "convert", &raw, &base]).contains("exists already"));
    assert!(stage.refused(&["vhd", "merge", &merged, &path("x.vhd")]).contains("has no parent"));
    assert!(stage.refused(&["vhd", "create", &path("y.vhd"), "--size", "3T"]).contains("2040 GiB"));
    assert!(stage.refused(&["vhd", "info", &path("none.vhd")]).contains("none.vhd"));
    std::fs::remove_file(&base).unwrap();
    assert!(stage.refused(&["vhd", "info", &child]).contains("its parent cannot be found"));
    let cut = std::fs::read(&merged).unwrap();
    let cut = stage.file("cut.vhd", &cut[..cut.len() / 2]);
    assert!(stage.refused(&["vhd", "check", &cut]).contains("not a VHD"));
    assert!(
        !std::fs::read_dir(stage.folder.path())
            .unwrap()
            .any(|entry| { entry.unwrap().file_name().to_string_lossy().ends_with(".partial") })
    );
}
