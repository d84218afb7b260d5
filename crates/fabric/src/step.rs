//! A step in progress: a transaction in memory. What it changes is there at once, is noted for the store, and can be
//! taken back as a whole.

use std::collections::HashSet;
use std::sync::Arc;

use mayfly_model::{
    Admission, Breaker, Deployment, DeploymentKey, Event, EventKind, Host, Instance, InstanceKey, ServiceName, Time,
    limits,
};

use crate::core::Config;
use crate::entropy::Entropy;
use crate::mutant::Planted;
use crate::record::{Change, Meta, Record, RecordId};
use crate::state::State;

/// A step in progress.
pub(crate) struct Step<'s> {
    pub(crate) state: &'s mut State,
    pub(crate) config: &'s Config,
    pub(crate) entropy: Entropy,
    pub(crate) now: Time,
    pub(crate) planted: Planted,
    /// Single instances that events of this step tell of; of many, some are examples.
    pub(crate) told: usize,
    /// Whether all will be taken back, as somebody only wants to know what would become of it.
    pub(crate) plans: bool,
    changes: Vec<Change>,
    undo: Vec<(RecordId, Option<Record>)>,
    meta: Meta,
}

impl<'s> Step<'s> {
    pub(crate) fn new(
        state: &'s mut State,
        config: &'s Config,
        entropy: Entropy,
        now: Time,
        planted: Planted,
    ) -> Step<'s> {
        let meta = state.meta.clone();
        Step {
            state,
            config,
            entropy,
            now,
            planted,
            told: 0,
            plans: false,
            changes: Vec::new(),
            undo: Vec::new(),
            meta,
        }
    }

    /// The step's changes, with the counters last.
    pub(crate) fn finish(mut self) -> Vec<Change> {
        self.drop_what_is_superseded();
        if !self.changes.is_empty() {
            self.changes.push(Change::Put(Record::Meta(Box::new(self.state.meta.clone()))));
        }
        self.changes
    }

    /// A new instance waits and has its place in the same step. What nobody will ever see need not be written, nor be
    /// freed by the thread that writes while this one waits for the allocator.
    fn drop_what_is_superseded(&mut self) {
        let superseded: HashSet<usize> =
            self.undo.iter().filter_map(|(_, before)| place_of(before.as_ref()?)).collect();
        self.changes.retain(|change| match change {
            Change::Put(record) => place_of(record).is_none_or(|place| !superseded.contains(&place)),
            Change::Delete(_) => true,
        });
    }

    /// Takes everything back, and returns what would have changed.
    pub(crate) fn take_back(mut self) -> Vec<Change> {
        self.unwind(0);
        self.state.meta = self.meta;
        self.changes
    }

    pub(crate) fn put(&mut self, record: Record) {
        let id = record.id();
        let before = self.state.insert(record.clone());
        if shows_in_goals(before.as_ref(), &record) {
            self.state.meta.revision.0 += 1;
        }
        self.undo.push((id, before));
        self.changes.push(Change::Put(record));
    }

    pub(crate) fn put_instance(&mut self, instance: Instance) {
        self.put(Record::Instance(Arc::new(instance)));
    }

    pub(crate) fn put_deployment(&mut self, deployment: Deployment) {
        self.put(Record::Deployment(Arc::new(deployment)));
    }

    pub(crate) fn put_host(&mut self, host: Host) {
        self.put(Record::Host(Arc::new(host)));
    }

    pub(crate) fn put_breaker(&mut self, breaker: Breaker) {
        self.put(Record::Breaker(Arc::new(breaker)));
    }

    pub(crate) fn delete(&mut self, id: RecordId) {
        if matches!(id, RecordId::Instance(_) | RecordId::Deployment(_) | RecordId::Host(_)) {
            self.state.meta.revision.0 += 1;
        }
        if let Some(before) = self.state.remove(&id) {
            self.undo.push((id.clone(), Some(before)));
            self.changes.push(Change::Delete(id));
        }
    }

    pub(crate) fn event(&mut self, kind: EventKind, subject: impl ToString, message: impl Into<String>) {
        let number = self.state.meta.next_event;
        self.state.meta.next_event += 1;
        let (subject, message) = (subject.to_string(), message.into());
        self.put(Record::Event(Arc::new(Event { number, time: self.now, kind, subject, message })));
        if let Some(old) = number.checked_sub(limits::EVENTS_KEPT) {
            self.delete(RecordId::Event(old));
        }
    }

    /// How many instances this step has made.
    pub(crate) fn added_instances(&self) -> usize {
        self.undo.iter().filter(|(id, before)| matches!(id, RecordId::Instance(_)) && before.is_none()).count()
    }

    /// Does `work`, and takes it back alone if it fails.
    pub(crate) fn attempt<E>(&mut self, work: impl FnOnce(&mut Step<'s>) -> Result<(), E>) -> Result<(), E> {
        let (undo, changes, meta) = (self.undo.len(), self.changes.len(), self.state.meta.clone());
        let done = work(self);
        if done.is_err() {
            self.unwind(undo);
            self.changes.truncate(changes);
            self.state.meta = meta;
        }
        done
    }

    fn unwind(&mut self, down_to: usize) {
        for (id, before) in self.undo.drain(down_to..).rev() {
            match before {
                Some(record) => drop(self.state.insert(record)),
                None => drop(self.state.remove(&id)),
            }
        }
    }

    /// An instance, as it is now.
    pub(crate) fn instance(&self, key: &InstanceKey) -> Option<Arc<Instance>> {
        self.state.instances.get(key).cloned()
    }

    /// A deployment, as it is now.
    pub(crate) fn deployment(&self, key: &DeploymentKey) -> Option<Arc<Deployment>> {
        self.state.deployments.get(key).cloned()
    }

    /// Whether healing has been stopped for a deployment, or for all.
    pub(crate) fn is_halted(&self, service: &ServiceName, slot: mayfly_model::Slot) -> bool {
        let trips = &self.state.breaker.trips;
        trips.contains_key(&mayfly_model::Scope::Fleet)
            || trips.contains_key(&mayfly_model::Scope::Deployment(service.clone(), slot))
    }
}

/// Where in memory an instance is, which is the same for the state and a change.
fn place_of(record: &Record) -> Option<usize> {
    match record {
        Record::Instance(instance) => Some(Arc::as_ptr(instance).addr()),
        _ => None,
    }
}

/// Whether a goal state can look different with `now` in the place of `before`.
fn shows_in_goals(before: Option<&Record>, now: &Record) -> bool {
    match (before, now) {
        (Some(Record::Instance(old)), Record::Instance(new)) => visible(old) != visible(new),
        (_, Record::Instance(new)) => visible(new).is_some(),
        (Some(Record::Deployment(old)), Record::Deployment(new)) => {
            (&old.version, &old.older, old.vip, old.is_on(), old.is_deleting())
                != (&new.version, &new.older, new.vip, new.is_on(), new.is_deleting())
        }
        (Some(Record::Host(old)), Record::Host(new)) => {
            let is_open = |host: &Host| host.admission == Admission::Open;
            (old.address, old.number, &old.fault_domain, old.reboot(), old.voter, is_open(old))
                != (new.address, new.number, &new.fault_domain, new.reboot(), new.voter, is_open(new))
        }
        (_, Record::Deployment(_) | Record::Host(_)) => true,
        (
            _,
            Record::Meta(_)
            | Record::Image(_)
            | Record::Service(_)
            | Record::Event(_)
            | Record::Breaker(_)
            | Record::Usage(_)
            | Record::Answered(_)
            | Record::HostToken(_)
            | Record::Enrolment(_)
            | Record::Certificate(_)
            | Record::Reservation(_),
        ) => false,
    }
}

/// What a goal state shows of an instance.
fn visible(instance: &Instance) -> Option<impl PartialEq + '_> {
    let vm = instance.wanted_vm()?;
    Some((vm.id, &vm.host, vm.reboots, instance.version, instance.stopped))
}
