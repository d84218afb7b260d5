//! Backups, and the way back to one.

use std::collections::BTreeSet;

use mayfly_fabric::{Record, restore};
use mayfly_model::Time;
use mayfly_store::{Store, Write};
use rand::Rng;

use super::World;
use crate::oracle::{Checked, Oracle};
use crate::workload::Promises;

/// Between two restores, in ms: people who stop controllers, look and start them again are slower.
const APART: u64 = 10_000;
/// The time on the wall when a simulation begins.
const WALL: u64 = 1_800_000_000_000;

/// The records of a moment, and what was promised until then.
#[derive(Clone)]
pub(super) struct Backup {
    records: Vec<Record>,
    promises: Promises,
    done: BTreeSet<String>,
    oracle: Oracle,
}

impl World {
    /// Makes a backup or, if there is one, ends the controller and goes back to it.
    pub(super) fn back_up_or_restore(&mut self) -> Checked {
        let Some(core) = &self.core else { return Ok(()) };
        let apart = self.restored.is_none_or(|before| self.now >= before + APART);
        let Some(backup) = self.backup.clone().filter(|_| apart) else {
            if self.backup.is_some() {
                return Ok(());
            }
            self.backup = Some(Backup {
                records: core.state().records().collect(),
                promises: self.promises.clone(),
                done: self.done.clone(),
                oracle: self.oracle.clone(),
            });
            return Ok(());
        };
        // One backup may be gone back to more than once.
        if self.rng.faults.random_bool(0.5) {
            self.backup = None;
        }
        self.restored = Some(self.now);
        self.crash_controller();
        // All controllers have to be stopped.
        self.deposed = None;
        self.restore(backup)
    }

    /// As `mayfly controller restore` does.
    fn restore(&mut self, backup: Backup) -> Checked {
        let Backup { mut records, promises, done, oracle } = backup;
        restore::restored(&mut records, Time(WALL + self.now));
        let error = |error: &dyn std::fmt::Display| error.to_string();
        let there = self.store.load().map_err(|failed| error(&failed))?;
        let meta = records.iter().find_map(|record| match record {
            Record::Meta(meta) => Some(meta.clone()),
            _ => None,
        });
        let meta = meta.ok_or("a backup without counters")?;
        self.firsts.push(meta.least_generation);
        let epoch = meta.epoch;
        let epoch = self.store.take_over(epoch).map_err(|failed| error(&failed))?;
        let mut writes: Vec<Write> = there.into_iter().map(|(key, _)| Write::Delete(key)).collect();
        for record in &records {
            writes.push(Write::Put(record.key(), record.encode().map_err(|failed| error(&failed))?));
        }
        self.store.commit(epoch, &writes).map_err(|failed| error(&failed))?;
        (self.promises, self.done) = (promises, done);
        self.oracle.go_back(oracle);
        Ok(())
    }
}
