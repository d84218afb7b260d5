//! The provisioning disk of an image made for the original platform: there until the guest has said that it is ready, and
//! gone for good then, as there may be secrets on it.

use std::fs;
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
    if mark(agent, goal).exists() {
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
    fs::write(&path, iso_image(PROVISIONING_LABEL, &files))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(Some(path))
}

/// Whether there is a disk to be taken out of the guest's drive.
pub(super) fn is_there(agent: &Agent, goal: &VmGoal) -> bool {
    path(agent, goal).exists()
}

/// The disk is out of the drive, and its guest needs it no more.
pub(super) fn forget(agent: &Agent, goal: &VmGoal) -> anyhow::Result<()> {
    let (path, mark) = (path(agent, goal), mark(agent, goal));
    fs::write(&mark, "").with_context(|| format!("cannot write {}", mark.display()))?;
    fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
}

/// Nothing of it may be left when its VM is gone.
pub(super) fn throw_away(agent: &Agent, goal: &VmGoal) {
    agent.secrets.forget(goal.vm);
    let _ = fs::remove_file(path(agent, goal));
}
