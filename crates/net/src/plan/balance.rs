//! Load balancing: a chain for each endpoint, and a map of addresses and ports that leads to it.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;
use std::net::{IpAddr, Ipv4Addr};

use mayfly_model::{Backend, Distribution, EndpointGoal};

use crate::plan::family::Family;
use crate::plan::ruleset::{Elements, Ruleset};
use crate::plan::{Inputs, LocalGuest};

/// Slots that clients are hashed to where they keep their backend: enough that shares differ by a few percent.
const SLOTS: u32 = 256;
/// The same on all hosts, so that clients keep their backend when a public address moves to another host.
const SEED: u32 = 0x6d61_7966;

/// The chain and the counter of an endpoint.
pub fn endpoint_name(vip: Ipv4Addr, endpoint: &EndpointGoal) -> String {
    format!("e_{vip}_{}_{}", protocol(endpoint), endpoint.port)
}

fn protocol(endpoint: &EndpointGoal) -> &'static str {
    if endpoint.udp { "udp" } else { "tcp" }
}

/// Whether new connections are sent to this backend.
pub(super) fn in_rotation(inputs: &Inputs<'_>, backend: &Backend) -> bool {
    let healthy = backend.always || inputs.health.contains(&(backend.vm, backend.probe.clone()));
    healthy && inputs.live.contains(&backend.host)
}

/// Writes all endpoints.
pub(super) fn endpoints(rules: &mut Ruleset, inputs: &Inputs<'_>, own: &BTreeMap<Ipv4Addr, &LocalGuest>) {
    for family in Family::of(inputs) {
        endpoints_of(rules, inputs, own, family);
    }
}

fn endpoints_of(rules: &mut Ruleset, inputs: &Inputs<'_>, own: &BTreeMap<Ipv4Addr, &LocalGuest>, family: Family) {
    let door = format!("type {} . inet_proto . inet_service", family.kind());
    let (mut doors, mut served) = (Elements::map(&format!("{door} : verdict;")), Elements::set(&format!("{door};")));
    let newer: BTreeSet<Ipv4Addr> =
        inputs.goal.routes.iter().filter(|route| route.ipv6).map(|route| route.dip).collect();
    let has = |dip: &Ipv4Addr| family == Family::V4 || newer.contains(dip);
    for vip in inputs.goal.vips.iter().filter(|vip| vip.ipv6 || family == Family::V4) {
        let address = family.address(vip.vip);
        for endpoint in &vip.endpoints {
            let protocol = protocol(endpoint);
            let here = endpoint.backends.iter().filter(|one| own.contains_key(&one.dip) && has(&one.dip));
            let guests = here.map(|one| format!("{} . {protocol} . {}", family.address(one.dip), endpoint.local_port));
            served.elements.extend(guests.map(|key| (key, String::new())));
            let up = endpoint.backends.iter().filter(|one| in_rotation(inputs, one)).map(|one| one.dip);
            let up: Vec<Ipv4Addr> = up.filter(has).collect();
            let counter = endpoint_name(vip.vip, endpoint);
            rules.counters.insert(counter.clone());
            // Without anybody behind it, the address itself refuses.
            if !up.is_empty() {
                let chain = family.named(&counter);
                rules.chains.insert(chain.clone(), admit(endpoint, &counter, &up, family));
                doors.elements.insert(format!("{address} . {protocol} . {}", endpoint.port), format!("goto {chain}"));
            }
        }
    }
    rules.sets.insert(family.named("doors"), doors);
    rules.sets.insert(family.named("served"), served);
}

/// Endpoints of UDP, and which of their backends are out of rotation.
pub(super) fn flows(inputs: &Inputs<'_>, family: Family) -> Vec<((IpAddr, u16), BTreeSet<IpAddr>)> {
    let vips = inputs.goal.vips.iter().filter(|vip| vip.ipv6 || family == Family::V4);
    let doors = vips.flat_map(|vip| vip.endpoints.iter().map(move |endpoint| (vip.vip, endpoint)));
    let doors = doors.filter(|(_, endpoint)| endpoint.udp).map(|(vip, endpoint)| {
        let out = endpoint.backends.iter().filter(|one| !in_rotation(inputs, one));
        ((family.address(vip), endpoint.port), out.map(|one| family.address(one.dip)).collect())
    });
    doors.collect()
}

/// Who is let in at an endpoint, and what becomes of them: the first rule that fits decides.
fn admit(endpoint: &EndpointGoal, counter: &str, up: &[Ipv4Addr], family: Family) -> String {
    let (protocol, ip) = (protocol(endpoint), family.word());
    // The protocol is known here, but nftables wants it said before it translates ports.
    let let_in = format!("meta l4proto {protocol} counter name \"{counter}\" {}\n", balance(endpoint, up, family));
    let mut text = String::new();
    for rule in &endpoint.access {
        let subnet = rule.subnet();
        let Some(network) = family.network(subnet) else { continue };
        if !subnet.is_everybody() {
            text.push_str(&format!("{ip} saddr {network} "));
        }
        text.push_str(if rule.permit { &let_in } else { "drop\n" });
    }
    // Where some are let in by name, the others are not.
    if endpoint.access.iter().any(|rule| rule.permit) {
        text.push_str("drop\n");
        return text;
    }
    text.push_str(&let_in);
    // A packet that is here at the very moment of a change finds the map of this rule gone, and would be refused.
    let anybody = family.door(up[0], endpoint.local_port);
    text.push_str(&format!("meta l4proto {protocol} dnat {ip} to {anybody}\n"));
    text
}

/// The choice of a backend.
fn balance(endpoint: &EndpointGoal, up: &[Ipv4Addr], family: Family) -> String {
    let ip = family.word();
    let by = match endpoint.distribution {
        Distribution::Connection => return sent("numgen inc", up.iter().copied(), endpoint.local_port, family),
        Distribution::SourceIpProtocol => format!("jhash {ip} saddr . meta l4proto"),
        Distribution::SourceIp => format!("jhash {ip} saddr . {ip} daddr"),
    };
    // A backend that comes or goes moves only the clients of its own slots.
    let slots = (0..SLOTS).filter_map(|slot| up.iter().copied().max_by_key(|dip| weight(slot, *dip)));
    let text = sent(&by, slots, endpoint.local_port, family);
    text.replacen(&format!("mod {SLOTS} "), &format!("mod {SLOTS} seed {SEED:#x} "), 1)
}

fn sent(by: &str, slots: impl Iterator<Item = Ipv4Addr>, port: u16, family: Family) -> String {
    let slot = |(slot, dip)| format!("{slot} : {}", family.address(dip));
    let (ip, slots) = (family.word(), slots.enumerate().map(slot).collect::<Vec<_>>());
    format!("dnat {ip} to {by} mod {} map {{ {} }} : {port}", slots.len(), slots.join(", "))
}

/// The rank of a backend for a slot: FNV-1a, which is the same in every build.
fn weight(slot: u32, dip: Ipv4Addr) -> u64 {
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
    hasher.write(&dip.octets());
    hasher.write(&slot.to_be_bytes());
    // The last bytes hardly reach the upper bits by themselves.
    let mixed = hasher.finish();
    (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

/// FNV-1a.
pub(super) struct Fnv(pub u64);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}
