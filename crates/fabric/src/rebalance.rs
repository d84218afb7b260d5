//! Rebalancing: when a fault domain has come back, instances move there one by one until each role is spread again.

use mayfly_model::{DeploymentKey, EventKind, InstanceKey, InstanceState, RoleName, Then};

use crate::placement::Room;
use crate::state::{State, Step};

/// How long all instances of a role have to be Ready before one of them is moved, in ms.
const CALM: u64 = 10_000;

/// Moves at most one instance of each unevenly spread role.
pub(crate) fn run(step: &mut Step<'_>) {
    let roles: Vec<(DeploymentKey, RoleName)> = step
        .state
        .deployments
        .values()
        .filter(|deployment| !deployment.deleting)
        .flat_map(|one| one.definition.roles.iter().map(|role| (one.key.clone(), role.name.clone())))
        .collect();
    for (deployment, role) in roles {
        let Some(key) = choose(step, &deployment, &role) else { continue };
        let Some(instance) = step.state.instances.get(&key).cloned() else { continue };
        let InstanceState::Placed { vm, .. } = instance.state.clone() else { continue };
        step.event(EventKind::Rebalance, &key, format!("moves away from {}: its role is unevenly spread", vm.host));
        crate::instances::retire(step, instance, vm, Then::Replace { prefer: None });
    }
}

/// The instance to move: the last one in the fullest fault domain, if the emptiest has two fewer and room for it.
fn choose(step: &Step<'_>, deployment: &DeploymentKey, role: &RoleName) -> Option<InstanceKey> {
    let state: &State = step.state;
    let members: Vec<_> = state.members(deployment, role).collect();
    let on_the_move = members.iter().any(|instance| matches!(instance.state, InstanceState::Retiring { .. }));
    if members.len() < 2 || on_the_move {
        return None;
    }
    let mut room = Room::of(state);
    let spread = room.spread(deployment, role);
    let (fullest, most) = spread.iter().max_by_key(|(_, count)| **count)?;
    let fewest = spread.values().min()?;
    // All eggs in one basket cannot wait for calm; an uneven spread can.
    let one_basket = *most as usize == members.len();
    let calm = members.iter().all(|instance| match &instance.state {
        InstanceState::Placed { since, .. } => instance.is_ready() && step.now.since(*since) >= CALM,
        InstanceState::Waiting { .. } | InstanceState::Retiring { .. } => false,
    });
    if most - fewest < 2 || !(calm || one_basket) {
        return None;
    }
    room.place(deployment, role, state.resources_of(&members.first()?.key), None).ok()?;
    let stands_there = |key: &InstanceKey| {
        let host = &state.instances.get(key)?.wanted_vm()?.host;
        Some(state.hosts.get(host)?.fault_domain == **fullest)
    };
    members.iter().rev().map(|instance| &instance.key).find(|key| stands_there(key) == Some(true)).cloned()
}
