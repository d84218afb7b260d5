//! Leases, the controller's side. The arithmetic, and why it is safe, stands in `mayfly_model::lease`.
//!
//! Nothing here is stored. A controller that starts assumes that every host reported at that very moment, so it
//! waits a whole lease before it gives one up, and until a majority has been fresh for a whole lease.

use std::collections::{BTreeMap, BTreeSet};

use mayfly_model::{Host, HostName, HostReport, Incarnation, LeaseGrant, LeaseTimings, Time};

use crate::mutant::{Mutant, Planted};
use crate::state::State;

/// What the controller knows of the hosts' leases.
#[derive(Clone, Debug)]
pub struct Leases {
    timings: LeaseTimings,
    next_grant: u64,
    hosts: BTreeMap<HostName, HostView>,
    /// The hosts by the time of their last report, so that the late ones are found without looking at all.
    by_report: BTreeSet<(Time, HostName)>,
    planted: Planted,
}

#[derive(Clone, Debug, Default)]
struct HostView {
    last_report: Time,
    /// The last grant's number, and when the report came that it answered.
    granted: Option<(u64, Time)>,
    /// When the report came whose grant the host has acknowledged.
    acknowledged: Option<Time>,
    /// Since when its freshness has had no gap.
    steady_since: Time,
    /// The last report's boot and number.
    sequence: (u64, u64),
    /// The goal state that it has applied.
    applied: Option<Incarnation>,
    /// Whether somebody has been told that it would be given up if there were a majority.
    stalled: bool,
}

impl Leases {
    /// Leases of a controller that starts at `now` for the `epoch`th time, with these hosts known.
    pub fn new(timings: LeaseTimings, epoch: u64, hosts: impl IntoIterator<Item = HostName>, now: Time) -> Leases {
        let view = HostView { last_report: now, ..HostView::default() };
        let hosts: BTreeMap<HostName, HostView> = hosts.into_iter().map(|host| (host, view.clone())).collect();
        let by_report = hosts.keys().map(|host| (now, host.clone())).collect();
        Leases { timings, next_grant: (epoch << 32) + 1, hosts, by_report, planted: Planted::default() }
    }

    #[cfg(feature = "mutants")]
    pub(crate) fn plant(&mut self, planted: Planted) {
        self.planted = planted;
        if planted.is(Mutant::ForgetLeases) {
            for view in self.hosts.values_mut() {
                view.last_report = Time(0);
            }
            self.by_report = self.hosts.keys().map(|host| (Time(0), host.clone())).collect();
        }
    }

    /// The timings in force.
    pub fn timings(&self) -> LeaseTimings {
        self.timings
    }

    /// Takes a report and answers it with the next grant; with nothing if a later one came before.
    pub fn report(&mut self, report: &HostReport, now: Time) -> Option<LeaseGrant> {
        let number = self.next_grant;
        let view = self.hosts.entry(report.host.clone()).or_default();
        let (boot, sequence) = view.sequence;
        if boot == report.boot_id && report.sequence <= sequence && report.sequence > 0 {
            return None;
        }
        self.next_grant += 1;
        view.sequence = (report.boot_id, report.sequence);
        view.applied = Some(report.applied);
        view.stalled = false;
        // A pause of this controller itself shows here too: the reports that piled up meanwhile come too late.
        let was_fresh = is_fresh(view, self.timings, now);
        if let Some((granted, received)) = view.granted
            && granted == report.lease_ack
        {
            view.acknowledged = Some(received);
        }
        if !was_fresh {
            view.steady_since = now;
        }
        self.by_report.remove(&(view.last_report, report.host.clone()));
        view.last_report = now;
        self.by_report.insert((now, report.host.clone()));
        view.granted = Some((number, now));
        Some(LeaseGrant { number, ttl: self.timings.ttl, fresh: self.timings.fresh })
    }

    /// When the host's last report came.
    pub fn last_report(&self, host: &HostName) -> Option<Time> {
        self.hosts.get(host).map(|view| view.last_report)
    }

    /// The goal state that a host has applied, as far as this controller has heard.
    pub fn applied(&self, host: &HostName) -> Option<Incarnation> {
        self.hosts.get(host)?.applied
    }

    /// Hosts whose report is late enough to be worth a word.
    pub fn late(&self, now: Time) -> Vec<HostName> {
        let late = self.by_report.iter().take_while(|(last, _)| now.since(*last) > self.timings.ttl * 2 / 3);
        late.map(|(_, host)| host.clone()).collect()
    }

    /// Whether the host has certainly fenced itself, unless it is an orphan among orphans.
    pub fn is_over(&self, host: &HostName, now: Time) -> bool {
        self.last_report(host).is_some_and(|last| now.since(last) > self.timings.ttl + self.timings.drift)
    }

    /// Whether a strict majority of the voters, this controller included, has been fresh without a gap for a whole lease:
    /// of the voters of now, and of those of before the last change.
    pub fn has_steady_majority(&self, state: &State, now: Time) -> bool {
        let forgetful = self.planted.is(Mutant::ForgetLeases);
        let steady = |view: &HostView| {
            forgetful || (is_fresh(view, self.timings, now) && now.since(view.steady_since) >= self.timings.ttl)
        };
        [self.count(state, |host| host.voter, steady), self.count(state, |host| host.voted, steady)]
            .into_iter()
            .all(|(some, all)| some * 2 > all)
    }

    /// Voters that are fresh, this controller included, and all voters.
    pub fn fresh_voters(&self, state: &State, now: Time) -> (usize, usize) {
        self.count(state, |host| host.voter, |view| is_fresh(view, self.timings, now))
    }

    /// Whether nobody has been told yet that this host would be given up if there were a majority; they are now.
    pub(crate) fn tell_of_stall(&mut self, host: &HostName) -> bool {
        self.hosts.get_mut(host).is_some_and(|view| !std::mem::replace(&mut view.stalled, true))
    }

    /// Forgets hosts that are not known any more.
    pub(crate) fn forget(&mut self, host: &HostName) {
        if let Some(view) = self.hosts.remove(host) {
            self.by_report.remove(&(view.last_report, host.clone()));
        }
    }

    fn count(
        &self,
        state: &State,
        votes: impl Fn(&Host) -> bool,
        counts: impl Fn(&HostView) -> bool,
    ) -> (usize, usize) {
        let (mut some, mut all) = (1, 1);
        for host in state.hosts.values().filter(|host| votes(host)) {
            all += 1;
            some += usize::from(self.hosts.get(&host.name).is_some_and(&counts));
        }
        (some, all)
    }
}

fn is_fresh(view: &HostView, timings: LeaseTimings, now: Time) -> bool {
    view.acknowledged.is_some_and(|received| now.since(received) + timings.drift < timings.fresh)
}
