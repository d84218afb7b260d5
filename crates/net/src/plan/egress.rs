//! Where guests may go: a chain for each policy, and a map of guests that leads to it.
//!
//! Destinations are compared with what the guest asked for, before a load balancer chose: so a service of the fabric is
//! named like any other. Names are open as the addresses that the host's DNS has told this deployment.
//!
//! A connection that a policy lets pass is marked in the kernel's table of connections with the entry that let it pass, and is
//! looked at no more while the policy has that entry. When the guest has another policy, packets of open connections, in
//! both directions, that bear none of its marks are judged anew: what it may not reach any more ends then, not when it is
//! done. So an entry that stays in the list keeps its connections, even if it is a name whose addresses are forgotten.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::hash::Hasher;

use mayfly_model::{Destination, Egress, Subnet, Target};

use crate::plan::family::{Family, V6};
use crate::plan::frame::DENIED;
use crate::plan::isolation::deployment_set;
use crate::plan::ruleset::{Elements, Kind, Ruleset};
use crate::plan::slots::Fnv;
use crate::plan::{Inputs, LocalGuest};

/// Writes the policies of this host's guests.
pub(super) fn exits(rules: &mut Ruleset, inputs: &Inputs<'_>) {
    for family in Family::of(inputs) {
        exits_of(rules, inputs, family);
    }
}

fn exits_of(rules: &mut Ruleset, inputs: &Inputs<'_>, family: Family) {
    let mut exits = Elements::map(&format!("type {} : verdict;", family.kind()));
    for guest in inputs.guests.iter().filter(|guest| guest.ipv6 || family == Family::V4) {
        let destinations = match &guest.egress {
            Egress::Allow => continue,
            Egress::Deny => &[][..],
            Egress::Only(destinations) => destinations,
        };
        let chain = family.named(&format!("x_{}", policy_name(&guest.deployment_id, &guest.egress)));
        exits.elements.insert(family.address(guest.dip).to_string(), format!("jump {chain}"));
        if !rules.chains.contains_key(&chain) {
            let text = policy(rules, guest, destinations, family);
            rules.chains.insert(chain, text);
        }
    }
    rules.sets.insert(family.named("exits"), exits);
}

fn policy(rules: &mut Ruleset, guest: &LocalGuest, destinations: &[Destination], family: Family) -> String {
    let (mut text, ip) = (String::new(), family.word());
    let mark = |destination: &Destination| {
        // Never nothing, which all others bear.
        let mark = hash(&[&guest.deployment_id, &destination.to_string()]) as u32 | 1;
        format!("{mark:#010x}")
    };
    let marks: BTreeSet<String> = destinations.iter().map(mark).collect();
    if !marks.is_empty() {
        let marks = marks.into_iter().collect::<Vec<_>>().join(", ");
        let _ = writeln!(text, "ct mark {{ {marks} }} return");
    }
    let own = deployment_set(&guest.deployment_id, family);
    if rules.sets.contains_key(&own) {
        // Among themselves, the receiver judges.
        let _ = writeln!(text, "ct original {ip} daddr @{own} return");
    }
    for destination in destinations {
        let target = match &destination.target {
            Target::Network { address, prefix } => {
                let subnet = Subnet { address: *address, prefix: *prefix };
                match family.network(subnet) {
                    None => continue,
                    Some(_) if subnet.is_everybody() => String::new(),
                    Some(network) => format!("ct original {ip} daddr {network} "),
                }
            }
            Target::Name(_) | Target::Below(_) => {
                let set = family.named(&learned_set(&guest.deployment_id, &destination.target));
                let target = format!("ct original {ip} daddr @{set} ");
                rules.kept.insert(set, (Kind::Set, format!("type {}; flags timeout;", family.kind())));
                target
            }
        };
        let _ = writeln!(text, "{target}{}ct mark set {} return", what(destination), mark(destination));
    }
    // On an open connection nobody waits for an answer: both sides have to be told.
    let _ = writeln!(text, "ct state established meta l4proto tcp counter name {DENIED} reject with tcp reset");
    let _ = writeln!(text, "counter name {DENIED} reject with icmpx type admin-prohibited");
    text
}

fn what(destination: &Destination) -> String {
    let protocol = match (destination.protocol, destination.ports) {
        (Some(protocol), _) => format!("meta l4proto {} ", protocol.as_str()),
        (None, Some(_)) => "meta l4proto { tcp, udp } ".to_owned(),
        (None, None) => String::new(),
    };
    match destination.ports {
        Some(ports) => format!("{protocol}ct original proto-dst {}-{} ", ports.min, ports.max),
        None => protocol,
    }
}

/// The set of IPv4 addresses that guests of this deployment have been told for such a destination; that of IPv6 addresses is
/// called as [`learned_set6`] says. It outlives a policy, if the
/// next one has the destination too.
pub fn learned_set(deployment_id: &str, target: &Target) -> String {
    format!("n_{deployment_id}_{:016x}", hash(&[deployment_id, &target.to_string()]))
}

/// The set of IPv6 addresses that goes with one of IPv4 addresses.
pub fn learned_set6(set: &str) -> String {
    format!("{V6}{set}")
}

/// The policy's name: two that are equal share one.
fn policy_name(deployment_id: &str, egress: &Egress) -> String {
    format!("{deployment_id}_{:016x}", hash(&[deployment_id, &egress.to_string()]))
}

fn hash(parts: &[&str]) -> u64 {
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
    for part in parts {
        hasher.write(part.as_bytes());
        hasher.write(&[0]);
    }
    hasher.finish()
}
