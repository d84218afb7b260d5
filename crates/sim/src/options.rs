//! What a run consists of, and how it ends.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use mayfly_fabric::Mutant;
use mayfly_model::LeaseTimings;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// What a run consists of.
#[derive(Clone, Debug)]
pub struct Options {
    /// Hosts.
    pub hosts: u8,
    /// Fault domains they stand in.
    pub domains: u8,
    /// Milliseconds of faults and work.
    pub trouble: u64,
    /// Milliseconds of calm after it, within which everything has to be as wanted.
    pub calm: u64,
    /// How many times as rare faults and commands are as where they have to find something in half a minute.
    pub pace: u64,
    /// The kinds of faults; without any, each seed draws its own.
    pub faults: Option<BTreeSet<Fault>>,
    /// How long leases last, in milliseconds; without any, each seed draws its own.
    pub lease: Option<u64>,
    /// A planted mistake.
    pub mutant: Option<Plant>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            hosts: 50,
            domains: 5,
            trouble: 30_000,
            calm: 120_000,
            pace: 1,
            faults: None,
            lease: None,
            mutant: None,
        }
    }
}

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A host loses power and comes back.
    Crash,
    /// A host's agent ends and starts again; its guests go on.
    AgentRestart,
    /// A host stands still for a while and then goes on as if nothing had been.
    Freeze,
    /// Some nodes and the others do not hear each other.
    Partition,
    /// One node is not heard, though it hears.
    Mute,
    /// Messages are lost, late, repeated and overtaken.
    BadNetwork,
    /// A whole fault domain loses power.
    RackLoss,
    /// The controller ends and starts again, with another wall clock.
    ControllerCrash,
    /// The store stalls, and the controller with it; what has arrived meanwhile is dealt with at once.
    StoreStall,
    /// Answers to users are lost; they ask again.
    LostAnswers,
    /// A host's disk is full: nothing new starts there.
    DiskFull,
    /// A guest falls silent.
    StuckGuest,
    /// A guest restarts by itself.
    CrashingGuest,
    /// Parts of images arrive damaged.
    BadChunks,
    /// An image that ends each host on which it boots.
    KillerImage,
    /// Hosts that were not there before join, all at once.
    Join,
    /// The records go back to what they were at an earlier moment.
    Restore,
}

impl Fault {
    /// All kinds.
    pub const ALL: [Fault; 17] = [
        Fault::Crash,
        Fault::AgentRestart,
        Fault::Freeze,
        Fault::Partition,
        Fault::Mute,
        Fault::BadNetwork,
        Fault::RackLoss,
        Fault::ControllerCrash,
        Fault::StoreStall,
        Fault::LostAnswers,
        Fault::DiskFull,
        Fault::StuckGuest,
        Fault::CrashingGuest,
        Fault::BadChunks,
        Fault::KillerImage,
        Fault::Join,
        Fault::Restore,
    ];

    /// A swarm: each seed has faults of some kinds and none of others, so that one kind does not hide another.
    pub(crate) fn swarm(rng: &mut ChaCha8Rng) -> BTreeSet<Fault> {
        let share = rng.random_range(2..10);
        Fault::ALL.into_iter().filter(|_| rng.random_ratio(share, 10)).collect()
    }
}

/// What leases last, in milliseconds, that a seed draws from: the default, and what operators may choose.
const LEASES: [u64; 4] = [3000, 3000, 2000, 10_000];

/// The length of a seed's leases.
pub(crate) fn draw_lease(rng: &mut ChaCha8Rng) -> u64 {
    LEASES[rng.random_range(0..LEASES.len())]
}

/// The times of leases of this length, in the proportions of the default.
pub(crate) fn timings(ttl: u64) -> LeaseTimings {
    LeaseTimings { renew: ttl / 6, ttl, drift: ttl / 6, fresh: ttl * 2 / 3, mesh_timeout: ttl / 3 }
}

/// A mistake that is planted to see whether it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// One in the core.
    Core(Mutant),
    /// Invariant 1: hosts go on when their lease is over.
    IgnoreLease,
    /// Invariant 1: a host that cannot write down its goal state does not follow it, and uses the lease all the same.
    StubbornHost,
    /// Invariant 1: the controller thinks that leases are shorter than they are.
    Impatience,
    /// Invariant 4: a host gives a new VM the disk of the one before.
    ReuseDisk,
    /// Invariant 5: what arrives of an image is believed.
    SkipDigest,
    /// Invariant 6: commands are acknowledged before they are durable.
    AckEarly,
    /// Invariant 1: a leader that was deposed goes on granting leases.
    StaleLeader,
}

impl Plant {
    /// All mistakes.
    pub fn all() -> impl Iterator<Item = Plant> {
        let own = [
            Plant::IgnoreLease,
            Plant::StubbornHost,
            Plant::Impatience,
            Plant::StaleLeader,
            Plant::ReuseDisk,
            Plant::SkipDigest,
            Plant::AckEarly,
        ];
        Mutant::ALL.into_iter().map(Plant::Core).chain(own)
    }
}

impl fmt::Display for Plant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Plant::Core(mutant) => f.pad(&format!("{mutant:?}")),
            other => f.pad(&format!("{other:?}")),
        }
    }
}

impl FromStr for Plant {
    type Err = String;

    fn from_str(text: &str) -> Result<Plant, String> {
        let known: Vec<String> = Plant::all().map(|plant| plant.to_string()).collect();
        let found = Plant::all().find(|plant| plant.to_string() == text);
        found.ok_or_else(|| format!("`{text}` is none of {}", known.join(", ")))
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Fault, String> {
        let names = Fault::ALL.map(|fault| format!("{fault:?}")).join(", ");
        Fault::ALL.into_iter().find(|fault| format!("{fault:?}") == text).ok_or(format!("`{text}` is none of {names}"))
    }
}

/// What happened in a run that went well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Events of the loop.
    pub events: u64,
    /// Commands that were acknowledged.
    pub commands: u64,
    /// Faults.
    pub faults: u64,
    /// VMs that were placed.
    pub placed: u64,
    /// Hosts given up.
    pub lost: u64,
    /// Simulated milliseconds.
    pub millis: u64,
    /// A hash over all that was decided: the same for the same seed.
    pub hash: u64,
}

impl Summary {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Summary) -> Summary {
        Summary {
            events: self.events + other.events,
            commands: self.commands + other.commands,
            faults: self.faults + other.faults,
            placed: self.placed + other.placed,
            lost: self.lost + other.lost,
            millis: self.millis + other.millis,
            hash: self.hash ^ other.hash,
        }
    }
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
    /// The options it was found with, the kinds of faults drawn included.
    pub options: Options,
    /// The last events that the fabric told of.
    pub events: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {} at {} ms: {}", self.seed, self.at, self.what)?;
        for event in &self.events {
            writeln!(f, "  {event}")?;
        }
        write!(f, "repeat it: {}", self.options.command_line(self.seed))
    }
}

impl Options {
    /// The command that runs one seed with these options.
    pub fn command_line(&self, seed: u64) -> String {
        let mut line = format!(
            "mayfly-sim run --seed {seed} --hosts {} --domains {} --seconds {}",
            self.hosts,
            self.domains,
            self.trouble / 1000
        );
        if self.pace > 1 {
            line = format!("{line} --pace {}", self.pace);
        }
        if let Some(faults) = &self.faults {
            let names: Vec<String> = faults.iter().map(|fault| format!("{fault:?}")).collect();
            line = format!("{line} --faults '{}'", names.join(","));
        }
        if let Some(lease) = self.lease {
            line = format!("{line} --lease {lease}");
        }
        if let Some(mutant) = self.mutant {
            line = format!("{line} --mutant {mutant}");
        }
        line
    }
}
