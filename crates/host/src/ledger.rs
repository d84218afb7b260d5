//! What the agent writes down, so that its next start goes on where this one ended: the goal state, the lease, and one
//! note for each VM.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::Context;
use mayfly_model::{BootStep, GoalState, HostLease, Time, VmGoal, VmId};
use mayfly_wire::ScriptReport;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::agent::lock;
use crate::traffic::Counted;

/// The ledger of a host.
#[derive(Debug)]
pub(crate) struct Ledger {
    folder: PathBuf,
    /// Changes with each start of the host: a lease from before does not count.
    boot_id: u64,
    written: Mutex<Written>,
}

/// What has been written of the lease.
#[derive(Debug, Default)]
struct Written {
    /// The last one: its number, and until when the host was entitled.
    last: (u64, Time),
    /// Whether no more of it is written, as the goal state that goes with it could not be.
    is_withheld: bool,
}

#[derive(Serialize, Deserialize)]
struct LeaseNote {
    boot_id: u64,
    number: u64,
    serve_until: Time,
    #[serde(default)]
    fresh_until: Time,
    #[serde(default)]
    entitled_until: Time,
}

/// What is remembered of a VM.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct VmNote {
    /// What it should be.
    pub goal: VmGoal,
    /// Reboots that have been carried out.
    pub reboots: u32,
    /// Starts that nobody asked for.
    pub restarts: u32,
    /// Whether the guest has said that it is ready; it may take a while to say so again.
    #[serde(default)]
    pub ready: bool,
    /// What became of its script in this boot.
    #[serde(default)]
    pub script_runs: Vec<ScriptReport>,
    /// What has been reached on the way to Ready.
    #[serde(default)]
    pub steps: Vec<BootStep>,
    /// Whether it has asked for its documents, and whether cloud-init is at work in it.
    #[serde(default)]
    pub asked: (bool, bool),
    /// How often it has been heard since it was ready.
    #[serde(default)]
    pub beats: u32,
    /// What it has sent and received.
    #[serde(default)]
    pub traffic: Counted,
}

impl Ledger {
    pub(crate) fn new(folder: &Path, boot_id: u64) -> Ledger {
        Ledger { folder: folder.to_owned(), boot_id, written: Default::default() }
    }

    /// The goal state of before, if there is one.
    pub(crate) fn goal(&self) -> GoalState {
        read(&self.folder.join("goal.json")).unwrap_or_default()
    }

    pub(crate) fn write_goal(&self, goal: &GoalState) -> anyhow::Result<()> {
        write(&self.folder.join("goal.json"), goal)?;
        lock(&self.written).is_withheld = false;
        Ok(())
    }

    /// The lease of before, if it is of this start of the host.
    pub(crate) fn lease(&self) -> HostLease {
        match read::<LeaseNote>(&self.folder.join("lease.json")) {
            Some(note) if note.boot_id == self.boot_id => {
                HostLease::resumed(note.number, note.serve_until, note.fresh_until, note.entitled_until)
            }
            _ => HostLease::default(),
        }
    }

    pub(crate) fn write_lease(&self, lease: &HostLease) -> anyhow::Result<()> {
        // Two tasks write it, and an older one must not come after a newer one.
        let mut written = lock(&self.written);
        if written.is_withheld || (lease.number(), lease.entitled_until()) < written.last {
            return Ok(());
        }
        written.last = (lease.number(), lease.entitled_until());
        let note = LeaseNote {
            boot_id: self.boot_id,
            number: lease.number(),
            serve_until: lease.serve_until(),
            fresh_until: lease.fresh_until(),
            entitled_until: lease.entitled_until(),
        };
        write(&self.folder.join("lease.json"), &note)
    }

    /// Whether the goal state that is followed could not be written.
    pub(crate) fn lacks_goal(&self) -> bool {
        lock(&self.written).is_withheld
    }

    /// Takes back what was written of the lease, and writes no more of it until a goal state has been written down.
    pub(crate) fn forget_lease(&self) -> anyhow::Result<()> {
        let mut written = lock(&self.written);
        written.is_withheld = true;
        let path = self.folder.join("lease.json");
        match fs::remove_file(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            removed => removed.with_context(|| format!("cannot remove {}", path.display())),
        }
    }

    /// The folder of a VM.
    pub(crate) fn vm_folder(&self, vm: VmId) -> PathBuf {
        self.folder.join("vms").join(vm.to_string())
    }

    /// The folder of all local disks: below it one for each deployment, instance and generation.
    pub(crate) fn local_disks(&self) -> PathBuf {
        self.folder.join("local")
    }

    /// What is remembered of the VMs that exist. A VM without a note never got as far as a disk.
    pub(crate) fn vms(&self) -> anyhow::Result<Vec<VmNote>> {
        let folder = self.folder.join("vms");
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let mut notes = Vec::new();
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let note = path.join("vm.json");
            match read::<VmNote>(&note) {
                Some(note) => notes.push(note),
                // It is another version's perhaps. The goal state says whether its disk is still wanted.
                None if note.exists() => {}
                None => fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?,
            }
        }
        Ok(notes)
    }

    pub(crate) fn write_vm(&self, note: &VmNote) -> anyhow::Result<()> {
        let folder = self.vm_folder(note.goal.vm);
        // What a guest is told may be secret.
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.with_context(|| format!("cannot create {}", folder.display()))?;
        write(&folder.join("vm.json"), note)
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let bytes = fs::read(path).ok()?;
    serde_json::from_slice(&bytes)
        .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "unreadable"))
        .ok()
}

fn write(path: &Path, value: &impl Serialize) -> anyhow::Result<()> {
    let temporary = path.with_extension("new");
    let bytes = serde_json::to_vec(value)?;
    fs::write(&temporary, bytes)
        .and_then(|()| fs::rename(&temporary, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use mayfly_model::{Incarnation, LeaseGrant};

    use super::*;

    #[test]
    fn a_lease_is_not_kept_beside_a_goal_state_of_before() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::new(folder.path(), 1);
        let mut lease = HostLease::default();
        let mut grant = |number| {
            lease.granted(Time(1000), Time(1100), LeaseGrant { number, ttl: 3000, fresh: 2000 });
            ledger.write_lease(&lease).unwrap();
            Ledger::new(folder.path(), 1).lease()
        };
        assert_eq!(grant(1).number(), 1);
        // As where a goal state finds no room on the disk.
        fs::create_dir(folder.path().join("goal.new")).unwrap();
        let goal = GoalState { incarnation: Incarnation(2), ..GoalState::default() };
        ledger.write_goal(&goal).unwrap_err();
        ledger.forget_lease().unwrap();
        ledger.forget_lease().unwrap();
        assert_eq!(grant(2), HostLease::default(), "none is written beside an old goal state");
        fs::remove_dir(folder.path().join("goal.new")).unwrap();
        ledger.write_goal(&goal).unwrap();
        assert_eq!(grant(3).number(), 3);
    }
}
