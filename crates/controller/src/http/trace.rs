//! Whether a packet would pass, and which rule decides: the plan of the sender's host, in words.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use mayfly_api::{ApiError, ErrorCode, TraceStep, TraceView};
use mayfly_fabric::{Core, goal, names};
use mayfly_model::{
    EGRESS_FEATURE, Host, HostCondition, HostName, Instance, InstanceKey, InstanceStatus, NetworkGoal, Transport,
};
use mayfly_net::Transit;
use mayfly_net::address::tap_name;
use mayfly_net::plan::trace::{Receiver, Sender, trace};
use mayfly_net::plan::{Health, Inputs, LocalGuest};
use serde::Deserialize;

use super::Shared;
use super::error::{Failure, invalid};

#[derive(Deserialize)]
pub(super) struct Way {
    from: String,
    to: String,
}

enum From {
    Instance(InstanceKey),
    Outside(Ipv4Addr),
}

pub(super) async fn show(
    State(shared): State<Arc<Shared>>,
    Query(way): Query<Way>,
) -> Result<Json<TraceView>, Failure> {
    let from = match way.from.parse::<Ipv4Addr>() {
        Ok(address) => From::Outside(address),
        Err(_) => From::Instance(way.from.parse().map_err(|_| {
            invalid(format!("`{}` is neither an instance, such as shop/web_IN_0, nor an IPv4 address", way.from))
        })?),
    };
    let to = Target::read(&way.to).ok_or_else(|| {
        invalid(format!(
            "`{}` is no destination; write ADDRESS:PORT, NAME:PORT, or either with /udp at its end",
            way.to
        ))
    })?;
    let view = shared.driver.read(|core| follow(core, &from, &to)).await?;
    Ok(Json(view?))
}

/// Where to, as people write it.
struct Target {
    host: String,
    port: u16,
    protocol: Transport,
}

impl Target {
    fn read(text: &str) -> Option<Target> {
        let (rest, protocol) = match text.rsplit_once('/') {
            Some((rest, "udp")) => (rest, Transport::Udp),
            Some((rest, "tcp")) => (rest, Transport::Tcp),
            Some(_) => return None,
            None => (text, Transport::Tcp),
        };
        let (host, port) = rest.rsplit_once(':')?;
        let port = port.parse().ok().filter(|port| *port > 0)?;
        (!host.is_empty()).then(|| Target { host: host.trim_end_matches('.').to_ascii_lowercase(), port, protocol })
    }
}

fn follow(core: &Core, from: &From, to: &Target) -> Result<TraceView, ApiError> {
    let (name, address) = match to.host.parse::<Ipv4Addr>() {
        Ok(address) => (None, address),
        Err(_) => {
            let records = names::addresses(core);
            let found = records.iter().find(|record| record.name == to.host).map(|record| record.address);
            let message = || format!("`{}` is no name of the zone {}; give an address", to.host, core.config().zone);
            (Some(to.host.clone()), found.ok_or_else(|| ApiError::new(ErrorCode::NotFound, message()))?)
        }
    };
    let receiver = Receiver { name, address, protocol: to.protocol, port: to.port };
    let network = goal::network(core);
    let steps = match from {
        From::Outside(source) => outside(core, &network, *source, &receiver),
        From::Instance(key) => {
            let instance = core.state().instances().get(key);
            let missing = || ApiError::new(ErrorCode::NotFound, format!("there is no instance `{key}`"));
            inside(core, &network, instance.ok_or_else(missing)?, &receiver)
        }
    };
    let passes = steps.last().is_some_and(|step| step.passes);
    let port = format!("{}:{}/{}", receiver.address, receiver.port, receiver.protocol.as_str());
    Ok(TraceView { to: port, passes, steps })
}

fn outside(core: &Core, network: &NetworkGoal, source: Ipv4Addr, to: &Receiver) -> Vec<TraceStep> {
    // Whoever has the address, the rules are the same.
    let Some(host) = core.state().hosts().values().next() else {
        return vec![TraceStep { rule: "there is no host".to_owned(), passes: false }];
    };
    with_inputs(core, network, host, &[], |inputs| trace(inputs, Sender::Outside(source), to))
}

fn inside(core: &Core, network: &NetworkGoal, instance: &Instance, to: &Receiver) -> Vec<TraceStep> {
    let stopped = |rule: String| vec![TraceStep { rule, passes: false }];
    let Some(vm) = instance.vm() else { return stopped(format!("{} has no VM now", instance.key)) };
    let Some(host) = core.state().hosts().get(&vm.host) else { return stopped(format!("{} is gone", vm.host)) };
    if matches!(host.condition, HostCondition::Lost { .. }) {
        return stopped(format!("{} is Lost: it takes its guests off the network by itself", host.name));
    }
    let wanted = goal::vms(core.state(), &host.name).into_iter().find(|one| one.vm == vm.id);
    let Some(wanted) = wanted else { return stopped(format!("{} is going away", vm.id)) };
    let guest = LocalGuest {
        tap: tap_name(vm.id),
        dip: wanted.dip,
        mac: wanted.mac(),
        deployment_id: wanted.deployment_id,
        egress: wanted.egress,
    };
    let guests = [guest];
    with_inputs(core, network, host, &guests, |inputs| trace(inputs, Sender::Guest(&guests[0]), to))
}

fn with_inputs(
    core: &Core,
    network: &NetworkGoal,
    host: &Host,
    guests: &[LocalGuest],
    act: impl FnOnce(&Inputs<'_>) -> Vec<mayfly_net::plan::trace::Step>,
) -> Vec<TraceStep> {
    let up = core.state().hosts().values().filter(|host| host.condition == HostCondition::Up);
    let live: BTreeSet<HostName> = up.map(|host| host.name.clone()).collect();
    // What hosts know of probes is known here as readiness.
    let ready: BTreeSet<_> = core
        .state()
        .instances()
        .values()
        .filter(|one| one.state.status() == InstanceStatus::ReadyRole)
        .filter_map(|one| Some(one.vm()?.id))
        .collect();
    let backends = network.vips.iter().flat_map(|vip| &vip.endpoints).flat_map(|endpoint| &endpoint.backends);
    let healthy = backends.filter(|backend| ready.contains(&backend.vm));
    let health: Health = healthy.map(|backend| (backend.vm, backend.probe.clone())).collect();
    let underlay = host.features.contains(EGRESS_FEATURE).then_some("");
    // How packets get to other hosts decides nothing.
    let transit = Transit::default();
    let inputs = Inputs { host: &host.name, goal: network, guests, health: &health, live: &live, underlay, transit };
    act(&inputs).into_iter().map(|step| TraceStep { rule: step.rule, passes: step.passes }).collect()
}
