//! The ladder for a sick instance: reboot, then reimage, then move, each after a longer pause than the one before.
//! [`next`] chooses; the rest does.

use mayfly_model::{
    Admission, EventKind, Health, Host, HostName, Instance, InstanceState, Rung, Then, Time, Vm, VmPhase,
};

use crate::breaker;
use crate::core::HealingPolicy;
use crate::instances;
use crate::step::Step;

/// The longest pause between two tries, in ms.
const PAUSE_MAX: u64 = 600_000;
/// Deployments that have to fail on a host before it is taken for the cause.
const DEPLOYMENTS_TO_QUARANTINE: usize = 3;

/// What is to be done with an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// Nothing, or nothing yet.
    Wait,
    /// Its troubles are over and can be forgotten.
    Forget,
    /// Try this.
    Try(Rung),
    /// It has failed on so many hosts that it is not the hosts' fault.
    Blame,
}

/// Chooses what to do with an instance that has been in `phase` since `since`. `patience` is how long a silent guest is
/// waited for, in ms.
pub(crate) fn next(
    phase: &VmPhase,
    since: Time,
    health: Option<&Health>,
    now: Time,
    patience: u64,
    policy: &HealingPolicy,
) -> Act {
    let quiet = now.since(since);
    if !phase.is_sick() {
        let well = matches!(phase, VmPhase::Ready | VmPhase::Stopped) && quiet >= policy.calm;
        return if well && health.is_some() { Act::Forget } else { Act::Wait };
    }
    if *phase == VmPhase::Unresponsive && quiet < patience {
        return Act::Wait;
    }
    let by_host = matches!(phase, VmPhase::FailedStartingVm { .. });
    // The host keeps trying, and may succeed: a full disk is emptied, an image arrives.
    if by_host && quiet < policy.backoff * 2 {
        return Act::Wait;
    }
    let (last, tries, acted) = health.map_or((None, 0, Time(0)), |health| (health.rung, health.tries, health.acted));
    let pause = policy.backoff.saturating_mul(1 << tries.min(10)).min(PAUSE_MAX);
    if tries > 0 && now.since(acted) < pause {
        return Act::Wait;
    }
    let rung = match (phase, last) {
        // Nothing that is done on this host helps.
        _ if by_host => Rung::Move,
        // It has been rebooted often enough.
        (VmPhase::Cycling { .. }, None) | (_, Some(Rung::Reboot)) => Rung::Reimage,
        (_, None) => Rung::Reboot,
        (_, Some(Rung::Reimage | Rung::Move)) => Rung::Move,
    };
    let failed = health.map_or(0, |health| health.failed_on.len());
    // What a host cannot start is no fault of the package.
    if rung == Rung::Move && !by_host && failed + 1 >= policy.hosts { Act::Blame } else { Act::Try(rung) }
}

/// Looks after all instances that are sick or have been lately.
pub(crate) fn run(step: &mut Step<'_>) {
    // What is under way already; what is begun here comes on top.
    let mut healed = None;
    let sick: Vec<_> = step.state.index.sick.iter().filter_map(|key| step.state.instances.get(key)).cloned().collect();
    for instance in sick {
        let InstanceState::Placed { vm, phase, since } = &instance.state else { continue };
        let patience = step.state.role_of(&instance).map_or(0, |(_, role)| role.unresponsive_after());
        let health = instance.health.as_deref();
        match next(phase, *since, health, step.now, patience, &step.config.healing) {
            Act::Wait => {}
            Act::Forget => step.put_instance(Instance { health: None, ..Instance::clone(&instance) }),
            Act::Blame => blame(step, &instance, vm),
            Act::Try(rung) => {
                let busy = *healed.get_or_insert_with(|| instances::being_healed(step));
                if busy < step.config.healing.concurrent && attempt(step, &instance, vm, rung) {
                    healed = Some(busy + 1);
                }
            }
        }
    }
}

/// Tries a rung with an instance. Returns whether that may be done now.
fn attempt(step: &mut Step<'_>, instance: &Instance, vm: &Vm, rung: Rung) -> bool {
    let key = &instance.key;
    let unseen = step.state.hosts.get(&vm.host).is_none_or(|host| host.condition != mayfly_model::HostCondition::Up);
    if unseen || step.is_halted(&key.deployment.service, key.deployment.slot) {
        return false;
    }
    let mut health = instance.health.as_deref().cloned().unwrap_or_default();
    (health.rung, health.acted, health.tries) = (Some(rung), step.now, health.tries + 1);
    let (state, detail) = (instance.state.status(), instance.state.detail().unwrap_or_default().to_owned());
    if rung == Rung::Move && !health.failed_on.contains(&vm.host) {
        health.failed_on.push(vm.host.clone());
    }
    let message = format!("{state} ({detail}): try {}, {}", health.tries, rung.name());
    step.event(EventKind::Repair, key, message);
    let host = vm.host.clone();
    let instance = Instance { health: Some(Box::new(health)), ..instance.clone() };
    match rung {
        Rung::Reboot => instances::restart(step, instance),
        Rung::Reimage => instances::retire(step, instance, Then::Replace { prefer: Some(host) }),
        Rung::Move => {
            instances::retire(step, instance, Then::Replace { prefer: None });
            suspect(step, &host);
        }
    }
    true
}

fn blame(step: &mut Step<'_>, instance: &Instance, vm: &Vm) {
    let mut hosts: Vec<&HostName> = instance.health.iter().flat_map(|health| &health.failed_on).collect();
    hosts.push(&vm.host);
    let hosts: Vec<String> = hosts.into_iter().map(ToString::to_string).collect();
    let why = format!("{} never became ready on {}", instance.key.name(), hosts.join(", "));
    breaker::trip(step, breaker::scope(&instance.key.deployment), why);
}

/// A host on which instances of several deployments have failed takes no more until a person has looked.
fn suspect(step: &mut Step<'_>, name: &HostName) {
    if step.state.hosts.get(name).is_none_or(|host| host.admission != Admission::Open) {
        return;
    }
    let failed = step.state.index.sick.iter().filter(|key| {
        let health = step.state.instances.get(*key).and_then(|one| one.health.as_deref());
        health.is_some_and(|health| health.failed_on.contains(name))
    });
    let deployments: std::collections::BTreeSet<_> = failed.map(|key| key.deployment.clone()).collect();
    let Some(host) = step.state.hosts.get(name).cloned() else { return };
    if deployments.len() < DEPLOYMENTS_TO_QUARANTINE || host.admission != Admission::Open {
        return;
    }
    let why = format!("instances of {} deployments did not become ready on it", deployments.len());
    let message = format!("quarantined: {why}; look, then `mayfly host undrain {name}`");
    step.event(EventKind::Host, name, message);
    let admission = Admission::Quarantined { since: step.now, why };
    step.put_host(Host { admission, ..Host::clone(&host) });
}
