//! The provisioning disk of an image made for the original platform: there until the guest has said that it is ready, and
//! gone for good then, as there may be secrets on it.

use std::fs;
use std::io::Read;
use std::path::PathBuf;

use anyhow::Context;
use mayfly_model::VmGoal;
use mayfly_wire::{PROVISIONING_LABEL, iso_image, provisioning_files};

use crate::agent::Agent;

fn path(agent: &Agent, goal: &VmGoal) -> PathBuf {
    agent.ledger.vm_folder(goal.vm).join("provision.iso")
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
    let files = provisioning_files(goal, &secret()?);
    if files.is_empty() {
        return Ok(None);
    }
    let path = path(agent, goal);
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

/// A password that nobody knows, for an account that has to have one: letters, digits and what Windows asks for beside them.
fn secret() -> anyhow::Result<String> {
    const LETTERS: &[u8; 64] = b"ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz23456789-_+=.:!";
    let mut bytes = [0; 24];
    let mut random = fs::File::open("/dev/urandom").context("cannot open /dev/urandom")?;
    random.read_exact(&mut bytes).context("cannot read /dev/urandom")?;
    let letters = bytes.iter().map(|byte| char::from(LETTERS[usize::from(byte % 64)]));
    Ok(letters.chain("aZ7!".chars()).collect())
}
