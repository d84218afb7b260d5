//! The embedded engine: redb, with two-phase commits and quick repair. Both cost some speed; without the first, two
//! crashes in a row could roll back what was durable (redb's change log, 4.2).

use std::collections::BTreeMap;
use std::path::Path;

use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, StorageBackend, Table, TableDefinition};

use crate::journal;
use crate::{Store, StoreError, Write};

const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("records");
const JOURNAL: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("journal");
const FENCE: TableDefinition<'_, &str, u64> = TableDefinition::new("fence");
const EPOCH: &str = "epoch";
/// Bytes and entries of the journal at which it is folded into the records.
const JOURNAL_BYTES: usize = 8 << 20;
const JOURNAL_ENTRIES: u64 = 4096;
/// What the engine may keep of the file in memory: the core has the records, so that they are read once, at the start.
const CACHE_BYTES: usize = 32 << 20;

/// Records in one file.
pub struct EmbeddedStore {
    database: Database,
    /// The next entry of the journal, and how long it is.
    next: u64,
    entries: u64,
    bytes: usize,
}

/// The tables of a transaction.
struct Tables<'t> {
    records: Table<'t, &'static str, &'static [u8]>,
    journal: Table<'t, u64, &'static [u8]>,
    fence: Table<'t, &'static str, u64>,
}

impl EmbeddedStore {
    /// Opens the store, or makes an empty one.
    ///
    /// # Errors
    /// [`StoreError::InUse`] while another process has it open, [`StoreError::Engine`].
    pub fn open(path: &Path) -> Result<EmbeddedStore, StoreError> {
        let database = Database::builder().set_cache_size(CACHE_BYTES).create(path).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => StoreError::InUse(path.display().to_string()),
            other => engine("open")(other),
        })?;
        EmbeddedStore::with(database)
    }

    /// A store over something that plays the disk.
    ///
    /// # Errors
    /// [`StoreError::Engine`].
    pub fn over(disk: impl StorageBackend) -> Result<EmbeddedStore, StoreError> {
        EmbeddedStore::with(Database::builder().create_with_backend(disk).map_err(engine("open"))?)
    }

    fn with(database: Database) -> Result<EmbeddedStore, StoreError> {
        let mut store = EmbeddedStore { database, next: 0, entries: 0, bytes: 0 };
        // Makes the tables, so that reading never has to wonder.
        let (next, entries, bytes) = store.transact(|tables| {
            let (mut next, mut entries, mut bytes) = (0, 0, 0);
            for entry in tables.journal.iter().map_err(engine("read its journal"))? {
                let (number, value) = entry.map_err(engine("read its journal"))?;
                (next, entries, bytes) = (number.value() + 1, entries + 1, bytes + value.value().len());
            }
            Ok((next, entries, bytes))
        })?;
        (store.next, store.entries, store.bytes) = (next, entries, bytes);
        Ok(store)
    }

    fn transact<T>(&mut self, work: impl FnOnce(&mut Tables<'_>) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let mut transaction = self.database.begin_write().map_err(engine("begin a transaction"))?;
        transaction.set_two_phase_commit(true);
        transaction.set_quick_repair(true);
        let done = {
            let mut tables = Tables {
                records: transaction.open_table(RECORDS).map_err(engine("open its records"))?,
                journal: transaction.open_table(JOURNAL).map_err(engine("open its journal"))?,
                fence: transaction.open_table(FENCE).map_err(engine("open its fence"))?,
            };
            work(&mut tables)?
        };
        transaction.commit().map_err(engine("commit"))?;
        Ok(done)
    }
}

impl Store for EmbeddedStore {
    fn take_over(&mut self, least: u64) -> Result<u64, StoreError> {
        self.transact(|tables| {
            let epoch = least.max(current(&tables.fence)? + 1);
            tables.fence.insert(EPOCH, epoch).map_err(engine("write its fence"))?;
            Ok(epoch)
        })
    }

    fn scan(&self, see: &mut dyn FnMut(&str, &[u8])) -> Result<(), StoreError> {
        let transaction = self.database.begin_read().map_err(engine("begin a transaction"))?;
        let journal = transaction.open_table(JOURNAL).map_err(engine("open its journal"))?;
        let changes = folded(&journal)?;
        // What the journal has of a record is newer.
        let mut newer = changes.iter().peekable();
        let mut show = |key: &str, value: Option<&[u8]>| value.into_iter().for_each(|value| see(key, value));
        let table = transaction.open_table(RECORDS).map_err(engine("open its records"))?;
        for entry in table.iter().map_err(engine("read its records"))? {
            let (key, value) = entry.map_err(engine("read its records"))?;
            while let Some((before, value)) = newer.next_if(|(changed, _)| changed.as_str() < key.value()) {
                show(before, value.as_deref());
            }
            match newer.next_if(|(changed, _)| changed.as_str() == key.value()) {
                Some((_, instead)) => show(key.value(), instead.as_deref()),
                None => show(key.value(), Some(value.value())),
            }
        }
        newer.for_each(|(key, value)| show(key, value.as_deref()));
        Ok(())
    }

    fn commit(&mut self, epoch: u64, writes: &[Write]) -> Result<(), StoreError> {
        let entry = journal::encode(writes);
        let (number, length) = (self.next, entry.len());
        let full = self.bytes + length > JOURNAL_BYTES || self.entries >= JOURNAL_ENTRIES;
        self.transact(|tables| {
            check(&tables.fence, epoch)?;
            tables.journal.insert(number, entry.as_slice()).map_err(engine("write its journal"))?;
            if full { fold(tables) } else { Ok(()) }
        })?;
        self.next += 1;
        (self.entries, self.bytes) = if full { (0, 0) } else { (self.entries + 1, self.bytes + length) };
        Ok(())
    }
}

/// What the whole journal makes of the records that it changes.
fn folded(journal: &impl ReadableTable<u64, &'static [u8]>) -> Result<BTreeMap<String, Option<Vec<u8>>>, StoreError> {
    let mut changes = BTreeMap::new();
    for entry in journal.iter().map_err(engine("read its journal"))? {
        let (_, value) = entry.map_err(engine("read its journal"))?;
        journal::fold(&mut changes, journal::decode(value.value()).map_err(engine("read its journal"))?);
    }
    Ok(changes)
}

/// Folds the whole journal into the records.
fn fold(tables: &mut Tables<'_>) -> Result<(), StoreError> {
    for (key, value) in folded(&tables.journal)? {
        match value {
            Some(value) => {
                tables.records.insert(key.as_str(), value.as_slice()).map_err(engine("write a record"))?;
            }
            None => drop(tables.records.remove(key.as_str()).map_err(engine("delete a record"))?),
        }
    }
    tables.journal.retain(|_, _| false).map_err(engine("empty its journal"))
}

fn check(fence: &Table<'_, &'static str, u64>, own: u64) -> Result<(), StoreError> {
    let current = current(fence)?;
    if own < current { Err(StoreError::Fenced { own, current }) } else { Ok(()) }
}

fn current(fence: &Table<'_, &'static str, u64>) -> Result<u64, StoreError> {
    Ok(fence.get(EPOCH).map_err(engine("read its fence"))?.map_or(0, |value| value.value()))
}

fn engine<E: std::error::Error + Send + Sync + 'static>(action: &'static str) -> impl FnOnce(E) -> StoreError {
    move |source| StoreError::Engine { action, source: Box::new(source) }
}
