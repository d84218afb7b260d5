//! Whether a packet would pass, and which rule decides: the plan in words, for people.
//!
//! It follows the chains of `frame`, `egress`, `balance` and `isolation` in their order; a test holds it to what the kernel
//! does.

use std::net::{IpAddr, Ipv4Addr};

use mayfly_model::{
    AccessRule, Destination, Egress, EndpointGoal, EndpointProtocol, Ipv6Prefix, Pass, RouteGoal, Subnet, Target,
    Transport, VipGoal,
};

use crate::address::{GATEWAY, METADATA, PLUGIN_PORT, WIRE_SERVER};
use crate::plan::family::Family;
use crate::plan::slots::in_rotation;
use crate::plan::{Inputs, LocalGuest};

/// Who sends.
#[derive(Clone, Copy, Debug)]
pub enum Sender<'a> {
    /// A guest of the host whose plan it is.
    Guest(&'a LocalGuest),
    /// Somebody outside the fabric.
    Outside(IpAddr),
}

/// Where to.
#[derive(Clone, Debug)]
pub struct Receiver {
    /// The name, if the sender has asked for one.
    pub name: Option<String>,
    /// The address.
    pub address: IpAddr,
    /// The protocol.
    pub protocol: Transport,
    /// The port.
    pub port: u16,
}

/// One rule on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What it says.
    pub rule: String,
    /// Whether the packet passes it.
    pub passes: bool,
}

fn passes(rule: impl Into<String>) -> Step {
    Step { rule: rule.into(), passes: true }
}

fn stops(rule: impl Into<String>) -> Step {
    Step { rule: rule.into(), passes: false }
}

/// The rules that a connection's first packet meets. The last one decides: whoever stops it ends the row.
pub fn trace(inputs: &Inputs<'_>, from: Sender<'_>, to: &Receiver) -> Vec<Step> {
    let Some(family) = Family::of(inputs).find(|family| family.address(GATEWAY).is_ipv6() == to.address.is_ipv6())
    else {
        return vec![stops("this location has no IPv6")];
    };
    let mut steps = Vec::new();
    let source = match from {
        Sender::Guest(guest) => family.address(guest.dip),
        Sender::Outside(address) => address,
    };
    if source.is_ipv6() != to.address.is_ipv6() {
        return vec![stops("the two speak different versions of IP")];
    }
    let has = |ipv6: bool| ipv6 || family == Family::V4;
    if let Sender::Guest(guest) = from {
        if !has(guest.ipv6) {
            return vec![stops("its role does not ask for IPv6 (Mayfly.IPv6)")];
        }
        if [GATEWAY, WIRE_SERVER, METADATA].map(|own| family.address(own)).contains(&to.address) {
            return vec![server(to)];
        }
        steps.push(leaves(inputs, guest, to, family));
    }
    if steps.iter().all(|step| step.passes) {
        let is = |own: Ipv4Addr| family.address(own) == to.address;
        if let Some(vip) = inputs.goal.vips.iter().find(|vip| has(vip.ipv6) && is(vip.vip)) {
            balanced(&mut steps, inputs, vip, source, to, family);
        } else if let Some(route) = inputs.goal.routes.iter().find(|route| has(route.ipv6) && is(route.dip)) {
            steps.push(arrives(inputs, from, route, to));
        } else {
            steps.push(away(inputs, from, to, family));
        }
    }
    steps
}

/// The servers that each host has for its guests.
fn server(to: &Receiver) -> Step {
    let open = match to.address {
        IpAddr::V4(address) => matches!(
            (address, to.protocol, to.port),
            (WIRE_SERVER | METADATA, Transport::Tcp, 80)
                | (WIRE_SERVER, Transport::Tcp, PLUGIN_PORT)
                | (WIRE_SERVER, _, 53)
                | (_, Transport::Udp, 67)
        ),
        IpAddr::V6(_) => false,
    };
    if open {
        passes("the host's own servers are open to its guests")
    } else {
        stops("of the host, guests reach DHCP, DNS, the wire server and metadata, and nothing else")
    }
}

/// Whether a guest's policy lets it go there.
fn leaves(inputs: &Inputs<'_>, guest: &LocalGuest, to: &Receiver, family: Family) -> Step {
    let own = |route: &&RouteGoal| {
        let has = route.ipv6 || family == Family::V4;
        has && route.deployment_id == guest.deployment_id && family.address(route.dip) == to.address
    };
    let destinations = match &guest.egress {
        Egress::Allow => return passes("egress of its role: allow"),
        _ if inputs.goal.routes.iter().any(|route| own(&route)) => {
            return passes("egress of its role does not concern its own deployment");
        }
        Egress::Deny => return stops("egress of its role: deny"),
        Egress::Only(destinations) => destinations,
    };
    match destinations.iter().find(|one| opens(one, to, family)) {
        Some(one) => passes(format!("egress of its role: `{one}` is open")),
        None if to.name.is_none() && destinations.iter().any(|one| !matches!(one.target, Target::Network { .. })) => {
            stops(format!(
                "egress of its role: only {}; names are open as the addresses that the guest was told",
                guest.egress
            ))
        }
        None => stops(format!("egress of its role: only {}", guest.egress)),
    }
}

/// Whether an address is in a network, or goes with one that is.
fn covers(network: Subnet, address: IpAddr, family: Family) -> bool {
    network.is_everybody() || family.network(network).is_some_and(|network| network.contains(address))
}

fn opens(destination: &Destination, to: &Receiver, family: Family) -> bool {
    let target = match &destination.target {
        Target::Network { address, prefix } => {
            covers(Subnet { address: *address, prefix: *prefix }, to.address, family)
        }
        named => to.name.as_ref().is_some_and(|name| named.is_named(name)),
    };
    let protocol = destination.protocol.is_none_or(|protocol| protocol == to.protocol);
    target && protocol && destination.ports.is_none_or(|ports| (ports.min..=ports.max).contains(&to.port))
}

/// Through a public address.
fn balanced(steps: &mut Vec<Step>, inputs: &Inputs<'_>, vip: &VipGoal, source: IpAddr, to: &Receiver, family: Family) {
    let udp = to.protocol == Transport::Udp;
    let Some(endpoint) = vip.endpoints.iter().find(|one| one.udp == udp && one.port == to.port) else {
        let what = format!("no endpoint of {} is at port {}/{}", to.address, to.port, to.protocol.as_str());
        return steps.push(stops(what));
    };
    let up: Vec<String> = endpoint
        .backends
        .iter()
        .filter(|one| in_rotation(inputs, one))
        .filter(|one| family == Family::V4 || inputs.goal.routes.iter().any(|route| route.dip == one.dip && route.ipv6))
        .map(|one| format!("{} on {}", family.door(one.dip, endpoint.local_port), one.host))
        .collect();
    let name = &endpoint.name;
    if up.is_empty() {
        return steps.push(stops(format!("endpoint {name}: nobody is in rotation, so it refuses")));
    }
    steps.push(admitted(endpoint, source, family));
    if steps.iter().all(|step| step.passes) {
        steps.push(passes(format!("endpoint {name}: sent to {}", up.join(" or "))));
    }
}

/// The first rule of an access control that fits decides.
fn admitted(endpoint: &EndpointGoal, source: IpAddr, family: Family) -> Step {
    let name = &endpoint.name;
    let fits = |rule: &&AccessRule| covers(rule.subnet(), source, family);
    match endpoint.access.iter().find(fits) {
        Some(rule) => {
            let word = if rule.permit { "permits" } else { "denies" };
            let what = format!("access control of {name}: {word} {}", rule.subnet());
            if rule.permit { passes(what) } else { stops(what) }
        }
        None if endpoint.access.iter().any(|rule| rule.permit) => {
            stops(format!("access control of {name}: others than those it permits stay out"))
        }
        None => passes(format!("access control of {name}: no rule keeps {source} out")),
    }
}

/// At an instance's own address.
fn arrives(inputs: &Inputs<'_>, from: Sender<'_>, route: &RouteGoal, to: &Receiver) -> Step {
    let Sender::Guest(guest) = from else {
        return stops("instances are reached from outside through public addresses only");
    };
    if guest.deployment_id != route.deployment_id {
        return stops(format!("{} belongs to another deployment", to.address));
    }
    let guards = &inputs.goal.guards;
    let guard = guards.iter().find(|guard| guard.deployment_id == route.deployment_id && guard.role == route.role);
    let Some(guard) = guard else {
        return passes("instances of one deployment reach each other where no traffic rule says otherwise");
    };
    let own_role = inputs.goal.routes.iter().find(|one| one.dip == guest.dip).map(|one| &one.role);
    let lets_in = |pass: &&Pass| {
        let role = pass.from_roles.is_empty() || own_role.is_some_and(|role| pass.from_roles.contains(role));
        let udp = to.protocol == Transport::Udp;
        let protocol = pass.protocol == EndpointProtocol::Any || pass.protocol.is_udp() == udp;
        role && protocol && pass.ports.is_none_or(|ports| (ports.min..=ports.max).contains(&to.port))
    };
    match guard.passes.iter().find(lets_in) {
        Some(_) => passes(format!("a traffic rule lets it reach role {}", route.role)),
        None => stops(format!("role {} is reached only as its traffic rules say", route.role)),
    }
}

/// Anywhere else.
fn away(inputs: &Inputs<'_>, from: Sender<'_>, to: &Receiver, family: Family) -> Step {
    if matches!(from, Sender::Outside(_)) {
        return stops(format!("nobody in the fabric has {}", to.address));
    }
    let is = |own: Ipv4Addr| family.address(own) == to.address;
    if inputs.goal.peers.iter().any(|peer| is(peer.address) || is(peer.overlay)) {
        return stops("the hosts' own network is closed to guests");
    }
    let is_ours = |prefix: Ipv6Prefix, address| prefix.embedded(address).is_some();
    if let (IpAddr::V6(address), Family::V6(prefix)) = (to.address, family)
        && (is_ours(prefix, address) || address.is_unicast_link_local() || address.is_multicast())
    {
        return stops(format!("nobody in the fabric has {address}, and nobody outside is reached at it"));
    }
    if inputs.closed.iter().any(|network| network.contains(to.address)) {
        return stops("its host's configuration closes that network to guests");
    }
    let way_out = if family == Family::V4 { inputs.underlay } else { inputs.underlay6 };
    match way_out {
        Some(_) => passes("it leaves the fabric, under its host's address"),
        None => stops("its host does not let guests out of the fabric"),
    }
}
