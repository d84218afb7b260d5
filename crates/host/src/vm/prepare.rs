//! Making what a VM needs before it can run: base image, differencing disk, its export, its tap. Each step may be
//! repeated.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::StreamExt;
use mayfly_disk::Export;
use mayfly_model::VmGoal;
use mayfly_net::address::tap_name;
use mayfly_net::create_tap;
use mayfly_vhd::{Access, CreateOptions, Vhd, create_differencing, seconds_since_2000};
use tokio::time::timeout;

use crate::agent::Agent;
use crate::network::prepare_tap;

/// How long the controller may be silent while it sends an image.
const STALL: Duration = Duration::from_secs(30);

/// The differencing disk of a VM.
pub(super) fn disk_path(agent: &Agent, goal: &VmGoal) -> PathBuf {
    agent.ledger.vm_folder(goal.vm).join("disk.vhd")
}

/// The socket on which a VM's disk is served.
pub(super) fn disk_socket(agent: &Agent, goal: &VmGoal) -> PathBuf {
    agent.ledger.vm_folder(goal.vm).join("disk.sock")
}

/// The base image's file, fetched if it is not there; `progress` is told what is under way.
pub(super) async fn image(agent: &Agent, goal: &VmGoal, progress: impl Fn(String)) -> anyhow::Result<PathBuf> {
    if let Some(path) = agent.cache.find(goal.image.as_str()) {
        return Ok(path);
    }
    progress("waiting for another image to arrive".to_owned());
    let _turn = agent.fetching.lock().await;
    if let Some(path) = agent.cache.find(goal.image.as_str()) {
        return Ok(path);
    }
    check_space(agent, goal.image_bytes)?;
    let response = agent.client.image_fetch(goal.image.as_str()).await?;
    let mut partial = agent.cache.begin(goal.image.as_str())?;
    let (mut stream, mut bytes, mut shown) = (response.bytes_stream(), 0, None);
    while let Some(chunk) = timeout(STALL, stream.next()).await.context("the controller sends no more of the image")? {
        let chunk = chunk.context("the image broke off")?;
        bytes += chunk.len() as u64;
        partial = tokio::task::spawn_blocking(move || partial.write(&chunk).map(|()| partial)).await??;
        let percent = bytes * 100 / goal.image_bytes.max(1);
        if shown.replace(percent) != Some(percent) {
            progress(format!("fetching the base image: {percent} %"));
        }
    }
    Ok(tokio::task::spawn_blocking(move || partial.finish()).await??)
}

/// The VM's differencing disk over `base`, made if it is not there, and served.
pub(super) async fn disk(agent: &Agent, goal: &VmGoal, base: &Path) -> anyhow::Result<()> {
    let path = disk_path(agent, goal);
    if !path.exists() {
        check_space(agent, 0)?;
        let (path, base) = (path.clone(), base.to_owned());
        tokio::task::spawn_blocking(move || {
            let parent = Vhd::open(&base, Access::ReadOnly, None)?;
            let options = CreateOptions { unique_id: rand::random(), timestamp: seconds_since_2000(), durable: false };
            // Under its own name only when it is whole.
            let partial = path.with_extension("new");
            let _ = fs::remove_file(&partial);
            create_differencing(&partial, &parent, &options)?;
            fs::rename(&partial, &path).context("cannot name the new disk")
        })
        .await??;
    }
    let export = Export {
        name: goal.vm.to_string(),
        disk: path,
        base: base.to_owned(),
        socket: disk_socket(agent, goal),
        quota_bytes: None,
    };
    let disks = agent.disks.clone();
    Ok(tokio::task::spawn_blocking(move || disks.open(export)).await??)
}

/// The VM's tap.
pub(super) async fn tap(agent: &Agent, goal: &VmGoal) -> anyhow::Result<()> {
    let tap = tap_name(goal.vm);
    create_tap(&tap)?;
    prepare_tap(&tap)?;
    agent.links.up(&tap).await?;
    agent.links.pin_neighbour(&tap, goal.dip, goal.mac()).await?;
    Ok(())
}

fn check_space(agent: &Agent, needed: u64) -> anyhow::Result<()> {
    let folder = &agent.config.folder;
    let space = nix::sys::statvfs::statvfs(folder).with_context(|| format!("cannot inspect {}", folder.display()))?;
    let free = space.blocks_available() * space.fragment_size();
    if free < needed + agent.config.reserve_bytes {
        bail!(
            "the host's disk is full: {} MiB are free, {} MiB are needed and {} MiB kept in reserve",
            free >> 20,
            needed >> 20,
            agent.config.reserve_bytes >> 20
        );
    }
    Ok(())
}

/// Bytes that the VM's differencing disk takes.
pub(super) fn disk_bytes(agent: &Agent, goal: &VmGoal) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(disk_path(agent, goal)).map_or(0, |data| data.blocks() * 512)
}
