//! Metering (invariant 7): each VM is written into its service's ledger once, when nothing is left of it, from its
//! placement to that moment, divided at midnight UTC.

use std::collections::BTreeMap;
use std::sync::Arc;

use mayfly_model::usage::days;
use mayfly_model::{ServiceName, Time, Usage, Vm, VmSize};

use crate::record::Record;
use crate::state::State;
use crate::step::Step;

/// A VM is gone.
pub(crate) fn close(step: &mut Step<'_>, service: &ServiceName, vm: &Vm) {
    for (day, millis) in days(vm.placed.0, step.now.0) {
        let known = step.state.usage.get(&(service.clone(), day));
        let mut usage = known.map_or_else(
            || Usage { service: service.clone(), day, millis: BTreeMap::new() },
            |known| Usage::clone(known),
        );
        *usage.millis.entry(vm.size).or_default() += millis;
        step.put(Record::Usage(Arc::new(usage)));
    }
}

/// What each service has used on each day up to `now`, with what still runs.
pub fn ledger(state: &State, now: Time) -> BTreeMap<(ServiceName, u64), BTreeMap<VmSize, u64>> {
    let mut ledger: BTreeMap<(ServiceName, u64), BTreeMap<VmSize, u64>> =
        state.usage.iter().map(|(key, usage)| (key.clone(), usage.millis.clone())).collect();
    for instance in state.instances.values() {
        let Some(vm) = instance.vm() else { continue };
        for (day, millis) in days(vm.placed.0, now.0) {
            let key = (instance.key.deployment.service.clone(), day);
            *ledger.entry(key).or_default().entry(vm.size).or_default() += millis;
        }
    }
    ledger
}
