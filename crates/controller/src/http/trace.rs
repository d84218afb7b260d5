//! Whether a packet would pass, and which rule decides: the plan of the sender's host, in words.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use mayfly_api::{ApiError, ErrorCode, TraceStep, TraceView};
use mayfly_fabric::{Core, goal, names};
use mayfly_model::{
    EGRESS_FEATURE, EGRESS6_FEATURE, Host, HostCondition, HostName, Instance, InstanceKey, InstanceStatus, NetworkGoal,
    Transit, Transport,
};
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
    Outside(IpAddr),
}

pub(super) async fn show(
    State(shared): State<Arc<Shared>>,
    Query(way): Query<Way>,
) -> Result<Json<TraceView>, Failure> {
    let from = match way.from.parse::<IpAddr>() {
        Ok(address) => From::Outside(address),
        Err(_) => From::Instance(way.from.parse().map_err(|_| {
            invalid(format!("`{}` is neither an instance, such as shop/web_IN_0, nor an address", way.from))
        })?),
    };
    let to = Target::read(&way.to).ok_or_else(|| {
        invalid(format!(
            "`{}` is no destination; write ADDRESS:PORT, [IPV6-ADDRESS]:PORT or NAME:PORT, each with /udp at its end if it is \
             no TCP",
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
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        (!host.is_empty()).then(|| Target { host: host.trim_end_matches('.').to_ascii_lowercase(), port, protocol })
    }
}

fn follow(core: &Core, from: &From, to: &Target) -> Result<TraceView, ApiError> {
    let (name, address) = match to.host.parse::<IpAddr>() {
        Ok(address) => (None, address),
        Err(_) => {
            let records = names::addresses(core);
            let found = records.iter().filter(|record| record.name == to.host).map(|record| record.address);
            // The same version as the sender's, if it says which.
            let newer = matches!(from, From::Outside(IpAddr::V6(_)));
            let found = found.min_by_key(|address| (address.is_ipv6() != newer, *address));
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
    let door = std::net::SocketAddr::new(receiver.address, receiver.port);
    let port = format!("{door}/{}", receiver.protocol.as_str());
    Ok(TraceView { to: port, passes, steps })
}

fn outside(core: &Core, network: &NetworkGoal, source: IpAddr, to: &Receiver) -> Vec<TraceStep> {
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
    let wanted = goal::vms(core, &host.name).into_iter().find(|one| one.vm == vm.id);
    let Some(wanted) = wanted else { return stopped(format!("{} is going away", vm.id)) };
    let guest = LocalGuest {
        tap: tap_name(vm.id),
        dip: wanted.dip,
        ipv6: wanted.ipv6.is_some(),
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
    let leads_out = |feature: &str| host.features.contains(feature).then_some("");
    let (underlay, underlay6) = (leads_out(EGRESS_FEATURE), leads_out(EGRESS6_FEATURE));
    // How packets get to other hosts decides nothing.
    let transit = Transit::default();
    let (host, health, live) = (&host.name, &health, &live);
    let inputs = Inputs {
        host,
        goal: network,
        guests,
        health,
        live,
        underlay,
        underlay6,
        closed: &[],
        transit,
        direct_return: true,
    };
    act(&inputs).into_iter().map(|step| TraceStep { rule: step.rule, passes: step.passes }).collect()
}
