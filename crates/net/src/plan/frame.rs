//! What is the same whatever is deployed: the hooks, in the order in which packets meet them, and who the guests are.

use std::fmt::Write;
use std::net::Ipv4Addr;

use mayfly_model::PeerGoal;

use crate::address::{
    DIP_NETWORK, DIP_PREFIX, GATEWAY, METADATA, OVERLAY_DEVICE, PLUGIN_PORT, TAP_PREFIX, UNDERLAY_DEVICE, WIRE_SERVER,
};
use crate::plan::ruleset::{Elements, Ruleset, TABLE};
use crate::plan::{Inputs, LocalGuest};
use crate::transit::Transit;

/// Packets from guests that carry what is not theirs.
pub(super) const SPOOFED: &str = "spoofed";
/// Packets to guests from those who may not talk to them.
pub(super) const ISOLATED: &str = "isolated";
/// Packets from guests to where they may not go.
pub(super) const DENIED: &str = "denied";

/// The sets whose elements come and go with time.
pub(super) const LEASED: &str = "leased";

/// The chains with hooks.
pub(super) fn frame(inputs: &Inputs<'_>) -> String {
    let mut text = String::new();
    hook(&mut text, "from_guest", "filter hook prerouting priority raw; policy accept", &from_guest());
    hook(
        &mut text,
        "balance",
        "nat hook prerouting priority dstnat; policy accept",
        &["ip daddr . meta l4proto . th dport vmap @doors".to_owned()],
    );
    hook(&mut text, "source", "nat hook postrouting priority srcnat; policy accept", &source(inputs));
    // What goes through the tunnel has less room than what the two ends agree on where one of them does not know of it.
    let syn = "tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu";
    let clamp = match inputs.transit {
        Transit::Vxlan => {
            vec![format!("oifname \"{OVERLAY_DEVICE}\" {syn}"), format!("iifname \"{OVERLAY_DEVICE}\" {syn}")]
        }
        Transit::Routed => Vec::new(),
    };
    hook(&mut text, "clamp", "filter hook forward priority mangle; policy accept", &clamp);
    hook(&mut text, "forward", "filter hook forward priority filter; policy drop", &forward(inputs));
    hook(&mut text, "input", "filter hook input priority filter; policy accept", &input());
    text
}

fn hook(text: &mut String, name: &str, kind: &str, rules: &[String]) {
    let _ = writeln!(text, "add chain {TABLE} {name} {{ type {kind}; }}\nflush chain {TABLE} {name}");
    for rule in rules {
        let _ = writeln!(text, "add rule {TABLE} {name} {rule}");
    }
}

/// Packets from a guest have to carry its own addresses, and it has to be leased to this host.
fn from_guest() -> Vec<String> {
    let drop = format!("counter name {SPOOFED} drop");
    vec![
        format!("iifname != \"{TAP_PREFIX}*\" accept"),
        format!("meta nfproto ipv6 {drop}"),
        format!("iifname . ether saddr != @cards {drop}"),
        "ip saddr 0.0.0.0 udp sport 68 udp dport 67 accept".to_owned(),
        format!("iifname . ip saddr != @places {drop}"),
        format!("ip saddr != @{LEASED} drop"),
    ]
}

/// The device to other hosts' guests.
fn wire(transit: Transit) -> &'static str {
    match transit {
        Transit::Vxlan => OVERLAY_DEVICE,
        Transit::Routed => UNDERLAY_DEVICE,
    }
}

/// The address by which other hosts' guests know a host that balances connections to them.
pub(super) fn known_as(transit: Transit, peer: &PeerGoal) -> Ipv4Addr {
    match transit {
        Transit::Vxlan => peer.overlay,
        Transit::Routed => peer.address,
    }
}

fn source(inputs: &Inputs<'_>) -> Vec<String> {
    let dips = format!("{DIP_NETWORK}/{DIP_PREFIX}");
    let own = inputs.goal.peers.iter().find(|peer| peer.host == *inputs.host);
    let own = own.map(|peer| known_as(inputs.transit, peer));
    let wire = wire(inputs.transit);
    // Answers have to come back through the host that balanced the connection.
    let through = own.map(|own| format!("ct status dnat oifname \"{wire}\" snat ip to {own}"));
    let near = format!("ct status dnat oifname \"{TAP_PREFIX}*\" ip saddr {dips} snat ip to {GATEWAY}");
    let away = format!("ip saddr {dips} ip daddr != {dips} oifname \"{UNDERLAY_DEVICE}\" masquerade");
    through.into_iter().chain([near, away]).collect()
}

fn forward(inputs: &Inputs<'_>) -> Vec<String> {
    let dips = format!("{DIP_NETWORK}/{DIP_PREFIX}");
    let (guest, wire) = (format!("\"{TAP_PREFIX}*\""), format!("\"{}\"", wire(inputs.transit)));
    let served = "ip daddr . meta l4proto . th dport @served";
    let mut rules = vec![
        format!("oifname {guest} ip daddr != @{LEASED} drop"),
        // What was open before the guest's policy changed.
        format!("iifname {guest} ct direction original ct state established ip saddr vmap @exits"),
        format!("oifname {guest} ct direction reply ct state established ip daddr vmap @exits"),
        "ct state established,related accept".to_owned(),
        format!("iifname {guest} ip saddr vmap @exits"),
        // To a guest of this host: from its own deployment, or through a load balancer to one of its endpoints.
        format!("iifname {{ {guest}, {wire} }} oifname {guest} ip daddr vmap @homes"),
        format!("oifname {guest} ct status dnat {served} accept"),
        format!("oifname {guest} iifname {wire} ip saddr @hosts {served} accept"),
        format!("oifname {guest} counter name {ISOLATED} drop"),
        // To another host: to its own deployment, or through a load balancer. The receiver judges again.
        format!("iifname {guest} oifname {wire} ip daddr {dips} ct status dnat accept"),
        format!("iifname {guest} oifname {wire} ip saddr vmap @friends"),
        // Also to addresses that nobody has, which would leave the fabric.
        format!("iifname {guest} ip daddr {dips} counter name {ISOLATED} drop"),
        format!("iifname \"{UNDERLAY_DEVICE}\" oifname {wire} ip daddr {dips} ct status dnat accept"),
    ];
    if let Some(underlay) = inputs.underlay {
        rules.push(format!("iifname {guest} oifname \"{UNDERLAY_DEVICE}\" ip daddr != {underlay} accept"));
    }
    rules
}

/// What may reach the host itself.
fn input() -> Vec<String> {
    vec![
        "ct state established,related accept".to_owned(),
        // A public address with nobody behind it refuses, so that clients need not wait.
        "ip daddr @vips meta l4proto tcp reject with tcp reset".to_owned(),
        "ip daddr @vips drop".to_owned(),
        // Guests of other hosts have no business with this one.
        format!("iifname \"{OVERLAY_DEVICE}\" drop"),
        format!("iifname != \"{TAP_PREFIX}*\" ip saddr {DIP_NETWORK}/{DIP_PREFIX} drop"),
        format!("iifname != \"{TAP_PREFIX}*\" accept"),
        "udp dport 67 accept".to_owned(),
        format!("ip daddr {{ {WIRE_SERVER}, {METADATA} }} tcp dport 80 accept"),
        format!("ip daddr {WIRE_SERVER} tcp dport {PLUGIN_PORT} accept"),
        format!("ip daddr {WIRE_SERVER} meta l4proto {{ tcp, udp }} th dport 53 accept"),
        format!("ip daddr {{ {GATEWAY}, {WIRE_SERVER} }} icmp type echo-request accept"),
        format!("counter name {ISOLATED} drop"),
    ]
}

/// Who the guests are, which addresses are public, and the counters that are always there.
pub(super) fn guests(rules: &mut Ruleset, inputs: &Inputs<'_>) {
    let guests = inputs.guests;
    rules.kept.insert(LEASED.to_owned(), "type ipv4_addr; flags timeout;".to_owned());
    let cards = Elements::set("type ifname . ether_addr;").with(guests.iter().map(card));
    let places = Elements::set("type ifname . ipv4_addr;").with(guests.iter().map(place));
    let vips = Elements::set("type ipv4_addr;").with(inputs.goal.vips.iter().map(|vip| vip.vip.to_string()));
    let hosts = inputs.goal.peers.iter().map(|peer| known_as(inputs.transit, peer).to_string());
    let hosts = Elements::set("type ipv4_addr;").with(hosts);
    for (name, set) in [("cards", cards), ("places", places), ("vips", vips), ("hosts", hosts)] {
        rules.sets.insert(name.to_owned(), set);
    }
    rules.counters.extend([SPOOFED, ISOLATED, DENIED].map(str::to_owned));
}

fn card(guest: &LocalGuest) -> String {
    format!("\"{}\" . {}", guest.tap, guest.mac.map(|byte| format!("{byte:02x}")).join(":"))
}

fn place(guest: &LocalGuest) -> String {
    format!("\"{}\" . {}", guest.tap, guest.dip)
}

/// What guests may say by ARP: their own hardware address, and their own address or (when they look whether it is
/// taken) none.
pub(super) fn arp(guests: &[LocalGuest]) -> String {
    let mut text = String::from("add table arp mayfly\ndelete table arp mayfly\ntable arp mayfly {\n");
    text.push_str(" chain input { type filter hook input priority 0; policy accept;\n");
    let _ = writeln!(text, "  iifname != \"{TAP_PREFIX}*\" accept");
    if guests.is_empty() {
        text.push_str("  drop\n }\n}\n");
        return text;
    }
    let cards: Vec<String> = guests.iter().map(card).collect();
    let places: Vec<String> = guests.iter().map(place).collect();
    let _ = writeln!(text, "  iifname . arp saddr ether != {{ {} }} drop", cards.join(", "));
    let _ = writeln!(text, "  arp saddr ip 0.0.0.0 accept");
    let _ = writeln!(text, "  iifname . arp saddr ip != {{ {} }} drop\n }}\n}}", places.join(", "));
    text
}
