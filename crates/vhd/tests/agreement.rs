//! The same bytes through this library and through QEMU's tools; and disks that were damaged at random.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use mayfly_vhd::{
    Access, CreateOptions, Source, Storage, Target, Vhd, VhdError, check, convert, create_differencing, create_dynamic,
    create_fixed, open_chain, repair,
};
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    text
}

fn options(id: u8) -> CreateOptions {
    CreateOptions { unique_id: [id; 16], timestamp: 1, durable: false }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The disk as QEMU reads it.
fn by_qemu(path: &Path) -> Vec<u8> {
    let copy = path.with_extension("raw");
    run("qemu-img", &["convert", "-f", "vpc", "-O", "raw", text(path), text(&copy)]);
    std::fs::read(copy).unwrap()
}

fn by_us(disk: &Vhd) -> Vec<u8> {
    let mut all = vec![0; disk.disk_bytes() as usize];
    disk.read_at(&mut all, 0).unwrap();
    all
}

/// Hundreds of random operations, here and on a plain array.
fn play(disk: &Vhd, expected: &mut [u8], rng: &mut ChaCha8Rng) {
    let sectors = disk.disk_bytes() / 512;
    for _ in 0..200 {
        let count = rng.random_range(1..=sectors.min(600));
        let at = rng.random_range(0..=sectors - count);
        let range = (at * 512) as usize..((at + count) * 512) as usize;
        match rng.random_range(0..10) {
            0 => disk.flush().unwrap(),
            1 | 2 => {
                disk.write_zeros(count * 512, at * 512).unwrap();
                expected[range].fill(0);
            }
            _ => {
                rng.fill_bytes(&mut expected[range.clone()]);
                disk.write_at(&expected[range], at * 512).unwrap();
            }
        }
    }
    disk.flush().unwrap();
}

#[test]
fn what_we_write_qemu_reads() {
    for seed in 0..4 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let folder = tempfile::tempdir().unwrap();
        let bytes = rng.random_range(1..40_000u64) * 512;
        let mut expected = vec![0; bytes as usize];
        for dynamic in [true, false] {
            let path = folder.path().join(format!("{dynamic}.vhd"));
            if dynamic { create_dynamic(&path, bytes, &options(1)) } else { create_fixed(&path, bytes, &options(1)) }
                .unwrap();
            expected.fill(0);
            let disk = Vhd::open(&path, Access::ReadWrite, None).unwrap();
            play(&disk, &mut expected, &mut rng);
            assert!(by_us(&disk) == expected, "seed {seed}, dynamic {dynamic}");
            drop(disk);
            assert!(by_qemu(&path) == expected, "seed {seed}, dynamic {dynamic}: QEMU reads other bytes");
            assert!(!check(&path).unwrap().iter().any(|finding| finding.is_error));
        }
    }
}

#[test]
fn what_qemu_writes_we_read() {
    for seed in 0..2 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let folder = tempfile::tempdir().unwrap();
        for (subformat, force) in [("dynamic", "on"), ("dynamic", "off"), ("fixed", "on"), ("fixed", "off")] {
            let path = folder.path().join(format!("{subformat}-{force}.vhd"));
            let bytes = rng.random_range(3000..40_000u64) * 512;
            let how = format!("subformat={subformat},force_size={force}");
            run("qemu-img", &["create", "-q", "-f", "vpc", "-o", &how, text(&path), &bytes.to_string()]);
            let disk = Vhd::open(&path, Access::ReadOnly, None).unwrap();
            // Without `force_size`, QEMU makes the disk as long as whole cylinders.
            assert!(if force == "on" { disk.disk_bytes() == bytes } else { disk.disk_bytes() >= bytes }, "{how}");
            let mut commands = Vec::new();
            for tag in 1..40 {
                let count = rng.random_range(1..800);
                let at = rng.random_range(0..disk.disk_bytes() / 512 - count);
                commands.extend(["-c".to_owned(), format!("write -P {tag} {} {}", at * 512, count * 512)]);
            }
            let mut arguments: Vec<&str> = vec!["-f", "vpc"];
            arguments.extend(commands.iter().map(String::as_str));
            arguments.push(text(&path));
            run("qemu-io", &arguments);
            let disk = Vhd::open(&path, Access::ReadOnly, None).unwrap();
            assert!(by_us(&disk) == by_qemu(&path), "{how}");
            drop(disk);
            // And on top of what QEMU wrote.
            let disk = Vhd::open(&path, Access::ReadWrite, None).unwrap();
            let mut expected = by_us(&disk);
            play(&disk, &mut expected, &mut rng);
            drop(disk);
            assert!(by_qemu(&path) == expected, "{how}: after our own writes");
        }
    }
}

#[test]
fn converting_keeps_bytes_and_holes() {
    let folder = tempfile::tempdir().unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let base = folder.path().join("base.vhd");
    create_dynamic(&base, 64 << 20, &options(1)).unwrap();
    let disk = Vhd::open(&base, Access::ReadWrite, None).unwrap();
    let mut data = vec![0; 100_352];
    rng.fill_bytes(&mut data);
    disk.write_at(&data, 5 << 20).unwrap();
    disk.flush().unwrap();
    drop(disk);
    let parent = open_chain(&base, Access::ReadOnly).unwrap();
    let child = folder.path().join("child.vhd");
    create_differencing(&child, &parent, &options(2)).unwrap();
    let disk = open_chain(&child, Access::ReadWrite).unwrap();
    disk.write_at(&data[..4096], 40 << 20).unwrap();
    disk.write_zeros(8192, 5 << 20).unwrap();
    let expected = by_us(&disk);
    for target in [Target::Fixed, Target::Dynamic, Target::Raw] {
        let path = folder.path().join(format!("{target:?}"));
        let file = std::fs::File::create_new(&path).unwrap();
        let source = Source::Vhd(Arc::clone(&disk));
        convert(&source, target, &file, &path, &options(3), &mut |_| true).unwrap();
        let found = if target == Target::Raw { std::fs::read(&path).unwrap() } else { by_qemu(&path) };
        assert!(found == expected, "{target:?}");
        let used = std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap()) * 512;
        assert!(used < 1 << 20, "{target:?}: zeros take no space, {used} bytes are taken");
        if target != Target::Raw {
            assert!(by_us(&open_chain(&path, Access::ReadOnly).unwrap()) == expected);
        }
    }
    let stopped = std::fs::File::create_new(folder.path().join("stopped")).unwrap();
    let source = Source::Vhd(disk);
    let error = convert(&source, Target::Fixed, &stopped, &base, &options(3), &mut |_| false).unwrap_err();
    assert!(matches!(error, VhdError::Io { source, .. } if source.kind() == std::io::ErrorKind::Interrupted));
}

#[test]
fn a_parent_that_was_changed_swapped_or_lost_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (base, child) = (folder.path().join("base.vhd"), folder.path().join("child.vhd"));
    create_dynamic(&base, 8 << 20, &options(1)).unwrap();
    create_differencing(&child, &open_chain(&base, Access::ReadOnly).unwrap(), &options(2)).unwrap();
    let grandchild = folder.path().join("grandchild.vhd");
    create_differencing(&grandchild, &open_chain(&child, Access::ReadOnly).unwrap(), &options(3)).unwrap();
    assert_eq!(
        open_chain(&grandchild, Access::ReadOnly).unwrap().parent().unwrap().path(),
        folder.path().join("./child.vhd")
    );
    // The chain can move as a whole.
    let moved = tempfile::tempdir().unwrap();
    for path in [&base, &child, &grandchild] {
        std::fs::copy(path, moved.path().join(path.file_name().unwrap())).unwrap();
    }
    open_chain(&moved.path().join("grandchild.vhd"), Access::ReadOnly).unwrap();
    let disk = open_chain(&base, Access::ReadWrite).unwrap();
    disk.write_at(&[1; 512], 0).unwrap();
    drop(disk);
    let error = open_chain(&grandchild, Access::ReadOnly).unwrap_err().to_string();
    assert!(error.contains("base.vhd") && error.contains("written to after"), "{error}");
    std::fs::remove_file(&base).unwrap();
    let error = open_chain(&grandchild, Access::ReadOnly).unwrap_err().to_string();
    assert!(error.contains("child.vhd: its parent cannot be found") && error.contains("base.vhd"), "{error}");
    create_dynamic(&base, 8 << 20, &options(9)).unwrap();
    let error = open_chain(&grandchild, Access::ReadOnly).unwrap_err().to_string();
    assert!(error.contains("another disk"), "{error}");
}

#[test]
fn disks_damaged_at_random_are_checked_and_repaired_without_a_panic() {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let folder = tempfile::tempdir().unwrap();
    let good = folder.path().join("good.vhd");
    create_dynamic(&good, 16 << 20, &options(1)).unwrap();
    let disk = Vhd::open(&good, Access::ReadWrite, None).unwrap();
    for at in [0, 3 << 20, 9 << 20] {
        disk.write_at(&[7; 8192], at).unwrap();
    }
    disk.flush().unwrap();
    drop(disk);
    let (image, mut found, mut mended) = (std::fs::read(&good).unwrap(), 0, 0);
    let path = folder.path().join("damaged.vhd");
    for _ in 0..300 {
        let mut bytes = image.clone();
        match rng.random_range(0..4) {
            // The end is gone.
            0 => bytes.truncate(rng.random_range(0..image.len())),
            // The last footer is.
            1 => bytes[image.len() - 512..].fill(0),
            // Something in the tables, or anywhere.
            _ => {
                for _ in 0..rng.random_range(1..8) {
                    let end = if rng.random() { 8192 } else { image.len() };
                    let at = rng.random_range(0..end);
                    bytes[at] = rng.random();
                }
            }
        }
        std::fs::write(&path, &bytes).unwrap();
        let Ok(before) = check(&path) else { continue };
        found += usize::from(!before.is_empty());
        let repaired = repair(&path).unwrap_or_default();
        let after = check(&path).unwrap();
        let left = |findings: &[mayfly_vhd::Finding]| findings.iter().filter(|one| one.can_repair).count();
        assert!(left(&after) == 0 || left(&after) < left(&before), "{before:?} became {after:?}");
        mended += usize::from(!repaired.is_empty() && after.is_empty());
        if let Ok(disk) = open_chain(&path, Access::ReadOnly) {
            let mut part = vec![0; 65536];
            let _ = disk.read_at(&mut part, 0);
        }
    }
    assert!(found > 50 && mended > 20, "{found} found, {mended} mended");
    assert!(Storage::size(&std::fs::File::open(&good).unwrap()).unwrap() > 0);
}
