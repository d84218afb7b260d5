//! The host agent. It makes its host what the goal state says and reports what it sees; where anything runs, it never
//! decides.
//!
//! The tasks, and what wakes them:
//!
//! - `reporting`: sends the report, which renews the lease and brings the goal state. Each half second, and when
//!   anything has changed.
//! - `guard`: each tenth of a second, asks the lease whether this host may serve; keeps the kernel's leases alive, or
//!   takes all guests off the network and has them stopped.
//! - `vm`: one task for each VM, from disk to guest to ashes.
//! - `network`: makes the kernel's tables what `mayfly_net::plan` says, whenever that changes.
//! - `mesh`: tells the other hosts what is healthy here, and hears it from them.
//! - `disks`: tells the disk server where images come from, and hears from it how disks and images are doing.
//! - `calls`: answers what users want of a VM that only its host has: console, log, screen, disk.
//! - `probes`: asks the guests' endpoints.
//! - `joining`: has the host's certificate renewed, long before it ends.
//! - servers for guests: wire server, metadata, DNS, DHCP.

mod agent;
mod announcer;
mod calls;
mod clock;
mod config;
mod disks;
mod guard;
mod joining;
mod ledger;
mod limited;
mod mesh;
mod network;
mod probes;
mod processor;
mod reporting;
mod secrets;
mod servers;
mod status;
mod strays;
pub mod supervise;
mod topology;
mod traffic;
mod tunnel;
mod vm;

pub use agent::run;
pub use config::{DiskFull, HostConfig, RebootBy};

/// The status with which an agent asks its supervisor to reboot the host.
pub const REBOOT_STATUS: i32 = 75;

use std::path::Path;

use anyhow::Context;

/// The disk server's process: serves the host's disks for ever.
///
/// # Errors
/// When it cannot listen or its folder cannot be used.
pub fn run_disk_server(folder: &Path) -> anyhow::Result<()> {
    let server = mayfly_disk::DiskServer::start(&folder.join("exports"), &folder.join("images"))
        .context("cannot start the disk server")?;
    tracing::info!(disks = server.names().len(), "the disk server is up");
    server.control(&config::disk_control(folder)).context("cannot listen for the agent")
}

/// Probes KVM in a process of its own, `program` with `arguments`, which has to print a verdict as JSON.
pub fn probe_accelerator(program: &Path, arguments: &[&str]) -> mayfly_qemu::Verdict {
    use mayfly_qemu::{Verdict, accelerator::PROBE_LIMIT};
    let child = std::process::Command::new(program)
        .args(arguments)
        .stdout(std::process::Stdio::piped())
        .stdin(std::process::Stdio::null())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => return Verdict::tcg(format!("the probe cannot be run: {error}")),
    };
    let deadline = std::time::Instant::now() + PROBE_LIMIT;
    while std::time::Instant::now() < deadline {
        if let Ok(Some(_)) = child.try_wait() {
            let output = child.wait_with_output().map(|output| output.stdout).unwrap_or_default();
            return serde_json::from_slice(&output).unwrap_or_else(|_| Verdict::tcg("the probe broke off"));
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    // It hangs in the kernel; whether it can be killed shows what this KVM is worth.
    let _ = child.kill();
    let _ = child.wait();
    Verdict::tcg(format!("/dev/kvm is there, but a test guest did not finish within {} ms", PROBE_LIMIT.as_millis()))
}
