//! Opening and reading whatever a file may hold.

#![no_main]

use std::path::Path;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use mayfly_vhd::{Access, Epoch, MemoryStorage, Vhd};

#[path = "mending.rs"]
mod mending;

fuzz_target!(|data: &[u8]| {
    let bytes = mending::with_checksums(data);
    for access in [Access::ReadOnly, Access::ReadWrite] {
        for epoch in [Epoch::UNKNOWN, Epoch::numbered(1)] {
            let open = |parent: Option<Arc<Vhd>>| {
                let storage = Box::new(MemoryStorage::new(bytes.clone()).with_room(64 << 20));
                Vhd::open_storage(Path::new("fuzz.vhd"), storage, access, parent, epoch)
            };
            let Ok(disk) = open(None).or_else(|_| open(mending::parent(&bytes))) else { continue };
            let mut part = vec![0; 4096];
            for at in [0, 2 << 20, disk.disk_bytes().saturating_sub(4096)] {
                let _ = disk.read_at(&mut part, at);
                let _ = disk.extent(at, 1 << 30);
            }
            let _ = (disk.own_sectors(), disk.blocks());
        }
    }
});
