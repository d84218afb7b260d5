//! Role instances: an identity, its state, and the VM that carries it.

use std::net::Ipv4Addr;

use arcstr::ArcStr;
use serde::{Deserialize, Serialize};

use crate::name::{HostName, InstanceKey, NamePool};
use crate::report::{Observed, Readiness, Traffic, VmReport};
use crate::size::VmSize;
use crate::time::Time;
use crate::{Incarnation, VmId};

/// One VM. Everything in it is new with every new VM, so that nothing of an old one can be mistaken for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    /// Its id.
    pub id: VmId,
    /// The host that carries it.
    pub host: HostName,
    /// The guest's own name, random.
    pub computer_name: Box<str>,
    /// Its private address.
    pub dip: Ipv4Addr,
    /// What it takes from its host.
    pub size: VmSize,
    /// How many reboots have been asked for.
    pub reboots: u32,
    /// How often it had restarted by itself when its host last said.
    #[serde(default)]
    pub restarts: u32,
    /// When it was placed; it is metered from here on.
    pub placed: Time,
    /// Since when it has been trying to become ready: when it was placed, was asked to reboot, or was lost to sight.
    pub started: Time,
    /// How much of what it has sent and received is in the ledger.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub booked: Option<Box<Traffic>>,
}

/// An instance of a role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Its identity.
    pub key: InstanceKey,
    /// Its update domain.
    pub update_domain: u32,
    /// The number of its present or last differencing disk; only grows.
    pub generation: u64,
    /// The version of the deployment that it has, or gets next.
    pub version: u32,
    /// The generation that its local disks were made with: they are kept by a new VM on the same host, and are thrown away
    /// when it comes to another host or is rebuilt. 0 if it has none.
    #[serde(default)]
    pub local_generation: u64,
    /// Whether its own guest shall not run, though its deployment does.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stopped: bool,
    /// The address of its last VM, of which nothing is left by the word of its host: the next one gets it again. After a loss
    /// of the host there is none: what is left of that VM there could answer at the same address when the host is back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dip: Option<Ipv4Addr>,
    /// Its state.
    pub state: InstanceState,
    /// What has been wrong with it lately; nothing for most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Box<Health>>,
}

/// What has been wrong with an instance lately, and what was tried. Forgotten when it has been well for a while.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// The last thing that was tried.
    pub rung: Option<Rung>,
    /// When it was tried.
    pub acted: Time,
    /// How many things have been tried.
    pub tries: u32,
    /// The last restarts that nobody asked for.
    pub crashes: Vec<Time>,
    /// Hosts on which a new VM of it never became ready.
    pub failed_on: Vec<HostName>,
    /// Hosts that were lost while they carried it, and when; the same one again if it was lost while the instance booted.
    pub lost_with: Vec<(HostName, Time)>,
    /// When it was lost with its host before it was up.
    #[serde(default)]
    pub lost_booting: Vec<Time>,
}

/// What can be tried with a sick instance, mildest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Rung {
    /// Restart the guest.
    Reboot,
    /// A new empty disk, on the same host.
    Reimage,
    /// A new VM on another host.
    Move,
}

impl Rung {
    /// One word for people.
    pub fn name(self) -> &'static str {
        match self {
            Rung::Reboot => "reboot",
            Rung::Reimage => "reimage",
            Rung::Move => "move",
        }
    }
}

impl Instance {
    /// The same with `change` made to its VM, if it has one.
    #[must_use]
    pub fn with_vm(mut self, change: impl FnOnce(&mut Vm)) -> Instance {
        if let InstanceState::Placed { vm, .. } | InstanceState::Retiring { vm, .. } = &mut self.state {
            change(vm);
        }
        self
    }

    /// The VM that exists or may exist.
    pub fn vm(&self) -> Option<&Vm> {
        match &self.state {
            InstanceState::Waiting { .. } => None,
            InstanceState::Placed { vm, .. } | InstanceState::Retiring { vm, .. } => Some(vm),
        }
    }

    /// The VM that is wanted.
    pub fn wanted_vm(&self) -> Option<&Vm> {
        match &self.state {
            InstanceState::Placed { vm, .. } => Some(vm),
            InstanceState::Waiting { .. } | InstanceState::Retiring { .. } => None,
        }
    }

    /// Whether the instance is going away for good.
    pub fn is_leaving(&self) -> bool {
        matches!(self.state, InstanceState::Retiring { then: Then::Remove, .. })
    }

    /// Whether it is Ready.
    pub fn is_ready(&self) -> bool {
        matches!(self.state, InstanceState::Placed { phase: VmPhase::Ready, .. })
    }
}

/// The state of an instance.
///
/// ```text
///              place                    retire (reimage, move, delete)
///   Waiting ─────────▶ Placed{vm, phase} ─────────▶ Retiring{vm, then} ──▶ removed
///      ▲                     │                           │ gone from its host, or the host is lost
///      └──── host is lost ───┘                           │ and Then::Replace
///      ▲─────────────────────────────────────────────────┘
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum InstanceState {
    /// It has no VM, and gets one as soon as there is a place.
    Waiting {
        /// Why it waits.
        reason: String,
        /// The host that should carry it, if it has room.
        prefer: Option<HostName>,
        /// Since when.
        since: Time,
        /// Whether its VM was lost or taken away from it, so that the new one is healing.
        #[serde(default)]
        heals: bool,
    },
    /// A VM carries it.
    Placed {
        /// The VM.
        vm: Vm,
        /// How far the VM is.
        phase: VmPhase,
        /// When the VM entered this phase.
        since: Time,
    },
    /// The VM has to be gone before anything else happens to the identity.
    Retiring {
        /// The VM that goes.
        vm: Vm,
        /// What comes next.
        then: Then,
        /// The goal state that lacks the VM: a host that has applied it and lists the VM no longer has no trace of it.
        since: Incarnation,
    },
}

/// What follows when an old VM is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Then {
    /// A new VM, on this host if it is named and has room.
    Replace {
        /// The host to prefer.
        prefer: Option<HostName>,
    },
    /// The instance goes away.
    Remove,
}

/// How far a placed VM is.
///
/// ```text
///   Creating ─▶ Starting ─▶ CreatingRole ─▶ StartingRole ─▶ Ready ⇄ Busy
///      │            │             │              │            │ └──▶ Unresponsive ─▶ Ready
///      └────────────┴──▶ FailedStartingVm        │            └─ reboot, crash ─▶ Restarting ─▶ Ready
///                        (host keeps trying)     │                                    │ crashes again and again
///      any that never was ready, too long ─▶ FailedStartingRole ─▶ Ready, if late     └──▶ Cycling ─▶ Ready
///
///   any ──the deployment is suspended──▶ StoppingRole ─▶ StoppingVm ─▶ Stopped ──started──▶ Restarting
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmPhase {
    /// The host makes disks and network.
    Creating {
        /// What is under way.
        detail: ArcStr,
    },
    /// The guest boots and has said nothing yet.
    Starting,
    /// The guest has asked for its address or documents, and has not reported yet.
    CreatingRole,
    /// The guest reports, but never was ready.
    StartingRole {
        /// What the guest says.
        detail: ArcStr,
    },
    /// It serves.
    Ready,
    /// It was ready and says that it is not.
    Busy {
        /// What the guest says.
        detail: ArcStr,
    },
    /// It is being started again, or is about to be.
    Restarting {
        /// Why, if its host has said.
        detail: Option<ArcStr>,
    },
    /// It restarts by itself again and again.
    Cycling {
        /// What is known.
        detail: ArcStr,
    },
    /// It was heard and has fallen silent.
    Unresponsive,
    /// The host cannot start it.
    FailedStartingVm {
        /// Why.
        reason: ArcStr,
    },
    /// It runs, and did not become ready in time.
    FailedStartingRole {
        /// What is known.
        reason: ArcStr,
    },
    /// The guest is being stopped, as its deployment is suspended.
    StoppingRole,
    /// The guest has stopped; its VM is being put away.
    StoppingVm,
    /// No guest; the disks are kept.
    Stopped,
}

/// What the core knows beside the host's report.
#[derive(Clone, Copy, Debug)]
pub struct Expectation {
    /// How many reboots are wanted.
    pub reboots: u32,
    /// Whether the guest should run.
    pub on: bool,
    /// Whether it has restarted by itself again and again.
    pub cycling: bool,
    /// How long the VM has been trying to become ready, in ms.
    pub started_for: u64,
    /// How long it may, in ms.
    pub start_timeout: u64,
}

impl VmPhase {
    /// The phase that follows when the host reports `report`.
    #[must_use]
    pub fn apply(&self, report: &VmReport, expected: Expectation) -> VmPhase {
        if !expected.on {
            return match &report.observed {
                Observed::Off => VmPhase::Stopped,
                Observed::Stopped(_) => VmPhase::StoppingVm,
                Observed::Failed(reason) => VmPhase::FailedStartingVm { reason: reason.into() },
                Observed::Preparing(_) | Observed::Starting | Observed::Booting | Observed::Running(_) => {
                    VmPhase::StoppingRole
                }
            };
        }
        if report.reboots < expected.reboots {
            return self.restarting(&report.observed);
        }
        let late = expected.started_for > expected.start_timeout && !self.has_been_up();
        let again = self.has_been_up() || self.is_restarting();
        match &report.observed {
            Observed::Running(Readiness::Ready) => VmPhase::Ready,
            Observed::Running(Readiness::Silent) => VmPhase::Unresponsive,
            Observed::Failed(reason) => VmPhase::FailedStartingVm { reason: reason.into() },
            observed if expected.cycling => VmPhase::Cycling { detail: cycling_reason(observed).into() },
            observed @ (Observed::Preparing(_) | Observed::Off) if again => self.restarting(observed),
            Observed::Preparing(detail) => VmPhase::Creating { detail: detail.into() },
            observed if late => {
                VmPhase::FailedStartingRole { reason: late_reason(observed, expected.start_timeout).into() }
            }
            observed @ (Observed::Starting | Observed::Booting) if again => self.restarting(observed),
            Observed::Starting => VmPhase::Starting,
            Observed::Booting => VmPhase::CreatingRole,
            observed @ (Observed::Stopped(_) | Observed::Off) => self.restarting(observed),
            Observed::Running(Readiness::NotReady(detail)) => match self {
                VmPhase::Ready | VmPhase::Busy { .. } => VmPhase::Busy { detail: detail.into() },
                _ if self.is_restarting() => self.restarting(&report.observed),
                _ => VmPhase::StartingRole { detail: detail.into() },
            },
        }
    }

    /// What it is when it is started again: why, is remembered until it is ready.
    fn restarting(&self, observed: &Observed) -> VmPhase {
        let detail = match (observed, self) {
            (Observed::Stopped(reason), _) => Some(reason.into()),
            (Observed::Running(Readiness::NotReady(detail)), _) if !detail.is_empty() => Some(detail.into()),
            (_, VmPhase::Restarting { detail }) => detail.clone(),
            _ => None,
        };
        VmPhase::Restarting { detail }
    }

    /// Whether the guest has been ready, and not been started again since.
    pub fn has_been_up(&self) -> bool {
        matches!(self, VmPhase::Ready | VmPhase::Busy { .. } | VmPhase::Unresponsive)
    }

    fn is_restarting(&self) -> bool {
        matches!(
            self,
            VmPhase::Restarting { .. }
                | VmPhase::Cycling { .. }
                | VmPhase::StoppingRole
                | VmPhase::StoppingVm
                | VmPhase::Stopped
        )
    }

    /// Whether something is wrong that will not mend itself.
    pub fn is_sick(&self) -> bool {
        matches!(
            self,
            VmPhase::Unresponsive
                | VmPhase::Cycling { .. }
                | VmPhase::FailedStartingVm { .. }
                | VmPhase::FailedStartingRole { .. }
        )
    }

    /// The state that users see.
    pub fn status(&self) -> InstanceStatus {
        match self {
            VmPhase::Creating { .. } => InstanceStatus::CreatingVM,
            VmPhase::Starting => InstanceStatus::StartingVM,
            VmPhase::CreatingRole => InstanceStatus::CreatingRole,
            VmPhase::StartingRole { .. } => InstanceStatus::StartingRole,
            VmPhase::Ready => InstanceStatus::ReadyRole,
            VmPhase::Busy { .. } => InstanceStatus::BusyRole,
            VmPhase::Restarting { .. } => InstanceStatus::RestartingRole,
            VmPhase::Cycling { .. } => InstanceStatus::CyclingRole,
            VmPhase::Unresponsive => InstanceStatus::UnresponsiveRole,
            VmPhase::FailedStartingVm { .. } => InstanceStatus::FailedStartingVM,
            VmPhase::FailedStartingRole { .. } => InstanceStatus::FailedStartingRole,
            VmPhase::StoppingRole => InstanceStatus::StoppingRole,
            VmPhase::StoppingVm => InstanceStatus::StoppingVM,
            VmPhase::Stopped => InstanceStatus::StoppedVM,
        }
    }

    /// The same with its text in the memory of `pool`.
    #[must_use]
    pub fn pooled(mut self, pool: &mut NamePool) -> VmPhase {
        if let VmPhase::Creating { detail } | VmPhase::StartingRole { detail } | VmPhase::Busy { detail } = &mut self {
            *detail = pool.take(detail);
        }
        self
    }

    /// More about the state, where there is more.
    pub fn detail(&self) -> Option<&str> {
        match self {
            VmPhase::Creating { detail }
            | VmPhase::StartingRole { detail }
            | VmPhase::Busy { detail }
            | VmPhase::Cycling { detail } => Some(detail),
            VmPhase::FailedStartingVm { reason } | VmPhase::FailedStartingRole { reason } => Some(reason),
            VmPhase::Restarting { detail } => detail.as_deref(),
            VmPhase::Starting
            | VmPhase::CreatingRole
            | VmPhase::Ready
            | VmPhase::Unresponsive
            | VmPhase::StoppingRole
            | VmPhase::StoppingVm
            | VmPhase::Stopped => None,
        }
    }
}

/// The sixteen states of the original platform's `InstanceStatus`, which is what users see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum InstanceStatus {
    /// The host makes the VM, or the instance waits for a place.
    CreatingVM,
    /// The guest boots.
    StartingVM,
    /// The guest sets itself up.
    CreatingRole,
    /// The role starts.
    StartingRole,
    /// It serves.
    ReadyRole,
    /// It takes no requests.
    BusyRole,
    /// The role is being stopped.
    StoppingRole,
    /// The VM is being stopped.
    StoppingVM,
    /// It is stopped.
    StoppedVM,
    /// It is going away for good.
    DeletingVM,
    /// It restarts.
    RestartingRole,
    /// It crashes again and again.
    CyclingRole,
    /// The role never came up.
    FailedStartingRole,
    /// The VM cannot be started.
    FailedStartingVM,
    /// It has fallen silent.
    UnresponsiveRole,
    /// Its host cannot be asked.
    RoleStateUnknown,
}

impl std::fmt::Display for InstanceStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&format!("{self:?}"))
    }
}

impl InstanceState {
    /// The state that users see, as far as its host is in sight.
    pub fn status(&self) -> InstanceStatus {
        match self {
            InstanceState::Waiting { .. } => InstanceStatus::CreatingVM,
            InstanceState::Placed { phase, .. } => phase.status(),
            InstanceState::Retiring { then: Then::Remove, .. } => InstanceStatus::DeletingVM,
            InstanceState::Retiring { then: Then::Replace { .. }, .. } => InstanceStatus::StoppingVM,
        }
    }

    /// More about the state, where there is more.
    pub fn detail(&self) -> Option<&str> {
        match self {
            InstanceState::Waiting { reason, .. } => Some(reason),
            InstanceState::Placed { phase, .. } => phase.detail(),
            InstanceState::Retiring { .. } => None,
        }
    }
}

fn cycling_reason(observed: &Observed) -> String {
    match observed {
        Observed::Stopped(reason) => format!("it keeps stopping: {reason}"),
        _ => "it has restarted by itself again and again".to_owned(),
    }
}

fn late_reason(observed: &Observed, start_timeout: u64) -> String {
    let seconds = start_timeout / 1000;
    match observed {
        Observed::Running(Readiness::NotReady(detail)) => {
            format!("not ready within {seconds} s; the guest says: {detail}")
        }
        Observed::Stopped(reason) => format!("not ready within {seconds} s; the guest keeps stopping: {reason}"),
        _ => format!("not ready within {seconds} s: the guest reported nothing and no probe was answered"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESTARTING: VmPhase = VmPhase::Restarting { detail: None };

    fn report(observed: Observed, reboots: u32) -> VmReport {
        VmReport {
            vm: VmId(1),
            reboots,
            restarts: 0,
            observed,
            disk_bytes: 0,
            image_bytes: 0,
            cpu_milli: 0,
            traffic: Default::default(),
            steps: Vec::new(),
        }
    }

    fn expect(reboots: u32, started_for: u64) -> Expectation {
        Expectation { reboots, on: true, cycling: false, started_for, start_timeout: 1000 }
    }

    #[test]
    fn a_vm_becomes_ready_and_a_reboot_takes_it_back() {
        let ready = report(Observed::Running(Readiness::Ready), 0);
        let booting = VmPhase::Starting.apply(&report(Observed::Booting, 0), expect(0, 10));
        assert_eq!(booting, VmPhase::CreatingRole);
        let phase = booting.apply(&ready, expect(0, 10));
        assert_eq!(phase, VmPhase::Ready);
        assert_eq!(phase.apply(&ready, expect(1, 10)), RESTARTING, "the reboot has not been done yet");
        let starting = report(Observed::Starting, 1);
        assert_eq!(RESTARTING.apply(&starting, expect(1, 10)), RESTARTING);
        let again = report(Observed::Running(Readiness::Ready), 1);
        let preparing = report(Observed::Preparing("its disk".to_owned()), 1);
        assert_eq!(RESTARTING.apply(&preparing, expect(1, 10)), RESTARTING);
        assert_eq!(VmPhase::Ready.apply(&starting, expect(1, 5000)), RESTARTING, "it was up until now");
        let late = RESTARTING.apply(&starting, expect(1, 1001));
        assert!(matches!(late, VmPhase::FailedStartingRole { .. }), "a reboot has a time limit too: {late:?}");
        assert_eq!(RESTARTING.apply(&again, expect(1, 10)), VmPhase::Ready);
    }

    #[test]
    fn a_guest_that_never_gets_ready_fails_with_a_reason() {
        let silent = report(Observed::Starting, 0);
        let phase = VmPhase::Starting.apply(&silent, expect(0, 1001));
        assert!(matches!(&phase, VmPhase::FailedStartingRole { reason } if reason.contains("within 1 s")), "{phase:?}");
        let ready = report(Observed::Running(Readiness::Ready), 0);
        assert_eq!(phase.apply(&ready, expect(0, 5000)), VmPhase::Ready, "better late than never");
    }

    #[test]
    fn a_suspended_vm_stops_and_starts_again() {
        let off = Expectation { on: false, ..expect(0, 10) };
        let phase = VmPhase::Ready.apply(&report(Observed::Running(Readiness::Ready), 0), off);
        assert_eq!(phase, VmPhase::StoppingRole);
        let phase = phase.apply(&report(Observed::Stopped("asked to".into()), 0), off);
        assert_eq!(phase, VmPhase::StoppingVm);
        let phase = phase.apply(&report(Observed::Off, 0), off);
        assert_eq!(phase, VmPhase::Stopped);
        let phase = phase.apply(&report(Observed::Starting, 0), expect(0, 10));
        assert_eq!(phase, RESTARTING);
        assert_eq!(phase.apply(&report(Observed::Running(Readiness::Ready), 0), expect(0, 10)), VmPhase::Ready);
    }

    #[test]
    fn a_guest_that_keeps_crashing_is_cycling_until_it_is_ready() {
        let expected = Expectation { cycling: true, ..expect(0, 10) };
        let phase = VmPhase::Ready.apply(&report(Observed::Stopped("a panic".into()), 0), expected);
        assert!(matches!(&phase, VmPhase::Cycling { detail } if detail.contains("a panic")), "{phase:?}");
        assert_eq!(phase.apply(&report(Observed::Running(Readiness::Ready), 0), expected), VmPhase::Ready);
    }
}
