//! Records: what the store keeps, each under a key of its own.

use std::fmt;
use std::sync::Arc;

use mayfly_model::{
    Breaker, Deployment, DeploymentKey, Enrolment, Event, Host, HostName, HostToken, Image, ImageName, Incarnation,
    Instance, InstanceKey, InstanceState, NamePool, Reservation, ReservedName, Service, ServiceCertificate,
    ServiceName, Thumbprint, Time, Usage,
};
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
    /// Where to look for the next VIP, likewise.
    #[serde(default)]
    pub next_vip: u32,
    /// The next host's number.
    pub next_host: u32,
    /// The next event's number.
    pub next_event: u64,
    /// Disks that are made have higher numbers than this: the records of those of before may have been lost.
    #[serde(default)]
    pub least_generation: u64,
    /// The goal state from which on the present set of voters is known; the next change has to wait until all hosts
    /// that may be serving have applied it.
    #[serde(default)]
    pub voters_since: Incarnation,
    /// The digest of the authority that makes hosts' certificates: all controllers have to have the same.
    #[serde(default)]
    pub authority: Option<String>,
    /// The records come from a backup, and not every host is known to follow a goal state from this one on.
    #[serde(default)]
    pub restored: Option<Incarnation>,
}

/// A request that was answered, so that the same one coming again is not carried out twice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// The client's name for it, random.
    pub id: String,
    /// When.
    pub at: Time,
}

/// One record. They are shared: a record that is being committed is the one that the state holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// The counters.
    Meta(Box<Meta>),
    /// A base image.
    Image(Arc<Image>),
    /// A hosted service.
    Service(Arc<Service>),
    /// A deployment.
    Deployment(Arc<Deployment>),
    /// An instance.
    Instance(Arc<Instance>),
    /// A host.
    Host(Arc<Host>),
    /// An event.
    Event(Arc<Event>),
    /// The breaker.
    Breaker(Arc<Breaker>),
    /// What a service used on one day.
    Usage(Arc<Usage>),
    /// A request that was answered.
    Answered(Arc<Answered>),
    /// A join token.
    HostToken(Arc<HostToken>),
    /// A host that has joined.
    Enrolment(Arc<Enrolment>),
    /// A certificate of a service.
    Certificate(Arc<ServiceCertificate>),
    /// A reserved public address.
    Reservation(Arc<Reservation>),
}

/// Which record. Its text is the key in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordId {
    /// The counters.
    Meta,
    /// A base image.
    Image(ImageName),
    /// A hosted service.
    Service(ServiceName),
    /// A deployment.
    Deployment(DeploymentKey),
    /// An instance.
    Instance(InstanceKey),
    /// A host.
    Host(HostName),
    /// An event.
    Event(u64),
    /// The breaker.
    Breaker,
    /// What a service used on one day.
    Usage(ServiceName, u64),
    /// A request that was answered.
    Answered(String),
    /// A join token.
    HostToken(String),
    /// A host that has joined.
    Enrolment(HostName),
    /// A certificate of a service.
    Certificate(ServiceName, Thumbprint),
    /// A reserved public address.
    Reservation(ReservedName),
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecordId::Meta => f.write_str("meta"),
            RecordId::Image(name) => write!(f, "image/{name}"),
            RecordId::Service(name) => write!(f, "service/{name}"),
            RecordId::Deployment(key) => write!(f, "deployment/{}/{}", key.service, key.slot),
            RecordId::Instance(InstanceKey { deployment, role, index }) => {
                // There are so many of these that the plain way counts.
                for part in ["instance/", deployment.service.as_str(), "/", deployment.slot.as_str(), "/"] {
                    f.write_str(part)?;
                }
                f.write_str(role.as_str())?;
                write!(f, "/{index}")
            }
            RecordId::Host(name) => write!(f, "host/{name}"),
            RecordId::Event(number) => write!(f, "event/{number:020}"),
            RecordId::Breaker => f.write_str("breaker"),
            RecordId::Usage(service, day) => write!(f, "usage/{service}/{day:06}"),
            RecordId::Answered(id) => write!(f, "answered/{id}"),
            RecordId::HostToken(id) => write!(f, "token/{id}"),
            RecordId::Enrolment(host) => write!(f, "enrolment/{host}"),
            RecordId::Reservation(name) => write!(f, "address/{name}"),
            RecordId::Certificate(service, thumbprint) => write!(f, "certificate/{service}/{thumbprint}"),
        }
    }
}

impl RecordId {
    /// The key it is stored under.
    pub fn key(&self) -> String {
        let mut key = String::with_capacity(64);
        // Writing to a text does not fail.
        let _ = fmt::Write::write_fmt(&mut key, format_args!("{self}"));
        key
    }
}

impl Record {
    /// Which record it is.
    pub fn id(&self) -> RecordId {
        match self {
            Record::Meta(_) => RecordId::Meta,
            Record::Image(image) => RecordId::Image(image.name.clone()),
            Record::Service(service) => RecordId::Service(service.name.clone()),
            Record::Deployment(deployment) => RecordId::Deployment(deployment.key.clone()),
            Record::Instance(instance) => RecordId::Instance(instance.key.clone()),
            Record::Host(host) => RecordId::Host(host.name.clone()),
            Record::Event(event) => RecordId::Event(event.number),
            Record::Breaker(_) => RecordId::Breaker,
            Record::Usage(usage) => RecordId::Usage(usage.service.clone(), usage.day),
            Record::Answered(answered) => RecordId::Answered(answered.id.clone()),
            Record::HostToken(token) => RecordId::HostToken(token.id.clone()),
            Record::Enrolment(enrolment) => RecordId::Enrolment(enrolment.host.clone()),
            Record::Reservation(one) => RecordId::Reservation(one.name.clone()),
            Record::Certificate(one) => RecordId::Certificate(one.service.clone(), one.thumbprint.clone()),
        }
    }

    /// The key it is stored under.
    pub fn key(&self) -> String {
        self.id().key()
    }

    /// The bytes it is stored as: MessagePack with the names of fields, so that a later version can have more of them.
    ///
    /// # Errors
    /// When it cannot be written so, which no record should cause.
    pub fn encode(&self) -> Result<Vec<u8>, NotARecord> {
        let mut bytes = Vec::with_capacity(TYPICAL);
        let written = self.serialize(&mut rmp_serde::Serializer::new(&mut bytes).with_struct_map());
        written.map_err(|error| NotARecord(error.to_string()))?;
        Ok(bytes)
    }

    /// The record that `bytes` were made of, be it by an earlier version, which wrote JSON.
    ///
    /// # Errors
    /// When they are not a record.
    pub fn decode(bytes: &[u8]) -> Result<Record, NotARecord> {
        match bytes.first() {
            // No record begins so in MessagePack, where it is the number 123.
            Some(b'{') => serde_json::from_slice(bytes).map_err(|error| NotARecord(error.to_string())),
            _ => rmp_serde::from_slice(bytes).map_err(|error| NotARecord(error.to_string())),
        }
    }

    /// The same record with its names in the memory of `pool`: a million instances of a thousand services have a
    /// thousand names.
    #[must_use]
    pub fn pooled(mut self, pool: &mut NamePool) -> Record {
        if let Record::Instance(instance) = &mut self {
            let one = Arc::make_mut(instance);
            one.key.deployment.service = one.key.deployment.service.pooled(pool);
            one.key.role = one.key.role.pooled(pool);
            if let InstanceState::Placed { vm, .. } | InstanceState::Retiring { vm, .. } = &mut one.state {
                vm.host = vm.host.pooled(pool);
            }
            if let InstanceState::Placed { phase, .. } = &mut one.state {
                *phase = phase.clone().pooled(pool);
            }
        }
        self
    }
}

/// Bytes that are not a record, or a record that cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("not a record: {0}")]
pub struct NotARecord(String);

/// Room for most records, in bytes.
const TYPICAL: usize = 384;

/// A change to one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The record is now this.
    Put(Record),
    /// The record is gone.
    Delete(RecordId),
}

impl Change {
    /// The key of the record that changes.
    pub fn key(&self) -> String {
        match self {
            Change::Put(record) => record.key(),
            Change::Delete(id) => id.key(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_both_versions_are_read_and_nothing_else_is() {
        let event = Event {
            number: 7,
            time: Time(1),
            kind: mayfly_model::EventKind::Command,
            subject: "shop".to_owned(),
            message: "made".to_owned(),
        };
        for record in [Record::Event(Arc::new(event)), Record::Meta(Box::new(Meta { epoch: 3, ..Meta::default() }))] {
            let bytes = record.encode().unwrap();
            assert_eq!(Record::decode(&bytes).unwrap(), record);
            assert_eq!(Record::decode(&serde_json::to_vec(&record).unwrap()).unwrap(), record);
            for length in 0..bytes.len() {
                assert!(Record::decode(&bytes[..length]).is_err(), "{length}");
            }
        }
        assert!(Record::decode(b"{}").is_err());
    }
}
