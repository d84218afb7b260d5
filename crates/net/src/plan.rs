//! From what is wanted and what is healthy to what the kernel should hold. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::Ipv4Addr;

use mayfly_model::{
    Backend, EndpointGoal, EndpointProtocol, GuardGoal, HostName, NetworkGoal, ProbeGoal, RoleName, RouteGoal, VmId,
};

use crate::address::{
    DIP_NETWORK, DIP_PREFIX, GATEWAY, METADATA, OVERLAY_DEVICE, OVERLAY_NETWORK, OVERLAY_PREFIX, TAP_PREFIX,
    UNDERLAY_DEVICE, WIRE_SERVER,
};

/// A guest of this host, as the network sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalGuest {
    /// Its tap.
    pub tap: String,
    /// Its address.
    pub dip: Ipv4Addr,
    /// Its hardware address.
    pub mac: [u8; 6],
}

/// What is healthy: the guest's own readiness (`None`) or one of its probes.
pub type Health = BTreeSet<(VmId, Option<ProbeGoal>)>;

/// What the plan is made of.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// This host.
    pub host: &'a HostName,
    /// The location's network.
    pub goal: &'a NetworkGoal,
    /// This host's guests that have a tap.
    pub guests: &'a [LocalGuest],
    /// Healthy instances everywhere, as far as they are known to be on live hosts.
    pub health: &'a Health,
    /// Hosts that are heard, this one included if it may serve.
    pub live: &'a BTreeSet<HostName>,
    /// The hosts' own network, as `ADDRESS/PREFIX`, if guests may reach what lies beyond it. Itself they never may.
    pub underlay: Option<&'a str>,
}

/// Where packets for a DIP go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NextHop {
    /// To a guest of this host.
    Tap(String),
    /// To another host, through the overlay.
    Overlay(Ipv4Addr),
}

/// What the kernel should hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The whole rule set, for nft.
    pub rules: String,
    /// Routes to DIPs.
    pub routes: BTreeMap<Ipv4Addr, NextHop>,
    /// VIPs that this host answers for.
    pub vips: BTreeSet<Ipv4Addr>,
    /// The other hosts, as (overlay address, hardware address, underlay address).
    pub peers: BTreeSet<(Ipv4Addr, [u8; 6], Ipv4Addr)>,
}

/// Makes the plan.
pub fn plan(inputs: &Inputs<'_>) -> Plan {
    let Inputs { host, goal, guests, live, .. } = *inputs;
    let own: BTreeMap<Ipv4Addr, &LocalGuest> = guests.iter().map(|guest| (guest.dip, guest)).collect();
    let overlays: BTreeMap<&HostName, Ipv4Addr> = goal.peers.iter().map(|peer| (&peer.host, peer.overlay)).collect();
    let remote = goal
        .routes
        .iter()
        .filter(|route| route.host != *host)
        .filter_map(|route| Some((route.dip, NextHop::Overlay(*overlays.get(&route.host)?))));
    let local = own.values().map(|guest| (guest.dip, NextHop::Tap(guest.tap.clone())));
    let owned = |owners: &[HostName]| owners.iter().find(|owner| live.contains(*owner)) == Some(host);
    Plan {
        rules: rules(inputs, &own),
        routes: remote.chain(local).collect(),
        vips: goal.vips.iter().filter(|vip| owned(&vip.owners)).map(|vip| vip.vip).collect(),
        peers: goal
            .peers
            .iter()
            .filter(|peer| peer.host != *host)
            .map(|one| (one.overlay, one.mac, one.address))
            .collect(),
    }
}

fn rules(inputs: &Inputs<'_>, own: &BTreeMap<Ipv4Addr, &LocalGuest>) -> String {
    let overlay = inputs.goal.peers.iter().find(|peer| peer.host == *inputs.host).map(|peer| peer.overlay);
    let mut text = String::new();
    // Flushing removes rules but no set elements, so leases survive; chains of the same name are kept.
    text.push_str("add table inet mayfly\nflush table inet mayfly\nadd table arp mayfly\nflush table arp mayfly\n");
    text.push_str("table arp mayfly {\n chain input { type filter hook input priority 0; policy accept;\n");
    for guest in inputs.guests {
        let _ = writeln!(text, "  iifname \"{}\" arp saddr ip != {{ 0.0.0.0, {} }} drop", guest.tap, guest.dip);
    }
    text.push_str(" }\n}\ntable inet mayfly {\n set leased { type ipv4_addr; flags timeout; }\n");
    anti_spoofing(&mut text, inputs.guests);
    load_balancing(&mut text, inputs, overlay);
    forwarding(&mut text, inputs, own);
    to_the_host(&mut text, inputs);
    text.push_str("}\n");
    text
}

/// Packets from a guest have to carry its own addresses, and it has to be leased to this host.
fn anti_spoofing(text: &mut String, guests: &[LocalGuest]) {
    text.push_str(" chain from_guest { type filter hook prerouting priority raw; policy accept;\n");
    let _ = writeln!(text, "  iifname != \"{TAP_PREFIX}*\" accept\n  meta nfproto ipv6 drop");
    if !guests.is_empty() {
        let pairs: Vec<String> = guests.iter().map(|guest| format!("\"{}\" . {}", guest.tap, mac(guest.mac))).collect();
        let _ = writeln!(text, "  iifname . ether saddr != {{ {} }} drop", pairs.join(", "));
    }
    text.push_str("  ip saddr 0.0.0.0 udp sport 68 udp dport 67 accept\n");
    if guests.is_empty() {
        text.push_str("  drop\n }\n");
        return;
    }
    let triples: Vec<String> = guests.iter().map(|guest| format!("\"{}\" . {}", guest.tap, guest.dip)).collect();
    let _ =
        writeln!(text, "  iifname . ip saddr != {{ {} }} drop\n  ip saddr != @leased drop\n }}", triples.join(", "));
}

fn load_balancing(text: &mut String, inputs: &Inputs<'_>, overlay: Option<Ipv4Addr>) {
    text.push_str(" chain balance { type nat hook prerouting priority dstnat; policy accept;\n");
    for vip in &inputs.goal.vips {
        for endpoint in &vip.endpoints {
            let up: Vec<Ipv4Addr> =
                endpoint.backends.iter().filter(|one| in_rotation(inputs, one)).map(|one| one.dip).collect();
            if up.is_empty() {
                continue;
            }
            let slots: Vec<String> = up.iter().enumerate().map(|(slot, dip)| format!("{slot} : {dip}")).collect();
            let balance = format!(
                "dnat ip to numgen inc mod {} map {{ {} }} : {}",
                up.len(),
                slots.join(", "),
                endpoint.local_port
            );
            admit(text, vip.vip, endpoint, &balance);
        }
    }
    text.push_str(" }\n chain source { type nat hook postrouting priority srcnat; policy accept;\n");
    // Answers have to come back through the host that balanced the connection.
    if let Some(overlay) = overlay {
        let _ = writeln!(text, "  ct status dnat oifname \"{OVERLAY_DEVICE}\" snat ip to {overlay}");
    }
    let dips = format!("{DIP_NETWORK}/{DIP_PREFIX}");
    let _ = writeln!(text, "  ct status dnat oifname \"{TAP_PREFIX}*\" ip saddr {dips} snat ip to {GATEWAY}");
    let _ = writeln!(text, "  ip saddr {dips} oifname \"{UNDERLAY_DEVICE}\" masquerade\n }}");
}

/// Writes who is let in at an endpoint, and what becomes of them: the first rule that fits decides.
fn admit(text: &mut String, vip: Ipv4Addr, endpoint: &EndpointGoal, balance: &str) {
    let protocol = if endpoint.udp { "udp" } else { "tcp" };
    let door = format!("ip daddr {vip} {protocol} dport {}", endpoint.port);
    for rule in &endpoint.access {
        let what = if rule.permit { balance } else { "drop" };
        let _ = match rule.prefix {
            0 => writeln!(text, "  {door} {what}"),
            prefix => writeln!(text, "  {door} ip saddr {}/{prefix} {what}", rule.network),
        };
    }
    // Where some are let in by name, the others are not.
    let others = if endpoint.access.iter().any(|rule| rule.permit) { "drop" } else { balance };
    let _ = writeln!(text, "  {door} {others}");
}

fn in_rotation(inputs: &Inputs<'_>, backend: &Backend) -> bool {
    let healthy = backend.always || inputs.health.contains(&(backend.vm, backend.probe.clone()));
    healthy && inputs.live.contains(&backend.host)
}

fn forwarding(text: &mut String, inputs: &Inputs<'_>, own: &BTreeMap<Ipv4Addr, &LocalGuest>) {
    text.push_str(" chain forward { type filter hook forward priority filter; policy drop;\n");
    let _ = writeln!(text, "  oifname \"{TAP_PREFIX}*\" ip daddr != @leased drop");
    text.push_str("  ct state established,related accept\n");
    // To a guest of this host: from its own deployment, or through a load balancer to one of its endpoints.
    let mut deployments: BTreeMap<&str, (Vec<String>, Vec<String>)> = BTreeMap::new();
    for route in &inputs.goal.routes {
        let (all, here) = deployments.entry(&route.deployment_id).or_default();
        all.push(route.dip.to_string());
        if own.contains_key(&route.dip) {
            here.push(route.dip.to_string());
        }
    }
    for guard in &inputs.goal.guards {
        guarded(text, inputs, own, guard);
        // What the guard does not let through is not let through for being of the same deployment either.
        if let Some((_, here)) = deployments.get_mut(guard.deployment_id.as_str()) {
            let of_role = role_dips(inputs, &guard.deployment_id, &guard.role);
            here.retain(|dip| !of_role.contains(dip));
        }
    }
    for (all, here) in deployments.values().filter(|(_, here)| !here.is_empty()) {
        let (all, here) = (all.join(", "), here.join(", "));
        let _ = writeln!(
            text,
            "  iifname {{ \"{TAP_PREFIX}*\", \"{OVERLAY_DEVICE}\" }} oifname \"{TAP_PREFIX}*\" ip daddr {{ {here} }} ip saddr {{ {all} }} accept"
        );
    }
    let mut doors = BTreeSet::new();
    for endpoint in inputs.goal.vips.iter().flat_map(|vip| &vip.endpoints) {
        let protocol = if endpoint.udp { "udp" } else { "tcp" };
        let here = endpoint.backends.iter().filter(|backend| own.contains_key(&backend.dip));
        doors.extend(here.map(|backend| format!("{} . {protocol} . {}", backend.dip, endpoint.local_port)));
    }
    if !doors.is_empty() {
        let doors: Vec<String> = doors.into_iter().collect();
        let hosts = format!("{OVERLAY_NETWORK}/{OVERLAY_PREFIX}");
        let doors = format!("ip daddr . meta l4proto . th dport {{ {} }}", doors.join(", "));
        let _ = writeln!(text, "  oifname \"{TAP_PREFIX}*\" ct status dnat {doors} accept");
        let _ =
            writeln!(text, "  oifname \"{TAP_PREFIX}*\" iifname \"{OVERLAY_DEVICE}\" ip saddr {hosts} {doors} accept");
    }
    let _ = writeln!(text, "  oifname \"{TAP_PREFIX}*\" drop");
    // To another host: the receiver judges.
    let _ = writeln!(text, "  iifname \"{TAP_PREFIX}*\" oifname \"{OVERLAY_DEVICE}\" accept");
    let _ = writeln!(text, "  iifname \"{UNDERLAY_DEVICE}\" oifname \"{OVERLAY_DEVICE}\" ct status dnat accept");
    if let Some(underlay) = inputs.underlay {
        let _ =
            writeln!(text, "  iifname \"{TAP_PREFIX}*\" oifname \"{UNDERLAY_DEVICE}\" ip daddr != {underlay} accept");
    }
    text.push_str(" }\n");
}

/// The addresses of a role's instances.
fn role_dips(inputs: &Inputs<'_>, deployment_id: &str, role: &RoleName) -> Vec<String> {
    let of_role = inputs.goal.routes.iter().filter(|route| route.deployment_id == deployment_id && route.role == *role);
    of_role.map(|route| route.dip.to_string()).collect()
}

/// Writes who may talk to this host's guests of a role that is guarded.
fn guarded(text: &mut String, inputs: &Inputs<'_>, own: &BTreeMap<Ipv4Addr, &LocalGuest>, guard: &GuardGoal) {
    let is_here = |route: &&RouteGoal| route.deployment_id == guard.deployment_id && own.contains_key(&route.dip);
    let routes = inputs.goal.routes.iter().filter(is_here).filter(|route| route.role == guard.role);
    let here: Vec<String> = routes.map(|route| route.dip.to_string()).collect();
    if here.is_empty() {
        return;
    }
    for pass in &guard.passes {
        let of_deployment = inputs.goal.routes.iter().filter(|route| route.deployment_id == guard.deployment_id);
        let named = of_deployment.filter(|route| pass.from_roles.is_empty() || pass.from_roles.contains(&route.role));
        let from: Vec<String> = named.map(|route| route.dip.to_string()).collect();
        if from.is_empty() {
            continue;
        }
        let protocol = if pass.protocol.is_udp() { "udp" } else { "tcp" };
        let what = match (pass.protocol, pass.ports) {
            (EndpointProtocol::Any, None) => String::new(),
            (EndpointProtocol::Any, Some(ports)) => format!("th dport {}-{} ", ports.min, ports.max),
            (_, None) => format!("meta l4proto {protocol} "),
            (_, Some(ports)) => format!("{protocol} dport {}-{} ", ports.min, ports.max),
        };
        let _ = writeln!(
            text,
            "  iifname {{ \"{TAP_PREFIX}*\", \"{OVERLAY_DEVICE}\" }} oifname \"{TAP_PREFIX}*\" ip daddr {{ {} }} ip saddr {{ {} }} {what}accept",
            here.join(", "),
            from.join(", ")
        );
    }
}

/// What may reach the host itself.
fn to_the_host(text: &mut String, inputs: &Inputs<'_>) {
    text.push_str(" chain input { type filter hook input priority filter; policy accept;\n");
    text.push_str("  ct state established,related accept\n");
    let vips: Vec<String> = inputs.goal.vips.iter().map(|vip| vip.vip.to_string()).collect();
    if !vips.is_empty() {
        // A public address with nobody behind it refuses, so that clients need not wait.
        let vips = vips.join(", ");
        let _ = writeln!(text, "  ip daddr {{ {vips} }} meta l4proto tcp reject with tcp reset");
        let _ = writeln!(text, "  ip daddr {{ {vips} }} drop");
    }
    let _ = writeln!(text, "  iifname \"{OVERLAY_DEVICE}\" drop");
    let _ = writeln!(text, "  iifname != \"{TAP_PREFIX}*\" accept");
    text.push_str("  udp dport 67 accept\n");
    let _ = writeln!(text, "  ip daddr {{ {WIRE_SERVER}, {METADATA} }} tcp dport 80 accept");
    let _ = writeln!(text, "  ip daddr {WIRE_SERVER} meta l4proto {{ tcp, udp }} th dport 53 accept");
    let _ = writeln!(text, "  ip daddr {{ {GATEWAY}, {WIRE_SERVER} }} icmp type echo-request accept\n  drop\n }}");
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use mayfly_model::{AccessRule, EndpointGoal, Pass, PeerGoal, PortRange, RouteGoal, VipGoal};

    use super::*;

    fn host(number: u8) -> HostName {
        HostName::new(format!("host-{number}")).unwrap()
    }

    fn dip(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 80, 0, last)
    }

    /// Three hosts with one instance each of a deployment `d`, and a stranger on host 1.
    fn goal() -> NetworkGoal {
        let peers = (1..=3).map(|number| PeerGoal {
            host: host(number),
            address: Ipv4Addr::new(10, 77, 0, number),
            overlay: Ipv4Addr::new(100, 64, 0, number),
            mac: [2, 0, 0, 0, 0, number],
            voter: true,
        });
        let route = |last, on, deployment: &str| RouteGoal {
            dip: dip(last),
            host: host(on),
            deployment_id: deployment.to_owned(),
            role: RoleName::new(if last == 13 { "db" } else { "web" }).unwrap(),
        };
        let backends = (1..=3).map(|number| Backend {
            vm: VmId(u64::from(number)),
            dip: dip(10 + number),
            host: host(number),
            probe: None,
            always: false,
        });
        let endpoint =
            EndpointGoal { udp: false, port: 80, local_port: 8080, backends: backends.collect(), access: vec![] };
        NetworkGoal {
            zone: "z".to_owned(),
            peers: peers.collect(),
            routes: vec![route(11, 1, "d"), route(12, 2, "d"), route(13, 3, "d"), route(20, 1, "other")],
            vips: vec![VipGoal {
                vip: Ipv4Addr::new(10, 78, 0, 2),
                endpoints: vec![endpoint],
                owners: vec![host(2), host(1), host(3)],
            }],
            guards: vec![],
            dns: vec![],
            voters: 4,
        }
    }

    fn plan_of(live: &[u8], healthy: &[u64]) -> Plan {
        plan_with(&goal(), live, healthy)
    }

    fn plan_with(goal: &NetworkGoal, live: &[u8], healthy: &[u64]) -> Plan {
        let guest = |last| LocalGuest { tap: format!("mft{last}"), dip: dip(last), mac: [2, 0, 10, 80, 0, last] };
        plan(&Inputs {
            host: &host(1),
            goal,
            guests: &[guest(11), guest(20)],
            health: &healthy.iter().map(|vm| (VmId(*vm), None)).collect(),
            live: &live.iter().map(|number| host(*number)).collect(),
            underlay: Some("10.77.0.0/24"),
        })
    }

    #[test]
    fn only_healthy_backends_on_live_hosts_are_in_rotation() {
        let rules = plan_of(&[1, 2, 3], &[1, 2]).rules;
        assert!(rules.contains("numgen inc mod 2 map { 0 : 10.80.0.11, 1 : 10.80.0.12 } : 8080"), "{rules}");
        let rules = plan_of(&[1, 3], &[1, 2, 3]).rules;
        assert!(rules.contains("map { 0 : 10.80.0.11, 1 : 10.80.0.13 }"), "{rules}");
        assert!(!plan_of(&[1, 2, 3], &[]).rules.contains("dnat ip to"));
    }

    #[test]
    fn the_first_live_owner_has_the_vip() {
        assert!(plan_of(&[1, 2, 3], &[]).vips.is_empty());
        assert_eq!(plan_of(&[1, 3], &[]).vips.len(), 1);
        assert!(plan_of(&[3], &[]).vips.is_empty());
    }

    #[test]
    fn deployments_talk_only_among_themselves() {
        let rules = plan_of(&[1, 2, 3], &[]).rules;
        assert!(
            rules.contains("ip daddr { 10.80.0.11 } ip saddr { 10.80.0.11, 10.80.0.12, 10.80.0.13 } accept"),
            "{rules}"
        );
        assert!(rules.contains("ip daddr { 10.80.0.20 } ip saddr { 10.80.0.20 } accept"), "{rules}");
    }

    #[test]
    fn the_first_rule_that_fits_decides_who_comes_in() {
        let rule = |permit, last, prefix| AccessRule { permit, network: Ipv4Addr::new(10, 1, 0, last), prefix };
        let rules_with = |access: Vec<AccessRule>| {
            let mut goal = goal();
            goal.vips[0].endpoints[0].access = access;
            let rules = plan_with(&goal, &[1, 2, 3], &[1]).rules;
            let doors = rules.lines().filter(|line| line.contains("ip daddr 10.78.0.2 tcp dport 80 "));
            doors.map(|line| line.trim().replace("ip daddr 10.78.0.2 tcp dport 80 ", "")).collect::<Vec<_>>()
        };
        let balance = "dnat ip to numgen inc mod 1 map { 0 : 10.80.0.11 } : 8080";
        assert_eq!(rules_with(vec![]), [balance]);
        assert_eq!(
            rules_with(vec![rule(false, 7, 32), rule(true, 0, 24)]),
            ["ip saddr 10.1.0.7/32 drop", &format!("ip saddr 10.1.0.0/24 {balance}"), "drop"],
            "where some are let in, others are not"
        );
        assert_eq!(rules_with(vec![rule(false, 7, 32)]), ["ip saddr 10.1.0.7/32 drop", balance]);
        assert_eq!(rules_with(vec![rule(true, 0, 0)]), [balance, "drop"]);
    }

    #[test]
    fn a_guarded_role_is_reached_as_the_rules_say_and_not_otherwise() {
        let role = |name: &str| RoleName::new(name).unwrap();
        let pass = Pass {
            from_roles: vec![role("db")],
            protocol: EndpointProtocol::Tcp,
            ports: Some(PortRange { min: 1000, max: 1010 }),
        };
        let guard = GuardGoal { deployment_id: "d".to_owned(), role: role("web"), passes: vec![pass] };
        let rules = plan_with(&NetworkGoal { guards: vec![guard], ..goal() }, &[1, 2, 3], &[]).rules;
        let to_own = rules.lines().filter(|line| line.contains("ip daddr { 10.80.0.11 }")).collect::<Vec<_>>();
        assert_eq!(to_own.len(), 1, "{to_own:?}");
        assert!(to_own[0].contains("ip saddr { 10.80.0.13 } tcp dport 1000-1010 accept"), "{to_own:?}");
        assert!(rules.contains("ip daddr { 10.80.0.20 } ip saddr { 10.80.0.20 } accept"), "others as before: {rules}");
    }

    #[test]
    fn routes_lead_to_taps_and_hosts() {
        let routes = plan_of(&[1], &[]).routes;
        assert_eq!(routes[&dip(11)], NextHop::Tap("mft11".to_owned()));
        assert_eq!(routes[&dip(13)], NextHop::Overlay(Ipv4Addr::new(100, 64, 0, 3)));
        assert_eq!(routes.len(), 4);
    }

    #[test]
    fn the_rules_are_what_they_were() {
        let rules = plan_of(&[1, 2, 3], &[1, 2, 3]).rules;
        assert_eq!(
            rules,
            include_str!("../tests/rules.golden"),
            "if this is meant, write it to crates/net/tests/rules.golden:\n{rules}"
        );
    }
}
