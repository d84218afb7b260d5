//! The device's configuration space and features (virtio 1.2, 5.2.3 and 5.2.4).

/// Queues that are offered at the most.
pub(super) const QUEUES_MAX: u64 = 8;
/// Entries of a queue at the most.
pub(super) const QUEUE_SIZE_MAX: u16 = 1024;
/// Sectors that one discard or write-zeroes segment may cover: 1 GiB.
pub(super) const CLEAR_SECTORS_MAX: u32 = 1 << 21;

const SEGMENTS_MAX: u32 = 126;
const FEATURE_SEG_MAX: u64 = 1 << 2;
const FEATURE_BLK_SIZE: u64 = 1 << 6;
const FEATURE_FLUSH: u64 = 1 << 9;
const FEATURE_MQ: u64 = 1 << 12;
const FEATURE_DISCARD: u64 = 1 << 13;
const FEATURE_WRITE_ZEROES: u64 = 1 << 14;
const FEATURE_INDIRECT: u64 = 1 << 28;
pub(super) const FEATURE_EVENT_IDX: u64 = 1 << 29;
const FEATURE_PROTOCOL: u64 = 1 << 30;
const FEATURE_VERSION_1: u64 = 1 << 32;

/// What is offered. Not CONFIG_WCE: the guest has to send its flushes.
pub(super) const FEATURES: u64 = FEATURE_SEG_MAX
    | FEATURE_BLK_SIZE
    | FEATURE_FLUSH
    | FEATURE_MQ
    | FEATURE_DISCARD
    | FEATURE_WRITE_ZEROES
    | FEATURE_INDIRECT
    | FEATURE_EVENT_IDX
    | FEATURE_PROTOCOL
    | FEATURE_VERSION_1;

/// The configuration space of a disk.
pub(super) fn space(disk_bytes: u64) -> [u8; 60] {
    let mut space = [0; 60];
    let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &(disk_bytes / 512).to_le_bytes());
    put(12, &SEGMENTS_MAX.to_le_bytes());
    put(20, &512u32.to_le_bytes());
    put(34, &(QUEUES_MAX as u16).to_le_bytes());
    put(36, &CLEAR_SECTORS_MAX.to_le_bytes());
    put(40, &1u32.to_le_bytes());
    put(44, &8u32.to_le_bytes());
    put(48, &CLEAR_SECTORS_MAX.to_le_bytes());
    put(52, &1u32.to_le_bytes());
    put(56, &[1]);
    space
}
