//! What a disk's bytes stand in: a file, memory, or something that fetches them when they are first read.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::{PoisonError, RwLock};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};

/// Bytes at positions, shared between threads. Writing past the end makes it longer; what is between reads as zeros.
pub trait Storage: Send + Sync + Debug {
    /// Fills `buffer` from byte `at`.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] past the end, or the system's.
    fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()>;

    /// Writes all of `data` at byte `at`.
    ///
    /// # Errors
    /// The system's. Any part may have been written then.
    fn write_all_at(&self, data: &[u8], at: u64) -> io::Result<()>;

    /// Makes all writes that have returned survive a power cut.
    ///
    /// # Errors
    /// The system's.
    fn sync(&self) -> io::Result<()>;

    /// Bytes until the end.
    ///
    /// # Errors
    /// The system's.
    fn size(&self) -> io::Result<u64>;

    /// Makes a range within the size read as zeros, and frees its space where that is possible.
    ///
    /// # Errors
    /// The system's.
    fn clear(&self, at: u64, bytes: u64) -> io::Result<()>;

    /// Cuts or extends to this size.
    ///
    /// # Errors
    /// The system's.
    fn resize(&self, bytes: u64) -> io::Result<()>;

    /// Whether byte `at` belongs to a range that is known to be zeros, and how long (at most `limit`) that range or its
    /// opposite is. A guess of "not zeros" is always allowed.
    fn is_hole(&self, at: u64, limit: u64) -> (bool, u64) {
        let _ = at;
        (false, limit)
    }

    /// Whether a range can be read without waiting for another machine.
    fn is_resident(&self, at: u64, bytes: u64) -> bool {
        let _ = (at, bytes);
        true
    }

    /// Makes sure that a range can be read through [`Storage::file`].
    ///
    /// # Errors
    /// What keeps it from being there.
    fn prepare(&self, at: u64, bytes: u64) -> io::Result<()> {
        let _ = (at, bytes);
        Ok(())
    }

    /// The file in which the bytes stand at the same positions, for transfers without copies.
    fn file(&self) -> Option<&File> {
        None
    }
}

impl Storage for File {
    fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, at)
    }

    fn write_all_at(&self, data: &[u8], at: u64) -> io::Result<()> {
        FileExt::write_all_at(self, data, at)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn clear(&self, at: u64, bytes: u64) -> io::Result<()> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match fallocate(self.as_fd(), flags, at.cast_signed(), bytes.cast_signed()) {
            Ok(()) => Ok(()),
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => write_zeros(self, at, bytes),
            Err(error) => Err(error.into()),
        }
    }

    fn resize(&self, bytes: u64) -> io::Result<()> {
        self.set_len(bytes)
    }

    fn is_hole(&self, at: u64, limit: u64) -> (bool, u64) {
        let (start, end) = (at.cast_signed(), at.saturating_add(limit).cast_signed());
        match lseek(self, start, Whence::SeekData) {
            Err(Errno::ENXIO) => (true, limit),
            Ok(data) if data > start => (true, (data.min(end) - start).cast_unsigned()),
            Ok(_) => match lseek(self, start, Whence::SeekHole) {
                Ok(hole) if hole > start => (false, (hole.min(end) - start).cast_unsigned()),
                _ => (false, limit),
            },
            Err(_) => (false, limit),
        }
    }

    fn file(&self) -> Option<&File> {
        Some(self)
    }
}

fn write_zeros(storage: &dyn Storage, mut at: u64, mut bytes: u64) -> io::Result<()> {
    let zeros = vec![0; bytes.min(1 << 20) as usize];
    while bytes > 0 {
        let part = bytes.min(zeros.len() as u64);
        storage.write_all_at(&zeros[..part as usize], at)?;
        (at, bytes) = (at + part, bytes - part);
    }
    Ok(())
}

/// Bytes in memory, for tests and for fuzzing.
#[derive(Debug, Default)]
pub struct MemoryStorage {
    bytes: RwLock<Vec<u8>>,
    /// Writing past this fails as on a full disk.
    room: Option<u64>,
}

impl MemoryStorage {
    /// Holds `bytes`.
    pub fn new(bytes: Vec<u8>) -> MemoryStorage {
        MemoryStorage { bytes: RwLock::new(bytes), room: None }
    }

    /// Has writes past byte `room` fail as on a full disk.
    #[must_use]
    pub fn with_room(mut self, room: u64) -> MemoryStorage {
        self.room = Some(room);
        self
    }

    /// What it holds now.
    pub fn to_vec(&self) -> Vec<u8> {
        self.bytes.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Storage for MemoryStorage {
    fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        let bytes = self.bytes.read().unwrap_or_else(PoisonError::into_inner);
        let end = at.checked_add(buffer.len() as u64).filter(|end| *end <= bytes.len() as u64);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(&bytes[at as usize..end as usize]);
        Ok(())
    }

    fn write_all_at(&self, data: &[u8], at: u64) -> io::Result<()> {
        let end = at.checked_add(data.len() as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        if self.room.is_some_and(|room| end > room) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut bytes = self.bytes.write().unwrap_or_else(PoisonError::into_inner);
        if (bytes.len() as u64) < end {
            bytes.resize(end as usize, 0);
        }
        bytes[at as usize..end as usize].copy_from_slice(data);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.bytes.read().unwrap_or_else(PoisonError::into_inner).len() as u64)
    }

    fn clear(&self, at: u64, bytes: u64) -> io::Result<()> {
        let mut held = self.bytes.write().unwrap_or_else(PoisonError::into_inner);
        let end = at.saturating_add(bytes).min(held.len() as u64);
        if at < end {
            held[at as usize..end as usize].fill(0);
        }
        Ok(())
    }

    fn resize(&self, bytes: u64) -> io::Result<()> {
        self.bytes.write().unwrap_or_else(PoisonError::into_inner).resize(bytes as usize, 0);
        Ok(())
    }
}
