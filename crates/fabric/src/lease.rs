//! Leases, the controller's side. The arithmetic, and why it is safe, stands in `mayfly_model::lease`.
//!
//! Nothing here is stored. A controller that starts assumes that every host reported at that very moment, so it
//! waits a whole lease before it gives one up, and until a majority has been fresh for a whole lease.

use std::collections::BTreeMap;

use mayfly_model::{HostName, LeaseGrant, LeaseTimings, Time};

/// What the controller knows of the hosts' leases.
#[derive(Clone, Debug)]
pub struct Leases {
    timings: LeaseTimings,
    next_grant: u64,
    hosts: BTreeMap<HostName, HostView>,
    /// Since when a strict majority of the voters has been fresh without a gap.
    majority_since: Option<Time>,
}

#[derive(Clone, Debug)]
struct HostView {
    last_report: Time,
    /// The last grant's number, and when the report came that it answered.
    granted: Option<(u64, Time)>,
    /// When the report came whose grant the host has acknowledged.
    acknowledged: Option<Time>,
}

impl Leases {
    /// Leases of a controller that starts at `now` for the `epoch`th time, with these hosts known.
    pub fn new(timings: LeaseTimings, epoch: u64, hosts: impl IntoIterator<Item = HostName>, now: Time) -> Leases {
        let view = HostView { last_report: now, granted: None, acknowledged: None };
        let hosts = hosts.into_iter().map(|host| (host, view.clone())).collect();
        Leases { timings, next_grant: (epoch << 32) + 1, hosts, majority_since: None }
    }

    /// The timings in force.
    pub fn timings(&self) -> LeaseTimings {
        self.timings
    }

    /// Time has passed. Has to be called before anything else in a step, so that a pause of the controller itself is
    /// noticed before the reports that piled up meanwhile.
    pub fn advance(&mut self, now: Time) {
        if self.fresh_voters(now) * 2 > self.voters() {
            self.majority_since.get_or_insert(now);
        } else {
            self.majority_since = None;
        }
    }

    /// Takes a report's acknowledgement and answers it with the next grant.
    pub fn report(&mut self, host: &HostName, acknowledged: u64, now: Time) -> LeaseGrant {
        let number = self.next_grant;
        self.next_grant += 1;
        let view =
            self.hosts.entry(host.clone()).or_insert(HostView { last_report: now, granted: None, acknowledged: None });
        if let Some((granted, received)) = view.granted
            && granted == acknowledged
        {
            view.acknowledged = Some(received);
        }
        view.last_report = now;
        view.granted = Some((number, now));
        LeaseGrant { number, ttl: self.timings.ttl, fresh: self.timings.fresh }
    }

    /// Controllers and hosts.
    pub fn voters(&self) -> usize {
        self.hosts.len() + 1
    }

    /// When the host's last report came.
    pub fn last_report(&self, host: &HostName) -> Option<Time> {
        self.hosts.get(host).map(|view| view.last_report)
    }

    /// Whether the host's report is late enough to be worth a word.
    pub fn is_late(&self, host: &HostName, now: Time) -> bool {
        self.last_report(host).is_some_and(|last| now.since(last) > self.timings.ttl * 2 / 3)
    }

    /// Whether the host has certainly fenced itself, and this controller may act on that.
    pub fn is_lost(&self, host: &HostName, now: Time) -> bool {
        self.is_over(host, now) && self.majority_since.is_some_and(|since| now.since(since) >= self.timings.ttl)
    }

    /// Whether the host has certainly fenced itself, unless it is an orphan among orphans.
    pub fn is_over(&self, host: &HostName, now: Time) -> bool {
        self.last_report(host).is_some_and(|last| now.since(last) > self.timings.ttl + self.timings.drift)
    }

    /// Voters that are fresh, this controller included.
    pub fn fresh_voters(&self, now: Time) -> usize {
        self.hosts.values().filter(|view| self.is_fresh(view, now)).count() + 1
    }

    fn is_fresh(&self, view: &HostView, now: Time) -> bool {
        view.acknowledged.is_some_and(|received| now.since(received) + self.timings.drift < self.timings.fresh)
    }
}
