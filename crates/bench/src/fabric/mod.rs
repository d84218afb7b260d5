//! The fabric core, its store and its controller.

mod healing;
mod load;
mod placement;
mod region;
mod scheduler;
mod simulation;
mod writes;

pub use load::load;

use std::path::Path;

use crate::report::Report;

/// A part of this bench.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Placements per second
    Placement,
    /// From a host's death to the decision
    Healing,
    /// Management writes beside etcd
    Writes,
    /// Memory and start
    Load,
    /// Simulated events
    Simulation,
}

/// How it is measured.
pub struct Plan<'a> {
    /// Where files are made.
    pub work: &'a Path,
    /// kube-scheduler's own benchmark, if it could be built.
    pub scheduler: Option<&'a Path>,
    /// The program.
    pub mayfly: &'a Path,
    /// Pairs of measurements, and seconds of each that lasts.
    pub pairs: usize,
    pub seconds: u32,
    /// Only this part.
    pub only: Option<Part>,
}

/// Everything, in turns.
pub fn measure(report: &mut Report, plan: &Plan<'_>) -> anyhow::Result<()> {
    let wants = |part| plan.only.is_none_or(|only| only == part);
    if wants(Part::Placement) {
        placement::measure(report, plan)?;
    }
    if wants(Part::Healing) {
        healing::measure(report, plan.work)?;
    }
    if wants(Part::Writes) {
        writes::measure(report, plan.work, plan.mayfly, plan.pairs, plan.seconds)?;
    }
    if wants(Part::Load) {
        load::measure(report, plan.work)?;
    }
    if wants(Part::Simulation) {
        simulation::measure(report);
    }
    Ok(())
}
