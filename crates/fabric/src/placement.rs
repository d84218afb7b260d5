//! Placement: which host carries the next instance of a role. Pure: from what is there to a choice or a reason.
//!
//! The law (invariant 2): instances of a role are spread over fault domains so that the counts differ by at most one,
//! and two or more never stand in a single domain. So the next one goes to a domain that has the fewest, among those
//! with an open host that has what the role requires. A role whose spread is *soft* takes the next best domain where
//! the law would make it wait.
//!
//! Among the domains that the law allows, and the hosts in them, in this order: the host that is preferred; the room
//! (the part of a domain's name before its last `/`) with the fewest of the role; the host with the fewest; one that
//! has the base image; then, while there is plenty, the emptiest, and when three quarters of all cores are taken, the
//! one where the least is left over. Of many domains a few are looked at, chosen at random; all of them only if none of
//! those has room.

use std::borrow::Cow;
use std::collections::BTreeMap;

use mayfly_model::{Digest, HostName, Requirements, Resources, Spread};

use crate::entropy::Entropy;
use crate::inventory::{DomainId, HostId, HostRoom, Inventory, RoleCount, RoleRef, has_image};
use crate::no_room::NoRoom;

/// Domains that are all looked at rather than sampled.
const ALL_DOMAINS: usize = 16;
/// Domains that have to answer when they are sampled, and how often is tried.
const SAMPLES: usize = 3;
const TRIES: usize = 32;
/// Hosts of a domain that are compared.
const HOSTS: usize = 4;
const HOSTS_OF_ROLE: usize = 64;

/// What is to be placed.
#[derive(Clone, Debug)]
pub(crate) struct Ask<'a> {
    pub(crate) role: &'a RoleRef,
    pub(crate) needed: Resources,
    pub(crate) spread: Spread,
    pub(crate) requirements: &'a Requirements,
    pub(crate) image: Option<&'a Digest>,
    pub(crate) prefer: Option<&'a HostName>,
    pub(crate) avoid: &'a [HostName],
    /// A planted mistake: domains do not matter.
    pub(crate) ignore_domains: bool,
}

/// How good a host is; the least is the best.
type Score = (bool, u32, u32, bool, u64);

impl Inventory {
    /// Chooses the host for the next instance of a role.
    pub(crate) fn choose(&self, ask: &Ask<'_>, entropy: &mut Entropy) -> Result<HostName, Box<NoRoom>> {
        let eligible = self.eligible(ask);
        if ask.ignore_domains {
            let first = self.hosts().find(|(_, room)| room.host.is_open() && suits(room, ask));
            return first.map(|(_, room)| room.host.name.clone()).ok_or_else(Box::default);
        }
        let none = RoleCount::default();
        let counts = self.role(ask.role).unwrap_or(&none);
        for level in levels(counts, &eligible, ask) {
            if ask.spread == Spread::Strict && level > 0 && eligible.len() == 1 {
                break;
            }
            let best = if level == 0 {
                self.sample(ask, &eligible, counts, entropy)
            } else {
                let at_level = |domain: &&DomainId| counts.by_domain.at(**domain) == level;
                let allowed = eligible.iter().filter(at_level);
                allowed.filter_map(|domain| self.best_in(*domain, ask, counts)).min()
            };
            if let Some(room) = best.and_then(|(_, host)| self.host(host)) {
                return Ok(room.host.name.clone());
            }
        }
        Err(Box::new(NoRoom::of(self, ask, &eligible, counts)))
    }

    /// The domains that placement may choose from.
    pub(crate) fn eligible(&self, ask: &Ask<'_>) -> Cow<'_, [DomainId]> {
        match ask.requirements.is_empty() && ask.avoid.is_empty() {
            true => Cow::Borrowed(self.open_domains()),
            false => Cow::Owned(self.domains_with(ask.requirements, ask.avoid)),
        }
    }

    /// Instances of a role in each fault domain that has an open host with what it requires.
    pub(crate) fn spread(&self, role: &RoleRef, requirements: &Requirements) -> BTreeMap<&str, u32> {
        let counts = self.role(role);
        let count = |domain: DomainId| counts.map_or(0, |counts| counts.by_domain.at(domain));
        let domains = match requirements.is_empty() {
            true => self.open_domains().to_vec(),
            false => self.domains_with(requirements, &[]),
        };
        domains.into_iter().map(|domain| (self.domain_at(domain).name.as_str(), count(domain))).collect()
    }

    /// The best host in the domains that have none of the role.
    fn sample(
        &self,
        ask: &Ask<'_>,
        eligible: &[DomainId],
        counts: &RoleCount,
        entropy: &mut Entropy,
    ) -> Option<(Score, HostId)> {
        let free = |domain: &DomainId| !counts.by_domain.has(*domain);
        let in_domain = |domain: &DomainId| self.best_in(*domain, ask, counts);
        if eligible.len() > ALL_DOMAINS {
            if let Some(wanted) = ask.prefer.and_then(|host| self.host_named(host))
                && free(&wanted.1.domain)
                && let Some(best) = in_domain(&wanted.1.domain).filter(|(score, _)| !score.0)
            {
                return Some(best);
            }
            let random = std::iter::repeat_with(|| eligible[(entropy.bits() % eligible.len() as u64) as usize]);
            let answers = random.take(TRIES).filter(free).filter_map(|domain| in_domain(&domain)).take(SAMPLES);
            if let Some(best) = answers.min() {
                return Some(best);
            }
        }
        eligible.iter().filter(|domain| free(domain)).filter_map(in_domain).min()
    }

    /// The best host of a domain.
    fn best_in(&self, domain: DomainId, ask: &Ask<'_>, counts: &RoleCount) -> Option<(Score, HostId)> {
        let scarce = self.is_scarce();
        let place = self.domain_at(domain);
        let room_count = counts.by_room.at(place.room);
        let score = |id: HostId, room: &HostRoom| {
            let of_role = counts.by_host.at(id);
            let left = room.free.minus(ask.needed).cpu_milli;
            let fit = if scarce { left } else { u64::MAX - left };
            let preferred = ask.prefer == Some(&room.host.name);
            (!preferred, room_count, of_role, !has_image(&room.host, ask.image), fit)
        };
        let suits = |id: HostId| self.host(id).filter(|room| suits(room, ask)).map(|room| (score(id, room), id));
        let wanted = ask.prefer.and_then(|host| self.host_named(host));
        if let Some((id, room)) = wanted
            && room.domain == domain
            && room.host.is_open()
            && let Some(found) = suits(id)
        {
            return Some(found);
        }
        let compared = if counts.by_domain.has(domain) { HOSTS_OF_ROLE } else { HOSTS };
        let range = place.free.range((ask.needed.cpu_milli, 0, 0)..);
        if scarce {
            range.filter_map(|(_, _, id)| suits(*id)).take(compared).min()
        } else {
            range.rev().filter_map(|(_, _, id)| suits(*id)).take(compared).min()
        }
    }
}

pub(crate) fn suits(room: &HostRoom, ask: &Ask<'_>) -> bool {
    room.free.holds(ask.needed)
        && !ask.avoid.contains(&room.host.name)
        && (ask.requirements.is_empty() || ask.requirements.met_by(&room.host))
}

/// Counts that the chosen domain may have already, best first: the least there is, and for a soft role those above it.
fn levels(counts: &RoleCount, eligible: &[DomainId], ask: &Ask<'_>) -> Vec<u32> {
    let standing = counts.by_domain.places();
    // Most roles are small beside the number of domains.
    if ask.spread == Spread::Strict && standing < eligible.len() {
        return vec![0];
    }
    let mut levels: Vec<u32> = eligible.iter().map(|domain| counts.by_domain.at(*domain)).collect();
    levels.sort_unstable();
    levels.dedup();
    if ask.spread == Spread::Strict {
        levels.truncate(1);
    }
    levels
}
