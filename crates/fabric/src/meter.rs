//! Metering (invariant 7): each VM is written into its service's ledger once, when nothing is left of it, from its
//! placement to that moment, divided at midnight UTC. What it has sent and received is written down once an hour too, as
//! the counts are only known from the last report: of a host that is lost with its controller, an hour may be missing.

use std::collections::BTreeMap;
use std::sync::Arc;

use mayfly_model::usage::{DAY, days};
use mayfly_model::{Instance, ServiceName, Time, Traffic, Usage, Vm, VmId, VmReport};

use crate::record::Record;
use crate::state::State;
use crate::step::Step;

/// Between two times that a VM's traffic is written down, in ms.
const PERIOD: u64 = 3_600_000;
/// What a controller that has just started writes down at once, in bytes.
const MUCH: u64 = 64 << 20;

/// What a host said of a VM last: a hint that is said again with each report, no record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heard {
    /// What it takes of processors, in thousandths of a core.
    pub(crate) cpu_milli: u64,
    traffic: Traffic,
    at: Time,
}

/// Takes what a host says of an instance's VM, and returns the instance as it is then.
pub(crate) fn hear(step: &mut Step<'_>, instance: Arc<Instance>, seen: &VmReport) -> Arc<Instance> {
    let (vm, at, traffic) = (seen.vm, step.now, seen.traffic);
    let known = step.state.index.heard.insert(vm, Heard { cpu_milli: seen.cpu_milli, traffic, at });
    let is_due = match known {
        Some(known) => turn(vm, known.at) != turn(vm, at),
        // Nobody may have written anything down for long.
        None => {
            let more = instance.vm().map(|vm| traffic.beyond(already(vm))).unwrap_or_default();
            more.sent.saturating_add(more.received) >= MUCH
        }
    };
    if is_due { book(step, instance, traffic) } else { instance }
}

/// Which of its hours a VM is in. Each has its own, so that not all are written down at once.
fn turn(vm: VmId, at: Time) -> u64 {
    (at.0 + vm.0.wrapping_mul(7919) % PERIOD) / PERIOD
}

/// Writes down what an instance's VM has sent and received, as far as it is not.
fn book(step: &mut Step<'_>, instance: Arc<Instance>, seen: Traffic) -> Arc<Instance> {
    let Some(before) = instance.vm().map(already) else { return instance };
    let more = seen.beyond(before);
    if more == Traffic::default() {
        return instance;
    }
    add(step, &instance.key.deployment.service, more);
    let booked = Some(Box::new(before.plus(more)));
    let instance = Arc::new(Instance::clone(&instance).with_vm(|vm| vm.booked = booked));
    step.put(Record::Instance(Arc::clone(&instance)));
    instance
}

fn already(vm: &Vm) -> Traffic {
    vm.booked.as_deref().copied().unwrap_or_default()
}

/// What a VM has sent and received that is not in the ledger.
fn rest(state: &State, vm: &Vm) -> Traffic {
    state.index.heard.get(&vm.id).map_or_else(Traffic::default, |heard| heard.traffic.beyond(already(vm)))
}

fn add(step: &mut Step<'_>, service: &ServiceName, traffic: Traffic) {
    if traffic != Traffic::default() {
        let usage = of_day(step.state, service, step.now.0 / DAY);
        step.put(Record::Usage(Arc::new(Usage { traffic: usage.traffic.plus(traffic), ..usage })));
    }
}

fn of_day(state: &State, service: &ServiceName, day: u64) -> Usage {
    let known = state.usage.get(&(service.clone(), day));
    known.map_or_else(|| Usage::none(service.clone(), day), |known| Usage::clone(known))
}

/// A VM is gone.
pub(crate) fn close(step: &mut Step<'_>, service: &ServiceName, vm: &Vm) {
    for (day, millis) in days(vm.placed.0, step.now.0) {
        let mut usage = of_day(step.state, service, day);
        *usage.millis.entry(vm.size).or_default() += millis;
        step.put(Record::Usage(Arc::new(usage)));
    }
    let rest = rest(step.state, vm);
    step.state.index.heard.remove(&vm.id);
    add(step, service, rest);
}

/// What services have used, by day.
type Ledger = BTreeMap<(ServiceName, u64), Usage>;

/// What each service has used on each day up to `now`, with what still runs.
pub fn ledger(state: &State, now: Time) -> Ledger {
    let mut ledger: Ledger = state.usage.iter().map(|(key, usage)| (key.clone(), Usage::clone(usage))).collect();
    for instance in state.instances.values() {
        let Some(vm) = instance.vm() else { continue };
        let service = &instance.key.deployment.service;
        for (day, millis) in days(vm.placed.0, now.0) {
            *on(&mut ledger, service, day).millis.entry(vm.size).or_default() += millis;
        }
        let rest = rest(state, vm);
        if rest != Traffic::default() {
            let today = on(&mut ledger, service, now.0 / DAY);
            today.traffic = today.traffic.plus(rest);
        }
    }
    ledger
}

fn on<'l>(ledger: &'l mut Ledger, service: &ServiceName, day: u64) -> &'l mut Usage {
    ledger.entry((service.clone(), day)).or_insert_with(|| Usage::none(service.clone(), day))
}
