//! The fabric core, its store and its controller.

mod healing;
mod load;
mod placement;
mod region;
mod simulation;
mod writes;

pub use load::load;

use std::path::Path;

use crate::report::Report;

/// Everything, in turns.
pub fn measure(report: &mut Report, work: &Path, mayfly: &Path, pairs: usize, seconds: u32) -> anyhow::Result<()> {
    placement::measure(report, work, pairs)?;
    healing::measure(report, work)?;
    writes::measure(report, work, mayfly, pairs, seconds)?;
    load::measure(report, work)?;
    simulation::measure(report);
    Ok(())
}
