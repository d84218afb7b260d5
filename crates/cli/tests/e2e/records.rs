//! Records backed up and restored, and moved from one store to another, with guests that run on.

use std::time::{Duration, Instant};

use mayfly_xtask::fabric::wait_until;

use crate::Stage;

impl Stage {
    fn names_when(&self, service: &str, count: usize) -> Vec<String> {
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            // While the controllers start there is nobody to ask.
            let instances = self.fabric.instances(service).unwrap_or_default();
            if instances.len() == count && instances.iter().all(|one| one["state"] == "ReadyRole") {
                return instances.iter().map(|one| one["computer_name"].to_string()).collect();
            }
            assert!(Instant::now() < deadline, "{service} is not ready: {instances:?}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

#[test]
fn records_are_backed_up_restored_and_moved() {
    let stage = Stage::up();
    let fabric = &stage.fabric;
    stage.deploy("bank", &[("web", 2)]);
    let before = stage.names_when("bank", 2);
    let backup = stage.folder.path().join("backup.ndjson").display().to_string();
    fabric.run(&["controller", "backup", &backup]).unwrap();
    assert!(stage.refused(&["controller", "backup", &backup]).contains("never replaces"));

    // After the backup: one service more, and one less.
    stage.deploy("late", &[("web", 1)]);
    fabric.run(&["service", "scale", "bank", "web=1", "--wait", "--timeout", "120s"]).unwrap();
    let store = format!("embedded:{}", fabric.state().join("controller/records.redb").display());
    let restore = ["controller", "restore", &backup, "--to", &store];
    assert!(stage.refused(&restore).contains("in use by another process"), "while the controller runs");
    fabric.run(&["dev", "kill", "controller"]).unwrap();
    assert!(stage.refused(&restore).contains("--replace"));
    let cut = stage.file("cut.ndjson", &std::fs::read(&backup).unwrap()[..2000]);
    assert!(stage.refused(&["controller", "restore", &cut, "--to", &store, "--replace"]).contains("cannot be used"));
    fabric.run(&[&restore[..], &["--replace"]].concat()).unwrap();
    fabric.run(&["dev", "start", "controller"]).unwrap();
    wait_until("hosts follow the restored records", Duration::from_secs(60), || {
        Ok(fabric.run(&["event", "list"]).is_ok_and(|events| events.contains("every host follows")))
    })
    .unwrap();
    let after = stage.names_when("bank", 2);
    assert!(after.contains(&before[0]), "a guest that the backup knows of runs on: {before:?}, then {after:?}");
    assert!(!after.contains(&before[1]), "one whose VM was gone since has another: {before:?}, then {after:?}");
    assert!(!fabric.run(&["service", "list"]).unwrap().contains("late"));
    // A guest that it does not know of is gone, and what is placed now does not meet it.
    stage.deploy("later", &[("web", 1)]);
    let guests = fabric.processes("qemu-system");
    assert_eq!(guests.len(), 3, "{guests:?}");

    // To etcd and three controllers, and back.
    assert!(stage.refused(&["dev", "up", "--controllers", "3", "--store", "etcd"]).contains("mayfly dev down"));
    for shape in [["--controllers", "3", "--store", "etcd"], ["--controllers", "1", "--store", "embedded"]] {
        fabric.run(&["dev", "down"]).unwrap();
        let said = fabric.run(&[&["dev", "up"], &shape[..]].concat()).unwrap();
        assert!(said.contains("records have moved"), "{said}");
        stage.names_when("bank", 2);
        stage.names_when("later", 1);
    }
}
