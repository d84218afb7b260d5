//! Backups: a fabric's records as text, one a line, and the way back into a store.
//!
//! The first line says what it is and how many records follow, each of which is a line of JSON; the last line has their
//! SHA-256, so that a file that was cut off is not taken for a whole one. Images are not in it: their chunks lie in the
//! object store, under their digests, and are never overwritten.

use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use mayfly_fabric::{Record, restore};
use mayfly_model::{Digest, Time};
use mayfly_store::{Election, EmbeddedStore, EtcdConfig, EtcdStore, Store, Write as StoreWrite};
use serde::{Deserialize, Serialize};

use crate::http::rfc3339;
use crate::stored;

/// The version of the format.
const VERSION: u32 = 1;
/// How long the lease of a controller that has ended may still be in etcd.
const LEASE: Duration = Duration::from_secs(8);

#[derive(Serialize, Deserialize)]
struct Head {
    mayfly_backup: u32,
    made: String,
    records: usize,
}

#[derive(Serialize, Deserialize)]
struct Foot {
    sha256: Digest,
}

/// Writes records as a backup that was made `now`.
///
/// # Errors
/// When `out` cannot be written.
pub fn write(records: impl ExactSizeIterator<Item = Record>, now: Time, mut out: impl Write) -> anyhow::Result<()> {
    let mut text = Vec::new();
    let head = Head { mayfly_backup: VERSION, made: rfc3339(now), records: records.len() };
    for record in records {
        serde_json::to_writer(&mut text, &record)?;
        text.push(b'\n');
    }
    let foot = Foot { sha256: Digest::of(&text) };
    writeln!(out, "{}", serde_json::to_string(&head)?)?;
    out.write_all(&text)?;
    writeln!(out, "{}", serde_json::to_string(&foot)?)?;
    Ok(())
}

/// Reads a backup, whole: when it was made, and its records.
///
/// # Errors
/// What is wrong with it, and in which line.
pub fn read(input: impl BufRead) -> anyhow::Result<(jiff::Timestamp, Vec<Record>)> {
    let mut lines = input.lines();
    let first = lines.next().context("it is empty")??;
    let head: Head = serde_json::from_str(&first).context("line 1: it is not a backup of Mayfly's records")?;
    let made = head.made.parse().context("line 1: when it was made is not a time")?;
    let version = head.mayfly_backup;
    ensure!(version == VERSION, "it is of version {version}, and this program reads version {VERSION}");
    let (mut records, mut text) = (Vec::new(), Vec::new());
    for (at, line) in lines.by_ref().take(head.records).enumerate() {
        let line = line?;
        let record = serde_json::from_str(&line);
        let (line_number, all) = (at + 2, head.records);
        let broken = || format!("line {line_number} is not a record; is it cut off after {at} of {all}?");
        records.push(record.with_context(broken)?);
        text.extend(line.as_bytes());
        text.push(b'\n');
    }
    let last = lines.next().with_context(|| {
        format!(
            "it is cut off: {} of {} records are there, and the last line, their digest, is not",
            records.len(),
            head.records
        )
    })??;
    let foot: Foot = serde_json::from_str(&last).context("its last line, the digest, is damaged or cut off")?;
    ensure!(foot.sha256 == Digest::of(&text), "its records are not those that were written: the digest differs");
    ensure!(records.iter().any(|record| matches!(record, Record::Meta(_))), "it lacks the fabric's counters");
    Ok((made, records))
}

/// Puts a backup's records into a store, for controllers that start after this.
///
/// # Errors
/// When the backup is damaged, the store is in use, or holds records that are not to be replaced.
pub fn restore(input: impl BufRead, into: &Place, replace: bool) -> anyhow::Result<usize> {
    let (made, mut records) = read(input).context("the backup cannot be used")?;
    let now = jiff::Timestamp::now();
    ensure!(
        now >= made,
        "the backup was made at {made}, and this machine's clock says {now:.0}: set the clock, as what the restored fabric \
         must not use a second time is numbered by it"
    );
    restore::restored(&mut records, Time(now.as_millisecond().try_into()?));
    let epoch = records.iter().find_map(|record| match record {
        Record::Meta(meta) => Some(meta.epoch),
        _ => None,
    });
    fill(into, &records, epoch.unwrap_or(0), replace)
}

/// Moves records from one store to another. The first is left as it is, fenced, so that no controller that still runs can
/// write to it.
///
/// # Errors
/// As for [`restore`].
pub fn migrate(from: &Place, into: &Place, replace: bool) -> anyhow::Result<usize> {
    if let Place::File(path) = from {
        ensure!(path.exists(), "there is no {}", path.display());
    }
    let mut source = open(from).context("the store to move from")?;
    let has_any = stored::read(source.as_mut(), |records| records.next().is_some())?;
    ensure!(has_any, "the store to move from is empty");
    let epoch = source.take_over(0)?;
    let records: Vec<Record> = stored::read(source.as_mut(), |records| records.collect())?;
    fill(into, &records, epoch + 1, replace)
}

fn fill(into: &Place, records: &[Record], epoch: u64, replace: bool) -> anyhow::Result<usize> {
    let mut store = open(into)?;
    let there = store.load()?;
    if !there.is_empty() && !replace {
        bail!("the store holds {} records already; `--replace` throws them away", there.len());
    }
    let epoch = store.take_over(epoch)?;
    let mut writes: Vec<StoreWrite> = there.into_iter().map(|(key, _)| StoreWrite::Delete(key)).collect();
    for record in records {
        writes.push(StoreWrite::Put(record.key(), record.encode()?));
    }
    store.commit(epoch, &writes)?;
    Ok(records.len())
}

/// Where records are, while no controller uses them.
#[derive(Clone, Debug)]
pub enum Place {
    /// The embedded store's file, `records.redb` in the controller's folder.
    File(PathBuf),
    /// An etcd.
    Etcd(EtcdConfig),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::File(path) => write!(f, "embedded:{}", path.display()),
            Place::Etcd(etcd) => write!(f, "etcd:{}", etcd.endpoints.join(",")),
        }
    }
}

fn open(place: &Place) -> anyhow::Result<Box<dyn Store>> {
    Ok(match place {
        Place::File(path) => Box::new(
            EmbeddedStore::open(path)
                .context("if a controller runs, stop it first (dev fabric: `mayfly dev kill controller`)")?,
        ),
        Place::Etcd(etcd) => {
            // One that was stopped a moment ago leads until its lease is over.
            let (election, deadline) = (Election::new(etcd, "")?, Instant::now() + LEASE);
            while let Some(leader) = election.leader()? {
                ensure!(
                    Instant::now() < deadline,
                    "the controller {leader} leads on this etcd; stop all controllers first"
                );
                std::thread::sleep(Duration::from_millis(200));
            }
            Box::new(EtcdStore::open(etcd)?)
        }
    })
}

#[cfg(test)]
mod tests {
    use mayfly_fabric::Meta;
    use mayfly_model::{Service, ServiceName};

    use super::*;

    fn records() -> Vec<Record> {
        let service = |name: &str| Service {
            name: ServiceName::new(name).unwrap(),
            created: Time(1),
            deleting: false,
            vips: Default::default(),
        };
        let meta = Meta { epoch: 7, next_vm: 40, ..Meta::default() };
        let services = ["shop", "blog"].map(|name| Record::Service(std::sync::Arc::new(service(name))));
        [Record::Meta(Box::new(meta))].into_iter().chain(services).collect()
    }

    fn text() -> String {
        let mut out = Vec::new();
        write(records().into_iter(), Time(0), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_backup_reads_back_and_a_damaged_one_does_not() {
        let text = text();
        assert_eq!(read(text.as_bytes()).unwrap().1, records());
        for length in 0..text.len() - 1 {
            assert!(read(&text.as_bytes()[..length]).is_err(), "cut off after {length} bytes");
        }
        let error = read(text.replace("blog", "slog").as_bytes()).unwrap_err().to_string();
        assert!(error.contains("digest"), "{error}");
        let error = read(text.replace("\"deleting\"", "\"d\"").as_bytes()).unwrap_err().to_string();
        assert!(error.contains("line 3"), "{error}");
        assert!(read("{}\n".as_bytes()).is_err());
    }

    #[test]
    fn records_move_between_stores_with_their_epochs() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| Place::File(folder.path().join(name));
        assert_eq!(restore(text().as_bytes(), &place("one"), false).unwrap(), 3);
        let there = restore(text().as_bytes(), &place("one"), false).unwrap_err().to_string();
        assert!(there.contains("--replace"), "{there}");
        assert_eq!(restore(text().as_bytes(), &place("one"), true).unwrap(), 3);
        let tomorrow = text().replace("1970-01-01", "2970-01-01");
        let early = restore(tomorrow.as_bytes(), &place("one"), true).unwrap_err().to_string();
        assert!(early.contains("set the clock"), "{early}");
        assert_eq!(migrate(&place("one"), &place("two"), false).unwrap(), 3);
        let mut store = open(&place("two")).unwrap();
        let stored: Vec<Record> =
            store.load().unwrap().iter().map(|(_, bytes)| Record::decode(bytes).unwrap()).collect();
        assert_eq!(stored.len(), 3);
        let meta = stored.iter().find_map(|record| match record {
            Record::Meta(meta) => Some(meta),
            _ => None,
        });
        assert_eq!(meta.and_then(|meta| meta.restored), meta.map(|meta| meta.revision), "nothing is placed at first");
        assert!(meta.unwrap().next_vm > 1 << 32, "no VM's id is used twice");
        let tap = mayfly_net::address::tap_name(mayfly_model::VmId(meta.unwrap().next_vm + (1 << 33)));
        assert!(tap.len() <= 15, "{tap} is no name for a device");
        assert!(store.take_over(0).unwrap() > 1_000_000_007, "leases go on from higher numbers");
        let none = migrate(&place("none"), &place("three"), false).unwrap_err().to_string();
        assert!(none.contains("none"), "{none}");
        assert!(!folder.path().join("none").exists(), "looking makes no file");
    }
}
