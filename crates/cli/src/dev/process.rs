//! Processes that outlive the command that started them, found again without mistaking another for them.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::layout::{read_json, write_json};

/// A process: its id, and when it started, as ids are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pid: i32,
    started: u64,
}

impl Process {
    /// The process that has this id now.
    pub fn of(pid: i32) -> Option<Process> {
        started(pid).map(|started| Process { pid, started })
    }

    /// Starts this program with `arguments` as a process that outlives this one, and writes down which it is.
    pub fn start(arguments: [&OsStr; 3], log: File, note: &Path) -> anyhow::Result<Process> {
        let child = Command::new(std::env::current_exe()?)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()?;
        let process = Process::of(child.id() as i32).context("it ended at once")?;
        process.write(note)?;
        Ok(process)
    }

    /// The process that a file names, if it still runs.
    pub fn read(path: &Path) -> anyhow::Result<Option<Process>> {
        Ok(read_json::<Process>(path)?.filter(|process| process.is_alive()))
    }

    /// Writes it down.
    pub fn write(self, path: &Path) -> anyhow::Result<()> {
        write_json(path, &self)
    }

    /// Its id.
    pub fn pid(self) -> i32 {
        self.pid
    }

    /// Whether one of its arguments is this path.
    pub fn has_argument(self, path: &Path) -> bool {
        let command = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        command.split(|byte| *byte == 0).any(|argument| argument == path.as_os_str().as_encoded_bytes())
    }

    /// Whether it still runs.
    pub fn is_alive(self) -> bool {
        started(self.pid) == Some(self.started)
    }

    /// Sends a signal and waits until the process has gone; after a while kills it.
    pub fn end(self, signal: Signal) -> anyhow::Result<()> {
        for (signal, patience) in [(signal, Duration::from_secs(5)), (Signal::SIGKILL, Duration::from_secs(10))] {
            if !self.is_alive() {
                return Ok(());
            }
            kill(Pid::from_raw(self.pid), signal).with_context(|| format!("cannot send {signal} to {}", self.pid))?;
            let deadline = Instant::now() + patience;
            while self.is_alive() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        if self.is_alive() { bail!("process {} does not end", self.pid) } else { Ok(()) }
    }
}

/// When a process started, in clock ticks since the machine did; none for a dead or buried one.
fn started(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, so count from the last parenthesis: state is field 3, start time field 22.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_its_successor() {
        let own = Process::of(std::process::id() as i32).unwrap();
        assert!(own.is_alive());
        assert!(!Process { started: own.started + 1, ..own }.is_alive());
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let process = Process::of(child.id() as i32).unwrap();
        process.end(Signal::SIGTERM).unwrap();
        assert!(!process.is_alive());
        child.wait().unwrap();
    }
}
