//! All records in memory, and what is derived from them to find things fast.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use mayfly_model::configuration::START_TIMEOUT_SETTING;
use mayfly_model::{
    Breaker, Deployment, DeploymentKey, DeploymentStatus, Enrolment, Event, Host, HostName, HostToken, Image,
    ImageName, Instance, InstanceKey, InstanceState, Reservation, ReservedName, Resources, RoleConfiguration,
    RoleDefinition, RoleName, Service, ServiceCertificate, ServiceName, Thumbprint, Usage, Version, VmId, limits,
};

use crate::inventory::Inventory;
use crate::meter::Heard;
use crate::record::{Answered, Meta, Record, RecordId};

/// The records.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub(crate) meta: Meta,
    pub(crate) images: BTreeMap<ImageName, Arc<Image>>,
    pub(crate) services: BTreeMap<ServiceName, Arc<Service>>,
    pub(crate) deployments: BTreeMap<DeploymentKey, Arc<Deployment>>,
    pub(crate) instances: BTreeMap<InstanceKey, Arc<Instance>>,
    pub(crate) hosts: BTreeMap<HostName, Arc<Host>>,
    pub(crate) events: BTreeMap<u64, Arc<Event>>,
    pub(crate) breaker: Arc<Breaker>,
    pub(crate) usage: BTreeMap<(ServiceName, u64), Arc<Usage>>,
    pub(crate) answered: BTreeMap<String, Arc<Answered>>,
    pub(crate) tokens: BTreeMap<String, Arc<HostToken>>,
    pub(crate) enrolments: BTreeMap<HostName, Arc<Enrolment>>,
    pub(crate) certificates: BTreeMap<(ServiceName, Thumbprint), Arc<ServiceCertificate>>,
    pub(crate) reservations: BTreeMap<ReservedName, Arc<Reservation>>,
    pub(crate) index: Index,
}

/// What is derived from the records.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    pub(crate) inventory: Inventory,
    /// Instances that have no VM.
    pub(crate) waiting: BTreeSet<InstanceKey>,
    /// Instances that look sick, or have lately.
    pub(crate) sick: BTreeSet<InstanceKey>,
    /// Deployments that are on their way somewhere: deploying, starting, suspending, being updated or deleted.
    pub(crate) moving: BTreeSet<DeploymentKey>,
    /// Deployments that are being deleted.
    pub(crate) ending: BTreeSet<DeploymentKey>,
    /// Services that are being deleted.
    pub(crate) dying: BTreeSet<ServiceName>,
    /// Hosts that are being drained.
    pub(crate) draining: BTreeSet<HostName>,
    /// Deployments with a role that scales by rules.
    pub(crate) scaling: BTreeSet<DeploymentKey>,
    pub(crate) dips: HashSet<Ipv4Addr>,
    pub(crate) vips: HashSet<Ipv4Addr>,
    /// Public addresses that are reserved, whether or not a deployment has them.
    pub(crate) reserved: HashSet<Ipv4Addr>,
    /// What the hosts said of their VMs last.
    pub(crate) heard: HashMap<VmId, Heard>,
    /// The VMs that each host listed last, while the records are those of a backup.
    pub(crate) listed: BTreeMap<HostName, BTreeSet<VmId>>,
    /// The inventory as it was when all that wait were tried last.
    pub(crate) tried: Option<u64>,
    /// The last deployment whose spread was looked at.
    pub(crate) rebalanced: Option<DeploymentKey>,
    /// When spreads were looked at last.
    pub(crate) spreads_seen: mayfly_model::Time,
    /// When a role's rules last wanted what there was no room for.
    pub(crate) refused: BTreeMap<(DeploymentKey, RoleName), mayfly_model::Time>,
    /// When the rules for scaling were looked at last.
    pub(crate) scaled: mayfly_model::Time,
    /// A planted mistake: what is going takes no room.
    pub(crate) forget_retiring: bool,
}

impl PartialEq for State {
    fn eq(&self, other: &State) -> bool {
        (&self.meta, &self.images, &self.services, &self.deployments, &self.instances)
            == (&other.meta, &other.images, &other.services, &other.deployments, &other.instances)
            && (&self.hosts, &self.events, &self.breaker, &self.usage, &self.answered)
                == (&other.hosts, &other.events, &other.breaker, &other.usage, &other.answered)
            && (&self.tokens, &self.enrolments, &self.certificates, &self.reservations)
                == (&other.tokens, &other.enrolments, &other.certificates, &other.reservations)
    }
}

impl State {
    /// The state that these records make.
    pub fn load(records: impl IntoIterator<Item = Record>) -> State {
        let mut state = State::default();
        state.index.inventory.begin_loading();
        let (mut instances, mut unplaced) = (Vec::new(), Vec::new());
        for record in records {
            match record {
                Record::Instance(instance) => {
                    // Their hosts have to be known first; a store has those in front.
                    if !state.learn(&instance) {
                        unplaced.push(Arc::clone(&instance));
                    }
                    instances.push(instance);
                }
                other => drop(state.insert(other)),
            }
        }
        for instance in &unplaced {
            state.learn(instance);
        }
        // All at once, and so in as little memory as there can be.
        state.instances = instances.into_iter().map(|instance| (instance.key.clone(), instance)).collect();
        state.index.inventory.end_loading();
        state
    }

    /// All records, as the store has them.
    pub fn records(&self) -> impl Iterator<Item = Record> {
        let meta = [Record::Meta(Box::new(self.meta.clone())), Record::Breaker(Arc::clone(&self.breaker))];
        let hosts = self.hosts.values().cloned().map(Record::Host);
        let images = self.images.values().cloned().map(Record::Image);
        let services = self.services.values().cloned().map(Record::Service);
        let deployments = self.deployments.values().cloned().map(Record::Deployment);
        let instances = self.instances.values().cloned().map(Record::Instance);
        let events = self.events.values().cloned().map(Record::Event);
        let usage = self.usage.values().cloned().map(Record::Usage);
        let answered = self.answered.values().cloned().map(Record::Answered);
        let tokens = self.tokens.values().cloned().map(Record::HostToken);
        let enrolments = self.enrolments.values().cloned().map(Record::Enrolment);
        let certificates = self.certificates.values().cloned().map(Record::Certificate);
        let reservations = self.reservations.values().cloned().map(Record::Reservation);
        let access = tokens.chain(enrolments).chain(certificates).chain(reservations);
        let things = hosts.chain(images).chain(services).chain(deployments).chain(instances);
        meta.into_iter().chain(things).chain(events).chain(usage).chain(answered).chain(access)
    }

    /// The counters.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// All images by name.
    pub fn images(&self) -> &BTreeMap<ImageName, Arc<Image>> {
        &self.images
    }

    /// All services by name.
    pub fn services(&self) -> &BTreeMap<ServiceName, Arc<Service>> {
        &self.services
    }

    /// All deployments.
    pub fn deployments(&self) -> &BTreeMap<DeploymentKey, Arc<Deployment>> {
        &self.deployments
    }

    /// All instances.
    pub fn instances(&self) -> &BTreeMap<InstanceKey, Arc<Instance>> {
        &self.instances
    }

    /// All hosts by name.
    pub fn hosts(&self) -> &BTreeMap<HostName, Arc<Host>> {
        &self.hosts
    }

    /// The events that are kept, by number.
    pub fn events(&self) -> &BTreeMap<u64, Arc<Event>> {
        &self.events
    }

    /// The breaker.
    pub fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    /// What has been written down of each service's usage, by day. What still runs is not in it.
    pub fn usage(&self) -> &BTreeMap<(ServiceName, u64), Arc<Usage>> {
        &self.usage
    }

    /// The join tokens that have not been swept away yet.
    pub fn tokens(&self) -> &BTreeMap<String, Arc<HostToken>> {
        &self.tokens
    }

    /// The hosts that have joined.
    pub fn enrolments(&self) -> &BTreeMap<HostName, Arc<Enrolment>> {
        &self.enrolments
    }

    /// The reserved public addresses by name.
    pub fn reservations(&self) -> &BTreeMap<ReservedName, Arc<Reservation>> {
        &self.reservations
    }

    /// Whether a public address is a deployment's, or reserved.
    pub(crate) fn has_given_out(&self, vip: &Ipv4Addr) -> bool {
        self.index.vips.contains(vip) || self.index.reserved.contains(vip)
    }

    /// The certificates of all services.
    pub fn certificates(&self) -> &BTreeMap<(ServiceName, Thumbprint), Arc<ServiceCertificate>> {
        &self.certificates
    }

    /// The certificates of a service.
    pub fn certificates_of<'a>(
        &'a self,
        service: &'a ServiceName,
    ) -> impl Iterator<Item = &'a Arc<ServiceCertificate>> {
        let of_service = move |((of, _), _): &(&(ServiceName, Thumbprint), &Arc<ServiceCertificate>)| of == service;
        self.certificates.iter().filter(of_service).map(|(_, one)| one)
    }

    /// Whether a request of this name was carried out.
    pub fn answered_contains(&self, id: &str) -> bool {
        self.answered.contains_key(id)
    }

    /// The instances of a deployment.
    pub fn instances_of<'a>(&'a self, key: &'a DeploymentKey) -> impl Iterator<Item = &'a Arc<Instance>> {
        let from = self.instances.range(InstanceKey::first_of(key)..);
        from.take_while(move |(at, _)| at.deployment == *key).map(|(_, instance)| instance)
    }

    /// The instances of a role, those that are leaving included.
    pub fn instances_of_role<'a>(
        &'a self,
        key: &DeploymentKey,
        role: &RoleName,
    ) -> impl DoubleEndedIterator<Item = &'a Arc<Instance>> + use<'a> {
        let at = |index| InstanceKey { deployment: key.clone(), role: role.clone(), index };
        self.instances.range(at(0)..=at(u32::MAX)).map(|(_, instance)| instance)
    }

    /// The instances of a role that are not leaving for good.
    pub fn members<'a>(
        &'a self,
        key: &DeploymentKey,
        role: &RoleName,
    ) -> impl DoubleEndedIterator<Item = &'a Arc<Instance>> + use<'a> {
        self.instances_of_role(key, role).filter(|instance| !instance.is_leaving())
    }

    /// The instances whose VM is on a host, wanted or going.
    pub fn instances_on<'a>(&'a self, host: &HostName) -> impl Iterator<Item = &'a Arc<Instance>> {
        self.index.inventory.carried(host).filter_map(|key| self.instances.get(key))
    }

    /// What the VMs on a host take, those that are going included.
    pub fn used_on(&self, host: &HostName) -> Resources {
        self.instances_on(host)
            .filter_map(|one| one.vm())
            .fold(Resources::default(), |sum, vm| sum.plus(vm.size.resources()))
    }

    /// The version of its deployment that an instance has, or gets next.
    pub fn version_of(&self, instance: &Instance) -> Option<&Version> {
        self.deployments.get(&instance.key.deployment)?.version_of(instance.version)
    }

    /// The definition and configuration of an instance's role.
    pub fn role_of(&self, instance: &Instance) -> Option<(&RoleDefinition, &RoleConfiguration)> {
        self.version_of(instance)?.role(&instance.key.role)
    }

    /// Milliseconds that an instance may take until its first Ready.
    pub fn start_timeout(&self, instance: &Instance) -> u64 {
        let setting = || self.role_of(instance)?.1.setting(START_TIMEOUT_SETTING)?.parse::<u64>().ok();
        setting().unwrap_or(limits::START_TIMEOUT_SECONDS).saturating_mul(1000)
    }

    /// Puts a record in its place, and returns the one that was there.
    pub(crate) fn insert(&mut self, record: Record) -> Option<Record> {
        match record {
            Record::Meta(meta) => Some(Record::Meta(Box::new(std::mem::replace(&mut self.meta, *meta)))),
            Record::Image(image) => self.images.insert(image.name.clone(), image).map(Record::Image),
            Record::Service(service) => {
                set(&mut self.index.dying, &service.name, service.deleting);
                self.services.insert(service.name.clone(), service).map(Record::Service)
            }
            Record::Deployment(deployment) => self.insert_deployment(deployment).map(Record::Deployment),
            Record::Host(host) => {
                self.index.inventory.set_host(&host);
                let draining = matches!(host.admission, mayfly_model::Admission::Draining { .. });
                set(&mut self.index.draining, &host.name, draining);
                self.hosts.insert(host.name.clone(), host).map(Record::Host)
            }
            Record::Event(event) => self.events.insert(event.number, event).map(Record::Event),
            Record::Instance(instance) => self.insert_instance(instance).map(Record::Instance),
            Record::Breaker(breaker) => Some(Record::Breaker(std::mem::replace(&mut self.breaker, breaker))),
            Record::Usage(usage) => self.usage.insert((usage.service.clone(), usage.day), usage).map(Record::Usage),
            Record::Answered(answered) => self.answered.insert(answered.id.clone(), answered).map(Record::Answered),
            Record::HostToken(token) => self.tokens.insert(token.id.clone(), token).map(Record::HostToken),
            Record::Enrolment(enrolment) => {
                self.enrolments.insert(enrolment.host.clone(), enrolment).map(Record::Enrolment)
            }
            Record::Reservation(one) => {
                self.index.reserved.insert(one.address);
                self.reservations.insert(one.name.clone(), one).map(Record::Reservation)
            }
            Record::Certificate(one) => {
                let key = (one.service.clone(), one.thumbprint.clone());
                self.certificates.insert(key, one).map(Record::Certificate)
            }
        }
    }

    /// Takes a record out, and returns it.
    pub(crate) fn remove(&mut self, id: &RecordId) -> Option<Record> {
        match id {
            RecordId::Meta | RecordId::Breaker => None,
            RecordId::Image(name) => self.images.remove(name).map(Record::Image),
            RecordId::Service(name) => {
                self.index.dying.remove(name);
                self.services.remove(name).map(Record::Service)
            }
            RecordId::Deployment(key) => {
                let deployment = self.deployments.remove(key)?;
                self.index.moving.remove(key);
                self.index.ending.remove(key);
                self.index.scaling.remove(key);
                self.index.vips.remove(&deployment.vip);
                Some(Record::Deployment(deployment))
            }
            RecordId::Instance(key) => {
                let instance = self.instances.remove(key)?;
                self.forget(&instance);
                Some(Record::Instance(instance))
            }
            RecordId::Host(name) => {
                self.index.inventory.remove_host(name);
                self.index.draining.remove(name);
                self.index.listed.remove(name);
                self.hosts.remove(name).map(Record::Host)
            }
            RecordId::Event(number) => self.events.remove(number).map(Record::Event),
            RecordId::Usage(service, day) => self.usage.remove(&(service.clone(), *day)).map(Record::Usage),
            RecordId::Answered(id) => self.answered.remove(id).map(Record::Answered),
            RecordId::HostToken(id) => self.tokens.remove(id).map(Record::HostToken),
            RecordId::Enrolment(host) => self.enrolments.remove(host).map(Record::Enrolment),
            RecordId::Reservation(name) => {
                let reservation = self.reservations.remove(name)?;
                self.index.reserved.remove(&reservation.address);
                Some(Record::Reservation(reservation))
            }
            RecordId::Certificate(service, thumbprint) => {
                self.certificates.remove(&(service.clone(), thumbprint.clone())).map(Record::Certificate)
            }
        }
    }

    /// Derives everything again from the records.
    #[cfg(feature = "mutants")]
    pub(crate) fn index_again(&mut self) {
        let hosts: Vec<_> = self.hosts.values().cloned().map(Record::Host).collect();
        let deployments = self.deployments.values().cloned().map(Record::Deployment);
        let services = self.services.values().cloned().map(Record::Service);
        let others: Vec<_> = hosts.into_iter().chain(deployments).chain(services).collect();
        let instances = std::mem::take(&mut self.instances);
        for record in others.into_iter().chain(instances.into_values().map(Record::Instance)) {
            self.insert(record);
        }
    }

    fn insert_deployment(&mut self, deployment: Arc<Deployment>) -> Option<Arc<Deployment>> {
        let moving = !matches!(deployment.status, DeploymentStatus::Running | DeploymentStatus::Suspended)
            || deployment.upgrade.is_some();
        set(&mut self.index.moving, &deployment.key, moving);
        set(&mut self.index.ending, &deployment.key, deployment.is_deleting());
        let scales = deployment.version.configuration.roles.iter().any(|role| role.autoscale().is_some());
        set(&mut self.index.scaling, &deployment.key, scales);
        if let Some(before) = self.deployments.get(&deployment.key) {
            self.index.vips.remove(&before.vip);
        }
        self.index.vips.insert(deployment.vip);
        self.deployments.insert(deployment.key.clone(), deployment)
    }

    fn insert_instance(&mut self, instance: Arc<Instance>) -> Option<Arc<Instance>> {
        let before = self.instances.insert(instance.key.clone(), Arc::clone(&instance));
        if let Some(before) = &before {
            self.forget(before);
        }
        self.learn(&instance);
        before
    }

    /// Takes an instance into the index; not wholly if its host is not known.
    fn learn(&mut self, instance: &Arc<Instance>) -> bool {
        let (index, mut knows_host) = (&mut self.index, true);
        if let Some(vm) = instance.vm() {
            index.dips.insert(vm.dip);
            knows_host =
                index.inventory.carry(instance, vm, !(index.forget_retiring && instance.wanted_vm().is_none()));
        }
        let sick = instance.health.is_some()
            || matches!(&instance.state, InstanceState::Placed { phase, .. } if phase.is_sick());
        if sick {
            index.sick.insert(instance.key.clone());
        }
        if matches!(instance.state, InstanceState::Waiting { .. }) {
            index.waiting.insert(instance.key.clone());
            index.inventory.gains += 1;
        }
        knows_host
    }

    fn forget(&mut self, instance: &Instance) {
        let index = &mut self.index;
        if let Some(vm) = instance.vm() {
            index.dips.remove(&vm.dip);
            index.inventory.let_go(instance, vm, !(index.forget_retiring && instance.wanted_vm().is_none()));
        }
        index.sick.remove(&instance.key);
        index.waiting.remove(&instance.key);
    }
}

fn set<T: Ord + Clone>(keys: &mut BTreeSet<T>, key: &T, is_in: bool) {
    if is_in {
        keys.insert(key.clone());
    } else {
        keys.remove(key);
    }
}
