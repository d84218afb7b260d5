//! The parts that all images have: an initial RAM disk, a boot partition with SYSLINUX, and a disk with its footer.

use std::fs;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use mayfly_vhd::{CreateOptions, fixed_footer};

use super::{DATE, pinned};
use crate::run::{feed, finish};

pub const MIB: u64 = 1 << 20;
/// Seconds from 1970 to 2000.
const YEAR_2000: u32 = 946_684_800;
/// The boot loader of the package syslinux-common.
const LOADER: &str = "/usr/lib/syslinux/mbr/mbr.bin";

/// A new file of holes.
pub fn empty(path: &Path, mib: u64) -> anyhow::Result<()> {
    let file = fs::File::create(path).with_context(|| path.display().to_string())?;
    Ok(file.set_len(mib * MIB)?)
}

/// Packs the folder `tree` as an initial RAM disk.
pub fn initrd(tree: &Path, target: &Path) -> anyhow::Result<()> {
    let script = "find . -exec touch -h -d @$SOURCE_DATE_EPOCH {} + && \
                  find . | sort | cpio --quiet -o -H newc --reproducible -R 0:0 | gzip -9n";
    let packed = fs::File::create(target).with_context(|| target.display().to_string())?;
    finish(
        "cpio",
        pinned("sh").args(["-ec", script]).current_dir(tree).stdout(packed).stderr(std::process::Stdio::piped()),
    )
    .map(drop)
}

/// Makes a FAT partition with these files (source and name), and the boot loader.
pub fn boot_partition(target: &Path, mib: u64, files: &[(&Path, &str)]) -> anyhow::Result<()> {
    empty(target, mib)?;
    let image = target.to_string_lossy();
    finish("mkfs.vfat", pinned("mkfs.vfat").args(["--invariant", "-i", "0B007001", "-n", "BOOT", &image]))?;
    for (source, name) in files {
        // It takes the file's own time along, so that is set on a copy.
        let copy = target.with_extension(format!("{name}.copy"));
        fs::copy(source, &copy).with_context(|| source.display().to_string())?;
        finish("touch", pinned("touch").args(["-d", &format!("@{DATE}")]).arg(&copy))?;
        let mut command = pinned("mcopy");
        command.env("MTOOLS_SKIP_CHECK", "1").args(["-m", "-i", &image]).arg(&copy).arg(format!("::/{name}"));
        finish("mcopy", &mut command)?;
        fs::remove_file(&copy)?;
    }
    finish("syslinux", pinned("syslinux").args(["--install", &image]))?;
    pin_times(target)
}

/// SYSLINUX writes the time of day into its entries of the root folder; all get the same one.
fn pin_times(fat: &Path) -> anyhow::Result<()> {
    const ENTRY: usize = 32;
    const LONG_NAME: u8 = 0x0f;
    /// 14 November 2023, as FAT writes it.
    const DAY: [u8; 2] = 0x576e_u16.to_le_bytes();
    let mut bytes = fs::read(fat)?;
    let word = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    // Bytes of a sector, reserved sectors, tables, entries of the root folder, sectors of a table.
    let (sector, reserved, tables, entries, table) = (word(11), word(14), usize::from(bytes[16]), word(17), word(22));
    let root = (reserved + tables * table) * sector;
    for at in (root..root + entries * ENTRY).step_by(ENTRY) {
        if matches!(bytes[at], 0 | 0xe5) || bytes[at + 11] == LONG_NAME {
            continue;
        }
        bytes[at + 13..at + 20].copy_from_slice(&[0, 0, 0, DAY[0], DAY[1], DAY[0], DAY[1]]);
        bytes[at + 22..at + 26].copy_from_slice(&[0, 0, DAY[0], DAY[1]]);
    }
    Ok(fs::write(fat, bytes)?)
}

/// Puts a disk together of a boot partition and another one, and makes it the fixed VHD `target`.
pub fn vhd(target: &Path, label_id: &str, boot: &Path, data: &Path) -> anyhow::Result<()> {
    let disk = target.with_extension("part");
    let mib = |path: &Path| anyhow::Ok(path.metadata().with_context(|| path.display().to_string())?.len() / MIB);
    let (boot_mib, data_mib) = (mib(boot)?, mib(data)?);
    empty(&disk, 1 + boot_mib + data_mib)?;
    let sectors = |mib: u64| mib * MIB / 512;
    let table = format!(
        "label: dos\nlabel-id: {label_id}\nstart={}, size={}, type=c, bootable\nstart={}, size={}, type=83\n",
        sectors(1),
        sectors(boot_mib),
        sectors(1 + boot_mib),
        sectors(data_mib)
    );
    feed("sfdisk", &["-q", &disk.to_string_lossy()], &table)?;
    let file = fs::OpenOptions::new().write(true).open(&disk)?;
    let loader = fs::read(LOADER).with_context(|| LOADER.to_owned())?;
    file.write_all_at(&loader, 0)?;
    copy_into(&file, boot, MIB)?;
    copy_into(&file, data, (1 + boot_mib) * MIB)?;
    let bytes = (1 + boot_mib + data_mib) * MIB;
    let timestamp = DATE.parse::<u32>()? - YEAR_2000;
    // Children know their parent by this, so another content has another one.
    let options = CreateOptions { unique_id: identity(&disk)?, timestamp, durable: false };
    file.write_all_at(&fixed_footer(bytes, &options).encode(), bytes)?;
    Ok(fs::rename(&disk, target)?)
}

/// Copies a file into a disk, and leaves holes where it is empty.
fn copy_into(disk: &fs::File, source: &Path, mut at: u64) -> anyhow::Result<()> {
    let mut source = fs::File::open(source).with_context(|| source.display().to_string())?;
    let mut buffer = vec![0; MIB as usize];
    loop {
        let mut filled = 0;
        while filled < buffer.len() {
            match source.read(&mut buffer[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        if filled == 0 {
            return Ok(());
        }
        if buffer[..filled].iter().any(|byte| *byte != 0) {
            disk.write_all_at(&buffer[..filled], at)?;
        }
        at += filled as u64;
    }
}

/// Half of the digest of a disk's bytes.
fn identity(disk: &Path) -> anyhow::Result<[u8; 16]> {
    let text = finish("sha256sum", pinned("sha256sum").arg(disk))?;
    let mut identity = [0; 16];
    for (number, byte) in identity.iter_mut().enumerate() {
        let digits = text.get(number * 2..number * 2 + 2).context("sha256sum printed no digest")?;
        *byte = u8::from_str_radix(digits, 16)?;
    }
    Ok(identity)
}

/// A new empty folder.
pub fn fresh(folder: PathBuf) -> anyhow::Result<PathBuf> {
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    Ok(folder)
}
