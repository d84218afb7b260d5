//! The dev fabric's controller, and the process that keeps it running.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::Context;
use mayfly_controller::{ControllerConfig, FabricConfig, ObjectStoreConfig};
use mayfly_host::supervise::{Keep, keep_running};
use mayfly_net::address::{DIP_NETWORK, DIP_PREFIX};
use nix::sys::signal::Signal;

use super::layout::{Fabric, Layout, write_json};
use super::process::Process;

fn supervisor_file(folder: &Path) -> PathBuf {
    folder.join("supervisor.json")
}

fn config_file(folder: &Path) -> PathBuf {
    folder.join("config.json")
}

fn log_file(folder: &Path) -> PathBuf {
    folder.join("controller.log")
}

/// The supervisor, if it runs.
pub(super) fn find(layout: &Layout, index: u8) -> anyhow::Result<Option<Process>> {
    Process::read(&supervisor_file(&layout.controller(index)))
}

/// Starts the controller, under a supervisor that starts it again whenever it ends.
pub(super) fn start(layout: &Layout, fabric: &Fabric, index: u8) -> anyhow::Result<()> {
    let folder = layout.controller(index);
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let config = ControllerConfig {
        folder: folder.clone(),
        listen: vec![fabric.controller(index)[0]],
        listen_hosts: vec![fabric.controller(index)[1]],
        dns: vec![fabric.names(index)],
        advertise: Vec::new(),
        authority: Some(layout.authority()),
        host_certificate_days: 30,
        user_token: fabric.user_token.clone(),
        store: fabric.store(),
        name: format!("http://{}", fabric.controller(index)[0]),
        images: (index > 0).then(|| ObjectStoreConfig::folder(&layout.controller(0).join("images"))),
        fabric: FabricConfig {
            zone: "mayfly.test".to_owned(),
            dips: (DIP_NETWORK, DIP_PREFIX),
            vips: fabric.vips(),
            ipv6: Fabric::ipv6(),
            timings: mayfly_model::LeaseTimings::default(),
            overcommit: Default::default(),
            healing: Default::default(),
        },
    };
    write_json(&config_file(&folder), &config)?;
    let log = File::options().create(true).append(true).open(log_file(&folder))?;
    let arguments = ["internal".as_ref(), "controller-supervisor".as_ref(), folder.as_os_str()];
    Process::start(arguments, log, &supervisor_file(&folder)).map(drop).context("cannot start the controller")
}

/// Kills the controller and its supervisor.
pub(super) fn kill(layout: &Layout, index: u8) -> anyhow::Result<()> {
    end(layout, index, Signal::SIGKILL)
}

/// Stops the controller in good order.
pub(super) fn stop(layout: &Layout, index: u8) -> anyhow::Result<()> {
    end(layout, index, Signal::SIGTERM)
}

/// The supervisor first, or it would start the controller again. One that was killed may have left that behind.
fn end(layout: &Layout, index: u8, signal: Signal) -> anyhow::Result<()> {
    if let Some(supervisor) = find(layout, index)? {
        supervisor.end(signal)?;
    }
    let folder = layout.controller(index);
    let pid = fs::read_to_string(folder.join("controller.pid")).ok().and_then(|text| text.trim().parse().ok());
    match pid.and_then(Process::of).filter(|process| process.has_argument(&config_file(&folder))) {
        Some(controller) => controller.end(signal),
        None => Ok(()),
    }
}

/// The last lines of the controller's log, for an error message.
pub(super) fn last_words(layout: &Layout) -> String {
    end_of(&log_file(&layout.controller(0)))
}

/// The last lines of a log; nothing if there is none.
pub(super) fn end_of(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(5).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

/// Keeps the controller running until this process is told to end.
pub fn supervise_controller(folder: &Path) -> anyhow::Result<()> {
    let program = std::env::current_exe()?.to_string_lossy().into_owned();
    let config = config_file(folder).to_string_lossy().into_owned();
    keep_running(&[Keep {
        name: "the controller".to_owned(),
        command: vec![program, "internal".to_owned(), "controller".to_owned(), config],
        log: log_file(folder),
        pid_file: folder.join("controller.pid"),
    }])
    .map(drop)
}
