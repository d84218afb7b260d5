//! The host's monotonic clock, which all processes on it share and which a restart of the agent does not reset.

use mayfly_model::Time;
use nix::time::{ClockId, clock_gettime};

/// Milliseconds since the machine was started, its sleep included.
pub(crate) fn now() -> Time {
    // This clock exists on every Linux since 2.6.39.
    let time =
        clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |time| time.tv_sec() * 1000 + time.tv_nsec() / 1_000_000);
    Time(time as u64)
}

/// The time on the wall, for people: milliseconds since the Unix epoch.
pub(crate) fn wall() -> Time {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Time(since.map_or(0, |since| since.as_millis() as u64))
}
