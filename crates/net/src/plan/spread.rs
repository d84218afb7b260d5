//! Load balancing at the door of the host that has a public address: what comes in from outside for a backend of another host is
//! handed on as it is, before anything else looks at it. That host leads it to its guest, and answers the client itself (direct
//! return), so of what is said only one half passes here.
//!
//! As the answers are not seen, the kernel's table of connections does not help; a map remembers who is led where, and it
//! has to hold only until an established connection ends: whoever is not in it is led by hash, which mostly says the same.
//!
//! Over IPv4 only: Debian 12's libnftables (1.0.6) ends the process at an `update` of a map whose keys have more than 16 bytes.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use mayfly_model::Transit;

use crate::address::UNDERLAY_DEVICE;
use crate::plan::family::Family;
use crate::plan::frame::{hook_in, known_as, wire};
use crate::plan::ruleset::{Elements, INGRESS_TABLE, Kind, Ruleset};
use crate::plan::slots::{Choice, Door, HERE, UP, door, mark, marks};
use crate::plan::{Inputs, LocalGuest, leaving};

/// Flows that are remembered at the most, of TCP and of UDP; a flood takes the room from others, which are led by hash then.
const ROOM: u32 = 1 << 20;
/// How long a connection of TCP is remembered of which nothing is heard: the longest that the original platform waits.
const QUIET: &str = "30m";
/// The same of one that was heard of once, which costs a flood least.
const OPENING: &str = "30s";
/// The same after its client has said that it has nothing more to say.
const CLOSING: &str = "60s";
/// The same of UDP, as in the kernel's table.
const UDP: &str = "2m";
/// The set of the numbers of guests that are being drained.
const LEAVING: &str = "leaving";
/// What holds for packets of which no map knew anything.
const NEW: &str = "meta mark 0x0";
/// A flow, as a key of the maps that remember.
const FLOW: &str = "ip saddr . th sport . ip daddr . th dport";

/// Writes the table.
pub(super) fn spread(
    inputs: &Inputs<'_>,
    own: &BTreeMap<Ipv4Addr, &LocalGuest>,
    (doors, choice): (&[Door<'_>], &Choice),
) -> Ruleset {
    let mut rules = Ruleset::new(INGRESS_TABLE);
    // Without a place of its own, the host has no way to the others.
    if !inputs.direct_return || !inputs.goal.peers.iter().any(|peer| peer.host == *inputs.host) {
        return rules;
    }
    let kind = format!("filter hook ingress device \"{UNDERLAY_DEVICE}\" priority -100; policy accept");
    // A frame that is flooded to all hosts is for one of them.
    let entry = format!("meta pkttype host {} vmap @doors", door(Family::V4));
    hook_in(INGRESS_TABLE, &mut rules.frame, "spread", &kind, &[entry]);
    // Where packets come from other hosts by the same device, only the one that has the address hands them on.
    let hands_on = |door: &&Door<'_>| match inputs.transit {
        Transit::Vxlan | Transit::Wireguard => true,
        Transit::Routed => inputs.owns(door.vip),
    };
    let mut open = Elements::map("type ipv4_addr . inet_proto . inet_service : verdict;");
    for door in doors.iter().filter(hands_on) {
        let pick = door.chain(Family::V4);
        let name = format!("{}_{}", pick.replace("pick", "enter"), door.protocol());
        open.elements.insert(door.key.clone(), format!("goto {name}"));
        if !door.endpoint.udp {
            rules.chains.entry(pick.replace("pick", "start")).or_insert_with(|| start(&pick));
        }
        rules.chains.entry(name).or_insert_with(|| enter(door.endpoint.udp, &pick));
    }
    rules.sets.insert("doors".to_owned(), open);
    let hosts = inputs.goal.peers.iter().map(|peer| peer.address.to_string());
    rules.sets.insert("hosts".to_owned(), Elements::set("type ipv4_addr;").with(hosts));
    let leaving = leaving(inputs).map(|route| format!("{:#x}", mark(route.dip)));
    rules.sets.insert(LEAVING.to_owned(), Elements::set("type mark;").with(leaving));
    choice.write(&mut rules, "goto chosen");
    remember(&mut rules);
    ways(&mut rules, inputs, own);
    rules
}

/// What packets of an endpoint meet first.
fn enter(udp: bool, pick: &str) -> String {
    // Pieces do not say what they belong to; the host puts them together. A host that is a client itself does not take what comes
    // back to it as its own words.
    let whole = "ip frag-off & 0x3fff != 0 accept\nip saddr @hosts accept";
    if udp {
        // Who keeps a port keeps the backend, until that is not well; also one that is being drained.
        return format!(
            "{whole}\nmeta mark set {FLOW} map @flows_udp {} jump known\n{NEW} goto {pick}\n\
             meta mark @{LEAVING} jump known\n{}goto {pick}\n",
            is_up(),
            forget("flows_udp")
        );
    }
    // What is said to one that is gone goes to any of them, by way of this host, and is refused.
    format!(
        "{whole}\ntcp flags & (syn | ack) == syn goto {}\nmeta mark set {FLOW} map @closing jump closed\n\
         meta mark set {FLOW} map @flows jump known\n\
         meta mark != 0x0 accept\ngoto {pick}\n",
        pick.replace("pick", "start")
    )
}

/// What becomes of a new connection of TCP: its ports may have been another's a moment ago, of which packets may still come.
fn start(pick: &str) -> String {
    let known = |map, then| format!("meta mark set {FLOW} map @{map} {} jump {then}\n", is_up());
    // Where the ports are still among those that are closing, which have little time, the other map has it for long.
    let known = known("closing", "known") + &known("flows", "chosen");
    format!("{known}{NEW} goto {pick}\n{}{}goto {pick}\n", forget("closing"), forget("flows"))
}

fn is_up() -> String {
    format!("{} . meta mark @{UP}", door(Family::V4))
}

/// What stands there already would stay. It is called seldom for what is there: kernels before 6.5 never free it.
fn forget(map: &str) -> String {
    format!("delete @{map} {{ {FLOW} : meta mark }}\n")
}

fn keep(map: &str, time: &str) -> String {
    format!("update @{map} {{ {FLOW} timeout {time} : meta mark }}\n")
}

/// Who is led where.
fn remember(rules: &mut Ruleset) {
    for (name, time) in [("flows", QUIET), ("flows_udp", UDP), ("closing", CLOSING)] {
        let key = "type ipv4_addr . inet_service . ipv4_addr . inet_service : mark";
        let declaration = format!("{key}; size {ROOM}; flags dynamic,timeout; timeout {time};");
        rules.kept.insert(name.to_owned(), (Kind::Map, declaration));
    }
    let either =
        |tcp: &str| format!("meta l4proto tcp {}meta l4proto udp {}", keep("flows", tcp), keep("flows_udp", UDP));
    rules.chains.insert("chosen".to_owned(), either(OPENING) + "goto away\n");
    let ends = "tcp flags & (fin | rst) != 0x0 goto close\n".to_owned();
    rules.chains.insert("known".to_owned(), ends + &either(QUIET) + "goto away\n");
    rules.chains.insert("close".to_owned(), keep("flows", CLOSING) + "goto closed\n");
    rules.chains.insert("closed".to_owned(), keep("closing", CLOSING) + "goto away\n");
}

/// The ways to all that can be chosen, by their marks.
fn ways(rules: &mut Ruleset, inputs: &Inputs<'_>, own: &BTreeMap<Ipv4Addr, &LocalGuest>) {
    let peers: BTreeMap<_, _> = inputs.goal.peers.iter().map(|peer| (&peer.host, peer)).collect();
    let mut hops = Elements::map("type mark : ipv4_addr;");
    let routes = inputs.goal.routes.iter().filter(|route| route.host != *inputs.host);
    hops.elements.extend(routes.filter_map(|route| {
        let peer = peers.get(&route.host)?;
        Some((format!("{:#x}", mark(route.dip)), known_as(inputs.transit, peer, Family::V4).to_string()))
    }));
    let hand_on = format!("fwd ip to meta mark map @hops device \"{}\"\n", wire(inputs.transit));
    // Two hosts that contradict each other do not do so for ever.
    rules.chains.insert("away".to_owned(), format!("ip ttl < 2 drop\n{hand_on}meta mark @{HERE} accept\n"));
    rules.sets.insert("hops".to_owned(), hops);
    rules.sets.insert(HERE.to_owned(), marks(own));
}
