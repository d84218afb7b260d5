//! kube-scheduler, by its own benchmark: pods that it binds in a second.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

/// Nodes, pods before the measurement, and pods of it.
const NODES: usize = 5000;
const BEFORE: usize = 500;
const MEASURED: usize = 1000;

/// How pods stand.
#[derive(Clone, Copy)]
pub enum Spreading {
    /// The scheduler's own defaults.
    Default,
    /// Evenly over racks, and nowhere else: what Mayfly does for a strict role.
    Racks,
}

/// Its API server sometimes refuses the first pods, as it is not ready yet, and its benchmark then gives up.
const TRIES: usize = 3;

/// Pods bound in a second, at 5,000 nodes in racks of 40.
pub fn rate(program: &Path, work: &Path, spreading: Spreading) -> anyhow::Result<f64> {
    let mut outcome = try_once(program, work, spreading);
    for _ in 1..TRIES {
        outcome = outcome.or_else(|_| try_once(program, work, spreading));
    }
    outcome
}

fn try_once(program: &Path, work: &Path, spreading: Spreading) -> anyhow::Result<f64> {
    let folder = tempfile::tempdir_in(work)?;
    let config = folder.path().join("config");
    std::fs::create_dir(&config)?;
    // JSON is YAML too. The program looks for both files below its working directory.
    std::fs::write(config.join("performance-config.yaml"), workload().to_string())?;
    std::fs::write(config.join("pod.yaml"), pod(spreading).to_string())?;
    let log = std::fs::File::create(folder.path().join("log"))?;
    let status = Command::new(std::fs::canonicalize(program)?)
        .args(["-test.run", "^$", "-test.bench", "BenchmarkPerfScheduling", "-test.benchtime", "1ns"])
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .status()
        .context("cannot run kube-scheduler's benchmark")?;
    let log = std::fs::read_to_string(folder.path().join("log"))?;
    let end = log.lines().rev().take(5).collect::<Vec<_>>();
    ensure!(status.success(), "kube-scheduler's benchmark: {status}: {end:?}");
    let results = std::fs::read_dir(folder.path())?.flatten().map(|entry| entry.path());
    let mut results = results.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    let results: Value = serde_json::from_slice(&std::fs::read(results.next().context("it left no results")?)?)?;
    let items = results["dataItems"].as_array().context("results without items")?;
    let throughput = items.iter().find(|item| item["labels"]["Metric"] == "SchedulingThroughput");
    throughput.and_then(|item| item["data"]["Average"].as_f64()).context("results without a throughput")
}

fn workload() -> Value {
    let racks: Vec<String> = (0..NODES / super::region::RACK).map(|rack| format!("rack-{rack}")).collect();
    let pods = |count: usize| json!({ "opcode": "createPods", "count": count, "podTemplatePath": "config/pod.yaml" });
    let mut measured = pods(MEASURED);
    measured["collectMetrics"] = json!(true);
    let labels = json!({ "labelKey": "rack", "labelValues": racks });
    let nodes = json!({ "opcode": "createNodes", "count": NODES, "labelNodePrepareStrategy": labels });
    let template = json!([nodes, pods(BEFORE), measured]);
    json!([{ "name": "Pods", "workloadTemplate": template, "workloads": [{ "name": "5000Nodes", "params": {} }] }])
}

fn pod(spreading: Spreading) -> Value {
    let container = json!({
        "image": "pause",
        "name": "pause",
        "resources": { "requests": { "cpu": "100m", "memory": "500Mi" } },
    });
    let mut spec = json!({ "containers": [container] });
    if let Spreading::Racks = spreading {
        spec["topologySpreadConstraints"] = json!([{
            "maxSkew": 1,
            "topologyKey": "rack",
            "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": { "matchLabels": { "role": "web" } },
        }]);
    }
    let metadata = json!({ "generateName": "web-", "labels": { "role": "web" } });
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec })
}
