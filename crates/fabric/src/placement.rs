//! Placement: which host carries the next instance of a role. Pure: from what is there to a choice or a reason.
//!
//! The rule (invariant 2): instances of a role are spread over fault domains so that the counts differ by at most one,
//! and two or more never stand in a single domain. So the next one goes to a domain that has the fewest. Within the
//! domain: the preferred host, else the host with the fewest of the role, else the emptiest.

use std::collections::BTreeMap;
use std::fmt;

use mayfly_model::{DeploymentKey, Host, HostCondition, HostName, InstanceState, Resources, RoleName};

use crate::state::State;

/// What placement sees of the hosts, with the choices of this step counted in.
#[derive(Clone, Debug)]
pub struct Room<'s> {
    hosts: BTreeMap<&'s HostName, HostRoom<'s>>,
}

#[derive(Clone, Debug)]
struct HostRoom<'s> {
    host: &'s Host,
    free: Resources,
    of_role: BTreeMap<(&'s DeploymentKey, &'s RoleName), u32>,
}

/// Why no host was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoRoom {
    /// Hosts that are up.
    up: usize,
    /// Hosts that are not.
    down: usize,
    /// Fault domains with a host that is up.
    domains: usize,
    /// Up hosts with room that the spread rules out, as their domain has more of the role than another.
    spread: usize,
    /// Up hosts without enough processor or memory.
    full: usize,
    needed: Resources,
}

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.up == 0 {
            return write!(f, "no host is up ({} are down)", self.down);
        }
        if self.domains == 1 && self.spread == self.up {
            return write!(
                f,
                "two instances of a role need two fault domains, and only one has a host that is up ({} hosts are down)",
                self.down
            );
        }
        let cores = self.needed.cpu_milli as f64 / 1000.0;
        write!(
            f,
            "hosts that are up: {} in {} fault domains; without {} cores or {} MiB of memory: {}",
            self.up, self.domains, cores, self.needed.memory_mib, self.full
        )?;
        if self.spread > 0 {
            write!(f, "; with room, but in fault domains that have more of this role than others: {}", self.spread)?;
        }
        if self.down > 0 {
            write!(f, "; hosts that are down: {}", self.down)?;
        }
        Ok(())
    }
}

impl<'s> Room<'s> {
    /// The room that there is now. VMs that are still going take theirs.
    pub fn of(state: &'s State) -> Room<'s> {
        let mut hosts: BTreeMap<&HostName, HostRoom<'_>> = state
            .hosts
            .values()
            .map(|host| {
                let free = host.capacity.minus(state.used_on(&host.name));
                (&host.name, HostRoom { host, free, of_role: BTreeMap::new() })
            })
            .collect();
        for instance in state.instances.values() {
            if let InstanceState::Placed { vm, .. } = &instance.state
                && let Some(room) = hosts.get_mut(&vm.host)
            {
                *room.of_role.entry((&instance.key.deployment, &instance.key.role)).or_default() += 1;
            }
        }
        Room { hosts }
    }

    /// Instances of a role in each fault domain that has a host that is up.
    pub fn spread(&self, deployment: &DeploymentKey, role: &RoleName) -> BTreeMap<&'s str, u32> {
        let mut counts = BTreeMap::new();
        for room in self.hosts.values().filter(|room| is_up(room.host)) {
            counts.entry(room.host.fault_domain.as_str()).or_default();
        }
        for room in self.hosts.values() {
            if let Some(count) = counts.get_mut(room.host.fault_domain.as_str()) {
                *count += room.of_role.get(&(deployment, role)).copied().unwrap_or(0);
            }
        }
        counts
    }

    /// Chooses the host for the next instance of a role and counts it in.
    ///
    /// # Errors
    /// Why there is none.
    pub fn place(
        &mut self,
        deployment: &'s DeploymentKey,
        role: &'s RoleName,
        needed: Resources,
        prefer: Option<&HostName>,
    ) -> Result<HostName, NoRoom> {
        let spread = self.spread(deployment, role);
        let fewest = spread.values().min().copied().unwrap_or(0);
        let alone = spread.len() == 1 && fewest > 0;
        let allowed = |host: &Host| !alone && spread.get(host.fault_domain.as_str()) == Some(&fewest);
        let up = || self.hosts.values().filter(|room| is_up(room.host));
        let chosen = up()
            .filter(|room| allowed(room.host) && room.free.holds(needed))
            .min_by_key(|room| {
                let of_role = room.of_role.get(&(deployment, role)).copied().unwrap_or(0);
                let preferred = prefer == Some(&room.host.name);
                let free = (room.free.memory_mib, room.free.cpu_milli);
                (!preferred, of_role, std::cmp::Reverse(free), &room.host.name)
            })
            .map(|room| room.host.name.clone());
        let Some(name) = chosen else {
            return Err(NoRoom {
                up: up().count(),
                down: self.hosts.len() - up().count(),
                domains: spread.len(),
                spread: up().filter(|room| !allowed(room.host) && room.free.holds(needed)).count(),
                full: up().filter(|room| !room.free.holds(needed)).count(),
                needed,
            });
        };
        if let Some(room) = self.hosts.get_mut(&name) {
            room.free = room.free.minus(needed);
            *room.of_role.entry((deployment, role)).or_default() += 1;
        }
        Ok(name)
    }
}

fn is_up(host: &Host) -> bool {
    host.condition == HostCondition::Up
}
