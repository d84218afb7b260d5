//! One request: a header, data, and a byte for the status (virtio 1.2, 5.2.6).

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use mayfly_vhd::Segment;
use virtio_queue::DescriptorChain;
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

use super::config::CLEAR_SECTORS_MAX;
use crate::disk::{DiskError, ServedDisk};

const TYPE_IN: u32 = 0;
const TYPE_OUT: u32 = 1;
const TYPE_FLUSH: u32 = 4;
const TYPE_GET_ID: u32 = 8;
const TYPE_DISCARD: u32 = 11;
const TYPE_WRITE_ZEROES: u32 = 13;

const STATUS_OK: u8 = 0;
const STATUS_ERROR: u8 = 1;
const STATUS_UNSUPPORTED: u8 = 2;

/// Most bytes of one request.
const BYTES_MAX: u64 = 32 << 20;

type Chain<'a> = DescriptorChain<&'a GuestMemoryMmap>;

/// A piece of the guest's memory.
#[derive(Clone, Copy)]
struct Piece {
    at: GuestAddress,
    bytes: u32,
    writable: bool,
}

/// Between two tries of a write while the host's disk is full. The guest waits, as it would be paused over NBD.
const FULL: Duration = Duration::from_secs(1);
/// Between two looks whether a queue that waits for a chunk is to stop.
const STOPPING: Duration = Duration::from_millis(50);

/// What a request that cannot go on at once has to know.
pub(super) struct Patience<'a> {
    /// Whether nobody waits for the queue any more.
    pub stopping: &'a dyn Fn() -> bool,
    /// To be called before waiting: what is done already must not wait too.
    pub waiting: &'a dyn Fn(),
}

/// Carries a request out; returns the bytes that were written to the guest's memory, or nothing when the queue was stopped
/// before it could be done.
pub(super) fn carry_out(
    disk: &Arc<ServedDisk>,
    memory: &GuestMemoryMmap,
    chain: Chain,
    buffer: &mut Vec<u8>,
    patience: &Patience,
) -> Option<u32> {
    let pieces: Vec<Piece> = chain
        .map(|descriptor| Piece {
            at: descriptor.addr(),
            bytes: descriptor.len(),
            writable: descriptor.is_write_only(),
        })
        .collect();
    // Without a place for the status there is nobody to tell.
    let Some((status, rest)) = pieces.split_last().filter(|(status, _)| status.writable && status.bytes == 1) else {
        return Some(0);
    };
    let (code, written) = match respond(disk, memory, rest, buffer, patience) {
        Ok(written) => (STATUS_OK, written),
        Err(Refusal::Stopped) => return None,
        Err(Refusal::Unsupported) => (STATUS_UNSUPPORTED, 0),
        Err(Refusal::Failed(error)) => {
            tracing::warn!(%error, "a guest's request failed");
            (STATUS_ERROR, 0)
        }
    };
    Some(memory.write_obj(code, status.at).map_or(0, |()| written + 1))
}

enum Refusal {
    Unsupported,
    /// Not refused, but left for the next to serve the queue.
    Stopped,
    Failed(io::Error),
}

impl<E: std::error::Error + Send + Sync + 'static> From<E> for Refusal {
    fn from(error: E) -> Refusal {
        Refusal::Failed(io::Error::other(error))
    }
}

fn respond(
    disk: &Arc<ServedDisk>,
    memory: &GuestMemoryMmap,
    pieces: &[Piece],
    buffer: &mut Vec<u8>,
    patience: &Patience,
) -> Result<u32, Refusal> {
    let (first, data) = pieces.split_first().ok_or(Refusal::Unsupported)?;
    let mut header = [0; 16];
    if first.bytes != 16 || first.writable {
        return Err(Refusal::Unsupported);
    }
    memory.read_slice(&mut header, first.at)?;
    let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
    let sector = u64::from_le_bytes([
        header[8], header[9], header[10], header[11], header[12], header[13], header[14], header[15],
    ]);
    let offset = sector.checked_mul(512).ok_or(Refusal::Unsupported)?;
    let total: u64 = data.iter().map(|piece| u64::from(piece.bytes)).sum();
    let to_guest = matches!(kind, TYPE_IN | TYPE_GET_ID);
    if total > BYTES_MAX || data.iter().any(|piece| piece.writable != to_guest) {
        return Err(Refusal::Unsupported);
    }
    match kind {
        TYPE_IN => read(disk, memory, data, offset, patience).map(|()| total as u32),
        TYPE_FLUSH => until_there_is_room(patience, || Ok(disk.vhd.flush()?)).map(|()| 0),
        TYPE_GET_ID => {
            let mut id = [0; 20];
            id[..6].copy_from_slice(b"mayfly");
            let piece = data.first().ok_or(Refusal::Unsupported)?;
            let bytes = id.len().min(piece.bytes as usize);
            memory.write_slice(&id[..bytes], piece.at)?;
            Ok(bytes as u32)
        }
        TYPE_OUT | TYPE_DISCARD | TYPE_WRITE_ZEROES => {
            gather(memory, data, total, buffer)?;
            match kind {
                TYPE_OUT => until_there_is_room(patience, || disk.write(buffer, offset))?,
                _ => clear(disk, buffer, kind == TYPE_DISCARD, patience)?,
            }
            Ok(0)
        }
        _ => Err(Refusal::Unsupported),
    }
}

/// Does something, and while the host's disk is full tries it again.
fn until_there_is_room(patience: &Patience, work: impl Fn() -> Result<(), DiskError>) -> Result<(), Refusal> {
    loop {
        match work() {
            Err(DiskError::Vhd(error)) if error.os_error() == Some(libc::ENOSPC) => {
                tracing::warn!(%error, "the host's disk is full; a guest waits");
                (patience.waiting)();
                std::thread::sleep(FULL);
                if (patience.stopping)() {
                    return Err(Refusal::Stopped);
                }
            }
            other => return Ok(other?),
        }
    }
}

fn gather(memory: &GuestMemoryMmap, data: &[Piece], total: u64, buffer: &mut Vec<u8>) -> Result<(), Refusal> {
    buffer.resize(total as usize, 0);
    let mut done = 0;
    for piece in data {
        let end = done + piece.bytes as usize;
        memory.read_slice(&mut buffer[done..end], piece.at)?;
        done = end;
    }
    Ok(())
}

/// Discard and write zeroes: segments of sector, number of sectors, flags.
fn clear(disk: &ServedDisk, segments: &[u8], discard: bool, patience: &Patience) -> Result<(), Refusal> {
    for segment in segments.as_chunks::<16>().0 {
        let sector = u64::from_le_bytes(*segment.first_chunk().unwrap_or(&[0; 8]));
        let count = u32::from_le_bytes([segment[8], segment[9], segment[10], segment[11]]);
        if count > CLEAR_SECTORS_MAX {
            return Err(Refusal::Unsupported);
        }
        let (bytes, offset) = (u64::from(count) * 512, sector.checked_mul(512).ok_or(Refusal::Unsupported)?);
        until_there_is_room(patience, || {
            Ok(if discard { disk.vhd.trim(bytes, offset) } else { disk.vhd.write_zeros(bytes, offset) }?)
        })?;
    }
    Ok(())
}

/// Reads into the guest's memory, from files without a buffer in between.
fn read(
    disk: &Arc<ServedDisk>,
    memory: &GuestMemoryMmap,
    data: &[Piece],
    offset: u64,
    patience: &Patience,
) -> Result<(), Refusal> {
    let mut at = offset;
    let mut segments = Vec::with_capacity(4);
    for piece in data {
        segments.clear();
        disk.vhd.resolve(at, u64::from(piece.bytes), &mut segments)?;
        let mut place = piece.at;
        for segment in &segments {
            let bytes = segment.bytes() as usize;
            let target = memory.get_slice(place, bytes)?;
            match segment {
                Segment::Zero(_) => zero(&target),
                Segment::Data { storage, at, bytes } => {
                    if !storage.is_resident(*at, *bytes) {
                        fetch(disk, offset, data, patience)?;
                    }
                    match storage.file() {
                        Some(file) => read_file(file, &target, *at)?,
                        None => {
                            let mut copy = vec![0; *bytes as usize];
                            storage.read_exact_at(&mut copy, *at)?;
                            target.copy_from(&copy);
                        }
                    }
                }
            }
            place = GuestAddress(place.0 + bytes as u64);
        }
        at += u64::from(piece.bytes);
    }
    Ok(())
}

/// Fetches what a read needs from other machines, in a thread of its own: this one has to see when it is to stop.
fn fetch(disk: &Arc<ServedDisk>, offset: u64, data: &[Piece], patience: &Patience) -> Result<(), Refusal> {
    (patience.waiting)();
    let bytes = data.iter().map(|piece| u64::from(piece.bytes)).sum();
    let (sender, done) = mpsc::channel();
    let disk = Arc::clone(disk);
    std::thread::Builder::new().name("disk-fetch".to_owned()).spawn(move || {
        // Whoever has stopped waiting does not need it.
        let _ = sender.send(disk.prepare(bytes, offset));
    })?;
    loop {
        match done.recv_timeout(STOPPING) {
            Ok(prepared) => return Ok(prepared?),
            Err(mpsc::RecvTimeoutError::Timeout) if (patience.stopping)() => return Err(Refusal::Stopped),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn zero<B: BitmapSlice>(target: &VolatileSlice<B>) {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut done = 0;
    while done < target.len() {
        let part = ZEROS.len().min(target.len() - done);
        if let Ok(place) = target.subslice(done, part) {
            place.copy_from(&ZEROS[..part]);
        }
        done += part;
    }
}

#[expect(
    unsafe_code,
    reason = "the guest's memory is shared, so no Rust slice of it may exist; the system writes to it"
)]
fn read_file<B: BitmapSlice>(file: &std::fs::File, target: &VolatileSlice<B>, at: u64) -> io::Result<()> {
    let guard = target.ptr_guard_mut();
    let mut done = 0;
    while done < target.len() {
        let (start, left, position) = (guard.as_ptr(), target.len() - done, at + done as u64);
        // SAFETY: `start` to `start + target.len()` is mapped while `guard` lives; `done` and `left` stay within that.
        let count = unsafe { libc::pread(file.as_raw_fd(), start.add(done).cast(), left, position.cast_signed()) };
        match count {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count if count > 0 => done += count.cast_unsigned(),
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}
