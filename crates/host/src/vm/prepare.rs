//! Making what a VM needs before it can run: its differencing disk, served, and its tap. Each step may be
//! repeated.

use std::path::PathBuf;

use anyhow::{Context, bail};
use mayfly_disk::{Base, Export, Transport};
use mayfly_model::{DiskModel, VmGoal};
use mayfly_net::address::tap_name;
use mayfly_net::{create_tap, prepare_tap};
use mayfly_qemu::Accelerator;

use crate::agent::Agent;

/// The differencing disk of a VM.
pub(super) fn disk_path(agent: &Agent, goal: &VmGoal) -> PathBuf {
    agent.ledger.vm_folder(goal.vm).join("disk.vhd")
}

/// The socket on which a VM's disk is served.
pub(super) fn disk_socket(agent: &Agent, goal: &VmGoal) -> PathBuf {
    agent.ledger.vm_folder(goal.vm).join("disk.sock")
}

/// The VM's differencing disk over its base image, made if it is not there, and served. Of the image only its manifest
/// is fetched now; the rest comes when the guest reads it.
/// What it stands on is decided when it is made: the image, or the disk of the template that the guest starts from.
pub(super) async fn disk(agent: &Agent, goal: &VmGoal, base: Base) -> anyhow::Result<()> {
    let path = disk_path(agent, goal);
    if !path.exists() {
        check_space(agent)?;
    }
    if model(agent, goal) != goal.disk {
        tracing::warn!(vm = %goal.vm, "vhost-user needs KVM, which this host has not; the disk is served over NBD");
    }
    let export = Export {
        name: goal.vm.to_string(),
        disk: path,
        base,
        socket: disk_socket(agent, goal),
        transport: match model(agent, goal) {
            DiskModel::VhostUser => Transport::VhostUser,
            DiskModel::Virtio | DiskModel::Sata | DiskModel::Nvme => Transport::Nbd,
        },
        quota_bytes: Some(goal.size.disk_quota_bytes()),
    };
    let disks = agent.disks.clone();
    Ok(tokio::task::spawn_blocking(move || disks.open(export)).await??)
}

/// What the guest sees its disk as. Under TCG a disk server that writes to shared memory by itself would change code that
/// QEMU has translated already, and the guest would run what was there before; so there vhost-user becomes NBD.
pub(super) fn model(agent: &Agent, goal: &VmGoal) -> DiskModel {
    match (goal.disk, agent.config.accelerator) {
        (DiskModel::VhostUser, Accelerator::Tcg) => DiskModel::Virtio,
        (model, _) => model,
    }
}

/// The VM's tap.
pub(super) async fn tap(agent: &Agent, goal: &VmGoal) -> anyhow::Result<()> {
    let tap = tap_name(goal.vm);
    create_tap(&tap)?;
    prepare_tap(&agent.links, &tap, goal.ipv6.is_some()).await?;
    agent.links.up_with_mtu(&tap, agent.guest_mtu).await?;
    if agent.config.limit_rates {
        agent.links.limit_rate(&tap, goal.size.bits_per_second()).await.context(
            "the kernel needs sch_tbf, sch_ingress, ifb, cls_u32 and act_mirred for that; without them, set \
             \"limit_rates\": false in the host's configuration",
        )?;
    }
    if !agent.config.limit_rates {
        agent.links.lift_rate(&tap).await?;
    }
    agent.links.pin_neighbour(&tap, goal.dip, goal.mac()).await?;
    if let Some(address) = goal.ipv6 {
        agent.links.pin_neighbour(&tap, address, goal.mac()).await?;
    }
    Ok(())
}

fn check_space(agent: &Agent) -> anyhow::Result<()> {
    let folder = &agent.config.folder;
    let space = nix::sys::statvfs::statvfs(folder).with_context(|| format!("cannot inspect {}", folder.display()))?;
    let free = space.blocks_available() * space.fragment_size();
    if free < agent.config.reserve_bytes {
        bail!(
            "the host's disk is full: {} MiB are free, and {} MiB are kept in reserve",
            free >> 20,
            agent.config.reserve_bytes >> 20
        );
    }
    Ok(())
}
