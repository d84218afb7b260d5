//! The dynamic header: 1024 bytes that describe blocks and, for a differencing disk, the parent.

use std::path::Path;

use crate::error::VhdError;
use crate::footer::{be32, be64, checksum, put32, put64};

/// Bytes of a dynamic header.
pub(crate) const HEADER_BYTES: usize = 1024;
/// Bytes of a block in the disks that this library makes, the size that the specification recommends.
pub const BLOCK_BYTES: u32 = 2 << 20;
/// A block-table entry of a block that is not there.
pub(crate) const ABSENT: u32 = u32::MAX;
const COOKIE: &[u8; 8] = b"cxsparse";
const CHECKSUM_AT: usize = 36;
const LOCATORS_AT: usize = 576;

/// Where the path to the parent stands in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParentLocator {
    /// `W2ru` (relative) or `W2ku` (absolute); both are UTF-16, little end first.
    pub code: [u8; 4],
    /// Bytes that are set aside.
    pub space: u32,
    /// Bytes that are used.
    pub length: u32,
    /// Where they start.
    pub offset: u64,
}

/// The fields of a dynamic header that matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DynamicHeader {
    /// Where the block allocation table stands.
    pub table_offset: u64,
    /// Its entries.
    pub table_entries: u32,
    /// Bytes of a block.
    pub block_bytes: u32,
    /// The parent's identity.
    pub parent_id: [u8; 16],
    /// The parent's time stamp, in seconds since 2000-01-01.
    pub parent_timestamp: u32,
    /// The parent's file name.
    pub parent_name: String,
    /// Paths to the parent.
    pub locators: Vec<ParentLocator>,
}

impl DynamicHeader {
    /// Reads a header that stands at `offset` of the file `path`, of a disk of `disk_bytes`.
    pub(crate) fn decode(
        bytes: &[u8; HEADER_BYTES],
        offset: u64,
        path: &Path,
        disk_bytes: u64,
    ) -> Result<DynamicHeader, VhdError> {
        let damaged = |field, at: usize, why: String| VhdError::Damaged {
            path: path.to_owned(),
            field,
            offset: offset + at as u64,
            why,
        };
        if bytes[..8] != COOKIE[..] {
            return Err(damaged("cookie of the dynamic header", 0, "it is not `cxsparse`".to_owned()));
        }
        let (stored, computed) = (be32(bytes, CHECKSUM_AT), checksum(bytes, CHECKSUM_AT));
        if stored != computed {
            let why = format!("{stored:#010x} is stored, {computed:#010x} is right");
            return Err(damaged("checksum of the dynamic header", CHECKSUM_AT, why));
        }
        let block_bytes = be32(bytes, 32);
        if !block_bytes.is_power_of_two() || !(4096..=256 << 20).contains(&block_bytes) {
            let why = format!("{block_bytes} is not a power of two from 4 KiB to 256 MiB");
            return Err(damaged("block size", 32, why));
        }
        let table_entries = be32(bytes, 28);
        let needed = disk_bytes.div_ceil(u64::from(block_bytes));
        if u64::from(table_entries) < needed {
            let why = format!("{table_entries} are too few for a disk of {disk_bytes} bytes, which needs {needed}");
            return Err(damaged("maximum table entries", 28, why));
        }
        let mut parent_id = [0; 16];
        parent_id.copy_from_slice(&bytes[40..56]);
        let units: Vec<u16> =
            bytes[64..576].chunks_exact(2).map(|c| u16::from_be_bytes([c[0], c[1]])).take_while(|u| *u != 0).collect();
        let locators = (0..8)
            .map(|index| &bytes[LOCATORS_AT + index * 24..LOCATORS_AT + (index + 1) * 24])
            .filter(|entry| entry[..4] != [0; 4])
            .map(|entry| ParentLocator {
                code: [entry[0], entry[1], entry[2], entry[3]],
                space: be32(entry, 4),
                length: be32(entry, 8),
                offset: be64(entry, 16),
            })
            .collect();
        Ok(DynamicHeader {
            table_offset: be64(bytes, 16),
            table_entries,
            block_bytes,
            parent_id,
            parent_timestamp: be32(bytes, 56),
            parent_name: String::from_utf16_lossy(&units),
            locators,
        })
    }

    /// The bytes of this header.
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(COOKIE);
        put64(&mut bytes, 8, u64::MAX);
        put64(&mut bytes, 16, self.table_offset);
        put32(&mut bytes, 24, 0x0001_0000);
        put32(&mut bytes, 28, self.table_entries);
        put32(&mut bytes, 32, self.block_bytes);
        bytes[40..56].copy_from_slice(&self.parent_id);
        put32(&mut bytes, 56, self.parent_timestamp);
        for (index, unit) in self.parent_name.encode_utf16().take(255).enumerate() {
            bytes[64 + index * 2..66 + index * 2].copy_from_slice(&unit.to_be_bytes());
        }
        for (index, locator) in self.locators.iter().take(8).enumerate() {
            let at = LOCATORS_AT + index * 24;
            bytes[at..at + 4].copy_from_slice(&locator.code);
            put32(&mut bytes, at + 4, locator.space);
            put32(&mut bytes, at + 8, locator.length);
            put64(&mut bytes, at + 16, locator.offset);
        }
        let sum = checksum(&bytes, CHECKSUM_AT);
        put32(&mut bytes, CHECKSUM_AT, sum);
        bytes
    }

    /// Entries of the table that the disk needs.
    pub(crate) fn blocks(&self, disk_bytes: u64) -> u32 {
        // Decoding has checked that they fit into `table_entries`.
        u32::try_from(disk_bytes.div_ceil(u64::from(self.block_bytes))).unwrap_or(u32::MAX)
    }

    /// Bytes of the bitmap in front of each block's data: one bit a sector, whole sectors.
    pub(crate) fn bitmap_bytes(&self) -> u64 {
        (u64::from(self.block_bytes) / crate::SECTOR / 8).next_multiple_of(crate::SECTOR)
    }
}
