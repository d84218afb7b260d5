//! Records: what the store keeps, each under a key of its own.

use mayfly_model::{Deployment, DeploymentKey, Event, Host, Image, Incarnation, Instance, InstanceKey, Service};
use serde::{Deserialize, Serialize};

/// Counters of the whole fabric.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Grows with every start of a controller.
    pub epoch: u64,
    /// Grows with every change that a goal state can show.
    pub revision: Incarnation,
    /// The next VM's id.
    pub next_vm: u64,
    /// Where to look for the next DIP; addresses are used in turn, so that none comes back soon.
    pub next_dip: u32,
    /// The next host's number.
    pub next_host: u16,
    /// The next event's number.
    pub next_event: u64,
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// The counters.
    Meta(Meta),
    /// A base image.
    Image(Image),
    /// A hosted service.
    Service(Service),
    /// A deployment.
    Deployment(Box<Deployment>),
    /// An instance.
    Instance(Box<Instance>),
    /// A host.
    Host(Host),
    /// An event.
    Event(Event),
}

impl Record {
    /// The key it is stored under.
    pub fn key(&self) -> String {
        match self {
            Record::Meta(_) => "meta".to_owned(),
            Record::Image(image) => format!("image/{}", image.name),
            Record::Service(service) => format!("service/{}", service.name),
            Record::Deployment(deployment) => deployment_key(&deployment.key),
            Record::Instance(instance) => instance_key(&instance.key),
            Record::Host(host) => format!("host/{}", host.name),
            Record::Event(event) => event_key(event.number),
        }
    }

    /// The bytes it is stored as.
    ///
    /// # Errors
    /// When it cannot be written as JSON, which no record should cause.
    pub fn encode(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(self)
    }

    /// The record that `bytes` were made of.
    ///
    /// # Errors
    /// When they are not a record of this version.
    pub fn decode(bytes: &[u8]) -> serde_json::Result<Record> {
        serde_json::from_slice(bytes)
    }
}

pub(crate) fn deployment_key(key: &DeploymentKey) -> String {
    format!("deployment/{}/{}", key.service, key.slot)
}

pub(crate) fn instance_key(key: &InstanceKey) -> String {
    format!("instance/{}/{}/{}/{}", key.deployment.service, key.deployment.slot, key.role, key.index)
}

pub(crate) fn event_key(number: u64) -> String {
    format!("event/{number:020}")
}

/// A change to one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The record is now this.
    Put(Record),
    /// The record under this key is gone.
    Delete(String),
}
