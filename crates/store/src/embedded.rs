//! The embedded engine: redb, with two-phase commits and quick repair. Both cost some speed; without the first, two
//! crashes in a row could roll back what was durable (redb's change log, 4.2).

use std::path::Path;

use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};

use crate::{Store, StoreError, Write};

const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("records");
const FENCE: TableDefinition<'_, &str, u64> = TableDefinition::new("fence");
const EPOCH: &str = "epoch";

/// Records in one file.
pub struct EmbeddedStore {
    database: Database,
}

impl EmbeddedStore {
    /// Opens the store, or makes an empty one.
    ///
    /// # Errors
    /// [`StoreError::InUse`] while another process has it open, [`StoreError::Engine`].
    pub fn open(path: &Path) -> Result<EmbeddedStore, StoreError> {
        let database = Database::create(path).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => StoreError::InUse(path.display().to_string()),
            other => engine("open")(other),
        })?;
        let mut store = EmbeddedStore { database };
        // Makes the tables, so that reading never has to wonder.
        store.transact(|_, _| Ok(()))?;
        Ok(store)
    }

    fn transact(
        &mut self,
        work: impl FnOnce(&mut redb::Table<'_, &str, &[u8]>, &mut redb::Table<'_, &str, u64>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut transaction = self.database.begin_write().map_err(engine("begin a transaction"))?;
        transaction.set_two_phase_commit(true);
        transaction.set_quick_repair(true);
        {
            let mut records = transaction.open_table(RECORDS).map_err(engine("open its records"))?;
            let mut fence = transaction.open_table(FENCE).map_err(engine("open its fence"))?;
            work(&mut records, &mut fence)?;
        }
        transaction.commit().map_err(engine("commit"))
    }
}

impl Store for EmbeddedStore {
    fn fence(&mut self, epoch: u64) -> Result<(), StoreError> {
        self.transact(|_, fence| {
            check(fence, epoch)?;
            fence.insert(EPOCH, epoch).map_err(engine("write its fence")).map(drop)
        })
    }

    fn load(&self) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let transaction = self.database.begin_read().map_err(engine("begin a transaction"))?;
        let table = transaction.open_table(RECORDS).map_err(engine("open its records"))?;
        let mut records = Vec::new();
        for entry in table.iter().map_err(engine("read its records"))? {
            let (key, value) = entry.map_err(engine("read its records"))?;
            records.push((key.value().to_owned(), value.value().to_vec()));
        }
        Ok(records)
    }

    fn commit(&mut self, epoch: u64, writes: &[Write]) -> Result<(), StoreError> {
        self.transact(|records, fence| {
            check(fence, epoch)?;
            for write in writes {
                match write {
                    Write::Put(key, value) => {
                        records.insert(key.as_str(), value.as_slice()).map_err(engine("write a record"))?;
                    }
                    Write::Delete(key) => {
                        records.remove(key.as_str()).map_err(engine("delete a record"))?;
                    }
                }
            }
            Ok(())
        })
    }
}

fn check(fence: &redb::Table<'_, &str, u64>, own: u64) -> Result<(), StoreError> {
    let current = fence.get(EPOCH).map_err(engine("read its fence"))?.map_or(0, |value| value.value());
    if own < current { Err(StoreError::Fenced { own, current }) } else { Ok(()) }
}

fn engine<E: std::error::Error + Send + Sync + 'static>(action: &'static str) -> impl FnOnce(E) -> StoreError {
    move |source| StoreError::Engine { action, source: Box::new(source) }
}
