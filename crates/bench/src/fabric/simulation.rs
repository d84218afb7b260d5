//! How fast the simulation is.

use std::time::Instant;

use mayfly_sim::{Options, Summary, run};

use crate::report::Report;

const SEEDS: u64 = 40;

pub fn measure(report: &mut Report) {
    let began = Instant::now();
    let total = (0..SEEDS).fold(Summary::default(), |total, seed| match run(seed, Options::default()) {
        Ok(summary) => total.plus(summary),
        Err(failure) => {
            report.say(&format!("seed {seed} fails: {failure}"));
            total
        }
    });
    let (seconds, simulated) = (began.elapsed().as_secs_f64(), total.millis as f64 / 1000.0);
    report.say(&format!(
        "### Simulation\n\n50 hosts, one thread: {:.2} million events a second, {:.0} times as fast as time.",
        total.events as f64 / seconds / 1e6,
        simulated / seconds
    ));
    report.at_least("simulated events per second", total.events as f64 / seconds, "", 1e6);
}
