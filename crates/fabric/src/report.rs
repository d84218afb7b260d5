//! What a host's report changes.

use mayfly_model::{EventKind, Host, HostCondition, HostReport, Instance, InstanceState, VmReport};

use crate::instances;
use crate::record::Record;
use crate::state::Step;

/// Takes a host's report.
pub(crate) fn apply(step: &mut Step<'_>, report: &HostReport) {
    register(step, report);
    tell_incidents(step, report);
    let instances: Vec<Instance> = step.state.instances_on(&report.host).cloned().collect();
    for instance in instances {
        let seen = instance.vm().and_then(|vm| report.vms.iter().find(|seen| seen.vm == vm.id));
        match (&instance.state, seen) {
            (InstanceState::Placed { .. }, Some(seen)) => observe(step, instance, seen),
            (InstanceState::Retiring { since, .. }, None) if report.applied >= *since => {
                instances::vm_gone(step, instance);
            }
            _ => {}
        }
    }
}

fn register(step: &mut Step<'_>, report: &HostReport) {
    let known = step.state.hosts.get(&report.host);
    let number = known.map_or(step.state.meta.next_host + 1, |host| host.number);
    let host = Host {
        name: report.host.clone(),
        number,
        fault_domain: report.facts.fault_domain.clone(),
        address: report.facts.address,
        capacity: report.facts.capacity,
        condition: HostCondition::Up,
        registered: known.map_or(step.now, |host| host.registered),
        boot_id: report.boot_id,
        last_incident: known.map_or(0, |host| host.last_incident),
    };
    let message = match known {
        Some(known) if *known == host => return,
        None => Some(format!("new in fault domain {}", host.fault_domain)),
        Some(known) if matches!(known.condition, HostCondition::Lost { .. }) => Some("came back".to_owned()),
        Some(known) if matches!(known.condition, HostCondition::Suspect { .. }) => Some("reports again".to_owned()),
        Some(known) if known.boot_id != report.boot_id => {
            let guests = step.state.instances_on(&report.host).count();
            Some(format!("was started again within its lease; its guests boot again from their disks: {guests}"))
        }
        Some(_) => None,
    };
    step.state.meta.next_host = step.state.meta.next_host.max(number);
    step.put(Record::Host(host));
    if let Some(message) = message {
        step.event(EventKind::Host, &report.host, message);
    }
}

/// Makes events of what went wrong on a host, each once.
fn tell_incidents(step: &mut Step<'_>, report: &HostReport) {
    let Some(mut host) = step.state.hosts.get(&report.host).cloned() else { return };
    for incident in &report.incidents {
        if incident.number > host.last_incident {
            host.last_incident = incident.number;
            step.event(EventKind::Host, &report.host, incident.message.clone());
        }
    }
    if step.state.hosts.get(&report.host) != Some(&host) {
        step.put(Record::Host(host));
    }
}

fn observe(step: &mut Step<'_>, instance: Instance, seen: &VmReport) {
    let InstanceState::Placed { vm, phase, .. } = &instance.state else { return };
    let timeout = step.state.start_timeout(&instance.key);
    let next = phase.apply(seen, vm.reboots, step.now.since(vm.started), timeout);
    if next == *phase {
        return;
    }
    if next.name() != phase.name() {
        let message = match next.detail() {
            Some(detail) => format!("{}: {detail}", next.name()),
            None => next.name().to_owned(),
        };
        step.event(EventKind::State, &instance.key, message);
    }
    let since = if next.name() == phase.name() { since_of(&instance) } else { step.now };
    let mut vm = vm.clone();
    if phase.has_been_up() && !next.has_been_up() {
        vm.started = step.now;
    }
    let state = InstanceState::Placed { vm, phase: next, since };
    step.put(Record::Instance(Box::new(Instance { state, ..instance })));
}

fn since_of(instance: &Instance) -> mayfly_model::Time {
    match &instance.state {
        InstanceState::Placed { since, .. } | InstanceState::Waiting { since, .. } => *since,
        InstanceState::Retiring { vm, .. } => vm.started,
    }
}
