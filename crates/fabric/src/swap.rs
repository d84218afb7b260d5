//! Swapping the slots of a service: each public address then leads to what was in the other slot. No VM is touched.

use std::net::Ipv4Addr;

use mayfly_model::{
    Deployment, DeploymentKey, DeploymentStatus, Endpoint, EventKind, Instance, InstanceKey, ServiceName, Slot,
};

use crate::command::Rejected;
use crate::record::RecordId;
use crate::step::Step;
use crate::{breaker, deployments};

/// Exchanges what is in the slots.
pub(crate) fn swap(step: &mut Step<'_>, service: &ServiceName) -> Result<(), Rejected> {
    let key = |slot| DeploymentKey { service: service.clone(), slot };
    let staging = deployments::find(step, &key(Slot::Staging))?;
    let production = match step.state.deployments.get(&key(Slot::Production)) {
        Some(_) => Some(deployments::find(step, &key(Slot::Production))?),
        None => None,
    };
    for one in production.iter().chain([&staging]) {
        if !matches!(one.status, DeploymentStatus::Running | DeploymentStatus::Suspended) {
            let (key, status) = (&one.key, one.status.name());
            return Err(Rejected::Conflict(format!("{key} is {status}; slots are swapped when both are at rest")));
        }
    }
    if let Some(production) = &production {
        let is_reserved = |one: &Deployment| step.state.index.reserved.contains(&one.vip);
        if is_reserved(production) != is_reserved(&staging) {
            return Err(Rejected::Conflict(
                "one of the two has a reserved public address and the other has not; to be swapped both need one, or none"
                    .to_owned(),
            ));
        }
        let (ours, theirs) = (inputs(production), inputs(&staging));
        if ours != theirs {
            return Err(Rejected::Conflict(format!(
                "production has {ours} input endpoints and staging {theirs}; to be swapped they need the same number"
            )));
        }
    }
    let message = match &production {
        Some(_) => "production and staging swapped",
        None => "staging is production now",
    };
    step.event(EventKind::Command, service, message);
    exchange(step, production, staging);
    Ok(())
}

fn inputs(deployment: &Deployment) -> usize {
    let endpoints = deployment.version.definition.roles.iter().flat_map(|role| &role.endpoints);
    endpoints.filter(|endpoint| matches!(endpoint, Endpoint::Input { .. })).count()
}

fn exchange(step: &mut Step<'_>, mut production: Option<Deployment>, mut staging: Deployment) {
    if let Some(production) = &mut production {
        // The names of reserved addresses stay with the addresses.
        let (front, back) = (&mut production.version.configuration, &mut staging.version.configuration);
        std::mem::swap(&mut front.reserved_address, &mut back.reserved_address);
    }
    let (front, back) = (production.as_ref().map_or(staging.vip, |one| one.vip), staging.vip);
    breaker::exchange_slots(step, &staging.key.service);
    let rising = take_out(step, &staging);
    let sinking = production.map(|one| (take_out(step, &one), one));
    put_in(step, staging, Slot::Production, front, rising);
    if let Some((instances, production)) = sinking {
        put_in(step, production, Slot::Staging, back, instances);
    }
}

fn take_out(step: &mut Step<'_>, deployment: &Deployment) -> Vec<Instance> {
    let instances: Vec<Instance> =
        step.state.instances_of(&deployment.key).map(|instance| Instance::clone(instance)).collect();
    for instance in &instances {
        step.delete(RecordId::Instance(instance.key.clone()));
    }
    step.delete(RecordId::Deployment(deployment.key.clone()));
    instances
}

fn put_in(step: &mut Step<'_>, deployment: Deployment, slot: Slot, vip: Ipv4Addr, instances: Vec<Instance>) {
    let key = DeploymentKey { service: deployment.key.service.clone(), slot };
    step.put_deployment(Deployment { key: key.clone(), vip, ..deployment });
    for instance in instances {
        let key = InstanceKey { deployment: key.clone(), ..instance.key.clone() };
        step.put_instance(Instance { key, ..instance });
    }
}
