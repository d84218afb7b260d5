//! The breaker (invariant 10): when hosts or first boots fail in a pattern, healing stops, says so, and waits for a
//! person. In 2012 a bug in one package, healed from host to host without a breaker, drained whole clusters.
//!
//! Three patterns trip it. For everything: more hosts lost within the window than the largest fault domain has, and than
//! a share of the fleet. For one deployment: three hosts, not all at once with one fault domain, lost while they were
//! booting an instance of it; one identity that lost its host three times while it was booting, or six times; or an instance
//! that never became ready on three hosts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mayfly_model::breaker::Loss;
use mayfly_model::{
    Admission, Breaker, DeploymentKey, EventKind, Health, Host, HostCondition, HostName, Instance, InstanceKey,
    InstanceState, Scope, ServiceName, Slot, Trip, VmPhase,
};

use crate::command::Rejected;
use crate::mutant::Mutant;
use crate::step::Step;

/// A host is lost with these instances.
pub(crate) fn note_loss(step: &mut Step<'_>, host: &Host, instances: &[Arc<Instance>]) {
    let window = step.config.healing.window;
    let mut breaker = Breaker::clone(&step.state.breaker);
    breaker.losses.retain(|_, loss| step.now.since(loss.at) <= window);
    // One that reboots by plan was empty, and is no sign of anything.
    if matches!(host.admission, Admission::Rebooting { .. }) {
        return;
    }
    let booting: Vec<_> = instances.iter().filter(|one| is_booting(one)).collect();
    let was_lost = |one: &Instance| one.health.as_ref().is_some_and(|health| !health.lost_with.is_empty());
    let again = booting.iter().filter(|one| was_lost(one)).map(|one| scope(&one.key.deployment)).collect();
    let booting: BTreeSet<Scope> = booting.into_iter().map(|one| scope(&one.key.deployment)).collect();
    let loss =
        Loss { at: step.now, domain: host.fault_domain.clone(), booting: booting.clone(), again, forgiven: false };
    breaker.losses.insert(host.name.clone(), loss);
    step.put_breaker(breaker);
    judge_fleet(step);
    for scope in booting {
        judge_boots(step, scope);
    }
}

/// Whether an instance is on its way up, and has not been there yet.
pub(crate) fn is_booting(instance: &Instance) -> bool {
    match &instance.state {
        InstanceState::Placed { phase: VmPhase::Stopped | VmPhase::StoppingRole | VmPhase::StoppingVm, .. } => false,
        InstanceState::Placed { phase, .. } => !phase.has_been_up(),
        InstanceState::Waiting { .. } | InstanceState::Retiring { .. } => false,
    }
}

fn judge_fleet(step: &mut Step<'_>) {
    let hosts = &step.state.hosts;
    let mut sizes: BTreeMap<&str, usize> = BTreeMap::new();
    for host in hosts.values() {
        *sizes.entry(host.fault_domain.as_str()).or_default() += 1;
    }
    let largest = sizes.values().max().copied().unwrap_or(0);
    let share = (hosts.len() * step.config.healing.fleet_percent).div_ceil(100);
    let allowed = largest.max(share);
    let is_lost =
        |name: &&HostName| hosts.get(*name).is_some_and(|host| matches!(host.condition, HostCondition::Lost { .. }));
    let losses = step.state.breaker.losses.iter().filter(|(_, loss)| !loss.forgiven);
    let lost = losses.map(|(name, _)| name).filter(is_lost).count();
    if lost > allowed {
        let minutes = step.config.healing.window / 60_000;
        let why = format!("{lost} of {} hosts were lost within {minutes} minutes; {allowed} may be", hosts.len());
        trip(step, Scope::Fleet, why);
    }
}

fn judge_boots(step: &mut Step<'_>, scope: Scope) {
    let taken: Vec<&Loss> = step.state.breaker.losses.values().filter(|loss| loss.booting.contains(&scope)).collect();
    let domains: BTreeSet<&str> = taken.iter().map(|loss| loss.domain.as_str()).collect();
    let is_no_rack = domains.len() > 1 || taken.iter().any(|loss| loss.again.contains(&scope));
    if taken.len() >= step.config.healing.hosts && is_no_rack {
        let why = format!("{} hosts were lost while they were booting an instance of it", taken.len());
        trip(step, scope, why);
    }
}

/// An instance has lost its VM with its host again. What it dies of while it boots, it is blamed for soon; one that was well
/// each time may just have been where hosts were switched off in turn.
pub(crate) fn judge_instance(step: &mut Step<'_>, key: &InstanceKey, health: &Health) {
    let hosts: BTreeSet<&HostName> = health.lost_with.iter().map(|(host, _)| host).collect();
    // Nobody can tell what one host dies of, again and again.
    if hosts.len() < 2 {
        return;
    }
    let (all, booting, most) = (health.lost_with.len(), health.lost_booting.len(), step.config.healing.hosts);
    if booting >= most || all >= 2 * most {
        let why = format!("{} was lost with its host {} times, one after the other", key.name(), all.max(booting));
        trip(step, scope(&key.deployment), why);
    }
}

/// What healing of a deployment is stopped as.
pub(crate) fn scope(key: &DeploymentKey) -> Scope {
    Scope::Deployment(key.service.clone(), key.slot)
}

/// Stops healing.
pub(crate) fn trip(step: &mut Step<'_>, scope: Scope, why: String) {
    if step.state.breaker.trips.contains_key(&scope) || step.planted.is(Mutant::NoBreaker) {
        return;
    }
    let message = format!("healing has stopped: {why}; look, then `mayfly breaker reset {scope}`");
    step.event(EventKind::Breaker, &scope, message);
    let mut breaker = Breaker::clone(&step.state.breaker);
    breaker.trips.insert(scope, Trip { since: step.now, why });
    step.put_breaker(breaker);
}

/// Lets healing go on; what was counted so far is forgotten.
pub(crate) fn reset(step: &mut Step<'_>, scope: &Scope) -> Result<(), Rejected> {
    if !step.state.breaker.trips.contains_key(scope) {
        let trips: Vec<String> = step.state.breaker.trips.keys().map(Scope::to_string).collect();
        let open = if trips.is_empty() { "nothing".to_owned() } else { trips.join(", ") };
        return Err(Rejected::Conflict(format!("healing of `{scope}` is not stopped; it is stopped for: {open}")));
    }
    clear(step, scope);
    step.event(EventKind::Breaker, scope, "healing goes on");
    Ok(())
}

/// Forgets why healing was stopped, and what was held against the instances concerned.
pub(crate) fn clear(step: &mut Step<'_>, scope: &Scope) {
    let mut breaker = Breaker::clone(&step.state.breaker);
    breaker.trips.remove(scope);
    match scope {
        // What is held against single deployments stays: that the fleet is well says nothing of them.
        Scope::Fleet => {
            breaker.losses.retain(|_, loss| !loss.booting.is_empty());
            breaker.losses.values_mut().for_each(|loss| loss.forgiven = true);
        }
        Scope::Deployment(..) => {
            for loss in breaker.losses.values_mut() {
                loss.booting.remove(scope);
                loss.again.remove(scope);
            }
        }
    }
    if *step.state.breaker != breaker {
        step.put_breaker(breaker);
    }
    let Scope::Deployment(service, slot) = scope else {
        step.state.index.inventory.gains += 1;
        return;
    };
    let key = DeploymentKey { service: service.clone(), slot: *slot };
    let blamed: Vec<_> = step.state.instances_of(&key).filter(|one| one.health.is_some()).cloned().collect();
    for instance in blamed {
        step.put_instance(Instance { health: None, ..Instance::clone(&instance) });
    }
    step.state.index.inventory.gains += 1;
}

/// What is held against a deployment goes with it into the other slot.
pub(crate) fn exchange_slots(step: &mut Step<'_>, service: &ServiceName) {
    let other = |scope: &Scope| match scope {
        Scope::Deployment(name, Slot::Production) if name == service => Scope::Deployment(name.clone(), Slot::Staging),
        Scope::Deployment(name, Slot::Staging) if name == service => Scope::Deployment(name.clone(), Slot::Production),
        scope => scope.clone(),
    };
    let mut breaker = Breaker::clone(&step.state.breaker);
    breaker.trips = breaker.trips.iter().map(|(scope, trip)| (other(scope), trip.clone())).collect();
    for loss in breaker.losses.values_mut() {
        loss.booting = loss.booting.iter().map(other).collect();
        loss.again = loss.again.iter().map(other).collect();
    }
    if *step.state.breaker != breaker {
        step.put_breaker(breaker);
    }
}
