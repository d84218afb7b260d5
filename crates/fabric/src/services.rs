//! Images, services, deployments and their scale.

use std::collections::BTreeMap;

use mayfly_model::{
    Deployment, DeploymentKey, EventKind, Image, ImageName, Instance, InstanceKey, InstanceState, RoleConfiguration,
    RoleKind, RoleName, Service, ServiceConfiguration, ServiceDefinition, ServiceName, Then, limits,
};

use crate::address::free_vip;
use crate::command::Rejected;
use crate::core::Config;
use crate::entropy::Entropy;
use crate::placement::Room;
use crate::record::Record;
use crate::state::{State, Step};

pub(crate) fn commit_image(step: &mut Step<'_>, image: Image) -> Result<(), Rejected> {
    if step.state.images.contains_key(&image.name) {
        return Err(Rejected::AlreadyExists { kind: "image", name: image.name.to_string() });
    }
    step.event(
        EventKind::Command,
        &image.name,
        format!("image committed: {} bytes, {}", image.disk_bytes, image.digest),
    );
    step.put(Record::Image(image));
    Ok(())
}

pub(crate) fn delete_image(step: &mut Step<'_>, name: &ImageName) -> Result<(), Rejected> {
    if !step.state.images.contains_key(name) {
        return Err(Rejected::NotFound { kind: "image", name: name.to_string() });
    }
    if let Some(user) = users_of(step.state, name).next() {
        return Err(Rejected::Conflict(format!("the image `{name}` is in use by {user}")));
    }
    step.delete_image(name);
    step.event(EventKind::Command, name, "image deleted");
    Ok(())
}

fn users_of<'a>(state: &'a State, image: &'a ImageName) -> impl Iterator<Item = &'a DeploymentKey> {
    let uses = move |role: &RoleConfiguration| role.image.as_ref() == Some(image);
    state.deployments.values().filter(move |one| one.configuration.roles.iter().any(uses)).map(|one| &one.key)
}

pub(crate) fn create(step: &mut Step<'_>, name: ServiceName) -> Result<(), Rejected> {
    if step.state.services.contains_key(&name) {
        return Err(Rejected::AlreadyExists { kind: "service", name: name.to_string() });
    }
    step.event(EventKind::Command, &name, "service created");
    step.put(Record::Service(Service { name, created: step.now, deleting: false }));
    Ok(())
}

pub(crate) fn delete(step: &mut Step<'_>, name: &ServiceName) -> Result<(), Rejected> {
    let service = service(step.state, name)?.clone();
    step.event(EventKind::Command, name, "service is being deleted");
    step.put(Record::Service(Service { deleting: true, ..service }));
    let deployments: Vec<_> = step.state.deployments.values().filter(|one| one.key.service == *name).cloned().collect();
    for deployment in deployments {
        let instances: Vec<_> = step.state.instances_of(&deployment.key).cloned().collect();
        step.put(Record::Deployment(Box::new(Deployment { deleting: true, ..deployment })));
        for instance in instances {
            crate::instances::remove(step, instance);
        }
    }
    Ok(())
}

/// Deletes what is marked as deleted and has become empty.
pub(crate) fn bury(step: &mut Step<'_>) {
    let empty: Vec<_> = step
        .state
        .deployments
        .values()
        .filter(|one| one.deleting && step.state.instances_of(&one.key).next().is_none())
        .map(|one| one.key.clone())
        .collect();
    for key in empty {
        step.delete_deployment(&key);
    }
    let empty: Vec<_> = step
        .state
        .services
        .values()
        .filter(|service| service.deleting && !step.state.deployments.keys().any(|key| key.service == service.name))
        .map(|service| service.name.clone())
        .collect();
    for name in empty {
        step.delete_service(&name);
        step.event(EventKind::Command, name, "service deleted");
    }
}

pub(crate) fn deploy(
    step: &mut Step<'_>,
    config: &Config,
    entropy: &mut Entropy,
    key: DeploymentKey,
    definition: ServiceDefinition,
    configuration: ServiceConfiguration,
) -> Result<(), Rejected> {
    service(step.state, &key.service)?;
    if step.state.deployments.contains_key(&key) {
        return Err(Rejected::AlreadyExists { kind: "deployment", name: format!("{} ({})", key.service, key.slot) });
    }
    check_roles(step.state, &definition, &configuration)?;
    let vip = free_vip(step.state, config.vips)
        .ok_or_else(|| Rejected::NoRoom("no public address is free; delete a deployment first".to_owned()))?;
    let roles = &configuration.roles;
    let new: Vec<InstanceKey> = roles.iter().flat_map(|role| keys(&key, &role.name, 0..role.instances)).collect();
    check_room(step.state, &definition, &new)?;
    let count = new.len();
    let id = entropy.deployment_id();
    step.event(EventKind::Command, &key, format!("deployed at {vip} with {count} instances"));
    let generations = BTreeMap::new();
    let created = step.now;
    let deployment = Deployment { key, id, vip, definition, configuration, created, deleting: false, generations };
    step.put(Record::Deployment(Box::new(deployment)));
    add(step, new);
    Ok(())
}

fn check_roles(
    state: &State,
    definition: &ServiceDefinition,
    configuration: &ServiceConfiguration,
) -> Result<(), Rejected> {
    // What limits who may talk to whom must not be passed over in silence.
    if !definition.traffic_rules.is_empty() {
        return Err(Rejected::Unsupported(
            "NetworkTrafficRules cannot be enforced yet, so it is not deployed".to_owned(),
        ));
    }
    if let Some((role, endpoint)) = configuration.endpoint_acls.first() {
        let message =
            format!("the access control of `{endpoint}` of `{role}` cannot be enforced yet, so it is not deployed");
        return Err(Rejected::Unsupported(message));
    }
    for role in &definition.roles {
        if role.kind != RoleKind::VirtualMachine {
            return Err(Rejected::Unsupported(format!(
                "`{}` is a {}, which cannot be deployed yet: only VirtualMachineRole can",
                role.name,
                role.kind.element()
            )));
        }
        if let Some(endpoint) =
            role.endpoints.iter().find(|one| matches!(one, mayfly_model::Endpoint::InstanceInput { .. }))
        {
            return Err(Rejected::Unsupported(format!(
                "`{}` of `{}` is an InstanceInputEndpoint, which cannot be deployed yet",
                endpoint.name(),
                role.name
            )));
        }
        let image = configuration.role(&role.name).and_then(|role| role.image.as_ref());
        if let Some(image) = image.filter(|image| !state.images.contains_key(image)) {
            return Err(Rejected::NotFound { kind: "image", name: image.to_string() });
        }
    }
    Ok(())
}

/// Whether all of `new` find a place at once, beside those that wait already.
fn check_room(state: &State, definition: &ServiceDefinition, new: &[InstanceKey]) -> Result<(), Rejected> {
    let mut room = Room::of(state);
    let waiting = state.instances.values().filter(|one| matches!(one.state, InstanceState::Waiting { .. }));
    for instance in waiting {
        // Those have to wait if there is none; the newcomers must not take their room.
        let _ = room.place(&instance.key.deployment, &instance.key.role, state.resources_of(&instance.key), None);
    }
    for (placed, key) in new.iter().enumerate() {
        let needed = definition.role(&key.role).map(|role| role.size.resources()).unwrap_or_default();
        room.place(&key.deployment, &key.role, needed, None).map_err(|why| {
            let total = new.len();
            Rejected::NoRoom(format!(
                "only {placed} of {total} new instances find a place, so none was made: for {}, {why}",
                key.name()
            ))
        })?;
    }
    Ok(())
}

pub(crate) fn scale(
    step: &mut Step<'_>,
    key: &DeploymentKey,
    counts: &BTreeMap<RoleName, u32>,
) -> Result<(), Rejected> {
    service(step.state, &key.service)?;
    let mut deployment =
        step.state.deployments.get(key).filter(|one| !one.deleting).cloned().ok_or_else(|| Rejected::NotFound {
            kind: "deployment",
            name: format!("{} ({})", key.service, key.slot),
        })?;
    let mut new = Vec::new();
    let mut gone = Vec::new();
    for (role, count) in counts {
        if *count > limits::INSTANCES_MAX {
            let most = limits::INSTANCES_MAX;
            return Err(Rejected::Conflict(format!("{count} instances of `{role}` are more than the limit of {most}")));
        }
        let configured = deployment.configuration.roles.iter_mut().find(|one| one.name == *role);
        let Some(configured) = configured else {
            let roles: Vec<&str> = deployment.configuration.roles.iter().map(|role| role.name.as_str()).collect();
            let name = format!("{role}` in `{key}`; its roles are `{}", roles.join("`, `"));
            return Err(Rejected::NotFound { kind: "role", name });
        };
        configured.instances = *count;
        // The last ones go first, so that numbers stay without gaps and update domains stay even.
        gone.extend(step.state.members(key, role).filter(|instance| instance.key.index >= *count).cloned());
        let present: Vec<u32> = step.state.members(key, role).map(|instance| instance.key.index).collect();
        new.extend(keys(key, role, 0..*count).filter(|key| !present.contains(&key.index)));
    }
    check_room(step.state, &deployment.definition, &new)?;
    let words: Vec<String> = counts.iter().map(|(role, count)| format!("{role}={count}")).collect();
    step.event(EventKind::Command, key, format!("scaled to {}", words.join(" ")));
    step.put(Record::Deployment(Box::new(deployment)));
    for instance in gone {
        crate::instances::remove(step, instance);
    }
    add(step, new);
    Ok(())
}

/// Makes instances, which wait for the place that is known to be there.
fn add(step: &mut Step<'_>, keys: Vec<InstanceKey>) {
    for key in keys {
        if let Some(leaving) = step.state.instances.get(&key).cloned() {
            // The identity is still going: it stays after all, with a new VM.
            if let InstanceState::Retiring { vm, .. } = leaving.state.clone() {
                crate::instances::retire(step, leaving, vm, Then::Replace { prefer: None });
            }
            continue;
        }
        let domains = step.state.deployments.get(&key.deployment).map_or(1, |one| one.definition.update_domain_count);
        let update_domain = key.index % domains.max(1);
        let deployment = step.state.deployments.get(&key.deployment);
        let generation = deployment.and_then(|one| one.generations.get(&key.name()).copied()).unwrap_or(0);
        let state = InstanceState::Waiting { reason: "it is new".to_owned(), prefer: None, since: step.now };
        step.put(Record::Instance(Box::new(Instance { key, update_domain, generation, state })));
    }
}

fn keys(
    deployment: &DeploymentKey,
    role: &RoleName,
    indexes: std::ops::Range<u32>,
) -> impl Iterator<Item = InstanceKey> {
    indexes.map(move |index| InstanceKey { deployment: deployment.clone(), role: role.clone(), index })
}

fn service<'s>(state: &'s State, name: &ServiceName) -> Result<&'s Service, Rejected> {
    let service =
        state.services.get(name).ok_or_else(|| Rejected::NotFound { kind: "service", name: name.to_string() })?;
    if service.deleting {
        return Err(Rejected::Conflict(format!("the service `{name}` is being deleted")));
    }
    Ok(service)
}
