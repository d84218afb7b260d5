//! The names of the zone, as a pure function of the records.

use std::net::IpAddr;

use mayfly_model::{Deployment, DeploymentKey, DnsRecord, Endpoint, EndpointProtocol, ServiceRecord, Slot};

use crate::core::Core;
use crate::goal;
use crate::mutant::Mutant;

/// The zone: a service's name leads to its VIP, the names inside it to the DIPs of today.
pub fn addresses(core: &Core) -> Vec<DnsRecord> {
    let (state, zone) = (core.state(), &core.config().zone);
    let keeps = core.planted().is(Mutant::KeepNames);
    let mut records = public(core);
    for instance in state.instances.values() {
        let shown = if keeps { instance.vm() } else { instance.wanted_vm() };
        let Some(vm) = shown else { continue };
        let suffix = internal_suffix(&instance.key.deployment, zone);
        for (label, canonical) in [(instance.key.dns_label(), true), (vm.computer_name.to_string(), false)] {
            let name = format!("{label}.{suffix}");
            let six = core.config().ipv6.filter(|_| goal::has_ipv6(state, instance));
            records.extend(six.map(|prefix| record(&name, prefix.embed(vm.dip), canonical)));
            records.push(record(&name, vm.dip, canonical));
        }
    }
    records.sort();
    records
}

/// The names of the services alone.
pub fn public(core: &Core) -> Vec<DnsRecord> {
    let deployments = core.state().deployments.values().filter(|one| !one.is_deleting());
    let records = |deployment: &std::sync::Arc<Deployment>| {
        let name = public_name(deployment, &core.config().zone);
        let six = core.config().ipv6.filter(|_| goal::is_public_over_ipv6(deployment));
        let six = six.map(|prefix| record(&name, prefix.embed(deployment.vip), true));
        [Some(record(&name, deployment.vip, true)), six]
    };
    deployments.flat_map(records).flatten().collect()
}

fn record(name: &str, address: impl Into<IpAddr>, canonical: bool) -> DnsRecord {
    DnsRecord { name: name.to_owned(), address: address.into(), canonical }
}

/// Endpoints by name: `_http._tcp.shop.<zone>` leads to the public address and its port, `_sql._tcp.shop.internal.<zone>`
/// to each instance of the role. Endpoints whose names are no labels have none.
pub fn services(core: &Core) -> Vec<ServiceRecord> {
    let (state, zone) = (core.state(), &core.config().zone);
    let mut records = Vec::new();
    for deployment in state.deployments.values().filter(|one| !one.is_deleting()) {
        let (public, suffix) = (public_name(deployment, zone), internal_suffix(&deployment.key, zone));
        for role in &deployment.version.definition.roles {
            for endpoint in &role.endpoints {
                match endpoint {
                    Endpoint::Input { name, protocol, port, .. } => {
                        records.extend(label(name, *protocol).map(|label| ServiceRecord {
                            name: format!("{label}.{public}"),
                            port: *port,
                            target: public.clone(),
                        }))
                    }
                    Endpoint::Internal { name, protocol, ports: Some(ports) } => {
                        let members =
                            state.members(&deployment.key, &role.name).filter(|one| one.wanted_vm().is_some());
                        let Some(label) = label(name, *protocol) else { continue };
                        records.extend(members.map(|one| ServiceRecord {
                            name: format!("{label}.{suffix}"),
                            port: ports.min,
                            target: format!("{}.{suffix}", one.key.dns_label()),
                        }));
                    }
                    Endpoint::Internal { .. } | Endpoint::InstanceInput { .. } => {}
                }
            }
        }
    }
    records.sort();
    records
}

/// `_http._tcp`.
fn label(endpoint: &str, protocol: EndpointProtocol) -> Option<String> {
    let label = endpoint.to_ascii_lowercase().replace('_', "-");
    let good = (1..=62).contains(&label.len()) && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    let protocol = if protocol.is_udp() { "udp" } else { "tcp" };
    good.then(|| format!("_{label}._{protocol}"))
}

/// A deployment's own name: its service's, and in staging its id.
fn public_name(deployment: &Deployment, zone: &str) -> String {
    match deployment.key.slot {
        Slot::Production => format!("{}.{zone}", deployment.key.service),
        Slot::Staging => format!("{}.{zone}", deployment.id),
    }
}

/// What follows an instance's label: `shop.internal.<zone>`, in staging `staging.shop.internal.<zone>`.
fn internal_suffix(deployment: &DeploymentKey, zone: &str) -> String {
    match deployment.slot {
        Slot::Production => format!("{}.internal.{zone}", deployment.service),
        Slot::Staging => format!("staging.{}.internal.{zone}", deployment.service),
    }
}
