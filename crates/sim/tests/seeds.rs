//! Many seeds, and the proof that the simulation can find a mistake at all.

use mayfly_sim::{Options, Summary, run};

/// `MAYFLY_SIM_SEEDS=FIRST..LAST` repeats a failure or looks further.
fn seeds() -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("MAYFLY_SIM_SEEDS") else { return 0..200 };
    let (first, last) = text.split_once("..").unwrap_or_else(|| panic!("MAYFLY_SIM_SEEDS is FIRST..LAST, not {text}"));
    first.parse().unwrap()..last.parse().unwrap()
}

#[test]
fn fifty_hosts_survive_two_hundred_seeds() {
    let seeds = seeds();
    let middle = seeds.start + (seeds.end - seeds.start) / 2;
    let halves = [seeds.start..middle, middle..seeds.end];
    let threads = halves.map(|half| {
        std::thread::spawn(move || {
            let mut total = Summary::default();
            for seed in half {
                let summary = run(seed, Options::default()).unwrap_or_else(|failure| {
                    panic!("{failure}\nrepeat it: MAYFLY_SIM_SEEDS={seed}..{} cargo test -p mayfly-sim", seed + 1)
                });
                total.events += summary.events;
                total.commands += summary.commands;
                total.faults += summary.faults;
                total.placed += summary.placed;
            }
            total
        })
    });
    for total in threads.map(|thread| thread.join().unwrap()) {
        println!("{total:?}");
        assert!(total.commands > 0 && total.faults > 0 && total.placed > 0, "nothing happened: {total:?}");
    }
}

#[test]
fn a_controller_that_is_too_impatient_is_found_out() {
    let options = Options { impatience: 1200, ..Options::default() };
    let failure = (0..60).find_map(|seed| run(seed, options).err());
    let failure = failure.expect("the planted mistake was not found");
    assert!(failure.what.starts_with("invariant 1"), "{failure}");
}

/// Where every host is a large part of the majority.
#[test]
fn small_fabrics_survive_too() {
    for seed in 1000..1200 {
        let hosts = 3 + (seed % 5) as u8;
        let options = Options { hosts, domains: 3, ..Options::default() };
        run(seed, options).unwrap_or_else(|failure| panic!("{hosts} hosts: {failure}"));
    }
}

#[test]
fn a_seed_always_runs_the_same() {
    let options = Options { hosts: 10, trouble: 10_000, calm: 20_000, ..Options::default() };
    let (one, two) = (run(7, options), run(7, options));
    assert_eq!(format!("{one:?}"), format!("{two:?}"));
}
