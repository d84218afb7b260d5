//! What comes into the core and what goes out.

use std::collections::BTreeMap;

use mayfly_model::{
    DeploymentKey, HostReport, Image, ImageName, InstanceKey, LeaseGrant, RoleName, ServiceConfiguration,
    ServiceDefinition, ServiceName,
};

use crate::record::Change;

/// A user's command, already authenticated and checked as far as it can be without the records.
#[derive(Clone, Debug)]
pub enum Command {
    /// Makes an uploaded image usable.
    CommitImage(Image),
    /// Forgets an image that nothing uses.
    DeleteImage(ImageName),
    /// Makes an empty service.
    CreateService(ServiceName),
    /// Deletes a service with its deployments.
    DeleteService(ServiceName),
    /// Puts a deployment into an empty slot.
    Deploy {
        /// Where.
        key: DeploymentKey,
        /// What.
        definition: ServiceDefinition,
        /// How.
        configuration: ServiceConfiguration,
    },
    /// Sets the number of instances of roles, all or none.
    Scale {
        /// Where.
        key: DeploymentKey,
        /// The wanted number of each role named.
        counts: BTreeMap<RoleName, u32>,
    },
    /// Restarts an instance's guest, keeping its disk.
    Reboot(InstanceKey),
    /// Gives an instance a new empty differencing disk.
    Reimage(InstanceKey),
}

/// What the core steps on.
#[derive(Clone, Debug)]
pub enum Input {
    /// A user wants something.
    Command(Command),
    /// A host reports.
    Report(HostReport),
    /// Time has passed.
    Tick,
}

/// What a step decided.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// To be committed before anybody acts on it.
    pub changes: Vec<Change>,
    /// The answer to a report.
    pub grant: Option<LeaseGrant>,
}

/// Why a command was refused. A refused command changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// There is no such thing.
    #[error("there is no {kind} `{name}`")]
    NotFound {
        /// What kind of thing.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The name is taken.
    #[error("there is a {kind} `{name}` already")]
    AlreadyExists {
        /// What kind of thing.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The thing is in a state in which this cannot be done.
    #[error("{0}")]
    Conflict(String),
    /// The command asks for something that Mayfly does not do.
    #[error("{0}")]
    Unsupported(String),
    /// The hosts cannot carry it.
    #[error("{0}")]
    NoRoom(String),
}
