//! Points in time as the core sees them: milliseconds since the Unix epoch, handed in from outside.

use serde::{Deserialize, Serialize};

/// A point in time in milliseconds since the Unix epoch, or, on a host, on the monotonic clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Time(pub u64);

impl Time {
    /// This time, `millis` later.
    #[must_use]
    pub fn plus(self, millis: u64) -> Time {
        Time(self.0.saturating_add(millis))
    }

    /// Milliseconds from `earlier` to this time; zero when `earlier` is later.
    pub fn since(self, earlier: Time) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}
