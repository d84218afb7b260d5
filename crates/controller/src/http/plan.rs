//! What a command would do, as people read it.

use mayfly_api::{PlanStep, PlanView};
use mayfly_fabric::{Change, Core, Record, RecordId};
use mayfly_model::{Instance, InstanceState, Then};

/// What these changes, which were taken back, would have done to instances.
pub(super) fn view(core: &Core, changes: &[Change]) -> PlanView {
    let mut steps: Vec<PlanStep> = Vec::new();
    for change in changes {
        let step = match change {
            Change::Put(Record::Instance(new)) => step(core, new),
            Change::Delete(RecordId::Instance(key)) => Some(PlanStep::of(key.name(), "remove", None)),
            _ => None,
        };
        if let Some(step) = step {
            // Of several changes of one instance the last counts.
            steps.retain(|before| before.instance != step.instance);
            steps.push(step);
        }
    }
    let events = changes.iter().filter_map(|change| match change {
        Change::Put(Record::Event(event)) if event.kind == mayfly_model::EventKind::Command => {
            Some(event.message.clone())
        }
        _ => None,
    });
    PlanView { summary: events.collect(), steps }
}

fn step(core: &Core, new: &Instance) -> Option<PlanStep> {
    let old = core.state().instances().get(&new.key);
    let old_vm = old.and_then(|old| old.vm());
    let (action, vm) = match &new.state {
        InstanceState::Waiting { .. } => ("wait", None),
        InstanceState::Placed { vm, .. } => match old_vm {
            Some(old) if old.id == vm.id && old.reboots < vm.reboots => ("reboot", Some(vm)),
            Some(old) if old.id == vm.id => ("keep running", Some(vm)),
            _ => ("create", Some(vm)),
        },
        InstanceState::Retiring { then: Then::Remove, vm, .. } => ("remove", Some(vm)),
        InstanceState::Retiring { vm, .. } => ("replace", Some(vm)),
    };
    let host = vm.map(|vm| vm.host.clone());
    let domain = host.as_ref().and_then(|host| core.state().hosts().get(host)).map(|host| host.fault_domain.clone());
    Some(PlanStep {
        instance: new.key.name(),
        action: action.to_owned(),
        host: host.map(|host| host.to_string()),
        fault_domain: domain,
        update_domain: Some(new.update_domain),
        detail: new.state.detail().filter(|_| action == "wait").map(str::to_owned),
    })
}
