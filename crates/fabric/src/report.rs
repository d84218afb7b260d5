//! What a host's report changes.

use std::collections::HashMap;

use mayfly_model::{
    Admission, EventKind, Expectation, Health, Host, HostCondition, HostName, HostReport, Instance, InstanceState,
    Resources, Vm, VmPhase, VmReport,
};

use crate::instances;
use crate::meter;
use crate::mutant::Mutant;
use crate::state::State;
use crate::step::Step;

/// Takes a host's report.
pub(crate) fn apply(step: &mut Step<'_>, report: &HostReport) {
    register(step, report);
    tell_incidents(step, report);
    let seen: HashMap<_, _> = report.vms.iter().map(|vm| (vm.vm, vm)).collect();
    if step.state.meta.restored.is_some() {
        step.state.index.listed.insert(report.host.clone(), seen.keys().copied().collect());
    }
    let instances: Vec<_> = step.state.instances_on(&report.host).cloned().collect();
    for instance in instances {
        let seen = instance.vm().and_then(|vm| seen.get(&vm.id));
        let instance = match seen {
            Some(seen) => meter::hear(step, instance, seen),
            None => instance,
        };
        match (&instance.state, seen) {
            (InstanceState::Placed { .. }, Some(seen)) => observe(step, &instance, seen),
            (InstanceState::Retiring { since, .. }, None) if report.applied >= *since => {
                instances::vm_gone(step, &instance);
            }
            _ => {}
        }
    }
}

fn register(step: &mut Step<'_>, report: &HostReport) {
    let known = step.state.hosts.get(&report.host).cloned();
    let known = known.as_deref();
    let number = known.map_or(step.state.meta.next_host + 1, |host| host.number);
    let is_back = known.is_some_and(|host| host.boot_id != report.boot_id);
    let is_over = |admission: &Admission| match admission {
        Admission::Rebooting { .. } => is_back,
        Admission::Leaving => true,
        Admission::Open | Admission::Draining { .. } | Admission::Quarantined { .. } => false,
    };
    let admission = known.map(|host| host.admission.clone()).filter(|admission| !is_over(admission));
    let overcommit = step.config.overcommit;
    let double = double_of(step.state, report);
    if let Some(other) = &double
        && known.is_none_or(|host| host.boot_id != report.boot_id || host.tunnel_key.is_some())
    {
        let message = format!("has the address or the tunnel key of {other}, so the others make no tunnel to it");
        step.event(EventKind::Host, &report.host, message);
    }
    tell_other_transit(step, report, known);
    let host = Host {
        name: report.host.clone(),
        number,
        fault_domain: report.facts.fault_domain.clone(),
        address: report.facts.address,
        capacity: Resources {
            cpu_milli: report.facts.capacity.cpu_milli * overcommit.cpu_percent / 100,
            memory_mib: report.facts.capacity.memory_mib * overcommit.memory_percent / 100,
        },
        labels: report.facts.labels.clone(),
        features: report.facts.features.clone(),
        images: report.facts.images.clone(),
        condition: HostCondition::Up,
        admission: admission.unwrap_or_default(),
        registered: known.map_or(step.now, |host| host.registered),
        boot_id: report.boot_id,
        voter: known.map_or(step.planted.is(Mutant::HastyVoters), |host| host.voter),
        voted: known.map_or(step.planted.is(Mutant::HastyVoters), |host| host.voted),
        last_incident: known.map_or(0, |host| host.last_incident),
        transit: Some(report.facts.transit),
        tunnel_key: report.facts.tunnel_key.filter(|_| double.is_none()),
    };
    let message = match known {
        Some(known) if *known == host => return,
        None => Some(format!("new in fault domain {}", host.fault_domain)),
        Some(known) if matches!(known.admission, Admission::Rebooting { .. }) && is_back => {
            Some("has been rebooted, and is open again".to_owned())
        }
        Some(known) if matches!(known.condition, HostCondition::Lost { .. }) => Some("came back".to_owned()),
        Some(known) if matches!(known.condition, HostCondition::Suspect { .. }) => Some("reports again".to_owned()),
        Some(_) if is_back => {
            let guests = step.state.instances_on(&report.host).count();
            Some(format!("was started again within its lease; its guests boot again from their disks: {guests}"))
        }
        Some(_) => None,
    };
    step.state.meta.next_host = step.state.meta.next_host.max(number);
    step.put_host(host);
    if let Some(message) = message {
        step.event(EventKind::Host, &report.host, message);
    }
}

/// Says once of a host that it carries packets in another way than the others.
fn tell_other_transit(step: &mut Step<'_>, report: &HostReport, known: Option<&Host>) {
    let own = report.facts.transit;
    if known.is_some_and(|host| host.boot_id == report.boot_id && host.transit == Some(own)) {
        return;
    }
    let there = step.state.hosts.values().filter(|host| !matches!(host.condition, HostCondition::Lost { .. }));
    let others = there.filter(|host| host.name != report.host).filter_map(|host| Some((&host.name, host.transit?)));
    if let Some((other, theirs)) = others.into_iter().find(|(_, theirs)| *theirs != own) {
        let message = format!(
            "its configuration says \"transit\": \"{own}\", that of {other} \"{theirs}\": their guests do not reach each other"
        );
        step.event(EventKind::Host, &report.host, message);
    }
}

/// Another host whose address or key a report claims: whoever has it could read and say what is that one's.
fn double_of(state: &State, report: &HostReport) -> Option<HostName> {
    let key = report.facts.tunnel_key?;
    let known = state.hosts.get(&report.host);
    if known.is_some_and(|host| host.tunnel_key == Some(key) && host.address == report.facts.address) {
        // That was looked at when it was new.
        return None;
    }
    let others = state.hosts.values().filter(|host| host.name != report.host && host.tunnel_key.is_some());
    let mut there = others.filter(|host| !matches!(host.condition, HostCondition::Lost { .. }));
    let other = there.find(|host| host.tunnel_key == Some(key) || host.address == report.facts.address);
    other.map(|host| host.name.clone())
}

/// Makes events of what went wrong on a host, each once.
fn tell_incidents(step: &mut Step<'_>, report: &HostReport) {
    let Some(host) = step.state.hosts.get(&report.host).cloned() else { return };
    let mut last = host.last_incident;
    for incident in &report.incidents {
        if incident.number > last {
            last = incident.number;
            step.event(EventKind::Host, &report.host, incident.message.clone());
        }
    }
    if last != host.last_incident {
        step.put_host(Host { last_incident: last, ..Host::clone(&host) });
    }
}

fn observe(step: &mut Step<'_>, instance: &Instance, seen: &VmReport) {
    let InstanceState::Placed { vm, phase, since } = &instance.state else { return };
    let health = crashes(step, instance, vm, seen);
    let window = step.config.healing.window;
    let recent = health
        .as_ref()
        .or(instance.health.as_deref())
        .map_or(0, |health| health.crashes.iter().filter(|at| step.now.since(**at) <= window).count());
    let expected = Expectation {
        reboots: vm.reboots,
        on: !instance.stopped && step.state.deployments.get(&instance.key.deployment).is_none_or(|one| one.is_on()),
        cycling: recent >= step.config.healing.crashes,
        started_for: step.now.since(vm.started),
        start_timeout: step.state.start_timeout(instance),
    };
    let next = phase.apply(seen, expected);
    if next == *phase && vm.restarts == seen.restarts && seen.reboots <= vm.reboots {
        return;
    }
    if next.status() != phase.status() {
        let message = match next.detail() {
            Some(detail) => format!("{}: {detail}", next.status()),
            None => next.status().to_string(),
        };
        step.event(EventKind::State, &instance.key, message);
    }
    if next == VmPhase::Ready && *phase != VmPhase::Ready {
        // One that waits for its turn to be healed may have it now.
        step.state.index.inventory.gains += u64::from(!step.state.index.waiting.is_empty());
    }
    let since = if next.status() == phase.status() { *since } else { step.now };
    let started = if phase.has_been_up() && !next.has_been_up() { step.now } else { vm.started };
    // Records of a backup do not know of the last reboots; the next one has to be one more than those.
    let reboots = vm.reboots.max(seen.reboots);
    let vm = Vm { started, restarts: seen.restarts, reboots, ..vm.clone() };
    let health = health.map(Box::new).or_else(|| instance.health.clone());
    let state = InstanceState::Placed { vm, phase: next, since };
    step.put_instance(Instance { state, health, ..instance.clone() });
}

/// What is known of an instance's crashes now, if it has crashed again.
fn crashes(step: &Step<'_>, instance: &Instance, vm: &Vm, seen: &VmReport) -> Option<Health> {
    if seen.restarts <= vm.restarts {
        return None;
    }
    let mut health = instance.health.as_deref().cloned().unwrap_or_default();
    let (window, most) = (step.config.healing.window, step.config.healing.crashes);
    health.crashes.retain(|at| step.now.since(*at) <= window);
    health.crashes.push(step.now);
    if health.crashes.len() > most {
        health.crashes.drain(..health.crashes.len() - most);
    }
    Some(health)
}
