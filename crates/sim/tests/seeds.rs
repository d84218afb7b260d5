//! Many seeds, and the proof that the simulation can find each kind of mistake.

use std::time::{Duration, Instant};

use mayfly_sim::{Options, Plant, Summary, find, run};

/// How long fresh seeds are run, beside those that always are.
const TIME: Duration = Duration::from_secs(45);

/// `MAYFLY_SIM_SEEDS=FIRST..LAST` runs exactly these.
fn seeds() -> Option<std::ops::Range<u64>> {
    let text = std::env::var("MAYFLY_SIM_SEEDS").ok()?;
    let (first, last) = text.split_once("..").unwrap_or_else(|| panic!("MAYFLY_SIM_SEEDS is FIRST..LAST, not {text}"));
    Some(first.parse().unwrap()..last.parse().unwrap())
}

/// Fabrics of all sizes take turns; where there are few hosts, each is a large part of the majority.
fn options(seed: u64) -> Options {
    let hosts = [50, 3, 7, 12, 5][(seed % 5) as usize];
    Options { hosts, domains: if hosts > 10 { 5 } else { 3 }, ..Options::default() }
}

#[test]
fn fabrics_of_all_sizes_survive_old_and_fresh_seeds() {
    let fixed = seeds();
    let fresh = u64::from(std::process::id()) << 20;
    let began = Instant::now();
    let next = std::sync::atomic::AtomicU64::new(0);
    let work = || {
        let mut total = Summary::default();
        loop {
            let number = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let seed = match &fixed {
                Some(fixed) if fixed.start + number < fixed.end => fixed.start + number,
                Some(_) => return total,
                None if number < 300 => number,
                None if began.elapsed() < TIME => fresh + number,
                None => return total,
            };
            total = total.plus(run(seed, options(seed)).unwrap_or_else(|failure| panic!("{failure}")));
        }
    };
    let total = std::thread::scope(|scope| {
        let threads = [scope.spawn(work), scope.spawn(work)];
        threads.map(|thread| thread.join().unwrap()).into_iter().fold(Summary::default(), Summary::plus)
    });
    println!("{total:?}");
    assert!(total.commands > 0 && total.faults > 0 && total.placed > 0 && total.lost > 0, "{total:?}");
}

#[test]
fn every_planted_mistake_is_found() {
    for plant in Plant::all() {
        let failure = find(plant, 1200, &Options::default());
        let failure = failure.unwrap_or_else(|| panic!("{plant} was not found"));
        println!("{plant}: seed {}: {}", failure.seed, failure.what);
    }
}

#[test]
fn a_seed_always_runs_the_same() {
    for seed in 0..10 {
        let options = Options { hosts: 10, domains: 3, trouble: 10_000, ..Options::default() };
        let (one, two) = (run(seed, options.clone()), run(seed, options));
        assert_eq!(one.unwrap(), two.unwrap());
    }
}
