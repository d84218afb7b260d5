//! A simulated host: does what its goal state says, a little later, and fences itself by the real lease.

use std::collections::{BTreeMap, BTreeSet};

use mayfly_model::lease::MayServe;
use mayfly_model::{
    HostFacts, HostLease, HostName, HostReport, Incarnation, LeaseGrant, Observed, Readiness, Resources, Time, VmGoal,
    VmId, VmReport,
};

/// A VM on a simulated host.
#[derive(Clone, Debug)]
pub(crate) struct SimVm {
    pub(crate) goal: VmGoal,
    /// True time at which it is (again) ready.
    pub(crate) ready_at: u64,
    /// True time at which its removal is done, once it is not wanted.
    pub(crate) gone_at: Option<u64>,
    pub(crate) reboots: u32,
}

/// A simulated host.
#[derive(Debug)]
pub(crate) struct SimHost {
    pub(crate) name: HostName,
    number: u8,
    domains: u8,
    /// The host's clock gains this many ms in a million.
    pub(crate) skew: i64,
    clock_offset: u64,
    pub(crate) alive: bool,
    /// Changes with each start; messages for an earlier one are dropped.
    pub(crate) session: u64,
    lease: HostLease,
    pub(crate) serving: bool,
    /// Before this true time it does not count as a voter: it has forgotten what lease it held.
    votes_from: u64,
    applied: Incarnation,
    pub(crate) vms: BTreeMap<VmId, SimVm>,
    /// Disks that were thrown away; they must never come back.
    pub(crate) destroyed: BTreeSet<VmId>,
}

impl SimHost {
    pub(crate) fn new(number: u8, domains: u8, skew: i64) -> SimHost {
        let name = HostName::new(format!("host-{number}")).unwrap_or_else(|error| unreachable!("{error}"));
        SimHost {
            name,
            number,
            domains,
            skew,
            clock_offset: u64::from(number) * 977,
            alive: true,
            session: 0,
            lease: HostLease::default(),
            serving: false,
            votes_from: 0,
            applied: Incarnation(0),
            vms: BTreeMap::new(),
            destroyed: BTreeSet::new(),
        }
    }

    /// The host's own clock at true time `now`.
    pub(crate) fn clock(&self, now: u64) -> Time {
        let gained = now as i64 * self.skew / 1_000_000;
        Time((now as i64 + gained) as u64 + self.clock_offset)
    }

    pub(crate) fn report(&mut self, now: u64) -> HostReport {
        let destroyed = &mut self.destroyed;
        self.vms.retain(|id, vm| {
            let stays = vm.gone_at.is_none_or(|gone| now < gone);
            if !stays {
                destroyed.insert(*id);
            }
            stays
        });
        let vms = self.vms.values().map(|vm| VmReport {
            vm: vm.goal.vm,
            reboots: vm.reboots,
            restarts: 0,
            observed: if self.serving && now >= vm.ready_at {
                Observed::Running(Readiness::Ready)
            } else {
                Observed::Starting
            },
            disk_bytes: 0,
            image_bytes: 0,
        });
        HostReport {
            host: self.name.clone(),
            facts: HostFacts {
                fault_domain: format!("fd-{}", self.number % self.domains),
                address: std::net::Ipv4Addr::new(10, 77, 1, self.number),
                capacity: Resources { cpu_milli: 4000, memory_mib: 8192 },
            },
            boot_id: self.session,
            lease_ack: self.lease.number(),
            applied: self.applied,
            vms: vms.collect(),
            incidents: Vec::new(),
        }
    }

    /// Takes the answer to a report: the grant, and the goal state of the same moment.
    pub(crate) fn granted(
        &mut self,
        now: u64,
        sent: Time,
        grant: LeaseGrant,
        goal: (Incarnation, Vec<VmGoal>),
        delay: u64,
    ) {
        self.lease.granted(sent, self.clock(now), grant);
        if goal.0 < self.applied {
            return;
        }
        self.applied = goal.0;
        for vm in self.vms.values_mut() {
            match goal.1.iter().find(|wanted| wanted.vm == vm.goal.vm) {
                None => drop(vm.gone_at.get_or_insert(now + delay)),
                Some(wanted) if wanted.reboots > vm.reboots => {
                    (vm.reboots, vm.ready_at) = (wanted.reboots, now + 10 * delay);
                }
                Some(_) => {}
            }
        }
        for wanted in goal.1 {
            let ready_at = now + 10 * delay;
            let fresh = SimVm { reboots: wanted.reboots, goal: wanted, ready_at, gone_at: None };
            self.vms.entry(fresh.goal.vm).or_insert(fresh);
        }
    }

    /// Whether its lease still runs.
    pub(crate) fn has_lease(&self, now: u64) -> bool {
        self.clock(now) < self.lease.serve_until()
    }

    /// Decides by the lease whether it serves, having heard this many peers, and whether any of them is fresh.
    pub(crate) fn check(&mut self, now: u64, voters: usize, (reached, others_fresh): (usize, bool)) {
        let clock = self.clock(now);
        self.serving = self.lease.may_serve(clock, voters, reached + 1, others_fresh) != MayServe::No;
    }

    /// Whether its peers count it as a voter.
    pub(crate) fn votes(&self, now: u64) -> bool {
        self.alive && now >= self.votes_from
    }

    /// Whether it tells its peers that it holds a fresh lease, at true time `now`.
    pub(crate) fn says_fresh(&self, now: u64) -> bool {
        self.alive && self.lease.fresh(self.clock(now))
    }

    /// Pulls the plug, or plugs it in again: processes, leases and memory are gone, disks stay.
    pub(crate) fn power(&mut self, on: bool, now: u64) {
        self.alive = on;
        self.session += 1;
        self.serving = false;
        self.votes_from = now + mayfly_model::LeaseTimings::default().fresh;
        self.lease = HostLease::default();
        for vm in self.vms.values_mut() {
            vm.ready_at = now + 2000;
        }
    }

    /// The identities that it may serve now, whether their guests are ready yet or not.
    pub(crate) fn identities(&self) -> impl Iterator<Item = &SimVm> {
        let serves = self.alive && self.serving;
        self.vms.values().filter(move |vm| serves && vm.gone_at.is_none())
    }
}
