//! A store in memory, for simulation: it survives the controller, not the process.

use std::collections::BTreeMap;

use crate::{Store, StoreError, Write};

/// Records in memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    epoch: u64,
    records: BTreeMap<String, Vec<u8>>,
}

impl Store for MemoryStore {
    fn take_over(&mut self, least: u64) -> Result<u64, StoreError> {
        self.epoch = least.max(self.epoch + 1);
        Ok(self.epoch)
    }

    fn scan(&self, see: &mut dyn FnMut(&str, &[u8])) -> Result<(), StoreError> {
        self.records.iter().for_each(|(key, value)| see(key, value));
        Ok(())
    }

    fn commit(&mut self, epoch: u64, writes: &[Write]) -> Result<(), StoreError> {
        self.check(epoch)?;
        for write in writes {
            match write {
                Write::Put(key, value) => drop(self.records.insert(key.clone(), value.clone())),
                Write::Delete(key) => drop(self.records.remove(key)),
            }
        }
        Ok(())
    }
}

impl MemoryStore {
    fn check(&self, own: u64) -> Result<(), StoreError> {
        if own < self.epoch { Err(StoreError::Fenced { own, current: self.epoch }) } else { Ok(()) }
    }
}
