//! Records in etcd: the same records, the same transactions, fenced by the same epoch.
//!
//! A transaction is one entry of a journal under `journal/`, in parts if it is too large for one request: etcd takes no
//! more than 128 operations and 1.5 MiB at a time. It counts when its entry is there, which happens only if the fence
//! still is the writer's. A repeated request whose first answer was lost finds its own entry. Now and then the journal is
//! folded into the records under `record/`; a crash in between only means that entries are folded twice.

mod election;
mod gateway;

use std::collections::BTreeMap;

pub use election::{Election, Leadership};
pub use gateway::{EtcdConfig, EtcdError};

use crate::journal;
use crate::{Store, StoreError, Write};
use gateway::{Act, Compare, Gateway};

/// Bytes of one request's value.
const PART_BYTES: usize = 700 << 10;
/// Operations and bytes of one request while folding.
const FOLD_OPERATIONS: usize = 100;
const FOLD_BYTES: usize = 500 << 10;
/// Entries of the journal at which it is folded.
const JOURNAL_ENTRIES: u64 = 2000;
const JOURNAL_BYTES: usize = 16 << 20;
/// Keys of one answer: small records, and entries or parts of the journal, which may be large.
const PAGE: u32 = 500;
const LARGE_PAGE: u32 = 8;

/// Records in etcd.
pub struct EtcdStore {
    gateway: Gateway,
    prefix: String,
    epoch: u64,
    /// What stands under the fence's key while this controller has the store.
    fence: String,
    /// The next entry of the journal, and the first that has not been folded.
    next: u64,
    first: u64,
    /// Bytes of the journal since it was folded, as far as this controller has written them.
    bytes: usize,
}

impl EtcdStore {
    /// Connects. Nothing is written until the store is fenced.
    ///
    /// # Errors
    /// [`StoreError::Engine`].
    pub fn open(config: &EtcdConfig) -> Result<EtcdStore, StoreError> {
        let gateway = Gateway::connect(config).map_err(engine("connect"))?;
        Ok(EtcdStore {
            gateway,
            prefix: config.prefix.clone(),
            epoch: 0,
            fence: String::new(),
            next: 0,
            first: 0,
            bytes: 0,
        })
    }

    fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.prefix)
    }

    fn entry_key(&self, number: u64) -> String {
        self.key(&format!("journal/{number:020}"))
    }

    fn find_journal(&mut self) -> Result<(), StoreError> {
        let entries = self.all("journal/")?;
        let number = |key: &String| key.rsplit('/').next().and_then(|number| number.parse::<u64>().ok());
        let folded = self.gateway.get(&self.key("folded")).map_err(engine("read its journal"))?;
        let folded = folded.and_then(|bytes| String::from_utf8(bytes).ok()?.parse().ok()).unwrap_or(0);
        self.first = entries.iter().find_map(|(key, _)| number(key)).unwrap_or(folded).max(folded);
        self.next = entries.iter().rev().find_map(|(key, _)| number(key)).map_or(self.first, |last| last + 1);
        self.next = self.next.max(folded);
        Ok(())
    }

    /// All keys under a name, without the prefix, and their values, as of one moment.
    fn all(&self, name: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        loop {
            match self.all_at_once(name) {
                // What was read first has been compacted meanwhile: again, from the present.
                Err(EtcdError::Refused(why)) if why.contains("compacted") => {}
                other => return other.map_err(engine("read its records")),
            }
        }
    }

    fn all_at_once(&self, name: &str) -> Result<Vec<(String, Vec<u8>)>, EtcdError> {
        let (mut from, to) = (self.key(name), end_of(&self.key(name)));
        let (mut all, mut revision) = (Vec::new(), 0);
        loop {
            let page = if name.starts_with("record/") { PAGE } else { LARGE_PAGE };
            let (pairs, more, read) = self.gateway.range(&from, &to, page, revision)?;
            revision = read;
            if let Some(last) = pairs.last() {
                from = format!("{}\0", last.key);
            }
            let cut = self.prefix.len() + 1 + name.len();
            all.extend(pairs.into_iter().map(|pair| (pair.key[cut..].to_owned(), pair.value)));
            if !more {
                return Ok(all);
            }
        }
    }

    /// Why a transaction was not done, or that it was, by an attempt whose answer was lost.
    fn look_again(&self, entry: &[u8]) -> Result<(), StoreError> {
        let fence = self.gateway.get(&self.key("fence")).map_err(engine("read its fence"))?;
        if fence.as_deref() != Some(self.fence.as_bytes()) {
            return Err(StoreError::Fenced { own: self.epoch, current: fence.as_deref().map_or(0, epoch_of) });
        }
        let found = self.gateway.get(&self.entry_key(self.next)).map_err(engine("read its journal"))?;
        if found.as_deref() == Some(entry) {
            return Ok(());
        }
        Err(engine("commit")(EtcdError::Refused("the journal is not what this controller left".to_owned())))
    }

    fn current_epoch(&self) -> Result<u64, StoreError> {
        let value = self.gateway.get(&self.key("fence")).map_err(engine("read its fence"))?;
        Ok(value.as_deref().map_or(0, epoch_of))
    }

    /// Puts what is too large for one request into parts, and returns what stands for it in the journal.
    fn write_parts(&self, entry: Vec<u8>) -> Result<Vec<u8>, StoreError> {
        // The name makes an entry unlike any other, so that it is recognised.
        let name = format!("{:032x}", rand::random::<u128>());
        if entry.len() <= PART_BYTES {
            return Ok([&[0], name.as_bytes(), &entry].concat());
        }
        let parts = entry.chunks(PART_BYTES);
        let count = parts.len() as u32;
        for (number, part) in parts.enumerate() {
            let key = self.key(&format!("part/{:020}/{name}/{number:06}", self.next));
            self.gateway.transact(&[], &[Act::Put(&key, part)]).map_err(engine("write its journal"))?;
        }
        Ok([&[1], name.as_bytes(), &count.to_le_bytes()].concat())
    }

    /// The transaction that an entry of the journal stands for.
    fn read_entry(&self, number: u64, value: &[u8]) -> Result<Vec<Write>, StoreError> {
        let damaged = || engine("read its journal")(EtcdError::Refused(format!("entry {number} is damaged")));
        let (kind, rest) = value.split_first().ok_or_else(damaged)?;
        let (name, rest) = rest.split_at_checked(32).ok_or_else(damaged)?;
        let bytes = match kind {
            0 => rest.to_vec(),
            _ => {
                let name = String::from_utf8_lossy(name);
                let parts = self.all(&format!("part/{number:020}/{name}/"))?;
                let count = u32::from_le_bytes(rest.try_into().map_err(|_| damaged())?);
                if parts.len() != count as usize {
                    return Err(damaged());
                }
                parts.into_iter().flat_map(|(_, part)| part).collect()
            }
        };
        journal::decode(&bytes).map_err(engine("read its journal"))
    }

    /// Folds the journal into the records.
    fn fold(&mut self) -> Result<(), StoreError> {
        let mut changes = BTreeMap::new();
        for (key, value) in self.all("journal/")? {
            let number = key.parse().unwrap_or(0);
            journal::fold(&mut changes, self.read_entry(number, &value)?);
        }
        let fence = self.fence.clone();
        let fence_key = self.key("fence");
        let changes: Vec<(String, Option<Vec<u8>>)> =
            changes.into_iter().map(|(key, value)| (self.key(&format!("record/{key}")), value)).collect();
        let mut rest = changes.as_slice();
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |(key, value): &&(String, Option<Vec<u8>>)| {
                bytes += key.len() + value.as_ref().map_or(0, Vec::len);
                bytes <= FOLD_BYTES
            };
            let count = rest.iter().take(FOLD_OPERATIONS).take_while(fits).count().max(1);
            let (now, later) = rest.split_at(count);
            let acts: Vec<Act<'_>> = now
                .iter()
                .map(|(key, value)| value.as_ref().map_or(Act::Delete(key), |value| Act::Put(key, value)))
                .collect();
            self.fenced(&fence_key, &fence, &acts)?;
            rest = later;
        }
        let (from, to) = (self.key("journal/"), self.entry_key(self.next));
        let (parts, folded) = (self.key("part/"), self.next.to_string());
        let folded_key = self.key("folded");
        let parts_end = end_of(&parts);
        let acts = [
            Act::DeleteRange(&from, &to),
            Act::DeleteRange(&parts, &parts_end),
            Act::Put(&folded_key, folded.as_bytes()),
        ];
        self.fenced(&fence_key, &fence, &acts)?;
        (self.first, self.bytes) = (self.next, 0);
        Ok(())
    }

    fn fenced(&self, key: &str, fence: &str, acts: &[Act<'_>]) -> Result<(), StoreError> {
        let done =
            self.gateway.transact(&[Compare::Is(key, fence.as_bytes())], acts).map_err(engine("fold its journal"))?;
        if done {
            return Ok(());
        }
        Err(StoreError::Fenced { own: self.epoch, current: self.current_epoch()? })
    }
}

impl Store for EtcdStore {
    fn take_over(&mut self, least: u64) -> Result<u64, StoreError> {
        let key = self.key("fence");
        loop {
            let before = self.gateway.get(&key).map_err(engine("read its fence"))?;
            let epoch = least.max(before.as_deref().map_or(0, epoch_of) + 1);
            // The name tells this controller's fence from another's of the same epoch, and its own when an answer was lost.
            let fence = format!("{epoch} {:032x}", rand::random::<u128>());
            let is = before.as_deref().map_or(Compare::Missing(&key), |before| Compare::Is(&key, before));
            let done =
                self.gateway.transact(&[is], &[Act::Put(&key, fence.as_bytes())]).map_err(engine("write its fence"))?;
            let now = if done { None } else { self.gateway.get(&key).map_err(engine("read its fence"))? };
            if done || now.as_deref() == Some(fence.as_bytes()) {
                (self.epoch, self.fence) = (epoch, fence);
                // Whoever wrote before can write no more; where the journal ends is known now.
                self.find_journal()?;
                return Ok(epoch);
            }
        }
    }

    fn scan(&self, see: &mut dyn FnMut(&str, &[u8])) -> Result<(), StoreError> {
        // The journal after the records: what is folded in between is in both, which does no harm.
        let records = self.all("record/")?;
        let mut records = records.into_iter().map(|(key, value)| (key, Some(value))).collect();
        for (key, value) in self.all("journal/")? {
            let number = key.parse().unwrap_or(0);
            journal::fold(&mut records, self.read_entry(number, &value)?);
        }
        records.iter().for_each(|(key, value)| value.iter().for_each(|value| see(key, value)));
        Ok(())
    }

    fn commit(&mut self, epoch: u64, writes: &[Write]) -> Result<(), StoreError> {
        if epoch != self.epoch {
            return Err(StoreError::Fenced { own: epoch, current: self.current_epoch()? });
        }
        let entry = journal::encode(writes);
        let length = entry.len();
        let entry = self.write_parts(entry)?;
        let (fence_key, key) = (self.key("fence"), self.entry_key(self.next));
        let compares = [Compare::Is(&fence_key, self.fence.as_bytes()), Compare::Missing(&key)];
        let done = self.gateway.transact(&compares, &[Act::Put(&key, &entry)]).map_err(engine("commit"))?;
        if !done {
            self.look_again(&entry)?;
        }
        self.next += 1;
        self.bytes += length;
        if self.next - self.first < JOURNAL_ENTRIES && self.bytes < JOURNAL_BYTES {
            return Ok(());
        }
        match self.fold() {
            Err(StoreError::Engine { action, source }) => {
                // The transaction is durable; the journal is folded another time.
                tracing::warn!(action, %source, "the journal cannot be folded yet");
                Ok(())
            }
            other => other,
        }
    }
}

/// The epoch of a fence, which the name of its writer follows.
fn epoch_of(fence: &[u8]) -> u64 {
    String::from_utf8_lossy(fence).split(' ').next().and_then(|epoch| epoch.parse().ok()).unwrap_or(0)
}

/// The first key after all that begin with `prefix`.
fn end_of(prefix: &str) -> String {
    let mut bytes = prefix.as_bytes().to_vec();
    // The prefixes end with a slash, after which there is a digit zero in ASCII.
    if let Some(last) = bytes.last_mut() {
        *last += 1;
    }
    String::from_utf8(bytes).unwrap_or_default()
}

fn engine<E: std::error::Error + Send + Sync + 'static>(action: &'static str) -> impl FnOnce(E) -> StoreError {
    move |source| StoreError::Engine { action, source: Box::new(source) }
}
