//! What the fabric counts, in the text format of Prometheus (version 0.0.4 of its exposition formats).

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use mayfly_fabric::{Core, goal};
use mayfly_net::plan::endpoint_name;

use super::Shared;
use super::error::Failure;
use crate::invariants::Sample;
use crate::usage::Usage;

pub(super) async fn show(State(shared): State<Arc<Shared>>) -> Result<Response, Failure> {
    let mut text = shared.driver.read(|core| metrics(core, &shared.usage)).await?;
    invariants(&mut text, &shared.invariants.last());
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response())
}

fn metrics(core: &Core, usage: &Usage) -> String {
    let mut text = String::new();
    states(&mut text, core);
    traffic(&mut text, core, usage);
    counters(&mut text, core, usage);
    text
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// Whether the records are as they have to be.
fn invariants(text: &mut String, sample: &Sample) {
    let name = "mayfly_invariant_samples_total";
    head(text, name, "counter", "How often the records were looked at, in fabrics of up to 50,000 instances.");
    let _ = writeln!(text, "{name} {}", sample.count);
    let name = "mayfly_invariant_violations";
    head(
        text,
        name,
        "gauge",
        "How often the design's invariants were broken in the last sample; always 0, or it is a bug.",
    );
    for (number, count) in &sample.broken {
        let _ = writeln!(text, "{name}{{invariant=\"{number}\"}} {count}");
    }
}

/// How many instances and hosts are in which state.
fn states(text: &mut String, core: &Core) {
    let state = core.state();
    let mut instances: BTreeMap<(String, String), u64> = BTreeMap::new();
    for one in state.instances().values() {
        *instances.entry((one.key.deployment.to_string(), one.state.status().to_string())).or_default() += 1;
    }
    head(text, "mayfly_instances", "gauge", "Role instances by deployment and state.");
    for ((deployment, state), count) in instances {
        let _ = writeln!(text, "mayfly_instances{{deployment=\"{deployment}\",state=\"{state}\"}} {count}");
    }
    let mut hosts: BTreeMap<String, u64> = BTreeMap::new();
    for host in state.hosts().values() {
        *hosts.entry(host.state().to_string()).or_default() += 1;
    }
    head(text, "mayfly_hosts", "gauge", "Hosts by state.");
    for (state, count) in hosts {
        let _ = writeln!(text, "mayfly_hosts{{state=\"{state}\"}} {count}");
    }
}

/// What each VM has sent and received.
fn traffic(text: &mut String, core: &Core, usage: &Usage) {
    let vms: Vec<_> = core
        .state()
        .instances()
        .values()
        .filter_map(|one| {
            let vm = one.vm()?;
            Some((&one.key, vm.id, usage.of(&vm.host, vm.id)?.traffic))
        })
        .collect();
    for (name, help, of) in [
        ("mayfly_instance_sent_bytes_total", "Bytes that the instance's VM has sent.", 0),
        ("mayfly_instance_received_bytes_total", "Bytes that the instance's VM has received.", 1),
    ] {
        head(text, name, "counter", help);
        for (key, vm, traffic) in &vms {
            let value = [traffic.sent, traffic.received][of];
            let _ = writeln!(text, "{name}{{instance=\"{key}\",vm=\"{vm}\"}} {value}");
        }
    }
}

/// What the hosts' kernels have counted: connections by endpoint, and packets that were dropped.
fn counters(text: &mut String, core: &Core, usage: &Usage) {
    let network = goal::network(core);
    let mut endpoints = BTreeMap::new();
    for vip in &network.vips {
        for endpoint in &vip.endpoints {
            let door = format!("{}:{}/{}", vip.vip, endpoint.port, if endpoint.udp { "udp" } else { "tcp" });
            endpoints.insert(endpoint_name(vip.vip, endpoint), (endpoint.name.clone(), door));
        }
    }
    let counted = usage.counters();
    let name = "mayfly_endpoint_connections_total";
    head(text, name, "counter", "Connections that a host has balanced, by endpoint.");
    for (host, counters) in &counted {
        for (counter, count) in counters {
            if let Some((endpoint, door)) = endpoints.get(counter) {
                let _ = writeln!(text, "{name}{{host=\"{host}\",endpoint=\"{endpoint}\",door=\"{door}\"}} {count}");
            }
        }
    }
    let name = "mayfly_dropped_packets_total";
    head(text, name, "counter", "Packets to and from guests that a host has dropped, by reason.");
    for (host, counters) in &counted {
        for (reason, count) in counters.iter().filter(|(counter, _)| !counter.contains('.')) {
            let _ = writeln!(text, "{name}{{host=\"{host}\",reason=\"{reason}\"}} {count}");
        }
    }
}
