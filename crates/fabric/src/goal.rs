//! Goal states: what each host should be running, as a pure function of the records.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::Ipv4Addr;
use std::sync::Arc;

use mayfly_model::guest::HIDDEN_SETTINGS;
use mayfly_model::{
    AccessRule, Admission, Backend, Deployment, Distribution, Endpoint, EndpointGoal, GoalState, GuardGoal, GuestGoal,
    Host, HostName, Instance, InstanceState, Ipv6Prefix, KeptDisks, NetworkGoal, Pass, PeerGoal, ProbeGoal,
    RoleDefinition, RoleName, RouteGoal, Then, Version, VipGoal, VmGoal,
};

use crate::core::Core;
use crate::mutant::Mutant;
use crate::names;
use crate::state::State;

/// The goal state of a host.
pub fn goal_state(core: &Core, host: &HostName) -> GoalState {
    let state = core.state();
    let reboot = state.hosts.get(host).and_then(|host| host.reboot());
    GoalState {
        incarnation: state.meta.revision,
        vms: vms(core, host),
        restored: is_held(core),
        kept: kept(state, host),
        network: network(core),
        reboot,
    }
}

/// Whether hosts may make no VM that they do not have.
pub fn is_held(core: &Core) -> bool {
    core.state().meta.restored.is_some() && !core.planted().is(Mutant::HastyRestore)
}

/// Local disks that wait on a host for the next VM of their instance.
fn kept(state: &State, host: &HostName) -> Vec<KeptDisks> {
    let between = |instance: &Instance| match &instance.state {
        InstanceState::Waiting { prefer, .. } => prefer.as_ref() == Some(host),
        InstanceState::Retiring { then: Then::Replace { prefer }, .. } => prefer.as_ref() == Some(host),
        InstanceState::Retiring { then: Then::Remove, .. } | InstanceState::Placed { .. } => false,
    };
    let going = state.index.waiting.iter().filter_map(|key| state.instances.get(key));
    let going = going.chain(state.instances_on(host)).filter(|one| one.local_generation > 0 && between(one));
    let disks = |one: &Arc<Instance>| {
        let deployment_id = state.deployments.get(&one.key.deployment)?.id.clone();
        Some(KeptDisks { deployment_id, instance: one.key.name(), generation: one.local_generation })
    };
    going.filter_map(disks).collect()
}

/// The VMs that a host should be running.
pub fn vms(core: &Core, host: &HostName) -> Vec<VmGoal> {
    core.state().instances_on(host).filter_map(|instance| vm(core.state(), core.config().ipv6, instance)).collect()
}

fn vm(state: &State, prefix: Option<Ipv6Prefix>, instance: &Instance) -> Option<VmGoal> {
    let vm = instance.wanted_vm()?;
    let deployment = state.deployments.get(&instance.key.deployment)?;
    let version = deployment.version_of(instance.version)?;
    let (role, configuration) = version.role(&instance.key.role)?;
    let image = state.images.get(configuration.image.as_ref()?)?;
    let settings = configuration
        .settings
        .iter()
        .filter(|(name, _)| !HIDDEN_SETTINGS.contains(&name.as_str()))
        .cloned()
        .collect::<BTreeMap<_, _>>();
    let mut probes: Vec<ProbeGoal> =
        role.endpoints.iter().filter_map(|endpoint| probe(version, &role.name, endpoint)).collect();
    probes.sort();
    probes.dedup();
    Some(VmGoal {
        vm: vm.id,
        instance: instance.key.clone(),
        deployment_id: deployment.id.clone(),
        generation: instance.generation,
        computer_name: vm.computer_name.to_string(),
        fault_domain: state.hosts.get(&vm.host)?.fault_domain.clone(),
        update_domain: instance.update_domain,
        dip: vm.dip,
        ipv6: prefix.filter(|_| configuration.ipv6()).map(|prefix| prefix.embed(vm.dip)),
        size: vm.size,
        image: image.digest.clone(),
        image_bytes: image.data_bytes,
        disk: configuration.disk(),
        reboots: vm.reboots,
        on: deployment.is_on() && !instance.stopped,
        user_data: configuration.setting(mayfly_model::USER_DATA_SETTING).unwrap_or_default().to_owned(),
        settings,
        probes,
        drain_seconds: configuration.drain_seconds(),
        egress: configuration.egress(),
        guest: GuestGoal::of(role, configuration),
        local_generation: instance.local_generation,
    })
}

fn probe(version: &Version, role: &RoleName, endpoint: &Endpoint) -> Option<ProbeGoal> {
    let Endpoint::Input { local_port, probe: Some(name), .. } = endpoint else { return None };
    let interval = version.configuration.role(role).and_then(|role| role.probe_interval_millis());
    Some(ProbeGoal::new(version.definition.probe(name)?, *local_port, interval))
}

/// The location's network, the same for every host.
pub fn network(core: &Core) -> NetworkGoal {
    let state = core.state();
    NetworkGoal {
        zone: core.config().zone.clone(),
        ipv6: core.config().ipv6,
        peers: state.hosts.values().map(|host| peer(host)).collect(),
        routes: routes(core),
        vips: state.deployments.values().filter(|one| !one.is_deleting()).map(|one| vip(core, one)).collect(),
        guards: state.deployments.values().flat_map(|deployment| guards(deployment)).collect(),
        dns: names::addresses(core),
        services: names::services(core),
        voters: core.voters(),
    }
}

/// A host as the others see it.
pub fn peer(host: &Host) -> PeerGoal {
    PeerGoal {
        host: host.name.clone(),
        address: host.address,
        overlay: host.overlay_address(),
        mac: host.overlay_mac(),
        voter: host.voter,
        tunnel_key: host.tunnel_key,
    }
}

/// A VM that is going keeps its route until its host has no trace of it: requests that it is serving come to an end. No
/// name and no endpoint leads to it any more.
fn routes(core: &Core) -> Vec<RouteGoal> {
    let state = core.state();
    let there = state.instances.values().filter_map(|instance| Some((instance, instance.vm()?)));
    there
        .filter_map(|(instance, vm)| {
            let deployment_id = state.deployments.get(&instance.key.deployment)?.id.clone();
            Some(RouteGoal {
                dip: vm.dip,
                host: vm.host.clone(),
                deployment_id,
                role: instance.key.role.clone(),
                index: instance.key.index,
                update_domain: instance.update_domain,
                ipv6: core.config().ipv6.is_some() && has_ipv6(state, instance),
                vm: Some(vm.id),
                leaving: instance.wanted_vm().is_none(),
            })
        })
        .collect()
}

/// Whether an instance's version asks for IPv6.
pub fn has_ipv6(state: &State, instance: &Instance) -> bool {
    state.role_of(instance).is_some_and(|(_, role)| role.ipv6())
}

/// Whether a deployment has its public address over IPv6 too: where a role that has something behind it asks for that.
pub fn is_public_over_ipv6(deployment: &Deployment) -> bool {
    let Version { definition, configuration } = &deployment.version;
    let is_public = |endpoint: &Endpoint| !matches!(endpoint, Endpoint::Internal { .. });
    let mut roles = definition.roles.iter().filter(|role| role.endpoints.iter().any(is_public));
    roles.any(|role| configuration.role(&role.name).is_some_and(|role| role.ipv6()))
}

fn vip(core: &Core, deployment: &Deployment) -> VipGoal {
    let state = core.state();
    let roles = &deployment.version.definition.roles;
    let endpoints = roles.iter().flat_map(|role| {
        role.endpoints.iter().flat_map(|endpoint| match endpoint {
            Endpoint::InstanceInput { .. } => instance_endpoints(state, deployment, role, endpoint),
            _ => input_endpoint(state, deployment, role, endpoint).into_iter().collect(),
        })
    });
    // One that is to go takes an address only if there is nobody else.
    let mut owners: Vec<&Arc<Host>> = state.hosts.values().collect();
    owners.sort_by_key(|host| (host.admission != Admission::Open, rendezvous(deployment.vip, &host.name)));
    let owners = owners.into_iter().map(|host| host.name.clone()).collect();
    let ipv6 = core.config().ipv6.is_some() && is_public_over_ipv6(deployment);
    VipGoal { vip: deployment.vip, endpoints: endpoints.collect(), owners, ipv6 }
}

fn input_endpoint(
    state: &State,
    deployment: &Deployment,
    role: &RoleDefinition,
    endpoint: &Endpoint,
) -> Option<EndpointGoal> {
    let Endpoint::Input { protocol, port, local_port, ignore_role_instance_status, distribution, .. } = endpoint else {
        return None;
    };
    // A host asks what the instance's own version says; so that is what has to be looked for.
    let probe_of = |one: &Instance| {
        let version = state.version_of(one)?;
        let role = version.definition.role(&role.name)?;
        let own = role.endpoints.iter().find(|own| own.name() == endpoint.name())?;
        probe(version, &role.name, own)
    };
    let backends =
        state.members(&deployment.key, &role.name).filter_map(|one| Some((one, one.wanted_vm()?))).map(|(one, vm)| {
            Backend {
                vm: vm.id,
                dip: vm.dip,
                host: vm.host.clone(),
                probe: probe_of(one),
                always: *ignore_role_instance_status && !one.stopped,
            }
        });
    let access = access(deployment, role, endpoint);
    let backends = backends.collect();
    let (udp, distribution, name) = (protocol.is_udp(), *distribution, full_name(role, endpoint));
    let instances = deployment.version.configuration.role(&role.name).map_or(0, |role| role.instances);
    let (port, local_port) = (*port, *local_port);
    Some(EndpointGoal { name, udp, port, local_port, backends, instances, access, distribution })
}

/// The endpoints of which each instance has one of its own: the public port is the lowest plus the instance's number.
fn instance_endpoints(
    state: &State,
    deployment: &Deployment,
    role: &RoleDefinition,
    endpoint: &Endpoint,
) -> Vec<EndpointGoal> {
    let Endpoint::InstanceInput { protocol, local_port, public_ports, .. } = endpoint else { return Vec::new() };
    let members = state.members(&deployment.key, &role.name).filter_map(|one| Some((one, one.wanted_vm()?)));
    let with_port = members.filter_map(|(one, vm)| {
        let port = u32::from(public_ports.min).checked_add(one.key.index)?;
        Some((vm, u16::try_from(port).ok().filter(|port| *port <= public_ports.max)?))
    });
    with_port
        .map(|(vm, port)| EndpointGoal {
            name: full_name(role, endpoint),
            udp: protocol.is_udp(),
            port,
            local_port: *local_port,
            // Who asks for one instance wants that one, however it is doing.
            backends: vec![Backend { vm: vm.id, dip: vm.dip, host: vm.host.clone(), probe: None, always: true }],
            instances: 1,
            access: access(deployment, role, endpoint),
            distribution: Distribution::Connection,
        })
        .collect()
}

fn full_name(role: &RoleDefinition, endpoint: &Endpoint) -> String {
    format!("{}/{}", role.name, endpoint.name())
}

/// Who may come in at an endpoint.
fn access(deployment: &Deployment, role: &RoleDefinition, endpoint: &Endpoint) -> Vec<AccessRule> {
    let acls = deployment.version.configuration.endpoint_acls.iter();
    let own = acls.filter(|acl| acl.role == role.name.as_str() && acl.endpoint == endpoint.name());
    own.flat_map(|acl| acl.rules.iter().copied()).collect()
}

/// The roles that only some may talk to: those that a rule names.
fn guards(deployment: &Deployment) -> Vec<GuardGoal> {
    let definition = &deployment.version.definition;
    let mut guards: BTreeMap<RoleName, Vec<Pass>> = BTreeMap::new();
    for rule in &definition.traffic_rules {
        for (role, endpoint) in &rule.destinations {
            let Some(role) = definition.roles.iter().find(|one| one.name.as_str() == role) else { continue };
            let Some(Endpoint::Internal { protocol, ports, .. }) =
                role.endpoints.iter().find(|one| one.name() == endpoint)
            else {
                continue;
            };
            let from_roles = rule.from_roles.iter().filter_map(|name| RoleName::new(name.as_str()).ok()).collect();
            let pass = Pass { from_roles, protocol: *protocol, ports: *ports };
            guards.entry(role.name.clone()).or_default().push(pass);
        }
    }
    let deployment_id = &deployment.id;
    guards.into_iter().map(|(role, passes)| GuardGoal { deployment_id: deployment_id.clone(), role, passes }).collect()
}

/// A host's rank for a VIP: highest random weight, so that a host that comes or goes moves only its own VIPs.
fn rendezvous(vip: Ipv4Addr, host: &HostName) -> u64 {
    let mut hasher = DefaultHasher::new();
    (vip, host).hash(&mut hasher);
    hasher.finish()
}
