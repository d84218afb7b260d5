//! Hosts as the core judges them: up, late or lost; who votes; who is forgotten.

use std::sync::Arc;

use mayfly_model::{Admission, EventKind, Host, HostCondition, HostName, Incarnation};

use crate::command::Rejected;
use crate::healing;
use crate::lease::Leases;
use crate::mutant::Mutant;
use crate::record::RecordId;
use crate::restore;
use crate::step::Step;

/// Marks late hosts, gives up those whose lease is certainly over, and lets newcomers vote.
pub(crate) fn judge(step: &mut Step<'_>, leases: &mut Leases) {
    // Giving a host up changes neither who votes nor who is fresh, so once is enough.
    let mut majority = None;
    for name in leases.late(step.now) {
        let Some(host) = step.state.hosts.get(&name).cloned() else {
            leases.forget(&name);
            continue;
        };
        match host.condition {
            HostCondition::Lost { .. } => {}
            HostCondition::Up => {
                let since = leases.last_report(&name).unwrap_or(step.now);
                step.put_host(Host { condition: HostCondition::Suspect { since }, ..Host::clone(&host) });
                step.event(EventKind::Host, &name, "its report is late");
            }
            HostCondition::Suspect { .. } if leases.is_over(&name, step.now) => {
                let (steady, (fresh, voters)) = *majority.get_or_insert_with(|| {
                    (leases.has_steady_majority(step.state, step.now), leases.fresh_voters(step.state, step.now))
                });
                if steady || step.planted.is(Mutant::IgnoreMajority) {
                    healing::give_up(step, &name);
                } else if fresh * 2 <= voters && leases.tell_of_stall(&name) {
                    let message = format!(
                        "its lease is over, but nothing is placed anew: {fresh} of {voters} voters (hosts and controllers) \
                         are in touch, and more than half have to be"
                    );
                    step.event(EventKind::Host, &name, message);
                }
            }
            HostCondition::Suspect { .. } => {}
        }
    }
    change_voters(step, leases);
    restore::settle(step, leases);
}

/// Lets newcomers vote, and forgets who leaves. Either changes what a majority is. Until all who may be serving know of the
/// change, the controller needs a majority of the voters of before as well as of those of now (see
/// `mayfly_model::lease`); so there is one change at a time.
fn change_voters(step: &mut Step<'_>, leases: &Leases) {
    let is_up = |host: &Host| host.condition == HostCondition::Up;
    let next = |host: &Host| match host.admission {
        Admission::Leaving => false,
        _ => host.voter || is_up(host),
    };
    let settled =
        |host: &Arc<Host>| host.voter == host.voted && host.voter == next(host) && host.admission != Admission::Leaving;
    if step.state.hosts.values().all(settled) || !all_know_the_voters(step, leases) {
        return;
    }
    // The change before is known to all.
    let hosts: Vec<_> = step.state.hosts.values().cloned().collect();
    for host in &hosts {
        let (voted, voter) = (host.voter, next(host));
        if !voted && host.admission == Admission::Leaving {
            step.delete(RecordId::Host(host.name.clone()));
            step.event(EventKind::Host, &host.name, "forgotten");
        } else if (voter, voted) != (host.voter, host.voted) {
            step.put_host(Host { voter, voted, ..Host::clone(host) });
        }
    }
    step.state.meta.voters_since = step.state.meta.revision;
}

/// Whether every host that may be serving has applied a goal state with the present voters.
fn all_know_the_voters(step: &Step<'_>, leases: &Leases) -> bool {
    all_have_applied(step, leases, step.state.meta.voters_since)
}

/// Whether every host that may be serving has applied this goal state or a later one.
pub(crate) fn all_have_applied(step: &Step<'_>, leases: &Leases, since: Incarnation) -> bool {
    let mut serving = step.state.hosts.values().filter(|host| !matches!(host.condition, HostCondition::Lost { .. }));
    serving.all(|host| leases.applied(&host.name).is_some_and(|applied| applied >= since))
}

/// Forgets a lost host.
pub(crate) fn forget(step: &mut Step<'_>, name: &HostName) -> Result<(), Rejected> {
    let host = step.state.hosts.get(name).cloned();
    let host = host.ok_or_else(|| Rejected::NotFound { kind: "host", name: name.to_string() })?;
    if !matches!(host.condition, HostCondition::Lost { .. }) {
        let state = host.state();
        return Err(Rejected::Conflict(format!("{name} is {state}; only a host that is lost can be forgotten")));
    }
    if step.state.instances_on(name).next().is_some() {
        return Err(Rejected::Conflict(format!("{name} still carries instances")));
    }
    step.event(EventKind::Command, name, "will be forgotten");
    // Its certificate is worth nothing any more.
    step.delete(RecordId::Enrolment(name.clone()));
    step.put_host(Host { admission: Admission::Leaving, ..Host::clone(&host) });
    Ok(())
}
