//! Updates, swaps, drains and suspension of real guests, with a visitor who should not notice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mayfly_xtask::visitor::Visitor;
use serde_json::Value;

use crate::Stage;

const SCRIPT: &str = "Mayfly.UserData";

fn setting(name: &str, value: &str) -> String {
    format!("<Setting name=\"{name}\" value=\"{value}\"/>")
}

impl Stage {
    /// The files of a service with one role `web`.
    fn files(&self, count: u32, settings: &str) -> [String; 4] {
        let roles = [("web", count)];
        let (definition, configuration) = (self.definition(&roles), self.configuration(&roles, "hello", settings));
        ["--definition".into(), definition, "--configuration".into(), configuration]
    }

    fn service(&self, verb: &[&str], files: &[String]) -> String {
        let files: Vec<&str> = files.iter().map(String::as_str).collect();
        self.fabric.run(&[&["service"], verb, &files[..]].concat()).unwrap()
    }

    fn deployment(&self, service: &str, slot: &str) -> Value {
        let view = self.fabric.json(&["service", "show", service]).unwrap();
        let deployments = view["deployments"].as_array().unwrap();
        deployments.iter().find(|one| one["slot"] == slot).cloned().unwrap_or_default()
    }

    fn until(&self, what: &str, done: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(120);
        while !done() {
            assert!(Instant::now() < deadline, "not in time: {what}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

#[test]
fn a_service_is_planned_updated_moved_and_swapped_behind_its_address() {
    let stage = Stage::up();
    let wait = ["--wait", "--timeout", "300s"];
    stage.fabric.run(&["service", "create", "shop"]).unwrap();
    let files = stage.files(3, "");
    let plan = stage.service(&["deploy", "shop", "--dry-run"], &files);
    assert!(plan.contains("web_IN_2") && plan.contains("create") && plan.contains("nothing was changed"), "{plan}");
    assert!(stage.fabric.instances("shop").unwrap().is_empty());
    stage.service(&[&["deploy", "shop"], &wait[..]].concat(), &files);
    let why = stage.fabric.run(&["instance", "explain", "shop/web_IN_1"]).unwrap();
    assert!(why.contains("fault domain fd-") && why.contains("fd-1: 1, fd-2: 1, fd-3: 1"), "{why}");
    let vip = stage.deployment("shop", "production")["vip"].as_str().unwrap().to_owned();
    let before = names(&stage);

    let visitor = Visitor::start(&vip);
    // New settings reach the guests while they run.
    let live = stage.files(3, &setting("Mayfly.UnresponsiveSeconds", "100"));
    stage.service(&[&["upgrade", "shop"], &wait[..]].concat(), &live);
    assert_eq!(names(&stage), before);
    // Another script needs new VMs, one update domain at a time.
    let script = stage.files(3, &setting(SCRIPT, "#!/bin/sh&#10;echo new > /dev/console"));
    stage.service(&[&["upgrade", "shop"], &wait[..]].concat(), &script);
    let after = names(&stage);
    assert!(after.iter().all(|name| !before.contains(name)), "{before:?} {after:?}");
    // A host is emptied, rebooted and opened again.
    stage.fabric.run(&["host", "reboot", "host-2"]).unwrap();
    let events = || stage.fabric.run(&["event", "list"]).unwrap();
    stage.until("host-2 reboots", || events().contains("has been rebooted, and is open again"));
    stage.until("all are ready", || stage.deployment("shop", "production")["roles"][0]["ready"] == 3);
    let visits = visitor.finish().unwrap();
    let failed: Vec<_> = visits.iter().filter_map(|visit| visit.page.as_ref().err()).collect();
    // Each instance left the rotation before it was stopped.
    assert!(failed.is_empty(), "{} of {} failed: {failed:?}", failed.len(), visits.len());

    swap(&stage, &vip);

    // Suspended, the disks stay; started, the same VMs are back.
    let vms = |stage: &Stage| -> Vec<Value> {
        let all = stage.fabric.instances("shop").unwrap();
        all.into_iter().filter(|one| one["slot"] == "production").map(|one| one["vm"].clone()).collect()
    };
    let before = vms(&stage);
    stage.fabric.run(&["service", "suspend", "shop"]).unwrap();
    stage.until("suspended", || stage.deployment("shop", "production")["state"] == "Suspended");
    assert_eq!(stage.fabric.instance("shop", "web_IN_0").unwrap()["state"], "StoppedVM");
    stage.fabric.run(&["service", "start", "shop", "--wait"]).unwrap();
    assert_eq!(vms(&stage), before);
    let usage = stage.fabric.run(&["service", "usage"]).unwrap();
    assert!(usage.contains("ExtraSmall"), "{usage}");
    let usage: Value =
        serde_json::from_str(&stage.fabric.run(&["service", "usage", "--output", "json"]).unwrap()).unwrap();
    assert!(
        usage[0]["sent_bytes"].as_u64() > Some(1000) && usage[0]["received_bytes"].as_u64() > Some(1000),
        "{usage}"
    );
}

fn names(stage: &Stage) -> Vec<Value> {
    stage.fabric.instances("shop").unwrap().iter().map(|one| one["computer_name"].clone()).collect()
}

fn swap(stage: &Stage, vip: &str) {
    let files = stage.files(2, "");
    stage.service(&["deploy", "shop", "--slot", "staging", "--wait", "--timeout", "300s"], &files);
    // Ready, and behind their probes on every host.
    std::thread::sleep(Duration::from_secs(2));
    let staging = stage.deployment("shop", "staging")["id"].clone();
    let visitor = Visitor::start(vip);
    for _ in 0..3 {
        std::thread::sleep(Duration::from_secs(1));
        stage.fabric.run(&["service", "swap", "shop"]).unwrap();
    }
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(stage.deployment("shop", "production")["id"], staging);
    assert_eq!(stage.deployment("shop", "production")["vip"], vip);
    let visits = visitor.finish().unwrap();
    let failed: Vec<_> = visits.iter().filter_map(|visit| visit.page.as_ref().err()).collect();
    assert!(visits.len() > 40 && failed.is_empty(), "{} of {} failed: {failed:?}", failed.len(), visits.len());
    stage.fabric.run(&["service", "delete", "shop", "--slot", "staging", "--wait"]).unwrap();
}

#[test]
fn three_controllers_carry_on_while_their_leader_is_killed_every_ten_seconds() {
    let stage = Stage::empty();
    let missing = stage.refused(&["dev", "up", "--controllers", "3", "--store", "embedded"]);
    assert!(missing.contains("--store etcd"), "{missing}");
    stage.fabric.run(&["dev", "up", "--controllers", "3", "--store", "etcd"]).unwrap();
    stage.fabric.run(&["image", "push", crate::image().to_str().unwrap(), "--name", "hello"]).unwrap();
    let over = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        let ended = Arc::clone(&over);
        let fabric = &stage.fabric;
        let killer = scope.spawn(move || {
            let mut gaps = Vec::new();
            while !ended.load(Ordering::SeqCst) {
                let Some(leader) = leader(fabric) else { continue };
                let died = Instant::now();
                kill_process(fabric, &leader);
                while fabric.json(&["host", "list"]).is_err() {
                    std::thread::sleep(Duration::from_millis(20));
                }
                gaps.push(died.elapsed());
                std::thread::sleep(Duration::from_secs(10).saturating_sub(died.elapsed()));
            }
            gaps
        });
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| live_through_it(&stage)));
        over.store(true, Ordering::SeqCst);
        let gaps = killer.join().unwrap();
        println!("no leader for {gaps:?}");
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
        assert!(gaps.len() > 2, "{gaps:?}");
    });
}

/// Deploys, scales, updates and swaps; everything that was acknowledged is there in the end, and nothing twice.
fn live_through_it(stage: &Stage) {
    let wait = ["--wait", "--timeout", "300s"];
    stage.fabric.run(&["service", "create", "shop"]).unwrap();
    stage.service(&[&["deploy", "shop"], &wait[..]].concat(), &stage.files(2, ""));
    stage.fabric.run(&[&["service", "scale", "shop", "web=3"], &wait[..]].concat()).unwrap();
    for _ in 0..3 {
        stage.fabric.run(&[&["instance", "reboot", "shop/web_IN_0"], &wait[..]].concat()).unwrap();
    }
    assert_eq!(stage.fabric.instance("shop", "web_IN_0").unwrap()["reboots"], 3, "each reboot once");
    let script = stage.files(3, &setting(SCRIPT, "#!/bin/sh&#10;true"));
    stage.service(&[&["upgrade", "shop"], &wait[..]].concat(), &script);
    stage.service(&[&["deploy", "shop", "--slot", "staging"], &wait[..]].concat(), &stage.files(1, ""));
    let staging = stage.deployment("shop", "staging")["id"].clone();
    stage.fabric.run(&["service", "swap", "shop"]).unwrap();
    assert_eq!(stage.deployment("shop", "production")["id"], staging);
    assert_eq!(stage.fabric.instances("shop").unwrap().len(), 4);
    // No host fenced itself, and none was given up, for want of a leader.
    let events = stage.fabric.run(&["event", "list"]).unwrap();
    assert!(!events.contains("lost: no report"), "{events}");
}

/// The number of the controller that leads, by its own log.
fn leader(fabric: &mayfly_xtask::fabric::DevFabric) -> Option<String> {
    ["controller", "controller-2", "controller-3"].into_iter().map(str::to_owned).find(|name| {
        let log = std::fs::read_to_string(fabric.state().join(name).join("controller.log")).unwrap_or_default();
        let last = |text: &str| log.rfind(text);
        last("the controller is up") > last("another controller leads").max(last("ended and is started again"))
    })
}

fn kill_process(fabric: &mayfly_xtask::fabric::DevFabric, name: &str) {
    let pid = std::fs::read_to_string(fabric.state().join(name).join("controller.pid")).unwrap();
    let pid = nix::unistd::Pid::from_raw(pid.trim().parse().unwrap());
    // It may have ended by itself.
    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
}
