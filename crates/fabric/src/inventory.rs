//! The hosts as placement sees them: kept up to date with each record, so that a choice among 100,000 hosts costs little
//! more than one among 1,000.

use std::collections::{BTreeSet, HashMap};

use mayfly_model::{
    DeploymentKey, Digest, Host, HostName, Instance, InstanceKey, Requirements, Resources, RoleName, Vm,
};
use std::sync::Arc;

use crate::counts::Counts;

/// A role of a deployment.
pub(crate) type RoleRef = (DeploymentKey, RoleName);

/// A host's place in the inventory.
pub(crate) type HostId = usize;
/// A fault domain's place in the inventory.
pub(crate) type DomainId = usize;
/// A room's.
pub(crate) type RoomId = usize;

/// All hosts, their free room, and where each role stands.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inventory {
    ids: HashMap<HostName, HostId>,
    hosts: Vec<Option<HostRoom>>,
    domain_ids: HashMap<String, DomainId>,
    domains: Vec<Domain>,
    rooms: HashMap<String, RoomId>,
    /// Domains with at least one open host.
    open_domains: Vec<DomainId>,
    roles: HashMap<RoleRef, RoleCount>,
    /// What open hosts offer, and what of it is taken, in thousandths of a core.
    offered: u64,
    taken: u64,
    /// Grows whenever an instance that found no place might find one now.
    pub(crate) gains: u64,
    /// Records are being loaded: what is free on open hosts is put in order when all are there.
    loading: bool,
}

/// One host.
#[derive(Clone, Debug)]
pub(crate) struct HostRoom {
    pub(crate) host: Arc<Host>,
    pub(crate) domain: DomainId,
    pub(crate) used: Resources,
    pub(crate) free: Resources,
    /// The instances whose VM is on it, wanted or going.
    pub(crate) carried: BTreeSet<InstanceKey>,
}

/// One fault domain.
#[derive(Clone, Debug)]
pub(crate) struct Domain {
    pub(crate) name: String,
    /// What it is a part of, `room-1` of `room-1/rack-7`.
    pub(crate) room: RoomId,
    /// Open hosts by what is free on them: thousandths of a core, MiB, host.
    pub(crate) free: BTreeSet<(u64, u64, HostId)>,
    /// Where it stands in the list of open domains.
    open_at: Option<usize>,
}

/// Where a role's wanted VMs stand.
#[derive(Clone, Debug, Default)]
pub(crate) struct RoleCount {
    pub(crate) by_room: Counts,
    pub(crate) by_domain: Counts,
    pub(crate) by_host: Counts,
}

impl Inventory {
    /// Takes a host's record.
    pub(crate) fn set_host(&mut self, host: &Arc<Host>) {
        let domain = self.domain(&host.fault_domain);
        let id = match self.ids.get(&host.name) {
            Some(id) => *id,
            None => {
                self.hosts.push(None);
                self.ids.insert(host.name.clone(), self.hosts.len() - 1);
                self.hosts.len() - 1
            }
        };
        let (mut used, mut carried) = (Resources::default(), BTreeSet::new());
        if let Some(before) = self.hosts[id].take() {
            self.close(id, &before);
            if before.domain != domain {
                self.move_counts(id, before.domain, domain);
            }
            (used, carried) = (before.used, before.carried);
        }
        let room = HostRoom { host: Arc::clone(host), domain, used, free: host.capacity.minus(used), carried };
        self.open(id, &room);
        self.hosts[id] = Some(room);
        self.gains += 1;
    }

    /// Forgets a host that carries nothing.
    pub(crate) fn remove_host(&mut self, name: &HostName) {
        if let Some(id) = self.ids.remove(name)
            && let Some(room) = self.hosts[id].take()
        {
            self.close(id, &room);
        }
    }

    /// Takes an instance that has a VM to its host, if that is known; its VM takes room there, unless `takes` says that it
    /// does not.
    pub(crate) fn carry(&mut self, instance: &Instance, vm: &Vm, takes: bool) -> bool {
        let Some(id) = self.ids.get(&vm.host).copied() else { return false };
        if let Some(room) = &mut self.hosts[id] {
            room.carried.insert(instance.key.clone());
        }
        if takes {
            self.occupy(id, vm.size.resources(), false);
        }
        if instance.wanted_vm().is_some() {
            self.count(instance, id, false);
        }
        true
    }

    /// The reverse of [`Inventory::carry`].
    pub(crate) fn let_go(&mut self, instance: &Instance, vm: &Vm, takes: bool) {
        let Some(id) = self.ids.get(&vm.host).copied() else { return };
        if let Some(room) = &mut self.hosts[id] {
            room.carried.remove(&instance.key);
        }
        if takes {
            self.occupy(id, vm.size.resources(), true);
        }
        if instance.wanted_vm().is_some() {
            self.count(instance, id, true);
        }
    }

    /// The instances whose VM is on a host, wanted or going.
    pub(crate) fn carried(&self, name: &HostName) -> impl Iterator<Item = &InstanceKey> {
        self.host_named(name).into_iter().flat_map(|(_, room)| &room.carried)
    }

    /// Does without what is only needed to choose, until [`Inventory::end_loading`].
    pub(crate) fn begin_loading(&mut self) {
        self.loading = true;
    }

    /// Everything is there.
    pub(crate) fn end_loading(&mut self) {
        self.loading = false;
        for id in 0..self.hosts.len() {
            if let Some(room) = self.hosts[id].take() {
                self.open(id, &room);
                self.hosts[id] = Some(room);
            }
        }
    }

    /// A VM takes room on a host, or with `frees` gives it back.
    fn occupy(&mut self, id: HostId, needed: Resources, frees: bool) {
        let Some(mut room) = self.hosts[id].take() else { return };
        self.close(id, &room);
        room.used = if frees { room.used.minus(needed) } else { room.used.plus(needed) };
        room.free = room.host.capacity.minus(room.used);
        self.open(id, &room);
        self.hosts[id] = Some(room);
        if frees {
            self.gains += 1;
        }
    }

    /// A role has one more wanted VM on a host, or with `leaves` one fewer.
    fn count(&mut self, instance: &Instance, id: HostId, leaves: bool) {
        let role = (instance.key.deployment.clone(), instance.key.role.clone());
        let Some(domain) = self.hosts[id].as_ref().map(|room| room.domain) else { return };
        let room = self.domains[domain].room;
        if leaves {
            let Some(count) = self.roles.get_mut(&role) else { return };
            count.by_room.take(room, 1);
            count.by_domain.take(domain, 1);
            count.by_host.take(id, 1);
            if count.by_host.places() == 0 {
                self.roles.remove(&role);
            }
            self.gains += 1;
        } else {
            let count = self.roles.entry(role).or_default();
            count.by_room.add(room, 1);
            count.by_domain.add(domain, 1);
            count.by_host.add(id, 1);
        }
    }

    /// Where a role's wanted VMs stand.
    pub(crate) fn role(&self, role: &RoleRef) -> Option<&RoleCount> {
        self.roles.get(role)
    }

    /// A host.
    pub(crate) fn host(&self, id: HostId) -> Option<&HostRoom> {
        self.hosts.get(id)?.as_ref()
    }

    /// A host by name.
    pub(crate) fn host_named(&self, name: &HostName) -> Option<(HostId, &HostRoom)> {
        let id = *self.ids.get(name)?;
        Some((id, self.host(id)?))
    }

    /// All hosts.
    pub(crate) fn hosts(&self) -> impl Iterator<Item = (HostId, &HostRoom)> {
        self.hosts.iter().enumerate().filter_map(|(id, room)| Some((id, room.as_ref()?)))
    }

    /// A fault domain.
    pub(crate) fn domain_at(&self, id: DomainId) -> &Domain {
        &self.domains[id]
    }

    /// Domains with at least one open host.
    pub(crate) fn open_domains(&self) -> &[DomainId] {
        &self.open_domains
    }

    /// Domains with an open host that has what is required, and is not to be avoided.
    pub(crate) fn domains_with(&self, requirements: &Requirements, avoid: &[HostName]) -> Vec<DomainId> {
        let fits = |host: &Host| host.is_open() && requirements.met_by(host) && !avoid.contains(&host.name);
        let meeting = self.hosts().filter(|(_, room)| fits(&room.host));
        let domains: BTreeSet<DomainId> = meeting.map(|(_, room)| room.domain).collect();
        domains.into_iter().collect()
    }

    /// Whether so much is taken that room should be filled up rather than shared out.
    pub(crate) fn is_scarce(&self) -> bool {
        self.taken * 4 > self.offered * 3
    }

    fn domain(&mut self, name: &str) -> DomainId {
        if let Some(id) = self.domain_ids.get(name) {
            return *id;
        }
        let room = name.rsplit_once('/').map_or("", |(room, _)| room).to_owned();
        let next = self.rooms.len();
        let room = *self.rooms.entry(room).or_insert(next);
        self.domains.push(Domain { name: name.to_owned(), room, free: BTreeSet::new(), open_at: None });
        self.domain_ids.insert(name.to_owned(), self.domains.len() - 1);
        self.domains.len() - 1
    }

    fn open(&mut self, id: HostId, room: &HostRoom) {
        if self.loading || !room.host.is_open() {
            return;
        }
        self.offered += room.host.capacity.cpu_milli;
        self.taken += room.used.cpu_milli;
        let domain = &mut self.domains[room.domain];
        domain.free.insert((room.free.cpu_milli, room.free.memory_mib, id));
        if domain.open_at.is_none() {
            domain.open_at = Some(self.open_domains.len());
            self.open_domains.push(room.domain);
        }
    }

    fn close(&mut self, id: HostId, room: &HostRoom) {
        if self.loading || !room.host.is_open() {
            return;
        }
        self.offered -= room.host.capacity.cpu_milli;
        self.taken -= room.used.cpu_milli;
        let domain = &mut self.domains[room.domain];
        domain.free.remove(&(room.free.cpu_milli, room.free.memory_mib, id));
        if domain.free.is_empty()
            && let Some(at) = domain.open_at.take()
        {
            self.open_domains.swap_remove(at);
            if let Some(moved) = self.open_domains.get(at).copied() {
                self.domains[moved].open_at = Some(at);
            }
        }
    }

    fn move_counts(&mut self, id: HostId, from: DomainId, to: DomainId) {
        for count in self.roles.values_mut() {
            let moved = count.by_host.at(id);
            if moved > 0 {
                let (left, entered) = (self.domains[from].room, self.domains[to].room);
                count.by_room.take(left, moved);
                count.by_room.add(entered, moved);
                count.by_domain.take(from, moved);
                count.by_domain.add(to, moved);
            }
        }
    }
}

/// Whether a host has a base image.
pub(crate) fn has_image(host: &Host, image: Option<&Digest>) -> bool {
    image.is_some_and(|digest| host.images.contains(digest))
}
