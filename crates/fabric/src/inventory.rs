//! The hosts as placement sees them: kept up to date with each record, so that a choice among 100,000 hosts costs little
//! more than one among 1,000.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use mayfly_model::{
    Admission, DeploymentKey, Digest, Host, HostCondition, HostName, Requirements, Resources, RoleName,
};
use std::sync::Arc;

/// A role of a deployment.
pub(crate) type RoleRef = (DeploymentKey, RoleName);

/// A host's place in the inventory.
pub(crate) type HostId = usize;
/// A fault domain's place in the inventory.
pub(crate) type DomainId = usize;

/// All hosts, their free room, and where each role stands.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inventory {
    ids: HashMap<HostName, HostId>,
    hosts: Vec<Option<HostRoom>>,
    domain_ids: HashMap<String, DomainId>,
    domains: Vec<Domain>,
    /// Domains with at least one open host.
    open_domains: Vec<DomainId>,
    roles: HashMap<RoleRef, RoleCount>,
    /// What open hosts offer, and what of it is taken, in thousandths of a core.
    offered: u64,
    taken: u64,
    /// Grows whenever an instance that found no place might find one now.
    pub(crate) gains: u64,
}

/// One host.
#[derive(Clone, Debug)]
pub(crate) struct HostRoom {
    pub(crate) host: Arc<Host>,
    pub(crate) domain: DomainId,
    pub(crate) used: Resources,
    pub(crate) free: Resources,
}

/// One fault domain.
#[derive(Clone, Debug)]
pub(crate) struct Domain {
    pub(crate) name: String,
    /// What it is a part of, `room-1` of `room-1/rack-7`.
    pub(crate) room: String,
    /// Open hosts by what is free on them: thousandths of a core, MiB, host.
    pub(crate) free: BTreeSet<(u64, u64, HostId)>,
    /// Where it stands in the list of open domains.
    open_at: Option<usize>,
}

/// Where a role's wanted VMs stand.
#[derive(Clone, Debug, Default)]
pub(crate) struct RoleCount {
    pub(crate) by_domain: BTreeMap<DomainId, u32>,
    pub(crate) by_host: BTreeMap<HostId, u32>,
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
        let before = self.hosts[id].take();
        let used = before.as_ref().map_or_else(Resources::default, |room| room.used);
        if let Some(before) = &before {
            self.close(id, before);
        }
        let room = HostRoom { host: Arc::clone(host), domain, used, free: host.capacity.minus(used) };
        let moved = before.as_ref().filter(|before| before.domain != domain).map(|before| before.domain);
        if let Some(from) = moved {
            self.move_counts(id, from, domain);
        }
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

    /// A VM takes room on a host, or with `frees` gives it back.
    pub(crate) fn occupy(&mut self, name: &HostName, needed: Resources, frees: bool) {
        let Some(id) = self.ids.get(name).copied() else { return };
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
    pub(crate) fn count(&mut self, role: &RoleRef, name: &HostName, leaves: bool) {
        let Some(id) = self.ids.get(name).copied() else { return };
        let Some(domain) = self.hosts[id].as_ref().map(|room| room.domain) else { return };
        if leaves {
            let Some(count) = self.roles.get_mut(role) else { return };
            decrease(&mut count.by_domain, domain, 1);
            decrease(&mut count.by_host, id, 1);
            if count.by_host.is_empty() {
                self.roles.remove(role);
            }
            self.gains += 1;
        } else {
            if !self.roles.contains_key(role) {
                self.roles.insert(role.clone(), RoleCount::default());
            }
            let Some(count) = self.roles.get_mut(role) else { return };
            *count.by_domain.entry(domain).or_default() += 1;
            *count.by_host.entry(id).or_default() += 1;
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

    /// Hosts that are up, and hosts that are not.
    pub(crate) fn up_and_down(&self) -> (usize, usize) {
        let up = self.hosts().filter(|(_, room)| room.host.condition == HostCondition::Up).count();
        (up, self.hosts().count() - up)
    }

    fn domain(&mut self, name: &str) -> DomainId {
        if let Some(id) = self.domain_ids.get(name) {
            return *id;
        }
        let room = name.rsplit_once('/').map_or("", |(room, _)| room).to_owned();
        self.domains.push(Domain { name: name.to_owned(), room, free: BTreeSet::new(), open_at: None });
        self.domain_ids.insert(name.to_owned(), self.domains.len() - 1);
        self.domains.len() - 1
    }

    fn open(&mut self, id: HostId, room: &HostRoom) {
        if !room.host.is_open() {
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
        if !room.host.is_open() {
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
            if let Some(moved) = count.by_host.get(&id).copied() {
                decrease(&mut count.by_domain, from, moved);
                *count.by_domain.entry(to).or_default() += moved;
            }
        }
    }
}

fn decrease(counts: &mut BTreeMap<usize, u32>, key: usize, by: u32) {
    if let Some(count) = counts.get_mut(&key) {
        *count = count.saturating_sub(by);
        if *count == 0 {
            counts.remove(&key);
        }
    }
}

/// Whether a host has a base image.
pub(crate) fn has_image(host: &Host, image: Option<&Digest>) -> bool {
    image.is_some_and(|digest| host.images.contains(digest))
}

/// Whether a host takes no instances though it is up.
pub(crate) fn is_closed(host: &Host) -> bool {
    host.condition == HostCondition::Up && host.admission != Admission::Open
}
