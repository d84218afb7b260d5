//! Local disks: what outlives a reboot and, if the definition says so, a reimage, but never a host.
//!
//! They lie in `local/DEPLOYMENT/INSTANCE/GENERATION/`, named by what they are: a disk of another size, or one that is
//! cleaned at each reimage, is another file. Each is a differencing VHD over an empty formatted one, of which the host has
//! one for each name and size.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, ensure};
use mayfly_disk::{Base, Export, FileSystem, Transport, make_formatted};
use mayfly_model::{DiskModel, GoalState, LocalStorage, Platform, VmGoal};
use mayfly_qemu::{LocalDisk, SATA_LOCAL_DISKS_MAX};

use crate::agent::Agent;

/// The disks of a VM, made where they are not there, and served.
pub(super) async fn disks(agent: &Agent, goal: &VmGoal) -> anyhow::Result<Vec<LocalDisk>> {
    let storage = &goal.guest.local_storage;
    let few = goal.disk != DiskModel::Sata || storage.len() <= SATA_LOCAL_DISKS_MAX;
    ensure!(
        few,
        "a guest with SATA disks can have {SATA_LOCAL_DISKS_MAX} local ones, and {} are defined",
        storage.len()
    );
    let (root, folder) = (agent.ledger.local_disks(), folder(agent, goal));
    let mut local = Vec::new();
    for (number, one) in storage.iter().enumerate() {
        let socket = agent.ledger.vm_folder(goal.vm).join(format!("local{number}.sock"));
        let kind = file_system(goal);
        let base = root.join("formatted").join(format!("{}-{}{}.vhd", one.name, one.size_mb, suffix(kind)));
        let export = Export {
            name: export_name(goal, number),
            disk: folder.join(file_name(goal, one)),
            base: Base::File(base.clone()),
            socket: socket.clone(),
            transport: Transport::Nbd,
            quota_bytes: None,
        };
        let (disks, folder, one) = (agent.disks.clone(), folder.clone(), one.clone());
        let name = one.name.clone();
        tokio::task::spawn_blocking(move || open(&disks, &folder, &base, export, (kind, &one)))
            .await?
            .with_context(|| format!("cannot make the local disk `{name}`"))?;
        local.push(LocalDisk { name, socket });
    }
    Ok(local)
}

fn open(
    disks: &mayfly_disk::DiskClient,
    folder: &Path,
    base: &Path,
    export: Export,
    (kind, storage): (FileSystem, &LocalStorage),
) -> anyhow::Result<()> {
    let formatted = base.parent().unwrap_or(base);
    for folder in [folder, formatted] {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    make_formatted(base, storage.size_mb << 20, kind, &storage.name)?;
    Ok(disks.open(export)?)
}

/// By what the files of one kind are told from others: nothing for what there was first.
fn suffix(kind: FileSystem) -> &'static str {
    match kind {
        FileSystem::Ext4 => "",
        FileSystem::Ntfs => ".ntfs",
    }
}

/// What a guest can read.
fn file_system(goal: &VmGoal) -> FileSystem {
    match goal.guest.platform {
        Platform::NoCloud | Platform::Azure => FileSystem::Ext4,
        Platform::Windows => FileSystem::Ntfs,
    }
}

/// The names of a VM's exports of local disks.
pub(super) fn export_names(goal: &VmGoal) -> Vec<String> {
    (0..goal.guest.local_storage.len()).map(|number| export_name(goal, number)).collect()
}

fn export_name(goal: &VmGoal, number: usize) -> String {
    format!("{}-local{number}", goal.vm)
}

fn file_name(goal: &VmGoal, storage: &LocalStorage) -> String {
    let LocalStorage { name, size_mb, clean_on_role_recycle } = storage;
    let suffix = suffix(file_system(goal));
    match clean_on_role_recycle {
        // A sign that names cannot have, so that no two disks are one file.
        true => format!("{name}@{size_mb}@{}{suffix}.vhd", goal.generation),
        false => format!("{name}@{size_mb}{suffix}.vhd"),
    }
}

fn folder(agent: &Agent, goal: &VmGoal) -> PathBuf {
    let place = agent.ledger.local_disks().join(&goal.deployment_id).join(goal.instance.name());
    place.join(goal.local_generation.to_string())
}

/// Throws away what no instance here will use again. `wanted` says what that is: the goal state, and all VMs that exist or
/// shall. It is asked after it is known what is there: what is made meanwhile is not thrown away.
pub(super) fn sweep(agent: &Agent, wanted: impl Fn() -> (Arc<GoalState>, Vec<VmGoal>)) {
    let root = agent.ledger.local_disks();
    let deployments = children(&root).into_iter().filter(|path| !path.ends_with("formatted"));
    let instances: Vec<PathBuf> = deployments.flat_map(|path| children(&path)).collect();
    let folders: Vec<(PathBuf, Vec<PathBuf>)> =
        instances.iter().flat_map(|path| children(path)).map(|path| (path.clone(), children(&path))).collect();
    if folders.is_empty() {
        return;
    }
    let (goal, vms) = wanted();
    let waits = |folder: &Path| {
        goal.kept
            .iter()
            .any(|one| root.join(&one.deployment_id).join(&one.instance).join(one.generation.to_string()) == folder)
    };
    for (path, disks) in folders {
        let own: Vec<&VmGoal> = vms.iter().filter(|vm| folder(agent, vm) == path).collect();
        if own.is_empty() && !waits(&path) {
            remove(&path);
            // Only when nothing is in them any more.
            let _ = path.parent().map(fs::remove_dir);
            let _ = path.parent().and_then(Path::parent).map(fs::remove_dir);
            continue;
        }
        if own.is_empty() {
            continue;
        }
        // Of what is cleaned at each reimage, what an earlier VM wrote is still there.
        let names: BTreeSet<String> =
            own.iter().flat_map(|vm| vm.guest.local_storage.iter().map(|one| file_name(vm, one))).collect();
        let is_own = |disk: &Path| disk.file_name().is_some_and(|name| names.contains(&*name.to_string_lossy()));
        disks.iter().filter(|disk| !is_own(disk)).for_each(|disk| remove(disk));
    }
}

fn children(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn remove(path: &Path) {
    let done = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match done {
        Ok(()) => tracing::info!(path = %path.display(), "a local disk is thrown away"),
        Err(error) => tracing::warn!(path = %path.display(), %error, "a local disk cannot be thrown away yet"),
    }
}
