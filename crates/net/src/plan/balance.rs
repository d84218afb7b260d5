//! Load balancing in the host: a chain for each endpoint, and a map of addresses and ports that leads to it.
//!
//! What comes for an endpoint with backends here, from outside or from the host that has the public address, goes to one of those
//! (`near`), and the client is who the guest sees. Everything else goes to any backend (`doors`), and answers come back the same way.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use mayfly_model::{AccessRule, EndpointGoal, Transit};

use crate::address::{OVERLAY_DEVICE, UNDERLAY_DEVICE};
use crate::flows::Entrance;
use crate::plan::family::Family;
use crate::plan::ruleset::{Elements, Kind, Ruleset};
use crate::plan::slots::{Choice, Door, HERE, door, mark, marks, protocol};
use crate::plan::{Inputs, LocalGuest};

/// The set of public addresses that this host had a moment ago, whose elements go with time.
pub(crate) const MOVED: &str = "moved";
/// The map of backends' addresses.
const DIPS: &str = "dips";

/// The chain and the counter of an endpoint.
pub fn endpoint_name(vip: Ipv4Addr, endpoint: &EndpointGoal) -> String {
    format!("e_{vip}_{}_{}", protocol(endpoint), endpoint.port)
}

/// The rules of the hook at which packets meet an endpoint.
pub(super) fn hook(inputs: &Inputs<'_>, family: Family) -> Vec<String> {
    let doors = format!("{} vmap @{}", door(family), family.named("doors"));
    if family != Family::V4 {
        return vec![doors];
    }
    let near = format!("{} vmap @near", door(family));
    // What another host has handed on.
    let handed_on = match inputs.transit {
        Transit::Vxlan | Transit::Wireguard => format!("iifname \"{OVERLAY_DEVICE}\""),
        Transit::Routed => format!("iifname \"{UNDERLAY_DEVICE}\" ip daddr != @owned"),
    };
    let mut rules = vec![format!("{handed_on} {near}")];
    if inputs.transit == Transit::Routed {
        // An address that has just moved: its clients will say again to its new host what they said here.
        rules.insert(0, format!("{handed_on} ip daddr @{MOVED} tcp flags & (syn | ack) != syn drop"));
    }
    if inputs.direct_return {
        // What was found to be for a guest of this host when it came in.
        rules.push(format!("iifname \"{UNDERLAY_DEVICE}\" meta mark != 0 {near}"));
    }
    rules.push(doors);
    rules
}

/// Writes all endpoints over one version of IP.
pub(super) fn endpoints(
    rules: &mut Ruleset,
    (doors, choice): (&[Door<'_>], &Choice),
    own: &BTreeMap<Ipv4Addr, &LocalGuest>,
    family: Family,
) {
    let key = format!("type {} . inet_proto . inet_service", family.kind());
    let mut open = Elements::map(&format!("{key} : verdict;"));
    let mut served = Elements::set(&format!("{key};"));
    let mut dips = Elements::map(&format!("type mark : {};", family.kind()));
    for door in doors {
        let name = endpoint_name(door.vip.vip, door.endpoint);
        rules.counters.insert(name.clone());
        for dip in door.all() {
            let address = family.address(dip);
            dips.elements.insert(format!("{:#x}", mark(dip)), address.to_string());
            if own.contains_key(&dip) {
                let guest = format!("{address} . {} . {}", door.protocol(), door.endpoint.local_port);
                served.elements.insert(guest, String::new());
            }
        }
        // Without anybody behind it, the address itself refuses.
        if let Some(anybody) = door.up.first() {
            let chain = family.named(&name);
            let text = format!("jump {}\n", door.chain(family)) + &sent(door, &name, *anybody, family);
            rules.chains.insert(chain.clone(), admit(door, &text, family));
            open.elements.insert(door.key.clone(), format!("goto {chain}"));
        }
    }
    choice.write(rules, "return");
    for (name, set) in [("doors", open), ("served", served), (DIPS, dips)] {
        rules.sets.insert(family.named(name), set);
    }
}

/// Writes what becomes of connections that were found to be for guests of this host: over IPv4.
pub(super) fn near(
    rules: &mut Ruleset,
    inputs: &Inputs<'_>,
    doors: &[Door<'_>],
    own: &BTreeMap<Ipv4Addr, &LocalGuest>,
) {
    let owned = inputs.goal.vips.iter().filter(|vip| inputs.owns(vip)).map(|vip| vip.vip.to_string());
    rules.kept.insert(MOVED.to_owned(), (Kind::Set, "type ipv4_addr; flags timeout;".to_owned()));
    rules.sets.insert("owned".to_owned(), Elements::set("type ipv4_addr;").with(owned));
    let mut near = Elements::map("type ipv4_addr . inet_proto . inet_service : verdict;");
    for door in doors {
        let mut near_by = door.up.iter().filter(|dip| own.contains_key(dip));
        let Some(here) = near_by.next() else { continue };
        let name = endpoint_name(door.vip.vip, door.endpoint);
        let anybody = format!("meta mark set {:#x}\n", mark(*here));
        let choice = match near_by.next() {
            None => anybody,
            // The host that sent it here may have remembered one that would not be chosen now.
            Some(_) => format!("jump {}\nmeta mark != @{HERE} {anybody}", door.chain(Family::V4)),
        };
        let text = choice + &sent(door, &name, *here, Family::V4);
        let chain = format!("n{name}");
        rules.chains.insert(chain.clone(), admit(door, &text, Family::V4));
        // A packet that is here at the very moment of a change may find the element and its chain still empty, and goes on.
        near.elements.insert(door.key.clone(), format!("jump {chain}"));
    }
    rules.sets.insert("near".to_owned(), near);
    rules.sets.insert(HERE.to_owned(), marks(own));
}

/// Sends a connection to the backend that was chosen.
fn sent(door: &Door<'_>, counter: &str, anybody: Ipv4Addr, family: Family) -> String {
    let (ip, dips, port) = (family.word(), family.named(DIPS), door.endpoint.local_port);
    // The protocol is known here, but nftables wants it said before it translates ports.
    let protocol = format!("meta l4proto {}", door.protocol());
    let chosen = format!("{protocol} counter name \"{counter}\" dnat {ip} to meta mark map @{dips}:{port}\n");
    // A packet that is here at the very moment of a change may find an element gone and its successor not there yet.
    chosen + &format!("{protocol} dnat {ip} to {}\n", family.door(anybody, port))
}

/// What decides whether flows of UDP stay where they are.
pub(super) fn entrances(
    doors: &[Door<'_>],
    family: Family,
) -> impl Iterator<Item = (Entrance, (Vec<AccessRule>, BTreeSet<IpAddr>))> {
    doors.iter().filter(|door| door.endpoint.udp).map(move |door| {
        let up = door.up.iter().map(|dip| family.address(*dip)).collect();
        let entrance = Entrance { address: family.address(door.vip.vip), port: door.endpoint.port };
        (entrance, (door.endpoint.access.clone(), up))
    })
}

/// Who is let in at an endpoint, and what becomes of them: the first rule that fits decides.
fn admit(door: &Door<'_>, sent: &str, family: Family) -> String {
    let ip = family.word();
    let access = &door.endpoint.access;
    let mut text = String::new();
    // Nobody who is kept out is chosen for.
    for rule in access {
        let subnet = rule.subnet();
        let Some(network) = family.network(subnet) else { continue };
        let who = if subnet.is_everybody() { String::new() } else { format!("{ip} saddr {network} ") };
        if rule.permit {
            text.extend(sent.lines().map(|line| format!("{who}{line}\n")));
        } else {
            text.push_str(&format!("{who}drop\n"));
        }
    }
    // Where some are let in by name, the others are not.
    text.push_str(if access.iter().any(|rule| rule.permit) { "drop\n" } else { sent });
    text
}
