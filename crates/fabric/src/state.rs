//! All records in memory, and the bookkeeping of a step's changes.

use std::collections::{BTreeMap, BTreeSet};

use mayfly_model::configuration::START_TIMEOUT_SETTING;
use mayfly_model::{
    Deployment, DeploymentKey, Event, EventKind, Host, HostName, Image, ImageName, Instance, InstanceKey, Resources,
    RoleDefinition, RoleName, Service, ServiceName, Time, limits,
};

use crate::record::{self, Change, Meta, Record};

/// The records.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    pub(crate) meta: Meta,
    pub(crate) images: BTreeMap<ImageName, Image>,
    pub(crate) services: BTreeMap<ServiceName, Service>,
    pub(crate) deployments: BTreeMap<DeploymentKey, Deployment>,
    pub(crate) instances: BTreeMap<InstanceKey, Instance>,
    pub(crate) hosts: BTreeMap<HostName, Host>,
    pub(crate) events: BTreeMap<u64, Event>,
    /// Derived: the instances whose VM is on a host, wanted or going.
    pub(crate) by_host: BTreeMap<HostName, BTreeSet<InstanceKey>>,
}

impl State {
    /// The state that these records make.
    pub fn load(records: impl IntoIterator<Item = Record>) -> State {
        let mut state = State::default();
        for record in records {
            state.insert(record);
        }
        state
    }

    /// The counters.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// All images by name.
    pub fn images(&self) -> &BTreeMap<ImageName, Image> {
        &self.images
    }

    /// All services by name.
    pub fn services(&self) -> &BTreeMap<ServiceName, Service> {
        &self.services
    }

    /// All deployments.
    pub fn deployments(&self) -> &BTreeMap<DeploymentKey, Deployment> {
        &self.deployments
    }

    /// All instances.
    pub fn instances(&self) -> &BTreeMap<InstanceKey, Instance> {
        &self.instances
    }

    /// All hosts by name.
    pub fn hosts(&self) -> &BTreeMap<HostName, Host> {
        &self.hosts
    }

    /// The events that are kept, by number.
    pub fn events(&self) -> &BTreeMap<u64, Event> {
        &self.events
    }

    /// The instances of a deployment.
    pub fn instances_of<'a>(&'a self, key: &'a DeploymentKey) -> impl Iterator<Item = &'a Instance> {
        self.instances.values().filter(move |instance| instance.key.deployment == *key)
    }

    /// The instances of a role that are not leaving for good.
    pub fn members<'a>(&'a self, key: &'a DeploymentKey, role: &'a RoleName) -> impl Iterator<Item = &'a Instance> {
        self.instances_of(key).filter(move |instance| instance.key.role == *role && !instance.is_leaving())
    }

    /// The instances whose VM is on a host, wanted or going.
    pub fn instances_on<'a>(&'a self, host: &HostName) -> impl Iterator<Item = &'a Instance> {
        self.by_host.get(host).into_iter().flatten().filter_map(|key| self.instances.get(key))
    }

    /// What an instance takes from its host.
    pub fn resources_of(&self, key: &InstanceKey) -> Resources {
        self.role_of(key).map_or_else(Resources::default, |role| role.size.resources())
    }

    /// What the VMs on a host take, those that are going included.
    pub fn used_on(&self, host: &HostName) -> Resources {
        self.instances_on(host).fold(Resources::default(), |sum, one| sum.plus(self.resources_of(&one.key)))
    }

    /// The definition of an instance's role.
    pub fn role_of(&self, key: &InstanceKey) -> Option<&RoleDefinition> {
        self.deployments.get(&key.deployment)?.definition.role(&key.role)
    }

    /// Milliseconds that an instance may take until its first Ready.
    pub fn start_timeout(&self, key: &InstanceKey) -> u64 {
        let setting = || {
            let role = self.deployments.get(&key.deployment)?.configuration.role(&key.role)?;
            role.setting(START_TIMEOUT_SETTING)?.parse::<u64>().ok()
        };
        setting().unwrap_or(limits::START_TIMEOUT_SECONDS).saturating_mul(1000)
    }

    /// The size of an instance's VM.
    pub fn size_of(&self, key: &InstanceKey) -> Option<mayfly_model::VmSize> {
        Some(self.deployments.get(&key.deployment)?.definition.role(&key.role)?.size)
    }

    fn insert(&mut self, record: Record) {
        match record {
            Record::Meta(meta) => self.meta = meta,
            Record::Image(image) => drop(self.images.insert(image.name.clone(), image)),
            Record::Service(service) => drop(self.services.insert(service.name.clone(), service)),
            Record::Deployment(one) => drop(self.deployments.insert(one.key.clone(), *one)),
            Record::Host(host) => drop(self.hosts.insert(host.name.clone(), host)),
            Record::Event(event) => drop(self.events.insert(event.number, event)),
            Record::Instance(instance) => {
                self.forget_place(&instance.key);
                if let Some(vm) = instance.vm() {
                    self.by_host.entry(vm.host.clone()).or_default().insert(instance.key.clone());
                }
                self.instances.insert(instance.key.clone(), *instance);
            }
        }
    }

    fn forget_place(&mut self, key: &InstanceKey) {
        if let Some(vm) = self.instances.get(key).and_then(Instance::vm)
            && let Some(keys) = self.by_host.get_mut(&vm.host)
        {
            keys.remove(key);
        }
    }
}

/// A step in progress: the state, and what has changed in it so far.
pub(crate) struct Step<'s> {
    pub(crate) state: &'s mut State,
    pub(crate) now: Time,
    changes: Vec<Change>,
}

impl<'s> Step<'s> {
    pub(crate) fn new(state: &'s mut State, now: Time) -> Step<'s> {
        Step { state, now, changes: Vec::new() }
    }

    /// The step's changes, with the counters last.
    pub(crate) fn finish(mut self) -> Vec<Change> {
        if !self.changes.is_empty() {
            self.changes.push(Change::Put(Record::Meta(self.state.meta.clone())));
        }
        self.changes
    }

    pub(crate) fn put(&mut self, record: Record) {
        if self.shows_in_goals(&record) {
            self.state.meta.revision.0 += 1;
        }
        self.state.insert(record.clone());
        self.changes.push(Change::Put(record));
    }

    pub(crate) fn delete_image(&mut self, name: &ImageName) {
        if let Some(image) = self.state.images.remove(name) {
            self.changes.push(Change::Delete(Record::Image(image).key()));
        }
    }

    pub(crate) fn delete_service(&mut self, name: &ServiceName) {
        if let Some(service) = self.state.services.remove(name) {
            self.changes.push(Change::Delete(Record::Service(service).key()));
        }
    }

    pub(crate) fn delete_deployment(&mut self, key: &DeploymentKey) {
        self.state.meta.revision.0 += 1;
        if self.state.deployments.remove(key).is_some() {
            self.changes.push(Change::Delete(record::deployment_key(key)));
        }
    }

    pub(crate) fn delete_instance(&mut self, key: &InstanceKey) {
        self.state.meta.revision.0 += 1;
        self.state.forget_place(key);
        if self.state.instances.remove(key).is_some() {
            self.changes.push(Change::Delete(record::instance_key(key)));
        }
    }

    pub(crate) fn event(&mut self, kind: EventKind, subject: impl ToString, message: impl Into<String>) {
        let number = self.state.meta.next_event;
        self.state.meta.next_event += 1;
        let (subject, message) = (subject.to_string(), message.into());
        self.put(Record::Event(Event { number, time: self.now, kind, subject, message }));
        if let Some(old) = number.checked_sub(limits::EVENTS_KEPT)
            && self.state.events.remove(&old).is_some()
        {
            self.changes.push(Change::Delete(record::event_key(old)));
        }
    }

    /// Whether a goal state can look different after this.
    fn shows_in_goals(&self, record: &Record) -> bool {
        let visible = |instance: &Instance| instance.wanted_vm().map(|vm| (vm.id, vm.host.clone(), vm.reboots));
        match record {
            Record::Meta(_) | Record::Image(_) | Record::Service(_) | Record::Event(_) => false,
            Record::Deployment(_) => true,
            Record::Instance(new) => self.state.instances.get(&new.key).and_then(visible) != visible(new),
            Record::Host(new) => self.state.hosts.get(&new.name).is_none_or(|old| {
                (old.address, old.number, &old.fault_domain) != (new.address, new.number, &new.fault_domain)
            }),
        }
    }
}
