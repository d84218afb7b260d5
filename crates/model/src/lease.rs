//! Leases: who may serve an identity, and until when. Pure arithmetic for both sides.
//!
//! # Host side
//!
//! A host sends a report at its time `sent` and receives grant `n`. It may serve until `sent + ttl` on its own
//! monotonic clock: counted from *before* it sent, so the grant is never used longer than the controller thinks.
//! When that runs out, it takes its identities out of the data plane and stops its guests, unless it is
//! *orphaned together with a strict majority of the voters*: then nobody can have re-placed them, and it keeps serving.
//! That is what keeps services up when every controller is dead: all hosts are orphans, and each hears that of the others.
//!
//! Being entitled must have no gap. A host that slept through the end of its lease does not know what happened
//! meanwhile, so it fences itself, whatever it hears now: it may go on as an orphan only within `drift / 2` of its
//! lease's end, and within `ttl - mesh_timeout - drift` of when it last knew itself to be an orphan.
//!
//! # Controller side (in `fabric`)
//!
//! The controller received the last report at `r >= sent`. It re-places the host's instances no earlier than
//! `r + ttl + drift`, where `drift` bounds how much slower the host's clock may run over a `ttl`. And only while it has
//! a *steady* majority: of the voters, itself included, more than half, each of which has acknowledged a grant whose
//! report came within `fresh`, and has done so without a gap for a whole `ttl`. The controllers of a location have one
//! vote together: only one of them leads at a time, and what another one commits is refused by the store's fence.
//!
//! # Why both cannot be true
//!
//! Let the controller re-place A's instances at time T, and let A be entitled then as an orphan. A knew itself to be
//! one at some t, no longer ago than `ttl - mesh_timeout - drift`, from words of a majority of the voters, each said
//! no more than `mesh_timeout` before t: so within `[T - ttl + drift, T]`. The controller's steady majority shares with
//! these a voter v other than A (which has no lease) and other than the controller (which gives its word by granting).
//! v was steady: for all of `[T - ttl, T]` it held an acknowledged grant, so it knew of it, and it says *fresh* until
//! `received + fresh` on its clock, which is later than the controller's `r + fresh - drift`. So whatever v said within
//! that time was that it is fresh, and A was no orphan. After T, A cannot become one: it would have to be entitled
//! without a gap. What matters is what v said, not what A makes of it later: that a word has grown old does not turn a
//! fresh voter into one that is not.
//!
//! A host that has just been started has forgotten what it held, so for the first `fresh` it does not vote: its peers
//! do not count it among those they reach.
//!
//! # When the voters change
//!
//! Hosts that join and hosts that are forgotten change what a majority is, and those cut off meanwhile count by the goal
//! state that they have. So there is one change at a time. From the moment that it is committed until every host that
//! may be serving (every one that is not lost) has applied a goal state with it, the controller needs a steady majority
//! of the voters of before *and* of those of now; and there is no further change. So whichever of the two A counts by,
//! the controller's majority of those shares a voter with A's.
//!
//! # All controllers dead
//!
//! `fresh` is shorter than `ttl`, so that when all controllers die, every host stops saying *fresh* before the
//! first lease runs out, and no host fences itself for the sake of another's last few hundred milliseconds.

use serde::{Deserialize, Serialize};

use crate::time::Time;

/// The times that leases are made of, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseTimings {
    /// Between two reports of a host.
    pub renew: u64,
    /// How long a grant lasts.
    pub ttl: u64,
    /// A bound on how much two clocks drift apart during a `ttl`.
    pub drift: u64,
    /// How long after a grant a host counts as fresh; shorter than `ttl` by more than a renewal.
    pub fresh: u64,
    /// How long a peer's word holds.
    pub mesh_timeout: u64,
}

impl Default for LeaseTimings {
    fn default() -> Self {
        LeaseTimings { renew: 500, ttl: 3000, drift: 500, fresh: 2000, mesh_timeout: 1000 }
    }
}

/// What the controller answers to a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseGrant {
    /// Its number; only grows.
    pub number: u64,
    /// How long it lasts, in milliseconds from when the report was sent.
    pub ttl: u64,
    /// How long the host says *fresh* after receiving it, in milliseconds.
    pub fresh: u64,
}

/// What a host may do with the identities of its guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MayServe {
    /// It holds a lease.
    Lease,
    /// It holds none, and neither does anybody in a strict majority of the voters that it reaches.
    Orphaned,
    /// Neither: out of the data plane, and stop the guests.
    No,
}

/// A host's lease, on its own monotonic clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostLease {
    number: u64,
    serve_until: Time,
    fresh_until: Time,
    /// Until when it may still find itself an orphan: it was entitled so far, and a little longer.
    entitled_until: Time,
    fenced: bool,
}

impl HostLease {
    /// A lease that the previous agent process on this host had.
    pub fn resumed(number: u64, serve_until: Time, fresh_until: Time, entitled_until: Time) -> HostLease {
        HostLease { number, serve_until, fresh_until, entitled_until, fenced: false }
    }

    /// Takes a grant that answers the report sent at `sent`.
    pub fn granted(&mut self, sent: Time, received: Time, grant: LeaseGrant) {
        if grant.number <= self.number {
            return;
        }
        self.number = grant.number;
        self.serve_until = self.serve_until.max(sent.plus(grant.ttl));
        self.fresh_until = self.fresh_until.max(received.plus(grant.fresh));
        if received < self.serve_until {
            self.fenced = false;
        }
    }

    /// The number of the last grant received.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// When the host stops telling its peers that its lease is fresh.
    pub fn fresh_until(&self) -> Time {
        self.fresh_until
    }

    /// When the lease runs out.
    pub fn serve_until(&self) -> Time {
        self.serve_until
    }

    /// Until when it may still find itself an orphan.
    pub fn entitled_until(&self) -> Time {
        self.entitled_until
    }

    /// Whether the host tells its peers that it holds a fresh lease.
    pub fn fresh(&self, now: Time) -> bool {
        now < self.fresh_until
    }

    /// How long the host goes on telling its peers that it holds a fresh lease, in milliseconds.
    pub fn fresh_for(&self, now: Time) -> u64 {
        self.fresh_until.since(now)
    }

    /// What the host may do now. `reached` counts the voters it reaches, itself included, none of which may have said
    /// that it holds a fresh lease for `others_fresh` to be false. A host that has fenced itself once stays so until a new
    /// grant.
    pub fn may_serve(
        &mut self,
        now: Time,
        timings: &LeaseTimings,
        voters: usize,
        (reached, others_fresh): (usize, bool),
    ) -> MayServe {
        if now < self.serve_until {
            return MayServe::Lease;
        }
        let entitled = self.entitled_until.max(self.serve_until.plus(timings.drift / 2));
        if !self.fenced && self.number > 0 && now <= entitled && !others_fresh && reached * 2 > voters {
            self.entitled_until = now.plus(timings.ttl.saturating_sub(timings.mesh_timeout + timings.drift));
            return MayServe::Orphaned;
        }
        self.fenced = true;
        MayServe::No
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease() -> HostLease {
        let mut lease = HostLease::default();
        lease.granted(Time(1000), Time(1400), LeaseGrant { number: 1, ttl: 3000, fresh: 1500 });
        lease
    }

    #[test]
    fn a_lease_counts_from_before_the_report_was_sent() {
        let mut lease = lease();
        assert_eq!(lease.may_serve(Time(3999), &LeaseTimings::default(), 4, (1, true)), MayServe::Lease);
        assert_eq!(lease.may_serve(Time(4000), &LeaseTimings::default(), 4, (1, false)), MayServe::No);
        assert!(lease.fresh(Time(2899)) && !lease.fresh(Time(2900)));
    }

    #[test]
    fn orphans_serve_only_with_a_majority_that_has_no_lease() {
        assert_eq!(lease().may_serve(Time(4100), &LeaseTimings::default(), 4, (3, false)), MayServe::Orphaned);
        assert_eq!(lease().may_serve(Time(5000), &LeaseTimings::default(), 4, (2, false)), MayServe::No);
        assert_eq!(lease().may_serve(Time(4100), &LeaseTimings::default(), 4, (3, true)), MayServe::No);
        assert_eq!(
            HostLease::default().may_serve(Time(4100), &LeaseTimings::default(), 4, (3, false)),
            MayServe::No,
            "it never had one"
        );
    }

    #[test]
    fn an_orphan_that_sleeps_does_not_know_what_happened_meanwhile() {
        let timings = LeaseTimings::default();
        assert_eq!(lease().may_serve(Time(4251), &timings, 4, (3, false)), MayServe::No, "through its lease's end");
        let mut orphan = lease();
        for now in [4250, 5000, 6500] {
            assert_eq!(orphan.may_serve(Time(now), &timings, 4, (3, false)), MayServe::Orphaned, "{now}");
        }
        assert_eq!(orphan.may_serve(Time(8001), &timings, 4, (3, false)), MayServe::No);
    }

    #[test]
    fn a_fenced_host_waits_for_a_grant() {
        let mut lease = lease();
        assert_eq!(lease.may_serve(Time(5000), &LeaseTimings::default(), 4, (1, false)), MayServe::No);
        assert_eq!(lease.may_serve(Time(5001), &LeaseTimings::default(), 4, (4, false)), MayServe::No);
        lease.granted(Time(6000), Time(6001), LeaseGrant { number: 2, ttl: 3000, fresh: 1500 });
        assert_eq!(lease.may_serve(Time(6002), &LeaseTimings::default(), 4, (4, false)), MayServe::Lease);
    }

    #[test]
    fn an_old_grant_changes_nothing() {
        let mut lease = lease();
        lease.granted(Time(9000), Time(9001), LeaseGrant { number: 1, ttl: 3000, fresh: 1500 });
        assert_eq!(lease.serve_until(), Time(4000));
    }
}
