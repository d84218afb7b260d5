//! Making disks: some sectors and an empty block table, whatever the size.
//!
//! Blocks are 2 MiB, the size that the format recommends and every reader knows. They cost no space until written:
//! nothing is filled with zeros, a block's place is a hole in the file, and only sectors that the disk owns are marked in
//! its bitmap. So a guest's 4 KiB write is 4 KiB in the file and a bit or two, not 2 MiB; and a bitmap is one sector,
//! written in one piece.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use crate::error::VhdError;
use crate::footer::{DISK_BYTES_MAX, DiskType, FOOTER_BYTES, Footer};
use crate::header::{ABSENT, BLOCK_BYTES, DynamicHeader, HEADER_BYTES, ParentLocator};
use crate::live::{Epoch, Live};
use crate::storage::Storage;
use crate::vhd::Vhd;

/// What a new disk is made with.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// The disk's own identity, which has to be random.
    pub unique_id: [u8; 16],
    /// Seconds since 2000-01-01, see [`crate::seconds_since_2000`].
    pub timestamp: u32,
    /// Whether the disk's bytes are synced once it is made. Its name survives a power cut when its folder is synced too.
    pub durable: bool,
}

/// Creates the file `path` as an empty differencing disk over `parent`. Fails if the file exists.
///
/// # Errors
/// [`VhdError::Io`] when the file exists or cannot be written; nothing is left behind then.
pub fn create_differencing(path: &Path, parent: &Vhd, options: &CreateOptions) -> Result<(), VhdError> {
    create(path, options, |storage| differencing(path, parent, options).write(storage))
}

/// Creates the file `path` as an empty dynamic disk. Fails if the file exists.
///
/// # Errors
/// [`VhdError::Unsuitable`] for a size that the format does not have, [`VhdError::Io`].
pub fn create_dynamic(path: &Path, disk_bytes: u64, options: &CreateOptions) -> Result<(), VhdError> {
    check_size(path, disk_bytes)?;
    create(path, options, |storage| dynamic(disk_bytes, options).write(storage))
}

/// Creates the file `path` as an empty fixed disk: a hole of its size and a footer. Fails if the file exists.
///
/// # Errors
/// As [`create_dynamic`].
pub fn create_fixed(path: &Path, disk_bytes: u64, options: &CreateOptions) -> Result<(), VhdError> {
    check_size(path, disk_bytes)?;
    create(path, options, |storage| storage.write_all_at(&fixed_footer(disk_bytes, options).encode(), disk_bytes))
}

/// The footer of a fixed disk.
pub fn fixed_footer(disk_bytes: u64, options: &CreateOptions) -> Footer {
    Footer {
        data_offset: u64::MAX,
        timestamp: options.timestamp,
        disk_bytes,
        disk_type: DiskType::Fixed,
        unique_id: options.unique_id,
        live_at: None,
    }
}

/// Checks that a disk can have this size.
pub(crate) fn check_size(path: &Path, disk_bytes: u64) -> Result<(), VhdError> {
    let why = match disk_bytes {
        0 => "a disk has at least one sector".to_owned(),
        bytes if !bytes.is_multiple_of(crate::SECTOR) => {
            format!("{bytes} bytes are no whole sectors; the next size is {}", bytes.next_multiple_of(crate::SECTOR))
        }
        bytes if bytes > DISK_BYTES_MAX => format!("{bytes} bytes are more than the format's 2040 GiB"),
        _ => return Ok(()),
    };
    Err(VhdError::Unsuitable { path: path.to_owned(), why })
}

fn create(
    path: &Path,
    options: &CreateOptions,
    write: impl FnOnce(&File) -> std::io::Result<()>,
) -> Result<(), VhdError> {
    let io = |action| move |source| VhdError::Io { path: path.to_owned(), action, source };
    let file = OpenOptions::new().write(true).create_new(true).open(path).map_err(io("create"))?;
    let written = write(&file).and_then(|()| if options.durable { file.sync_data() } else { Ok(()) });
    written.map_err(|source| {
        // The half-written file must not be taken for a disk; the write error is the one worth telling.
        let _ = std::fs::remove_file(path);
        io("write")(source)
    })
}

/// An empty sparse disk.
#[derive(Debug)]
pub(crate) struct Blank {
    footer: Footer,
    header: DynamicHeader,
    /// What the parent locators point to, from byte 1536.
    locators: Vec<u8>,
    live: Live,
}

impl Blank {
    pub(crate) fn write(&self, storage: &dyn Storage) -> std::io::Result<()> {
        let footer = self.footer.encode();
        storage.write_all_at(&[&footer[..], &self.header.encode(), &self.locators].concat(), 0)?;
        // No epoch yet: opening for writing sets it.
        storage.write_all_at(&self.live.head(Epoch::UNKNOWN), self.live.start())?;
        let mut end = vec![0xff; self.table_bytes()];
        end.extend_from_slice(&footer);
        storage.write_all_at(&end, self.header.table_offset)
    }

    /// Writes the disk without a live region, with this table, and with its last footer at `end`.
    pub(crate) fn write_plain(&self, storage: &dyn Storage, table: &[Option<u32>], end: u64) -> std::io::Result<()> {
        let footer = Footer { live_at: None, ..self.footer.clone() }.encode();
        let header = DynamicHeader { table_offset: self.plain_table_at(), ..self.header.clone() };
        let mut entries: Vec<u8> = table.iter().flat_map(|entry| entry.unwrap_or(ABSENT).to_be_bytes()).collect();
        entries.resize(self.table_bytes(), 0xff);
        storage.write_all_at(&[&footer[..], &header.encode(), &self.locators, &entries].concat(), 0)?;
        storage.write_all_at(&footer, end)
    }

    /// Where blocks may begin in a disk without a live region.
    pub(crate) fn plain_end(&self) -> u64 {
        self.plain_table_at() + self.table_bytes() as u64
    }

    fn plain_table_at(&self) -> u64 {
        (FOOTER_BYTES + HEADER_BYTES + self.locators.len()) as u64
    }

    fn table_bytes(&self) -> usize {
        (self.header.table_entries as usize * size_of_val(&ABSENT)).next_multiple_of(512)
    }
}

pub(crate) fn dynamic(disk_bytes: u64, options: &CreateOptions) -> Blank {
    blank(options, DiskType::Dynamic, disk_bytes, Vec::new(), |_| {})
}

pub(crate) fn differencing(path: &Path, parent: &Vhd, options: &CreateOptions) -> Blank {
    let absolute = std::path::absolute(parent.path()).unwrap_or_else(|_| parent.path().to_owned());
    let own = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let name = parent.path().file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let locators = vec![(*b"W2ru", relative(&own, &absolute)), (*b"W2ku", absolute)];
    blank(options, DiskType::Differencing, parent.disk_bytes(), locators, |header| {
        header.parent_id = parent.unique_id();
        header.parent_timestamp = parent.timestamp();
        header.parent_name = name;
    })
}

fn blank(
    options: &CreateOptions,
    disk_type: DiskType,
    disk_bytes: u64,
    paths: Vec<([u8; 4], PathBuf)>,
    finish: impl FnOnce(&mut DynamicHeader),
) -> Blank {
    let start = (FOOTER_BYTES + HEADER_BYTES) as u64;
    let (mut texts, mut locators) = (Vec::new(), Vec::new());
    for (code, text) in paths {
        let data: Vec<u8> = text.to_string_lossy().encode_utf16().flat_map(u16::to_le_bytes).collect();
        let space = data.len().next_multiple_of(512);
        let (space, length, offset) = (space as u32, data.len() as u32, start + texts.len() as u64);
        locators.push(ParentLocator { code, space, length, offset });
        texts.extend_from_slice(&data);
        texts.resize(texts.len().next_multiple_of(512), 0);
    }
    let table_entries = disk_bytes.div_ceil(u64::from(BLOCK_BYTES)) as u32;
    let live = Live::after(start + texts.len() as u64, table_entries);
    let footer = Footer {
        data_offset: FOOTER_BYTES as u64,
        timestamp: options.timestamp,
        disk_bytes,
        disk_type,
        unique_id: options.unique_id,
        live_at: Some(live.start()),
    };
    let mut header = DynamicHeader {
        table_offset: live.end(),
        table_entries,
        block_bytes: BLOCK_BYTES,
        parent_id: [0; 16],
        parent_timestamp: 0,
        parent_name: String::new(),
        locators,
    };
    finish(&mut header);
    Blank { footer, header, locators: texts, live }
}

/// The path from the folder of `from` to `to`; both are absolute.
fn relative(from: &Path, to: &Path) -> PathBuf {
    let from: Vec<_> = from.parent().into_iter().flat_map(Path::components).collect();
    let to: Vec<_> = to.components().collect();
    let shared = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let up = std::iter::repeat_n("..", from.len() - shared);
    let mut path: PathBuf = if shared == from.len() { PathBuf::from(".") } else { up.collect() };
    path.extend(&to[shared..]);
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_paths() {
        assert_eq!(relative(Path::new("/a/b/c.vhd"), Path::new("/a/d/e.vhd")), Path::new("../d/e.vhd"));
        assert_eq!(relative(Path::new("/a/c.vhd"), Path::new("/a/e.vhd")), Path::new("./e.vhd"));
    }
}
