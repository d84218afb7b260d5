//! The live region: what makes a write both quick and safe.
//!
//! A sector bitmap or block table that reaches the medium before the data it makes visible would, after a power cut,
//! show sectors that are neither old nor new; the kernel writes pages back in any order. One that waits in memory for
//! the flush is lost when the process is killed. So each disk that this library makes keeps both twice, in its own file:
//!
//! - the **format's** table and bitmaps, which change only in [`crate::Vhd::flush`], after the data has been synced;
//! - the **live** ones, which change with each write. They count only while the machine has not been started anew since
//!   (the *epoch*, the kernel's boot id, says so): then the page cache is whole, whatever was killed.
//!
//! The live table stands in a page-aligned region before the block allocation table, where nothing of the format points
//! and no other writer puts a block; the footer says where. Each block of a differencing disk has its live bitmap in front
//! of the format's. Other tools see the disk as of its last flush.
//!
//! | bytes | of the live region |
//! |---|---|
//! | 0..8 | `mflylive` |
//! | 8..12 | version, 1 |
//! | 12..16 | entries |
//! | 16..32 | epoch; zero: not to be trusted |
//! | 4096.. | entries of 4 bytes: the sector of the block's (format's) bitmap, 0 where the block is not there |

use std::io;

use crate::footer::be32;
use crate::storage::Storage;

const MAGIC: &[u8; 8] = b"mflylive";
const PAGE: u64 = 4096;

/// One uninterrupted run of the machine's kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epoch(pub(crate) [u8; 16]);

impl Epoch {
    /// None: live state is never trusted, as after a power cut.
    pub const UNKNOWN: Epoch = Epoch([0; 16]);

    /// An epoch of this number, for tests.
    pub fn numbered(number: u64) -> Epoch {
        let mut bytes = [1; 16];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        Epoch(bytes)
    }

    /// This run's, from the kernel's boot id.
    pub fn current() -> Epoch {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let digits: Vec<u8> =
            text.chars().filter_map(|digit| digit.to_digit(16)).filter_map(|digit| u8::try_from(digit).ok()).collect();
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = pair[0] << 4 | pair[1];
        }
        Epoch(bytes)
    }
}

/// Where a disk's live region stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Live {
    at: u64,
    entries: u32,
}

impl Live {
    /// The region that stands at the next page from `at`.
    pub(crate) fn after(at: u64, entries: u32) -> Live {
        Live { at: at.next_multiple_of(PAGE), entries }
    }

    /// The region, if the footer names one and it is whole.
    pub(crate) fn find(storage: &dyn Storage, at: Option<u64>, entries: u32, length: u64) -> io::Result<Option<Live>> {
        let bytes = PAGE + (u64::from(entries) * 4).next_multiple_of(PAGE);
        let fits = |at: &u64| at.is_multiple_of(PAGE) && at.checked_add(bytes).is_some_and(|end| end <= length);
        let Some(at) = at.filter(fits) else { return Ok(None) };
        let mut head = [0; 16];
        storage.read_exact_at(&mut head, at)?;
        let right = head[..8] == MAGIC[..] && be32(&head, 8) == 1 && be32(&head, 12) == entries;
        Ok(right.then_some(Live { at, entries }))
    }

    pub(crate) fn start(&self) -> u64 {
        self.at
    }

    /// Where it ends.
    pub(crate) fn end(&self) -> u64 {
        (self.table_at() + u64::from(self.entries) * 4).next_multiple_of(PAGE)
    }

    pub(crate) fn table_at(&self) -> u64 {
        self.at + PAGE
    }

    /// The first bytes of the region.
    pub(crate) fn head(&self, epoch: Epoch) -> [u8; 32] {
        let mut head = [0; 32];
        head[..8].copy_from_slice(MAGIC);
        head[8..12].copy_from_slice(&1u32.to_be_bytes());
        head[12..16].copy_from_slice(&self.entries.to_be_bytes());
        head[16..].copy_from_slice(&epoch.0);
        head
    }

    pub(crate) fn epoch(&self, storage: &dyn Storage) -> io::Result<Epoch> {
        let mut bytes = [0; 16];
        storage.read_exact_at(&mut bytes, self.at + 16)?;
        Ok(Epoch(bytes))
    }

    pub(crate) fn set_epoch(&self, storage: &dyn Storage, epoch: Epoch) -> io::Result<()> {
        storage.write_all_at(&self.head(epoch), self.at)
    }

    pub(crate) fn set_entry(&self, storage: &dyn Storage, block: u32, sector: u32) -> io::Result<()> {
        storage.write_all_at(&sector.to_be_bytes(), self.table_at() + u64::from(block) * 4)
    }
}
