//! Keeps processes running: starts each again when it ends, and buries the orphans that a first process inherits.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// A process to keep running.
#[derive(Clone, Debug)]
pub struct Keep {
    /// What it is called in messages.
    pub name: String,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Where its output goes.
    pub log: PathBuf,
    /// Where its process id is written.
    pub pid_file: PathBuf,
}

/// How long a process that ended at once is left alone.
const PAUSE: Duration = Duration::from_millis(300);
/// How long a process may take to end when it is told to.
const GRACE: Duration = Duration::from_secs(3);

/// Why keeping processes running has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// This process was told to end.
    Told,
    /// One of the processes asks for a reboot of the host.
    Reboot,
}

/// Keeps the processes running until this one is told to end, or one of them asks for a reboot.
///
/// # Errors
/// When one cannot be started at all.
pub fn keep_running(wanted: &[Keep]) -> anyhow::Result<Ended> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
        signals.add(signal);
    }
    signals.thread_block().context("cannot block signals")?;
    let mut running: Vec<(Pid, &Keep)> = Vec::new();
    for keep in wanted {
        running.push((start(keep)?, keep));
    }
    loop {
        match signals.wait().context("cannot wait for signals")? {
            Signal::SIGCHLD => {
                for (ended, status) in bury() {
                    let Some(place) = running.iter().position(|(pid, _)| *pid == ended) else { continue };
                    let (_, keep) = running.swap_remove(place);
                    if status == Some(crate::REBOOT_STATUS) {
                        end(&running);
                        return Ok(Ended::Reboot);
                    }
                    eprintln!("{} ended and is started again", keep.name);
                    running.push((start_again(keep), keep));
                }
            }
            _ => {
                end(&running);
                return Ok(Ended::Told);
            }
        }
    }
}

/// Starts a process that ended. What is in the way now, a full disk perhaps, may go; this process must not end over it.
fn start_again(keep: &Keep) -> Pid {
    loop {
        std::thread::sleep(PAUSE);
        match start(keep) {
            Ok(pid) => return pid,
            Err(error) => eprintln!("{error:#}"),
        }
    }
}

fn start(keep: &Keep) -> anyhow::Result<Pid> {
    let log = OpenOptions::new().create(true).append(true).open(&keep.log);
    let log = log.with_context(|| format!("cannot open {}", keep.log.display()))?;
    let (program, arguments) = keep.command.split_first().context("a process without a program")?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let child = command.spawn().with_context(|| format!("cannot start {}", keep.name))?;
    let pid = Pid::from_raw(child.id() as i32);
    // Without the note the process is only harder to find.
    if let Err(error) = std::fs::write(&keep.pid_file, pid.to_string()) {
        eprintln!("cannot write {}: {error}", keep.pid_file.display());
    }
    Ok(pid)
}

/// Takes note of all children that have ended, and of the status of those that were not killed.
fn bury() -> Vec<(Pid, Option<i32>)> {
    let mut ended = Vec::new();
    loop {
        match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) => ended.push((pid, Some(status))),
            Ok(WaitStatus::Signaled(pid, _, _)) => ended.push((pid, None)),
            _ => return ended,
        }
    }
}

fn end(running: &[(Pid, &Keep)]) {
    let mut left: Vec<Pid> = running.iter().map(|(pid, _)| *pid).collect();
    for pid in &left {
        // It may have ended meanwhile.
        let _ = kill(*pid, Signal::SIGTERM);
    }
    let deadline = Instant::now() + GRACE;
    while !left.is_empty() && Instant::now() < deadline {
        let ended = bury();
        left.retain(|pid| !ended.iter().any(|(one, _)| one == pid));
        std::thread::sleep(Duration::from_millis(20));
    }
    for pid in left {
        let _ = kill(pid, Signal::SIGKILL);
    }
}
