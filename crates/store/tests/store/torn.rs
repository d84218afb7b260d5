//! Power cuts at any byte: a disk below the engine that remembers in which order it was written, and what of it a cut
//! would have left.

use std::io;
use std::sync::{Arc, Mutex};

use mayfly_store::{EmbeddedStore, Store, Write};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use redb::StorageBackend;

#[derive(Clone, Debug)]
enum Act {
    Write(u64, Vec<u8>),
    Length(u64),
    Sync,
}

/// What has been written, and in which order.
#[derive(Clone, Debug, Default)]
struct Disk {
    bytes: Arc<Mutex<Vec<u8>>>,
    acts: Arc<Mutex<Vec<Act>>>,
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().unwrap().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let bytes = self.bytes.lock().unwrap();
        let from = offset as usize;
        out.copy_from_slice(bytes.get(from..from + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.bytes.lock().unwrap().resize(len as usize, 0);
        self.acts.lock().unwrap().push(Act::Length(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.acts.lock().unwrap().push(Act::Sync);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.bytes.lock().unwrap()[offset as usize..offset as usize + data.len()].copy_from_slice(data);
        self.acts.lock().unwrap().push(Act::Write(offset, data.to_vec()));
        Ok(())
    }
}

/// What a power cut after `cut` acts leaves: everything up to the last sync, and of what came after it some writes, some
/// not, and one of them torn at a random byte.
fn after_cut(acts: &[Act], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let synced = acts.iter().rposition(|act| matches!(act, Act::Sync)).map_or(0, |at| at + 1);
    let mut bytes: Vec<u8> = Vec::new();
    for (number, act) in acts.iter().enumerate() {
        let certain = number < synced;
        match act {
            Act::Length(length) => bytes.resize(*length as usize, 0),
            Act::Write(offset, data) if certain || rng.random() => {
                let whole = certain || rng.random_ratio(3, 4);
                let length = if whole { data.len() } else { rng.random_range(0..=data.len()) };
                bytes[*offset as usize..*offset as usize + length].copy_from_slice(&data[..length]);
            }
            Act::Write(..) | Act::Sync => {}
        }
    }
    bytes
}

#[test]
fn a_power_cut_at_any_byte_loses_nothing_that_was_acknowledged() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let disk = Disk::default();
    let mut store = EmbeddedStore::over(disk.clone()).unwrap();
    let epoch = store.take_over(0).unwrap();
    // How many acts had been done when each transaction was acknowledged.
    let mut acknowledged = vec![disk.acts.lock().unwrap().len()];
    for number in 1..=150u32 {
        let value = vec![number as u8; rng.random_range(0..3000)];
        let spread = Write::Put(format!("key-{:02}", rng.random_range(0..20)), value);
        store.commit(epoch, &[spread, Write::Put("number".into(), number.to_string().into_bytes())]).unwrap();
        acknowledged.push(disk.acts.lock().unwrap().len());
    }
    let acts = disk.acts.lock().unwrap().clone();
    for _ in 0..600 {
        let cut = rng.random_range(acknowledged[0]..=acts.len());
        let bytes = after_cut(&acts[..cut], &mut rng);
        let left = Disk { bytes: Arc::new(Mutex::new(bytes)), acts: Arc::default() };
        let store = EmbeddedStore::over(left).unwrap_or_else(|error| panic!("after {cut} acts: {error:?}"));
        let records = store.load().unwrap();
        let number = records
            .iter()
            .find(|(key, _)| key == "number")
            .map_or(0, |(_, value)| String::from_utf8(value.clone()).unwrap().parse::<usize>().unwrap());
        let certain = acknowledged.iter().rposition(|done| *done <= cut).unwrap();
        assert!(number >= certain && number <= certain + 1, "after {cut} acts: {number} of {certain}");
    }
}
