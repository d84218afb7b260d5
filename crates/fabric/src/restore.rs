//! Records that come from a backup: older than what hosts have seen since.
//!
//! Hosts refuse goal states with lower numbers than they have applied, and VMs that were made after the backup may still
//! run on them, with addresses that the records think free, and with identities whose earlier VMs the records have
//! elsewhere. So the counters jump far ahead, and no VM is made, neither a new one nor one that the records have and its
//! host has not, until every host that may be serving has applied a goal state made from the restored records, and lists
//! nothing that those do not know of. What the records have and no host has then gets a new VM.

use std::collections::BTreeSet;
use std::sync::Arc;

use mayfly_model::{EventKind, Host, HostCondition, Incarnation, Instance, Then, Time, Vm, VmId};

use crate::lease::Leases;
use crate::record::Record;
use crate::state::State;
use crate::step::Step;
use crate::{hosts, instances};

/// How far the place where private addresses are looked for jumps: past those that were given out since the backup.
const DIPS: u32 = 8192;

/// How far the numbers of hosts jump, past those that joined since.
const HOSTS: u32 = 1024;

/// Makes a backup's records such that a fabric can go on from them, at the time on the wall.
///
/// What has been counted since the backup is not known, and the same backup, or an older one, may have been restored
/// before. So each counter goes on from the seconds since 1970, as many times as it can grow in one: goal states by 2^31,
/// VMs by 2^8 (their taps' names have room for twelve digits), disks of one instance by 2^4, starts of controllers by one.
/// Within a second or two, or where one of them was restored and has grown faster since, what is added counts. Hosts'
/// numbers have no room for that; a host that takes another's has it until both follow the restored records.
pub fn restored(records: &mut [Record], now: Time) {
    let seconds = now.0 / 1000;
    for record in records {
        match record {
            Record::Meta(meta) => {
                meta.epoch = seconds.max(meta.epoch.saturating_add(2));
                meta.revision = Incarnation((seconds << 31).max(meta.revision.0.saturating_add(1 << 32)));
                meta.next_vm = (seconds << 8).max(meta.next_vm.saturating_add(1 << 10));
                meta.least_generation = (seconds << 4).max(meta.least_generation.saturating_add(1 << 6));
                meta.next_event = meta.next_event.saturating_add(1_000_000);
                meta.next_dip = meta.next_dip.wrapping_add(DIPS);
                meta.next_host = meta.next_host.saturating_add(HOSTS);
                meta.restored = Some(meta.revision);
                // Who votes is not known to all before they have this.
                meta.voters_since = meta.revision;
            }
            // A later VM of the identity may have it.
            Record::Instance(instance) if instance.dip.is_some() => Arc::make_mut(instance).dip = None,
            _ => {}
        }
    }
}

/// Why nothing may be placed yet.
pub(crate) fn hold(step: &Step<'_>) -> Option<String> {
    step.state.meta.restored.map(|_| {
        "the fabric was restored from a backup, and not every host has dropped yet what the backup does not know of; a host \
         that is gone for good is waited for until it counts as lost"
            .to_owned()
    })
}

/// Lets placements go on when every host that may be serving follows the restored records, and has nothing else.
pub(crate) fn settle(step: &mut Step<'_>, leases: &Leases) {
    let Some(since) = step.state.meta.restored else { return };
    // The lease that a host has from before, and of which these records know nothing, is over by then too.
    let leases_are_over = leases.has_steady_majority(step.state, step.now);
    if !leases_are_over || !hosts::all_have_applied(step, leases, since) || has_strangers(step.state) {
        return;
    }
    for instance in missing(step.state) {
        step.event(EventKind::State, &instance.key, "its VM was replaced after the backup, and gets a new one");
        let prefer = instance.wanted_vm().map(|vm| vm.host.clone());
        // Its local disks may have been on another host since.
        let instance = Instance { local_generation: 0, ..Instance::clone(&instance) };
        instances::retire(step, instance, Then::Replace { prefer });
    }
    step.state.index.listed.clear();
    step.state.meta.restored = None;
    // Goal states say that guests may be started again.
    step.state.meta.revision.0 += 1;
    step.state.index.inventory.gains += 1;
    step.event(EventKind::State, "fabric", "every host follows the restored records");
}

fn is_serving(host: &Host) -> bool {
    !matches!(host.condition, HostCondition::Lost { .. })
}

/// Whether a host that may be serving lists a VM that the records do not have there.
fn has_strangers(state: &State) -> bool {
    state.hosts.values().filter(|host| is_serving(host)).any(|host| {
        let Some(listed) = state.index.listed.get(&host.name) else { return true };
        let known: BTreeSet<VmId> = state.instances_on(&host.name).filter_map(|one| one.vm()).map(|vm| vm.id).collect();
        !listed.is_subset(&known)
    })
}

/// Instances whose VM their host does not have.
fn missing(state: &State) -> Vec<Arc<Instance>> {
    let has = |vm: &Vm| state.index.listed.get(&vm.host).is_none_or(|listed| listed.contains(&vm.id));
    let missing = state.instances.values().filter(|one| one.wanted_vm().is_some_and(|vm| !has(vm)));
    missing.cloned().collect()
}
