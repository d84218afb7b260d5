//! The time by which certificates are checked.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The wall clock's time when the process started, and since then the monotonic clock's.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    base: Duration,
    start: Instant,
}

impl Clock {
    /// A clock that starts at the wall clock's time.
    pub fn start() -> Clock {
        Clock::at(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
    }

    /// A clock that starts at so many seconds since 1970.
    pub fn at(seconds: u64) -> Clock {
        Clock { base: Duration::from_secs(seconds), start: Instant::now() }
    }

    /// Seconds since 1970.
    pub fn now(self) -> u64 {
        (self.base + self.start.elapsed()).as_secs()
    }
}
