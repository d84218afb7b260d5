//! Role instances: an identity, its state, and the VM that carries it.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::name::{HostName, InstanceKey};
use crate::report::{Observed, Readiness, VmReport};
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
    pub computer_name: String,
    /// Its private address.
    pub dip: Ipv4Addr,
    /// How many reboots have been asked for.
    pub reboots: u32,
    /// Since when it has been trying to become ready: when it was placed, was asked to reboot, or was lost to sight.
    pub started: Time,
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
    /// Its state.
    pub state: InstanceState,
}

impl Instance {
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

/// How far a placed VM is. The names that users see are those of the original platform's instance states.
///
/// ```text
///   Creating ─▶ Starting ─▶ StartingRole ─▶ Ready ⇄ Busy
///      │            │            │            │  └──▶ Unresponsive ─▶ Ready
///      └────────────┴──▶ FailedStartingVm     └─ reboot ─▶ Restarting ─▶ Ready
///                        (host keeps trying)
///      StartingRole, too long ─▶ FailedStartingRole ─▶ Ready if it gets there after all
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmPhase {
    /// The host makes disks and network.
    Creating {
        /// What is under way.
        detail: String,
    },
    /// The guest boots and has said nothing yet.
    Starting,
    /// The guest is there, but never was ready.
    StartingRole {
        /// What the guest says.
        detail: String,
    },
    /// It serves.
    Ready,
    /// It was ready and says that it is not.
    Busy {
        /// What the guest says.
        detail: String,
    },
    /// A reboot is under way.
    Restarting,
    /// It was heard and has fallen silent.
    Unresponsive,
    /// The host cannot start it.
    FailedStartingVm {
        /// Why.
        reason: String,
    },
    /// It runs, and did not become ready in time.
    FailedStartingRole {
        /// What is known.
        reason: String,
    },
}

impl VmPhase {
    /// The phase that follows when the host reports `report` about a VM of which `reboots` reboots are wanted.
    /// `started_for` is how long the VM has been trying to become ready, and `start_timeout` how long it may, in ms.
    #[must_use]
    pub fn apply(&self, report: &VmReport, reboots: u32, started_for: u64, start_timeout: u64) -> VmPhase {
        if report.reboots < reboots {
            return VmPhase::Restarting;
        }
        let late = started_for > start_timeout;
        match &report.observed {
            Observed::Running(Readiness::Ready) => VmPhase::Ready,
            Observed::Running(Readiness::Silent) => VmPhase::Unresponsive,
            Observed::Failed(reason) => VmPhase::FailedStartingVm { reason: reason.clone() },
            Observed::Preparing(_) if self.has_been_up() || matches!(self, VmPhase::Restarting) => VmPhase::Restarting,
            Observed::Preparing(detail) => VmPhase::Creating { detail: detail.clone() },
            Observed::Starting | Observed::Stopped(_) | Observed::Running(Readiness::NotReady(_))
                if late && !self.has_been_up() =>
            {
                VmPhase::FailedStartingRole { reason: late_reason(&report.observed, start_timeout) }
            }
            Observed::Starting if self.has_been_up() || matches!(self, VmPhase::Restarting) => VmPhase::Restarting,
            Observed::Starting => VmPhase::Starting,
            Observed::Stopped(_) => VmPhase::Restarting,
            Observed::Running(Readiness::NotReady(detail)) => match self {
                VmPhase::Ready | VmPhase::Busy { .. } => VmPhase::Busy { detail: detail.clone() },
                VmPhase::Restarting => VmPhase::Restarting,
                _ => VmPhase::StartingRole { detail: detail.clone() },
            },
        }
    }

    /// Whether the guest has been ready, and not been started again since.
    pub fn has_been_up(&self) -> bool {
        matches!(self, VmPhase::Ready | VmPhase::Busy { .. } | VmPhase::Unresponsive)
    }

    /// The state's name on the original platform (its `InstanceStatus` values).
    pub fn name(&self) -> &'static str {
        match self {
            VmPhase::Creating { .. } => "CreatingVM",
            VmPhase::Starting => "StartingVM",
            VmPhase::StartingRole { .. } => "StartingRole",
            VmPhase::Ready => "ReadyRole",
            VmPhase::Busy { .. } => "BusyRole",
            VmPhase::Restarting => "RestartingRole",
            VmPhase::Unresponsive => "UnresponsiveRole",
            VmPhase::FailedStartingVm { .. } => "FailedStartingVM",
            VmPhase::FailedStartingRole { .. } => "FailedStartingRole",
        }
    }

    /// More about the state, where there is more.
    pub fn detail(&self) -> Option<&str> {
        match self {
            VmPhase::Creating { detail } | VmPhase::StartingRole { detail } | VmPhase::Busy { detail } => Some(detail),
            VmPhase::FailedStartingVm { reason } | VmPhase::FailedStartingRole { reason } => Some(reason),
            VmPhase::Starting | VmPhase::Ready | VmPhase::Restarting | VmPhase::Unresponsive => None,
        }
    }
}

impl InstanceState {
    /// The state's name on the original platform.
    pub fn name(&self) -> &'static str {
        match self {
            InstanceState::Waiting { .. } => "CreatingVM",
            InstanceState::Placed { phase, .. } => phase.name(),
            InstanceState::Retiring { then: Then::Remove, .. } => "DeletingVM",
            InstanceState::Retiring { then: Then::Replace { .. }, .. } => "StoppingVM",
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

    fn report(observed: Observed, reboots: u32) -> VmReport {
        VmReport { vm: VmId(1), reboots, restarts: 0, observed, disk_bytes: 0, image_bytes: 0 }
    }

    #[test]
    fn a_vm_becomes_ready_and_a_reboot_takes_it_back() {
        let ready = report(Observed::Running(Readiness::Ready), 0);
        let phase = VmPhase::Starting.apply(&ready, 0, 10, 1000);
        assert_eq!(phase, VmPhase::Ready);
        assert_eq!(phase.apply(&ready, 1, 10, 1000), VmPhase::Restarting, "the reboot has not been done yet");
        let starting = report(Observed::Starting, 1);
        assert_eq!(VmPhase::Restarting.apply(&starting, 1, 10, 1000), VmPhase::Restarting);
        let again = report(Observed::Running(Readiness::Ready), 1);
        let preparing = report(Observed::Preparing("its disk".to_owned()), 1);
        assert_eq!(VmPhase::Restarting.apply(&preparing, 1, 10, 1000), VmPhase::Restarting);
        assert_eq!(VmPhase::Ready.apply(&starting, 1, 5000, 1000), VmPhase::Restarting, "it was up until now");
        let late = VmPhase::Restarting.apply(&starting, 1, 1001, 1000);
        assert!(matches!(late, VmPhase::FailedStartingRole { .. }), "a reboot has a time limit too: {late:?}");
        assert_eq!(VmPhase::Restarting.apply(&again, 1, 10, 1000), VmPhase::Ready);
    }

    #[test]
    fn a_guest_that_never_gets_ready_fails_with_a_reason() {
        let silent = report(Observed::Starting, 0);
        let phase = VmPhase::Starting.apply(&silent, 0, 1001, 1000);
        assert!(matches!(&phase, VmPhase::FailedStartingRole { reason } if reason.contains("within 1 s")), "{phase:?}");
        let ready = report(Observed::Running(Readiness::Ready), 0);
        assert_eq!(phase.apply(&ready, 0, 5000, 1000), VmPhase::Ready, "better late than never");
    }
}
