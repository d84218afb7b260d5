//! Making a mutated file's checksums right again, so that the checks behind them are reached.

use std::path::Path;
use std::sync::Arc;

use mayfly_vhd::{Access, CreateOptions, Epoch, MemoryStorage, Vhd, fixed_footer};

fn mend(bytes: &mut [u8], checksum_at: usize) {
    let sum = bytes
        .iter()
        .enumerate()
        .filter(|(at, _)| !(checksum_at..checksum_at + 4).contains(at))
        .fold(0u32, |sum, (_, byte)| sum.wrapping_add(u32::from(*byte)));
    bytes[checksum_at..checksum_at + 4].copy_from_slice(&(!sum).to_be_bytes());
}

/// The file with right checksums in its footers and its dynamic header.
pub fn with_checksums(data: &[u8]) -> Vec<u8> {
    let mut bytes = data.to_vec();
    let length = bytes.len();
    if length >= 512 {
        mend(&mut bytes[length - 512..], 64);
        mend(&mut bytes[..512], 64);
    }
    if length >= 1536 {
        mend(&mut bytes[512..1536], 36);
    }
    bytes
}

/// A parent of the identity that the file asks for.
pub fn parent(bytes: &[u8]) -> Option<Arc<Vhd>> {
    let header = bytes.get(512..1536)?;
    let mut unique_id = [0; 16];
    unique_id.copy_from_slice(&header[40..56]);
    let timestamp = u32::from_be_bytes([header[56], header[57], header[58], header[59]]);
    let options = CreateOptions { unique_id, timestamp, durable: false };
    let disk = 64 << 10;
    let mut image = vec![0x5a; disk];
    image.extend(fixed_footer(disk as u64, &options).encode());
    let storage = Box::new(MemoryStorage::new(image));
    Vhd::open_storage(Path::new("parent.vhd"), storage, Access::ReadOnly, None, Epoch::UNKNOWN).ok().map(Arc::new)
}
