//! Rebalancing: when a fault domain has come back, instances move there one by one until each role is spread again.

use std::sync::Arc;

use mayfly_model::{
    DeploymentKey, EventKind, Instance, InstanceKey, InstanceState, Requirements, RoleName, Then, Time, VmPhase,
};

use crate::entropy::Entropy;
use crate::instances::{Rule, choose_in};
use crate::inventory::RoleRef;
use crate::state::State;
use crate::step::Step;

/// How long all instances of a role have to be Ready before one of them is moved, in ms.
const CALM: u64 = 10_000;
/// Between two looks, in ms: there are many roles, and nobody is in a hurry.
const PERIOD: u64 = 1000;
/// Deployments that are looked at at once; while there are more, the next tick goes on after them.
const LOOKS: usize = 200;

/// Moves at most one instance of each unevenly spread role.
pub(crate) fn run(step: &mut Step<'_>) {
    let after = step.state.index.rebalanced.clone();
    if after.is_none() && step.now.since(step.state.index.spreads_seen) < PERIOD {
        return;
    }
    step.state.index.spreads_seen = step.now;
    let deployments = &step.state.deployments;
    let rest = deployments.range::<DeploymentKey, _>((
        after.as_ref().map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded),
        std::ops::Bound::Unbounded,
    ));
    let looked: Vec<_> = rest.take(LOOKS).map(|(_, deployment)| Arc::clone(deployment)).collect();
    step.state.index.rebalanced = looked.last().filter(|_| looked.len() == LOOKS).map(|one| one.key.clone());
    for deployment in looked.iter().filter(|one| !one.is_deleting() && one.upgrade.is_none()) {
        for role in &deployment.version.definition.roles {
            let Ok(key) = choose(step.state, step.now, &deployment.key, &role.name) else { continue };
            let Some(instance) = step.instance(&key) else { continue };
            let InstanceState::Placed { vm, .. } = &instance.state else { continue };
            let message = format!("moves away from {}: its role is unevenly spread", vm.host);
            step.event(EventKind::Rebalance, &key, message);
            crate::instances::retire(step, Instance::clone(&instance), Then::Replace { prefer: None });
        }
    }
}

/// Why none of a role's instances is moved to another fault domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stays {
    /// The counts differ by one at the most.
    Even,
    /// One of them is on its way already.
    Moving,
    /// They are to be Ready for a while before one is moved.
    NotCalm,
    /// Where fewer stand there is no room.
    NoRoom,
}

/// The instance to move: the last one in the fullest fault domain, if the emptiest has two fewer and room for it.
pub(crate) fn choose(
    state: &State,
    now: Time,
    deployment: &DeploymentKey,
    role: &RoleName,
) -> Result<InstanceKey, Stays> {
    let reference = (deployment.clone(), role.clone());
    let (count, standing) = {
        let counts = state.index.inventory.role(&reference).ok_or(Stays::Even)?;
        (counts.by_domain.places(), counts.by_domain.total() as usize)
    };
    // One in each domain at the most is as even as it gets.
    if standing < 2 || count == standing {
        return Err(Stays::Even);
    }
    let members: Vec<Arc<Instance>> = state.members(deployment, role).cloned().collect();
    let first = members.first().ok_or(Stays::Even)?;
    if members.iter().any(|one| matches!(one.state, InstanceState::Retiring { .. })) {
        return Err(Stays::Moving);
    }
    let requirements = state.role_of(first).ok_or(Stays::Even)?.1.requirements();
    let spread = state.index.inventory.spread(&reference, &requirements);
    let (most, fewest) = (spread.values().max().copied(), spread.values().min().copied());
    let (most, fewest) = (most.unwrap_or(0), fewest.unwrap_or(0));
    if most - fewest < 2 {
        return Err(Stays::Even);
    }
    let fullest: std::collections::BTreeSet<String> =
        spread.iter().filter(|(_, count)| **count == most).map(|(domain, _)| (*domain).to_owned()).collect();
    // All eggs in one basket cannot wait for calm; an uneven spread can.
    let one_basket = most as usize == members.len();
    let calm = members.iter().all(|instance| match &instance.state {
        InstanceState::Placed { since, phase, .. } => {
            matches!(phase, VmPhase::Ready | VmPhase::Stopped) && now.since(*since) >= CALM
        }
        InstanceState::Waiting { .. } | InstanceState::Retiring { .. } => false,
    });
    if !(calm || one_basket) {
        return Err(Stays::NotCalm);
    }
    let has_room = |one: &&Arc<Instance>| would_even_out(state, one, &reference, &requirements, most);
    let stands_there = |instance: &&Arc<Instance>| {
        let host = instance.wanted_vm().and_then(|vm| state.hosts.get(&vm.host));
        host.is_some_and(|host| fullest.contains(&host.fault_domain))
    };
    // The disk of one that was told to stop is waited for.
    let movable = members.iter().rev().filter(|one| !one.stopped);
    let moved = movable.filter(stands_there).find(has_room).map(|instance| instance.key.clone());
    moved.ok_or(Stays::NoRoom)
}

/// Whether there is a place for an instance where at least two fewer of its role stand than where it is.
pub(crate) fn would_even_out(
    state: &State,
    instance: &Instance,
    role: &RoleRef,
    requirements: &Requirements,
    most: u32,
) -> bool {
    let rule = Rule { strict: true, ..Rule::default() };
    let Ok(host) = choose_in(state, instance, &mut Entropy(0), rule) else { return false };
    let spread = state.index.inventory.spread(role, requirements);
    let there = state.hosts.get(&host).and_then(|host| spread.get(host.fault_domain.as_str()));
    there.is_some_and(|there| there + 2 <= most)
}
