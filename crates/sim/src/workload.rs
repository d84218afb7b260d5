//! What simulated users do, and what they were promised.

use std::collections::BTreeMap;

use mayfly_fabric::{Command, State};
use mayfly_model::{
    DeploymentKey, Digest, Image, InstanceKey, RoleConfiguration, RoleDefinition, RoleKind, RoleName,
    ServiceConfiguration, ServiceDefinition, ServiceName, Slot, Time, VmId, VmSize,
};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// What has been acknowledged to users.
#[derive(Debug, Default)]
pub(crate) struct Promises {
    /// Wanted instances of each role; services that were deleted are not in here.
    counts: BTreeMap<(DeploymentKey, RoleName), u32>,
    /// Reboots asked of a VM.
    reboots: BTreeMap<VmId, u32>,
}

fn valid<T, E: std::fmt::Display>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|error| unreachable!("{error}"))
}

pub(crate) fn image() -> Image {
    let digest = valid(Digest::new("0".repeat(64)));
    Image { name: valid("hello".parse()), digest, data_bytes: 1024, vhd_id: [0; 16], disk_bytes: 512, created: Time(0) }
}

/// A random command that may or may not be possible now.
pub(crate) fn random_command(state: &State, rng: &mut ChaCha8Rng) -> Command {
    let service: ServiceName = valid(format!("service-{}", rng.random_range(0..6)).parse());
    let key = DeploymentKey { service: service.clone(), slot: Slot::Production };
    let instance = |rng: &mut ChaCha8Rng| {
        let keys: Vec<&InstanceKey> = state.instances().keys().collect();
        (!keys.is_empty()).then(|| keys[rng.random_range(0..keys.len())].clone())
    };
    match rng.random_range(0..20) {
        0..=3 => Command::CreateService(service),
        4..=8 => deploy(key, rng),
        9..=14 => {
            let roles = ["web", "db"].into_iter().filter(|_| rng.random()).map(|role| valid(role.parse()));
            let counts = roles.collect::<Vec<_>>().into_iter().map(|role| (role, rng.random_range(0..10))).collect();
            Command::Scale { key, counts }
        }
        15 => Command::DeleteService(service),
        16..=17 => instance(rng).map_or(Command::CreateService(service), Command::Reboot),
        _ => instance(rng).map_or_else(|| deploy(key, rng), Command::Reimage),
    }
}

fn deploy(key: DeploymentKey, rng: &mut ChaCha8Rng) -> Command {
    let roles = [("web", VmSize::ExtraSmall), ("db", VmSize::Medium)];
    let definition = ServiceDefinition {
        name: "sim".to_owned(),
        update_domain_count: rng.random_range(1..6),
        probes: vec![],
        roles: roles.iter().map(|(name, size)| role(name, *size)).collect(),
        traffic_rules: vec![],
    };
    let configured = roles.iter().map(|(name, _)| RoleConfiguration {
        name: valid(name.parse()),
        instances: rng.random_range(0..8),
        image: Some(valid("hello".parse())),
        settings: vec![],
        certificates: vec![],
    });
    let configuration =
        ServiceConfiguration { service_name: "sim".to_owned(), roles: configured.collect(), endpoint_acls: vec![] };
    Command::Deploy { key, definition, configuration }
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

impl Promises {
    /// The command was acknowledged. `state` is that of before.
    pub(crate) fn note(&mut self, command: &Command, state: &State) {
        match command {
            Command::Deploy { key, configuration, .. } => {
                for role in &configuration.roles {
                    self.counts.insert((key.clone(), role.name.clone()), role.instances);
                }
            }
            Command::Scale { key, counts } => {
                for (role, count) in counts {
                    self.counts.insert((key.clone(), role.clone()), *count);
                }
            }
            Command::DeleteService(name) => self.counts.retain(|(key, _), _| key.service != *name),
            Command::Reboot(key) => {
                if let Some(vm) = state.instances().get(key).and_then(|instance| instance.wanted_vm()) {
                    *self.reboots.entry(vm.id).or_default() += 1;
                }
            }
            Command::CommitImage(_) | Command::DeleteImage(_) | Command::CreateService(_) | Command::Reimage(_) => {}
        }
    }

    /// What was promised and is not so.
    pub(crate) fn broken(&self, state: &State) -> Option<String> {
        for ((key, role), count) in &self.counts {
            let kept =
                state.deployments().get(key).and_then(|one| one.configuration.role(role)).map(|one| one.instances);
            if kept != Some(*count) {
                return Some(format!("{key}/{role}: {count} instances were acknowledged, {kept:?} are recorded"));
            }
        }
        let unpromised = state
            .deployments()
            .values()
            .filter(|one| !one.deleting)
            .find(|deployment| !self.counts.keys().any(|(key, _)| *key == deployment.key));
        if let Some(deployment) = unpromised {
            return Some(format!("{}: there, though its deletion was acknowledged", deployment.key));
        }
        state.instances().values().filter_map(|instance| instance.wanted_vm()).find_map(|vm| {
            let promised = self.reboots.get(&vm.id).copied().unwrap_or(0);
            (vm.reboots != promised).then(|| format!("{}: {} reboots, {promised} were acknowledged", vm.id, vm.reboots))
        })
    }
}
