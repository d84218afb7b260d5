//! How much processor time a guest uses.

use std::time::Instant;

/// Clock ticks of `/proc/PID/stat` in a second (`USER_HZ`, 100 on all architectures that run guests).
const TICKS: u64 = 100;

/// A process, and what it had used at the last look.
pub(crate) struct Processor {
    pid: Option<i32>,
    last: Option<(Instant, u64)>,
}

impl Processor {
    /// That of a process.
    pub(crate) fn of(pid: Option<i32>) -> Processor {
        Processor { pid, last: None }
    }

    /// Thousandths of a core that were used since the last look; 0 at the first.
    pub(crate) fn used_lately(&mut self) -> u64 {
        let Some(ticks) = self.pid.and_then(ticks) else { return 0 };
        let now = Instant::now();
        let Some((then, before)) = self.last.replace((now, ticks)) else { return 0 };
        let millis = now.duration_since(then).as_millis() as u64;
        (ticks.saturating_sub(before) * (1_000_000 / TICKS)).checked_div(millis).unwrap_or(0)
    }
}

/// Ticks that a process has used so far: fields 14 and 15 of proc(5)'s `stat`, counted after the name in parentheses,
/// which may hold anything.
fn ticks(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_process_uses_a_core() {
        let mut own = Processor::of(Some(std::process::id().try_into().unwrap()));
        assert_eq!(own.used_lately(), 0, "nothing to compare with");
        let until = Instant::now() + std::time::Duration::from_millis(100);
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        assert!(own.used_lately() > 0);
    }
}
