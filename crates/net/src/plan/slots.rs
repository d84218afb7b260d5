//! Which backend a client gets. Clients are hashed to slots, and slots belong to backends, in the same way on every host: so
//! it does not matter who is asked, and a host that takes over a public address leads its clients where they were led before.
//!
//! Who is in rotation stands in a set by itself, and whoever is hashed to another is hashed again, to another slot. So when
//! a host dies, and with it a backend of a thousand endpoints, a thousand elements go; besides, only those endpoints change
//! whose first backend in rotation it was.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;
use std::net::Ipv4Addr;
use std::sync::Arc;

use mayfly_model::{Backend, Distribution, EndpointGoal, VipGoal};

use crate::plan::family::Family;
use crate::plan::ruleset::{Elements, Rows, Ruleset};
use crate::plan::{Inputs, LocalGuest};

/// The same on all hosts; each further try has the next one.
const SEED: u32 = 0x6d61_7966;
/// How often a client is hashed before it is sent to one that is certainly in rotation; and where most may be out.
const TRIES: (u32, u32) = (6, 16);
/// The set of the numbers of this host's own guests.
pub(super) const HERE: &str = "here";
/// The set of who is in rotation.
pub(super) const UP: &str = "up";
/// What divides evenly among up to six backends, ten, twelve, fifteen.
const FEW_SLOTS: u32 = 60;
/// Slots that a backend has at least, so that shares differ by a fifth at the most.
const SLOTS_EACH: u32 = 5;

/// An endpoint over one version of IP.
pub(super) struct Door<'a> {
    /// Whose it is.
    pub vip: &'a VipGoal,
    /// What it is.
    pub endpoint: &'a EndpointGoal,
    /// Its address, protocol and port, as a key of sets and maps.
    pub key: String,
    /// Backends in rotation.
    pub up: Vec<Ipv4Addr>,
    /// Backends that are not.
    pub out: Vec<Ipv4Addr>,
}

impl Door<'_> {
    /// `tcp` or `udp`.
    pub(super) fn protocol(&self) -> &'static str {
        protocol(self.endpoint)
    }

    /// All its backends.
    pub(super) fn all(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.up.iter().chain(&self.out).copied()
    }

    /// Those that have slots: all; or where most are out those that are not, as too many would have to be hashed again. Clients that
    /// keep their backend are not moved for that.
    fn members(&self) -> Vec<Ipv4Addr> {
        let with_out = self.out.len() <= self.up.len() || self.endpoint.distribution != Distribution::Connection;
        if with_out { self.all().collect() } else { self.up.clone() }
    }

    /// The number of slots depends on all backends that there are to be, so that it stays when some go and come.
    fn slots(&self) -> u32 {
        let all = self.endpoint.instances.max((self.up.len() + self.out.len()) as u32);
        let mut slots = FEW_SLOTS;
        while slots < all * SLOTS_EACH {
            slots *= 4;
        }
        slots
    }

    /// The chain that chooses among its backends.
    pub(super) fn chain(&self, family: Family) -> String {
        pick_chain(self.endpoint.distribution, self.slots(), family)
    }
}

/// `tcp` or `udp`.
pub(super) fn protocol(endpoint: &EndpointGoal) -> &'static str {
    if endpoint.udp { "udp" } else { "tcp" }
}

/// Whether new connections are sent to this backend.
pub(super) fn in_rotation(inputs: &Inputs<'_>, backend: &Backend) -> bool {
    let healthy = backend.always || inputs.health.contains(&(backend.vm, backend.probe.clone()));
    healthy && inputs.live.contains(&backend.host)
}

/// All endpoints.
pub(super) fn doors<'a>(inputs: &Inputs<'a>, family: Family) -> Vec<Door<'a>> {
    let newer: BTreeSet<Ipv4Addr> =
        inputs.goal.routes.iter().filter(|route| route.ipv6).map(|route| route.dip).collect();
    let has = |dip: &Ipv4Addr| family == Family::V4 || newer.contains(dip);
    let vips = inputs.goal.vips.iter().filter(|vip| vip.ipv6 || family == Family::V4);
    let all = vips.flat_map(|vip| vip.endpoints.iter().map(move |endpoint| (vip, endpoint)));
    let door = |(vip, endpoint): (&'a VipGoal, &'a EndpointGoal)| {
        let (up, out): (Vec<&Backend>, Vec<&Backend>) =
            endpoint.backends.iter().filter(|one| has(&one.dip)).partition(|one| in_rotation(inputs, one));
        let dips = |which: Vec<&Backend>| which.into_iter().map(|one| one.dip).collect();
        let key = format!("{} . {} . {}", family.address(vip.vip), protocol(endpoint), endpoint.port);
        Door { vip, endpoint, key, up: dips(up), out: dips(out) }
    };
    all.map(door).collect()
}

/// The number by which rules know a backend: its address.
pub(super) fn mark(dip: Ipv4Addr) -> u32 {
    dip.into()
}

/// The numbers of this host's own guests.
pub(super) fn marks(own: &BTreeMap<Ipv4Addr, &LocalGuest>) -> Elements {
    Elements::set("type mark;").with(own.keys().map(|dip| format!("{:#x}", mark(*dip))))
}

/// The choice among the backends of all endpoints, as sets and maps that both tables have.
pub(super) struct Choice {
    slots: Arc<Rows>,
    up: Vec<String>,
    last: Vec<(String, String)>,
    kinds: BTreeSet<(Distribution, u32)>,
    family: Family,
}

impl Choice {
    pub(super) fn among(doors: &[Door<'_>], family: Family) -> Choice {
        let marks = |door: &Door<'_>| share(door.slots(), &door.members()).into_iter().map(mark).collect();
        let up = |door: &Door<'_>| {
            let element = |dip: &Ipv4Addr| format!("{} . {:#x}", door.key, mark(*dip));
            door.up.iter().map(element).collect::<Vec<_>>()
        };
        let last = |door: &Door<'_>| Some((door.key.clone(), format!("{:#x}", mark(*door.up.first()?))));
        Choice {
            slots: Arc::new(doors.iter().map(|door| (door.key.clone(), marks(door))).collect()),
            up: doors.iter().flat_map(up).collect(),
            last: doors.iter().filter_map(last).collect(),
            kinds: doors.iter().map(|door| (door.endpoint.distribution, door.slots())).collect(),
            family,
        }
    }

    /// Writes it down. The chains mark the packet with its backend, and then do as `then` says.
    pub(super) fn write(&self, rules: &mut Ruleset, then: &str) {
        let (family, kind) = (self.family, self.family.kind());
        let [slots, up, last] = ["slots", UP, "last"].map(|name| family.named(name));
        for (distribution, count) in &self.kinds {
            let tries = if *distribution == Distribution::Connection { TRIES.0 } else { TRIES.1 };
            let text = (0..tries).map(|number| {
                let hashed = format!("{} mod {count} seed {:#x}", hash(*distribution, family), SEED + number);
                let (slot, key) = (format!("{} . meta mark map @{slots}", door(family)), door(family));
                format!("meta mark set {hashed} meta mark set {slot} {key} . meta mark @{up} {then}\n")
            });
            let rest = format!("meta mark set {} map @{last} {then}\n", door(family));
            rules.chains.insert(pick_chain(*distribution, *count, family), text.chain([rest]).collect());
        }
        let door = format!("type {kind} . inet_proto . inet_service");
        rules.rows.insert(slots, (format!("{door} . mark : mark;"), Arc::clone(&self.slots)));
        rules.sets.insert(up, Elements::set(&format!("{door} . mark;")).with(self.up.iter().cloned()));
        let mut lasts = Elements::map(&format!("{door} : mark;"));
        lasts.elements.extend(self.last.iter().cloned());
        rules.sets.insert(last, lasts);
    }
}

fn pick_chain(distribution: Distribution, slots: u32, family: Family) -> String {
    let word = match distribution {
        Distribution::Connection => "connection",
        Distribution::SourceIpProtocol => "protocol",
        Distribution::SourceIp => "client",
    };
    family.named(&format!("pick_{word}_{slots}"))
}

/// Where a packet goes, as a key of sets and maps.
pub(super) fn door(family: Family) -> String {
    format!("{} daddr . meta l4proto . th dport", family.word())
}

fn hash(distribution: Distribution, family: Family) -> String {
    let ip = family.word();
    match distribution {
        Distribution::Connection => format!("jhash {ip} saddr . th sport . {ip} daddr . th dport"),
        Distribution::SourceIpProtocol => format!("jhash {ip} saddr . meta l4proto"),
        Distribution::SourceIp => format!("jhash {ip} saddr . {ip} daddr"),
    }
}

/// Shares slots out as evenly as can be. A backend that comes or goes changes little more than its own.
fn share(slots: u32, members: &[Ipv4Addr]) -> Vec<Ipv4Addr> {
    let most = slots.div_ceil(members.len().max(1) as u32);
    let mut free: Vec<(u64, u32, Ipv4Addr)> = members.iter().map(|dip| (seed(*dip), most, *dip)).collect();
    let one = |slot| {
        let best = free.iter_mut().filter(|(_, left, _)| *left > 0).max_by_key(|(seed, ..)| weight(slot, *seed))?;
        best.1 -= 1;
        Some(best.2)
    };
    (0..slots).map_while(one).collect()
}

/// What a backend's ranks are made of, the same in every build.
fn seed(dip: Ipv4Addr) -> u64 {
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
    hasher.write(&dip.octets());
    hasher.finish()
}

/// The rank of a backend for a slot: what SplitMix64 makes of both.
fn weight(slot: u32, seed: u64) -> u64 {
    let mixed = seed.wrapping_add(u64::from(slot + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_even_and_stay_where_they_are() {
        let all: Vec<Ipv4Addr> = (2..12).map(|last| Ipv4Addr::new(10, 80, 0, last)).collect();
        for count in [1, 2, 3, 4, 5, 6, 10] {
            let shared = share(FEW_SLOTS, &all[..count]);
            for dip in &all[..count] {
                let own = shared.iter().filter(|one| *one == dip).count();
                assert_eq!(own, FEW_SLOTS as usize / count, "{dip} of {count}");
            }
        }
        let (before, after) = (share(FEW_SLOTS, &all), share(FEW_SLOTS, &all[1..]));
        let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
        assert!(moved <= 15, "{moved} slots moved, and 6 had to");
        assert!(share(FEW_SLOTS, &[]).is_empty());
    }
}
