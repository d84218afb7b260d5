//! The core's one entrance.

use std::collections::BTreeSet;

use mayfly_model::{HostCondition, HostName, LeaseGrant, LeaseTimings, Time};

use crate::address::AddressRange;
use crate::command::{Command, Input, Outcome, Rejected};
use crate::entropy::Entropy;
use crate::lease::Leases;
use crate::record::{Change, Record};
use crate::state::{State, Step};
use crate::{healing, instances, rebalance, report, services};

/// What an operator decides once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The DNS zone.
    pub zone: String,
    /// Where DIPs come from.
    pub dips: AddressRange,
    /// Where VIPs come from.
    pub vips: AddressRange,
    /// The leases' times.
    pub timings: LeaseTimings,
}

/// The fabric core.
#[derive(Clone, Debug)]
pub struct Core {
    state: State,
    leases: Leases,
    config: Config,
    /// Hosts that would be given up if there were a majority; each is told of once.
    stalled: BTreeSet<HostName>,
}

impl Core {
    /// A core that goes on from these records, and the changes to commit before its first step.
    pub fn start(records: impl IntoIterator<Item = Record>, config: Config, now: Time) -> (Core, Vec<Change>) {
        let mut state = State::load(records);
        state.meta.epoch += 1;
        let changes = vec![Change::Put(Record::Meta(state.meta.clone()))];
        let leases = Leases::new(config.timings, state.meta.epoch, state.hosts.keys().cloned(), now);
        (Core { state, leases, config, stalled: BTreeSet::new() }, changes)
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

    /// Decides what `input` at `now` changes. `now` never goes backwards; `entropy` is fresh random bits.
    ///
    /// # Errors
    /// Why a command is refused; nothing has changed then.
    pub fn step(&mut self, now: Time, entropy: u64, input: Input) -> Result<Outcome, Rejected> {
        self.leases.advance(now);
        let mut entropy = Entropy(entropy);
        let mut step = Step::new(&mut self.state, now);
        let mut grant: Option<LeaseGrant> = None;
        match input {
            Input::Command(command) => execute(&mut step, &self.config, &mut entropy, command)?,
            Input::Report(host_report) => {
                grant = Some(self.leases.report(&host_report.host, host_report.lease_ack, now));
                report::apply(&mut step, &host_report);
            }
            Input::Tick => {
                judge_hosts(&mut step, &self.leases, &mut self.stalled);
                rebalance::run(&mut step);
            }
        }
        instances::settle(&mut step, &self.config, &mut entropy);
        Ok(Outcome { changes: step.finish(), grant })
    }
}

fn execute(step: &mut Step<'_>, config: &Config, entropy: &mut Entropy, command: Command) -> Result<(), Rejected> {
    match command {
        Command::CommitImage(image) => services::commit_image(step, image),
        Command::DeleteImage(name) => services::delete_image(step, &name),
        Command::CreateService(name) => services::create(step, name),
        Command::DeleteService(name) => services::delete(step, &name),
        Command::Deploy { key, definition, configuration } => {
            services::deploy(step, config, entropy, key, definition, configuration)
        }
        Command::Scale { key, counts } => services::scale(step, &key, &counts),
        Command::Reboot(key) => instances::reboot(step, &key),
        Command::Reimage(key) => instances::reimage(step, &key),
    }
}

/// Marks late hosts, and gives up those whose lease is certainly over.
fn judge_hosts(step: &mut Step<'_>, leases: &Leases, stalled: &mut BTreeSet<HostName>) {
    let names: Vec<_> = step.state.hosts.keys().cloned().collect();
    for name in names {
        let Some(host) = step.state.hosts.get(&name) else { continue };
        if host.condition == HostCondition::Up {
            stalled.remove(&name);
        }
        match host.condition {
            HostCondition::Lost { .. } => {}
            HostCondition::Up if leases.is_late(&name, step.now) => {
                let since = leases.last_report(&name).unwrap_or(step.now);
                let host = mayfly_model::Host { condition: HostCondition::Suspect { since }, ..host.clone() };
                step.put(Record::Host(host));
                step.event(mayfly_model::EventKind::Host, &name, "its report is late");
            }
            HostCondition::Suspect { .. } if leases.is_lost(&name, step.now) => healing::give_up(step, &name),
            HostCondition::Suspect { .. } if leases.is_over(&name, step.now) && stalled.insert(name.clone()) => {
                let (fresh, voters) = (leases.fresh_voters(step.now), leases.voters());
                if fresh * 2 <= voters {
                    let message = format!(
                        "its lease is over, but nothing is placed anew: {fresh} of {voters} voters (hosts and controllers) \
                         are in touch, and more than half have to be"
                    );
                    step.event(mayfly_model::EventKind::Host, &name, message);
                }
            }
            HostCondition::Up | HostCondition::Suspect { .. } => {}
        }
    }
}
