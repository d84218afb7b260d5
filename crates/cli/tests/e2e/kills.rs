//! Agent, controller and disk server killed with -9 while a service grows: every acknowledged command is carried out,
//! and running guests are found again.

use std::process::Stdio;
use std::time::Duration;

use mayfly_xtask::visitor::Visitor;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::Stage;

#[test]
fn every_process_may_be_killed_at_each_step_of_a_deployment() {
    let stage = Stage::up();
    let fabric = &stage.fabric;
    stage.deploy("bank", &[("web", 2)]);
    let first = names(&fabric.instances("bank").unwrap());
    let steps = [
        (3, "internal controller ", 0),
        (4, "internal host-agent", 200),
        (5, "internal controller ", 700),
        (6, "internal host-agent", 1500),
        (4, "internal disk-server", 300),
        (5, "internal host-agent", 3000),
    ];
    for (count, victim, delay) in steps {
        let scale = format!("web={count}");
        let mut waiting = fabric.command(&["service", "scale", "bank", &scale, "--wait", "--timeout", "240s"]);
        // The command may come before the kill or find no controller; either way it has to say the truth.
        let child = waiting.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        let victims = fabric.processes(victim);
        assert!(!victims.is_empty() || delay > 0, "there is no {victim}");
        for pid in victims {
            // It may have been started again meanwhile.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let output = child.wait_with_output().unwrap();
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(errors.contains("cannot be reached"), "{victim} killed after {delay} ms: {errors}");
            std::thread::sleep(Duration::from_secs(1));
            fabric.run(&["service", "scale", "bank", &scale, "--wait", "--timeout", "240s"]).unwrap();
        }
        assert_eq!(fabric.instances("bank").unwrap().len(), count, "{victim} killed after {delay} ms");
    }
    let last = names(&fabric.instances("bank").unwrap());
    assert!(first.iter().all(|name| last.contains(name)), "a running guest was lost: {first:?}, then {last:?}");
}

#[test]
fn visitors_do_not_notice_that_agents_and_controller_are_killed() {
    let stage = Stage::up();
    let fabric = &stage.fabric;
    stage.deploy("bank", &[("web", 3)]);
    std::thread::sleep(Duration::from_secs(3));
    let visitor = Visitor::start(&fabric.vip("bank").unwrap());
    for victim in ["internal host-agent", "internal controller ", "internal disk-server"] {
        let victims = fabric.processes(victim);
        assert!(!victims.is_empty(), "there is no {victim}");
        for pid in victims {
            kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
            std::thread::sleep(Duration::from_secs(2));
        }
    }
    let visits = visitor.finish().unwrap();
    let failed = visits.iter().filter(|visit| visit.page.is_err()).count();
    // A request may meet a guest just when all of the machine's cores are busy starting processes.
    assert!(failed * 50 <= visits.len(), "{failed} of {} requests failed", visits.len());
}

fn names(instances: &[Value]) -> Vec<String> {
    instances.iter().map(|one| one["computer_name"].as_str().unwrap_or_default().to_owned()).collect()
}
