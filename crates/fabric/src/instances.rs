//! Instances: rebooting, reimaging, retiring, and giving those that wait a place.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use arcstr::{ArcStr, literal};
use mayfly_model::{
    Deployment, EventKind, Health, HostName, Incarnation, Instance, InstanceKey, InstanceState, Scope, Spread, Then,
    Vm, VmId, VmPhase,
};

use crate::address::next_free;
use crate::because::because;
use crate::command::Rejected;
use crate::inventory::RoleRef;
use crate::meter;
use crate::mutant::Mutant;
use crate::no_room::NoRoom;
use crate::placement::Ask;
use crate::record::{Record, RecordId};
use crate::state::State;
use crate::step::Step;

/// Placements of one step that are told one by one; for more, one event tells how many. Those of new instances are less
/// of a surprise than those of instances that had a VM before.
const TOLD: usize = 20;
const TOLD_OF_NEW: usize = 4;
/// The same for a plan, which is made to be read.
const TOLD_OF_PLAN: usize = 1000;
/// What a VM does whose host has not said anything of it yet.
const WAITING_FOR_HOST: ArcStr = literal!("waiting for its host");

/// Asks for a restart of the guest that keeps its disk.
pub(crate) fn reboot(step: &mut Step<'_>, key: &InstanceKey) -> Result<(), Rejected> {
    let instance = find(step, key)?;
    if !matches!(instance.state, InstanceState::Placed { .. }) {
        return Err(no_vm(&instance, "rebooted"));
    }
    step.event(EventKind::Command, key, "reboot: the guest restarts and keeps its disk");
    // A reboot by hand is a new beginning: earlier crashes must not make it one of many.
    let health = instance.health.clone().map(|health| Box::new(Health { crashes: Vec::new(), ..*health }));
    restart(step, Instance { health, ..instance });
    Ok(())
}

/// Restarts a placed instance's guest.
pub(crate) fn restart(step: &mut Step<'_>, instance: Instance) {
    let InstanceState::Placed { vm, phase, .. } = &instance.state else { return };
    let vm = Vm { reboots: vm.reboots + 1, started: step.now, ..vm.clone() };
    let off = matches!(phase, VmPhase::Stopped | VmPhase::StoppingRole | VmPhase::StoppingVm);
    let phase = if off { phase.clone() } else { VmPhase::Restarting { detail: None } };
    let state = InstanceState::Placed { vm, phase, since: step.now };
    step.put_instance(Instance { state, ..instance });
}

/// Asks for a new VM with an empty differencing disk.
pub(crate) fn reimage(step: &mut Step<'_>, key: &InstanceKey) -> Result<(), Rejected> {
    let instance = find(step, key)?;
    let InstanceState::Placed { vm, .. } = &instance.state else {
        return Err(no_vm(&instance, "reimaged"));
    };
    step.event(EventKind::Command, key, "reimage: a new empty differencing disk over the base image");
    let prefer = Some(vm.host.clone());
    retire(step, instance, Then::Replace { prefer });
    Ok(())
}

/// Asks for a new VM with empty disks, the local ones included.
pub(crate) fn rebuild(step: &mut Step<'_>, key: &InstanceKey) -> Result<(), Rejected> {
    let instance = find(step, key)?;
    let InstanceState::Placed { vm, .. } = &instance.state else {
        return Err(no_vm(&instance, "rebuilt"));
    };
    step.event(EventKind::Command, key, "rebuild: new empty disks, the local ones too");
    let prefer = Some(vm.host.clone());
    retire(step, Instance { local_generation: 0, ..instance }, Then::Replace { prefer });
    Ok(())
}

/// Has an instance's guest stopped. Its disks, its address and its place on its host are kept.
pub(crate) fn stop(step: &mut Step<'_>, key: &InstanceKey) -> Result<(), Rejected> {
    let instance = find(step, key)?;
    if instance.stopped {
        return Err(Rejected::Conflict(format!("{key} is stopped already")));
    }
    step.event(EventKind::Command, key, "stop: its guest is stopped, its disks stay");
    step.put_instance(Instance { stopped: true, ..instance });
    Ok(())
}

/// Has the guest of a stopped instance started.
pub(crate) fn start(step: &mut Step<'_>, key: &InstanceKey) -> Result<(), Rejected> {
    let instance = find(step, key)?;
    if !instance.stopped {
        return Err(Rejected::Conflict(format!("{key} is not stopped")));
    }
    if step.deployment(&key.deployment).is_some_and(|deployment| !deployment.is_on()) {
        let (service, slot) = (&key.deployment.service, key.deployment.slot);
        let message = format!(
            "{} is suspended, and all its guests with it; `mayfly service start {service} --slot {slot}` starts them",
            key.deployment
        );
        return Err(Rejected::Conflict(message));
    }
    step.event(EventKind::Command, key, "start");
    let state = match instance.state.clone() {
        // It has its time to become ready from now on.
        InstanceState::Placed { vm, phase, since } => {
            InstanceState::Placed { vm: Vm { started: step.now, ..vm }, phase, since }
        }
        other => other,
    };
    // As with a reboot by hand, earlier crashes do not count any more.
    let health = instance.health.clone().map(|health| Box::new(Health { crashes: Vec::new(), ..*health }));
    step.put_instance(Instance { stopped: false, state, health, ..instance });
    Ok(())
}

fn find(step: &Step<'_>, key: &InstanceKey) -> Result<Instance, Rejected> {
    let found = step.state.instances.get(key).filter(|instance| !instance.is_leaving());
    let found = found.map(|instance| Instance::clone(instance));
    found.ok_or_else(|| Rejected::NotFound { kind: "instance", name: key.to_string() })
}

fn no_vm(instance: &Instance, what: &str) -> Rejected {
    if matches!(instance.state, InstanceState::Retiring { .. }) {
        return Rejected::Conflict(format!("{} is being replaced by a new VM already", instance.key));
    }
    let state = instance.state.status();
    let detail = instance.state.detail().map_or_else(String::new, |detail| format!(": {detail}"));
    Rejected::Conflict(format!("{} has no VM that could be {what}: it is in state {state}{detail}", instance.key))
}

/// Takes an instance's VM away, if it has one; `then` follows when its host has no trace of it any more.
pub(crate) fn retire(step: &mut Step<'_>, instance: Instance, then: Then) {
    let (vm, since) = match &instance.state {
        InstanceState::Waiting { .. } => return step.put_instance(instance),
        // A VM that was going already is not new.
        InstanceState::Retiring { vm, since, .. } => (vm.clone(), *since),
        // The record below is the next revision, as it changes what the host sees.
        InstanceState::Placed { vm, .. } => (vm.clone(), Incarnation(step.state.meta.revision.0 + 1)),
    };
    if step.planted.is(Mutant::MeterTwice) {
        meter::close(step, &instance.key.deployment.service, &vm);
    }
    step.put_instance(Instance { state: InstanceState::Retiring { vm, then, since }, ..instance });
}

/// Makes an instance go away for good.
pub(crate) fn remove(step: &mut Step<'_>, instance: &Instance) {
    match &instance.state {
        InstanceState::Waiting { .. } => bury(step, instance),
        InstanceState::Placed { .. } | InstanceState::Retiring { .. } => retire(step, instance.clone(), Then::Remove),
    }
}

/// Deletes an instance whose VM is gone, and remembers its generation in case the identity comes back.
pub(crate) fn bury(step: &mut Step<'_>, instance: &Instance) {
    step.delete(RecordId::Instance(instance.key.clone()));
    let deployment = step.deployment(&instance.key.deployment).filter(|one| !one.is_deleting());
    if let Some(deployment) = deployment.filter(|_| instance.generation > 0) {
        let mut deployment = Deployment::clone(&deployment);
        deployment.generations.insert(instance.key.name(), instance.generation);
        step.put_deployment(deployment);
    }
}

/// The VM of a retiring instance is gone.
pub(crate) fn vm_gone(step: &mut Step<'_>, instance: &Instance) {
    let InstanceState::Retiring { then, vm, .. } = &instance.state else { return };
    meter::close(step, &instance.key.deployment.service, vm);
    match then {
        Then::Remove => bury(step, instance),
        Then::Replace { prefer } => {
            let (reason, prefer) = ("its new VM is being placed".to_owned(), prefer.clone());
            let heals = instance.health.is_some();
            let state = InstanceState::Waiting { reason, prefer, since: step.now, heals };
            step.put_instance(Instance { state, dip: Some(vm.dip), ..instance.clone() });
        }
    }
}

/// Brings everything to rest that needs no news from outside: places those that wait, and buries what is empty.
pub(crate) fn settle(step: &mut Step<'_>) {
    place_waiting(step);
    crate::deployments::bury(step);
    crate::services::bury(step);
}

/// Refuses a command that has made instances which wait, other than those that waited before.
pub(crate) fn refuse_what_waits(step: &Step<'_>, before: &BTreeSet<InstanceKey>) -> Result<(), Rejected> {
    let new: Vec<&InstanceKey> = step.state.index.waiting.difference(before).collect();
    let Some(first) = new.first().and_then(|key| step.state.instances.get(*key)) else { return Ok(()) };
    let (why, name, waiting) = (first.state.detail().unwrap_or_default(), first.key.name(), new.len());
    let added = step.added_instances();
    let size = step.state.role_of(first).map(|(role, _)| role.size);
    let each = size.map_or_else(String::new, |size| {
        let needed = size.resources();
        format!(" (each needs {} cores and {} MiB)", needed.cpu_milli as f64 / 1000.0, needed.memory_mib)
    });
    Err(Rejected::NoRoom(if added > waiting {
        let (placed, fits) = (added - waiting, what_fits(step, &new));
        format!(
            "only {placed} of {added} new instances find a place{each}, so none is made{fits}: after those, for {name}, {why}"
        )
    } else if added == waiting {
        format!("none of {added} new instances finds a place{each}, so none is made: for {name}, {why}")
    } else {
        format!("{waiting} instances would find no place{each}, so nothing is changed: for {name}, {why}")
    }))
}

/// How many instances of the role there is room for, if those that wait are of one role only.
fn what_fits(step: &Step<'_>, waiting: &[&InstanceKey]) -> String {
    let Some(first) = waiting.first() else { return String::new() };
    if waiting.iter().any(|key| (&key.deployment, &key.role) != (&first.deployment, &first.role)) {
        return String::new();
    }
    let members = step.state.members(&first.deployment, &first.role).count();
    format!("; {}={} would fit", first.role, members - waiting.len())
}

/// Instances that healing is at work on: they are on their way, and neither sick again nor given up.
pub(crate) fn being_healed(step: &Step<'_>) -> usize {
    let instances = step.state.index.sick.iter().filter_map(|key| step.state.instances.get(key));
    let on_its_way = |one: &&Arc<Instance>| match &one.state {
        InstanceState::Placed { phase, .. } => {
            !phase.is_sick() && !matches!(phase, VmPhase::Ready | VmPhase::Busy { .. } | VmPhase::Stopped)
        }
        InstanceState::Retiring { then: Then::Replace { .. }, .. } => true,
        InstanceState::Retiring { then: Then::Remove, .. } | InstanceState::Waiting { .. } => false,
    };
    instances.filter(|one| one.health.is_some()).filter(on_its_way).count()
}

fn place_waiting(step: &mut Step<'_>) {
    let inventory = &step.state.index.inventory;
    if step.state.index.waiting.is_empty() || step.state.index.tried == Some(inventory.gains) {
        return;
    }
    let waiting: Vec<InstanceKey> = step.state.index.waiting.iter().cloned().collect();
    let mut healed = being_healed(step);
    let mut placed: BTreeMap<RoleRef, Untold> = BTreeMap::new();
    let mut refused: BTreeMap<(RoleRef, u32, bool), String> = BTreeMap::new();
    let most_told = if step.plans { TOLD_OF_PLAN } else { TOLD };
    let (mut told, few) = (0, step.plans || waiting.len() <= TOLD_OF_NEW);
    for key in waiting {
        let Some(instance) = step.instance(&key) else { continue };
        let InstanceState::Waiting { heals, .. } = &instance.state else { continue };
        let role = (key.deployment.clone(), key.role.clone());
        let asked = (role.clone(), instance.version, *heals);
        let has_failed = instance.health.as_ref().is_some_and(|health| !health.failed_on.is_empty());
        let why = match refused.get(&asked) {
            Some(why) if !has_failed => Some(why.clone()),
            _ => hold_back(step, &instance, *heals, healed),
        };
        let chosen = match why {
            Some(why) => Err(why),
            None => choose(step, &instance).map_err(|why| why.to_string()),
        };
        match chosen {
            Ok(host) => {
                let tells = told < most_told && (few || instance.generation > 0);
                if !settle_on(step, &instance, host, tells) {
                    continue;
                }
                healed += usize::from(*heals);
                match tells {
                    true => told += 1,
                    false => placed.entry(role).or_default().add(key.index),
                }
            }
            Err(why) => {
                wait(step, &instance, why.clone());
                refused.insert(asked, why);
            }
        }
    }
    for ((deployment, role), Untold { count, first, last }) in placed {
        let message = format!("{count} placed, from {role}_IN_{first} to {role}_IN_{last}");
        step.event(EventKind::Placed, deployment, message);
    }
    step.state.index.tried = Some(step.state.index.inventory.gains);
}

/// Places an instance on the chosen host, and tells of it alone if `tells`. Whether it has a place now.
fn settle_on(step: &mut Step<'_>, instance: &Instance, host: HostName, tells: bool) -> bool {
    let why = if tells { why_there(step.state, instance, &host) } else { String::new() };
    let Some(placed) = place(step, instance, host) else {
        wait(step, instance, "no private address is free".to_owned());
        return false;
    };
    if tells {
        // Of a plan, names and numbers mean nothing: they will be others.
        let message = if step.plans { why } else { placement_told(&placed, &why) };
        step.event(EventKind::Placed, &instance.key, message);
    }
    true
}

/// Placements of a role of which one event tells.
#[derive(Default)]
struct Untold {
    count: u32,
    first: u32,
    last: u32,
}

impl Untold {
    fn add(&mut self, index: u32) {
        if self.count == 0 {
            self.first = index;
        }
        self.count += 1;
        self.last = index;
    }
}

/// Why an instance must not be placed now even if there is room.
fn hold_back(step: &Step<'_>, instance: &Instance, heals: bool, healed: usize) -> Option<String> {
    if let Some(why) = crate::restore::hold(step) {
        return Some(why);
    }
    if !heals {
        return None;
    }
    let trips = &step.state.breaker.trips;
    let own = crate::breaker::scope(&instance.key.deployment);
    if let Some((scope, trip)) =
        [Scope::Fleet, own].into_iter().find_map(|scope| Some((scope.clone(), trips.get(&scope)?)))
    {
        return Some(format!("healing has stopped: {}; look, then `mayfly breaker reset {scope}`", trip.why));
    }
    let most = step.config.healing.concurrent;
    (healed >= most).then(|| format!("{most} instances are being healed already, which is the most at a time"))
}

/// Where an instance would be placed now, or why nowhere.
pub(crate) fn choose(step: &mut Step<'_>, instance: &Instance) -> Result<HostName, Box<NoRoom>> {
    let ignore_domains = step.planted.is(Mutant::IgnoreDomains);
    choose_in(step.state, instance, &mut step.entropy, Rule { ignore_domains, ..Rule::default() })
}

/// How placement departs from what a role asks for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rule {
    /// A soft role is placed as a strict one, and nothing goes where it has failed.
    pub(crate) strict: bool,
    /// A planted mistake.
    pub(crate) ignore_domains: bool,
}

/// Where an instance would be placed now, or why nowhere.
pub(crate) fn choose_in(
    state: &State,
    instance: &Instance,
    entropy: &mut crate::Entropy,
    rule: Rule,
) -> Result<HostName, Box<NoRoom>> {
    with_ask(state, instance, rule, |ask| {
        let inventory = &state.index.inventory;
        let chosen = inventory.choose(ask, entropy);
        // A host where it has failed is better than none.
        if chosen.is_err() && !ask.avoid.is_empty() && !rule.strict {
            return inventory.choose(&Ask { avoid: &[], ..ask.clone() }, entropy);
        }
        chosen
    })
    .unwrap_or_else(|| Err(Box::default()))
}

/// Why placement chose a host for an instance that is not there yet.
fn why_there(state: &State, instance: &Instance, host: &HostName) -> String {
    with_ask(state, instance, Rule::default(), |ask| because(&state.index.inventory, ask, host)).unwrap_or_default()
}

/// What an instance asks of placement; nothing if its role is gone.
fn with_ask<T>(state: &State, instance: &Instance, rule: Rule, ask: impl FnOnce(&Ask<'_>) -> T) -> Option<T> {
    let (definition, configuration) = state.role_of(instance)?;
    let prefer = match &instance.state {
        InstanceState::Waiting { prefer, .. } => prefer.as_ref(),
        InstanceState::Placed { .. } | InstanceState::Retiring { .. } => None,
    };
    let image = configuration.image.as_ref().and_then(|name| state.images.get(name));
    Some(ask(&Ask {
        role: &(instance.key.deployment.clone(), instance.key.role.clone()),
        needed: definition.size.resources(),
        spread: if rule.strict { Spread::Strict } else { configuration.spread() },
        requirements: &configuration.requirements(),
        image: image.map(|image| &image.digest),
        prefer,
        avoid: instance.health.as_ref().map_or(&[], |health| &health.failed_on),
        ignore_domains: rule.ignore_domains,
    }))
}

/// Takes an instance's VM away so that it gets one elsewhere, unless there is no place for it: the place that it has does
/// not count, as it will not have it then.
pub(crate) fn move_away(step: &mut Step<'_>, instance: &Instance) -> bool {
    let moved = step.attempt(|step| {
        retire(step, instance.clone(), Then::Replace { prefer: None });
        choose(step, instance).map(drop)
    });
    moved.is_ok()
}

/// Whether an instance may be taken down by plan now: it is down anyway, or all of the deployment's other update domains
/// are whole and no update is under way.
pub(crate) fn may_disturb(step: &Step<'_>, instance: &Instance) -> bool {
    let Some(deployment) = step.state.deployments.get(&instance.key.deployment) else { return false };
    if deployment.upgrade.is_some() {
        return false;
    }
    // Where only this one was told to stop, the others have to serve in its stead.
    let is_off = !deployment.is_on();
    let well = |one: &Instance| {
        one.is_ready() || (is_off && matches!(&one.state, InstanceState::Placed { phase: VmPhase::Stopped, .. }))
    };
    let others = step.state.instances_of(&instance.key.deployment).filter(|one| !one.is_leaving());
    let mut others = others.filter(|one| one.update_domain != instance.update_domain);
    !well(instance) || others.all(|one| well(one))
}

/// The address that the instance's VM had last, if its host has said that nothing of that VM is left; or else a new one.
fn private_address(step: &mut Step<'_>, instance: &Instance) -> Option<Ipv4Addr> {
    let (range, used) = (step.config.dips, &step.state.index.dips);
    if let Some(last) = instance.dip.filter(|dip| range.contains(*dip) && !used.contains(dip)) {
        return Some(last);
    }
    let (dip, next) = next_free(|dip| used.contains(dip), range, step.state.meta.next_dip)?;
    step.state.meta.next_dip = next;
    Some(dip)
}

/// Gives an instance a VM on a host, unless there is no free address.
fn place(step: &mut Step<'_>, instance: &Instance, host: HostName) -> Option<Arc<Instance>> {
    let size = step.state.role_of(instance)?.0.size;
    let dip = private_address(step, instance)?;
    let id = VmId(step.state.meta.next_vm);
    step.state.meta.next_vm += 1;
    let computer_name = step.entropy.computer_name().into_boxed_str();
    let same = step.planted.is(Mutant::SameGeneration) && instance.generation > 0;
    let last = instance.generation.max(step.state.meta.least_generation);
    let generation = if same { last } else { last + 1 };
    let stays = matches!(&instance.state, InstanceState::Waiting { prefer, .. } if prefer.as_ref() == Some(&host));
    let local_generation = if stays && instance.local_generation > 0 { instance.local_generation } else { generation };
    let (placed, started) = (step.now, step.now);
    let vm = Vm { id, host, computer_name, dip, size, reboots: 0, restarts: 0, placed, started, booked: None };
    let phase = VmPhase::Creating { detail: WAITING_FOR_HOST };
    let state = InstanceState::Placed { vm, phase, since: step.now };
    let Instance { key, update_domain, version, stopped, health, .. } = instance;
    let placed = Arc::new(Instance {
        key: key.clone(),
        update_domain: *update_domain,
        generation,
        version: *version,
        local_generation,
        stopped: *stopped,
        dip: None,
        state,
        health: health.clone(),
    });
    step.put(Record::Instance(Arc::clone(&placed)));
    Some(placed)
}

/// What an event tells of a placement.
fn placement_told(instance: &Instance, why: &str) -> String {
    let Some(Vm { id, host, computer_name, dip, .. }) = instance.vm() else { return String::new() };
    format!("{id} on {host} as {computer_name} at {dip}, disk generation {}: {why}", instance.generation)
}

fn wait(step: &mut Step<'_>, instance: &Instance, why: String) {
    let InstanceState::Waiting { reason, prefer, since, heals } = &instance.state else { return };
    if *reason != why {
        step.event(EventKind::Waiting, &instance.key, why.clone());
        let state = InstanceState::Waiting { reason: why, prefer: prefer.clone(), since: *since, heals: *heals };
        step.put_instance(Instance { state, ..instance.clone() });
    }
}
