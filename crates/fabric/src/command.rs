//! What comes into the core and what goes out.

use std::collections::BTreeMap;

use mayfly_model::{
    DeploymentKey, HostName, HostReport, Image, ImageName, InstanceKey, LeaseGrant, ReservedName, RoleName, Scope,
    ServiceCertificate, ServiceName, Thumbprint, Time, UpgradeMode, Version,
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
    /// Gives a service a certificate for its guests; its private key is sealed already.
    AddCertificate(ServiceCertificate),
    /// Takes a certificate from a service that no deployment uses.
    DeleteCertificate(ServiceName, Thumbprint),
    /// Reserves a public address under a name.
    ReserveAddress(ReservedName),
    /// Gives up a reserved address that no deployment has.
    ReleaseAddress(ReservedName),
    /// Puts a deployment into an empty slot.
    Deploy {
        /// Where.
        key: DeploymentKey,
        /// What, and how.
        version: Version,
    },
    /// Empties a slot.
    DeleteDeployment(DeploymentKey),
    /// Changes a deployment in place, one update domain after the other.
    Upgrade {
        /// Which.
        key: DeploymentKey,
        /// What it shall be.
        version: Version,
        /// How it goes from one update domain to the next.
        mode: UpgradeMode,
    },
    /// Lets an update that is done by hand go on with this update domain, or with the next.
    Walk {
        /// Which deployment.
        key: DeploymentKey,
        /// Which update domain; the lowest that is left if it is not said.
        domain: Option<u32>,
    },
    /// Takes an update back, while some instance is still as before.
    Rollback {
        /// Which deployment.
        key: DeploymentKey,
        /// How it goes from one update domain to the next.
        mode: UpgradeMode,
    },
    /// Exchanges what is in the two slots of a service.
    Swap(ServiceName),
    /// Stops a deployment's guests and keeps their disks.
    Suspend(DeploymentKey),
    /// Starts a suspended deployment's guests.
    Start(DeploymentKey),
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
    /// Gives an instance a new empty differencing disk and new local disks.
    Rebuild(InstanceKey),
    /// Stops an instance's guest, keeping its disks.
    StopInstance(InstanceKey),
    /// Starts the guest of an instance that was stopped.
    StartInstance(InstanceKey),
    /// A number that says how much a role has to do.
    PushMetric {
        /// Which deployment.
        key: DeploymentKey,
        /// Which role.
        role: RoleName,
        /// The number's name.
        name: String,
        /// The number.
        value: i64,
    },
    /// Moves a host's instances away and gives it no new ones; then reboots it, if so asked, and opens it again.
    Drain {
        /// Which host.
        host: HostName,
        /// Whether it is rebooted when it is empty.
        reboot: bool,
    },
    /// Opens a host again that was drained or quarantined.
    Undrain(HostName),
    /// Forgets a host that is lost and will not come back.
    ForgetHost(HostName),
    /// Lets healing go on.
    ResetBreaker(Scope),
    /// Makes a join token.
    MakeToken {
        /// The digest of its secret.
        id: String,
        /// The only host that may use it, if it is for one.
        host: Option<HostName>,
        /// From when on it is of no use.
        expires: Time,
    },
    /// Says which authority makes hosts' certificates. That cannot be changed.
    SetAuthority(String),
    /// Takes a join token back.
    DeleteToken(String),
    /// Lets a host in that has a token.
    Enrol {
        /// The digest of the token's secret.
        token: String,
        /// The host.
        host: HostName,
        /// A digest of the host's key.
        key: String,
    },
}

/// What the core steps on.
#[derive(Clone, Debug)]
pub enum Input {
    /// A user wants something.
    Command(Command),
    /// The same, with a name that a client has chosen at random: if it comes again, it is not carried out again.
    Request(String, Command),
    /// A user wants to know what a command would do.
    Plan(Command),
    /// A host reports.
    Report(HostReport),
    /// Time has passed.
    Tick,
}

/// What a step decided.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// To be committed before anybody acts on it; for a plan, what would have been.
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
    /// Who asks may not.
    #[error("{0}")]
    Denied(String),
    /// The hosts cannot carry it.
    #[error("{0}")]
    NoRoom(String),
    /// A report that was overtaken by a later one of the same host.
    #[error("a later report of this host came before")]
    Stale,
}
