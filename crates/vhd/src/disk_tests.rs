//! Disks against a plain array, and damaged ones.

use std::path::Path;
use std::sync::Arc;

use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{Access, CreateOptions, DiskType, Footer, Vhd, VhdError, create_differencing};

const DISK: u64 = 9 << 20;

fn fixed(path: &Path, data: &[u8]) -> Arc<Vhd> {
    let footer = Footer {
        data_offset: u64::MAX,
        timestamp: 5,
        disk_bytes: data.len() as u64,
        disk_type: DiskType::Fixed,
        unique_id: [9; 16],
        live_at: None,
    };
    std::fs::write(path, [data, &footer.encode()].concat()).unwrap();
    Arc::new(Vhd::open(path, Access::ReadOnly, None).unwrap())
}

fn base(folder: &Path) -> (Arc<Vhd>, Vec<u8>) {
    let mut data = vec![0; DISK as usize];
    ChaCha8Rng::seed_from_u64(1).fill_bytes(&mut data);
    (fixed(&folder.join("base.vhd"), &data), data)
}

fn child(folder: &Path, parent: &Arc<Vhd>) -> Vhd {
    let path = folder.join("child.vhd");
    let options = CreateOptions { unique_id: [3; 16], timestamp: 6, durable: false };
    create_differencing(&path, parent, &options).unwrap();
    Vhd::open(&path, Access::ReadWrite, Some(parent.clone())).unwrap()
}

#[test]
fn random_writes_read_back_over_an_unchanged_base() {
    let folder = tempfile::tempdir().unwrap();
    let (parent, mut expected) = base(folder.path());
    let before = std::fs::read(parent.path()).unwrap();
    let disk = child(folder.path(), &parent);
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for _ in 0..300 {
        let sectors = rng.random_range(1..200u64);
        let at = rng.random_range(0..DISK / 512 - sectors) * 512;
        let mut data = vec![0; (sectors * 512) as usize];
        rng.fill_bytes(&mut data);
        disk.write_at(&data, at).unwrap();
        expected[at as usize..at as usize + data.len()].copy_from_slice(&data);
    }
    let path = disk.path().to_owned();
    assert!(matches!(Vhd::open(&path, Access::ReadWrite, Some(parent.clone())), Err(VhdError::InUse { .. })));
    let reopened = Vhd::open(&path, Access::ReadOnly, Some(parent.clone())).unwrap();
    for disk in [&disk, &reopened] {
        let mut all = vec![0; DISK as usize];
        disk.read_at(&mut all, 0).unwrap();
        assert!(all == expected);
        let (at, len) = (rng.random_range(0..1 << 20), rng.random_range(1..3 << 20));
        let mut part = vec![0; len];
        disk.read_at(&mut part, at as u64).unwrap();
        assert!(part == expected[at..at + len], "reads need no alignment");
    }
    assert!(std::fs::read(parent.path()).unwrap() == before, "the base must never change");
}

#[test]
fn damage_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (parent, data) = base(folder.path());
    let open = |bytes: &[u8]| {
        let path = folder.path().join("damaged.vhd");
        std::fs::write(&path, bytes).unwrap();
        Vhd::open(&path, Access::ReadOnly, None).unwrap_err()
    };
    assert!(matches!(open(b"no"), VhdError::NotVhd { .. }));
    assert!(matches!(open(&data), VhdError::NotVhd { .. }), "a raw disk");
    let whole = std::fs::read(parent.path()).unwrap();
    assert!(matches!(open(&whole[..whole.len() - 1000]), VhdError::NotVhd { .. }), "truncated");
    assert!(matches!(open(&whole[512..]), VhdError::Damaged { field: "current size", .. }), "cut in front");
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let error = open(&flipped);
    assert!(error.to_string().contains("checksum of the footer"), "{error}");
    let disk = child(folder.path(), &parent);
    assert!(matches!(Vhd::open(disk.path(), Access::ReadOnly, None), Err(VhdError::WrongParent { .. })));
    let other = {
        let path = folder.path().join("other.vhd");
        let mut bytes = whole;
        let at = bytes.len() - 512;
        let mut footer = Footer {
            data_offset: u64::MAX,
            timestamp: 5,
            disk_bytes: DISK,
            disk_type: DiskType::Fixed,
            unique_id: [8; 16],
            live_at: None,
        };
        footer.timestamp = 7;
        bytes[at..].copy_from_slice(&footer.encode());
        std::fs::write(&path, bytes).unwrap();
        Arc::new(Vhd::open(&path, Access::ReadOnly, None).unwrap())
    };
    assert!(matches!(Vhd::open(disk.path(), Access::ReadOnly, Some(other)), Err(VhdError::WrongParent { .. })));
    assert!(matches!(disk.write_at(&[0; 512], DISK), Err(VhdError::OutOfRange { .. })));
    assert!(matches!(disk.write_at(&[0; 100], 0), Err(VhdError::OutOfRange { .. })));
    assert!(matches!(parent.write_at(&[0; 512], 0), Err(VhdError::ReadOnly { .. })));
}

#[test]
fn random_damage_never_panics() {
    let folder = tempfile::tempdir().unwrap();
    let (parent, _) = base(folder.path());
    let disk = child(folder.path(), &parent);
    disk.write_at(&[1; 4096], 3 << 20).unwrap();
    disk.flush().unwrap();
    let image = std::fs::read(disk.path()).unwrap();
    drop(disk);
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let path = folder.path().join("fuzzed.vhd");
    for _ in 0..500 {
        let mut bytes = image.clone();
        for _ in 0..rng.random_range(1..6) {
            let at = rng.random_range(0..16384);
            bytes[at] = rng.random();
        }
        // Make the checksums right again, so that the checks behind them are reached.
        let footer: u32 = !bytes[..512]
            .iter()
            .enumerate()
            .filter(|(i, _)| !(64..68).contains(i))
            .map(|(_, b)| u32::from(*b))
            .sum::<u32>();
        bytes[64..68].copy_from_slice(&footer.to_be_bytes());
        let header: u32 = !bytes[512..1536]
            .iter()
            .enumerate()
            .filter(|(i, _)| !(36..40).contains(i))
            .map(|(_, b)| u32::from(*b))
            .sum::<u32>();
        bytes[512 + 36..512 + 40].copy_from_slice(&header.to_be_bytes());
        std::fs::write(&path, &bytes).unwrap();
        if let Ok(disk) = Vhd::open(&path, Access::ReadWrite, Some(parent.clone())) {
            let mut buffer = vec![0; 65536];
            for at in [0, 3 << 20, disk.disk_bytes().saturating_sub(65536)] {
                let _ = disk.read_at(&mut buffer, at);
                let _ = disk.write_at(&buffer[..512], at / 512 * 512);
            }
        }
    }
}
