//! Updates in place: a new version walks over the update domains.
//!
//! An instance belongs to a version. Beginning an update makes a newer version the wanted one; the walk brings the
//! instances over, one update domain at a time, and goes on only when all it has brought over so far are healthy or have
//! had their time. A rollback is the same walk towards the version before.

use std::collections::{BTreeMap, BTreeSet};

use mayfly_model::configuration::APPLY_SETTING;
use mayfly_model::guest::REMOTE_ACCESS;
use mayfly_model::{
    Deployment, DeploymentEvent, DeploymentKey, EventKind, HostCondition, Instance, InstanceState, RoleChange,
    RoleName, Then, Upgrade, UpgradeMode, Version, VmPhase,
};

use crate::command::Rejected;
use crate::mutant::Mutant;
use crate::step::Step;
use crate::{breaker, deployments, instances};

/// Begins an update.
pub(crate) fn begin(
    step: &mut Step<'_>,
    key: &DeploymentKey,
    version: Version,
    mode: UpgradeMode,
) -> Result<(), Rejected> {
    let deployment = deployments::find(step, key)?;
    let stuck = deployment.upgrade.as_ref().is_some_and(|upgrade| upgrade.stuck.is_some());
    if deployment.upgrade.is_some() && !stuck {
        let message = format!("{key} is being updated already; wait until it is done, or roll it back");
        return Err(Rejected::Conflict(message));
    }
    check_change(&deployment.version, &version)?;
    deployments::check_version(step, &key.service, &version)?;
    check_room(step, &deployment.version, &version)?;
    if deployment.version == version {
        return Err(Rejected::Conflict(format!("{key} is like that already: nothing would change")));
    }
    let number = deployment.newest + 1;
    // What follows an update that has stopped goes back to what was before that.
    let stopped = deployment.upgrade.as_ref().filter(|upgrade| !upgrade.rollback).map(|upgrade| upgrade.from);
    let from = stopped.unwrap_or(deployment.number);
    let deployment = Deployment { newest: number, ..deployment };
    lead_to(step, deployment, number, version, Upgrade { mode, ..new_upgrade(step, from, false) })
}

/// Takes an update back.
pub(crate) fn roll_back(step: &mut Step<'_>, key: &DeploymentKey, mode: UpgradeMode) -> Result<(), Rejected> {
    let deployment = deployments::find(step, key)?;
    let Some(upgrade) = &deployment.upgrade else {
        return Err(Rejected::Conflict(format!("{key} is not being updated; deploy the version that you want")));
    };
    let old = |one: &Instance| one.version == upgrade.from;
    let has_old = step.state.instances_of(key).any(|one| !one.is_leaving() && old(one));
    let Some(version) = deployment.older.get(&upgrade.from).cloned().filter(|_| has_old) else {
        let message =
            format!("no instance of {key} is as before any more, so it cannot be rolled back; update it again");
        return Err(Rejected::Conflict(message));
    };
    let (number, from) = (upgrade.from, deployment.number);
    let upgrade = Upgrade { mode, ..new_upgrade(step, from, true) };
    lead_to(step, deployment, number, version, upgrade)
}

fn new_upgrade(step: &Step<'_>, from: u32, rollback: bool) -> Upgrade {
    Upgrade {
        from,
        mode: UpgradeMode::Auto,
        started: step.now,
        walking: None,
        walked: BTreeSet::new(),
        stuck: None,
        rollback,
    }
}

/// Makes `version` the wanted one and begins the walk.
fn lead_to(
    step: &mut Step<'_>,
    deployment: Deployment,
    number: u32,
    version: Version,
    upgrade: Upgrade,
) -> Result<(), Rejected> {
    let key = deployment.key.clone();
    let mut deployment = match deployment.upgrade {
        Some(_) => deployment,
        None => deployments::moved(deployment, DeploymentEvent::UpdateBegins, "updated")?,
    };
    let (from, rollback, mode) = (deployment.number, upgrade.rollback, upgrade.mode);
    let before = std::mem::replace(&mut deployment.version, version);
    deployment.older.remove(&number);
    deployment.older.insert(from, before);
    deployment.number = number;
    deployment.upgrade = Some(upgrade);
    let roles: Vec<(RoleName, u32)> =
        deployment.version.configuration.roles.iter().map(|role| (role.name.clone(), role.instances)).collect();
    let removed: BTreeSet<RoleName> = deployment
        .older
        .values()
        .flat_map(|version| version.definition.roles.iter().map(|role| role.name.clone()))
        .filter(|name| deployment.version.definition.role(name).is_none())
        .collect();
    let what = if rollback { "rolled back" } else { "update begins" };
    step.event(EventKind::Command, &key, format!("{what}: version {from} to {number}, {mode:?}"));
    step.put_deployment(deployment);
    breaker::clear(step, &breaker::scope(&key));
    for role in removed {
        deployments::shrink(step, &key, &role, 0);
    }
    for (role, count) in roles {
        deployments::shrink(step, &key, &role, count);
        deployments::add(step, &key, &role, count);
    }
    bring_over_what_stays_up(step, &key);
    advance(step, &key);
    Ok(())
}

/// Lets an update that is done by hand go on.
pub(crate) fn walk(step: &mut Step<'_>, key: &DeploymentKey, domain: Option<u32>) -> Result<(), Rejected> {
    let deployment = deployments::find(step, key)?;
    let Some(upgrade) = deployment.upgrade.clone() else {
        return Err(Rejected::Conflict(format!("{key} is not being updated")));
    };
    if upgrade.mode != UpgradeMode::Manual {
        return Err(Rejected::Conflict(format!("the update of {key} goes on by itself")));
    }
    if let Some((walking, _)) = upgrade.walking {
        return Err(Rejected::Conflict(format!("update domain {walking} of {key} is not done yet")));
    }
    let left = domains_left(step, &deployment);
    let Some(domain) = domain.or(left.first().copied()).filter(|domain| left.contains(domain)) else {
        return Err(Rejected::Conflict(format!("update domains of {key} that are left: {left:?}")));
    };
    if !is_healthy(step, &deployment, &upgrade) {
        return Err(Rejected::Conflict(format!("what was updated before in {key} is not healthy yet")));
    }
    step.event(EventKind::Update, key, format!("update domain {domain} begins"));
    let upgrade = Upgrade { walking: Some((domain, step.now)), stuck: None, ..upgrade };
    step.put_deployment(Deployment { upgrade: Some(upgrade), ..deployment });
    advance(step, key);
    Ok(())
}

/// Lets all updates go on.
pub(crate) fn run(step: &mut Step<'_>) {
    let moving: Vec<DeploymentKey> = step.state.index.moving.iter().cloned().collect();
    for key in moving {
        advance(step, &key);
    }
}

/// Goes on with an update as far as it can be now.
fn advance(step: &mut Step<'_>, key: &DeploymentKey) {
    // Each turn either waits, or takes a domain or ends one.
    while let Some(next) = turn(step, key) {
        step.put_deployment(next);
        bring_over_walked(step, key);
    }
}

/// The deployment after the next turn of its update, if there is one now.
fn turn(step: &mut Step<'_>, key: &DeploymentKey) -> Option<Deployment> {
    let deployment = step.state.deployments.get(key)?;
    let upgrade = deployment.upgrade.clone()?;
    let deployment = Deployment::clone(deployment);
    if upgrade.stuck.is_some() {
        return None;
    }
    if let Some((domain, since)) = upgrade.walking {
        return end_of_domain(step, deployment, upgrade, domain, since);
    }
    let left = domains_left(step, &deployment);
    if left.is_empty() {
        return is_healthy(step, &deployment, &upgrade).then(|| end(step, deployment, &upgrade));
    }
    match upgrade.mode {
        UpgradeMode::Manual => None,
        UpgradeMode::Simultaneous => {
            let upgrade = Upgrade { walked: left.into_iter().collect(), ..upgrade };
            Some(Deployment { upgrade: Some(upgrade), ..deployment })
        }
        UpgradeMode::Auto => {
            let domain = *left.first()?;
            if !is_healthy(step, &deployment, &upgrade) && !step.planted.is(Mutant::HastyWalk) {
                return None;
            }
            step.event(EventKind::Update, key, format!("update domain {domain} begins"));
            let upgrade = Upgrade { walking: Some((domain, step.now)), ..upgrade };
            Some(Deployment { upgrade: Some(upgrade), ..deployment })
        }
    }
}

fn end_of_domain(
    step: &mut Step<'_>,
    deployment: Deployment,
    mut upgrade: Upgrade,
    domain: u32,
    since: mayfly_model::Time,
) -> Option<Deployment> {
    let key = deployment.key.clone();
    let touched = step
        .state
        .instances_of(&key)
        .filter(|one| one.update_domain == domain && one.version == deployment.number && !one.is_leaving());
    let touched: Vec<_> = touched.cloned().collect();
    let crashing = touched.iter().find(|one| {
        matches!(
            &one.state,
            InstanceState::Placed { phase: VmPhase::Cycling { .. } | VmPhase::FailedStartingVm { .. }, .. }
        )
    });
    // The ladder may have begun anew with an instance; the time that its role gives it is over all the same.
    let had_its_time = |one: &Instance| is_overdue(step, one) || step.now.since(since) > step.state.start_timeout(one);
    // The walk forgets what was before; so whatever the ladder has tried since, it had reason to.
    let failed = |one: &Instance| {
        !is_well(step, one) && (had_its_time(one) || one.health.as_ref().is_some_and(|health| health.tries > 0))
    };
    // What its user has stopped says nothing of the new version.
    let mut tried = touched.iter().filter(|one| !one.stopped).peekable();
    let hopeless = tried.peek().is_some() && tried.all(|one| failed(one));
    let done = touched.iter().all(|one| is_well(step, one) || had_its_time(one));
    let why = match crashing {
        Some(one) => Some(format!("{} is {}", one.key.name(), one.state.status())),
        None if hopeless => Some(format!("none of update domain {domain} became ready in time")),
        None => None,
    };
    if let Some(why) = why {
        let help = "update it again, or roll it back";
        step.event(EventKind::Update, &key, format!("the update has stopped: {why}; {help}"));
        upgrade.stuck = Some(why);
        return Some(Deployment { upgrade: Some(upgrade), ..deployment });
    }
    if !done && !step.planted.is(Mutant::HastyWalk) {
        return None;
    }
    let seconds = step.now.since(since) as f64 / 1000.0;
    step.event(EventKind::Update, &key, format!("update domain {domain} is done, after {seconds:.1} s"));
    upgrade.walking = None;
    upgrade.walked.insert(domain);
    Some(Deployment { upgrade: Some(upgrade), ..deployment })
}

fn end(step: &mut Step<'_>, deployment: Deployment, upgrade: &Upgrade) -> Deployment {
    let seconds = step.now.since(upgrade.started) as f64 / 1000.0;
    let what = if upgrade.rollback { "the rollback" } else { "the update" };
    let message = format!("{what} to version {} is done, after {seconds:.1} s", deployment.number);
    step.event(EventKind::Update, &deployment.key, message);
    let status = deployment.status.apply(DeploymentEvent::UpdateEnds).unwrap_or(deployment.status);
    Deployment { upgrade: None, older: BTreeMap::new(), status, ..deployment }
}

/// Update domains with an instance that is not of the wanted version.
fn domains_left(step: &Step<'_>, deployment: &Deployment) -> BTreeSet<u32> {
    let members = step.state.instances_of(&deployment.key).filter(|one| !one.is_leaving());
    members.filter(|one| one.version != deployment.number).map(|one| one.update_domain).collect()
}

/// Whether all that was brought over is well, or has had its time.
fn is_healthy(step: &Step<'_>, deployment: &Deployment, upgrade: &Upgrade) -> bool {
    let members = step.state.instances_of(&deployment.key).filter(|one| !one.is_leaving());
    let mut touched = members.filter(|one| one.version == deployment.number && upgrade.has_begun(one.update_domain));
    touched.all(|one| is_well(step, one) || is_overdue(step, one))
}

/// Whether an instance is where its deployment wants it.
fn is_well(step: &Step<'_>, instance: &Instance) -> bool {
    let on = step.state.deployments.get(&instance.key.deployment).is_some_and(|one| one.is_on()) && !instance.stopped;
    match &instance.state {
        InstanceState::Placed { phase, .. } if on => *phase == VmPhase::Ready,
        InstanceState::Placed { phase, .. } => *phase == VmPhase::Stopped,
        InstanceState::Waiting { .. } | InstanceState::Retiring { .. } => false,
    }
}

/// Whether an instance has had the time that its role gives it to become ready.
fn is_overdue(step: &Step<'_>, instance: &Instance) -> bool {
    let since = match &instance.state {
        InstanceState::Placed { vm, .. } => vm.started,
        InstanceState::Waiting { since, .. } => *since,
        InstanceState::Retiring { .. } => return false,
    };
    step.now.since(since) > step.state.start_timeout(instance)
}

/// Brings over at once what an update does not take down.
fn bring_over_what_stays_up(step: &mut Step<'_>, key: &DeploymentKey) {
    bring_over(step, key, |change, _| change <= RoleChange::Live);
}

/// Brings over the instances of the update domains whose turn it is, or was.
fn bring_over_walked(step: &mut Step<'_>, key: &DeploymentKey) {
    let Some(upgrade) = step.state.deployments.get(key).and_then(|one| one.upgrade.clone()) else { return };
    bring_over(step, key, |_, domain| upgrade.has_begun(domain));
}

fn bring_over(step: &mut Step<'_>, key: &DeploymentKey, chosen: impl Fn(RoleChange, u32) -> bool) {
    let Some(deployment) = step.deployment(key) else { return };
    let members: Vec<_> = step.state.instances_of(key).filter(|one| !one.is_leaving()).cloned().collect();
    for instance in members.into_iter().filter(|one| one.version != deployment.number) {
        let old = deployment.version_of(instance.version);
        let change = role_change(old, &deployment.version, &instance.key.role);
        if !chosen(change, instance.update_domain) {
            continue;
        }
        let prefer = instance.vm().map(|vm| vm.host.clone());
        let new = Instance { version: deployment.number, health: None, ..Instance::clone(&instance) };
        match (change, &new.state) {
            (RoleChange::None | RoleChange::Live, _) | (_, InstanceState::Waiting { .. }) => step.put_instance(new),
            (RoleChange::Reboot, InstanceState::Placed { .. }) => instances::restart(step, new),
            (RoleChange::Reboot | RoleChange::Replace, _) => instances::retire(step, new, Then::Replace { prefer }),
        }
    }
}

/// What going from one version to another does to a role's instances.
pub fn role_change(old: Option<&Version>, new: &Version, role: &RoleName) -> RoleChange {
    let (Some((old_definition, old_configuration)), Some((definition, configuration))) =
        (old.and_then(|old| old.role(role)), new.role(role))
    else {
        return RoleChange::Replace;
    };
    let mut same = old_configuration.clone();
    same.instances = configuration.instances;
    if old_definition == definition && same == *configuration {
        return RoleChange::None;
    }
    // A user for remote access is made at a guest's first boot only.
    let of_guest = |name: &str| name.starts_with("Mayfly.") || name.starts_with(REMOTE_ACCESS);
    let kept = |name: &str| !of_guest(name) || name == APPLY_SETTING || LIVE.contains(&name);
    let settings = |settings: &[(String, String)]| -> Vec<(String, String)> {
        settings.iter().filter(|(name, _)| !kept(name)).cloned().collect()
    };
    let same_guest = old_configuration.image == configuration.image
        && old_configuration.certificates == configuration.certificates
        && old_definition.certificates == definition.certificates
        && settings(&old_configuration.settings) == settings(&configuration.settings)
        && (old_definition.size, &old_definition.kind, &old_definition.local_storage)
            == (definition.size, &definition.kind, &definition.local_storage);
    match same_guest {
        false => RoleChange::Replace,
        true if configuration.reboots_for_settings() => RoleChange::Reboot,
        true => RoleChange::Live,
    }
}

/// Mayfly's own settings that concern the fabric and not the guest.
const LIVE: [&str; 4] =
    ["Mayfly.Autoscale", "Mayfly.UnresponsiveSeconds", "Mayfly.StartTimeoutSeconds", "Mayfly.Spread"];

/// Whether there is a host that could carry what is to be replaced: an update that would take an instance away and find no
/// place for the next is not begun.
fn check_room(step: &Step<'_>, old: &Version, new: &Version) -> Result<(), Rejected> {
    for role in &new.definition.roles {
        let Some((_, configuration)) = new.role(&role.name) else { continue };
        if role_change(Some(old), new, &role.name) != RoleChange::Replace {
            continue;
        }
        let (requirements, needed) = (configuration.requirements(), role.size.resources());
        let hosts = || step.state.hosts.values().filter(|host| host.condition == HostCondition::Up);
        let able: Vec<_> = hosts().filter(|host| requirements.met_by(host)).collect();
        if able.iter().any(|host| host.capacity.holds(needed)) {
            continue;
        }
        let (all, name) = (hosts().count(), &role.name);
        let why = match able.len() {
            0 if all == 0 => "no host is up".to_owned(),
            0 => format!("none of {all} hosts that are up has {requirements}"),
            able => format!("the size {} is larger than any of {able} hosts that could be meant", role.size),
        };
        return Err(Rejected::NoRoom(format!(
            "no host could carry `{name}` as it is to be, so nothing was changed: {why}"
        )));
    }
    Ok(())
}

/// Whether a deployment may be changed so in place (azure-model.md 5.2).
fn check_change(old: &Version, new: &Version) -> Result<(), Rejected> {
    let (before, after) = (old.definition.update_domain_count, new.definition.update_domain_count);
    if before != after {
        return Err(Rejected::Conflict(format!(
            "the number of update domains cannot be changed in place ({before} to {after}); deploy to staging and swap"
        )));
    }
    if old.configuration.reserved_address != new.configuration.reserved_address {
        return Err(Rejected::Conflict(
            "a deployment cannot get another public address in place: the configuration has to name the same <ReservedIP>, or none, as before"
                .to_owned(),
        ));
    }
    for role in &new.definition.roles {
        let Some(known) = old.definition.role(&role.name) else { continue };
        for storage in &known.local_storage {
            let smaller = role.local_storage.iter().find(|one| one.name == storage.name);
            if smaller.is_some_and(|one| one.size_mb < storage.size_mb) {
                return Err(Rejected::Conflict(format!(
                    "the local storage `{}` of `{}` cannot become smaller in place",
                    storage.name, role.name
                )));
            }
        }
        if known.kind.element() != role.kind.element() {
            let (kind, name) = (role.kind.element(), &role.name);
            return Err(Rejected::Conflict(format!("`{name}` cannot become a {kind} in place; give it another name")));
        }
    }
    Ok(())
}
