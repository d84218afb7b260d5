//! Scaling by rules: by the time of day, by the average load of the processors, by a number that the service pushes.

use std::collections::BTreeMap;

use mayfly_model::{Autoscale, Deployment, DeploymentKey, DeploymentStatus, EventKind, Metric, RoleName, Time, limits};

use crate::command::Rejected;
use crate::state::State;
use crate::step::Step;
use crate::{deployments, instances};

/// Between two looks, in ms.
const PERIOD: u64 = 1000;
/// A number that was pushed longer ago says nothing, in ms.
const METRIC_AGE: u64 = 600_000;
const MINUTE: u64 = 60_000;
/// What found no room is tried again after this, in ms.
const RETRY: u64 = 60_000;

/// Takes a number that a service pushes.
pub(crate) fn push(
    step: &mut Step<'_>,
    key: &DeploymentKey,
    role: RoleName,
    name: String,
    value: i64,
) -> Result<(), Rejected> {
    let mut deployment = deployments::find(step, key)?;
    if deployment.version.definition.role(&role).is_none() {
        return Err(Rejected::NotFound { kind: "role", name: role.to_string() });
    }
    let metrics = deployment.metrics.entry(role.clone()).or_default();
    if metrics.len() >= limits::METRICS_MAX && !metrics.contains_key(&name) {
        let most = limits::METRICS_MAX;
        return Err(Rejected::Conflict(format!("`{role}` has {most} numbers already, which is the limit")));
    }
    metrics.insert(name, Metric { value, at: step.now });
    step.put_deployment(deployment);
    Ok(())
}

/// Scales what the rules want scaled.
pub(crate) fn run(step: &mut Step<'_>) {
    if step.state.index.scaling.is_empty() || step.now.since(step.state.index.scaled) < PERIOD {
        return;
    }
    step.state.index.scaled = step.now;
    let scaling: Vec<_> =
        step.state.index.scaling.iter().filter_map(|key| step.state.deployments.get(key)).cloned().collect();
    for deployment in scaling {
        if deployment.status != DeploymentStatus::Running || deployment.upgrade.is_some() {
            continue;
        }
        for role in &deployment.version.configuration.roles {
            let Some(rules) = role.autoscale() else { continue };
            let load = |metric: &str| load(step.state, &deployment, &role.name, metric, step.now);
            let refused = step.state.index.refused.get(&(deployment.key.clone(), role.name.clone()));
            if refused.is_some_and(|at| step.now.since(*at) < RETRY) {
                continue;
            }
            let last = deployment.scaled.get(&role.name).copied().unwrap_or(deployment.created);
            if let Some((count, why)) = next(&rules, role.instances, last, step.now, load) {
                scale(step, &deployment.key, &role.name, count, &why);
            }
        }
    }
}

fn scale(step: &mut Step<'_>, key: &DeploymentKey, role: &RoleName, count: u32, why: &str) {
    let counts = BTreeMap::from([(role.clone(), count)]);
    let waited = step.state.index.waiting.clone();
    let done = step.attempt(|step| {
        deployments::scale(step, key, &counts, Some(why))?;
        instances::settle(step);
        instances::refuse_what_waits(step, &waited)
    });
    if let Err(rejected) = done {
        // What could not be done is tried again, but not at once; that it was tried is no change of the count.
        step.state.index.refused.insert((key.clone(), role.clone()), step.now);
        step.event(EventKind::Autoscale, key, format!("not scaled to {role}={count} ({why}): {rejected}"));
    }
}

/// The count that the rules want now, if it is another, and why. `load` is the present value of a metric.
pub(crate) fn next(
    rules: &Autoscale,
    count: u32,
    last: Time,
    now: Time,
    load: impl Fn(&str) -> Option<i64>,
) -> Option<(u32, String)> {
    let limit =
        |wanted: i64| u32::try_from(wanted.clamp(i64::from(rules.min), i64::from(rules.max))).unwrap_or(rules.max);
    let changed = |wanted: i64, why: String| Some((limit(wanted), why)).filter(|(wanted, _)| *wanted != count);
    // The last entry of today that has come, if the role has not been scaled since.
    let today = now.0 - now.0 % mayfly_model::usage::DAY;
    let due = |at: &&mayfly_model::autoscale::At| {
        let from = today + u64::from(at.minute) * MINUTE;
        from <= now.0 && last.0 < from
    };
    if let Some(at) = rules.schedule.iter().rev().find(due) {
        let why = format!("it is {:02}:{:02} UTC", at.minute / 60, at.minute % 60);
        if let Some(change) = changed(i64::from(at.count), why) {
            return Some(change);
        }
    }
    if count < rules.min || count > rules.max {
        return changed(i64::from(count), format!("it has to be from {} to {}", rules.min, rules.max));
    }
    if now.since(last) < rules.cooldown_seconds.saturating_mul(1000) {
        return None;
    }
    rules.rules.iter().find_map(|rule| {
        let value = load(&rule.metric)?;
        let holds = if rule.above { value > rule.threshold } else { value < rule.threshold };
        let word = if rule.above { "above" } else { "below" };
        let why = format!("{} is {value}, {word} {}", rule.metric, rule.threshold);
        holds.then(|| changed(i64::from(count).saturating_add(rule.step), why)).flatten()
    })
}

fn load(state: &State, deployment: &Deployment, role: &RoleName, metric: &str, now: Time) -> Option<i64> {
    if metric != "cpu" {
        let metric = deployment.metrics.get(role)?.get(metric)?;
        return (now.since(metric.at) <= METRIC_AGE).then_some(metric.value);
    }
    let ready = state.members(&deployment.key, role).filter(|one| one.is_ready());
    let (mut used, mut offered) = (0, 0);
    for instance in ready {
        let vm = instance.vm()?;
        used += state.index.heard.get(&vm.id)?.cpu_milli;
        offered += vm.size.resources().cpu_milli;
    }
    (offered > 0).then(|| i64::try_from(used * 100 / offered).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Autoscale {
        text.parse().unwrap()
    }

    #[test]
    fn load_changes_the_count_within_limits_and_not_too_often() {
        let rules = rules("min=2; max=5; cooldown=60; cpu>70:+2; cpu<20:-1");
        let at = |count, seconds: u64, cpu| {
            next(&rules, count, Time(0), Time(seconds * 1000), |_| cpu).map(|(count, _)| count)
        };
        assert_eq!(at(2, 61, Some(90)), Some(4));
        assert_eq!(at(4, 61, Some(90)), Some(5), "no more than max");
        assert_eq!(at(5, 61, Some(90)), None);
        assert_eq!(at(2, 59, Some(90)), None, "it was changed just now");
        assert_eq!(at(3, 61, Some(10)), Some(2));
        assert_eq!(at(2, 61, Some(10)), None, "no fewer than min");
        assert_eq!(at(3, 61, None), None, "nothing is known");
        assert_eq!(at(1, 5, None), Some(2), "the limits hold at once");
    }

    #[test]
    fn the_clock_changes_the_count_once() {
        let rules = rules("max=9; at 08:00=6; at 20:00=2");
        let hour = 3_600_000;
        let day = 20_000 * mayfly_model::usage::DAY;
        let at = |count, last, now| next(&rules, count, Time(day + last), Time(day + now), |_| None).map(|one| one.0);
        assert_eq!(at(2, 7 * hour, 8 * hour + 1), Some(6));
        assert_eq!(at(6, 8 * hour + 1, 9 * hour), None);
        assert_eq!(at(4, 9 * hour, 10 * hour), None, "a person has changed it since");
        assert_eq!(at(6, 8 * hour + 1, 20 * hour), Some(2));
    }
}
