//! Samples the design's invariants, as far as records show them: a mistake of the core is seen here before users see it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mayfly_fabric::check::check;

use crate::driver::Driver;

/// The invariants that records can show to be broken by a mistake. A host that is too full (9) may also have become smaller.
const SEEN: [u8; 4] = [1, 2, 4, 8];
/// Least time between two samples.
const PAUSE: Duration = Duration::from_secs(15);
/// A sample may take this part of the time.
const SHARE: u32 = 1000;
/// Of a larger fabric no copy is made only to look at it.
const INSTANCES_MAX: usize = 50_000;

/// What the last sample showed.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// How many there have been.
    pub count: u64,
    /// How often each invariant was broken in the last one.
    pub broken: BTreeMap<u8, u64>,
}

/// The samples.
#[derive(Clone, Default)]
pub struct Invariants(Arc<Mutex<Sample>>);

impl Invariants {
    /// What the last sample showed.
    pub fn last(&self) -> Sample {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Samples, for ever.
    pub async fn run(self, driver: Driver) {
        loop {
            let began = Instant::now();
            if driver.peek(|core| core.state().instances().len()) <= INSTANCES_MAX {
                let state = driver.peek(|core| core.state().clone());
                let Ok(found) = tokio::task::spawn_blocking(move || check(&state)).await else {
                    tracing::error!("looking at the invariants has failed");
                    return;
                };
                let mut broken: BTreeMap<u8, u64> = SEEN.iter().map(|number| (*number, 0)).collect();
                for violation in found.into_iter().filter(|one| SEEN.contains(&one.invariant)) {
                    tracing::error!(invariant = violation.invariant, what = violation.what, "an invariant is broken");
                    *broken.entry(violation.invariant).or_default() += 1;
                }
                let mut sample = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                *sample = Sample { count: sample.count + 1, broken };
            }
            tokio::time::sleep(PAUSE.max(began.elapsed() * SHARE)).await;
        }
    }
}
