//! `mayfly-sim`: runs seeds, repeats and shrinks failures, and proves that planted mistakes are found.

use std::ops::Range;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use mayfly_sim::{Failure, Fault, Options, Plant, Summary, run, shrink};

/// Simulates the fabric: the real core among thousands of simulated hosts, faults and clocks.
#[derive(Parser)]
#[command(name = "mayfly-sim", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run seeds; a failure is made smaller, and printed with the command that repeats it
    Run {
        /// One seed
        #[arg(long, conflicts_with = "seeds")]
        seed: Option<u64>,
        /// Seeds FIRST..LAST, the last one not included [default: without end, from a random one]
        #[arg(long, value_name = "FIRST..LAST", value_parser = range)]
        seeds: Option<Range<u64>>,
        /// Stop after so many minutes of real time
        #[arg(long)]
        minutes: Option<u64>,
        /// Show a failure as it is found, without making it smaller
        #[arg(long)]
        no_shrink: bool,
        #[command(flatten)]
        world: World,
    },
    /// Plant each mistake in turn and look for a seed that shows it; fails if one is not found
    Mutants {
        /// Seeds to try for each
        #[arg(long, default_value_t = 1200)]
        seeds: u64,
        #[command(flatten)]
        world: World,
    },
}

#[derive(Args)]
struct World {
    /// Hosts
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u8).range(2..=250))]
    hosts: u8,
    /// Fault domains
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=250))]
    domains: u8,
    /// Simulated seconds of trouble in each run
    #[arg(long, default_value_t = 30, conflicts_with = "hours")]
    seconds: u64,
    /// Simulated hours of trouble in each run
    #[arg(long)]
    hours: Option<u64>,
    /// How many times as rare faults and commands are, for long runs
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pace: u64,
    /// Kinds of faults, separated by commas [default: each seed draws its own]
    #[arg(long, value_delimiter = ',')]
    faults: Option<Vec<Fault>>,
    /// Milliseconds that leases last [default: each seed draws its own]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1500..=60_000))]
    lease: Option<u64>,
    /// A mistake to plant
    #[arg(long)]
    mutant: Option<Plant>,
}

impl World {
    fn options(&self) -> Options {
        Options {
            hosts: self.hosts,
            domains: self.domains.min(self.hosts),
            trouble: self.hours.map_or(self.seconds, |hours| hours * 3600) * 1000,
            pace: self.pace,
            faults: self.faults.as_ref().map(|faults| faults.iter().copied().collect()),
            lease: self.lease,
            mutant: self.mutant,
            ..Options::default()
        }
    }
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let wrong = || format!("`{text}` is not FIRST..LAST");
    let (first, last) = text.split_once("..").ok_or_else(wrong)?;
    let range = first.parse().map_err(|_| wrong())?..last.parse().map_err(|_| wrong())?;
    if range.is_empty() { Err(format!("`{text}` is empty")) } else { Ok(range) }
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Run { seed, seeds, minutes, no_shrink, world } => {
            let from = rand::random::<u32>();
            let seeds = seed.map(|seed| seed..seed + 1).or(seeds).unwrap_or(u64::from(from)..u64::MAX);
            let limit = minutes.map(|minutes| Duration::from_secs(minutes * 60));
            run_all(seeds, limit, &world.options(), !no_shrink)
        }
        Command::Mutants { seeds, world } => find_all(seeds, &world.options()),
    }
}

/// Runs seeds on all processors until one fails, all are done or the time is over.
fn run_all(seeds: Range<u64>, limit: Option<Duration>, options: &Options, shrinks: bool) -> ExitCode {
    let began = Instant::now();
    let (next, ended) = (AtomicU64::new(seeds.start), AtomicBool::new(false));
    let work = || -> Result<(u64, Summary), Box<Failure>> {
        let (mut count, mut total) = (0, Summary::default());
        while !ended.load(Ordering::Relaxed) && limit.is_none_or(|limit| began.elapsed() < limit) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                break;
            }
            total = total.plus(run(seed, options.clone()).inspect_err(|_| ended.store(true, Ordering::Relaxed))?);
            count += 1;
        }
        Ok((count, total))
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let (mut count, mut total) = (0, Summary::default());
    for result in results {
        match result {
            Ok((some, summary)) => (count, total) = (count + some, total.plus(summary)),
            Err(failure) => {
                println!("{failure}");
                if shrinks {
                    println!("\nmade smaller:\n{}", shrink(*failure));
                }
                return ExitCode::FAILURE;
            }
        }
    }
    tell(count, total, options, began.elapsed());
    ExitCode::SUCCESS
}

fn tell(count: u64, total: Summary, options: &Options, real: Duration) {
    let simulated = total.millis as f64 / 1000.0;
    println!(
        "{count} seeds of {} hosts, {:.1} simulated hours ({:.0} host-hours) in {:.1} s: {:.0} times as fast as time",
        options.hosts,
        simulated / 3600.0,
        simulated / 3600.0 * f64::from(options.hosts),
        real.as_secs_f64(),
        simulated / real.as_secs_f64()
    );
    println!(
        "events: {} ({:.0} a second), faults: {}, hosts given up: {}, commands: {}, VMs placed: {}",
        total.events,
        total.events as f64 / real.as_secs_f64(),
        total.faults,
        total.lost,
        total.commands,
        total.placed
    );
    println!("nothing was found");
}

/// Looks for each mistake.
fn find_all(seeds: u64, options: &Options) -> ExitCode {
    let mut missed = 0;
    for plant in Plant::all().filter(|plant| options.mutant.is_none_or(|only| only == *plant)) {
        match mayfly_sim::find(plant, seeds, options) {
            Some(failure) => println!("{plant:<16} found by seed {:<4} {}", failure.seed, failure.what),
            None => {
                missed += 1;
                println!("{plant:<16} NOT FOUND in {seeds} seeds");
            }
        }
    }
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
