//! Records that come from a backup: older than what hosts have seen since.
//!
//! Hosts refuse goal states with lower numbers than they have applied, and VMs that were made after the backup may still
//! run on them, with addresses that the records think free. So the counters jump far ahead, and nothing is placed until
//! every host that may be serving has applied a goal state made from the restored records, and so has dropped what those
//! do not know of.

use std::sync::Arc;

use mayfly_model::{EventKind, Incarnation};

use crate::hosts;
use crate::lease::Leases;
use crate::record::Record;
use crate::step::Step;

/// How far the counters jump: more than they can have grown since any backup.
const JUMP: u64 = 1 << 32;

/// How far the place where private addresses are looked for jumps: past those that were given out since the backup.
const DIPS: u32 = 8192;

/// Makes a backup's records such that a fabric can go on from them.
pub fn restored(records: &mut [Record]) {
    for record in records {
        match record {
            Record::Meta(meta) => {
                meta.revision = Incarnation(meta.revision.0 + JUMP);
                meta.next_vm += JUMP;
                meta.next_event += 1_000_000;
                meta.next_dip = meta.next_dip.wrapping_add(DIPS);
                meta.restored = Some(meta.revision);
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

/// Lets placements go on when every host that may be serving follows the restored records.
pub(crate) fn settle(step: &mut Step<'_>, leases: &Leases) {
    let Some(since) = step.state.meta.restored else { return };
    // The lease that a host has from before, and of which these records know nothing, is over by then too.
    let leases_are_over = leases.has_steady_majority(step.state, step.now);
    if leases_are_over && hosts::all_have_applied(step, leases, since) {
        step.state.meta.restored = None;
        step.state.index.inventory.gains += 1;
        step.event(EventKind::State, "fabric", "every host follows the restored records");
    }
}
