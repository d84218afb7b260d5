//! Who may talk to this host's guests: their own deployment, as its definition says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use mayfly_model::{EndpointProtocol, GuardGoal, Pass, RoleName, RouteGoal};

use crate::plan::family::Family;
use crate::plan::ruleset::{Elements, Ruleset};
use crate::plan::{Inputs, LocalGuest};

/// The set of a deployment's addresses.
pub(super) fn deployment_set(deployment_id: &str, family: Family) -> String {
    family.named(&format!("d_{deployment_id}"))
}

/// Writes who may talk to whom.
pub(super) fn members(rules: &mut Ruleset, inputs: &Inputs<'_>, own: &BTreeMap<Ipv4Addr, &LocalGuest>) {
    for family in Family::of(inputs) {
        members_of(rules, inputs, own, family);
    }
}

fn members_of(rules: &mut Ruleset, inputs: &Inputs<'_>, own: &BTreeMap<Ipv4Addr, &LocalGuest>, family: Family) {
    let (kind, ip) = (family.kind(), family.word());
    let (verdicts, addresses) = (format!("type {kind} : verdict;"), format!("type {kind};"));
    let address = |route: &RouteGoal| family.address(route.dip).to_string();
    let mut deployments: BTreeMap<&str, Vec<&RouteGoal>> = BTreeMap::new();
    for route in inputs.goal.routes.iter().filter(|route| route.ipv6 || family == Family::V4) {
        deployments.entry(&route.deployment_id).or_default().push(route);
    }
    let (mut homes, mut friends) = (Elements::map(&verdicts), Elements::map(&verdicts));
    for (id, routes) in deployments {
        let here: Vec<&&RouteGoal> = routes.iter().filter(|route| own.contains_key(&route.dip)).collect();
        if here.is_empty() {
            continue;
        }
        let all = Elements::set(&addresses).with(routes.iter().map(|route| address(route)));
        rules.sets.insert(deployment_set(id, family), all);
        // Roles that rules name and that have no instances now have numbers too.
        let guards = inputs.goal.guards.iter().filter(|guard| guard.deployment_id == id);
        let named = guards.flat_map(|guard| &guard.passes).flat_map(|pass| &pass.from_roles);
        let roles: BTreeSet<&RoleName> = routes.iter().map(|route| &route.role).chain(named).collect();
        let numbers: BTreeMap<&RoleName, usize> = roles.into_iter().zip(0..).collect();
        for route in here {
            let guard = inputs.goal.guards.iter().find(|guard| guard.deployment_id == id && guard.role == route.role);
            let chain = match guard {
                Some(guard) => {
                    let chain = family.named(&format!("t_{id}_{}", numbers[&route.role]));
                    rules.chains.entry(chain.clone()).or_insert_with(|| guarded(guard, &numbers, family));
                    for role in guard.passes.iter().flat_map(|pass| &pass.from_roles) {
                        let of_role = routes.iter().filter(|route| route.role == *role);
                        let set = Elements::set(&addresses).with(of_role.map(|route| address(route)));
                        rules.sets.insert(role_set(id, numbers[role], family), set);
                    }
                    chain
                }
                None => {
                    let chain = family.named(&format!("t_{id}"));
                    let open = format!("{ip} saddr @{} accept\n", deployment_set(id, family));
                    rules.chains.entry(chain.clone()).or_insert(open);
                    chain
                }
            };
            homes.elements.insert(address(route), format!("jump {chain}"));
            let out = family.named(&format!("f_{id}"));
            friends.elements.insert(address(route), format!("jump {out}"));
            rules.chains.entry(out).or_insert_with(|| format!("{ip} daddr @{} accept\n", deployment_set(id, family)));
        }
    }
    rules.sets.insert(family.named("homes"), homes);
    rules.sets.insert(family.named("friends"), friends);
}

fn role_set(deployment_id: &str, number: usize, family: Family) -> String {
    family.named(&format!("r_{deployment_id}_{number}"))
}

/// What a role lets through that is guarded.
fn guarded(guard: &GuardGoal, numbers: &BTreeMap<&RoleName, usize>, family: Family) -> String {
    let (mut text, ip) = (String::new(), family.word());
    for pass in &guard.passes {
        let what = ports(pass);
        if pass.from_roles.is_empty() {
            text.push_str(&format!("{ip} saddr @{} {what}accept\n", deployment_set(&guard.deployment_id, family)));
        }
        for role in &pass.from_roles {
            let set = role_set(&guard.deployment_id, numbers[role], family);
            text.push_str(&format!("{ip} saddr @{set} {what}accept\n"));
        }
    }
    text
}

fn ports(pass: &Pass) -> String {
    let protocol = if pass.protocol.is_udp() { "udp" } else { "tcp" };
    match (pass.protocol, pass.ports) {
        (EndpointProtocol::Any, None) => String::new(),
        (EndpointProtocol::Any, Some(ports)) => format!("th dport {}-{} ", ports.min, ports.max),
        (_, None) => format!("meta l4proto {protocol} "),
        (_, Some(ports)) => format!("{protocol} dport {}-{} ", ports.min, ports.max),
    }
}
