//! The processes behind the fabric, each started by another.

use std::path::Path;

use anyhow::Context;
use serde::de::DeserializeOwned;

use crate::arguments::InternalCommand;
use crate::dev;

/// What is logged. The library for netlink writes messages that it cannot read as they are, and some hold keys.
const FILTER: &str = "info,netlink_proto=off";

pub fn run(command: InternalCommand) -> anyhow::Result<()> {
    if !matches!(command, InternalCommand::ProbeKvm) {
        let filter = tracing_subscriber::EnvFilter::try_from_env("MAYFLY_LOG")
            .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(FILTER));
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
    }
    // A supervisor waits for signals by blocking them, which its children inherit.
    nix::sys::signal::SigSet::all().thread_unblock().context("cannot unblock signals")?;
    match command {
        InternalCommand::Controller { config } => {
            let runtime = runtime()?;
            let ended = runtime.block_on(mayfly_controller::run(read(&config)?));
            // One that stands by waits for its election in a thread that nobody can call off.
            runtime.shutdown_background();
            ended
        }
        InternalCommand::ControllerSupervisor { folder } => dev::supervise_controller(&folder),
        InternalCommand::EtcdSupervisor { folder } => dev::supervise_etcd(&folder),
        InternalCommand::DevGate { state } => dev::keep_gate(&state),
        InternalCommand::HostBoot { folder } => dev::boot_host(&folder),
        InternalCommand::HostInit { folder } => dev::init_host(&folder),
        InternalCommand::HostAgent { config, boot_id } => {
            runtime()?.block_on(mayfly_host::run(read(&config)?, boot_id))
        }
        InternalCommand::DiskServer { folder } => mayfly_host::run_disk_server(&folder),
        InternalCommand::ProbeKvm => {
            println!("{}", serde_json::to_string(&mayfly_qemu::accelerator::probe())?);
            Ok(())
        }
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

fn read<T: DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("{} is not a configuration", path.display()))
}
