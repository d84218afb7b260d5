//! What the agent knows of each VM: the one place that all tasks read and write.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use mayfly_model::{BootStep, Observed, ProbeGoal, Readiness, Time, VmGoal, VmId, VmReport};
use mayfly_net::address::tap_name;
use mayfly_net::plan::{Health, LocalGuest};
use mayfly_wire::{HealthReport, Member, Planned, ScriptReport};

use crate::clock;
use crate::traffic::Counted;

/// Milliseconds without a word after which a guest that has spoken counts as silent: more than three of the slowest
/// agent's heartbeats of 25 seconds.
const SILENCE: u64 = 90_000;

/// A guest that has made itself heard so often after its first Ready has an agent that stays, so its silence means something.
/// Some report once and never again.
pub(crate) const BEATS: u32 = 3;
/// Milliseconds that lie between two beats at the least.
const BEAT: u64 = 2_000;
/// Steps of a boot, and runs of a script, that are kept.
const STEPS_MAX: usize = 32;
const RUNS_MAX: usize = 8;

/// Milliseconds from a guest's first Ready after which it counts even if its probes do not answer: readiness is the
/// guest's own, but those who wait for it should find it in rotation.
const PROBED: u64 = 3_000;

/// What is known of one VM.
#[derive(Clone, Debug)]
pub(crate) struct VmStatus {
    /// What it should be.
    pub goal: VmGoal,
    /// The number of the guest's own goal state.
    pub incarnation: u64,
    /// What its task is doing.
    pub stage: Stage,
    /// Reboots that have been carried out.
    pub reboots: u32,
    /// Starts that nobody asked for.
    pub restarts: u32,
    /// Whether its tap is there.
    pub has_tap: bool,
    /// Whether the tap speaks IPv6.
    pub tap_has_ipv6: bool,
    /// Grows with each guest; answers to an earlier one's probes do not count.
    pub life: u32,
    /// Whether the guest has asked for its documents.
    pub asked: bool,
    /// The guest's last word, and when.
    pub said: Option<(HealthReport, Time)>,
    /// When the guest first said that it is ready.
    pub ready_since: Option<Time>,
    /// Probes that were answered last time.
    pub answered: BTreeMap<ProbeGoal, bool>,
    /// Bytes of the differencing disk's file.
    pub disk_bytes: u64,
    /// Bytes of its base image that are on this host.
    pub image_bytes: u64,
    /// Processor time used lately, in thousandths of a core.
    pub cpu_milli: u64,
    /// What it has sent and received.
    pub traffic: Counted,
    /// It is about to be stopped, so nobody new is sent to it.
    pub leaving: bool,
    /// The instances of its deployment, as it is told of them.
    pub members: Arc<Vec<Member>>,
    /// When it made itself heard last after its first Ready, and how often it has.
    pub beats: (Time, u32),
    /// What became of its script in this boot; the last run is the last.
    pub script_runs: Vec<ScriptReport>,
    /// What has been reached on the way to Ready, with the time on the wall.
    pub steps: Vec<BootStep>,
    /// The last words of its kernel, if that has given up.
    pub panic: Option<String>,
    /// What is about to happen to it.
    pub planned: Option<Planned>,
    /// Whether cloud-init has said that it is at work: the boot is over when it says that too.
    pub cloud_init: bool,
    /// Whether it has just been copied from a template.
    pub from_template: bool,
    /// Whether it asks what is planned, so that its answer is waited for.
    pub asks_for_events: bool,
}

/// What a VM's task is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Making disk and network.
    Preparing(String),
    /// The guest runs.
    Running,
    /// The guest runs and cannot go on; the text says why.
    Paused(String),
    /// No guest; the text says why.
    Stopped(String),
    /// It cannot be started; the text says why.
    Failed(String),
    /// No guest, as none is wanted; its disk is kept.
    Off,
}

impl VmStatus {
    /// A VM of which nothing is there yet.
    pub(crate) fn new(goal: VmGoal) -> VmStatus {
        VmStatus {
            goal,
            incarnation: 1,
            stage: Stage::Preparing("waiting".to_owned()),
            reboots: 0,
            restarts: 0,
            has_tap: false,
            tap_has_ipv6: false,
            life: 0,
            asked: false,
            said: None,
            ready_since: None,
            answered: BTreeMap::new(),
            disk_bytes: 0,
            image_bytes: 0,
            cpu_milli: 0,
            traffic: Counted::default(),
            leaving: false,
            members: Arc::default(),
            beats: (Time(0), 0),
            script_runs: Vec::new(),
            steps: Vec::new(),
            panic: None,
            planned: None,
            cloud_init: false,
            from_template: false,
            asks_for_events: false,
        }
    }

    /// Notes that something has been reached on the way to Ready; each is reached once.
    pub(crate) fn reach(&mut self, step: &str) {
        if self.steps.len() < STEPS_MAX && !self.steps.iter().any(|known| known.name == step) {
            self.steps.push(BootStep { name: step.to_owned(), at: clock::wall() });
        }
    }

    /// How long ago its host began with the present guest, or that guest restarted by itself.
    pub(crate) fn age(&self) -> Duration {
        let (now, began) = (clock::wall(), self.steps.first().map_or(Time(0), |step| step.at));
        // After the clock was set back, nobody knows.
        if began > now { Duration::MAX } else { Duration::from_millis(now.since(began)) }
    }

    /// Forgets what the guest has said and answered: it is another guest now, or none.
    pub(crate) fn forget_guest(&mut self) {
        self.life += 1;
        self.asked = false;
        self.said = None;
        self.ready_since = None;
        self.cpu_milli = 0;
        self.leaving = false;
        self.beats = (Time(0), 0);
        self.script_runs.clear();
        self.panic = None;
        self.planned = None;
        self.cloud_init = false;
        self.asks_for_events = false;
        self.answered.clear();
    }

    /// Takes the guest's word.
    pub(crate) fn hear(&mut self, report: HealthReport, now: Time) {
        if report.ready {
            self.ready_since.get_or_insert(now);
            self.reach("the guest says that it is ready");
        } else {
            self.reach("the guest reports");
        }
        self.said = Some((report, now));
        self.beat(now);
    }

    /// The guest is there.
    pub(crate) fn beat(&mut self, now: Time) {
        let (last, count) = self.beats;
        if self.ready_since.is_some() && (count == 0 || now.since(last) >= BEAT) {
            self.beats = (now, count.saturating_add(1));
        }
    }

    /// Takes the word of who runs its script. That the script has come to its end is also a word of the guest.
    pub(crate) fn hear_script(&mut self, report: ScriptReport, now: Time) {
        if report.last {
            self.reach(if report.attempt > 0 { "its script has ended" } else { "its boot has come to its end" });
            let well = HealthReport { ready: true, detail: String::new() };
            if self.said.is_none() {
                self.hear(well, now);
            }
        }
        if self.script_runs.len() == RUNS_MAX {
            self.script_runs.remove(0);
        }
        self.script_runs.push(report);
    }

    /// Why its script keeps it from being ready, or cloud-init, if one does.
    fn script_hinders(&self) -> Option<String> {
        if self.cloud_init && self.script_runs.is_empty() {
            return Some("cloud-init is at work".to_owned());
        }
        let script = self.goal.guest.script.as_ref().filter(|script| script.must_succeed)?;
        let Some(run) = self.script_runs.last() else { return Some("its script has not ended yet".to_owned()) };
        let words = run.output.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or("it said nothing");
        let words: String = words.chars().take(120).collect();
        let why = match run.status {
            Some(0) => return None,
            Some(status) => format!("its script ended with status {status}: {words}"),
            None => format!("its script took longer than {} s: {words}", script.timeout_seconds),
        };
        Some(if run.last { why } else { format!("{why} (try {} of {})", run.attempt, script.tries) })
    }

    /// Whether anything has been heard of its guest.
    pub(crate) fn is_heard(&self) -> bool {
        self.asked || self.said.is_some() || self.answered.values().any(|answered| *answered)
    }

    /// Whether the guest's last word was that it is ready.
    pub(crate) fn says_ready(&self) -> bool {
        self.said.as_ref().is_some_and(|(report, _)| report.ready)
    }

    /// Whether it is known again how an adopted guest is doing.
    pub(crate) fn is_settled(&self) -> bool {
        self.stage == Stage::Running && self.has_tap && self.all_answered()
    }

    fn all_answered(&self) -> bool {
        self.goal.probes.iter().all(|probe| self.answered.get(probe) == Some(&true))
    }

    /// Whether it is in rotation, or its probes have had the time to put it there.
    fn is_probed(&self, now: Time) -> bool {
        self.all_answered() || self.ready_since.is_some_and(|since| now.since(since) > PROBED)
    }

    pub(crate) fn observed(&self, now: Time) -> Observed {
        match &self.stage {
            Stage::Preparing(detail) => Observed::Preparing(detail.clone()),
            Stage::Stopped(reason) => Observed::Stopped(reason.clone()),
            Stage::Failed(reason) => Observed::Failed(reason.clone()),
            Stage::Off => Observed::Off,
            Stage::Paused(reason) => Observed::Running(Readiness::NotReady(reason.clone())),
            Stage::Running if self.panic.is_some() => {
                let words = self.panic.as_deref().unwrap_or_default();
                Observed::Running(Readiness::NotReady(format!("its kernel has given up: {words}")))
            }
            Stage::Running => match &self.said {
                Some(_) if self.beats.1 >= BEATS && now.since(self.beats.0) > SILENCE => {
                    Observed::Running(Readiness::Silent)
                }
                Some((report, _)) if report.ready && self.script_hinders().is_some() => {
                    Observed::Running(Readiness::NotReady(self.script_hinders().unwrap_or_default()))
                }
                Some((report, _)) if report.ready && self.is_probed(now) => Observed::Running(Readiness::Ready),
                Some((report, _)) if report.ready => {
                    Observed::Running(Readiness::NotReady("its probes have not answered yet".to_owned()))
                }
                Some((report, _)) => Observed::Running(Readiness::NotReady(report.detail.clone())),
                None if self.cloud_init => {
                    Observed::Running(Readiness::NotReady(self.script_hinders().unwrap_or_default()))
                }
                None if self.answered.values().any(|answered| *answered) => match self.script_hinders() {
                    Some(why) => Observed::Running(Readiness::NotReady(why)),
                    None => Observed::Running(Readiness::Ready),
                },
                None if self.asked => Observed::Booting,
                None => Observed::Starting,
            },
        }
    }
}

/// All VMs of the host.
#[derive(Debug, Default)]
pub(crate) struct Statuses {
    pub vms: BTreeMap<VmId, VmStatus>,
}

impl Statuses {
    pub(crate) fn reports(&mut self, now: Time) -> Vec<VmReport> {
        let report = |status: &mut VmStatus| {
            let observed = status.observed(now);
            if observed == Observed::Running(Readiness::Ready) {
                status.reach("Ready");
            }
            VmReport {
                vm: status.goal.vm,
                reboots: status.reboots,
                restarts: status.restarts,
                observed,
                disk_bytes: status.disk_bytes,
                image_bytes: status.image_bytes,
                cpu_milli: status.cpu_milli,
                traffic: status.traffic.total,
                steps: status.steps.clone(),
            }
        };
        self.vms.values_mut().map(report).collect()
    }

    /// The guests that have a place in the network.
    pub(crate) fn guests(&self) -> Vec<LocalGuest> {
        let guest = |status: &VmStatus| LocalGuest {
            tap: tap_name(status.goal.vm),
            dip: status.goal.dip,
            ipv6: status.goal.ipv6.is_some() && status.tap_has_ipv6,
            mac: status.goal.mac(),
            deployment_id: status.goal.deployment_id.clone(),
            egress: status.goal.egress.clone(),
        };
        self.vms.values().filter(|status| status.has_tap).map(guest).collect()
    }

    /// What is healthy.
    pub(crate) fn health(&self, now: Time) -> Health {
        let mut health = Health::new();
        for status in self.vms.values().filter(|status| status.stage == Stage::Running && !status.leaving) {
            if status.observed(now) == Observed::Running(Readiness::Ready) {
                health.insert((status.goal.vm, None));
            }
            let answered = status.answered.iter().filter(|(_, answered)| **answered);
            health.extend(answered.map(|(probe, _)| (status.goal.vm, Some(probe.clone()))));
        }
        health
    }

    /// The VM with this address.
    pub(crate) fn at(&mut self, address: Ipv4Addr) -> Option<&mut VmStatus> {
        // One that is going may have had it before.
        let has = |status: &VmStatus| status.goal.dip == address;
        let on_network = self.vms.values().find(|status| has(status) && status.has_tap).map(|status| status.goal.vm);
        match on_network {
            Some(vm) => self.vms.get_mut(&vm),
            None => self.vms.values_mut().find(|status| has(status)),
        }
    }
}
