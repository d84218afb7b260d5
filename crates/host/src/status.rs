//! What the agent knows of each VM: the one place that all tasks read and write.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use mayfly_model::{Observed, ProbeGoal, Readiness, Time, Traffic, VmGoal, VmId, VmReport};
use mayfly_net::address::tap_name;
use mayfly_net::plan::{Health, LocalGuest};
use mayfly_wire::HealthReport;

/// Milliseconds without a word after which a guest that has spoken counts as silent: more than three of the slowest
/// agent's heartbeats of 25 seconds.
const SILENCE: u64 = 90_000;

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
    pub traffic: Traffic,
    /// It is about to be stopped, so nobody new is sent to it.
    pub leaving: bool,
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
            life: 0,
            asked: false,
            said: None,
            ready_since: None,
            answered: BTreeMap::new(),
            disk_bytes: 0,
            image_bytes: 0,
            cpu_milli: 0,
            traffic: Traffic::default(),
            leaving: false,
        }
    }

    /// Forgets what the guest has said and answered: it is another guest now, or none.
    pub(crate) fn forget_guest(&mut self) {
        self.life += 1;
        self.asked = false;
        self.said = None;
        self.ready_since = None;
        self.cpu_milli = 0;
        self.leaving = false;
        self.answered.clear();
    }

    /// Takes the guest's word.
    pub(crate) fn hear(&mut self, report: HealthReport, now: Time) {
        if report.ready {
            self.ready_since.get_or_insert(now);
        }
        self.said = Some((report, now));
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
            Stage::Running => match &self.said {
                Some((_, at)) if now.since(*at) > SILENCE => Observed::Running(Readiness::Silent),
                Some((report, _)) if report.ready && self.is_probed(now) => Observed::Running(Readiness::Ready),
                Some((report, _)) if report.ready => {
                    Observed::Running(Readiness::NotReady("its probes have not answered yet".to_owned()))
                }
                Some((report, _)) => Observed::Running(Readiness::NotReady(report.detail.clone())),
                None if self.answered.values().any(|answered| *answered) => Observed::Running(Readiness::Ready),
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
    pub(crate) fn reports(&self, now: Time) -> Vec<VmReport> {
        let report = |status: &VmStatus| VmReport {
            vm: status.goal.vm,
            reboots: status.reboots,
            restarts: status.restarts,
            observed: status.observed(now),
            disk_bytes: status.disk_bytes,
            image_bytes: status.image_bytes,
            cpu_milli: status.cpu_milli,
            traffic: status.traffic,
        };
        self.vms.values().map(report).collect()
    }

    /// The guests that have a place in the network.
    pub(crate) fn guests(&self) -> Vec<LocalGuest> {
        let guest = |status: &VmStatus| LocalGuest {
            tap: tap_name(status.goal.vm),
            dip: status.goal.dip,
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
        self.vms.values_mut().find(|status| status.goal.dip == address)
    }
}
