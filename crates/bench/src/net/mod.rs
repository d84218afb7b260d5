//! The data plane: load balancing beside HAProxy, DNS beside dnsmasq and Knot, and what changes cost.

#[path = "../../../net/tests/kernel/lab.rs"]
#[expect(dead_code, reason = "the tests use what the benchmarks do not")]
mod lab;
mod live;
mod names;
mod rules;
mod throughput;

pub use names::serve;

use std::path::Path;

use mayfly_model::Transit;

use crate::report::Report;

/// Everything, in turns.
pub fn measure(report: &mut Report, work: &Path, mayfly: &Path, pairs: usize, seconds: u32) -> anyhow::Result<()> {
    throughput::measure(report, work, (pairs, seconds), Transit::Routed)?;
    throughput::measure(report, work, (pairs, seconds), Transit::Vxlan)?;
    throughput::explain(report);
    rules::measure(report)?;
    names::measure(report, work, pairs, seconds)?;
    live::measure(report, work, mayfly)
}
