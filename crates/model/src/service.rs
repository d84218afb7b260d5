//! Hosted services and their deployments.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::configuration::{RoleConfiguration, ServiceConfiguration};
use crate::definition::{RoleDefinition, ServiceDefinition};
use crate::name::{DeploymentKey, RoleName, ServiceName, Slot};
use crate::time::Time;
use crate::upgrade::Upgrade;

/// A hosted service: a named container for deployments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its name, and the first label of its DNS name.
    pub name: ServiceName,
    /// When it was created.
    pub created: Time,
    /// Whether it goes away as soon as its last VM has gone.
    pub deleting: bool,
    /// The public address that each slot had last. The next deployment in it gets the same, if nobody else has it now.
    #[serde(default)]
    pub vips: BTreeMap<Slot, Ipv4Addr>,
}

/// What a deployment consists of at one time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// What it consists of.
    pub definition: ServiceDefinition,
    /// How it is set up.
    pub configuration: ServiceConfiguration,
}

impl Version {
    /// The definition and configuration of a role.
    pub fn role(&self, name: &RoleName) -> Option<(&RoleDefinition, &RoleConfiguration)> {
        Some((self.definition.role(name)?, self.configuration.role(name)?))
    }
}

/// A package and configuration running in a slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    /// Where it runs.
    pub key: DeploymentKey,
    /// 32 hexadecimal digits, never used twice.
    pub id: String,
    /// Its public address.
    pub vip: Ipv4Addr,
    /// The number of the version that is wanted.
    pub number: u32,
    /// The highest number that any version has had.
    pub newest: u32,
    /// What is wanted.
    pub version: Version,
    /// Versions before it that instances still have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub older: BTreeMap<u32, Version>,
    /// When it was created.
    pub created: Time,
    /// How it is doing.
    pub status: DeploymentStatus,
    /// The update that is under way.
    #[serde(default)]
    pub upgrade: Option<Upgrade>,
    /// What the service has said of its load, by role and name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<RoleName, BTreeMap<String, Metric>>,
    /// When each role's count was last changed by its own rules.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub scaled: BTreeMap<RoleName, Time>,
    /// The last generation of instances that were scaled away, by name, so that generations only grow.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub generations: BTreeMap<String, u64>,
}

/// A number that a service has pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metric {
    /// The number.
    pub value: i64,
    /// When it came. A number that is too old says nothing.
    pub at: Time,
}

impl Deployment {
    /// The version of that number, if there is one.
    pub fn version_of(&self, number: u32) -> Option<&Version> {
        if number == self.number { Some(&self.version) } else { self.older.get(&number) }
    }

    /// Whether it is going away.
    pub fn is_deleting(&self) -> bool {
        self.status == DeploymentStatus::Deleting
    }

    /// Whether its guests should run.
    pub fn is_on(&self) -> bool {
        self.status.is_on()
    }
}

/// How a deployment is doing: the original platform's eight values.
///
/// ```text
///   Deploying ──settled──▶ Running ◀──settled── Starting ◀──start── Suspended
///                           │  ▲ │                                     ▲  │ ▲
///                    update │  │ └──────suspend──▶ Suspending ─settled─┘  │ │
///                           ▼  │ update ends                       update │ │ update ends
///                 RunningTransitioning                     SuspendedTransitioning
///
///   any ──delete──▶ Deleting
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeploymentStatus {
    /// Its first VMs are being made.
    Deploying,
    /// It runs.
    Running,
    /// It runs and is being changed.
    RunningTransitioning,
    /// Its guests are being stopped.
    Suspending,
    /// Its guests are stopped; their disks are kept.
    Suspended,
    /// It is suspended and being changed.
    SuspendedTransitioning,
    /// Its guests are being started.
    Starting,
    /// It is going away.
    Deleting,
}

/// What can happen to a deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeploymentEvent {
    /// All its instances have got where the status leads.
    Settled,
    /// Its guests should run.
    Start,
    /// Its guests should stop.
    Suspend,
    /// An update begins.
    UpdateBegins,
    /// An update ends.
    UpdateEnds,
    /// It should go away.
    Delete,
}

impl DeploymentStatus {
    /// The status after `event`, or `None` where the event cannot happen.
    #[must_use]
    pub fn apply(self, event: DeploymentEvent) -> Option<DeploymentStatus> {
        use DeploymentEvent as Event;
        use DeploymentStatus as Status;
        match (self, event) {
            (Status::Deleting, _) => None,
            (_, Event::Delete) => Some(Status::Deleting),
            (Status::Deploying | Status::Starting, Event::Settled) => Some(Status::Running),
            (Status::Suspending, Event::Settled) => Some(Status::Suspended),
            (Status::Suspended | Status::Suspending, Event::Start) => Some(Status::Starting),
            (Status::Running | Status::Starting | Status::Deploying, Event::Suspend) => Some(Status::Suspending),
            (Status::Running, Event::UpdateBegins) => Some(Status::RunningTransitioning),
            (Status::Suspended, Event::UpdateBegins) => Some(Status::SuspendedTransitioning),
            (Status::RunningTransitioning, Event::UpdateEnds) => Some(Status::Running),
            (Status::SuspendedTransitioning, Event::UpdateEnds) => Some(Status::Suspended),
            (
                Status::Running
                | Status::RunningTransitioning
                | Status::Suspended
                | Status::SuspendedTransitioning
                | Status::Suspending
                | Status::Starting
                | Status::Deploying,
                Event::Settled | Event::Start | Event::Suspend | Event::UpdateBegins | Event::UpdateEnds,
            ) => None,
        }
    }

    /// Whether the guests should run.
    pub fn is_on(self) -> bool {
        !matches!(
            self,
            DeploymentStatus::Suspending | DeploymentStatus::Suspended | DeploymentStatus::SuspendedTransitioning
        )
    }

    /// The name on the original platform.
    pub fn name(self) -> &'static str {
        match self {
            DeploymentStatus::Deploying => "Deploying",
            DeploymentStatus::Running => "Running",
            DeploymentStatus::RunningTransitioning => "RunningTransitioning",
            DeploymentStatus::Suspending => "Suspending",
            DeploymentStatus::Suspended => "Suspended",
            DeploymentStatus::SuspendedTransitioning => "SuspendedTransitioning",
            DeploymentStatus::Starting => "Starting",
            DeploymentStatus::Deleting => "Deleting",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deployment_goes_round() {
        use DeploymentEvent as Event;
        use DeploymentStatus as Status;
        let steps = [
            (Event::Settled, Status::Running),
            (Event::UpdateBegins, Status::RunningTransitioning),
            (Event::UpdateEnds, Status::Running),
            (Event::Suspend, Status::Suspending),
            (Event::Settled, Status::Suspended),
            (Event::UpdateBegins, Status::SuspendedTransitioning),
            (Event::UpdateEnds, Status::Suspended),
            (Event::Start, Status::Starting),
            (Event::Settled, Status::Running),
            (Event::Delete, Status::Deleting),
        ];
        let mut status = Status::Deploying;
        for (event, next) in steps {
            status = status.apply(event).unwrap();
            assert_eq!(status, next, "{event:?}");
        }
        assert_eq!(status.apply(Event::Start), None, "what is being deleted stays deleted");
    }
}
