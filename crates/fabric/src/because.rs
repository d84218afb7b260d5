//! Why placement chose a host, in words. Worked out after the choice, and only where somebody reads it: choosing itself
//! has no time for words.

use crate::inventory::{DomainId, HostRoom, Inventory, RoleCount, has_image};
use crate::placement::{Ask, suits};

/// Hosts of a domain that are compared at the most.
const COMPARED: usize = 64;
/// Domains that are compared; of more, placement looks at a few by chance, and has no time for all of them afterwards.
const DOMAINS: usize = 16;

/// One criterion: the least is the best.
type Criterion = (fn(&Judge<'_, '_>, &HostRoom) -> u64, &'static str);

/// In the order of placement (see `placement`).
const CRITERIA: [Criterion; 4] = [
    (|judge, room| judge.in_room(room), "its room has the fewest of them"),
    (|judge, room| judge.of_role(room), "it has the fewest of them"),
    (|judge, room| u64::from(!has_image(&room.host, judge.ask.image)), "it has the base image"),
    (|judge, room| judge.left_over(room), "the most is free on it"),
];
/// What the last criterion means when most of all room is taken.
const SCARCE: &str = "the least is left over on it, as room is scarce";

struct Judge<'i, 'a> {
    inventory: &'i Inventory,
    ask: &'a Ask<'a>,
    counts: &'i RoleCount,
}

/// Why the next instance of a role goes to a host of this inventory, which does not count it yet.
pub(crate) fn because(inventory: &Inventory, ask: &Ask<'_>, chosen: &mayfly_model::HostName) -> String {
    let Some((_, room)) = inventory.host_named(chosen) else { return String::new() };
    let none = RoleCount::default();
    let judge = Judge { inventory, ask, counts: inventory.role(ask.role).unwrap_or(&none) };
    if ask.avoid.contains(chosen) {
        return "no other host has room for it, though it has failed there before".to_owned();
    }
    let domain = judge.why_domain(room.domain);
    if ask.prefer == Some(chosen) {
        return format!("its VM was there before, and {domain}");
    }
    if inventory.eligible(ask).len() > DOMAINS {
        return domain;
    }
    let rivals = judge.rivals(room);
    match judge.why_host(room, &rivals) {
        Some(host) => format!("{domain}; {chosen} because {host}"),
        None if rivals.len() > 1 => format!("{domain}; {chosen} is as good a host as any of {}", rivals.len()),
        None => domain,
    }
}

impl Judge<'_, '_> {
    fn why_domain(&self, chosen: DomainId) -> String {
        let (eligible, role) = (self.inventory.eligible(self.ask), &self.ask.role.1);
        let name = &self.inventory.domain_at(chosen).name;
        if eligible.len() < 2 {
            return format!("{name} is the only fault domain with a host that may take it");
        }
        let has = self.counts.by_domain.at(chosen);
        if eligible.len() > DOMAINS {
            return match has {
                0 => format!("{name} has none of `{role}`"),
                _ => format!("{name} has {has} of `{role}`, as few as any that has room"),
            };
        }
        let fewer = eligible.iter().filter(|domain| self.counts.by_domain.at(**domain) < has).count();
        let as_few = eligible.iter().filter(|domain| self.counts.by_domain.at(**domain) == has).count();
        if fewer > 0 {
            return format!("{name} has {has} of `{role}`, and the {fewer} fault domains with fewer have no room");
        }
        match as_few {
            1 => format!("{name} has the fewest of `{role}`, {has}"),
            _ => format!("{name} is one of {as_few} fault domains with the fewest of `{role}`, {has}"),
        }
    }

    /// The hosts that could have been chosen as far as fault domains go, the chosen one among them.
    fn rivals(&self, chosen: &HostRoom) -> Vec<&HostRoom> {
        let eligible = self.inventory.eligible(self.ask);
        let has = self.counts.by_domain.at(chosen.domain);
        let equal = |domain: &&DomainId| self.counts.by_domain.at(**domain) == has;
        let of_domain = |domain: &DomainId| {
            let free = self.inventory.domain_at(*domain).free.iter().rev();
            let hosts = free.filter_map(|(_, _, id)| self.inventory.host(*id));
            hosts.filter(|room| suits(room, self.ask)).take(COMPARED)
        };
        eligible.iter().filter(equal).flat_map(of_domain).collect()
    }

    /// What sets a host apart from the others that could have been chosen.
    fn why_host(&self, chosen: &HostRoom, rivals: &[&HostRoom]) -> Option<String> {
        let (mut rivals, mut reasons) = (rivals.to_vec(), Vec::new());
        for (number, (value, text)) in CRITERIA.into_iter().enumerate() {
            let own = value(self, chosen);
            if rivals.iter().any(|room| value(self, room) > own) {
                let is_last = number + 1 == CRITERIA.len();
                reasons.push(if is_last && self.inventory.is_scarce() { SCARCE } else { text });
            }
            rivals.retain(|room| value(self, room) <= own);
        }
        (!reasons.is_empty()).then(|| reasons.join(", and "))
    }

    fn in_room(&self, room: &HostRoom) -> u64 {
        u64::from(self.counts.by_room.at(self.inventory.domain_at(room.domain).room))
    }

    fn of_role(&self, room: &HostRoom) -> u64 {
        let id = self.inventory.host_named(&room.host.name).map(|(id, _)| id);
        id.map_or(0, |id| u64::from(self.counts.by_host.at(id)))
    }

    fn left_over(&self, room: &HostRoom) -> u64 {
        let left = room.free.minus(self.ask.needed).cpu_milli;
        if self.inventory.is_scarce() { left } else { u64::MAX - left }
    }
}
