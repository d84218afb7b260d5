//! Making a failure smaller: fewer hosts, less time, fewer kinds of faults, as long as something still fails.

use crate::options::{Failure, Fault, Options, Plant};
use crate::world::run;

/// The smallest failure that is found from this one by leaving things out.
pub fn shrink(failure: Failure) -> Failure {
    let mut best = failure;
    loop {
        let smaller = candidates(&best).into_iter().find_map(|options| run(best.seed, options).err());
        match smaller {
            Some(smaller) => best = *smaller,
            None => return best,
        }
    }
}

fn candidates(failure: &Failure) -> Vec<Options> {
    let options = &failure.options;
    let mut all = Vec::new();
    // What came after the failure is not needed.
    let sooner = (failure.at / 1000 + 1) * 1000;
    for trouble in [sooner, options.trouble / 2 / 1000 * 1000] {
        if trouble < options.trouble && trouble >= 1000 {
            all.push(Options { trouble, ..options.clone() });
        }
    }
    for hosts in [options.hosts / 2, options.hosts - 1] {
        if hosts < options.hosts && hosts > options.domains {
            all.push(Options { hosts, ..options.clone() });
        }
    }
    for fault in options.faults.iter().flatten() {
        let mut faults = options.faults.clone().unwrap_or_default();
        faults.remove(fault);
        all.push(Options { faults: Some(faults), ..options.clone() });
    }
    all
}

/// The first of `seeds` seeds that shows a planted mistake. Some mistakes only show where faults of a certain kind are,
/// which are drawn more often then.
pub fn find(plant: Plant, seeds: u64, options: &Options) -> Option<Box<Failure>> {
    let runs = (0..seeds).map(|seed| {
        let faults = match seed % 3 {
            0 => None,
            1 => Some(Fault::ALL.into_iter().collect()),
            _ => Some([Fault::Join, Fault::Partition, Fault::Freeze].into_iter().collect()),
        };
        // Much happens in the time of a short lease, and more of it at the wrong moment.
        let lease = options.lease.or((seed % 3 == 2).then_some(2000));
        // In a small fabric every host is a large part of the majority.
        let hosts = [options.hosts, 6, 9][(seed / 3 % 3) as usize];
        let domains = options.domains.min(if hosts < 10 { 3 } else { options.domains });
        let faults = options.faults.clone().or(faults);
        (seed, Options { mutant: Some(plant), faults, lease, hosts, domains, ..options.clone() })
    });
    runs.into_iter().find_map(|(seed, options)| run(seed, options).err())
}
