//! An image as a sparse file that fills as it is read.
//!
//! The file is a fixed VHD: byte x of the disk at byte x, then the footer. A chunk goes through three states: absent;
//! present (its bytes are in the file, as far as an earlier process knows); and verified, by this process. Only verified
//! ones are read, so a bit that flipped while the machine was off is found, and the chunk fetched again.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mayfly_model::{ChunkDigest, Digest, Manifest};
use mayfly_vhd::{CreateOptions, Storage, fixed_footer};

use super::Incidents;
use super::fetch::{Fetcher, PATIENCE};
use super::order::Recorder;

const ABSENT: u8 = 0;
const PRESENT: u8 = 1;
const VERIFIED: u8 = 2;
/// Zeros, of which there is nothing to fetch.
const ZEROS: u8 = 3;

/// An image on its host.
#[derive(Debug)]
pub(crate) struct LazyImage {
    pub digest: Digest,
    pub manifest: Manifest,
    file: File,
    /// A byte for each chunk: whether it was written.
    marks: File,
    states: Vec<AtomicU8>,
    /// Chunks that somebody is fetching.
    busy: Mutex<HashSet<u32>>,
    done: Condvar,
    fetcher: Arc<Fetcher>,
    incidents: Arc<Incidents>,
    pub recorder: Recorder,
    /// When a guest last had to wait for a chunk.
    waited: Mutex<Option<Instant>>,
}

impl LazyImage {
    /// Opens the image in its folder; what is there already is used once it is verified.
    pub(crate) fn open(
        folder: &Path,
        digest: Digest,
        manifest: Manifest,
        fetcher: Arc<Fetcher>,
        incidents: Arc<Incidents>,
    ) -> io::Result<LazyImage> {
        let open =
            |name: &str| OpenOptions::new().read(true).write(true).create(true).truncate(false).open(folder.join(name));
        let (file, marks) = (open("disk.vhd")?, open("present")?);
        let options = CreateOptions { unique_id: manifest.vhd_id, timestamp: manifest.vhd_timestamp, durable: false };
        file.write_all_at(&fixed_footer(manifest.disk_bytes, &options).encode(), manifest.disk_bytes)?;
        let mut states = vec![ZEROS; manifest.chunk_count() as usize];
        let mut known = vec![0; states.len()];
        marks.set_len(known.len() as u64)?;
        marks.read_exact_at(&mut known, 0)?;
        for (index, _) in &manifest.chunks {
            states[*index as usize] = if known[*index as usize] == PRESENT { PRESENT } else { ABSENT };
        }
        Ok(LazyImage {
            digest,
            manifest,
            file,
            marks,
            states: states.into_iter().map(AtomicU8::new).collect(),
            busy: Mutex::default(),
            done: Condvar::new(),
            fetcher,
            incidents,
            recorder: Recorder::default(),
            waited: Mutex::default(),
        })
    }

    fn state(&self, index: u32) -> u8 {
        self.states[index as usize].load(Ordering::Acquire)
    }

    fn is_ready(&self, index: u32) -> bool {
        self.state(index) >= VERIFIED
    }

    /// Whether a chunk's bytes are in the file, verified or not.
    pub(crate) fn is_here(&self, index: u32) -> bool {
        self.state(index) != ABSENT
    }

    /// How long no guest has had to wait for a chunk.
    pub(crate) fn calm(&self) -> Duration {
        let waited = self.waited.lock().unwrap_or_else(PoisonError::into_inner);
        waited.map_or(Duration::MAX, |at| at.elapsed())
    }

    /// Whether nothing has to be fetched any more.
    pub(crate) fn is_complete(&self) -> bool {
        self.manifest.chunks.iter().all(|(index, _)| self.state(*index) != ABSENT)
    }

    /// Bytes of chunks that are here.
    pub(crate) fn present_bytes(&self) -> u64 {
        let here = self.manifest.chunks.iter().filter(|(index, _)| self.state(*index) != ABSENT);
        here.map(|(index, _)| self.manifest.place(*index).1).sum()
    }

    /// Makes a chunk readable: verifies what is there, fetches what is not. Whoever comes while another does that waits
    /// for it, so that each chunk is fetched once.
    pub(crate) fn ensure(&self, index: u32) -> io::Result<()> {
        self.ensure_within(index, PATIENCE)
    }

    fn ensure_within(&self, index: u32, patience: Duration) -> io::Result<()> {
        if self.is_ready(index) {
            return Ok(());
        }
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        while !busy.insert(index) {
            busy = self.done.wait(busy).unwrap_or_else(PoisonError::into_inner);
        }
        drop(busy);
        let result = if self.is_ready(index) { Ok(()) } else { self.bring(index, patience) };
        self.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&index);
        self.done.notify_all();
        result
    }

    fn bring(&self, index: u32, patience: Duration) -> io::Result<()> {
        let Some(digest) = self.manifest.chunk(index) else { return Ok(()) };
        if self.state(index) == PRESENT && self.verify(index, digest) {
            self.states[index as usize].store(VERIFIED, Ordering::Release);
            return Ok(());
        }
        self.forget(index)?;
        let bytes = self.fetcher.chunk(&self.digest, index, digest, &self.incidents, patience)?;
        self.file.write_all_at(&bytes, self.manifest.place(index).0)?;
        self.marks.write_all_at(&[PRESENT], u64::from(index))?;
        self.states[index as usize].store(VERIFIED, Ordering::Release);
        Ok(())
    }

    /// Whether a chunk's bytes in the file are right.
    fn verify(&self, index: u32, digest: ChunkDigest) -> bool {
        // What cannot be read is as good as lost.
        let good = self.read_chunk(index).is_ok_and(|bytes| ChunkDigest::of(&bytes) == digest);
        if !good {
            self.incidents.add(format!(
                "chunk {index} of image {} was damaged on this host's disk; it is fetched again",
                self.digest
            ));
        }
        good
    }

    fn read_chunk(&self, index: u32) -> io::Result<Vec<u8>> {
        let (at, bytes) = self.manifest.place(index);
        let mut buffer = vec![0; bytes as usize];
        self.file.read_exact_at(&mut buffer, at)?;
        Ok(buffer)
    }

    fn forget(&self, index: u32) -> io::Result<()> {
        self.states[index as usize].store(ABSENT, Ordering::Release);
        self.marks.write_all_at(&[ABSENT], u64::from(index))
    }

    /// A chunk's bytes, for another host; with `fetch`, fetched (in one try) if they are not here and this host is the
    /// one to do that. A host that is not must not, or two with different ideas of who it is would wait for each other.
    pub(crate) fn give(&self, index: u32, fetch: bool) -> io::Result<Vec<u8>> {
        let digest = self.manifest.chunk(index).ok_or(io::ErrorKind::NotFound)?;
        let may_fetch = fetch && self.fetcher.is_owner(&self.digest, digest);
        if !self.is_here(index) && !may_fetch {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.ensure_within(index, Duration::ZERO)?;
        self.read_chunk(index)
    }

    /// Verifies a chunk again that counts as verified, and mends it.
    pub(crate) fn scrub(&self, index: u32) -> io::Result<()> {
        let Some(digest) = self.manifest.chunk(index).filter(|_| self.state(index) == VERIFIED) else { return Ok(()) };
        if self.verify(index, digest) {
            return Ok(());
        }
        self.forget(index)?;
        self.ensure(index)
    }

    /// The chunks of a range of the file, without the footer.
    fn chunks(&self, at: u64, bytes: u64) -> std::ops::Range<u32> {
        let end = at.saturating_add(bytes).min(self.manifest.disk_bytes);
        let chunk = u64::from(self.manifest.chunk_bytes);
        if at >= end { 0..0 } else { (at / chunk) as u32..end.div_ceil(chunk) as u32 }
    }
}

/// Does something when it goes.
struct Finally<F: FnMut()>(F);

impl<F: FnMut()> Drop for Finally<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// The image as what a disk stands in.
#[derive(Debug)]
pub(crate) struct LazyStorage(pub Arc<LazyImage>);

impl Storage for LazyStorage {
    fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        self.prepare(at, buffer.len() as u64)?;
        self.0.file.read_exact_at(buffer, at)
    }

    fn write_all_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Storage::size(&self.0.file)
    }

    fn clear(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn resize(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn is_hole(&self, at: u64, limit: u64) -> (bool, u64) {
        let zeros = |index: u32| self.0.state(index) == ZEROS;
        let mut chunks = self.0.chunks(at, limit);
        let Some(first) = chunks.next() else { return (false, limit) };
        let state = zeros(first);
        let end =
            chunks.find(|index| zeros(*index) != state).map_or(at + limit, |index| self.0.manifest.place(index).0);
        (state, end - at)
    }

    fn is_resident(&self, at: u64, bytes: u64) -> bool {
        let mut chunks = self.0.chunks(at, bytes);
        if !chunks.is_empty() {
            self.0.recorder.note(chunks.start, chunks.end - 1);
        }
        chunks.all(|index| self.0.is_ready(index))
    }

    fn prepare(&self, at: u64, bytes: u64) -> io::Result<()> {
        if self.0.chunks(at, bytes).all(|index| self.0.is_ready(index)) {
            return Ok(());
        }
        let note = || *self.0.waited.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        note();
        let _after = Finally(note);
        self.0.chunks(at, bytes).try_for_each(|index| self.0.ensure(index))
    }

    fn file(&self) -> Option<&File> {
        Some(&self.0.file)
    }
}
