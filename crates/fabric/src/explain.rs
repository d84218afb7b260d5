//! Why an instance is where it is, or waits.

use mayfly_model::{Admission, Host, HostCondition, Instance, InstanceKey, InstanceState, Then, Time};

use crate::core::Core;
use crate::entropy::Entropy;
use crate::instances::{Rule, choose_in};

/// An answer for people, line by line; nothing if there is no such instance.
pub fn instance(core: &Core, key: &InstanceKey, now: Time) -> Option<Vec<String>> {
    let state = core.state();
    let instance = state.instances.get(key)?;
    let mut lines = vec![whereabouts(core, instance, now)];
    lines.push(spread(core, instance));
    lines.extend(history(instance));
    if let Some(deployment) = state.deployments.get(&key.deployment)
        && instance.version != deployment.number
    {
        let (own, wanted) = (instance.version, deployment.number);
        lines.push(format!("it has version {own} of its deployment, and version {wanted} is wanted: the update has not reached its update domain"));
    }
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
                text = format!("{text}; the host is {}{}", host.state(), silence(core, host, now));
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
        Err(why) => format!("it cannot move away: {why}; `mayfly host undrain` opens a host again"),
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

fn spread(core: &Core, instance: &Instance) -> String {
    let requirements = core.state().role_of(instance).map(|(_, role)| role.requirements()).unwrap_or_default();
    let role = (instance.key.deployment.clone(), instance.key.role.clone());
    let spread = core.state().index.inventory.spread(&role, &requirements);
    let most = 12;
    let mut counts: Vec<String> =
        spread.iter().take(most).map(|(domain, count)| format!("{domain}: {count}")).collect();
    if spread.len() > most {
        counts.push(format!("and {} more fault domains", spread.len() - most));
    }
    let asks = if requirements.is_empty() { String::new() } else { format!(" that has {requirements}") };
    if counts.is_empty() {
        return format!("no fault domain has a host{asks} that takes instances");
    }
    format!(
        "instances of `{}` in each fault domain with a host{asks} that takes instances: {}; a new one goes where the fewest are",
        instance.key.role,
        counts.join(", ")
    )
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
