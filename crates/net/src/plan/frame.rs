//! What is the same whatever is deployed: the hooks, in the order in which packets meet them, and who the guests are.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::IpAddr;

use mayfly_model::{PeerGoal, Transit};

use crate::address::{
    GATEWAY, METADATA, OVERLAY_DEVICE, PLUGIN_PORT, TAP_GATEWAY, TAP_PREFIX, UNDERLAY_DEVICE, WIRE_SERVER,
};
use crate::plan::family::Family;
use crate::plan::ruleset::{Elements, Kind, Ruleset, TABLE};
use crate::plan::{Inputs, LocalGuest, balance};

/// Packets from guests that carry what is not theirs.
pub(super) const SPOOFED: &str = "spoofed";
/// Packets to guests from those who may not talk to them.
pub(super) const ISOLATED: &str = "isolated";
/// Packets from guests to where they may not go.
pub(super) const DENIED: &str = "denied";

/// The set of addresses that this host's lease covers, whose elements come and go with time.
pub(crate) const LEASED: &str = "leased";
/// The table of what is said by ARP.
pub(crate) const ARP_TABLE: &str = "arp mayfly";
/// The set of public addresses that this host answers for, whose elements come and go with time.
pub(crate) const ANSWERED: &str = "answered";
/// The set of all hosts' addresses in the data centre's network.
const MACHINES: &str = "machines";
/// The set of the taps of guests that have IPv6.
const V6_TAPS: &str = "v6_taps";
/// Leads each such tap to a chain that knows who speaks there: a guest has few addresses of the link, and each that the host
/// hears of takes room in a table that all share.
const V6_LINKS: &str = "v6_links";
/// How many addresses of the link a guest may have within an hour.
const LINK_ADDRESSES: u32 = 8;
/// Where guests ask for their IPv6 addresses: all servers of the link.
const SERVERS: &str = "ff02::1:2";
/// How neighbours find each other (RFC 4861).
const NEIGHBOURS: &str = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert }";

/// The chains with hooks.
pub(super) fn frame(inputs: &Inputs<'_>) -> String {
    let mut text = String::new();
    hook(&mut text, "from_guest", "filter hook prerouting priority raw; policy accept", &from_guest(inputs));
    let doors: Vec<String> = Family::of(inputs).flat_map(|family| balance::hook(inputs, family)).collect();
    hook(&mut text, "balance", "nat hook prerouting priority dstnat; policy accept", &doors);
    hook(&mut text, "source", "nat hook postrouting priority srcnat; policy accept", &source(inputs));
    // What goes through the tunnel has less room than what the two ends agree on where one of them does not know of it.
    let syn = "tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu";
    let mut clamp = match inputs.transit {
        Transit::Vxlan | Transit::Wireguard => {
            vec![format!("oifname \"{OVERLAY_DEVICE}\" {syn}"), format!("iifname \"{OVERLAY_DEVICE}\" {syn}")]
        }
        Transit::Routed => Vec::new(),
    };
    // What a client may send comes through the tunnel, though the answer does not go there. Whoever complains of an answer that is
    // too large complains to the host that has the public address, not to the one that sent it; so answers may be cut.
    let answer = format!("iifname \"{TAP_PREFIX}*\" oifname \"{UNDERLAY_DEVICE}\" ct direction reply ct status dnat");
    clamp.push(format!("{answer} {syn}"));
    clamp.push(format!("{answer} ip protocol tcp ip frag-off 0x4000 ip frag-off set 0x0"));
    hook(&mut text, "clamp", "filter hook forward priority mangle; policy accept", &clamp);
    hook(&mut text, "forward", "filter hook forward priority filter; policy drop", &forward(inputs));
    hook(&mut text, "input", "filter hook input priority filter; policy accept", &input(inputs));
    text
}

fn hook(text: &mut String, name: &str, kind: &str, rules: &[String]) {
    hook_in(TABLE, text, name, kind, rules);
}

/// A chain with a hook, with these rules.
pub(super) fn hook_in(table: &str, text: &mut String, name: &str, kind: &str, rules: &[String]) {
    let _ = writeln!(text, "add chain {table} {name} {{ type {kind}; }}\nflush chain {table} {name}");
    for rule in rules {
        let _ = writeln!(text, "add rule {table} {name} {rule}");
    }
}

/// Packets from a guest have to carry its own addresses, and it has to be leased to this host.
fn from_guest(inputs: &Inputs<'_>) -> Vec<String> {
    let drop = format!("counter name {SPOOFED} drop");
    let only = if inputs.goal.ipv6.is_some() { format!("iifname != @{V6_TAPS} ") } else { String::new() };
    let mut rules = vec![
        format!("iifname != \"{TAP_PREFIX}*\" accept"),
        format!("meta nfproto ipv6 {only}{drop}"),
        format!("iifname . ether saddr != @cards {drop}"),
        "ip saddr 0.0.0.0 udp sport 68 udp dport 67 accept".to_owned(),
    ];
    if inputs.goal.ipv6.is_some() {
        rules.extend([
            // Which groups it listens to, nobody needs to know; only the host says who is a router.
            "icmpv6 type { mld-listener-report, mld-listener-done, mld2-listener-report } drop".to_owned(),
            format!("icmpv6 type {{ nd-router-advert, nd-redirect }} {drop}"),
            format!("ip6 saddr fe80::/10 iifname vmap @{V6_LINKS}"),
            format!("ip6 saddr {{ ::, fe80::/10 }} {NEIGHBOURS} accept"),
            "ip6 saddr { ::, fe80::/10 } icmpv6 type nd-router-solicit accept".to_owned(),
            format!("ip6 saddr fe80::/10 ip6 daddr {TAP_GATEWAY} icmpv6 type echo-request accept"),
            format!("ip6 saddr fe80::/10 ip6 daddr {{ {SERVERS}, {TAP_GATEWAY} }} udp sport 546 udp dport 547 accept"),
            // What it asks its neighbours, of whom it has none.
            "ip6 saddr fe80::/10 ip6 daddr ff02::/16 drop".to_owned(),
        ]);
    }
    for family in Family::of(inputs) {
        let saddr = format!("{} saddr", family.word());
        rules.push(format!("iifname . {saddr} != @{} {drop}", family.named("places")));
        rules.push(format!("{saddr} != @{} drop", family.named(LEASED)));
    }
    rules
}

/// The device to other hosts' guests.
pub(super) fn wire(transit: Transit) -> &'static str {
    match transit {
        Transit::Vxlan | Transit::Wireguard => OVERLAY_DEVICE,
        Transit::Routed => UNDERLAY_DEVICE,
    }
}

/// The address by which other hosts' guests know a host that balances connections to them.
pub(super) fn known_as(transit: Transit, peer: &PeerGoal, family: Family) -> IpAddr {
    match transit {
        Transit::Vxlan | Transit::Wireguard => family.address(peer.overlay),
        Transit::Routed => family.address(peer.address),
    }
}

fn source(inputs: &Inputs<'_>) -> Vec<String> {
    let own = inputs.goal.peers.iter().find(|peer| peer.host == *inputs.host);
    let wire = wire(inputs.transit);
    let rules = |family: Family| {
        let (ip, dips) = (family.word(), family.dips());
        let own = own.map(|peer| known_as(inputs.transit, peer, family));
        // Answers have to come back through the host that balanced the connection.
        let through = own.map(|own| format!("ct status dnat oifname \"{wire}\" snat {ip} to {own}"));
        let gateway = family.address(GATEWAY);
        let near = format!("ct status dnat oifname \"{TAP_PREFIX}*\" {ip} saddr {dips} snat {ip} to {gateway}");
        let away = format!("{ip} saddr {dips} {ip} daddr != {dips} oifname \"{UNDERLAY_DEVICE}\" masquerade");
        through.into_iter().chain([near, away])
    };
    Family::of(inputs).flat_map(rules).collect()
}

fn forward(inputs: &Inputs<'_>) -> Vec<String> {
    let (guest, wire) = (format!("\"{TAP_PREFIX}*\""), format!("\"{}\"", wire(inputs.transit)));
    let both = |rules: &dyn Fn(Family) -> Vec<String>| Family::of(inputs).flat_map(rules).collect::<Vec<_>>();
    let served = |family: Family| {
        format!("{} daddr . meta l4proto . th dport @{} accept", family.word(), family.named("served"))
    };
    let mut rules = both(&|family| {
        let (ip, leased, exits) = (family.word(), family.named(LEASED), family.named("exits"));
        vec![
            format!("oifname {guest} {ip} daddr != @{leased} drop"),
            // What was open before the guest's policy changed.
            format!("iifname {guest} ct direction original ct state established {ip} saddr vmap @{exits}"),
            format!("oifname {guest} ct direction reply ct state established {ip} daddr vmap @{exits}"),
        ]
    });
    rules.push("ct state established,related accept".to_owned());
    rules.extend(both(&|family| {
        let (ip, exits, homes) = (family.word(), family.named("exits"), family.named("homes"));
        vec![
            format!("iifname {guest} {ip} saddr vmap @{exits}"),
            // To a guest of this host: from its own deployment, or through a load balancer to one of its endpoints.
            format!("iifname {{ {guest}, {wire} }} oifname {guest} {ip} daddr vmap @{homes}"),
            format!("oifname {guest} ct status dnat {}", served(family)),
            format!("oifname {guest} iifname {wire} {ip} saddr @{} {}", family.named("hosts"), served(family)),
        ]
    }));
    rules.push(format!("oifname {guest} counter name {ISOLATED} drop"));
    rules.extend(both(&|family| {
        let (ip, dips, friends) = (family.word(), family.dips(), family.named("friends"));
        vec![
            // To another host: to its own deployment, or through a load balancer. The receiver judges again.
            format!("iifname {guest} oifname {wire} {ip} daddr {dips} ct status dnat accept"),
            format!("iifname {guest} oifname {wire} {ip} saddr vmap @{friends}"),
            // Also to addresses that nobody has, which would leave the fabric.
            format!("iifname {guest} {ip} daddr {dips} counter name {ISOLATED} drop"),
            // Another host may have handed on what is for none of this one's any more.
            format!(
                "iifname {{ \"{UNDERLAY_DEVICE}\", {wire} }} oifname {wire} {ip} daddr {dips} ct status dnat accept"
            ),
        ]
    }));
    // Hosts may stand in other networks too.
    rules.push(format!("iifname {guest} ip daddr @{MACHINES} counter name {ISOLATED} drop"));
    for network in inputs.closed {
        let ip = if network.address.is_ipv4() { "ip" } else { "ip6" };
        rules.push(format!("iifname {guest} {ip} daddr {network} counter name {ISOLATED} drop"));
    }
    if let Some(underlay) = inputs.underlay {
        rules.push(format!("iifname {guest} oifname \"{UNDERLAY_DEVICE}\" ip daddr != {underlay} accept"));
    }
    if let (Some(underlay), Some(prefix)) = (inputs.underlay6, inputs.goal.ipv6) {
        let inside = format!("{{ {underlay}, {prefix} }}");
        rules.push(format!("iifname {guest} oifname \"{UNDERLAY_DEVICE}\" ip6 daddr != {inside} accept"));
    }
    rules
}

/// What may reach the host itself.
fn input(inputs: &Inputs<'_>) -> Vec<String> {
    let mut rules = vec!["ct state established,related accept".to_owned()];
    if inputs.goal.ipv6.is_some() {
        rules.push(format!("{NEIGHBOURS} accept"));
    }
    for family in Family::of(inputs) {
        // A public address with nobody behind it refuses, so that clients need not wait.
        let vips = format!("{} daddr @{}", family.word(), family.named("vips"));
        rules.push(format!("{vips} meta l4proto tcp reject with tcp reset"));
        rules.push(format!("{vips} drop"));
    }
    // Guests of other hosts have no business with this one.
    rules.push(format!("iifname \"{OVERLAY_DEVICE}\" drop"));
    for family in Family::of(inputs) {
        rules.push(format!("iifname != \"{TAP_PREFIX}*\" {} saddr {} drop", family.word(), family.dips()));
    }
    rules.extend([
        format!("iifname != \"{TAP_PREFIX}*\" accept"),
        "udp dport 67 accept".to_owned(),
        format!("ip daddr {{ {WIRE_SERVER}, {METADATA} }} tcp dport 80 accept"),
        format!("ip daddr {WIRE_SERVER} tcp dport {PLUGIN_PORT} accept"),
        format!("ip daddr {WIRE_SERVER} meta l4proto {{ tcp, udp }} th dport 53 accept"),
        format!("ip daddr {{ {GATEWAY}, {WIRE_SERVER} }} icmp type echo-request accept"),
    ]);
    if let Some(prefix) = inputs.goal.ipv6 {
        let gateway = prefix.embed(GATEWAY);
        rules.extend([
            format!("ip6 daddr {{ {SERVERS}, {TAP_GATEWAY} }} udp dport 547 accept"),
            "icmpv6 type nd-router-solicit accept".to_owned(),
            format!("ip6 daddr {{ {TAP_GATEWAY}, {gateway} }} icmpv6 type echo-request accept"),
        ]);
    }
    rules.push(format!("counter name {ISOLATED} drop"));
    rules
}

/// Who the guests are, which addresses are public, and the counters that are always there.
pub(super) fn guests(rules: &mut Ruleset, inputs: &Inputs<'_>) {
    let guests = inputs.guests;
    for family in Family::of(inputs) {
        let kind = family.kind();
        rules.kept.insert(family.named(LEASED), (Kind::Set, format!("type {kind}; flags timeout;")));
        let has = move |ipv6: bool| ipv6 || family == Family::V4;
        let places = guests.iter().filter(|guest| has(guest.ipv6)).map(|guest| place(guest, family));
        let vips = inputs.goal.vips.iter().filter(|vip| has(vip.ipv6)).map(|vip| family.address(vip.vip).to_string());
        let hosts = inputs.goal.peers.iter().map(|peer| known_as(inputs.transit, peer, family).to_string());
        for (name, set) in [
            ("places", Elements::set(&format!("type ifname . {kind};")).with(places)),
            ("vips", Elements::set(&format!("type {kind};")).with(vips)),
            ("hosts", Elements::set(&format!("type {kind};")).with(hosts)),
        ] {
            rules.sets.insert(family.named(name), set);
        }
    }
    let machines = inputs.goal.peers.iter().map(|peer| peer.address.to_string());
    rules.sets.insert(MACHINES.to_owned(), Elements::set("type ipv4_addr;").with(machines));
    let cards = Elements::set("type ifname . ether_addr;").with(guests.iter().map(card));
    rules.sets.insert("cards".to_owned(), cards);
    if inputs.goal.ipv6.is_some() {
        let taps = guests.iter().filter(|guest| guest.ipv6).map(|guest| format!("\"{}\"", guest.tap));
        rules.sets.insert(V6_TAPS.to_owned(), Elements::set("type ifname;").with(taps));
        links(rules, guests);
    }
    rules.counters.extend([SPOOFED, ISOLATED, DENIED].map(str::to_owned));
}

/// Who speaks on each tap with IPv6.
fn links(rules: &mut Ruleset, guests: &[LocalGuest]) {
    let mut links = Elements::map("type ifname : verdict;");
    for guest in guests.iter().filter(|guest| guest.ipv6) {
        let name = format!("l_{}", guest.tap);
        let set = format!("type ipv6_addr; size {LINK_ADDRESSES}; flags dynamic, timeout; timeout 1h;");
        rules.kept.insert(name.clone(), (Kind::Set, set));
        // Where there is no room for another, the first rule does not hold.
        let text = format!("update @{name} {{ ip6 saddr }} return\ncounter name {SPOOFED} drop\n");
        rules.chains.insert(name.clone(), text);
        links.elements.insert(format!("\"{}\"", guest.tap), format!("jump {name}"));
    }
    rules.sets.insert(V6_LINKS.to_owned(), links);
}

fn card(guest: &LocalGuest) -> String {
    format!("\"{}\" . {}", guest.tap, guest.mac.map(|byte| format!("{byte:02x}")).join(":"))
}

fn place(guest: &LocalGuest, family: Family) -> String {
    format!("\"{}\" . {}", guest.tap, family.address(guest.dip))
}

/// What guests may say by ARP: their own hardware address, and their own address or (when they look whether it is
/// taken) none. And for which public addresses this host answers: as long as somebody says so, as another host takes those of one
/// that says nothing.
pub(super) fn arp(guests: &[LocalGuest], vips: &BTreeSet<IpAddr>) -> String {
    let mut text =
        format!("add table {ARP_TABLE}\nadd set {ARP_TABLE} {ANSWERED} {{ type ipv4_addr; flags timeout; }}\n");
    let vips: Vec<String> = vips.iter().filter(|vip| vip.is_ipv4()).map(IpAddr::to_string).collect();
    let mut rules = Vec::new();
    if !vips.is_empty() {
        let asked = format!("arp operation request arp daddr ip {{ {} }}", vips.join(", "));
        rules.push(format!("{asked} arp daddr ip != @{ANSWERED} drop"));
    }
    rules.push(format!("iifname != \"{TAP_PREFIX}*\" accept"));
    if guests.is_empty() {
        rules.push("drop".to_owned());
    } else {
        let cards: Vec<String> = guests.iter().map(card).collect();
        let places: Vec<String> = guests.iter().map(|guest| place(guest, Family::V4)).collect();
        rules.push(format!("iifname . arp saddr ether != {{ {} }} drop", cards.join(", ")));
        rules.push("arp saddr ip 0.0.0.0 accept".to_owned());
        rules.push(format!("iifname . arp saddr ip != {{ {} }} drop", places.join(", ")));
    }
    hook_in(ARP_TABLE, &mut text, "input", "filter hook input priority 0; policy accept", &rules);
    text
}
