//! The design's invariants, as far as the records alone can show them. The simulator checks after every step.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use mayfly_model::{DeploymentKey, Instance, InstanceState, RoleName};

use crate::entropy::Entropy;
use crate::instances::{Rule, choose_in};
use crate::rebalance::would_even_out;
use crate::state::State;

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The invariant's number in the design.
    pub invariant: u8,
    /// What is wrong.
    pub what: String,
}

/// Everything that is wrong with a state.
pub fn check(state: &State) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut violate = |invariant, what| violations.push(Violation { invariant, what });
    let (mut ids, mut addresses, mut names) = (HashSet::new(), HashSet::new(), HashSet::new());
    for instance in state.instances().values() {
        if let Some(vm) = instance.vm()
            && !(ids.insert(vm.id) && addresses.insert(vm.dip) && names.insert(&vm.computer_name))
        {
            violate(1, format!("{}: {} shares its id, address or name with another VM", instance.key, vm.id));
        }
        if instance.vm().is_some() && instance.generation == 0 {
            violate(4, format!("{}: a VM without a generation", instance.key));
        }
        if !state.deployments().contains_key(&instance.key.deployment) {
            violate(8, format!("{}: an instance without a deployment", instance.key));
        }
    }
    for host in state.hosts().values() {
        let used = state.used_on(&host.name);
        if !host.capacity.holds(used) {
            violate(9, format!("{}: {used:?} is used of {:?}", host.name, host.capacity));
        }
    }
    for (key, count) in update_domains(state) {
        let (most, least) = (count.values().max().copied().unwrap_or(0), count.values().min().copied().unwrap_or(0));
        if most - least > 1 {
            violate(2, format!("{}/{}: update domains are uneven: {count:?}", key.0, key.1));
        }
    }
    violations
}

/// What has to hold once nothing is under way: as many members as wanted, all placed, evenly over fault domains.
pub fn check_quiet(state: &State) -> Vec<Violation> {
    let mut violations = check(state);
    for deployment in state.deployments().values().filter(|one| !one.is_deleting()) {
        for role in &deployment.version.configuration.roles {
            let members: Vec<_> = state.members(&deployment.key, &role.name).collect();
            let placed = members.iter().filter(|one| matches!(one.state, InstanceState::Placed { .. })).count();
            let reference = (deployment.key.clone(), role.name.clone());
            let spread = state.index.inventory.spread(&reference, &role.requirements());
            // One that finds no place waits, and says why.
            let finds = |one: &&Arc<Instance>| choose_in(state, one, &mut Entropy(1), Rule::default()).is_ok();
            let waits = members.iter().filter(|one| matches!(one.state, InstanceState::Waiting { .. }));
            let stuck = placed != members.len() && (waits.clone().count() == 0 || waits.clone().any(finds));
            if members.len() != role.instances as usize || stuck {
                let reasons: Vec<_> = members.iter().filter_map(|one| one.state.detail()).collect();
                let what = format!(
                    "{}/{}: {placed} placed of {} wanted; {}",
                    deployment.key,
                    role.name,
                    role.instances,
                    reasons.join("; ")
                );
                violations.push(Violation { invariant: 8, what });
            }
            let (most, least) =
                (spread.values().max().copied().unwrap_or(0), spread.values().min().copied().unwrap_or(0));
            // None can be moved to where there is no room for it.
            let fullest = |one: &&Arc<Instance>| {
                let host = one.wanted_vm().and_then(|vm| state.hosts.get(&vm.host));
                host.is_some_and(|host| spread.get(host.fault_domain.as_str()) == Some(&most))
            };
            let fits = |one: &Arc<Instance>| would_even_out(state, one, &reference, &role.requirements(), most);
            // While it is being updated, nothing else moves.
            let still = deployment.upgrade.is_none() && placed == members.len();
            if most - least > 1 && still && members.iter().copied().filter(|one| !one.stopped).filter(fullest).any(fits)
            {
                let what = format!("{}/{}: fault domains are uneven: {spread:?}", deployment.key, role.name);
                violations.push(Violation { invariant: 2, what });
            }
        }
    }
    violations
}

type RoleKey<'s> = (&'s DeploymentKey, &'s RoleName);

fn update_domains(state: &State) -> BTreeMap<RoleKey<'_>, BTreeMap<u32, u32>> {
    let mut counts: BTreeMap<RoleKey<'_>, BTreeMap<u32, u32>> = BTreeMap::new();
    for instance in state.instances().values().filter(|instance| !instance.is_leaving()) {
        let Some(deployment) = state.deployments().get(&instance.key.deployment).filter(|one| !one.is_deleting())
        else {
            continue;
        };
        let domains = counts.entry((&instance.key.deployment, &instance.key.role)).or_insert_with(|| {
            (0..deployment.version.definition.update_domain_count).map(|domain| (domain, 0)).collect()
        });
        *domains.entry(instance.update_domain).or_default() += 1;
    }
    counts
}
