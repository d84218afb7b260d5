//! Every crash: after each prefix of the writes to the file, the last one torn, killed or without power, the disk opens
//! and each sector holds what it may.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use rand::seq::IndexedRandom;
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::create::{differencing, dynamic, fixed_footer};
use crate::{Access, CreateOptions, Epoch, MemoryStorage, SECTOR, Storage, Vhd};

const DISK: u64 = 5 << 20;
/// Sectors that are used: some of each block, on both sides of the borders.
const RANGES: [std::ops::Range<u64>; 4] = [0..24, 4080..4112, 8180..8204, 10228..10240];

#[derive(Clone, Debug)]
enum Step {
    Write(u64, Vec<u8>),
    Clear(u64, u64),
    Sync,
}

impl Step {
    fn apply(&self, storage: &MemoryStorage) {
        match self {
            Step::Write(at, data) => storage.write_all_at(data, *at).unwrap(),
            Step::Clear(at, bytes) => storage.clear(*at, *bytes).unwrap(),
            Step::Sync => {}
        }
    }

    /// What a crash in the middle, or a cache that has written back some of it, leaves.
    fn torn(&self, rng: &mut impl Rng) -> Vec<Step> {
        match self {
            Step::Write(at, data) => {
                let part = |(index, part): (usize, &[u8])| Step::Write(at + index as u64 * SECTOR, part.to_vec());
                // Sectors of the medium are written whole; where a write starts within one, that is one piece.
                let mut parts: Vec<Step> = data.chunks(SECTOR as usize).enumerate().map(part).collect();
                parts.retain(|_| rng.random());
                parts
            }
            whole => {
                if rng.random() {
                    vec![whole.clone()]
                } else {
                    Vec::new()
                }
            }
        }
    }
}

/// Memory that remembers what was done to it.
#[derive(Debug, Default)]
struct Recorder {
    memory: MemoryStorage,
    steps: Arc<Mutex<Vec<Step>>>,
}

impl Storage for Recorder {
    fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        self.memory.read_exact_at(buffer, at)
    }
    fn write_all_at(&self, data: &[u8], at: u64) -> io::Result<()> {
        self.steps.lock().unwrap().push(Step::Write(at, data.to_vec()));
        self.memory.write_all_at(data, at)
    }
    fn sync(&self) -> io::Result<()> {
        self.steps.lock().unwrap().push(Step::Sync);
        Ok(())
    }
    fn size(&self) -> io::Result<u64> {
        self.memory.size()
    }
    fn clear(&self, at: u64, bytes: u64) -> io::Result<()> {
        self.steps.lock().unwrap().push(Step::Clear(at, bytes));
        self.memory.clear(at, bytes)
    }
    fn resize(&self, bytes: u64) -> io::Result<()> {
        self.memory.resize(bytes)
    }
}

/// What was done to the disk, and where in the record that began and ended.
struct Act {
    begin: usize,
    end: usize,
    flush: bool,
    /// Sectors and what they hold afterwards.
    sectors: Vec<(u64, u64)>,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Differencing,
    Dynamic,
    /// As made by others: without a live region.
    ForeignDifferencing,
    ForeignDynamic,
}

struct Story {
    parent: Option<Arc<Vhd>>,
    image: Vec<u8>,
    steps: Vec<Step>,
    acts: Vec<Act>,
    /// What each used sector held at first.
    first: HashMap<u64, u64>,
}

fn sectors() -> impl Iterator<Item = u64> {
    RANGES.into_iter().flatten()
}

fn tag(disk: &Vhd, sector: u64) -> u64 {
    let mut bytes = [0; SECTOR as usize];
    disk.read_at(&mut bytes, sector * SECTOR).unwrap();
    let tag = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert!(bytes.as_chunks::<8>().0.iter().all(|word| u64::from_le_bytes(*word) == tag), "a torn sector");
    tag
}

fn content(tag: u64, sectors: u64) -> Vec<u8> {
    tag.to_le_bytes().repeat((sectors * SECTOR / 8) as usize)
}

fn base() -> Arc<Vhd> {
    let mut bytes: Vec<u8> = (0..DISK / SECTOR).flat_map(|sector| content(1 << 40 | sector, 1)).collect();
    let options = CreateOptions { unique_id: [9; 16], timestamp: 1, durable: false };
    bytes.extend(fixed_footer(DISK, &options).encode());
    let storage = Box::new(MemoryStorage::new(bytes));
    Arc::new(Vhd::open_storage(Path::new("base.vhd"), storage, Access::ReadOnly, None, Epoch::UNKNOWN).unwrap())
}

fn blank(kind: Kind) -> (Option<Arc<Vhd>>, Vec<u8>) {
    let options = CreateOptions { unique_id: [3; 16], timestamp: 1, durable: false };
    let storage = MemoryStorage::default();
    let parent = match kind {
        Kind::Differencing | Kind::ForeignDifferencing => Some(base()),
        Kind::Dynamic | Kind::ForeignDynamic => None,
    };
    match &parent {
        Some(parent) => differencing(Path::new("child.vhd"), parent, &options).write(&storage).unwrap(),
        None => dynamic(DISK, &options).write(&storage).unwrap(),
    }
    let mut image = storage.to_vec();
    if matches!(kind, Kind::ForeignDifferencing | Kind::ForeignDynamic) {
        // The region's own mark, which the footer's points to.
        let at = image.chunks(4096).position(|page| page.starts_with(b"mflylive")).unwrap() * 4096;
        image[at] = 0;
    }
    (parent, image)
}

fn open(image: Vec<u8>, parent: &Option<Arc<Vhd>>, epoch: u64) -> Vhd {
    let storage = Box::new(MemoryStorage::new(image));
    Vhd::open_storage(Path::new("disk.vhd"), storage, Access::ReadWrite, parent.clone(), Epoch::numbered(epoch))
        .unwrap_or_else(|error| panic!("it must open: {error}"))
}

fn tell(kind: Kind, rng: &mut ChaCha8Rng) -> Story {
    let (parent, image) = blank(kind);
    let steps = Arc::new(Mutex::new(Vec::new()));
    let recorder = Recorder { memory: MemoryStorage::new(image.clone()), steps: Arc::clone(&steps) };
    let epoch = Epoch::numbered(1);
    let disk = Vhd::open_storage(Path::new("d"), Box::new(recorder), Access::ReadWrite, parent.clone(), epoch).unwrap();
    let first = sectors().map(|sector| (sector, tag(&disk, sector))).collect();
    let mut acts = Vec::new();
    for number in 1..30 {
        let begin = steps.lock().unwrap().len();
        let range = RANGES.choose(rng).unwrap();
        let at = rng.random_range(range.clone());
        let count = rng.random_range(1..=range.end - at);
        let what = rng.random_range(0..10);
        let (offset, bytes) = (at * SECTOR, count * SECTOR);
        match what {
            0 | 1 => disk.flush().unwrap(),
            2 => disk.write_zeros(bytes, offset).unwrap(),
            3 => disk.trim(bytes, offset).unwrap(),
            _ => disk.write_at(&content(number, count), offset).unwrap(),
        }
        let touched = if what < 2 { 0 } else { count };
        let sectors = (at..at + touched).map(|sector| (sector, tag(&disk, sector))).collect();
        acts.push(Act { begin, end: steps.lock().unwrap().len(), flush: what < 2, sectors });
    }
    let steps = steps.lock().unwrap().clone();
    Story { parent, image, steps, acts, first }
}

/// Opens what a crash after `crash` steps and perhaps a part of the next has left, and compares each sector with what it
/// may hold.
fn judge(story: &Story, image: Vec<u8>, crash: usize, power: bool) {
    let disk = open(image, &story.parent, if power { 2 } else { 1 });
    let flushed = story.acts.iter().rposition(|act| act.flush && act.end <= crash);
    for sector in sectors() {
        let mut allowed = vec![story.first[&sector]];
        for (index, act) in story.acts.iter().enumerate().take_while(|(_, act)| act.begin <= crash) {
            let Some((_, tag)) = act.sectors.iter().find(|(number, _)| *number == sector) else { continue };
            let certain = act.end <= crash && (!power || flushed.is_some_and(|flushed| index < flushed));
            if certain {
                allowed.clear();
            }
            allowed.push(*tag);
        }
        let found = tag(&disk, sector);
        assert!(allowed.contains(&found), "sector {sector} holds {found:#x}, not one of {allowed:x?}");
    }
    // It goes on from there.
    disk.write_at(&content(99, 1), 7 * SECTOR).unwrap();
    disk.flush().unwrap();
    assert_eq!(tag(&disk, 7), 99);
}

fn crash_everywhere(kind: Kind) {
    for seed in 0..6 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let story = tell(kind, &mut rng);
        for crash in 0..=story.steps.len() {
            let memory = MemoryStorage::new(story.image.clone());
            story.steps[..crash].iter().for_each(|step| step.apply(&memory));
            if let Some(next) = story.steps.get(crash).filter(|_| rng.random()) {
                next.torn(&mut rng).iter().for_each(|part| part.apply(&memory));
            }
            judge(&story, memory.to_vec(), crash, false);
            // Without power: what was synced is there; of the rest any part, in any order.
            let synced =
                story.steps[..crash].iter().rposition(|step| matches!(step, Step::Sync)).map_or(0, |at| at + 1);
            for _ in 0..3 {
                let memory = MemoryStorage::new(story.image.clone());
                story.steps[..synced].iter().for_each(|step| step.apply(&memory));
                let share = rng.random_range(0..4);
                let mut parts: Vec<Step> =
                    story.steps[synced..crash].iter().flat_map(|step| step.torn(&mut rng)).collect();
                parts.retain(|_| rng.random_range(0..4) <= share);
                parts.iter().for_each(|part| part.apply(&memory));
                judge(&story, memory.to_vec(), crash, true);
            }
        }
    }
}

#[test]
fn a_differencing_disk_survives_every_crash() {
    crash_everywhere(Kind::Differencing);
}

#[test]
fn a_dynamic_disk_survives_every_crash() {
    crash_everywhere(Kind::Dynamic);
}

#[test]
fn disks_made_by_others_survive_every_crash() {
    crash_everywhere(Kind::ForeignDifferencing);
    crash_everywhere(Kind::ForeignDynamic);
}

#[test]
fn a_full_medium_leaves_the_old_sectors() {
    let (parent, image) = blank(Kind::Differencing);
    let room = image.len() as u64 + (1 << 20);
    let storage = Box::new(MemoryStorage::new(image).with_room(room));
    let disk = Vhd::open_storage(Path::new("d"), storage, Access::ReadWrite, parent, Epoch::numbered(1)).unwrap();
    let mut data = vec![0; 4096];
    ChaCha8Rng::seed_from_u64(1).fill_bytes(&mut data);
    let error = disk.write_at(&data, 0).unwrap_err();
    assert!(matches!(&error, crate::VhdError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull));
    assert_eq!(tag(&disk, 0), 1 << 40);
}

/// Storage that fails to sync once.
#[derive(Debug)]
struct Failing(MemoryStorage, std::sync::atomic::AtomicBool);

impl Storage for Failing {
    fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, at)
    }
    fn write_all_at(&self, data: &[u8], at: u64) -> io::Result<()> {
        self.0.write_all_at(data, at)
    }
    fn sync(&self) -> io::Result<()> {
        match self.1.swap(false, std::sync::atomic::Ordering::Relaxed) {
            true => Err(io::Error::other("the medium is gone")),
            false => Ok(()),
        }
    }
    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }
    fn clear(&self, at: u64, bytes: u64) -> io::Result<()> {
        self.0.clear(at, bytes)
    }
    fn resize(&self, bytes: u64) -> io::Result<()> {
        self.0.resize(bytes)
    }
}

#[test]
fn after_a_failed_sync_no_flush_claims_success() {
    let (parent, image) = blank(Kind::Differencing);
    let storage = Box::new(Failing(MemoryStorage::new(image), true.into()));
    let disk = Vhd::open_storage(Path::new("d"), storage, Access::ReadWrite, parent, Epoch::numbered(1)).unwrap();
    disk.write_at(&[1; 512], 0).unwrap();
    assert!(disk.flush().unwrap_err().os_error().is_none());
    let again = disk.flush().unwrap_err();
    assert!(std::error::Error::source(&again).unwrap().to_string().contains("an earlier flush failed"));
}
