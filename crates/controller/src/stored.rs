//! The core's records in a store: all of them read, and changes to them written.

use std::collections::HashMap;
use std::sync::mpsc::{SyncSender, sync_channel};

use anyhow::Context;
use mayfly_fabric::{Change, Record};
use mayfly_model::NamePool;
use mayfly_store::{Store, StoreError, Write};

/// Records that are handed over at a time while a store is read.
const BATCH: usize = 1024;

/// What `take` makes of all records of a store, which another thread reads meanwhile.
///
/// # Errors
/// When the store cannot be read, or one of them is not a record; `take` has not seen all then.
pub fn read<T>(store: &mut dyn Store, take: impl FnOnce(&mut dyn Iterator<Item = Record>) -> T) -> anyhow::Result<T> {
    std::thread::scope(|scope| {
        let (batches, received) = sync_channel::<Vec<Record>>(4);
        let reader = scope.spawn(move || hand_over(store, &batches));
        // Shared between the two threads, so that both have about as much to do.
        let mut pool = NamePool::default();
        let taken = take(&mut received.into_iter().flatten().map(|record| record.pooled(&mut pool)));
        reader.join().map_err(|_| anyhow::anyhow!("the store's reader has panicked"))??;
        Ok(taken)
    })
}

fn hand_over(store: &dyn Store, batches: &SyncSender<Vec<Record>>) -> anyhow::Result<()> {
    let (mut batch, mut broken) = (Vec::with_capacity(BATCH), None);
    store.scan(&mut |key, bytes| {
        match Record::decode(bytes) {
            Ok(record) => batch.push(record),
            Err(error) => broken = broken.take().or(Some((key.to_owned(), error))),
        }
        if batch.len() == BATCH {
            // Who takes no more has failed.
            let _ = batches.send(std::mem::replace(&mut batch, Vec::with_capacity(BATCH)));
        }
    })?;
    let _ = batches.send(batch);
    match broken {
        None => Ok(()),
        Some((key, error)) => Err(error).with_context(|| format!("the record {key}")),
    }
}

/// Commits changes as one transaction.
///
/// # Errors
/// [`StoreError`]; nothing was changed then.
pub fn commit(store: &mut dyn Store, epoch: u64, changes: &[Change]) -> Result<(), StoreError> {
    let writes = writes(changes).map_err(|source| StoreError::Engine { action: "write a record", source })?;
    store.commit(epoch, &writes)
}

/// The last change of each record: a new instance waits, and has its place in the same transaction.
fn writes(changes: &[Change]) -> Result<Vec<Write>, Box<dyn std::error::Error + Send + Sync>> {
    let keys: Vec<String> = changes.iter().map(Change::key).collect();
    let mut last: HashMap<&str, usize> = HashMap::with_capacity(keys.len());
    last.extend(keys.iter().enumerate().map(|(at, key)| (key.as_str(), at)));
    let counts: Vec<bool> = keys.iter().enumerate().map(|(at, key)| last.get(key.as_str()) == Some(&at)).collect();
    let all = keys.into_iter().zip(changes).zip(counts);
    all.filter(|(_, counts)| *counts)
        .map(|((key, change), _)| match change {
            Change::Put(record) => Ok(Write::Put(key, record.encode()?)),
            Change::Delete(_) => Ok(Write::Delete(key)),
        })
        .collect()
}
