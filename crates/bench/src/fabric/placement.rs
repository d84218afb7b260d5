//! Placements per second, durable, with every role spread over racks.

use std::path::Path;
use std::time::Instant;

use super::Plan;
use super::region::{CAPACITY, Region};
use super::scheduler::{self, Spreading};
use crate::report::{Comparison, Report, median};

/// What kube-scheduler reaches in its own tests at 5,000 nodes, in pods a second (its thresholds, the higher end): for
/// machines on which it cannot be built.
const KUBE_SCHEDULER: f64 = 810.0;
/// Placements of one measurement, and of one transaction.
const PLACEMENTS: u64 = 60_000;
const BATCH: u64 = 4000;

pub fn measure(report: &mut Report, plan: &Plan<'_>) -> anyhow::Result<()> {
    beside_the_scheduler(report, plan)?;
    let (work, mut costs) = (plan.work, Vec::new());
    for (hosts, goal) in [(1000, 200_000.0), (10_000, 150_000.0), (100_000, 100_000.0)] {
        let rates: Vec<f64> = (0..plan.pairs).map(|_| rate(work, hosts)).collect::<anyhow::Result<_>>()?;
        costs.push(1e6 / median(&rates));
        report.at_least(&format!("placements per second at {hosts} hosts"), median(&rates), "/s", goal);
    }
    report.bound("cost of one at 100,000 hosts, as a multiple of that at 1,000", costs[2] / costs[0], "", 4.0);
    let used = fill(work)?;
    report.at_least("cores used before the first refusal, at 1,000 hosts, spread kept", used * 100.0, "%", 97.0);
    Ok(())
}

/// Placements and pods per second at 5,000 hosts, in turns.
fn beside_the_scheduler(report: &mut Report, plan: &Plan<'_>) -> anyhow::Result<()> {
    let title = "Placements per second at 5,000 hosts, durable, spread over racks of 40";
    let compare = |report: &mut Report, what: &str, ours: &[f64], peer: &[f64], goal: f64| {
        report.compare(&Comparison { what, ours, peer, is_time: false, unit: "/s", goal });
    };
    let Some(program) = plan.scheduler else {
        report.table(title, "kube-scheduler, as published (680 to 810 a second; it could not be built here)");
        let ours = (0..plan.pairs).map(|_| rate(plan.work, 5000)).collect::<anyhow::Result<Vec<_>>>()?;
        compare(report, "a role's instances or pods", &ours, &[KUBE_SCHEDULER], 1000.0);
        report.end();
        return Ok(());
    };
    report.table(title, "kube-scheduler 1.20, built here, by its own benchmark");
    let (mut ours, mut racks, mut anywhere) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..plan.pairs {
        ours.push(rate(plan.work, 5000)?);
        racks.push(scheduler::rate(program, plan.work, Spreading::Racks)?);
        ours.push(rate(plan.work, 5000)?);
        anywhere.push(scheduler::rate(program, plan.work, Spreading::Default)?);
    }
    compare(report, "pods spread over racks likewise", &ours, &racks, 1000.0);
    compare(report, "pods that may stand anywhere, Mayfly's spread", &ours, &anywhere, 500.0);
    report.end();
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
