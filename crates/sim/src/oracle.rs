//! The oracle: what must be true after every step, checked against the simulated truth.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use mayfly_fabric::check::{check, check_quiet};
use mayfly_fabric::{Core, HealingPolicy, State, goal, meter};
use mayfly_model::usage::days;
use mayfly_model::{
    Admission, Deployment, Digest, HostName, Instance, InstanceState, Resources, RoleName, ServiceName, Spread, Time,
    UpgradeMode, Usage, VmId, VmPhase, VmSize,
};

use crate::host::{CAPACITY, SimHost};
use crate::workload::{KILLER, Promises, identity};

/// Most hosts that healing may lead to their end, within the breaker's window, before the breaker stops it.
const KILLED_MAX: usize = 4;

pub(crate) type Checked = Result<(), String>;
type Identity = (String, RoleName, u32);

/// What the oracle remembers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Oracle {
    /// The newest generation and VM seen of each identity.
    generations: BTreeMap<Identity, (u64, Option<VmId>)>,
    /// The host of each identity's local disks, and the generation that they were made with.
    local_disks: BTreeMap<Identity, (u64, HostName)>,
    /// Each VM that exists: whose it is, its size, and since when.
    lives: BTreeMap<VmId, (ServiceName, VmSize, Time)>,
    /// What those that are gone used, by day.
    used: BTreeMap<(ServiceName, u64), BTreeMap<VmSize, u64>>,
    /// Update domains that each update had begun when it was last seen.
    walks: BTreeMap<(String, u32, Time), BTreeSet<u32>>,
    /// Hosts that ended lately because healing brought them the killer, by its VM, and when.
    killed: BTreeMap<(String, VmId), u64>,
    /// VMs that had to go as their host was drained, and those that were placed in their stead: no healing.
    drained: BTreeSet<VmId>,
    by_hand: BTreeSet<VmId>,
    pub(crate) placed: u64,
    pub(crate) hash: u64,
}

/// Invariants 1, 4 and 5, as the network and the guests would see them.
pub(crate) fn check_owners(hosts: &[SimHost], now: u64, images: &BTreeSet<Digest>) -> Checked {
    let mut owners: BTreeMap<Identity, (VmId, &HostName)> = BTreeMap::new();
    let mut addresses: BTreeMap<Ipv4Addr, (VmId, &HostName)> = BTreeMap::new();
    for host in hosts {
        for vm in host.identities(now) {
            let (key, id) = (&vm.goal.instance, vm.goal.vm);
            if let Some((other, there)) = addresses.insert(vm.goal.dip, (id, &host.name)) {
                let dip = vm.goal.dip;
                return Err(format!("invariant 1: {dip} is that of {other} on {there} and of {id} on {}", host.name));
            }
            if let Some((other, there)) = owners.insert(identity(&vm.goal.deployment_id, key), (id, &host.name)) {
                return Err(format!("invariant 1: {key} is served by {other} on {there} and {id} on {}", host.name));
            }
            if host.destroyed.contains(&vm.disk) || vm.disk != id {
                return Err(format!("invariant 4: {key} runs on the disk of {}, which was thrown away", vm.disk));
            }
            if vm.read.as_ref().is_some_and(|read| !images.contains(read)) {
                return Err(format!("invariant 5: {key} has read bytes that no image ever had"));
            }
        }
    }
    Ok(())
}

/// Invariant 9, as the hosts would feel it: what runs on a host, wanted or going, fits into it.
pub(crate) fn check_room(hosts: &[SimHost]) -> Checked {
    for host in hosts {
        let running = host.vms.values().filter(|vm| vm.running);
        let used = running.fold(Resources::default(), |sum, vm| sum.plus(vm.goal.size.resources()));
        if !CAPACITY.holds(used) {
            return Err(format!("invariant 9: {} carries {used:?} and has {CAPACITY:?}", host.name));
        }
    }
    Ok(())
}

impl Oracle {
    /// The records are those of a backup, when the oracle was `then`; the breaker knows of no later losses. Disks' numbers
    /// must not come again even so.
    pub(crate) fn go_back(&mut self, then: Oracle) {
        let now = std::mem::replace(self, then);
        for (identity, (generation, _)) in now.generations {
            let known = self.generations.entry(identity).or_default();
            known.0 = known.0.max(generation);
        }
        (self.placed, self.hash) = (now.placed, now.hash);
        // What the breaker had learnt since is lost with the records, and what it had learnt before may be out of date.
        self.killed.clear();
    }

    /// A VM that was not the first of its identity has ended its host. Held against healing, unless a command moved it
    /// there, or the records do not know it, as they were restored since.
    pub(crate) fn note_killed(&mut self, now: u64, deployment_id: &str, vm: VmId) {
        let window = HealingPolicy::default().window;
        self.killed.retain(|_, at| now.saturating_sub(*at) <= window);
        if self.lives.contains_key(&vm) && !self.by_hand.contains(&vm) {
            self.killed.entry((deployment_id.to_owned(), vm)).or_insert(now);
        }
    }

    /// Everything that the records have to fulfil, after a commit at the controller's time `now`.
    pub(crate) fn check_state(&mut self, state: &State, now: Time, promises: &Promises) -> Checked {
        if let Some(violation) = check(state).first() {
            return Err(format!("invariant {}: {}", violation.invariant, violation.what));
        }
        if let Some(broken) = promises.broken(state) {
            return Err(format!("invariant 6: {broken}"));
        }
        if self.killed.len() > KILLED_MAX {
            return Err(format!("invariant 10: healing has ended {} hosts", self.killed.len()));
        }
        self.check_walks(state, now)?;
        let mut alive = BTreeSet::new();
        for instance in state.instances().values() {
            self.note_instance(state, instance)?;
            if let Some(vm) = instance.vm() {
                alive.insert(vm.id);
                let service = instance.key.deployment.service.clone();
                self.lives.entry(vm.id).or_insert((service, vm.size, now));
            }
        }
        self.end_lives(&alive, now);
        Ok(())
    }

    /// Invariant 3: an update never has two update domains down. Down is what the walk has taken and has not come back in
    /// its time; what was well when the walk went on and has failed since is not its doing.
    fn check_walks(&mut self, state: &State, now: Time) -> Checked {
        for deployment in state.deployments().values() {
            let Some(upgrade) = &deployment.upgrade else { continue };
            if upgrade.mode == UpgradeMode::Simultaneous || !deployment.is_on() {
                continue;
            }
            let begun: BTreeSet<u32> =
                upgrade.walked.iter().copied().chain(upgrade.walking.map(|(domain, _)| domain)).collect();
            let key = (deployment.id.clone(), deployment.number, upgrade.started);
            let before = self.walks.insert(key, begun.clone()).unwrap_or_default();
            let new: Vec<u32> = begun.difference(&before).copied().collect();
            let down_among = |domains: &dyn Fn(u32) -> bool| -> BTreeSet<u32> {
                let touched = state.instances_of(&deployment.key).filter(|one| one.version == deployment.number);
                let down = touched.filter(|one| domains(one.update_domain) && is_down_by_plan(state, one, now));
                down.map(|one| one.update_domain).collect()
            };
            let down = down_among(&|domain| before.contains(&domain));
            // One in which all were stopped by their users, and stay so, is over as soon as it is begun.
            let taken = down_among(&|domain| new.contains(&domain));
            if taken.len() > 1 || (!new.is_empty() && !down.is_empty()) {
                let key = &deployment.key;
                return Err(format!("invariant 3: {key} takes update domains {new:?} while {down:?} are down"));
            }
        }
        Ok(())
    }

    fn note_instance(&mut self, state: &State, instance: &Instance) -> Checked {
        let deployment = state.deployments().get(&instance.key.deployment);
        let id = deployment.map_or("", |deployment| deployment.id.as_str());
        let seen = self.generations.entry(identity(id, &instance.key)).or_insert((0, None));
        let vm = instance.vm().map(|vm| vm.id);
        if let InstanceState::Retiring { vm, .. } = &instance.state
            && state.hosts().get(&vm.host).is_some_and(|host| host.admission != Admission::Open)
        {
            self.drained.insert(vm.id);
        }
        if vm.is_some() && vm != seen.1 {
            if seen.1.is_some_and(|before| self.drained.contains(&before)) {
                self.by_hand.extend(vm);
            }
            self.placed += 1;
            self.hash = (self.hash ^ vm.map_or(0, |vm| vm.0)).wrapping_mul(0x0100_0000_01b3);
            if instance.generation <= seen.0 {
                return Err(format!("invariant 4: {} went back to generation {}", instance.key, instance.generation));
            }
            *seen = (instance.generation, vm);
            self.note_local_disks(id, instance)?;
            check_spread(state, instance)?;
        }
        Ok(())
    }

    /// Invariant 4, for local disks: what another host has seen of an identity since makes those of before worthless.
    fn note_local_disks(&mut self, deployment_id: &str, instance: &Instance) -> Checked {
        let Some(host) = instance.vm().map(|vm| vm.host.clone()) else { return Ok(()) };
        let now = (instance.local_generation, host);
        let before = self.local_disks.insert(identity(deployment_id, &instance.key), now.clone());
        match before.filter(|before| now.0 < before.0 || (now.0 == before.0 && now.1 != before.1)) {
            None => Ok(()),
            Some(before) => Err(format!(
                "invariant 4: {} has local disks of generation {} on {}, after {} on {}",
                instance.key, now.0, now.1, before.0, before.1
            )),
        }
    }

    fn end_lives(&mut self, alive: &BTreeSet<VmId>, now: Time) {
        let ended: Vec<VmId> = self.lives.keys().filter(|vm| !alive.contains(vm)).copied().collect();
        for vm in ended {
            if let Some((service, size, from)) = self.lives.remove(&vm) {
                self.add(service, size, from, now);
            }
        }
    }

    fn add(&mut self, service: ServiceName, size: VmSize, from: Time, to: Time) {
        for (day, millis) in days(from.0, to.0) {
            *self.used.entry((service.clone(), day)).or_default().entry(size).or_default() += millis;
        }
    }

    /// Invariant 7: the ledger is the history.
    pub(crate) fn check_ledger(&mut self, state: &State, hosts: &[SimHost], now: Time) -> Checked {
        let lives = self.lives.clone();
        let used = self.used.clone();
        for (service, size, from) in lives.into_values() {
            self.add(service, size, from, now);
        }
        let history = std::mem::replace(&mut self.used, used);
        let ledger = meter::ledger(state, now);
        check_traffic(&ledger, hosts)?;
        let ledger: BTreeMap<_, _> = ledger
            .into_iter()
            .filter(|(_, usage)| !usage.millis.is_empty())
            .map(|(key, usage)| (key, usage.millis))
            .collect();
        if history == ledger {
            return Ok(());
        }
        let other = history.iter().find(|(key, millis)| ledger.get(*key) != Some(millis));
        let other = other.map(|(key, millis)| format!("{key:?}: history {millis:?}, ledger {:?}", ledger.get(key)));
        Err(format!("invariant 7: {}", other.unwrap_or_else(|| "the ledger has more than the history".to_owned())))
    }
}

/// Invariant 7, for what was sent: no byte is in the ledger twice. Some may be missing, of hosts that were lost.
fn check_traffic(ledger: &BTreeMap<(ServiceName, u64), Usage>, hosts: &[SimHost]) -> Checked {
    let mut booked: BTreeMap<&ServiceName, u64> = BTreeMap::new();
    for ((service, _), usage) in ledger {
        *booked.entry(service).or_default() += usage.traffic.sent;
    }
    for (service, booked) in booked {
        let carried: u64 = hosts.iter().filter_map(|host| host.carried.get(service)).sum();
        if booked > carried {
            return Err(format!("invariant 7: {service} has sent {carried} bytes, and {booked} are in the ledger"));
        }
    }
    Ok(())
}

fn is_down_by_plan(state: &State, instance: &Instance, now: Time) -> bool {
    let since = match &instance.state {
        _ if instance.is_leaving() || instance.is_ready() => return false,
        InstanceState::Placed { vm, phase, .. } => {
            if matches!(phase, VmPhase::Stopped) {
                return false;
            }
            vm.started
        }
        InstanceState::Waiting { since, .. } => *since,
        InstanceState::Retiring { .. } => now,
    };
    now.since(since) <= state.start_timeout(instance)
}

/// Invariant 2, for an instance that has just got a VM: its fault domain has at most one more of its role than any other
/// that has an open host, and is not the only one if there are two.
fn check_spread(state: &State, placed: &Instance) -> Checked {
    let members = || state.members(&placed.key.deployment, &placed.key.role);
    if members().any(|one| state.role_of(one).is_some_and(|(_, role)| role.spread() == Spread::Soft)) {
        return Ok(());
    }
    // Each that has failed somewhere avoids other domains, so what is even differs from one to the next.
    if members().any(|one| one.health.as_ref().is_some_and(|health| !health.failed_on.is_empty())) {
        return Ok(());
    }
    spread_is_even(state, placed)
}

fn spread_is_even(state: &State, placed: &Instance) -> Checked {
    let Some(vm) = placed.wanted_vm() else { return Ok(()) };
    let domain_of = |host: &HostName| state.hosts().get(host).map(|host| host.fault_domain.as_str());
    let open = state.hosts().values().filter(|host| host.is_open());
    let mut counts: BTreeMap<&str, u32> = open.map(|host| (host.fault_domain.as_str(), 0)).collect();
    for member in state.members(&placed.key.deployment, &placed.key.role).filter_map(|one| one.wanted_vm()) {
        if let Some(count) = domain_of(&member.host).and_then(|domain| counts.get_mut(domain)) {
            *count += 1;
        }
    }
    let own = domain_of(&vm.host).and_then(|domain| counts.get(domain)).copied();
    let fewest = counts.values().min().copied().unwrap_or(0);
    match own {
        None => Err(format!("invariant 2: {} was placed where no host is open", placed.key)),
        Some(own) if own > fewest + 1 || (counts.len() == 1 && own > 1) => {
            Err(format!("invariant 2: {} was placed unevenly: {counts:?}", placed.key))
        }
        Some(_) => Ok(()),
    }
}

/// How long an instance may be on its way at rest, in ms: autoscaling goes on, and may have asked for it a moment ago.
const ON_ITS_WAY: u64 = 5000;

/// Invariants 2 and 8 at rest, and that everything wanted runs. `now` is the true time, and that of the core.
pub(crate) fn check_rest(core: &Core, hosts: &[SimHost], (now, core_now): (u64, Time)) -> Checked {
    if let Some(violation) = check_quiet(core.state()).first() {
        return Err(format!("at rest, invariant {}: {}", violation.invariant, violation.what));
    }
    let state = core.state();
    let on =
        |one: &Instance| !one.stopped && state.deployments().get(&one.key.deployment).is_some_and(|one| one.is_on());
    let placed = || state.instances().values().filter(|one| one.wanted_vm().is_some());
    let served: BTreeSet<VmId> = hosts.iter().flat_map(|host| host.identities(now)).map(|vm| vm.goal.vm).collect();
    let is_new = |one: &Instance| matches!(&one.state, InstanceState::Placed { since, .. } if core_now.since(*since) < ON_ITS_WAY);
    let vms = |of: &dyn Fn(&Instance) -> bool| -> BTreeSet<VmId> {
        placed().filter(|one| on(one) && of(one)).filter_map(|one| one.wanted_vm()).map(|vm| vm.id).collect()
    };
    let (wanted, settled) = (vms(&|_| true), vms(&|one| !is_new(one)));
    if !served.is_subset(&wanted) || !settled.is_subset(&served) {
        return Err(format!("at rest, {} VMs are wanted and {} serve", wanted.len(), served.len()));
    }
    if let Some(deployment) = state.deployments().values().find(|one| one.key.service.as_str() == KILLER) {
        return Err(format!("at rest, {} is still there", deployment.key));
    }
    if let Some(instance) = placed().find(|one| on(one) && !one.is_ready() && !is_new(one)) {
        return Err(format!("at rest, {} is {}", instance.key, instance.state.status()));
    }
    for deployment in state.deployments().values().filter(|one| !one.is_deleting() && one.upgrade.is_none()) {
        check_survivors(state, deployment)?;
    }
    let network = goal::network(core);
    let routed: BTreeSet<IpAddr> = network.routes.iter().map(|route| route.dip.into()).collect();
    let named: BTreeSet<IpAddr> = network.dns.iter().map(|record| record.address).collect();
    if routed.len() != placed().count() || !routed.is_subset(&named) {
        return Err("at rest, routes, names and members differ (invariant 8)".to_owned());
    }
    Ok(())
}

/// Invariant 8, while things are under way: no name and no endpoint leads to what is going, and no route to what is gone.
pub(crate) fn check_routes(core: &Core) -> Checked {
    let instances = || core.state().instances().values();
    let wanted: BTreeSet<Ipv4Addr> = instances().filter_map(|one| one.wanted_vm()).map(|vm| vm.dip).collect();
    let there: BTreeSet<Ipv4Addr> = instances().filter_map(|one| one.vm()).map(|vm| vm.dip).collect();
    let network = goal::network(core);
    let vips: BTreeSet<Ipv4Addr> = network.vips.iter().map(|vip| vip.vip).collect();
    let backends = network.vips.iter().flat_map(|vip| &vip.endpoints).flat_map(|endpoint| &endpoint.backends);
    if let Some(backend) = backends.into_iter().find(|backend| !wanted.contains(&backend.dip)) {
        return Err(format!("invariant 8: an endpoint leads to {}, which is going", backend.dip));
    }
    let is_in = |set: &BTreeSet<Ipv4Addr>, address| matches!(address, IpAddr::V4(address) if set.contains(&address));
    let mut named = network.dns.iter().filter(|record| !is_in(&vips, record.address));
    if let Some(record) = named.find(|record| !is_in(&wanted, record.address)) {
        return Err(format!("invariant 8: {} leads to {}, which is going", record.name, record.address));
    }
    match network.routes.iter().find(|route| !there.contains(&route.dip)) {
        Some(route) => Err(format!("invariant 8: a route leads to {}, which is gone", route.dip)),
        None => Ok(()),
    }
}

/// Invariant 3: losing any one of `d` fault domains leaves `floor(n (1 - 1/d))` instances of a role.
fn check_survivors(state: &State, deployment: &Deployment) -> Checked {
    for role in deployment.version.configuration.roles.iter().filter(|role| role.spread() == Spread::Strict) {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for host in state.hosts().values().filter(|host| host.is_open()) {
            counts.entry(host.fault_domain.as_str()).or_default();
        }
        for vm in state.members(&deployment.key, &role.name).filter_map(|one| one.wanted_vm()) {
            let domain = state.hosts().get(&vm.host).map_or("", |host| host.fault_domain.as_str());
            *counts.entry(domain).or_default() += 1;
        }
        // What its user has told to stop is not moved, so that it is found where it was left.
        if state.members(&deployment.key, &role.name).any(|one| one.stopped) {
            continue;
        }
        let (all, domains) = (counts.values().sum::<usize>(), counts.len().max(1));
        let most = counts.values().max().copied().unwrap_or(0);
        let needed =
            deployment.version.definition.role(&role.name).map(|role| role.size.resources()).unwrap_or_default();
        let has_room = |domain: &str| {
            let hosts = state.hosts().values().filter(|host| host.is_open() && host.fault_domain == domain);
            hosts.into_iter().any(|host| host.capacity.minus(state.used_on(&host.name)).holds(needed))
        };
        if domains > 1 && all - most < all * (domains - 1) / domains && counts.keys().all(|domain| has_room(domain)) {
            return Err(format!("invariant 3: of {all} `{}` {most} stand in one of {domains} domains", role.name));
        }
    }
    Ok(())
}
