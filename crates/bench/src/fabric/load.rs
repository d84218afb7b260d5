//! Memory and start of a controller with many instances.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;
use mayfly_controller::stored::read;
use mayfly_fabric::Core;
use mayfly_model::{Time, VmSize};
use mayfly_store::{EmbeddedStore, StoreError};

use super::region::{Region, config};
use crate::report::Report;

pub fn measure(report: &mut Report, work: &Path) -> anyhow::Result<()> {
    report.say("### Memory and start\n\nA process that loads the records of so many instances and nothing else.");
    for (instances, hosts, memory, seconds) in [(10_000, 1000, 64.0, 0.1), (1_000_000, 100_000, 600.0, 3.0)] {
        let folder = tempfile::tempdir_in(work)?;
        let file = folder.path().join("records.redb");
        {
            let mut region = Region::new(hosts, &file)?;
            while region.core.state().instances().len() < instances {
                for _ in 0..50 {
                    region.deploy_of(20, VmSize::Small)?;
                }
                region.commit()?;
            }
            region.settle()?;
        }
        // The thread that wrote closes the file when it ends, which takes its time.
        while matches!(EmbeddedStore::open(&file), Err(StoreError::InUse(_))) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let output = Command::new(std::env::current_exe()?).arg("load").arg(&file).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut figures = text.split_whitespace().filter_map(|figure| figure.parse::<f64>().ok());
        let mut next = || figures.next().with_context(|| format!("the loading process said: {text}"));
        let (took, resident) = (next()?, next()?);
        report.bound(&format!("memory with {instances} instances"), resident, "MiB", memory);
        report.bound(&format!("start with {instances} instances"), took, "s", seconds);
    }
    Ok(())
}

/// Loads a store as a controller does, and prints the seconds and the MiB that it took.
pub fn load(file: &Path) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut store = EmbeddedStore::open(file)?;
    let (core, _) = read(&mut store, |records| Core::start(records, 1, config(), Time(1)))?;
    let took = began.elapsed().as_secs_f64();
    let status = std::fs::read_to_string("/proc/self/status")?;
    let resident =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    let resident: f64 = resident.context("no VmHWM")?;
    println!("{took:.3} {:.1} {}", resident / 1024.0, core.state().instances().len());
    Ok(())
}
