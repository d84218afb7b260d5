//! Load balancing: a chain for each endpoint, and a map of addresses and ports that leads to it.

use std::collections::BTreeMap;
use std::hash::Hasher;
use std::net::Ipv4Addr;

use mayfly_model::{Backend, Distribution, EndpointGoal};

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
    let mut doors = Elements::map("type ipv4_addr . inet_proto . inet_service : verdict;");
    let mut served = Elements::set("type ipv4_addr . inet_proto . inet_service;");
    for vip in &inputs.goal.vips {
        for endpoint in &vip.endpoints {
            let protocol = protocol(endpoint);
            let here = endpoint.backends.iter().filter(|backend| own.contains_key(&backend.dip));
            let guests = here.map(|backend| format!("{} . {protocol} . {}", backend.dip, endpoint.local_port));
            served.elements.extend(guests.map(|key| (key, String::new())));
            let up: Vec<Ipv4Addr> =
                endpoint.backends.iter().filter(|one| in_rotation(inputs, one)).map(|one| one.dip).collect();
            let name = endpoint_name(vip.vip, endpoint);
            rules.counters.insert(name.clone());
            // Without anybody behind it, the address itself refuses.
            if !up.is_empty() {
                rules.chains.insert(name.clone(), admit(endpoint, &name, &balance(endpoint, &up), up[0]));
                doors.elements.insert(format!("{} . {protocol} . {}", vip.vip, endpoint.port), format!("goto {name}"));
            }
        }
    }
    rules.sets.insert("doors".to_owned(), doors);
    rules.sets.insert("served".to_owned(), served);
}

/// Who is let in at an endpoint, and what becomes of them: the first rule that fits decides. `anybody` is one of the
/// backends.
fn admit(endpoint: &EndpointGoal, name: &str, balance: &str, anybody: Ipv4Addr) -> String {
    // The protocol is known here, but nftables wants it said before it translates ports.
    let let_in = format!("meta l4proto {} counter name \"{name}\" {balance}\n", protocol(endpoint));
    let mut text = String::new();
    for rule in &endpoint.access {
        if rule.prefix > 0 {
            text.push_str(&format!("ip saddr {}/{} ", rule.network, rule.prefix));
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
    let port = endpoint.local_port;
    text.push_str(&format!("meta l4proto {} dnat ip to {anybody}:{port}\n", protocol(endpoint)));
    text
}

/// The choice of a backend.
fn balance(endpoint: &EndpointGoal, up: &[Ipv4Addr]) -> String {
    let by = match endpoint.distribution {
        Distribution::Connection => return sent("numgen inc", up.iter().copied(), endpoint.local_port),
        Distribution::SourceIpProtocol => "jhash ip saddr . meta l4proto",
        Distribution::SourceIp => "jhash ip saddr . ip daddr",
    };
    // A backend that comes or goes moves only the clients of its own slots.
    let slots = (0..SLOTS).filter_map(|slot| up.iter().copied().max_by_key(|dip| weight(slot, *dip)));
    let text = sent(by, slots, endpoint.local_port);
    text.replacen(&format!("mod {SLOTS} "), &format!("mod {SLOTS} seed {SEED:#x} "), 1)
}

fn sent(by: &str, slots: impl Iterator<Item = Ipv4Addr>, port: u16) -> String {
    let slots: Vec<String> = slots.enumerate().map(|(slot, dip)| format!("{slot} : {dip}")).collect();
    format!("dnat ip to {by} mod {} map {{ {} }} : {port}", slots.len(), slots.join(", "))
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
