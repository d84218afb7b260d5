//! Deployments: made, scaled, suspended, started and deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use mayfly_model::{
    Deployment, DeploymentEvent, DeploymentKey, DeploymentStatus, Endpoint, EventKind, Instance, InstanceKey,
    InstanceState, ReservedName, RoleDefinition, RoleKind, RoleName, Service, ServiceName, Slot, Then, Version,
    VmPhase, configuration, limits,
};

use crate::address::next_free;
use crate::command::Rejected;
use crate::mutant::Mutant;
use crate::record::{Record, RecordId};
use crate::state::State;
use crate::step::Step;
use crate::{breaker, certificates, instances, reservations, services};

/// What is to be deployed.
pub(crate) struct NewDeployment {
    pub(crate) key: DeploymentKey,
    pub(crate) version: Version,
}

/// The reserved address that the configuration names, the address that the slot had last, or else a new one.
fn public_address(
    step: &mut Step<'_>,
    service: &Service,
    slot: Slot,
    reserved: Option<&ReservedName>,
) -> Result<Ipv4Addr, Rejected> {
    if let Some(name) = reserved {
        return reservations::for_deployment(step.state, name);
    }
    let last = service.vips.get(&slot).copied();
    let range = step.config.vips;
    let taken = |vip: &Ipv4Addr| step.state.has_given_out(vip);
    if let Some(last) = last.filter(|vip| range.contains(*vip) && !taken(vip)) {
        return Ok(last);
    }
    let (vip, next) = next_free(taken, range, step.state.meta.next_vip)
        .ok_or_else(|| Rejected::NoRoom("no public address is free; delete a deployment first".to_owned()))?;
    step.state.meta.next_vip = next;
    let mut service = service.clone();
    service.vips.insert(slot, vip);
    step.put(Record::Service(Arc::new(service)));
    Ok(vip)
}

pub(crate) fn deploy(step: &mut Step<'_>, new: NewDeployment) -> Result<(), Rejected> {
    let NewDeployment { key, version } = new;
    let service = services::find(step.state, &key.service)?.clone();
    if step.state.deployments.contains_key(&key) {
        return Err(Rejected::AlreadyExists { kind: "deployment", name: format!("{} ({})", key.service, key.slot) });
    }
    check_version(step, &key.service, &version)?;
    let vip = public_address(step, &service, key.slot, version.configuration.reserved_address.as_ref())?;
    let count: u32 = version.configuration.roles.iter().map(|role| role.instances).sum();
    let id = step.entropy.deployment_id();
    step.event(EventKind::Command, &key, format!("deployed at {vip} with {count} instances"));
    let roles: Vec<_> = version.configuration.roles.iter().map(|role| (role.name.clone(), role.instances)).collect();
    step.put_deployment(Deployment {
        key: key.clone(),
        id,
        vip,
        number: 1,
        newest: 1,
        version,
        older: BTreeMap::new(),
        created: step.now,
        status: DeploymentStatus::Deploying,
        upgrade: None,
        metrics: BTreeMap::new(),
        scaled: BTreeMap::new(),
        generations: BTreeMap::new(),
    });
    for (role, count) in roles {
        add(step, &key, &role, count);
    }
    Ok(())
}

/// Whether Mayfly can run what a version asks for.
pub(crate) fn check_version(step: &Step<'_>, service: &ServiceName, version: &Version) -> Result<(), Rejected> {
    let (state, Version { definition, configuration }) = (&*step.state, version);
    certificates::check(state, service, configuration)?;
    if let Some(role) = configuration.roles.iter().find(|role| role.ipv6() && step.config.ipv6.is_none()) {
        let (role, asks) = (&role.name, configuration::IPV6_SETTING);
        let message =
            format!("`{role}` asks for IPv6 ({asks}), and this location has none; its operator gives it a prefix");
        return Err(Rejected::Unsupported(message));
    }
    check_network(version)?;
    for role in &definition.roles {
        if role.kind != RoleKind::VirtualMachine {
            return Err(Rejected::Unsupported(format!(
                "`{}` is a {}, which cannot be deployed yet: only VirtualMachineRole can",
                role.name,
                role.kind.element()
            )));
        }
        let image = configuration.role(&role.name).and_then(|role| role.image.as_ref());
        if let Some(image) = image.filter(|image| !state.images.contains_key(image)) {
            return Err(Rejected::NotFound { kind: "image", name: image.to_string() });
        }
    }
    Ok(())
}

/// What limits who may talk to whom must not be passed over in silence: whatever it names has to be there.
fn check_network(version: &Version) -> Result<(), Rejected> {
    let Version { definition, configuration } = version;
    let endpoint = |role: &str, name: &str| {
        let role = definition.roles.iter().find(|one| one.name.as_str() == role)?;
        role.endpoints.iter().find(|one| one.name() == name)
    };
    for rule in &definition.traffic_rules {
        for (role, name) in &rule.destinations {
            if !matches!(endpoint(role, name), Some(Endpoint::Internal { .. })) {
                let message = format!("NetworkTrafficRules: `{role}` has no internal endpoint `{name}`");
                return Err(Rejected::Conflict(message));
            }
        }
        if let Some(name) =
            rule.from_roles.iter().find(|from| definition.roles.iter().all(|one| one.name.as_str() != *from))
        {
            return Err(Rejected::Conflict(format!("NetworkTrafficRules: there is no role `{name}`")));
        }
    }
    for acl in &configuration.endpoint_acls {
        if matches!(endpoint(&acl.role, &acl.endpoint), None | Some(Endpoint::Internal { .. })) {
            let message = format!("EndpointAcls: `{}` has no public endpoint `{}`", acl.role, acl.endpoint);
            return Err(Rejected::Conflict(message));
        }
    }
    for role in &definition.roles {
        let count = configuration.role(&role.name).map_or(0, |role| role.instances);
        check_public_ports(role, count)?;
    }
    Ok(())
}

/// Whether so many instances of a role have a public port each.
pub(crate) fn check_public_ports(role: &RoleDefinition, count: u32) -> Result<(), Rejected> {
    for endpoint in &role.endpoints {
        if let Endpoint::InstanceInput { name, public_ports, .. } = endpoint {
            let ports = u32::from(public_ports.max - public_ports.min) + 1;
            if count > ports {
                let message =
                    format!("`{name}` has {ports} public ports, too few for {count} instances of `{}`", role.name);
                return Err(Rejected::Conflict(message));
            }
        }
    }
    Ok(())
}

/// The deployment, unless it is going away.
pub(crate) fn find(step: &Step<'_>, key: &DeploymentKey) -> Result<Deployment, Rejected> {
    services::find(step.state, &key.service)?;
    let found = step.state.deployments.get(key).filter(|one| !one.is_deleting());
    found
        .map(|one| Deployment::clone(one))
        .ok_or_else(|| Rejected::NotFound { kind: "deployment", name: format!("{} ({})", key.service, key.slot) })
}

/// The deployment after `event`, or why it cannot happen.
pub(crate) fn moved(deployment: Deployment, event: DeploymentEvent, what: &str) -> Result<Deployment, Rejected> {
    match deployment.status.apply(event) {
        Some(status) => Ok(Deployment { status, ..deployment }),
        None => {
            let (key, status) = (&deployment.key, deployment.status.name());
            Err(Rejected::Conflict(format!("{key} is {status}, so it cannot be {what} now")))
        }
    }
}

pub(crate) fn delete(step: &mut Step<'_>, key: &DeploymentKey) -> Result<(), Rejected> {
    find(step, key)?;
    step.event(EventKind::Command, key, "the deployment is being deleted");
    mark_deleted(step, key);
    Ok(())
}

/// Marks a deployment as deleted and lets its instances go.
pub(crate) fn mark_deleted(step: &mut Step<'_>, key: &DeploymentKey) {
    let Some(deployment) = step.deployment(key) else { return };
    let instances: Vec<_> = step.state.instances_of(key).cloned().collect();
    let status = DeploymentStatus::Deleting;
    step.put_deployment(Deployment { status, upgrade: None, ..Deployment::clone(&deployment) });
    breaker::clear(step, &breaker::scope(key));
    for instance in instances {
        if let Some(instance) = step.instance(&instance.key) {
            instances::remove(step, &instance);
        }
    }
}

pub(crate) fn suspend(step: &mut Step<'_>, key: &DeploymentKey) -> Result<(), Rejected> {
    let deployment = find(step, key)?;
    step.put_deployment(moved(deployment, DeploymentEvent::Suspend, "suspended")?);
    step.event(EventKind::Command, key, "suspended: its guests stop and keep their disks");
    Ok(())
}

pub(crate) fn start(step: &mut Step<'_>, key: &DeploymentKey) -> Result<(), Rejected> {
    let deployment = find(step, key)?;
    step.put_deployment(moved(deployment, DeploymentEvent::Start, "started")?);
    step.event(EventKind::Command, key, "started");
    let instances: Vec<_> = step.state.instances_of(key).cloned().collect();
    for instance in instances {
        if let InstanceState::Placed { vm, phase, .. } = &instance.state {
            // From now on it is late if it does not become ready.
            let vm = mayfly_model::Vm { started: step.now, ..vm.clone() };
            let state = InstanceState::Placed { vm, phase: phase.clone(), since: step.now };
            step.put_instance(Instance { state, ..Instance::clone(&instance) });
        }
    }
    Ok(())
}

/// Sets the number of instances of roles. `cause` is what made a rule do it, if it was not a person.
pub(crate) fn scale(
    step: &mut Step<'_>,
    key: &DeploymentKey,
    counts: &BTreeMap<RoleName, u32>,
    cause: Option<&str>,
) -> Result<(), Rejected> {
    let mut deployment = find(step, key)?;
    if deployment.upgrade.is_some() {
        return Err(Rejected::Conflict(format!("{key} is being updated; scale it before or after")));
    }
    for (role, count) in counts {
        if *count > limits::INSTANCES_MAX {
            let most = limits::INSTANCES_MAX;
            return Err(Rejected::Conflict(format!("{count} instances of `{role}` are more than the limit of {most}")));
        }
        let configured = deployment.version.configuration.roles.iter_mut().find(|one| one.name == *role);
        let Some(configured) = configured else {
            let roles = deployment.version.configuration.roles.iter().map(|role| role.name.as_str());
            let name = format!("{role}` in `{key}`; its roles are `{}", roles.collect::<Vec<_>>().join("`, `"));
            return Err(Rejected::NotFound { kind: "role", name });
        };
        configured.instances = *count;
        if let Some(defined) = deployment.version.definition.role(role) {
            check_public_ports(defined, *count)?;
        }
    }
    let words: Vec<String> = counts.iter().map(|(role, count)| format!("{role}={count}")).collect();
    let words = words.join(" ");
    match cause {
        None => step.event(EventKind::Command, key, format!("scaled to {words}")),
        Some(cause) => step.event(EventKind::Autoscale, key, format!("scaled to {words}: {cause}")),
    }
    for role in counts.keys() {
        deployment.scaled.insert(role.clone(), step.now);
    }
    step.put_deployment(deployment);
    for (role, count) in counts {
        shrink(step, key, role, *count);
        add(step, key, role, *count);
    }
    Ok(())
}

/// Takes the instances from number `count` on away. The last ones go first, so that numbers stay without gaps and update
/// domains stay even; fault domains are evened out afterwards.
pub(crate) fn shrink(step: &mut Step<'_>, key: &DeploymentKey, role: &RoleName, count: u32) {
    let kept = if step.planted.is(Mutant::KeepOne) { count + 1 } else { count };
    let gone: Vec<_> = step.state.members(key, role).filter(|one| one.key.index >= kept).cloned().collect();
    for instance in gone {
        instances::remove(step, &instance);
    }
}

/// Makes the instances up to number `count` that are not there; they wait for a place.
pub(crate) fn add(step: &mut Step<'_>, key: &DeploymentKey, role: &RoleName, count: u32) {
    let present: BTreeSet<u32> = step.state.members(key, role).map(|instance| instance.key.index).collect();
    let Some(deployment) = step.deployment(key) else { return };
    for index in (0..count).filter(|index| !present.contains(index)) {
        let key = InstanceKey { deployment: key.clone(), role: role.clone(), index };
        if let Some(leaving) = step.instance(&key) {
            // The identity is still going: it stays after all, with a new VM.
            let version = deployment.number;
            let leaving = Instance { version, stopped: false, ..Instance::clone(&leaving) };
            instances::retire(step, leaving, Then::Replace { prefer: None });
            continue;
        }
        let update_domain = index % deployment.version.definition.update_domain_count.max(1);
        let generation = match deployment.generations.is_empty() {
            true => 0,
            false => deployment.generations.get(&key.name()).copied().unwrap_or(0),
        };
        let reason = "it is new".to_owned();
        let state = InstanceState::Waiting { reason, prefer: None, since: step.now, heals: false };
        let version = deployment.number;
        step.put_instance(Instance {
            key,
            update_domain,
            generation,
            version,
            local_generation: 0,
            dip: None,
            stopped: false,
            state,
            health: None,
        });
    }
}

/// Brings deployments that are on their way to where they are going.
pub(crate) fn settle(step: &mut Step<'_>) {
    let moving: Vec<_> =
        step.state.index.moving.iter().filter_map(|key| step.state.deployments.get(key)).cloned().collect();
    for deployment in moving {
        if deployment.is_deleting() {
            continue;
        }
        let settled = match deployment.status {
            DeploymentStatus::Deploying | DeploymentStatus::Starting => all(step.state, &deployment.key, has_begun),
            DeploymentStatus::Suspending => all(step.state, &deployment.key, has_stopped),
            _ => false,
        };
        if settled && let Some(status) = deployment.status.apply(DeploymentEvent::Settled) {
            step.put_deployment(Deployment { status, ..Deployment::clone(&deployment) });
        }
    }
}

fn all(state: &State, key: &DeploymentKey, test: fn(&Instance) -> bool) -> bool {
    state.instances_of(key).filter(|one| !one.is_leaving()).all(|one| test(one))
}

/// Whether the guest has been started, or has shown that it cannot be.
fn has_begun(instance: &Instance) -> bool {
    let state = &instance.state;
    // What lost its VM has begun before, and what was told to stop does not begin.
    if instance.stopped || matches!(state, InstanceState::Waiting { heals: true, .. }) {
        return true;
    }
    let waits = matches!(
        state,
        InstanceState::Placed {
            phase: VmPhase::Creating { .. } | VmPhase::Stopped | VmPhase::StoppingRole | VmPhase::StoppingVm,
            ..
        }
    );
    matches!(state, InstanceState::Placed { .. }) && !waits
}

fn has_stopped(instance: &Instance) -> bool {
    matches!(
        instance.state,
        InstanceState::Waiting { .. }
            | InstanceState::Placed { phase: VmPhase::Stopped | VmPhase::FailedStartingVm { .. }, .. }
    )
}

/// Deletes deployments that are marked as deleted and have become empty.
pub(crate) fn bury(step: &mut Step<'_>) {
    let ending: Vec<DeploymentKey> = step.state.index.ending.iter().cloned().collect();
    for key in ending {
        if step.state.instances_of(&key).next().is_none() {
            step.delete(RecordId::Deployment(key));
        }
    }
}
