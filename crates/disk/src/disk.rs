//! A disk as it is served: the file, and how much of its host's space it may take.

use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering};

use mayfly_vhd::{Holder, Segment, Vhd, VhdError};

/// Between two looks at how much space the file takes, so much may be written.
const LOOK: u64 = 1 << 20;

/// Why a request fails.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    /// The disk cannot do it.
    #[error(transparent)]
    Vhd(#[from] VhdError),
    /// The disk's file has grown to its quota.
    #[error("the disk has used up its quota of {0} bytes")]
    Quota(u64),
}

/// An open disk with its limits.
#[derive(Debug)]
pub(crate) struct ServedDisk {
    pub vhd: Vhd,
    /// Most bytes that its file may take on the host.
    quota: Option<u64>,
    /// Bytes written since the last look.
    unseen: AtomicU64,
    /// Bytes that the file took at the last look.
    used: AtomicU64,
}

impl ServedDisk {
    pub(crate) fn new(vhd: Vhd, quota: Option<u64>) -> ServedDisk {
        // The first write looks.
        ServedDisk { vhd, quota, unseen: AtomicU64::new(LOOK), used: AtomicU64::new(0) }
    }

    pub(crate) fn disk_bytes(&self) -> u64 {
        self.vhd.disk_bytes()
    }

    /// Writes whole sectors, if the quota allows it.
    pub(crate) fn write(&self, data: &[u8], offset: u64) -> Result<(), DiskError> {
        self.check_quota(data.len() as u64, offset)?;
        Ok(self.vhd.write_at(data, offset)?)
    }

    fn check_quota(&self, bytes: u64, offset: u64) -> Result<(), DiskError> {
        let Some(quota) = self.quota else { return Ok(()) };
        if self.unseen.fetch_add(bytes, Ordering::Relaxed) + bytes > LOOK {
            let used = std::fs::metadata(self.vhd.path()).map_or(0, |data| data.blocks() * 512);
            self.used.store(used, Ordering::Relaxed);
            self.unseen.store(0, Ordering::Relaxed);
        }
        if self.used.load(Ordering::Relaxed) + bytes <= quota || self.is_own(bytes, offset) {
            return Ok(());
        }
        // Something may have been trimmed meanwhile.
        self.unseen.store(LOOK, Ordering::Relaxed);
        Err(DiskError::Quota(quota))
    }

    /// Whether a range takes space already.
    fn is_own(&self, bytes: u64, offset: u64) -> bool {
        matches!(self.vhd.extent(offset, bytes), (Holder::Ancestor(0), length) if length >= bytes)
    }

    /// Fetches what a range needs and is not on this machine yet.
    pub(crate) fn prepare(&self, bytes: u64, offset: u64) -> Result<(), VhdError> {
        let mut segments = Vec::new();
        self.vhd.resolve(offset, bytes, &mut segments)?;
        for segment in segments {
            if let Segment::Data { storage, at, bytes } = segment {
                storage.prepare(at, bytes).map_err(|source| VhdError::Io {
                    path: self.vhd.path().to_owned(),
                    action: "fetch",
                    source,
                })?;
            }
        }
        Ok(())
    }
}
