//! What a command would do, as people read it.

use mayfly_api::{PlanStep, PlanView};
use mayfly_fabric::{Change, Core, Record, RecordId, role_change};
use mayfly_model::{Deployment, EventKind, Instance, InstanceState, RoleChange, Then};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What these changes, which were taken back, would have done to instances.
pub(super) fn view(core: &Core, changes: &[Change]) -> PlanView {
    let mut steps: Vec<PlanStep> = Vec::new();
    let reasons: BTreeMap<&str, &str> = changes.iter().filter_map(reason).collect();
    for change in changes {
        let step = match change {
            Change::Put(Record::Instance(new)) => {
                let reason = reasons.get(new.key.to_string().as_str()).map(|why| (*why).to_owned());
                step(core, new).map(|step| PlanStep { detail: step.detail.or(reason), ..step })
            }
            Change::Delete(RecordId::Instance(key)) => Some(PlanStep::of(key.name(), "remove", None)),
            _ => None,
        };
        if let Some(step) = step {
            // Of several changes of one instance the last counts.
            steps.retain(|before| before.instance != step.instance);
            steps.push(step);
        }
    }
    let updated = changes.iter().rev().find_map(|change| match change {
        Change::Put(Record::Deployment(new)) if new.upgrade.is_some() => Some(new),
        _ => None,
    });
    if let Some(new) = updated {
        steps.extend(later(core, new, &steps));
    }
    steps.sort_by(|a, b| (a.update_domain, &a.instance).cmp(&(b.update_domain, &b.instance)));
    let events = changes.iter().filter_map(|change| match change {
        Change::Put(Record::Event(event)) if event.kind == EventKind::Command => Some(event.message.clone()),
        _ => None,
    });
    PlanView { summary: events.collect(), steps }
}

/// Why an instance would stand where it would: what the core says of a placement in a plan.
fn reason(change: &Change) -> Option<(&str, &str)> {
    match change {
        Change::Put(Record::Event(event)) if event.kind == EventKind::Placed => Some((&event.subject, &event.message)),
        _ => None,
    }
}

/// What an update does later, when the update domains have their turn.
fn later(core: &Core, new: &Deployment, now: &[PlanStep]) -> Vec<PlanStep> {
    let instances = core.state().instances_of(&new.key).filter(|one| !one.is_leaving());
    let left = instances.filter(|one| !now.iter().any(|step| step.instance == one.key.name()));
    let step = |one: &Arc<Instance>| {
        let action = match role_change(core.state().version_of(one), &new.version, &one.key.role) {
            RoleChange::None => "keep running",
            RoleChange::Live => "new settings",
            RoleChange::Reboot => "reboot",
            RoleChange::Replace => "replace",
        };
        let host = one.vm().map(|vm| vm.host.clone());
        let domain = host.as_ref().and_then(|host| core.state().hosts().get(host));
        PlanStep {
            instance: one.key.name(),
            action: action.to_owned(),
            fault_domain: domain.map(|host| host.fault_domain.clone()),
            host: host.map(|host| host.to_string()),
            update_domain: Some(one.update_domain),
            detail: Some(format!("when update domain {} has its turn", one.update_domain)),
        }
    };
    left.map(step).collect()
}

fn step(core: &Core, new: &Instance) -> Option<PlanStep> {
    let old = core.state().instances().get(&new.key);
    let old_vm = old.and_then(|old| old.vm());
    let (action, vm) = match &new.state {
        InstanceState::Waiting { .. } => ("wait", None),
        InstanceState::Placed { vm, .. } => match old_vm {
            Some(old) if old.id == vm.id && old.reboots < vm.reboots => ("reboot", Some(vm)),
            Some(old_vm) if old_vm.id == vm.id && old.is_some_and(|old| old.version != new.version) => {
                ("new settings", Some(vm))
            }
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
        detail: match action {
            "wait" => new.state.detail().map(str::to_owned),
            "replace" => {
                Some("its VM and disk; the next one stands where there is room then, here if there is".to_owned())
            }
            "new settings" => Some("without a restart".to_owned()),
            _ => None,
        },
    })
}
