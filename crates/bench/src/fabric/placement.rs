//! Placements per second, durable, with every role spread over racks.

use std::path::Path;
use std::time::Instant;

use super::region::{CAPACITY, Region};
use crate::report::{Comparison, Report, median};

/// What kube-scheduler reaches in its own tests at 5,000 nodes, in pods a second (its thresholds, the higher end).
const KUBE_SCHEDULER: f64 = 810.0;
/// Placements of one measurement, and of one transaction.
const PLACEMENTS: u64 = 60_000;
const BATCH: u64 = 4000;

pub fn measure(report: &mut Report, work: &Path, pairs: usize) -> anyhow::Result<()> {
    report.table(
        "Placements per second, durable, spread over racks of 40 hosts",
        "kube-scheduler at 5,000 nodes, as published (680 to 810 a second; not run here)",
    );
    let (mut costs, mut absolute) = (Vec::new(), Vec::new());
    for (hosts, goal) in [(1000, 200_000.0), (10_000, 150_000.0), (100_000, 100_000.0)] {
        let rates: Vec<f64> = (0..pairs).map(|_| rate(work, hosts)).collect::<anyhow::Result<_>>()?;
        costs.push(1e6 / median(&rates));
        report.compare(&Comparison {
            what: &format!("{hosts} hosts"),
            ours: &rates,
            peer: &[KUBE_SCHEDULER],
            is_time: false,
            unit: "/s",
            goal: 1000.0,
        });
        absolute.push((hosts, median(&rates), goal));
    }
    report.end();
    for (hosts, rate, goal) in absolute {
        report.at_least(&format!("placements per second at {hosts} hosts"), rate, "/s", goal);
    }
    report.bound("cost of one at 100,000 hosts, as a multiple of that at 1,000", costs[2] / costs[0], "", 4.0);
    let used = fill(work)?;
    report.at_least("cores used before the first refusal, at 1,000 hosts, spread kept", used * 100.0, "%", 97.0);
    Ok(())
}

/// Placements per second until so many are made, or nine tenths of the cores are used.
fn rate(work: &Path, hosts: usize) -> anyhow::Result<f64> {
    let folder = tempfile::tempdir_in(work)?;
    let mut region = Region::new(hosts, &folder.path().join("records.redb"))?;
    let (mut placed, mut pending) = (0u64, 0u64);
    let most = (hosts as u64 * CAPACITY.cpu_milli / 3050 * 8 / 10).min(PLACEMENTS);
    let began = Instant::now();
    while placed < most {
        let count = u64::from(region.deploy()?);
        (placed, pending) = (placed + count, pending + count);
        if pending >= BATCH {
            region.commit()?;
            pending = 0;
        }
    }
    region.commit()?;
    region.settle()?;
    Ok(placed as f64 / began.elapsed().as_secs_f64())
}

/// The share of the cores that is used when the first role finds no place.
fn fill(work: &Path) -> anyhow::Result<f64> {
    let folder = tempfile::tempdir_in(work)?;
    let mut region = Region::new(1000, &folder.path().join("records.redb"))?;
    while region.deploy().is_ok() {}
    let used: u64 = region.core.state().hosts().keys().map(|host| region.core.state().used_on(host).cpu_milli).sum();
    Ok(used as f64 / (1000 * CAPACITY.cpu_milli) as f64)
}
