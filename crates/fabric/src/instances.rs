//! Instances: rebooting, reimaging, retiring, and giving those that wait a place.

use std::collections::HashSet;

use mayfly_model::{EventKind, Incarnation, Instance, InstanceKey, InstanceState, Then, Vm, VmId, VmPhase};

use crate::address::free_dip;
use crate::command::Rejected;
use crate::core::Config;
use crate::entropy::Entropy;
use crate::placement::Room;
use crate::record::Record;
use crate::state::Step;

/// Asks for a restart of the guest that keeps its disk.
pub(crate) fn reboot(step: &mut Step<'_>, key: &InstanceKey) -> Result<(), Rejected> {
    let instance = find(step, key)?;
    let InstanceState::Placed { mut vm, .. } = instance.state else {
        return Err(no_vm(&instance, "rebooted"));
    };
    vm.reboots += 1;
    vm.started = step.now;
    let state = InstanceState::Placed { vm, phase: VmPhase::Restarting, since: step.now };
    step.put(Record::Instance(Box::new(Instance { state, ..instance })));
    step.event(EventKind::Command, key, "reboot: the guest restarts and keeps its disk");
    Ok(())
}

/// Asks for a new VM with an empty differencing disk.
pub(crate) fn reimage(step: &mut Step<'_>, key: &InstanceKey) -> Result<(), Rejected> {
    let instance = find(step, key)?;
    let InstanceState::Placed { vm, .. } = instance.state.clone() else {
        return Err(no_vm(&instance, "reimaged"));
    };
    step.event(EventKind::Command, key, "reimage: a new empty differencing disk over the base image");
    let prefer = Some(vm.host.clone());
    retire(step, instance, vm, Then::Replace { prefer });
    Ok(())
}

fn find(step: &Step<'_>, key: &InstanceKey) -> Result<Instance, Rejected> {
    let not_found = || Rejected::NotFound { kind: "instance", name: key.to_string() };
    step.state.instances.get(key).filter(|instance| !instance.is_leaving()).cloned().ok_or_else(not_found)
}

fn no_vm(instance: &Instance, what: &str) -> Rejected {
    if matches!(instance.state, InstanceState::Retiring { .. }) {
        return Rejected::Conflict(format!("{} is being replaced by a new VM already", instance.key));
    }
    let state = instance.state.name();
    let detail = instance.state.detail().map_or_else(String::new, |detail| format!(": {detail}"));
    Rejected::Conflict(format!("{} has no VM that could be {what}: it is in state {state}{detail}", instance.key))
}

/// Takes a VM away; `then` follows when its host has no trace of it any more.
pub(crate) fn retire(step: &mut Step<'_>, instance: Instance, vm: Vm, then: Then) {
    // The record below is the next revision if it changes what the host sees; a VM that was going already is not new.
    let since = match &instance.state {
        InstanceState::Retiring { since, .. } => *since,
        InstanceState::Waiting { .. } | InstanceState::Placed { .. } => Incarnation(step.state.meta.revision.0 + 1),
    };
    let state = InstanceState::Retiring { vm, then, since };
    step.put(Record::Instance(Box::new(Instance { state, ..instance })));
}

/// Makes an instance go away for good.
pub(crate) fn remove(step: &mut Step<'_>, instance: Instance) {
    match instance.state.clone() {
        InstanceState::Waiting { .. } => bury(step, &instance),
        InstanceState::Placed { vm, .. } | InstanceState::Retiring { vm, .. } => {
            retire(step, instance, vm, Then::Remove);
        }
    }
}

/// Deletes an instance whose VM is gone, and remembers its generation in case the identity comes back.
pub(crate) fn bury(step: &mut Step<'_>, instance: &Instance) {
    step.delete_instance(&instance.key);
    let deployment = step.state.deployments.get(&instance.key.deployment).filter(|one| !one.deleting).cloned();
    if let Some(mut deployment) = deployment {
        deployment.generations.insert(instance.key.name(), instance.generation);
        step.put(Record::Deployment(Box::new(deployment)));
    }
}

/// The VM of a retiring instance is gone.
pub(crate) fn vm_gone(step: &mut Step<'_>, instance: Instance) {
    let InstanceState::Retiring { then, .. } = instance.state.clone() else { return };
    match then {
        Then::Remove => bury(step, &instance),
        Then::Replace { prefer } => {
            let state = InstanceState::Waiting { reason: "its new VM is being placed".into(), prefer, since: step.now };
            step.put(Record::Instance(Box::new(Instance { state, ..instance })));
        }
    }
}

/// Brings everything to rest that needs no news from outside: places those that wait, and buries what is empty.
pub(crate) fn settle(step: &mut Step<'_>, config: &Config, entropy: &mut Entropy) {
    place_waiting(step, config, entropy);
    crate::services::bury(step);
}

fn place_waiting(step: &mut Step<'_>, config: &Config, entropy: &mut Entropy) {
    let waiting: Vec<Instance> = step
        .state
        .instances
        .values()
        .filter(|instance| matches!(instance.state, InstanceState::Waiting { .. }))
        .cloned()
        .collect();
    if waiting.is_empty() {
        return;
    }
    let choices: Vec<_> = {
        let mut room = Room::of(step.state);
        waiting
            .iter()
            .map(|instance| {
                let InstanceState::Waiting { prefer, .. } = &instance.state else { return None };
                let needed = step.state.resources_of(&instance.key);
                Some(room.place(&instance.key.deployment, &instance.key.role, needed, prefer.as_ref()))
            })
            .collect()
    };
    let mut taken = HashSet::new();
    for (instance, choice) in waiting.into_iter().zip(choices) {
        match choice {
            Some(Ok(host)) => {
                let Some((dip, next)) = free_dip(step.state, config.dips, &taken) else {
                    wait(step, instance, "no private address is free".to_owned());
                    continue;
                };
                taken.insert(dip);
                step.state.meta.next_dip = next;
                let id = VmId(step.state.meta.next_vm);
                step.state.meta.next_vm += 1;
                let computer_name = entropy.computer_name();
                let vm = Vm { id, host, computer_name, dip, reboots: 0, started: step.now };
                put_placed(step, instance, vm);
            }
            Some(Err(why)) => wait(step, instance, why.to_string()),
            None => {}
        }
    }
}

fn put_placed(step: &mut Step<'_>, instance: Instance, vm: Vm) {
    let generation = instance.generation + 1;
    let message =
        format!("{} on {} as {} at {}, disk generation {generation}", vm.id, vm.host, vm.computer_name, vm.dip);
    let key = instance.key.clone();
    let phase = VmPhase::Creating { detail: "waiting for its host".to_owned() };
    let state = InstanceState::Placed { vm, phase, since: step.now };
    step.put(Record::Instance(Box::new(Instance { generation, state, ..instance })));
    step.event(EventKind::Placed, key, message);
}

fn wait(step: &mut Step<'_>, instance: Instance, why: String) {
    let InstanceState::Waiting { reason, prefer, since } = &instance.state else { return };
    if *reason != why {
        step.event(EventKind::Waiting, &instance.key, why.clone());
        let state = InstanceState::Waiting { reason: why, prefer: prefer.clone(), since: *since };
        step.put(Record::Instance(Box::new(Instance { state, ..instance })));
    }
}
