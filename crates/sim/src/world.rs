//! The event loop: hosts, controller, faults and checks in one order of time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::Ipv4Addr;
use std::sync::Arc;

use mayfly_fabric::address::AddressRange;
use mayfly_fabric::check::{check, check_quiet};
use mayfly_fabric::{Change, Command, Config, Core, Input, Record, State, goal};
use mayfly_model::{
    HostCondition, HostName, HostReport, Incarnation, Instance, InstanceKey, LeaseGrant, LeaseTimings, Time, VmGoal,
    VmId,
};
use mayfly_store::{MemoryStore, Store, Write};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::host::SimHost;
use crate::network::Network;
use crate::workload::{self, Promises};

/// What a run consists of.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Hosts.
    pub hosts: u8,
    /// Fault domains they stand in.
    pub domains: u8,
    /// Milliseconds of faults and work.
    pub trouble: u64,
    /// Milliseconds of calm after it, within which everything has to be as wanted.
    pub calm: u64,
    /// A planted mistake: the controller gives up hosts this many ms too early. 0 in earnest.
    pub impatience: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options { hosts: 50, domains: 5, trouble: 30_000, calm: 90_000, impatience: 0 }
    }
}

/// What happened in a run that went well.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    /// Events of the loop.
    pub events: u64,
    /// Commands that were acknowledged.
    pub commands: u64,
    /// Host crashes, partitions and controller crashes.
    pub faults: u64,
    /// VMs that were placed.
    pub placed: u64,
}

/// A broken promise.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The seed that shows it.
    pub seed: u64,
    /// Milliseconds into the run.
    pub at: u64,
    /// What is wrong.
    pub what: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "seed {} at {} ms: {}", self.seed, self.at, self.what)
    }
}

enum Event {
    HostRenews(usize),
    HostChecks(usize),
    ReportArrives { host: usize, session: u64, sent: Time, report: Box<HostReport> },
    AnswerArrives { host: usize, session: u64, sent: Time, grant: LeaseGrant, goal: (Incarnation, Arc<Vec<VmGoal>>) },
    ControllerTicks,
    UserCommands,
    Fault,
    PowerOn(usize),
    ControllerStarts,
}

struct World {
    options: Options,
    rng: ChaCha8Rng,
    now: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: BTreeMap<u64, Event>,
    sequence: u64,
    hosts: Vec<SimHost>,
    network: Network,
    store: MemoryStore,
    /// The controller, while it runs.
    core: Option<Core>,
    promises: Promises,
    /// The newest generation and VM seen of each identity.
    generations: BTreeMap<(String, InstanceKey), (u64, Option<VmId>)>,
    goals: BTreeMap<usize, (Incarnation, Arc<Vec<VmGoal>>)>,
    summary: Summary,
}

type Checked = Result<(), String>;

/// Runs one seed.
///
/// # Errors
/// The first broken promise.
pub fn run(seed: u64, options: Options) -> Result<Summary, Box<Failure>> {
    let mut world = World::new(seed, options);
    world.live().map_err(|what| Box::new(Failure { seed, at: world.now, what }))?;
    Ok(world.summary)
}

impl World {
    fn new(seed: u64, options: Options) -> World {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        // Real clocks keep within 500 in a million; ten times that still has to be harmless.
        let hosts =
            (0..options.hosts).map(|number| SimHost::new(number, options.domains, rng.random_range(-5000..5000)));
        let hosts = hosts.collect();
        World {
            options,

            rng,
            now: 1000,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            sequence: 0,
            hosts,
            network: Network::default(),
            store: MemoryStore::default(),
            core: None,
            promises: Promises::default(),
            generations: BTreeMap::new(),
            goals: BTreeMap::new(),
            summary: Summary::default(),
        }
    }

    fn controller(&self) -> usize {
        self.hosts.len()
    }

    fn at(&mut self, delay: u64, event: Event) {
        self.sequence += 1;
        self.queue.push(Reverse((self.now + delay, self.sequence)));
        self.events.insert(self.sequence, event);
    }

    fn live(&mut self) -> Checked {
        for host in 0..self.hosts.len() {
            let phase = self.rng.random_range(0..500);
            self.at(phase, Event::HostRenews(host));
            self.at(phase / 5, Event::HostChecks(host));
        }
        self.start_controller()?;
        self.at(50, Event::ControllerTicks);
        self.at(2000, Event::UserCommands);
        self.at(5000, Event::Fault);
        let end = self.now + self.options.trouble + self.options.calm;
        while self.now < end {
            let Some(Reverse((time, sequence))) = self.queue.pop() else { break };
            let Some(event) = self.events.remove(&sequence) else { continue };
            self.now = time;
            self.summary.events += 1;
            self.handle(event)?;
        }
        self.check_rest()
    }

    fn in_trouble(&self) -> bool {
        self.now < 1000 + self.options.trouble
    }

    fn handle(&mut self, event: Event) -> Checked {
        match event {
            Event::HostRenews(host) => {
                self.at(500, Event::HostRenews(host));
                self.renew(host);
                Ok(())
            }
            Event::HostChecks(host) => {
                self.at(100, Event::HostChecks(host));
                self.check_host(host)
            }
            Event::ReportArrives { host, session, sent, report } => self.take_report(host, session, sent, *report),
            Event::AnswerArrives { host, session, sent, grant, goal } => {
                let delay = self.rng.random_range(20..300);
                let sim = &mut self.hosts[host];
                if sim.alive && sim.session == session {
                    sim.granted(self.now, sent, grant, (goal.0, goal.1.to_vec()), delay);
                    self.check_host(host)?;
                }
                Ok(())
            }
            Event::ControllerTicks => {
                self.at(100, Event::ControllerTicks);
                self.step(Input::Tick).map(drop)
            }
            Event::UserCommands => {
                if self.in_trouble() {
                    let delay = self.rng.random_range(20..400);
                    self.at(delay, Event::UserCommands);
                    self.command()?;
                }
                Ok(())
            }
            Event::Fault => {
                self.fault();
                Ok(())
            }
            Event::PowerOn(host) => {
                self.hosts[host].power(true, self.now);
                Ok(())
            }
            Event::ControllerStarts => self.start_controller(),
        }
    }

    fn renew(&mut self, host: usize) {
        if !self.hosts[host].alive {
            return;
        }
        let report = Box::new(self.hosts[host].report(self.now));
        let (session, sent) = (self.hosts[host].session, self.hosts[host].clock(self.now));
        if let Some(latency) = self.network.deliver(host, self.controller(), &mut self.rng) {
            self.at(latency, Event::ReportArrives { host, session, sent, report });
        }
    }

    fn take_report(&mut self, host: usize, session: u64, sent: Time, report: HostReport) -> Checked {
        let Some(grant) = self.step(Input::Report(report))? else { return Ok(()) };
        let grant = LeaseGrant { ttl: LeaseTimings::default().ttl, ..grant };
        let Some(core) = &self.core else { return Ok(()) };
        let revision = core.state().meta().revision;
        let goal = match self.goals.get(&host) {
            Some((known, goal)) if *known == revision => (revision, Arc::clone(goal)),
            _ => (revision, Arc::new(goal::vms(core.state(), &self.hosts[host].name))),
        };
        self.goals.insert(host, goal.clone());
        if let Some(latency) = self.network.deliver(self.controller(), host, &mut self.rng) {
            self.at(latency, Event::AnswerArrives { host, session, sent, grant, goal });
        }
        Ok(())
    }

    /// Lets the core step, commits, and checks. A controller that is down does nothing.
    fn step(&mut self, input: Input) -> Result<Option<LeaseGrant>, String> {
        let entropy = self.rng.random();
        let now = Time(self.now + 1);
        let Some(core) = &mut self.core else { return Ok(None) };
        let Ok(outcome) = core.step(now, entropy, input) else { return Ok(None) };
        self.commit(&outcome.changes)?;
        if !outcome.changes.is_empty() {
            self.check_state()?;
        }
        Ok(outcome.grant)
    }

    fn command(&mut self) -> Checked {
        let Some(core) = &self.core else { return Ok(()) };
        let before = core.state().clone();
        let command = workload::random_command(&before, &mut self.rng);
        let (entropy, now) = (self.rng.random(), Time(self.now + 1));
        let crash = self.in_trouble() && self.rng.random_ratio(1, 40);
        let Some(core) = &mut self.core else { return Ok(()) };
        let Ok(outcome) = core.step(now, entropy, Input::Command(command.clone())) else {
            return if *core.state() == before { Ok(()) } else { Err(format!("refused, yet changed: {command:?}")) };
        };
        if crash && self.rng.random() {
            // Killed before the commit: the command was not acknowledged, so it must not have happened.
            self.crash_controller();
            return Ok(());
        }
        self.commit(&outcome.changes)?;
        self.promises.note(&command, &before);
        self.summary.commands += 1;
        if crash {
            self.crash_controller();
            return Ok(());
        }
        self.check_state()
    }

    fn commit(&mut self, changes: &[Change]) -> Checked {
        let writes: Result<Vec<Write>, String> = changes
            .iter()
            .map(|change| match change {
                Change::Put(record) => {
                    Ok(Write::Put(record.key(), record.encode().map_err(|error| error.to_string())?))
                }
                Change::Delete(key) => Ok(Write::Delete(key.clone())),
            })
            .collect();
        let epoch = self.core.as_ref().map_or(0, |core| core.state().meta().epoch);
        self.store.commit(epoch, &writes?).map_err(|error| error.to_string())
    }

    fn crash_controller(&mut self) {
        self.core = None;
        self.summary.faults += 1;
        let delay = self.rng.random_range(200..6000);
        self.at(delay, Event::ControllerStarts);
    }

    fn start_controller(&mut self) -> Checked {
        if self.core.is_some() {
            return Ok(());
        }
        let records: Result<Vec<Record>, _> = self
            .store
            .load()
            .map_err(|error| error.to_string())?
            .iter()
            .map(|(_, bytes)| Record::decode(bytes))
            .collect();
        let records = records.map_err(|error| error.to_string())?;
        let first = records.is_empty();
        let (core, changes) = Core::start(records, self.config(), Time(self.now));
        self.store.fence(core.state().meta().epoch).map_err(|error| error.to_string())?;
        self.core = Some(core);
        self.goals.clear();
        self.commit(&changes)?;
        if first {
            self.step(Input::Command(Command::CommitImage(workload::image())))?;
        }
        self.check_state()
    }

    fn config(&self) -> Config {
        let range = |a, b, prefix| AddressRange { network: Ipv4Addr::new(a, b, 0, 0), prefix };
        let mut timings = LeaseTimings::default();
        // The hosts are told the true time to live below, so this one only makes the controller act too early.
        timings.ttl -= self.options.impatience.min(timings.ttl);
        Config { zone: "sim.test".to_owned(), dips: range(10, 80, 16), vips: range(10, 78, 24), timings }
    }

    fn check_host(&mut self, host: usize) -> Checked {
        if !self.hosts[host].alive {
            return Ok(());
        }
        let (now, voters) = (self.now, self.hosts.len() + 1);
        let peers = if self.hosts[host].has_lease(now) { (0, false) } else { self.peers_of(host) };
        let sim = &mut self.hosts[host];
        let was = sim.serving;
        sim.check(now, voters, peers);
        if was == sim.serving { Ok(()) } else { self.check_owners() }
    }

    /// How many peers a host hears, and whether any of them says that its lease is fresh.
    fn peers_of(&self, host: usize) -> (usize, bool) {
        let mesh_timeout = LeaseTimings::default().mesh_timeout;
        let mut reached = (0, false);
        for (other, peer) in self.hosts.iter().enumerate().filter(|(other, _)| *other != host) {
            if peer.votes(self.now) && self.network.heard_within(host, other, self.now, mesh_timeout) {
                // Cut off, its last word is from before the cut.
                let connected = self.network.connected(host, other);
                let said_at = if connected { self.now } else { self.network.changed_at() };
                reached = (reached.0 + 1, reached.1 || peer.says_fresh(said_at));
            }
        }
        reached
    }

    /// Invariant 1, as the network would see it.
    fn check_owners(&self) -> Checked {
        let mut owners: BTreeMap<&InstanceKey, (VmId, usize)> = BTreeMap::new();
        for (number, host) in self.hosts.iter().enumerate() {
            for (key, vm) in host.identities().map(|vm| (&vm.goal.instance, vm.goal.vm)) {
                if let Some((other, where_)) = owners.insert(key, (vm, number)) {
                    return Err(format!(
                        "invariant 1: {key} is served by {other} on host {where_} and {vm} on host {number}"
                    ));
                }
                if host.destroyed.contains(&vm) {
                    return Err(format!("invariant 4: {key} runs on the disk of {vm}, which was thrown away"));
                }
            }
        }
        Ok(())
    }

    fn check_state(&mut self) -> Checked {
        self.check_owners()?;
        let Some(core) = &self.core else { return Ok(()) };
        if let Some(violation) = check(core.state()).first() {
            return Err(format!("invariant {}: {}", violation.invariant, violation.what));
        }
        if let Some(broken) = self.promises.broken(core.state()) {
            return Err(format!("invariant 6: {broken}"));
        }
        for instance in core.state().instances().values() {
            let deployment = core.state().deployments().get(&instance.key.deployment);
            let id = deployment.map_or_else(String::new, |deployment| deployment.id.clone());
            let seen = self.generations.entry((id, instance.key.clone())).or_insert((0, None));
            let vm = instance.vm().map(|vm| vm.id);
            if vm.is_some() && vm != seen.1 {
                self.summary.placed += 1;
                check_spread(core.state(), instance)?;
                if instance.generation <= seen.0 {
                    return Err(format!(
                        "invariant 4: {} went back to generation {}",
                        instance.key, instance.generation
                    ));
                }
                *seen = (instance.generation, vm);
            }
        }
        Ok(())
    }

    fn fault(&mut self) {
        if !self.in_trouble() {
            self.network.partition(BTreeSet::new(), self.now);
            self.network.loss = 0;
            for host in 0..self.hosts.len() {
                if !self.hosts[host].alive {
                    self.at(1, Event::PowerOn(host));
                }
            }
            self.at(1, Event::ControllerStarts);
            return;
        }
        self.summary.faults += 1;
        let delay = self.rng.random_range(300..4000);
        self.at(delay, Event::Fault);
        let host = self.rng.random_range(0..self.hosts.len());
        match self.rng.random_range(0..10) {
            0..=3 if self.hosts[host].alive => {
                self.hosts[host].power(false, self.now);
                let off = self.rng.random_range(100..12_000);
                self.at(off, Event::PowerOn(host));
            }
            4..=5 => {
                let share = self.rng.random_range(1..60);
                let nodes = self.hosts.len() + 1;
                let minority = (0..nodes).filter(|_| self.rng.random_ratio(share, 100)).collect();
                self.network.partition(minority, self.now);
            }
            6..=7 => self.network.partition(BTreeSet::new(), self.now),
            8 if self.core.is_some() => self.crash_controller(),
            _ => self.network.loss = self.rng.random_range(0..30),
        }
    }

    /// Invariants 2 and 8 at rest, and that everything wanted runs.
    fn check_rest(&self) -> Checked {
        let Some(core) = &self.core else { return Err("the controller did not come back".to_owned()) };
        if let Some(violation) = check_quiet(core.state()).first() {
            return Err(format!("at rest, invariant {}: {}", violation.invariant, violation.what));
        }
        let served: BTreeSet<VmId> = self.hosts.iter().flat_map(SimHost::identities).map(|vm| vm.goal.vm).collect();
        let wanted: BTreeSet<VmId> =
            core.state().instances().values().filter_map(|one| one.wanted_vm()).map(|vm| vm.id).collect();
        if served != wanted {
            return Err(format!("at rest, {} VMs are wanted and {} serve", wanted.len(), served.len()));
        }
        if let Some(instance) = core.state().instances().values().find(|one| one.vm().is_some() && !one.is_ready()) {
            return Err(format!("at rest, {} is {}", instance.key, instance.state.name()));
        }
        let network = goal::network(core);
        let routed: BTreeSet<Ipv4Addr> = network.routes.iter().map(|route| route.dip).collect();
        let named: BTreeSet<Ipv4Addr> = network.dns.iter().map(|record| record.address).collect();
        if routed.len() != wanted.len() || !routed.is_subset(&named) {
            return Err("at rest, routes, names and members differ (invariant 8)".to_owned());
        }
        Ok(())
    }
}

/// Invariant 2, for an instance that has just got a VM: its fault domain has at most one more of its role than any other
/// that has a host up, and is not the only one if there are two.
fn check_spread(state: &State, placed: &Instance) -> Checked {
    let Some(vm) = placed.wanted_vm() else { return Ok(()) };
    let domain_of = |host: &HostName| state.hosts().get(host).map(|host| host.fault_domain.as_str());
    let up = state.hosts().values().filter(|host| host.condition == HostCondition::Up);
    let mut counts: BTreeMap<&str, u32> = up.map(|host| (host.fault_domain.as_str(), 0)).collect();
    for member in state.members(&placed.key.deployment, &placed.key.role).filter_map(Instance::wanted_vm) {
        if let Some(count) = domain_of(&member.host).and_then(|domain| counts.get_mut(domain)) {
            *count += 1;
        }
    }
    let own = domain_of(&vm.host).and_then(|domain| counts.get(domain)).copied();
    let fewest = counts.values().min().copied().unwrap_or(0);
    match own {
        None => Err(format!("invariant 2: {} was placed where no host is up", placed.key)),
        Some(own) if own > fewest + 1 || (counts.len() == 1 && own > 1) => {
            Err(format!("invariant 2: {} was placed unevenly: {counts:?}", placed.key))
        }
        Some(_) => Ok(()),
    }
}
