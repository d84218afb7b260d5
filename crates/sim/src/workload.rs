//! What simulated users do, and what they were promised.

use std::collections::BTreeMap;
use std::sync::Arc;

use mayfly_fabric::{Command, State};
use mayfly_model::configuration::{AUTOSCALE_SETTING, SPREAD_SETTING};
use mayfly_model::{
    Deployment, DeploymentKey, Digest, HostName, Image, InstanceKey, RoleConfiguration, RoleDefinition, RoleKind,
    RoleName, ServiceConfiguration, ServiceDefinition, ServiceName, Slot, Time, UpgradeMode, Version, VmSize,
};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// The image that works, and the one that ends the hosts on which it boots.
pub(crate) const IMAGES: [&str; 2] = ["hello", "killer"];
/// The service that is made of the latter.
pub(crate) const KILLER: &str = "killer";

/// How some roles scale by themselves.
const RULES: &str = "min=1; max=6; cooldown=2; queue>60:+2; queue<20:-1; cpu>90:+1";

/// What has been acknowledged to users: the wanted instances of each role. Deployments that were deleted are not in here.
#[derive(Clone, Debug, Default)]
pub(crate) struct Promises {
    counts: BTreeMap<DeploymentKey, BTreeMap<RoleName, u32>>,
}

pub(crate) fn valid<T, E: std::fmt::Display>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|error| unreachable!("{error}"))
}

/// An image's bytes, as they are stored.
pub(crate) fn content(name: &str) -> Vec<u8> {
    name.repeat(4).into_bytes()
}

pub(crate) fn image(name: &str) -> Image {
    let digest = Digest::of(&content(name));
    Image { name: valid(name.parse()), digest, data_bytes: 1024, vhd_id: [0; 16], disk_bytes: 512, created: Time(0) }
}

fn pick<'a, T>(all: impl Iterator<Item = &'a T>, rng: &mut ChaCha8Rng) -> Option<&'a T> {
    let all: Vec<&T> = all.collect();
    (!all.is_empty()).then(|| all[rng.random_range(0..all.len())])
}

/// A random command that may or may not be possible now.
pub(crate) fn random_command(state: &State, rng: &mut ChaCha8Rng, killer: bool) -> Command {
    let service: ServiceName = valid(format!("service-{}", rng.random_range(0..6)).parse());
    let slot = if rng.random_ratio(1, 4) { Slot::Staging } else { Slot::Production };
    let key = DeploymentKey { service: service.clone(), slot };
    let otherwise = Command::CreateService(service.clone());
    let instance = |rng: &mut ChaCha8Rng| {
        pick(state.instances().keys().filter(|key| key.deployment.service.as_str() != KILLER), rng).cloned()
    };
    let host = |rng: &mut ChaCha8Rng| pick(state.hosts().keys(), rng).cloned();
    let reserved = |rng: &mut ChaCha8Rng| valid(format!("address-{}", rng.random_range(0..3)).parse());
    match rng.random_range(0..47) {
        0..=5 => otherwise,
        6..=12 => Command::Deploy { key, version: version(rng, IMAGES[0], 8) },
        13..=19 => {
            let roles = ["web", "db"].into_iter().filter(|_| rng.random()).map(|role| valid(role.parse()));
            let counts = roles.collect::<Vec<_>>().into_iter().map(|role| (role, rng.random_range(0..10))).collect();
            Command::Scale { key, counts }
        }
        20 => Command::DeleteService(service),
        21 => Command::DeleteDeployment(key),
        22..=23 => instance(rng).map_or(otherwise, Command::Reboot),
        24 => instance(rng).map_or(otherwise, Command::Reimage),
        25 => {
            let what = [
                Command::Reimage,
                Command::Rebuild,
                Command::StopInstance,
                Command::StartInstance,
                Command::StartInstance,
            ];
            let what = what[rng.random_range(0..what.len())];
            instance(rng).map_or(otherwise, what)
        }
        26..=29 => upgrade(state, key, rng).unwrap_or(otherwise),
        30 => Command::Walk { key, domain: None },
        31 => Command::Rollback { key, mode: mode(rng) },
        32 => Command::Swap(service),
        33 => Command::Suspend(key),
        34 => Command::Start(key),
        35..=36 => host(rng).map_or(otherwise, |host| Command::Drain { host, reboot: rng.random() }),
        37 => host(rng).map_or(otherwise, Command::Undrain),
        38 => reset(state, rng).unwrap_or(otherwise),
        39 => Command::ReserveAddress(reserved(rng)),
        40 => Command::ReleaseAddress(reserved(rng)),
        41..=44 => {
            let (role, name) = (valid("web".parse()), "queue".to_owned());
            Command::PushMetric { key, role, name, value: rng.random_range(0..100) }
        }
        _ if killer => killer_command(state, rng),
        _ => lost(state, rng).map_or(otherwise, Command::ForgetHost),
    }
}

fn lost(state: &State, rng: &mut ChaCha8Rng) -> Option<HostName> {
    let lost = state.hosts().values().filter(|host| matches!(host.condition, mayfly_model::HostCondition::Lost { .. }));
    pick(lost.map(|host| &host.name), rng).filter(|_| rng.random_ratio(1, 4)).cloned()
}

/// Whoever resets the breaker has looked; so it is not done for the killer.
fn reset(state: &State, rng: &mut ChaCha8Rng) -> Option<Command> {
    let trips = state.breaker().trips.keys().filter(|scope| scope.to_string() != KILLER);
    pick(trips, rng).cloned().map(Command::ResetBreaker)
}

fn killer_command(state: &State, rng: &mut ChaCha8Rng) -> Command {
    let service: ServiceName = valid(KILLER.parse());
    if !state.services().contains_key(&service) {
        return Command::CreateService(service);
    }
    let key = DeploymentKey { service, slot: Slot::Production };
    Command::Deploy { key, version: version(rng, IMAGES[1], 2) }
}

fn mode(rng: &mut ChaCha8Rng) -> UpgradeMode {
    [UpgradeMode::Auto, UpgradeMode::Auto, UpgradeMode::Manual, UpgradeMode::Simultaneous][rng.random_range(0..4)]
}

/// A change of a deployment that is there: new settings, live or with a reboot, another script, another size.
fn upgrade(state: &State, key: DeploymentKey, rng: &mut ChaCha8Rng) -> Option<Command> {
    let mut version = state.deployments().get(&key)?.version.clone();
    let value = rng.random_range(0..1000).to_string();
    let (name, apply) = match rng.random_range(0..3) {
        0 => ("colour", "live"),
        1 => ("colour", "reboot"),
        _ => (mayfly_model::USER_DATA_SETTING, "live"),
    };
    for role in &mut version.configuration.roles {
        role.settings = vec![
            (name.to_owned(), value.clone()),
            (mayfly_model::configuration::APPLY_SETTING.to_owned(), apply.to_owned()),
        ];
        if rng.random_ratio(1, 4) {
            role.instances = rng.random_range(0..8);
        }
    }
    Some(Command::Upgrade { key, version, mode: mode(rng) })
}

fn version(rng: &mut ChaCha8Rng, image: &str, most: u32) -> Version {
    let roles = [("web", VmSize::ExtraSmall), ("db", VmSize::Medium)];
    let definition = ServiceDefinition {
        name: "sim".to_owned(),
        update_domain_count: rng.random_range(1..6),
        probes: vec![],
        roles: roles.iter().map(|(name, size)| role(name, *size)).collect(),
        traffic_rules: vec![],
    };
    let spread = if rng.random_ratio(1, 5) { "soft" } else { "strict" };
    let rules = (image != KILLER && rng.random_ratio(1, 4)).then_some(RULES);
    let configured = roles.iter().map(|(name, _)| RoleConfiguration {
        name: valid(name.parse()),
        instances: rng.random_range(0..most),
        image: Some(valid(image.parse())),
        settings: [(SPREAD_SETTING, Some(spread)), (AUTOSCALE_SETTING, rules.filter(|_| *name == "web"))]
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
            .collect(),
        certificates: vec![],
    });
    let configuration = ServiceConfiguration {
        service_name: "sim".to_owned(),
        roles: configured.collect(),
        endpoint_acls: vec![],
        reserved_address: rng.random_ratio(1, 6).then(|| valid("address-0".parse())),
    };
    Version { definition, configuration }
}

fn role(name: &str, size: VmSize) -> RoleDefinition {
    RoleDefinition {
        name: valid(name.parse()),
        kind: RoleKind::VirtualMachine,
        size,
        settings: vec![],
        endpoints: vec![],
        local_storage: vec![],
        certificates: vec![],
        imports: vec![],
    }
}

fn counts(version: &Version) -> BTreeMap<RoleName, u32> {
    version.configuration.roles.iter().map(|role| (role.name.clone(), role.instances)).collect()
}

/// The deployments of a moment.
pub(crate) type Deployments = BTreeMap<DeploymentKey, Arc<Deployment>>;

impl Promises {
    /// The command was acknowledged. `deployments` are those of before.
    pub(crate) fn note(&mut self, command: &Command, deployments: &Deployments) {
        match command {
            Command::Deploy { key, version } | Command::Upgrade { key, version, .. } => {
                self.counts.insert(key.clone(), counts(version));
            }
            Command::Rollback { key, .. } => {
                let deployment = deployments.get(key);
                let from = deployment.and_then(|one| one.older.get(&one.upgrade.as_ref()?.from));
                self.counts.extend(from.map(|version| (key.clone(), counts(version))));
            }
            Command::Scale { key, counts } => {
                let known = self.counts.entry(key.clone()).or_default();
                known.extend(counts.iter().map(|(role, count)| (role.clone(), *count)));
            }
            Command::Swap(service) => {
                let key = |slot| DeploymentKey { service: service.clone(), slot };
                let (front, back) =
                    (self.counts.remove(&key(Slot::Production)), self.counts.remove(&key(Slot::Staging)));
                self.counts.extend(back.map(|counts| (key(Slot::Production), counts)));
                self.counts.extend(front.map(|counts| (key(Slot::Staging), counts)));
            }
            Command::DeleteService(name) => self.counts.retain(|key, _| key.service != *name),
            Command::DeleteDeployment(key) => drop(self.counts.remove(key)),
            Command::CommitImage(_)
            | Command::DeleteImage(_)
            | Command::CreateService(_)
            | Command::ReserveAddress(_)
            | Command::ReleaseAddress(_)
            | Command::AddCertificate(_)
            | Command::DeleteCertificate(..)
            | Command::Reboot(_)
            | Command::Reimage(_)
            | Command::Rebuild(_)
            | Command::StopInstance(_)
            | Command::StartInstance(_)
            | Command::Walk { .. }
            | Command::Suspend(_)
            | Command::Start(_)
            | Command::PushMetric { .. }
            | Command::Drain { .. }
            | Command::Undrain(_)
            | Command::ForgetHost(_)
            | Command::ResetBreaker(_)
            | Command::MakeToken { .. }
            | Command::SetAuthority(_)
            | Command::DeleteToken(_)
            | Command::Enrol { .. } => {}
        }
    }

    /// What was promised and is not so.
    pub(crate) fn broken(&self, state: &State) -> Option<String> {
        for (key, promised) in &self.counts {
            let deployment = state.deployments().get(key);
            let kept = deployment.map(|one| counts(&one.version));
            let keeps = |role: &RoleConfiguration| {
                let ruled = role.autoscale().is_some_and(|rules| (rules.min..=rules.max).contains(&role.instances));
                ruled || promised.get(&role.name) == Some(&role.instances)
            };
            if !deployment.is_some_and(|one| {
                let roles = &one.version.configuration.roles;
                roles.len() == promised.len() && roles.iter().all(keeps)
            }) {
                return Some(format!("{key}: {promised:?} was acknowledged, {kept:?} is recorded"));
            }
        }
        let unpromised =
            state.deployments().values().find(|one| !one.is_deleting() && !self.counts.contains_key(&one.key));
        unpromised.map(|one| format!("{}: there, though its deletion was acknowledged", one.key))
    }
}

/// The instance without the slot that it happens to stand in: what a swap does not change.
pub(crate) fn identity(deployment_id: &str, key: &InstanceKey) -> (String, RoleName, u32) {
    (deployment_id.to_owned(), key.role.clone(), key.index)
}
