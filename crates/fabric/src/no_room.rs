//! Why no host was chosen, in words that say what to do about it.

use std::fmt;

use mayfly_model::{Admission, Host, HostCondition, HostName, Requirements, Resources, Spread};

use crate::inventory::{DomainId, Inventory, RoleCount};
use crate::placement::Ask;

/// Hosts that are named; of more, only how many there are.
const NAMED: usize = 3;

/// Why no host was chosen: which rule ruled out how many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NoRoom {
    /// Hosts that are up.
    up: usize,
    /// Hosts that are not.
    down: usize,
    /// Up, but being drained.
    draining: Closed,
    /// Up, but to reboot.
    rebooting: Closed,
    /// Up, but quarantined.
    quarantined: Closed,
    /// Open hosts that lack a label or feature.
    unfit: usize,
    /// Fit hosts on which it has failed before.
    avoided: usize,
    /// Fit hosts with room that the spread rules out, as their domain has more of the role than another.
    spread: usize,
    /// Fit hosts without enough processor.
    no_cpu: usize,
    /// Fit hosts with enough processor, and without enough memory.
    no_memory: usize,
    /// Whether the role has an instance and only one domain is left for it.
    alone: bool,
    needed: Resources,
    requirements: Requirements,
}

/// Hosts that take no instances for one reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Closed {
    count: usize,
    /// The first of them.
    named: Vec<HostName>,
}

impl Closed {
    fn add(&mut self, host: &Host) {
        self.count += 1;
        if self.named.len() < NAMED {
            self.named.push(host.name.clone());
        }
    }

    /// `2 are draining (host-1, host-3)`, or nothing if there are none.
    fn told(&self, what: &str) -> Option<String> {
        let names: Vec<&str> = self.named.iter().map(HostName::as_str).collect();
        let more = if self.count > names.len() { ", …" } else { "" };
        let verb = if self.count == 1 { "is" } else { "are" };
        (self.count > 0).then(|| format!("{} {verb} {what} ({}{more})", self.count, names.join(", ")))
    }
}

impl NoRoom {
    /// Counts which hosts each rule rules out.
    pub(crate) fn of(inventory: &Inventory, ask: &Ask<'_>, eligible: &[DomainId], counts: &RoleCount) -> NoRoom {
        let mut why = NoRoom {
            alone: eligible.len() == 1 && counts.by_domain.places() > 0 && ask.spread == Spread::Strict,
            needed: ask.needed,
            requirements: ask.requirements.clone(),
            ..NoRoom::default()
        };
        for (_, room) in inventory.hosts() {
            // One that is being forgotten is as good as down, even if it has come back.
            if room.host.condition != HostCondition::Up || room.host.admission == Admission::Leaving {
                why.down += 1;
                continue;
            }
            why.up += 1;
            match &room.host.admission {
                Admission::Leaving => {}
                Admission::Draining { .. } => why.draining.add(&room.host),
                Admission::Rebooting { .. } => why.rebooting.add(&room.host),
                Admission::Quarantined { .. } => why.quarantined.add(&room.host),
                Admission::Open if !ask.requirements.met_by(&room.host) => why.unfit += 1,
                Admission::Open if ask.avoid.contains(&room.host.name) => why.avoided += 1,
                Admission::Open if room.free.cpu_milli < ask.needed.cpu_milli => why.no_cpu += 1,
                Admission::Open if room.free.memory_mib < ask.needed.memory_mib => why.no_memory += 1,
                Admission::Open => why.spread += 1,
            }
        }
        why
    }

    /// The hosts that are up and take no instances, one phrase a reason.
    fn closed(&self) -> Vec<String> {
        let reasons =
            [(&self.draining, "draining"), (&self.rebooting, "about to reboot"), (&self.quarantined, "quarantined")];
        reasons.into_iter().filter_map(|(closed, what)| closed.told(what)).collect()
    }

    /// What opens one of them again.
    fn way_out(&self) -> String {
        let candidates = self.draining.named.first().or(self.quarantined.named.first());
        candidates.map_or_else(String::new, |host| format!("; `mayfly host undrain {host}` opens it again"))
    }
}

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.up == 0 {
            return write!(f, "no host is up ({} are down)", self.down);
        }
        let mut closed = self.closed();
        let way_out = self.way_out();
        if self.draining.count + self.rebooting.count + self.quarantined.count == self.up {
            if self.down > 0 {
                closed.push(format!("{} more {} down", self.down, if self.down == 1 { "is" } else { "are" }));
            }
            return write!(f, "no host takes instances: {}{way_out}", closed.join(", "));
        }
        if self.alone {
            closed.push(format!("{} {} down", self.down, if self.down == 1 { "is" } else { "are" }));
            return write!(
                f,
                "two instances of a role need two fault domains, and only one has a host that takes them ({}); open or start \
                 a host in another fault domain, or let the role stand unevenly (Mayfly.Spread=soft){way_out}",
                closed.join(", ")
            );
        }
        let cores = self.needed.cpu_milli as f64 / 1000.0;
        write!(f, "of {} {} up", self.up, if self.up == 1 { "host that is" } else { "hosts that are" })?;
        let mut rules = closed;
        let mut rule = |count: usize, one: &str, many: &str, text: String| {
            if count > 0 {
                rules.push(format!("{count} {}{text}", if count == 1 { one } else { many }));
            }
        };
        rule(self.unfit, "lacks", "lack", format!(" {}", self.requirements));
        rule(self.avoided, "is one", "are those", " where it has failed before".to_owned());
        rule(self.no_cpu, "has", "have", format!(" fewer than {cores} cores free"));
        rule(self.no_memory, "has", "have", format!(" less than {} MiB of memory free", self.needed.memory_mib));
        let spread = " room, but in a fault domain that has more of this role than others".to_owned();
        rule(self.spread, "has", "have", spread);
        rule(self.down, "more is", "more are", " down".to_owned());
        write!(f, ", {}{way_out}", rules.join(", "))
    }
}
