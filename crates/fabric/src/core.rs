//! The core's one entrance.

use mayfly_model::{Ipv6Prefix, LeaseTimings, Time};
use serde::{Deserialize, Serialize};

use crate::address::AddressRange;
use crate::command::{Command, Input, Outcome, Rejected};
use crate::deployments::{self, NewDeployment};
use crate::entropy::Entropy;
use crate::lease::Leases;
use crate::mutant::{Mutant, Planted};
use crate::record::{Answered, Change, Record, RecordId};
use crate::state::State;
use crate::step::Step;
use crate::{
    autoscale, breaker, certificates, drain, enrolment, hosts, instances, ladder, rebalance, report, reservations,
    services, swap, upgrade,
};

/// What an operator decides once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The DNS zone.
    pub zone: String,
    /// Where DIPs come from.
    pub dips: AddressRange,
    /// Where VIPs come from.
    pub vips: AddressRange,
    /// What IPv6 addresses begin with, if there are any.
    pub ipv6: Option<Ipv6Prefix>,
    /// The leases' times.
    pub timings: LeaseTimings,
    /// How much more than a host has may be promised.
    pub overcommit: Overcommit,
    /// How sick instances and lost hosts are dealt with.
    pub healing: HealingPolicy,
}

/// How much of a host may be promised to instances, in percent of what it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Overcommit {
    /// Of its cores.
    pub cpu_percent: u64,
    /// Of its memory.
    pub memory_percent: u64,
}

impl Default for Overcommit {
    fn default() -> Self {
        Overcommit { cpu_percent: 100, memory_percent: 100 }
    }
}

/// How sick instances and lost hosts are dealt with. Times in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HealingPolicy {
    /// Most instances that are being healed at a time.
    pub concurrent: usize,
    /// How far back the breaker looks.
    pub window: u64,
    /// Percent of all hosts that may be lost within the window; as many as the largest fault domain has may be lost
    /// in any case.
    pub fleet_percent: usize,
    /// Hosts that a deployment may take with it, or fail on, before it is to blame.
    pub hosts: usize,
    /// How long an instance has to be well until its troubles are forgotten.
    pub calm: u64,
    /// Between the first two tries with a sick instance; doubles with each.
    pub backoff: u64,
    /// Restarts by itself within the window that make an instance cycling.
    pub crashes: usize,
}

impl Default for HealingPolicy {
    fn default() -> Self {
        HealingPolicy {
            concurrent: 1000,
            window: 600_000,
            fleet_percent: 34,
            hosts: 3,
            calm: 600_000,
            backoff: 30_000,
            crashes: 4,
        }
    }
}

/// The fabric core.
#[derive(Clone, Debug)]
pub struct Core {
    state: State,
    leases: Leases,
    config: Config,
    planted: Planted,
}

impl Core {
    /// A core that goes on from these records as the `epoch`th controller, and the changes to commit before its first step.
    pub fn start(
        records: impl IntoIterator<Item = Record>,
        epoch: u64,
        config: Config,
        now: Time,
    ) -> (Core, Vec<Change>) {
        let mut state = State::load(records);
        state.meta.epoch = epoch;
        let changes = vec![Change::Put(Record::Meta(Box::new(state.meta.clone())))];
        let leases = Leases::new(config.timings, state.meta.epoch, state.hosts.keys().cloned(), now);
        (Core { state, leases, config, planted: Planted::default() }, changes)
    }

    /// Plants a mistake, to see whether it is found.
    #[cfg(feature = "mutants")]
    pub fn plant(&mut self, mutant: Mutant) {
        self.planted = Planted::new(mutant);
        self.leases.plant(self.planted);
        // What is derived from the records is wrong from the start, so it is derived again.
        let mut state = State { index: Default::default(), ..self.state.clone() };
        state.index.forget_retiring = mutant == Mutant::ForgetRetiring;
        state.index_again();
        self.state = state;
    }

    /// The records.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The operator's decisions.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The leases.
    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    pub(crate) fn planted(&self) -> Planted {
        self.planted
    }

    /// Voters of the location: its voting hosts, and the controllers, which together have one vote.
    pub fn voters(&self) -> usize {
        self.state.hosts.values().filter(|host| host.voter).count() + 1
    }

    /// Decides what `input` at `now` changes. `now` never goes backwards; `entropy` is fresh random bits.
    ///
    /// # Errors
    /// Why a command is refused; nothing has changed then.
    pub fn step(&mut self, now: Time, entropy: u64, input: Input) -> Result<Outcome, Rejected> {
        let mut step = Step::new(&mut self.state, &self.config, Entropy(entropy), now, self.planted);
        let mut grant = None;
        let plans = matches!(input, Input::Plan(_));
        step.plans = plans;
        let done = match input {
            Input::Command(command) | Input::Plan(command) => execute(&mut step, command),
            Input::Request(id, command) => request(&mut step, id, command),
            Input::Report(host_report) => match self.leases.report(&host_report, now) {
                None => Err(Rejected::Stale),
                Some(answer) => {
                    grant = Some(answer);
                    report::apply(&mut step, &host_report);
                    instances::settle(&mut step);
                    Ok(())
                }
            },
            Input::Tick => {
                hosts::judge(&mut step, &mut self.leases);
                // The walk has to see what is sick before the ladder does something about it.
                upgrade::run(&mut step);
                ladder::run(&mut step);
                deployments::settle(&mut step);
                drain::run(&mut step);
                rebalance::run(&mut step);
                autoscale::run(&mut step);
                instances::settle(&mut step);
                Ok(())
            }
        };
        match done {
            Ok(()) if !plans => Ok(Outcome { changes: step.finish(), grant }),
            Ok(()) => Ok(Outcome { changes: step.take_back(), grant }),
            Err(rejected) => {
                step.take_back();
                Err(rejected)
            }
        }
    }
}

/// Carries out a request unless it was carried out before.
fn request(step: &mut Step<'_>, id: String, command: Command) -> Result<(), Rejected> {
    if step.state.answered.contains_key(&id) && !step.planted.is(Mutant::ForgetRequests) {
        return Ok(());
    }
    execute(step, command)?;
    let kept = mayfly_model::limits::REQUESTS_KEPT;
    if step.state.answered.len() >= kept
        && let Some(oldest) = step.state.answered.values().min_by_key(|one| one.at).map(|one| one.id.clone())
    {
        step.delete(RecordId::Answered(oldest));
    }
    step.put(Record::Answered(std::sync::Arc::new(Answered { id, at: step.now })));
    Ok(())
}

/// Carries out a command, and places at once what it has made. What finds no place is a reason to refuse it.
fn execute(step: &mut Step<'_>, command: Command) -> Result<(), Rejected> {
    let waited: std::collections::BTreeSet<_> = step.state.index.waiting.clone();
    // Going back must always be possible; what finds no place then waits.
    let may_wait = matches!(command, Command::Rollback { .. });
    match command {
        Command::CommitImage(image) => services::commit_image(step, image),
        Command::DeleteImage(name) => services::delete_image(step, &name),
        Command::CreateService(name) => services::create(step, name),
        Command::DeleteService(name) => services::delete(step, &name),
        Command::ReserveAddress(name) => reservations::reserve(step, name),
        Command::ReleaseAddress(name) => reservations::release(step, &name),
        Command::AddCertificate(certificate) => certificates::add(step, certificate),
        Command::DeleteCertificate(service, thumbprint) => certificates::delete(step, &service, &thumbprint),
        Command::Deploy { key, version } => deployments::deploy(step, NewDeployment { key, version }),
        Command::DeleteDeployment(key) => deployments::delete(step, &key),
        Command::Upgrade { key, version, mode } => upgrade::begin(step, &key, version, mode),
        Command::Walk { key, domain } => upgrade::walk(step, &key, domain),
        Command::Rollback { key, mode } => upgrade::roll_back(step, &key, mode),
        Command::Swap(service) => swap::swap(step, &service),
        Command::Suspend(key) => deployments::suspend(step, &key),
        Command::Start(key) => deployments::start(step, &key),
        Command::Scale { key, counts } => deployments::scale(step, &key, &counts, None),
        Command::Reboot(key) => instances::reboot(step, &key),
        Command::Reimage(key) => instances::reimage(step, &key),
        Command::Rebuild(key) => instances::rebuild(step, &key),
        Command::StopInstance(key) => instances::stop(step, &key),
        Command::StartInstance(key) => instances::start(step, &key),
        Command::PushMetric { key, role, name, value } => autoscale::push(step, &key, role, name, value),
        Command::Drain { host, reboot } => drain::begin(step, &host, reboot),
        Command::Undrain(host) => drain::end(step, &host),
        Command::ForgetHost(host) => hosts::forget(step, &host),
        Command::ResetBreaker(scope) => breaker::reset(step, &scope),
        Command::MakeToken { id, host, expires } => enrolment::make_token(step, id, host, expires),
        Command::SetAuthority(digest) => enrolment::set_authority(step, digest),
        Command::DeleteToken(id) => enrolment::delete_token(step, &id),
        Command::Enrol { token, host, key } => enrolment::enrol(step, &token, host, key),
    }?;
    instances::settle(step);
    if may_wait { Ok(()) } else { instances::refuse_what_waits(step, &waited) }
}
