//! Why an instance is where it is, or waits.

use std::collections::BTreeMap;
use std::sync::Arc;

use mayfly_model::{
    Admission, Event, EventKind, Host, HostCondition, Instance, InstanceKey, InstanceState, Requirements, Then, Time,
};

use crate::core::Core;
use crate::entropy::Entropy;
use crate::instances::{Rule, choose_in};
use crate::rebalance::{self, Stays};
use crate::state::State;

/// Fault domains and events that are told one by one.
const DOMAINS_TOLD: usize = 12;
const EVENTS_TOLD: usize = 5;

/// An answer for people, line by line; nothing if there is no such instance.
pub fn instance(core: &Core, key: &InstanceKey, now: Time) -> Option<Vec<String>> {
    let state = core.state();
    let instance = state.instances.get(key)?;
    let mut lines = vec![whereabouts(core, instance, now)];
    lines.push(spread(core, instance, now));
    lines.extend(history(instance));
    if let Some(deployment) = state.deployments.get(&key.deployment)
        && instance.version != deployment.number
    {
        let (own, wanted) = (instance.version, deployment.number);
        lines.push(format!("it has version {own} of its deployment, and version {wanted} is wanted: the update has not reached its update domain"));
    }
    lines.extend(lately(state, key, now));
    Some(lines)
}

fn whereabouts(core: &Core, instance: &Instance, now: Time) -> String {
    match &instance.state {
        InstanceState::Waiting { reason, since, .. } => {
            let seconds = now.since(*since) / 1000;
            match choose_in(core.state(), instance, &mut Entropy(0), Rule::default()) {
                Ok(host) => format!("has waited {seconds} s: {reason}; there would be room on {host}"),
                Err(why) if why.to_string() == *reason => format!("has waited {seconds} s: {reason}"),
                Err(why) => format!("has waited {seconds} s: {reason}; placement says now: {why}"),
            }
        }
        InstanceState::Placed { vm, .. } => {
            let host = core.state().hosts.get(&vm.host);
            let domain = host.map_or("?", |host| host.fault_domain.as_str());
            let verb = if instance.stopped { "was told to stop, and is kept" } else { "runs" };
            let mut text = format!(
                "{verb} on {} in fault domain {domain}, as {} in update domain {}",
                vm.host, vm.id, instance.update_domain
            );
            if let Some(host) = host.filter(|host| !host.is_open()) {
                text = format!("{text}; the host is {}{}", host.state().to_lowercase(), silence(core, host, now));
                if host.condition == HostCondition::Up && matches!(host.admission, Admission::Draining { .. }) {
                    text = format!("{text}, and {}", departure(core, instance));
                }
            }
            text
        }
        InstanceState::Retiring { vm, then, .. } => {
            let next = match then {
                Then::Remove => "the instance goes away".to_owned(),
                Then::Replace { prefer: Some(host) } => format!("a new VM follows, on {host} if it has room"),
                Then::Replace { prefer: None } => "a new VM follows elsewhere".to_owned(),
            };
            format!(
                "its {} on {} is being thrown away; {} has not said yet that nothing is left of it; then {next}",
                vm.id, vm.host, vm.host
            )
        }
    }
}

/// What becomes of an instance whose host is being drained.
fn departure(core: &Core, instance: &Instance) -> String {
    match choose_in(core.state(), instance, &mut Entropy(0), Rule::default()) {
        Ok(host) => format!("it moves away when its update domain has its turn; there is room on {host}"),
        Err(why) => format!("it cannot move away: {why}"),
    }
}

/// What there is to say of a host that does not report.
fn silence(core: &Core, host: &Host, now: Time) -> String {
    let leases = core.leases();
    let (true, Some(last)) = (host.condition != HostCondition::Up, leases.last_report(&host.name)) else {
        return String::new();
    };
    let silent = now.since(last) as f64 / 1000.0;
    let (fresh, voters) = leases.fresh_voters(core.state(), now);
    if fresh * 2 > voters {
        return format!(" and was last heard of {silent:.1} s ago; the instance is made anew when its lease is over");
    }
    format!(
        " and was last heard of {silent:.1} s ago; nothing is made anew, as only {fresh} of {voters} voters (hosts and \
         controllers) are in touch, and more than half have to be: bring a host back"
    )
}

/// How a role stands over the fault domains, those without an open host included, and whether that is going to change.
fn spread(core: &Core, instance: &Instance, now: Time) -> String {
    let state = core.state();
    let requirements = state.role_of(instance).map(|(_, role)| role.requirements()).unwrap_or_default();
    let (deployment, role) = (&instance.key.deployment, &instance.key.role);
    let counts = state.index.inventory.role(&(deployment.clone(), role.clone()));
    let mut domains: BTreeMap<&str, Place<'_>> = BTreeMap::new();
    for (_, room) in state.index.inventory.hosts() {
        let place = domains.entry(&room.host.fault_domain).or_default();
        place.count = counts.map_or(0, |counts| counts.by_domain.at(room.domain));
        match room.host.is_open() && requirements.met_by(&room.host) {
            true => place.open += 1,
            false => place.closed.push(&room.host),
        }
    }
    let mut told: Vec<String> =
        domains.iter().take(DOMAINS_TOLD).map(|(name, place)| place.told(name, &requirements)).collect();
    if domains.len() > DOMAINS_TOLD {
        told.push(format!("and {} more fault domains", domains.len() - DOMAINS_TOLD));
    }
    if domains.values().all(|place| place.open == 0) {
        return format!("no fault domain takes instances of `{role}` now: {}", told.join(", "));
    }
    format!("instances of `{role}` in each fault domain: {}; {}", told.join(", "), outlook(state, now, &instance.key))
}

/// A fault domain as one role sees it.
#[derive(Default)]
struct Place<'h> {
    count: u32,
    /// Hosts that take instances of the role.
    open: usize,
    /// Hosts that do not.
    closed: Vec<&'h Host>,
}

impl Place<'_> {
    fn told(&self, name: &str, requirements: &Requirements) -> String {
        if self.open > 0 {
            return format!("{name}: {}", self.count);
        }
        let why = |host: &&Host| match host.is_open() {
            true => format!("{} lacks {requirements}", host.name),
            false => format!("{} is {}", host.name, host.state().to_lowercase()),
        };
        let why = match self.closed.len() {
            ..=2 => self.closed.iter().map(why).collect::<Vec<_>>().join(", "),
            many => format!("none of its {many} hosts does"),
        };
        format!("{name}: {} (takes none: {why})", self.count)
    }
}

/// Whether one of a role's instances will be moved to another fault domain.
fn outlook(state: &State, now: Time, key: &InstanceKey) -> String {
    let deployment = state.deployments.get(&key.deployment);
    if deployment.is_some_and(|one| one.upgrade.is_some() || one.is_deleting()) {
        return "none is moved while the deployment is being updated or deleted".to_owned();
    }
    match rebalance::choose(state, now, &key.deployment, &key.role) {
        Ok(moved) if moved == *key => "as one domain has two fewer, this one moves there now".to_owned(),
        Ok(moved) => format!("as one domain has two fewer, {} moves there now", moved.name()),
        Err(Stays::Even) => {
            "even among those that take instances, so none is moved; a new one goes where the fewest are".to_owned()
        }
        Err(Stays::Moving) => "one of them is being replaced, so none is moved now".to_owned(),
        Err(Stays::NotCalm) => "uneven; one is moved when all have been Ready for 10 s".to_owned(),
        Err(Stays::NoRoom) => "uneven, but none that may be moved finds a place where fewer stand".to_owned(),
    }
}

/// What happened to it lately, the newest last.
fn lately(state: &State, key: &InstanceKey, now: Time) -> Vec<String> {
    let subject = key.to_string();
    let tells = |event: &&Arc<Event>| event.subject == subject && event.kind != EventKind::State;
    let events: Vec<_> = state.events.values().rev().filter(tells).take(EVENTS_TOLD).collect();
    let told = |event: &&Arc<Event>| {
        let ago = std::time::Duration::from_secs(now.since(event.time) / 1000);
        format!("{} ago: {}", spoken(ago), event.message)
    };
    events.iter().rev().map(told).collect()
}

/// A time to people's taste: `8 s`, `12 min`, `3 h`, `4 days`.
fn spoken(time: std::time::Duration) -> String {
    match time.as_secs() {
        seconds @ ..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

fn history(instance: &Instance) -> Vec<String> {
    let Some(health) = instance.health.as_deref() else { return Vec::new() };
    let mut lines = Vec::new();
    let hosts = |hosts: &mut dyn Iterator<Item = &mayfly_model::HostName>| {
        hosts.map(ToString::to_string).collect::<Vec<_>>().join(", ")
    };
    if !health.lost_with.is_empty() {
        lines.push(format!(
            "an earlier VM of it was lost lately with {}",
            hosts(&mut health.lost_with.iter().map(|(host, _)| host))
        ));
    }
    if !health.failed_on.is_empty() {
        lines.push(format!("it is not placed where it has failed: {}", hosts(&mut health.failed_on.iter())));
    }
    if let Some(rung) = health.rung {
        lines.push(format!("what was tried last with it: {} ({} tries)", rung.name(), health.tries));
    }
    if !health.crashes.is_empty() {
        lines.push(format!("it has restarted by itself lately: {} times", health.crashes.len()));
    }
    lines
}
