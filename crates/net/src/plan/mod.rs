//! From what is wanted and what is healthy to what the kernel should hold. Pure.

mod balance;
mod clear;
mod egress;
mod family;
mod frame;
mod isolation;
pub mod ruleset;
mod slots;
mod spread;
pub mod trace;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use mayfly_model::{
    Egress, HostName, Ipv6Prefix, NetworkGoal, PeerGoal, ProbeGoal, RouteGoal, Subnet, Transit, TunnelKey, VipGoal,
    VmId,
};

use crate::flows::{Entrances, Flows};
pub(crate) use crate::plan::balance::MOVED;
pub use crate::plan::balance::endpoint_name;
pub use crate::plan::clear::clear;
pub use crate::plan::egress::{learned_set, learned_set6};
use crate::plan::family::Family;
pub(crate) use crate::plan::frame::{ANSWERED, ARP_TABLE, LEASED};
use crate::plan::ruleset::{INGRESS_TABLE, Ruleset, TABLE};
use crate::plan::slots::Choice;

/// A guest of this host, as the network sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalGuest {
    /// Its tap.
    pub tap: String,
    /// Its address.
    pub dip: Ipv4Addr,
    /// Whether it has an IPv6 address too.
    pub ipv6: bool,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Its deployment.
    pub deployment_id: String,
    /// Where it may go.
    pub egress: Egress,
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
    /// The same over IPv6.
    pub underlay6: Option<&'a str>,
    /// Networks that guests do not reach although they lie beyond.
    pub closed: &'a [Subnet],
    /// How packets get to other hosts' guests.
    pub transit: Transit,
    /// Whether this host, where it has a public address, leaves it to the hosts of its backends to answer clients.
    pub direct_return: bool,
}

impl Inputs<'_> {
    /// Whether the host has this public address.
    fn owns(&self, vip: &VipGoal) -> bool {
        vip.owners.iter().find(|owner| self.live.contains(*owner)) == Some(self.host)
    }
}

/// Where packets for a DIP go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NextHop {
    /// To a guest of this host.
    Tap(String),
    /// To another host, through the overlay.
    Overlay(IpAddr),
    /// To another host, as it is.
    Host(IpAddr),
}

/// What the kernel should hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Who may send what to whom, and who serves.
    pub rules: Ruleset,
    /// What is handed on to other hosts as soon as it comes in.
    pub spread: Ruleset,
    /// What is said and answered by ARP: a script by itself.
    pub arp: String,
    /// Routes to DIPs.
    pub routes: BTreeMap<IpAddr, NextHop>,
    /// VIPs that this host answers for.
    pub vips: BTreeSet<IpAddr>,
    /// Which flows may stay, once the others are known.
    pub flows: Option<Flows>,
    /// The other hosts in the overlay, if there is one, as (overlay address, hardware address, underlay address).
    pub peers: BTreeSet<(Ipv4Addr, [u8; 6], Ipv4Addr)>,
    /// The other ends of encrypted tunnels, by their addresses on the network below.
    pub tunnels: BTreeMap<Ipv4Addr, TunnelKey>,
    /// What IPv6 addresses begin with, if there are any.
    pub ipv6: Option<Ipv6Prefix>,
}

/// Makes the plan.
pub fn plan(inputs: &Inputs<'_>) -> Plan {
    let Inputs { host, goal, guests, .. } = *inputs;
    let own: BTreeMap<Ipv4Addr, &LocalGuest> = guests.iter().map(|guest| (guest.dip, guest)).collect();
    let encrypts = inputs.transit.encrypts();
    let others = || goal.peers.iter().filter(|peer| peer.host != *host);
    let Tables { rules, spread, entrances } = tables(inputs, &own);
    let is_known = goal.peers.iter().any(|peer| peer.host == *host);
    let there = |family: Family| goal.vips.iter().filter(move |vip| vip.ipv6 || family == Family::V4);
    let vips = Family::of(inputs)
        .flat_map(|family| there(family).filter(|vip| inputs.owns(vip)).map(move |vip| family.address(vip.vip)));
    let vips: BTreeSet<IpAddr> = vips.collect();
    Plan {
        rules,
        spread,
        flows: is_known.then(|| flows(inputs, &own, entrances)),
        ipv6: goal.ipv6,
        arp: frame::arp(guests, &vips),
        vips,
        routes: Family::of(inputs).flat_map(|family| routes(inputs, &own, family)).collect(),
        // A host that has no key yet gets nothing, rather than something that all can read.
        peers: others()
            .filter(|peer| inputs.transit.has_overlay() && (!encrypts || peer.tunnel_key.is_some()))
            .map(|one| (one.overlay, one.mac, one.address))
            .collect(),
        tunnels: others().filter(|_| encrypts).filter_map(|peer| Some((peer.address, peer.tunnel_key?))).collect(),
    }
}

/// Where each DIP is.
fn routes(inputs: &Inputs<'_>, own: &BTreeMap<Ipv4Addr, &LocalGuest>, family: Family) -> Vec<(IpAddr, NextHop)> {
    let hop = |peer: &PeerGoal| match inputs.transit {
        Transit::Vxlan | Transit::Wireguard => NextHop::Overlay(family.address(peer.overlay)),
        Transit::Routed => NextHop::Host(family.address(peer.address)),
    };
    let hops: BTreeMap<&HostName, NextHop> = inputs.goal.peers.iter().map(|peer| (&peer.host, hop(peer))).collect();
    let elsewhere = inputs.goal.routes.iter().filter(|route| route.host != *inputs.host);
    let remote = elsewhere
        .filter(|route| route.ipv6 || family == Family::V4)
        .filter_map(|route| Some((family.address(route.dip), hops.get(&route.host)?.clone())));
    let here = own.values().filter(|guest| guest.ipv6 || family == Family::V4);
    let local = here.map(|guest| (family.address(guest.dip), NextHop::Tap(guest.tap.clone())));
    remote.chain(local).collect()
}

/// Which flows may stay.
fn flows(inputs: &Inputs<'_>, own: &BTreeMap<Ipv4Addr, &LocalGuest>, entrances: Entrances) -> Flows {
    let mut flows = Flows { entrances, ipv6: inputs.goal.ipv6, ..Flows::default() };
    for family in Family::of(inputs) {
        flows.leaving.extend(leaving(inputs).map(|route| family.address(route.dip)));
        flows.there.extend(inputs.goal.routes.iter().map(|route| (family.address(route.dip), route.vm)));
        // One that no route leads to any more is there until its tap is not.
        for dip in own.keys() {
            flows.there.entry(family.address(*dip)).or_default();
        }
    }
    flows
}

/// Guests that are being drained, and heard.
fn leaving<'a>(inputs: &Inputs<'a>) -> impl Iterator<Item = &'a RouteGoal> {
    let (goal, live) = (inputs.goal, inputs.live);
    goal.routes.iter().filter(|route| route.leaving && live.contains(&route.host))
}

/// What is made of endpoints.
struct Tables {
    rules: Ruleset,
    spread: Ruleset,
    entrances: Entrances,
}

/// The table of addresses and ports, the one of what comes in, and endpoints.
fn tables(inputs: &Inputs<'_>, own: &BTreeMap<Ipv4Addr, &LocalGuest>) -> Tables {
    let mut rules = Ruleset { frame: frame::frame(inputs), ..Ruleset::new(TABLE) };
    frame::guests(&mut rules, inputs);
    let (mut spread, mut entrances) = (Ruleset::new(INGRESS_TABLE), Entrances::new());
    for family in Family::of(inputs) {
        let doors = slots::doors(inputs, family);
        let choice = Choice::among(&doors, family);
        if family == Family::V4 {
            spread = spread::spread(inputs, own, (&doors, &choice));
            balance::near(&mut rules, inputs, &doors, own);
        }
        entrances.extend(balance::entrances(&doors, family));
        balance::endpoints(&mut rules, (&doors, &choice), own, family);
    }
    isolation::members(&mut rules, inputs, own);
    egress::exits(&mut rules, inputs);
    Tables { rules, spread, entrances }
}

#[cfg(test)]
mod tests;
