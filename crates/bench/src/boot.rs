//! Booting from an image of which nothing is on the host, over a slow link, beside copying it first.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use mayfly_xtask::fabric::{DevFabric, wait_until};
use mayfly_xtask::{image, workspace};
use rand::RngCore;

use crate::peers;
use crate::report::{Comparison, Report};

/// Bytes of the disk and of the data in it.
const DISK: u64 = 2 << 30;
const DATA: u64 = 1 << 30;
const LINK: &str = "200mbit";

const DEFINITION: &str = r#"<ServiceDefinition name="Bench" xmlns="http://schemas.microsoft.com/ServiceHosting/2008/10/ServiceDefinition">
<VirtualMachineRole name="web" vmsize="ExtraSmall"><Endpoints><InputEndpoint name="web" protocol="tcp" port="80" localPort="80"/>
</Endpoints></VirtualMachineRole></ServiceDefinition>"#;
const CONFIGURATION: &str = r#"<ServiceConfiguration serviceName="Bench" xmlns="http://schemas.microsoft.com/ServiceHosting/2008/10/ServiceConfiguration">
<Role name="web"><OsImage href="large"/><Instances count="1"/></Role></ServiceConfiguration>"#;

pub fn measure(report: &mut Report, mayfly: &Path) -> anyhow::Result<()> {
    let work = tempfile::Builder::new().prefix("mayfly-bench-").tempdir()?;
    let file = large_image(work.path())?;
    let fabric = DevFabric::new(mayfly, &work.path().join("state"));
    fabric.run(&["dev", "up"])?;
    fabric.run(&["image", "push", &file.to_string_lossy(), "--name", "large"])?;
    std::fs::remove_file(&file)?;
    slow_down(&fabric)?;
    let (definition, configuration) = (work.path().join("bench.csdef"), work.path().join("bench.cscfg"));
    std::fs::write(&definition, DEFINITION)?;
    std::fs::write(&configuration, CONFIGURATION)?;
    fabric.run(&["service", "create", "bench"])?;
    let (definition, configuration) = (definition.to_string_lossy(), configuration.to_string_lossy());
    let began = Instant::now();
    fabric.run(&["service", "deploy", "bench", "--definition", &definition, "--configuration", &configuration])?;
    wait(&fabric, "the guest is ready", |one| one["state"] == "ReadyRole")?;
    let cold = began.elapsed().as_secs_f64();
    let fetched = bytes(&fabric)?;
    let data = fabric.json(&["image", "list"])?[0]["data_bytes"].as_u64().context("no data")?;
    let (start, since) = (bytes(&fabric)?, Instant::now());
    wait(&fabric, "the whole image is there", |one| one["image_bytes"] == data)?;
    let rate = (data - start) as f64 / since.elapsed().as_secs_f64();
    let began = Instant::now();
    fabric.run(&["instance", "reimage", "bench/web_IN_0", "--wait", "--timeout", "120s"])?;
    let warm = began.elapsed().as_secs_f64();
    let first = data as f64 / rate + warm;
    report
        .table("Boot over 200 Mbit/s from a 2 GiB image with 1 GiB of data, none of it on the host", "copy, then boot");
    let what = "command to Ready";
    report.compare(&Comparison { what, ours: &[cold], peer: &[first], is_time: true, unit: "s", goal: 3.0 });
    report.end();
    let mebibytes = |bytes: f64| format!("{:.0} MiB", bytes / f64::from(1 << 20));
    report.say(&format!(
        "- {} of {} had been fetched when the guest was ready; from a warm base it takes {warm:.1} s; the rest came at {} a second",
        mebibytes(fetched as f64),
        mebibytes(data as f64),
        mebibytes(rate)
    ));
    fabric.run(&["dev", "down", "--purge"]).map(drop)
}

/// The demo image with a gibibyte of other data behind it.
fn large_image(folder: &Path) -> anyhow::Result<PathBuf> {
    let demo = std::fs::read(image::build(&workspace())?)?;
    let path = folder.join("large.vhd");
    let mut file = std::fs::File::create(&path)?;
    file.write_all(&demo[..demo.len() - 512])?;
    let mut data = vec![0; 1 << 20];
    for _ in 0..DATA >> 20 {
        rand::rng().fill_bytes(&mut data);
        file.write_all(&data)?;
    }
    drop(file);
    let file = std::fs::OpenOptions::new().write(true).open(&path)?;
    let options = mayfly_vhd::CreateOptions { unique_id: rand::random(), timestamp: 1, durable: false };
    std::os::unix::fs::FileExt::write_all_at(&file, &mayfly_vhd::fixed_footer(DISK, &options).encode(), DISK)?;
    Ok(path)
}

/// Limits what goes to each host.
fn slow_down(fabric: &DevFabric) -> anyhow::Result<()> {
    let ports = peers::run("ip", &["-o", "link", "show", "master", &fabric.bridge()?])?;
    let names: Vec<&str> = ports.lines().filter_map(|line| line.split([':', '@']).nth(1)).map(str::trim).collect();
    ensure!(!names.is_empty(), "the fabric's bridge has no ports");
    for name in names {
        let rule = ["qdisc", "add", "dev", name, "root", "tbf", "rate", LINK, "burst", "256k", "latency", "200ms"];
        peers::run("tc", &rule)?;
    }
    Ok(())
}

fn wait(fabric: &DevFabric, what: &str, is_so: impl Fn(&serde_json::Value) -> bool) -> anyhow::Result<()> {
    wait_until(what, Duration::from_secs(300), || Ok(is_so(&fabric.instance("bench", "web_IN_0")?)))
}

fn bytes(fabric: &DevFabric) -> anyhow::Result<u64> {
    fabric.instance("bench", "web_IN_0")?["image_bytes"].as_u64().context("nobody says how much is there")
}
