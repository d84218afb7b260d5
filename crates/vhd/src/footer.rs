//! The footer: 512 bytes at the end of every VHD, and at the start of dynamic and differencing ones.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::VhdError;

/// Bytes of a footer.
pub(crate) const FOOTER_BYTES: usize = 512;
const COOKIE: &[u8; 8] = b"conectix";
const VERSION: u32 = 0x0001_0000;
const CHECKSUM_AT: usize = 64;
const LIVE_AT: usize = 96;
const LIVE_MARK: &[u8; 8] = b"mflylive";
/// Most bytes of a disk: what 32-bit sector numbers can address, less room for tables.
pub const DISK_BYTES_MAX: u64 = 2040 << 30;
/// Seconds from the Unix epoch to 2000-01-01, where VHD time stamps start.
const EPOCH_2000: u64 = 946_684_800;

/// Seconds from 2000-01-01 UTC to now, the unit of VHD time stamps.
pub fn seconds_since_2000() -> u32 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    u32::try_from(now.saturating_sub(EPOCH_2000)).unwrap_or(u32::MAX)
}

/// The kind of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskType {
    /// All bytes are there, in order.
    Fixed,
    /// Blocks are there once they have been written.
    Dynamic,
    /// Sectors are there once they have been written; the others are the parent's.
    Differencing,
}

impl DiskType {
    fn from_number(number: u32) -> Option<DiskType> {
        match number {
            2 => Some(DiskType::Fixed),
            3 => Some(DiskType::Dynamic),
            4 => Some(DiskType::Differencing),
            _ => None,
        }
    }

    fn number(self) -> u32 {
        match self {
            DiskType::Fixed => 2,
            DiskType::Dynamic => 3,
            DiskType::Differencing => 4,
        }
    }
}

/// Cylinders, heads and sectors, for guests that still ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Cylinders.
    pub cylinders: u16,
    /// Heads.
    pub heads: u8,
    /// Sectors per track.
    pub sectors: u8,
}

impl Geometry {
    /// The geometry of a disk of that many bytes (the specification's appendix gives the algorithm).
    pub fn of(disk_bytes: u64) -> Geometry {
        let total = (disk_bytes / crate::SECTOR).min(65535 * 16 * 255);
        let (sectors, heads, cylinder_heads);
        if total >= 65535 * 16 * 63 {
            (sectors, heads, cylinder_heads) = (255, 16, total / 255);
        } else {
            let mut tracks = total / 17;
            let mut wanted_heads = tracks.div_ceil(1024).max(4);
            let mut per_track = 17;
            if tracks >= wanted_heads * 1024 || wanted_heads > 16 {
                (per_track, wanted_heads, tracks) = (31, 16, total / 31);
            }
            if tracks >= wanted_heads * 1024 {
                (per_track, wanted_heads, tracks) = (63, 16, total / 63);
            }
            (sectors, heads, cylinder_heads) = (per_track, wanted_heads, tracks);
        }
        Geometry {
            cylinders: u16::try_from(cylinder_heads / heads).unwrap_or(u16::MAX),
            heads: heads as u8,
            sectors: sectors as u8,
        }
    }
}

/// The fields of a footer that matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footer {
    /// Where the dynamic header stands; `u64::MAX` for a fixed disk.
    pub data_offset: u64,
    /// Seconds since 2000-01-01.
    pub timestamp: u32,
    /// Bytes of the disk.
    pub disk_bytes: u64,
    /// The kind.
    pub disk_type: DiskType,
    /// The disk's own identity; a child remembers its parent's.
    pub unique_id: [u8; 16],
    /// Where the live region stands that this library keeps; others' disks have none. It is in the footer's reserved
    /// part, where the checksum covers it and no guest can write.
    pub live_at: Option<u64>,
}

impl Footer {
    /// Reads a footer that stands at `offset` of the file `path`.
    pub(crate) fn decode(bytes: &[u8; FOOTER_BYTES], offset: u64, path: &Path) -> Result<Footer, VhdError> {
        if bytes[..8] != COOKIE[..] {
            return Err(VhdError::NotVhd {
                path: path.to_owned(),
                why: "the last 512 bytes are no VHD footer (no `conectix`); was the file truncated, or is it raw?"
                    .to_owned(),
            });
        }
        let damaged =
            |field, at: u64, why: String| VhdError::Damaged { path: path.to_owned(), field, offset: offset + at, why };
        let (stored, computed) = (be32(bytes, CHECKSUM_AT), checksum(bytes, CHECKSUM_AT));
        if stored != computed {
            let why = format!("{stored:#010x} is stored, {computed:#010x} is right");
            return Err(damaged("checksum of the footer", CHECKSUM_AT as u64, why));
        }
        let version = be32(bytes, 12);
        if version >> 16 != VERSION >> 16 {
            return Err(damaged("file format version", 12, format!("{version:#010x} is not 1.x")));
        }
        let disk_bytes = be64(bytes, 48);
        if disk_bytes == 0 || !disk_bytes.is_multiple_of(crate::SECTOR) {
            return Err(damaged("current size", 48, format!("{disk_bytes} is not a positive multiple of 512")));
        }
        if disk_bytes > DISK_BYTES_MAX {
            return Err(damaged("current size", 48, format!("{disk_bytes} is more than the format's 2040 GiB")));
        }
        let kind = be32(bytes, 60);
        let disk_type = DiskType::from_number(kind).ok_or_else(|| {
            damaged("disk type", 60, format!("{kind} is not 2 (fixed), 3 (dynamic) or 4 (differencing)"))
        })?;
        let mut unique_id = [0; 16];
        unique_id.copy_from_slice(&bytes[68..84]);
        let live_at = (bytes[LIVE_AT..LIVE_AT + 8] == LIVE_MARK[..]).then(|| be64(bytes, LIVE_AT + 8));
        let (data_offset, timestamp) = (be64(bytes, 16), be32(bytes, 24));
        Ok(Footer { data_offset, timestamp, disk_bytes, disk_type, unique_id, live_at })
    }

    /// The bytes of this footer.
    pub fn encode(&self) -> [u8; FOOTER_BYTES] {
        let mut bytes = [0; FOOTER_BYTES];
        let geometry = Geometry::of(self.disk_bytes);
        bytes[..8].copy_from_slice(COOKIE);
        put32(&mut bytes, 8, 2);
        put32(&mut bytes, 12, VERSION);
        put64(&mut bytes, 16, self.data_offset);
        put32(&mut bytes, 24, self.timestamp);
        // QEMU trusts the current size of known creators only; of others, the geometry's, which is rounded. A differencing
        // disk must not be read by tools that know no parents, so it says who made it.
        bytes[28..32].copy_from_slice(if self.disk_type == DiskType::Differencing { b"mfly" } else { b"win " });
        put32(&mut bytes, 32, VERSION);
        bytes[36..40].copy_from_slice(b"Wi2k");
        put64(&mut bytes, 40, self.disk_bytes);
        put64(&mut bytes, 48, self.disk_bytes);
        bytes[56..58].copy_from_slice(&geometry.cylinders.to_be_bytes());
        bytes[58] = geometry.heads;
        bytes[59] = geometry.sectors;
        put32(&mut bytes, 60, self.disk_type.number());
        bytes[68..84].copy_from_slice(&self.unique_id);
        if let Some(live_at) = self.live_at {
            bytes[LIVE_AT..LIVE_AT + 8].copy_from_slice(LIVE_MARK);
            put64(&mut bytes, LIVE_AT + 8, live_at);
        }
        let sum = checksum(&bytes, CHECKSUM_AT);
        put32(&mut bytes, CHECKSUM_AT, sum);
        bytes
    }
}

/// A footer's bytes with another time stamp; all else, also what this library does not know, is kept.
pub(crate) fn with_timestamp(mut bytes: [u8; FOOTER_BYTES], timestamp: u32) -> [u8; FOOTER_BYTES] {
    put32(&mut bytes, 24, timestamp);
    let sum = checksum(&bytes, CHECKSUM_AT);
    put32(&mut bytes, CHECKSUM_AT, sum);
    bytes
}

/// The one's complement of the sum of all bytes but the four of the checksum itself.
pub(crate) fn checksum(bytes: &[u8], checksum_at: usize) -> u32 {
    let sum = bytes
        .iter()
        .enumerate()
        .filter(|(at, _)| !(checksum_at..checksum_at + 4).contains(at))
        .fold(0u32, |sum, (_, byte)| sum.wrapping_add(u32::from(*byte)));
    !sum
}

pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

pub(crate) fn be64(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

pub(crate) fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

pub(crate) fn put64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_footer_reads_back() {
        let footer = Footer {
            data_offset: 512,
            timestamp: 77,
            disk_bytes: 1 << 30,
            disk_type: DiskType::Differencing,
            unique_id: [7; 16],
            live_at: Some(4096),
        };
        assert_eq!(Footer::decode(&footer.encode(), 0, Path::new("x")).unwrap(), footer);
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let footer = Footer {
            data_offset: u64::MAX,
            timestamp: 1,
            disk_bytes: 512,
            disk_type: DiskType::Fixed,
            unique_id: [1; 16],
            live_at: None,
        };
        for at in 0..FOOTER_BYTES {
            let mut bytes = footer.encode();
            bytes[at] ^= 0x10;
            assert!(Footer::decode(&bytes, 0, Path::new("x")).is_err(), "byte {at}");
        }
    }

    #[test]
    fn geometry_of_known_sizes() {
        // Values that Hyper-V writes for these sizes.
        let of = |mib: u64| {
            let g = Geometry::of(mib << 20);
            (g.cylinders, g.heads, g.sectors)
        };
        assert_eq!(of(64), (963, 8, 17));
        assert_eq!(of(1024), (2080, 16, 63));
        assert_eq!(of(130_048), (65278, 16, 255));
    }
}
