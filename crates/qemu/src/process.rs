//! A running QEMU: starting it, finding it again after a restart of the agent, and why it ended.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use crate::qmp::{Qmp, QmpError, QmpEvent};
use crate::spec::{CD_DRIVE, CD_MEDIUM, VmSpec};

/// The program.
pub const PROGRAM: &str = "qemu-system-x86_64";

/// How long a guest's state may take from or to a file.
const MIGRATION: Duration = Duration::from_secs(20);
/// How long QEMU may take until its monitor answers.
const START_LIMIT: Duration = Duration::from_secs(15);

/// Why a VM could not be started.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// QEMU is not installed.
    #[error("`{PROGRAM}` is not installed on this host (Debian: apt install qemu-system-x86)")]
    Missing,
    /// It could not be run.
    #[error("`{PROGRAM}` cannot be run")]
    Run(#[source] std::io::Error),
    /// It ended at once.
    #[error("QEMU did not start: {0}")]
    Refused(String),
    /// Its monitor does not answer.
    #[error("QEMU started, and its monitor does not answer")]
    Monitor(#[source] QmpError),
}

/// Why a VM ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The guest powered itself off.
    GuestShutdown,
    /// It was told to end.
    Told,
    /// The process ended without a word: killed or crashed.
    Crashed,
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Exit::GuestShutdown => "the guest powered itself off",
            Exit::Told => "it was stopped",
            Exit::Crashed => "its QEMU process was killed or crashed",
        })
    }
}

/// A running VM.
pub struct Machine {
    qmp: Qmp,
    events: mpsc::UnboundedReceiver<QmpEvent>,
    pid: Option<Pid>,
    exit: Exit,
    /// Its monitor's connection has ended, so its process id may be another's by now.
    has_ended: bool,
}

impl Machine {
    /// Starts a VM. It runs on when the caller ends.
    ///
    /// # Errors
    /// [`MachineError`]; nothing runs then.
    pub async fn start(spec: &VmSpec) -> Result<Machine, MachineError> {
        end_leftovers(&spec.monitor());
        for stale in [spec.monitor(), spec.pid_file(), spec.folder.join("serial.sock")] {
            // A socket of an earlier process; QEMU makes a new one.
            let _ = std::fs::remove_file(stale);
        }
        let log_path = spec.folder.join("qemu.log");
        let log = std::fs::File::create(&log_path).map_err(MachineError::Run)?;
        // In a group of its own, so that it outlives the agent. Not QEMU's own way of doing that, which its sandbox
        // forbids.
        let child = tokio::process::Command::new(PROGRAM)
            .args(spec.arguments())
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(MachineError::Run)?)
            .stderr(log)
            .process_group(0)
            .spawn();
        let mut child = child.map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => MachineError::Missing,
            _ => MachineError::Run(error),
        })?;
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let error = match Machine::adopt(&spec.monitor(), &spec.pid_file()).await {
                Ok(machine) => return Ok(machine),
                Err(error) => error,
            };
            if let Some(status) = child.try_wait().map_err(MachineError::Run)? {
                let text = std::fs::read_to_string(&log_path).unwrap_or_default();
                let text = text.trim();
                return Err(MachineError::Refused(if text.is_empty() { status.to_string() } else { text.to_owned() }));
            }
            if Instant::now() > deadline {
                // Nothing half started stays.
                let _ = child.kill().await;
                return Err(MachineError::Monitor(error));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Ends the VM that has this monitor, if it runs but does not answer there.
    pub fn end_leftovers(monitor: &Path) {
        end_leftovers(monitor);
    }

    /// Finds a VM that was started earlier.
    ///
    /// # Errors
    /// [`QmpError`] when it does not run any more.
    pub async fn adopt(monitor: &Path, pid_file: &Path) -> Result<Machine, QmpError> {
        let (qmp, events) = Qmp::connect(monitor).await?;
        let pid = std::fs::read_to_string(pid_file).ok().and_then(|text| text.trim().parse().ok()).map(Pid::from_raw);
        Ok(Machine { qmp, events, pid, exit: Exit::Crashed, has_ended: false })
    }

    /// The process.
    pub fn pid(&self) -> Option<i32> {
        self.pid.map(Pid::as_raw)
    }

    /// The next event that matters, or `None` when the VM has ended.
    pub async fn event(&mut self) -> Option<QmpEvent> {
        let Some(event) = self.events.recv().await else {
            self.has_ended = true;
            return None;
        };
        if event.name == "SHUTDOWN" {
            self.exit = if event.data["guest"].as_bool() == Some(true) { Exit::GuestShutdown } else { Exit::Told };
        }
        Some(event)
    }

    /// Why it ended, once [`Machine::event`] has returned `None`.
    pub fn exit(&self) -> Exit {
        self.exit.clone()
    }

    /// Goes on after a pause, for example one that a full disk caused.
    ///
    /// # Errors
    /// [`QmpError`].
    pub async fn resume(&self) -> Result<(), QmpError> {
        self.qmp.execute("cont", Value::Null).await.map(drop)
    }

    /// Stops the guest and writes the state of its devices to a file; its memory is in the template's file already. It must
    /// not go on after that.
    ///
    /// # Errors
    /// [`QmpError`].
    pub async fn save(&self, state: &Path) -> Result<(), QmpError> {
        self.qmp.execute("stop", Value::Null).await?;
        self.share_memory().await?;
        let socket = state.with_extension("sock");
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket)?;
        self.qmp.execute("migrate", json!({ "uri": format!("unix:{}", socket.display()) })).await?;
        let (mut stream, _) = tokio::time::timeout(MIGRATION, listener.accept()).await.map_err(io::Error::from)??;
        let mut file = tokio::fs::File::create(state).await?;
        let copied = tokio::time::timeout(MIGRATION, tokio::io::copy(&mut stream, &mut file)).await;
        copied.map_err(io::Error::from)??;
        file.sync_all().await?;
        let _ = std::fs::remove_file(&socket);
        let status = self.qmp.execute("query-migrate", Value::Null).await?;
        if status["status"] == "completed" {
            return Ok(());
        }
        let why = status["error-desc"].as_str().unwrap_or("it did not complete").to_owned();
        Err(QmpError::Refused { command: "migrate".to_owned(), why })
    }

    /// Gives a guest that waits for it the state that another was saved with, and lets it go on.
    ///
    /// # Errors
    /// [`QmpError`]; QEMU ends then, and its reason is in its log.
    pub async fn restore(&self, state: &Path, socket: &Path) -> Result<(), QmpError> {
        self.share_memory().await?;
        let _ = std::fs::remove_file(socket);
        self.qmp.execute("migrate-incoming", json!({ "uri": format!("unix:{}", socket.display()) })).await?;
        let mut file = tokio::fs::File::open(state).await?;
        let mut stream = UnixStream::connect(socket).await?;
        let copied = tokio::time::timeout(MIGRATION, tokio::io::copy(&mut file, &mut stream)).await;
        copied.map_err(io::Error::from)??;
        drop(stream);
        let deadline = Instant::now() + MIGRATION;
        while self.qmp.execute("query-status", Value::Null).await?["status"] == "inmigrate" {
            if Instant::now() > deadline {
                return Err(io::Error::from(io::ErrorKind::TimedOut).into());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let _ = std::fs::remove_file(socket);
        self.resume().await
    }

    /// Memory is in a file and not in the stream.
    async fn share_memory(&self) -> Result<(), QmpError> {
        let capability = json!({ "capabilities": [{ "capability": "x-ignore-shared", "state": true }] });
        self.qmp.execute("migrate-set-capabilities", capability).await.map(drop)
    }

    /// Takes the medium out of the CD drive, whatever the guest thinks of that. One that is out already is success.
    ///
    /// # Errors
    /// [`QmpError`].
    pub async fn eject(&self) -> Result<(), QmpError> {
        self.qmp.execute("blockdev-open-tray", json!({ "id": CD_DRIVE, "force": true })).await?;
        // Without a medium there is nothing to remove.
        let _ = self.qmp.execute("blockdev-remove-medium", json!({ "id": CD_DRIVE })).await;
        let _ = self.qmp.execute("blockdev-del", json!({ "node-name": CD_MEDIUM })).await;
        Ok(())
    }

    /// Writes a picture of the guest's screen, as PNG.
    ///
    /// # Errors
    /// [`QmpError`].
    pub async fn screenshot(&self, path: &Path) -> Result<(), QmpError> {
        self.qmp.execute("screendump", json!({ "filename": path, "format": "png" })).await.map(drop)
    }

    /// Whether there is a guest in it that can go on.
    pub async fn has_guest(&self) -> bool {
        let status = self.qmp.execute("query-status", Value::Null).await.unwrap_or_default();
        !matches!(status["status"].as_str(), Some("inmigrate" | "guest-panicked" | "postmigrate") | None)
    }

    /// Asks the guest to power off, and waits for that no longer than `grace`.
    pub async fn power_down(&mut self, grace: Duration) {
        if !grace.is_zero() && self.qmp.execute("system_powerdown", Value::Null).await.is_ok() {
            let _ = tokio::time::timeout(grace, self.ended()).await;
        }
    }

    /// Ends the VM, if it has not ended.
    pub async fn stop(mut self) {
        if self.has_ended {
            return;
        }
        let told = self.qmp.execute("quit", Value::Null).await.is_ok();
        if told && tokio::time::timeout(Duration::from_secs(2), self.ended()).await.is_ok() {
            return;
        }
        if let Some(pid) = self.pid {
            // It is ours: the monitor's connection is to this process and has not ended.
            let _ = kill(pid, Signal::SIGKILL);
            let _ = tokio::time::timeout(Duration::from_secs(5), self.ended()).await;
        }
    }

    async fn ended(&mut self) {
        while self.event().await.is_some() {}
    }
}

/// Kills processes whose command line names this monitor, and waits until they are gone: a QEMU that was started by an
/// agent that died at once has no monitor yet, and would hold the tap for ever.
fn end_leftovers(monitor: &Path) {
    let find = || -> Vec<Pid> {
        let wanted = monitor.to_string_lossy().into_owned();
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let names = |pid: &i32| {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let text = String::from_utf8_lossy(&command).into_owned();
            text.starts_with(PROGRAM) && text.contains(&format!("unix:{wanted},"))
        };
        pids.filter(names).map(Pid::from_raw).collect()
    };
    for _ in 0..100 {
        let left = find();
        if left.is_empty() {
            return;
        }
        for pid in left {
            // It may have ended meanwhile.
            let _ = kill(pid, Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
