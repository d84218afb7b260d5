//! The provisioning disk of an image made for the original platform: there until the guest has said that it is ready, and
//! gone for good then, as there may be secrets on it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use anyhow::Context;
use mayfly_model::VmGoal;
use mayfly_secrets::random_password;
use mayfly_wire::{PROVISIONING_LABEL, iso_image, provisioning_files};

use crate::agent::Agent;

fn path(agent: &Agent, goal: &VmGoal) -> PathBuf {
    agent.secrets_folder.join(format!("{}.iso", goal.vm))
}

/// That the guest has been provisioned.
fn mark(agent: &Agent, goal: &VmGoal) -> PathBuf {
    agent.ledger.vm_folder(goal.vm).join("provisioned")
}

/// The disk that the guest needs, made if it is not there.
pub(super) fn disk(agent: &Agent, goal: &VmGoal) -> anyhow::Result<Option<PathBuf>> {
    if is_done(agent, goal) {
        // An agent may have died between the two.
        let _ = fs::remove_file(path(agent, goal));
        return Ok(None);
    }
    let (goal, password) = agent.secrets.with_user(goal.clone());
    let files = provisioning_files(&goal, &password.unwrap_or_else(random_password));
    if files.is_empty() {
        return Ok(None);
    }
    let path = path(agent, &goal);
    let failed = || format!("cannot write {}", path.display());
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&path).with_context(failed)?;
    file.write_all(&iso_image(PROVISIONING_LABEL, &files)).with_context(failed)?;
    Ok(Some(path))
}

/// Whether the guest has said that it is ready, and so has been told all that it is told once.
pub(crate) fn is_done(agent: &Agent, goal: &VmGoal) -> bool {
    mark(agent, goal).exists()
}

/// Notes that.
pub(super) fn note(agent: &Agent, goal: &VmGoal) -> anyhow::Result<()> {
    let mark = mark(agent, goal);
    fs::write(&mark, "").with_context(|| format!("cannot write {}", mark.display()))
}

/// Removes the disks of VMs that are no more: an agent may have died before it did.
pub(super) fn sweep(agent: &Agent, known: impl Fn(&str) -> bool) {
    for entry in fs::read_dir(&agent.secrets_folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.strip_suffix(".iso").is_some_and(|vm| !known(vm)) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Whether there is a disk to be taken out of the guest's drive.
pub(super) fn is_there(agent: &Agent, goal: &VmGoal) -> bool {
    path(agent, goal).exists()
}

/// The disk is out of the drive, and its guest needs it no more.
pub(super) fn forget(agent: &Agent, goal: &VmGoal) -> anyhow::Result<()> {
    let path = path(agent, goal);
    note(agent, goal)?;
    fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
}

/// Nothing of it may be left when its VM is gone.
pub(super) fn throw_away(agent: &Agent, goal: &VmGoal) {
    agent.secrets.forget(goal.vm);
    let _ = fs::remove_file(path(agent, goal));
}
