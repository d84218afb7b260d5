//! A simulated host: does what its goal state says, a little later, and fences itself by the real lease.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use mayfly_model::lease::MayServe;
use mayfly_model::{
    Digest, GoalState, HostFacts, HostLease, HostName, HostReport, LeaseGrant, LeaseTimings, NetworkGoal, Observed,
    Readiness, Resources, ServiceName, Time, Traffic, Transit, VmGoal, VmId, VmReport,
};

use crate::nodes::Nodes;

/// How long the kernel passes an orphan's packets between two looks; as the real guard has it.
const ORPHAN_MILLIS: u64 = 600;

/// Between two decisions of a host whether it serves, in ms.
const CHECK: u64 = 100;

/// Bytes that a guest sends between two reports.
const SENT: u64 = 1000;

/// What every host offers.
pub(crate) const CAPACITY: Resources = Resources { cpu_milli: 4000, memory_mib: 8192 };

/// How a guest is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guest {
    /// It is well.
    Well,
    /// It says nothing more.
    Stuck,
}

/// A VM on a simulated host.
#[derive(Clone, Debug)]
pub(crate) struct SimVm {
    pub(crate) goal: VmGoal,
    /// True time at which it is (again) ready.
    pub(crate) ready_at: u64,
    /// True time at which its removal is done, once it is not wanted.
    pub(crate) gone_at: Option<u64>,
    pub(crate) reboots: u32,
    pub(crate) restarts: u32,
    pub(crate) guest: Guest,
    /// Whose disk it runs on.
    pub(crate) disk: VmId,
    /// What it has sent and received, and how much of that is noted on the host's disk.
    traffic: Traffic,
    noted: Traffic,
    /// What the guest read as its base image; nothing while it is being fetched.
    pub(crate) read: Option<Digest>,
    /// Whether its guest has been started.
    pub(crate) running: bool,
    /// Whether the host's disk had no room for it.
    pub(crate) failed: bool,
}

/// A simulated host.
#[derive(Debug)]
pub(crate) struct SimHost {
    pub(crate) name: HostName,
    pub(crate) number: u8,
    pub(crate) domain: u8,
    /// The host's clock gains this many ms in a million.
    pub(crate) skew: i64,
    clock_offset: u64,
    pub(crate) alive: bool,
    /// Until this true time it does nothing at all.
    pub(crate) frozen_until: u64,
    /// Changes with each start; messages for an earlier one are dropped.
    pub(crate) session: u64,
    sequence: u64,
    /// When its agent was started, on its clock.
    agent_since: Time,
    lease: HostLease,
    timings: LeaseTimings,
    /// The end of its freshness as it was from each true time on, latest last: what it told its peers then.
    said: VecDeque<(u64, Time)>,
    pub(crate) serving: bool,
    /// Until when, on its clock, its kernel lets packets of its guests pass, whatever becomes of the agent.
    kernel_until: Time,
    /// Before this true time it does not count as a voter: it has forgotten what lease it held.
    votes_from: u64,
    followed: Arc<GoalState>,
    /// The goal state that it has written down: an earlier one, if its disk was full.
    written: Arc<GoalState>,
    /// The voters of its goal state: how many, and whether it is one.
    pub(crate) voters: (usize, Nodes),
    pub(crate) vms: BTreeMap<VmId, SimVm>,
    /// Disks that were thrown away; they must never come back.
    pub(crate) destroyed: BTreeSet<VmId>,
    pub(crate) disk_full: bool,
    /// Bytes that the guests of each service have sent.
    pub(crate) carried: BTreeMap<ServiceName, u64>,
    /// Planted mistakes.
    pub(crate) ignores_lease: bool,
    pub(crate) is_stubborn: bool,
    pub(crate) reuses_disks: bool,
}

impl SimHost {
    pub(crate) fn new(number: u8, domains: u8, skew: i64, timings: LeaseTimings) -> SimHost {
        let name = HostName::new(format!("host-{number}")).unwrap_or_else(|error| unreachable!("{error}"));
        SimHost {
            name,
            number,
            domain: number % domains,
            skew,
            clock_offset: u64::from(number) * 977,
            alive: true,
            frozen_until: 0,
            session: 1,
            sequence: 0,
            agent_since: Time(0),
            lease: HostLease::default(),
            timings,
            said: VecDeque::new(),
            serving: false,
            kernel_until: Time(0),
            votes_from: 0,
            followed: Arc::default(),
            written: Arc::default(),
            voters: (0, Nodes::default()),
            vms: BTreeMap::new(),
            destroyed: BTreeSet::new(),
            disk_full: false,
            carried: BTreeMap::new(),
            ignores_lease: false,
            is_stubborn: false,
            reuses_disks: false,
        }
    }

    /// Whether it does anything now.
    pub(crate) fn is_awake(&self, now: u64) -> bool {
        self.alive && now >= self.frozen_until
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
        for vm in self.vms.values_mut().filter(|vm| vm.running) {
            let more = Traffic { sent: SENT, received: 1 };
            vm.traffic = vm.traffic.plus(more);
            if vm.traffic.sent.is_multiple_of(5 * SENT) {
                vm.noted = vm.traffic;
            }
            *self.carried.entry(vm.goal.instance.deployment.service.clone()).or_default() += SENT;
        }
        let vms = self.vms.values().map(|vm| VmReport {
            vm: vm.goal.vm,
            reboots: vm.reboots,
            restarts: vm.restarts,
            observed: self.observed(vm, now),
            disk_bytes: 0,
            image_bytes: 0,
            cpu_milli: 100,
            traffic: vm.traffic,
            steps: Vec::new(),
        });
        let vms = vms.collect();
        self.sequence += 1;
        HostReport {
            host: self.name.clone(),
            facts: HostFacts {
                fault_domain: format!("fd-{}", self.domain),
                address: std::net::Ipv4Addr::new(10, 77, 1, self.number),
                capacity: CAPACITY,
                labels: BTreeMap::new(),
                features: BTreeSet::new(),
                images: BTreeSet::new(),
                transit: Transit::default(),
                tunnel_key: None,
            },
            boot_id: self.session,
            sequence: self.sequence,
            lease_ack: self.lease.number(),
            applied: self.followed.incarnation,
            vms,
            incidents: Vec::new(),
            counters: Default::default(),
        }
    }

    fn observed(&self, vm: &SimVm, now: u64) -> Observed {
        let runs = vm.gone_at.is_none() && vm.running && vm.read.is_some();
        match vm.guest {
            _ if vm.failed => Observed::Failed("the disk is full".to_owned()),
            _ if vm.gone_at.is_some() => Observed::Stopped("it is being thrown away".to_owned()),
            _ if !vm.goal.on => Observed::Off,
            Guest::Stuck if runs => Observed::Running(Readiness::Silent),
            _ if runs && now >= vm.ready_at => Observed::Running(Readiness::Ready),
            _ if runs => Observed::Starting,
            _ => Observed::Preparing("waiting".to_owned()),
        }
    }

    /// Takes the answer to a report: the grant, and the goal state of the same moment.
    pub(crate) fn granted(&mut self, now: u64, sent: Time, grant: LeaseGrant, goal: Arc<GoalState>, delay: u64) {
        // The goal state first: with the lease alone, a VM that is no longer wanted could be served for a moment.
        if sent < self.agent_since {
            // Its question was that of another process.
            return;
        }
        if goal.incarnation >= self.followed.incarnation && !(self.disk_full && self.is_stubborn) {
            if !self.disk_full {
                self.written = Arc::clone(&goal);
            }
            self.follow(now, goal, delay);
        }
        self.lease.granted(sent, self.clock(now), grant);
        self.said.push_back((now, self.lease.fresh_until()));
        if self.said.len() > 12 {
            self.said.pop_front();
        }
    }

    fn follow(&mut self, now: u64, goal: Arc<GoalState>, delay: u64) {
        self.voters = voters(&goal.network);
        for vm in self.vms.values_mut() {
            match goal.vms.iter().find(|wanted| wanted.vm == vm.goal.vm) {
                None => drop(vm.gone_at.get_or_insert(now + delay)),
                Some(wanted) => {
                    if wanted.reboots > vm.reboots || (wanted.on && !vm.goal.on) {
                        (vm.reboots, vm.ready_at, vm.guest) = (wanted.reboots, now + 10 * delay, Guest::Well);
                    }
                    vm.goal = wanted.clone();
                }
            }
        }
        for wanted in goal.vms.iter().filter(|_| !goal.restored) {
            if self.vms.contains_key(&wanted.vm) {
                continue;
            }
            let last = self.destroyed.last().copied().filter(|_| self.reuses_disks);
            let fresh = SimVm {
                goal: wanted.clone(),
                ready_at: now + 10 * delay,
                gone_at: None,
                reboots: wanted.reboots,
                restarts: 0,
                guest: Guest::Well,
                disk: last.unwrap_or(wanted.vm),
                traffic: Traffic::default(),
                noted: Traffic::default(),
                read: None,
                running: false,
                failed: self.disk_full,
            };
            self.vms.insert(wanted.vm, fresh);
        }
        self.followed = goal;
    }

    /// Takes what has arrived of the images that its VMs need. `damaged` says that it is not what it should be.
    pub(crate) fn fetch(&mut self, content: impl Fn(&Digest) -> Vec<u8>, damaged: bool, verifies: bool) {
        let full = self.disk_full;
        for vm in self.vms.values_mut() {
            vm.failed &= full;
            if vm.read.is_some() || vm.failed {
                continue;
            }
            let mut bytes = content(&vm.goal.image);
            if damaged {
                bytes[0] ^= 1;
            }
            let arrived = Digest::of(&bytes);
            if arrived == vm.goal.image || !verifies {
                vm.read = Some(arrived);
            }
        }
    }

    /// Whether it is asked to reboot.
    pub(crate) fn wants_reboot(&self, goal: &GoalState) -> bool {
        goal.reboot == Some(self.session)
    }

    /// Whether its lease still runs.
    pub(crate) fn has_lease(&self, now: u64) -> bool {
        self.clock(now) < self.lease.serve_until()
    }

    /// Decides by the lease whether it serves, having heard this many peers, and whether any of them is fresh.
    pub(crate) fn check(&mut self, now: u64, (reached, others_fresh): (usize, bool)) {
        let clock = self.clock(now);
        let own = usize::from(self.voters.1.contains(usize::from(self.number)));
        let voters = if self.voters.0 == 0 { usize::MAX / 2 } else { self.voters.0 };
        let may = self.lease.may_serve(clock, &self.timings, voters, (reached + own, others_fresh));
        self.serving = may != MayServe::No || (self.ignores_lease && self.lease.number() > 0);
        for vm in self.vms.values_mut() {
            // What is going is not started again, and runs until it is gone; without a lease nothing runs.
            vm.running = self.serving && (vm.running || (vm.gone_at.is_none() && !self.followed.restored));
        }
        self.kernel_until = match may {
            _ if self.ignores_lease => Time(u64::MAX),
            MayServe::Lease => self.lease.serve_until(),
            MayServe::Orphaned => clock.plus(ORPHAN_MILLIS),
            MayServe::No => Time(0),
        };
    }

    /// In how many ms it decides again by itself. It does so ten times a second; as long as its lease runs that changes
    /// nothing, and what changes anything (a goal state, a grant, its own restart) is followed by a decision of its own.
    pub(crate) fn next_check(&self, now: u64) -> u64 {
        let left = self.lease.serve_until().since(self.clock(now));
        // Its clock may be a hundredth fast or slow.
        let sure = left.saturating_sub(left / 100 + CHECK) / CHECK * CHECK;
        if self.is_awake(now) && self.serving { sure.max(CHECK) } else { CHECK }
    }

    /// Whether its peers count it as a voter.
    pub(crate) fn votes(&self, now: u64) -> bool {
        self.alive && now >= self.votes_from
    }

    /// Whether it told its peers, at true time `then`, that it holds a fresh lease.
    pub(crate) fn said_fresh(&self, then: u64) -> bool {
        let until = self.said.iter().rev().find(|(from, _)| *from <= then).map(|(_, until)| *until);
        until.is_some_and(|until| self.clock(then) < until)
    }

    /// Pulls the plug, or plugs it in again: processes, leases and memory are gone, disks stay.
    pub(crate) fn power(&mut self, on: bool, now: u64) {
        self.alive = on;
        self.session += 1;
        self.sequence = 0;
        self.frozen_until = 0;
        self.serving = false;
        self.votes_from = now + self.timings.fresh;
        self.lease = HostLease::default();
        self.remember();
        self.said.clear();
        for vm in self.vms.values_mut() {
            (vm.ready_at, vm.guest, vm.running, vm.traffic) = (now + 2000, Guest::Well, false, vm.noted);
        }
    }

    /// The agent ends and another goes on from its notes: the lease is among them, what peers said is not.
    pub(crate) fn restart_agent(&mut self, now: u64) {
        let lease = self.lease;
        self.lease =
            HostLease::resumed(lease.number(), lease.serve_until(), lease.fresh_until(), lease.entitled_until());
        self.frozen_until = now + 300;
        self.agent_since = self.clock(now);
        if self.written.incarnation != self.followed.incarnation {
            // No lease is noted beside a goal state of before.
            self.lease = HostLease::default();
            self.votes_from = now + self.timings.fresh;
        }
        self.remember();
    }

    /// Goes on from what is written down.
    fn remember(&mut self) {
        self.followed = Arc::clone(&self.written);
        self.voters = voters(&self.followed.network);
        // What was about to go stays, if it was wanted then.
        for vm in self.vms.values_mut().filter(|vm| vm.gone_at.is_some()) {
            if self.followed.vms.iter().any(|wanted| wanted.vm == vm.goal.vm) {
                vm.gone_at = None;
            }
        }
    }

    /// The identities that it may serve now, whether their guests are ready yet or not.
    pub(crate) fn identities(&self, now: u64) -> impl Iterator<Item = &SimVm> {
        // A host that stands still serves nobody; its guests stand still too.
        let serves = self.is_awake(now) && self.serving && self.clock(now) < self.kernel_until;
        self.vms.values().filter(move |vm| serves && vm.running && vm.gone_at.is_none() && vm.goal.on)
    }
}

fn voters(network: &NetworkGoal) -> (usize, Nodes) {
    let number = |host: &HostName| host.as_str().strip_prefix("host-").and_then(|number| number.parse().ok());
    let voting = network.peers.iter().filter(|peer| peer.voter);
    (network.voters, voting.filter_map(|peer| number(&peer.host)).collect())
}
