//! The event loop: hosts, controller, faults and checks in one order of time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::Ipv4Addr;
use std::sync::Arc;

use mayfly_fabric::address::AddressRange;
use mayfly_fabric::{Change, Command, Config, Core, HealingPolicy, Input, Overcommit, Record, goal};
use mayfly_model::{Digest, GoalState, HostCondition, HostReport, LeaseGrant, LeaseTimings, Time};
use mayfly_store::{MemoryStore, Store, Write};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::host::SimHost;
use crate::network::Network;
use crate::options::{Failure, Fault, Options, Plant, Summary, draw_lease, timings};
use crate::oracle::{self, Checked, Oracle};
use crate::workload::{self, Promises};

mod deposed;
mod faults;
mod restore;

use deposed::Deposed;
use restore::Backup;

/// Of so many commands one is looked at for whether a refusal has changed anything.
const COMPARED: u32 = 8;

enum Event {
    HostRenews(usize),
    HostChecks(usize),
    ReportArrives {
        host: usize,
        session: u64,
        sent: Time,
        report: Box<HostReport>,
    },
    AnswerArrives {
        host: usize,
        session: u64,
        sent: Time,
        grant: LeaseGrant,
        goal: Arc<GoalState>,
    },
    ControllerTicks,
    UserCommands,
    /// A user who got no answer asks again.
    UserAsksAgain(String, Box<Command>),
    Fault,
    PowerOn(usize),
    RebootHost(usize),
    ControllerStarts,
    /// What waited for a stalled store is dealt with.
    StoreGoesOn,
    Audit,
}

/// Independent streams of random bits, so that a draw more in one does not shift the others.
struct Streams {
    network: ChaCha8Rng,
    faults: ChaCha8Rng,
    users: ChaCha8Rng,
    core: ChaCha8Rng,
}

struct World {
    seed: u64,
    options: Options,
    timings: LeaseTimings,
    faults: BTreeSet<Fault>,
    rng: Streams,
    now: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: BTreeMap<u64, Event>,
    sequence: u64,
    hosts: Vec<SimHost>,
    network: Network,
    store: MemoryStore,
    /// The controller, while it runs.
    core: Option<Core>,
    /// The last backup, and whether the records are to become it.
    backup: Option<Backup>,
    /// When a backup was restored last.
    restored: Option<u64>,
    /// What disks' numbers were greater than at the beginning, and after each restore.
    firsts: Vec<u64>,
    deposed: Option<Deposed>,
    /// What the controller's wall clock is ahead of the truth since its last start.
    clock_ahead: i64,
    stalled_until: u64,
    stalled: Vec<Event>,
    promises: Promises,
    /// Requests that were carried out.
    done: BTreeSet<String>,
    oracle: Oracle,
    images: BTreeSet<Digest>,
    goals: BTreeMap<usize, Arc<GoalState>>,
    summary: Summary,
}

/// Runs one seed.
///
/// # Errors
/// The first broken promise.
pub fn run(seed: u64, options: Options) -> Result<Summary, Box<Failure>> {
    let mut world = World::new(seed, options);
    match world.live() {
        Ok(()) => {
            let (placed, hash) = (world.oracle.placed, world.oracle.hash);
            Ok(Summary { placed, hash, millis: world.now, ..world.summary })
        }
        Err(what) => Err(Box::new(world.failure(what))),
    }
}

impl World {
    fn new(seed: u64, options: Options) -> World {
        let stream = |number: u64| ChaCha8Rng::seed_from_u64(seed.wrapping_mul(31).wrapping_add(number));
        let mut rng = Streams { network: stream(1), faults: stream(2), users: stream(3), core: stream(4) };
        let mut swarm = stream(5);
        let faults = options.faults.clone().unwrap_or_else(|| Fault::swarm(&mut swarm));
        let lease = options.lease.unwrap_or_else(|| draw_lease(&mut stream(6)));
        let timings = timings(lease);
        // Real clocks keep within 500 in a million; ten times that still has to be harmless.
        let skew = |rng: &mut Streams| rng.faults.random_range(-5000..5000);
        let mut hosts: Vec<SimHost> =
            (0..options.hosts).map(|number| SimHost::new(number, options.domains, skew(&mut rng), timings)).collect();
        let late = faults.contains(&Fault::Join);
        for (number, host) in hosts.iter_mut().enumerate() {
            // At least two are there from the start.
            host.alive = number < 2 || !late || rng.faults.random();
            host.ignores_lease = options.mutant == Some(Plant::IgnoreLease);
            host.is_stubborn = options.mutant == Some(Plant::StubbornHost);
            host.reuses_disks = options.mutant == Some(Plant::ReuseDisk);
        }
        World {
            seed,
            options: Options { faults: Some(faults.clone()), lease: Some(lease), ..options },
            timings,
            faults,
            rng,
            now: 1000,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            sequence: 0,
            hosts,
            network: Network::default(),
            store: MemoryStore::default(),
            core: None,
            backup: None,
            restored: None,
            firsts: vec![0],
            deposed: None,
            clock_ahead: 0,
            stalled_until: 0,
            stalled: Vec::new(),
            promises: Promises::default(),
            done: BTreeSet::new(),
            oracle: Oracle::default(),
            images: workload::IMAGES.iter().map(|name| workload::image(name).digest).collect(),
            goals: BTreeMap::new(),
            summary: Summary::default(),
        }
    }

    fn failure(&self, what: String) -> Failure {
        let events = self.core.iter().flat_map(|core| core.state().events().values().rev().take(30));
        let mut events: Vec<String> = events
            .map(|event| format!("{} {:?} {}: {}", event.time.0, event.kind, event.subject, event.message))
            .collect();
        events.reverse();
        Failure { seed: self.seed, at: self.now, what, options: self.options.clone(), events }
    }

    fn controller(&self) -> usize {
        self.hosts.len()
    }

    /// Time as the controller has it.
    fn core_time(&self) -> Time {
        Time((self.now as i64 + 1 + self.clock_ahead) as u64)
    }

    fn at(&mut self, delay: u64, event: Event) {
        self.sequence += 1;
        self.queue.push(Reverse((self.now + delay, self.sequence)));
        self.events.insert(self.sequence, event);
    }

    fn live(&mut self) -> Checked {
        for host in 0..self.hosts.len() {
            let phase = self.rng.faults.random_range(0..self.timings.renew);
            self.at(phase, Event::HostRenews(host));
            self.at(phase / 5, Event::HostChecks(host));
        }
        self.start_controller()?;
        self.at(50, Event::ControllerTicks);
        self.at(3000, Event::UserCommands);
        self.at(6000, Event::Fault);
        self.at(5000, Event::Audit);
        let end = self.now + self.options.trouble + self.options.calm;
        while self.now < end {
            let Some(Reverse((time, sequence))) = self.queue.pop() else { break };
            let Some(event) = self.events.remove(&sequence) else { continue };
            self.now = time;
            self.summary.events += 1;
            self.handle(event)?;
        }
        match &self.core {
            Some(core) => oracle::check_rest(core, &self.hosts, (self.now, self.core_time())),
            None => Err("the controller did not come back".to_owned()),
        }
    }

    fn in_trouble(&self) -> bool {
        self.now < 1000 + self.options.trouble
    }

    fn handle(&mut self, event: Event) -> Checked {
        match event {
            Event::HostRenews(host) => {
                self.at(self.timings.renew, Event::HostRenews(host));
                self.check_host(host)?;
                self.renew(host);
                Ok(())
            }
            Event::HostChecks(host) => {
                self.check_host(host)?;
                let next = self.hosts[host].next_check(self.now);
                self.at(next, Event::HostChecks(host));
                Ok(())
            }
            event @ Event::ReportArrives { .. } if self.now < self.stalled_until => {
                self.stalled.push(event);
                Ok(())
            }
            Event::ReportArrives { host, session, sent, report } => self.take_report(host, session, sent, *report),
            Event::AnswerArrives { host, session, sent, grant, goal } => {
                self.take_answer(host, session, sent, grant, goal)
            }
            Event::ControllerTicks => {
                self.at(100, Event::ControllerTicks);
                if self.now < self.stalled_until { Ok(()) } else { self.step(Input::Tick).map(drop) }
            }
            Event::UserCommands => {
                if self.in_trouble() {
                    let delay = self.rng.users.random_range(20..400);
                    self.at(delay * self.options.pace, Event::UserCommands);
                    self.command()?;
                }
                Ok(())
            }
            Event::UserAsksAgain(id, command) => self.request(id, *command),
            Event::Fault => self.fault(),
            Event::PowerOn(host) => {
                if !self.hosts[host].alive {
                    self.hosts[host].power(true, self.now);
                }
                Ok(())
            }
            Event::RebootHost(host) => {
                self.hosts[host].power(false, self.now);
                self.at(1000, Event::PowerOn(host));
                Ok(())
            }
            Event::ControllerStarts => self.start_controller(),
            Event::StoreGoesOn => {
                for event in std::mem::take(&mut self.stalled) {
                    self.handle(event)?;
                }
                Ok(())
            }
            Event::Audit => {
                self.at(5000, Event::Audit);
                self.audit()
            }
        }
    }

    /// What is too dear to check after every step.
    fn audit(&mut self) -> Checked {
        oracle::check_room(&self.hosts)?;
        let now = self.core_time();
        match &self.core {
            Some(core) => {
                oracle::check_routes(core)?;
                self.oracle.check_ledger(core.state(), &self.hosts, now)
            }
            None => Ok(()),
        }
    }

    fn renew(&mut self, host: usize) {
        if !self.hosts[host].is_awake(self.now) {
            return;
        }
        let damaged =
            self.in_trouble() && self.faults.contains(&Fault::BadChunks) && self.rng.faults.random_ratio(1, 5);
        let verifies = self.options.mutant != Some(Plant::SkipDigest);
        let content = |digest: &Digest| {
            let name = workload::IMAGES.into_iter().find(|name| workload::image(name).digest == *digest);
            workload::content(name.unwrap_or_default())
        };
        self.hosts[host].fetch(content, damaged, verifies);
        self.kill_by_image(host);
        if !self.hosts[host].alive {
            return;
        }
        let report = Box::new(self.hosts[host].report(self.now));
        let (session, sent) = (self.hosts[host].session, self.hosts[host].clock(self.now));
        for latency in self.network.deliver(host, self.controller(), &mut self.rng.network) {
            self.at(latency, Event::ReportArrives { host, session, sent, report: report.clone() });
        }
    }

    /// A guest of the killer image has booted: that is the end of its host, for a while.
    fn kill_by_image(&mut self, host: usize) {
        let (now, sim) = (self.now, &self.hosts[host]);
        let killer = |vm: &&crate::host::SimVm| {
            vm.goal.instance.deployment.service.as_str() == workload::KILLER && vm.goal.on && vm.read.is_some()
        };
        let mut booted = sim.vms.values().filter(|vm| vm.gone_at.is_none() && now + 500 >= vm.ready_at && sim.serving);
        let Some(vm) = booted.find(killer) else { return };
        // The first disk, or the first after the restore of a backup.
        let first = self.firsts.iter().any(|least| vm.goal.generation == least + 1);
        if !first {
            self.oracle.note_killed(now, &vm.goal.deployment_id, vm.goal.vm);
        }
        self.hosts[host].power(false, now);
        self.at(20_000, Event::PowerOn(host));
    }

    fn take_report(&mut self, host: usize, session: u64, sent: Time, report: HostReport) -> Checked {
        if let Some((grant, goal)) = self.ask_deposed(host, &report) {
            return self.answer(host, session, sent, grant, goal);
        }
        let Some(grant) = self.step(Input::Report(report))? else { return Ok(()) };
        let grant = LeaseGrant { ttl: self.timings.ttl, ..grant };
        let Some(core) = &self.core else { return Ok(()) };
        let revision = core.state().meta().revision;
        let goal = match self.goals.get(&host) {
            Some(goal) if goal.incarnation == revision => Arc::clone(goal),
            _ => Arc::new(small_goal(core, &self.hosts[host])),
        };
        self.goals.insert(host, Arc::clone(&goal));
        self.answer(host, session, sent, grant, goal)
    }

    /// Sends a host a grant, and the goal state of the same moment.
    fn answer(&mut self, host: usize, session: u64, sent: Time, grant: LeaseGrant, goal: Arc<GoalState>) -> Checked {
        for latency in self.network.deliver(self.controller(), host, &mut self.rng.network) {
            self.at(latency, Event::AnswerArrives { host, session, sent, grant, goal: goal.clone() });
        }
        Ok(())
    }

    fn take_answer(
        &mut self,
        host: usize,
        session: u64,
        sent: Time,
        grant: LeaseGrant,
        goal: Arc<GoalState>,
    ) -> Checked {
        let delay = self.rng.network.random_range(20..300);
        let now = self.now;
        let sim = &mut self.hosts[host];
        if !sim.is_awake(now) || sim.session != session {
            return Ok(());
        }
        if sim.wants_reboot(&goal) {
            self.at(500, Event::RebootHost(host));
        }
        self.hosts[host].granted(now, sent, grant, goal, delay);
        self.check_host(host)
    }

    /// Lets the core step, commits, and checks. A controller that is down does nothing.
    fn step(&mut self, input: Input) -> Result<Option<LeaseGrant>, String> {
        let entropy = self.rng.core.random();
        let now = self.core_time();
        let Some(core) = &mut self.core else { return Ok(None) };
        let Ok(outcome) = core.step(now, entropy, input) else { return Ok(None) };
        let lost = |change: &&Change| matches!(change, Change::Put(Record::Host(host)) if host.condition == HostCondition::Lost { since: now });
        self.summary.lost += outcome.changes.iter().filter(lost).count() as u64;
        self.commit(&outcome.changes)?;
        if !outcome.changes.is_empty() {
            self.check_state()?;
        }
        Ok(outcome.grant)
    }

    fn command(&mut self) -> Checked {
        let Some(core) = &self.core else { return Ok(()) };
        let killer = self.faults.contains(&Fault::KillerImage);
        let command = workload::random_command(core.state(), &mut self.rng.users, killer);
        let id = format!("{:016x}", self.rng.users.random::<u64>());
        self.request(id, command)
    }

    /// A user's request reaches the controller, or does not; the answer reaches the user, or does not.
    fn request(&mut self, id: String, command: Command) -> Checked {
        let (entropy, now) = (self.rng.core.random(), self.core_time());
        let crash =
            self.in_trouble() && self.faults.contains(&Fault::ControllerCrash) && self.rng.users.random_ratio(1, 40);
        let lost = self.in_trouble() && self.faults.contains(&Fault::LostAnswers) && self.rng.users.random_ratio(1, 4);
        let stalled = self.now < self.stalled_until;
        let again = Event::UserAsksAgain(id.clone(), Box::new(command.clone()));
        let Some(core) = self.core.as_mut().filter(|_| !stalled) else {
            self.at(700, again);
            return Ok(());
        };
        let deployments = core.state().deployments().clone();
        let was_answered = core.state().answered_contains(&id);
        // It costs more than all else.
        let before = self.rng.users.random_ratio(1, COMPARED).then(|| core.state().clone());
        let known = self.done.contains(&id);
        let Ok(outcome) = core.step(now, entropy, Input::Request(id.clone(), command.clone())) else {
            let untouched = known || before.is_none_or(|before| *core.state() == before);
            return if untouched { Ok(()) } else { Err(format!("refused, yet changed: {command:?}")) };
        };
        if known && !outcome.changes.is_empty() && was_answered {
            return Err(format!("invariant 6: carried out twice: {command:?}"));
        }
        let early = self.options.mutant == Some(Plant::AckEarly);
        if crash && self.rng.users.random() {
            // Killed before the commit. If the command was not acknowledged, it must not have happened.
            if early {
                self.promises.note(&command, &deployments);
            }
            // Nobody is ever told of what was not committed, so it is no leader for a while either.
            self.core = None;
            self.crash_controller();
            return Ok(());
        }
        self.commit(&outcome.changes)?;
        if !known {
            self.done.insert(id.clone());
            self.promises.note(&command, &deployments);
            self.summary.commands += 1;
        }
        if lost {
            self.at(700, again);
        }
        self.check_state()?;
        if crash {
            self.crash_controller();
        }
        Ok(())
    }

    fn commit(&mut self, changes: &[Change]) -> Checked {
        let writes: Result<Vec<Write>, String> = changes
            .iter()
            .map(|change| match change {
                Change::Put(record) => {
                    Ok(Write::Put(record.key(), record.encode().map_err(|error| error.to_string())?))
                }
                Change::Delete(id) => Ok(Write::Delete(id.to_string())),
            })
            .collect();
        let epoch = self.core.as_ref().map_or(0, |core| core.state().meta().epoch);
        self.store.commit(epoch, &writes?).map_err(|error| error.to_string())
    }

    fn crash_controller(&mut self) {
        self.summary.faults += 1;
        self.stalled.clear();
        let delay = self.rng.faults.random_range(200..6000);
        if self.rng.faults.random() {
            self.depose(delay);
        }
        self.core = None;
        self.at(delay, Event::ControllerStarts);
    }

    fn start_controller(&mut self) -> Checked {
        if self.core.is_some() {
            return Ok(());
        }
        self.end_deposed();
        let epoch = self.store.take_over(0).map_err(|error| error.to_string())?;
        let records: Result<Vec<Record>, _> = self
            .store
            .load()
            .map_err(|error| error.to_string())?
            .iter()
            .map(|(_, bytes)| Record::decode(bytes))
            .collect();
        let records = records.map_err(|error| error.to_string())?;
        let first = records.is_empty();
        if !first && self.faults.contains(&Fault::ControllerCrash) {
            self.clock_ahead += self.rng.faults.random_range(-500..20_000);
        }
        let (mut core, changes) = Core::start(records, epoch, self.config(), self.core_time());
        if let Some(Plant::Core(mutant)) = self.options.mutant {
            core.plant(mutant);
        }
        self.core = Some(core);
        self.goals.clear();
        self.commit(&changes)?;
        if first {
            for name in workload::IMAGES {
                self.step(Input::Command(Command::CommitImage(workload::image(name))))?;
            }
        }
        self.check_state()
    }

    fn config(&self) -> Config {
        let range = |a, b, prefix| AddressRange { network: Ipv4Addr::new(a, b, 0, 0), prefix };
        let mut timings = self.timings;
        if self.options.mutant == Some(Plant::Impatience) {
            // The hosts are told the true time to live, so this only makes the controller act too early.
            timings.ttl /= 2;
        }
        Config {
            zone: "sim.test".to_owned(),
            dips: range(10, 80, 16),
            vips: range(10, 78, 24),
            ipv6: None,
            timings,
            overcommit: Overcommit::default(),
            healing: HealingPolicy { calm: 10_000, backoff: 3000, ..HealingPolicy::default() },
        }
    }

    fn check_host(&mut self, host: usize) -> Checked {
        if !self.hosts[host].is_awake(self.now) {
            return Ok(());
        }
        let peers = if self.hosts[host].has_lease(self.now) { (0, false) } else { self.peers_of(host) };
        let sim = &mut self.hosts[host];
        let was = sim.serving;
        sim.check(self.now, peers);
        if was == sim.serving { Ok(()) } else { oracle::check_owners(&self.hosts, self.now, &self.images) }
    }

    /// How many voting peers a host hears, and whether any of them said that its lease is fresh.
    fn peers_of(&self, host: usize) -> (usize, bool) {
        let mesh_timeout = self.timings.mesh_timeout;
        let mut reached = (0, false);
        let voters = self.hosts[host].voters.1;
        for (other, peer) in self.hosts.iter().enumerate().filter(|(other, _)| *other != host) {
            if !voters.contains(other) || !peer.votes(self.now) {
                continue;
            }
            let said = self.network.last_word(host, other, self.now, mesh_timeout);
            if let Some(said) = said.filter(|said| *said >= peer.frozen_until || peer.is_awake(*said)) {
                reached = (reached.0 + 1, reached.1 || peer.said_fresh(said));
            }
        }
        reached
    }

    fn check_state(&mut self) -> Checked {
        oracle::check_owners(&self.hosts, self.now, &self.images)?;
        let now = self.core_time();
        match &self.core {
            Some(core) => self.oracle.check_state(core.state(), now, &self.promises),
            None => Ok(()),
        }
    }
}

/// The goal state with what a simulated host looks at.
fn small_goal(core: &Core, host: &SimHost) -> GoalState {
    let state = core.state();
    let peers = state.hosts().values().map(|host| goal::peer(host)).collect();
    let network = mayfly_model::NetworkGoal { peers, voters: core.voters(), ..Default::default() };
    GoalState {
        incarnation: state.meta().revision,
        vms: goal::vms(core, &host.name),
        restored: goal::is_held(core),
        kept: Vec::new(),
        network,
        reboot: state.hosts().get(&host.name).and_then(|host| host.reboot()),
    }
}
