//! Backups, and the way back to one.

use std::collections::BTreeSet;

use mayfly_fabric::{Record, restore};
use mayfly_store::{Store, Write};

use super::World;
use crate::oracle::{Checked, Oracle};
use crate::workload::Promises;

/// The records of a moment, and what was promised until then.
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
        let Some(backup) = self.backup.take() else {
            self.backup = Some(Backup {
                records: core.state().records().collect(),
                promises: self.promises.clone(),
                done: self.done.clone(),
                oracle: self.oracle.clone(),
            });
            return Ok(());
        };
        self.crash_controller();
        self.restore(backup)
    }

    /// As `mayfly controller restore` does.
    fn restore(&mut self, backup: Backup) -> Checked {
        let Backup { mut records, promises, done, oracle } = backup;
        restore::restored(&mut records);
        let error = |error: &dyn std::fmt::Display| error.to_string();
        let there = self.store.load().map_err(|failed| error(&failed))?;
        let epoch = self.store.take_over(0).map_err(|failed| error(&failed))? + 1_000_000;
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
