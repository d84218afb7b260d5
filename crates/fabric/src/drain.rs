//! Draining: a host's instances move away, one update domain of each deployment at a time; then it may be rebooted.

use std::collections::BTreeSet;

use mayfly_model::{Admission, DeploymentKey, EventKind, Host, HostName, InstanceState};

use crate::command::Rejected;
use crate::instances;
use crate::step::Step;

/// Most instances that move at a time.
const MOVES: usize = 64;

/// Begins to drain a host.
pub(crate) fn begin(step: &mut Step<'_>, name: &HostName, reboot: bool) -> Result<(), Rejected> {
    let host = find(step, name)?;
    if matches!(host.admission, Admission::Draining { reboot: before, .. } if before == reboot) {
        return Err(Rejected::Conflict(format!("{name} is being drained already")));
    }
    let then = if reboot { ", then it reboots" } else { "" };
    let count = step.state.instances_on(name).count();
    step.event(EventKind::Command, name, format!("drained: instances to move away: {count}{then}"));
    let admission = Admission::Draining { since: step.now, reboot };
    step.put_host(Host { admission, ..host });
    Ok(())
}

/// Opens a host again.
pub(crate) fn end(step: &mut Step<'_>, name: &HostName) -> Result<(), Rejected> {
    let host = find(step, name)?;
    if host.admission == Admission::Open {
        return Err(Rejected::Conflict(format!("{name} is open already")));
    }
    step.event(EventKind::Command, name, "open again");
    step.put_host(Host { admission: Admission::Open, ..host });
    Ok(())
}

fn find(step: &Step<'_>, name: &HostName) -> Result<Host, Rejected> {
    let host = step.state.hosts.get(name);
    host.map(|host| Host::clone(host)).ok_or_else(|| Rejected::NotFound { kind: "host", name: name.to_string() })
}

/// Moves what may move now.
pub(crate) fn run(step: &mut Step<'_>) {
    if step.state.index.draining.is_empty() {
        return;
    }
    let mut touched: BTreeSet<DeploymentKey> = BTreeSet::new();
    let draining: Vec<HostName> = step.state.index.draining.iter().cloned().collect();
    let mut moves = 0;
    for name in draining {
        let standing: Vec<_> = step.state.instances_on(&name).cloned().collect();
        if standing.is_empty() {
            reboot(step, &name);
        }
        for instance in standing {
            let InstanceState::Placed { .. } = &instance.state else { continue };
            let deployment = instance.key.deployment.clone();
            let first = !touched.contains(&deployment);
            if moves >= MOVES || !first || !instances::may_disturb(step, &instance) {
                continue;
            }
            if instances::move_away(step, &instance) {
                touched.insert(deployment);
                moves += 1;
                let lost = if instance.stopped { "; it was stopped, and its disk is not kept" } else { "" };
                let message = format!("moves away from {name}, which is being drained{lost}");
                step.event(EventKind::Repair, &instance.key, message);
            }
        }
    }
}

/// Asks an empty host to reboot, once.
fn reboot(step: &mut Step<'_>, name: &HostName) {
    let Some(host) = step.state.hosts.get(name).cloned() else { return };
    if !matches!(host.admission, Admission::Draining { reboot: true, .. }) {
        return;
    }
    step.event(EventKind::Host, name, "empty: it reboots now");
    let admission = Admission::Rebooting { since: step.now };
    step.put_host(Host { admission, ..Host::clone(&host) });
}
