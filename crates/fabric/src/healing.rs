//! Healing: a host is lost, so every instance it carried gets a new VM elsewhere.

use mayfly_model::{EventKind, Health, Host, HostCondition, HostName, Instance, InstanceState, Then};

use crate::mutant::Mutant;
use crate::step::Step;
use crate::{breaker, meter};

/// Events about single instances in one step; for more, the hosts' events tell how many.
const TOLD: usize = 20;

/// Gives up a host whose lease is certainly over: its VMs count as gone, as it has stopped them itself.
pub(crate) fn give_up(step: &mut Step<'_>, name: &HostName) {
    let Some(host) = step.state.hosts.get(name).cloned() else { return };
    let last = match host.condition {
        HostCondition::Suspect { since } => since,
        HostCondition::Up | HostCondition::Lost { .. } => step.now,
    };
    step.put_host(Host { condition: HostCondition::Lost { since: step.now }, ..Host::clone(&host) });
    let instances: Vec<_> = step.state.instances_on(name).cloned().collect();
    let silent = step.now.since(last) as f64 / 1000.0;
    let message =
        format!("lost: no report for {silent:.1} s; instances to be made anew elsewhere: {}", instances.len());
    step.event(EventKind::Host, name, message);
    breaker::note_loss(step, &host, &instances);
    for instance in instances {
        lose(step, &instance, name);
    }
}

/// An instance has lost its VM with its host.
fn lose(step: &mut Step<'_>, instance: &Instance, host: &HostName) {
    let Some(vm) = instance.vm() else { return };
    if !step.planted.is(Mutant::LoseUsage) {
        meter::close(step, &instance.key.deployment.service, vm);
    }
    if matches!(instance.state, InstanceState::Retiring { then: Then::Remove, .. }) {
        crate::instances::bury(step, instance);
        return;
    }
    step.told += 1;
    if step.told <= TOLD {
        step.event(EventKind::Healing, &instance.key, format!("its VM is lost with {host}"));
    }
    let mut health = instance.health.as_deref().cloned().unwrap_or_else(Health::default);
    let window = step.config.healing.window;
    let boots = breaker::is_booting(instance);
    // A host that dies again under an instance that was well is to blame itself; under one that boots it may be the
    // instance's doing: in a small fleet the same two hosts take turns.
    health.lost_with.retain(|(lost, at)| (boots || lost != host) && step.now.since(*at) <= window);
    health.lost_with.push((host.clone(), step.now));
    health.lost_booting.retain(|at| step.now.since(*at) <= window);
    health.lost_booting.extend(boots.then_some(step.now));
    let reason = format!("its VM was lost with {host}");
    let state = InstanceState::Waiting { reason, prefer: None, since: step.now, heals: true };
    let (judged, key) = (health.clone(), instance.key.clone());
    step.put_instance(Instance { state, health: Some(Box::new(health)), ..instance.clone() });
    breaker::judge_instance(step, &key, &judged);
}
