//! Reading and writing a mutated disk: what was written is read back, whatever else the file holds.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use mayfly_vhd::{Access, Epoch, MemoryStorage, Vhd};

#[path = "mending.rs"]
mod mending;

fuzz_target!(|data: &[u8]| {
    // The first 64 bytes say what to do, the rest is the disk.
    let Some((script, image)) = data.split_at_checked(64) else { return };
    let bytes = mending::with_checksums(image);
    let storage = || Box::new(MemoryStorage::new(bytes.clone()).with_room(32 << 20));
    let name = Path::new("fuzz.vhd");
    let epoch = Epoch::numbered(1);
    let opened = Vhd::open_storage(name, storage(), Access::ReadWrite, None, epoch);
    let opened = opened.or_else(|_| {
        Vhd::open_storage(name, storage(), Access::ReadWrite, mending::parent(&bytes), epoch)
    });
    let Ok(disk) = opened else { return };
    let sectors = disk.disk_bytes() / 512;
    for (number, step) in script.as_chunks::<4>().0.iter().enumerate() {
        let at = u64::from(u16::from_be_bytes([step[1], step[2]])) * 97 % sectors * 512;
        let count = (u64::from(step[3]) + 1).min(sectors - at / 512) * 512;
        let tag = vec![number as u8 + 1; count as usize];
        let mut found = vec![0; count as usize];
        match step[0] % 5 {
            0 => drop(disk.flush()),
            1 => drop(disk.trim(count, at)),
            2 => {
                if disk.write_zeros(count, at).is_ok() && disk.read_at(&mut found, at).is_ok() {
                    assert!(found.iter().all(|byte| *byte == 0), "zeros were written");
                }
            }
            3 => drop(disk.read_at(&mut found, at)),
            _ => {
                if disk.write_at(&tag, at).is_ok() {
                    disk.read_at(&mut found, at).expect("what was written can be read");
                    assert!(found == tag, "another thing was read than was written");
                }
            }
        }
    }
});
