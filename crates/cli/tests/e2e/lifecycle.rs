//! A dev fabric's own life: up twice, two side by side, down after a crash; two roles and five instances.

use std::process::Command;
use std::time::Duration;

use mayfly_xtask::fabric::wait_until;
use mayfly_xtask::visitor::{Visitor, get};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{Stage, fabric_in};

#[test]
fn two_fabrics_run_side_by_side_and_leave_nothing() {
    // Somebody else's rules on this machine are nobody's business.
    let nft = |words: &str| {
        let output = Command::new("nft").args(words.split(' ')).output().unwrap();
        assert!(output.status.success(), "nft {words}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    nft("add table inet bystander");
    nft("add set inet bystander leased { type ipv4_addr; }");
    let rules = nft("list ruleset");
    assert!(rules.contains("bystander"));
    let stage = Stage::empty();
    let other = fabric_in(&stage.folder.path().join("other"));
    stage.fabric.run(&["dev", "up"]).unwrap();
    assert!(stage.fabric.run(&["dev", "up"]).unwrap().contains("runs already"));
    other.run(&["dev", "up"]).unwrap();
    stage.fabric.run(&["service", "create", "shop"]).unwrap();
    other.run(&["service", "create", "bank"]).unwrap();
    assert_eq!(other.json(&["service", "list"]).unwrap()[0]["name"], "bank", "each has services of its own");
    let bridges = [stage.fabric.bridge().unwrap(), other.bridge().unwrap()];
    assert_ne!(bridges[0], bridges[1]);
    other.run(&["dev", "down", "--purge"]).unwrap();
    wait_until("the other is gone", Duration::from_secs(10), || Ok(other.leftovers(&bridges[1]).is_empty())).unwrap();
    stage.fabric.run(&["dev", "down"]).unwrap();
    stage.fabric.run(&["dev", "up"]).unwrap();
    assert_eq!(stage.fabric.json(&["service", "list"]).unwrap()[0]["name"], "shop", "records outlive a stop");
    stage.fabric.run(&["dev", "down", "--purge"]).unwrap();
    assert_eq!(nft("list ruleset"), rules);
    nft("delete table inet bystander");
}

#[test]
fn down_cleans_up_after_a_crash() {
    let stage = Stage::empty();
    stage.fabric.run(&["dev", "up"]).unwrap();
    let bridge = stage.fabric.bridge().unwrap();
    // The supervisor first, so that it cannot start the controller again; that one is left without anybody to mind it.
    let (supervisors, hosts) = (stage.fabric.processes("controller-supervisor"), stage.fabric.processes("host-init"));
    assert_eq!((supervisors.len(), hosts.len()), (1, 3));
    for pid in supervisors {
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }
    for pid in hosts.into_iter().take(1) {
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }
    stage.fabric.run(&["dev", "up"]).unwrap();
    stage.fabric.run(&["host", "list"]).unwrap();
    stage.fabric.run(&["dev", "down", "--purge"]).unwrap();
    wait_until("nothing is left", Duration::from_secs(10), || Ok(stage.fabric.leftovers(&bridge).is_empty()))
        .unwrap_or_else(|error| panic!("{error}: {:?}", stage.fabric.leftovers(&bridge)));
}

#[test]
fn two_roles_and_five_instances_survive_each_host_in_turn() {
    let stage = Stage::up();
    let fabric = &stage.fabric;
    stage.deploy("bank", &[("front", 3), ("back", 2)]);
    let vip = fabric.vip("bank").unwrap();
    assert!(get(&format!("http://{vip}:81/json")).unwrap()["instance"].as_str().unwrap().starts_with("back_IN_"));
    for victim in ["host-1", "host-2", "host-3"] {
        let visitor = Visitor::start(&vip);
        fabric.run(&["dev", "kill", victim]).unwrap();
        let healed = || {
            let instances = fabric.instances("bank")?;
            Ok(instances.len() == 5 && instances.iter().all(|one| one["state"] == "ReadyRole" && one["host"] != victim))
        };
        wait_until(&format!("all are ready without {victim}"), Duration::from_secs(180), healed).unwrap();
        let before = std::time::Instant::now();
        std::thread::sleep(Duration::from_secs(2));
        let visits = visitor.finish().unwrap();
        let late: Vec<_> = visits.iter().filter(|visit| visit.at > before && visit.page.is_err()).collect();
        assert!(late.is_empty(), "requests still fail after {victim} was healed: {late:?}");
        fabric.run(&["dev", "start", victim]).unwrap();
        wait_until("the host is up again", Duration::from_secs(30), || {
            let hosts = fabric.json(&["host", "list"])?;
            Ok(hosts.as_array().unwrap().iter().all(|host| host["state"] == "Up"))
        })
        .unwrap();
    }
    fabric.run(&["service", "delete", "bank", "--wait", "--timeout", "60s"]).unwrap();
    assert!(fabric.json(&["service", "list"]).unwrap().as_array().unwrap().is_empty());
}
