//! Checking a disk's file for damage, and mending what can be mended without guessing.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use crate::SECTOR;
use crate::chain::open_chain;
use crate::error::VhdError;
use crate::footer::{DiskType, FOOTER_BYTES, Footer};
use crate::header::{ABSENT, DynamicHeader, HEADER_BYTES};
use crate::live::{Epoch, Live};
use crate::sparse::Opening;
use crate::storage::Storage;
use crate::vhd::{Access, read_footer};

/// Something that is wrong with a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Whether data is lost or cannot be read; else all of it is there.
    pub is_error: bool,
    /// Whether [`repair`] mends it.
    pub can_repair: bool,
    /// The byte of the file.
    pub offset: u64,
    /// What it is.
    pub message: String,
}

/// What a look at a file has brought.
struct Examined {
    length: u64,
    footer: Footer,
    footer_bytes: [u8; FOOTER_BYTES],
    has_last_footer: bool,
    header: Option<DynamicHeader>,
    /// Table entries that point out of the file.
    lost: Vec<u32>,
    /// Where the last block ends.
    used: u64,
    findings: Vec<Finding>,
}

impl Examined {
    fn add(&mut self, is_error: bool, can_repair: bool, offset: u64, message: String) {
        self.findings.push(Finding { is_error, can_repair, offset, message });
    }
}

/// Looks for damage, in the file and in the chain below it. Nothing is changed.
///
/// # Errors
/// [`VhdError::NotVhd`] and [`VhdError::Io`] when there is nothing to check; damage of the only footer
/// ([`VhdError::Damaged`]).
pub fn check(path: &Path) -> Result<Vec<Finding>, VhdError> {
    let file = File::open(path).map_err(|source| io_error(path, "open", source))?;
    let mut examined = examine(path, &file)?;
    if !examined.findings.iter().any(|finding| finding.is_error) {
        match open_chain(path, Access::ReadOnly) {
            Ok(disk) => {
                let (_, dirty) = disk.blocks();
                if dirty > 0 {
                    let message = format!(
                        "{dirty} blocks hold writes that were never flushed; tools other than this do not see them"
                    );
                    examined.add(false, true, 0, message);
                }
            }
            Err(error) => examined.add(true, false, 0, chain_text(&error)),
        }
    }
    Ok(examined.findings)
}

/// Mends what [`check`] calls repairable, and returns what was found and is mended now.
///
/// # Errors
/// As [`check`]; [`VhdError::InUse`] when somebody has the disk open for writing.
pub fn repair(path: &Path) -> Result<Vec<Finding>, VhdError> {
    let open = || OpenOptions::new().read(true).write(true).open(path);
    let file = open().map_err(|source| io_error(path, "open", source))?;
    if file.try_lock().is_err() {
        return Err(VhdError::InUse { path: path.to_owned() });
    }
    let mut before = check(path)?;
    before.retain(|finding| finding.can_repair);
    if before.is_empty() {
        return Ok(before);
    }
    let examined = examine(path, &file)?;
    mend(&file, &examined).map_err(|source| io_error(path, "repair", source))?;
    drop(file);
    // What was written and never flushed becomes visible to everybody.
    if let Ok(disk) = open_chain(path, Access::ReadWrite) {
        disk.flush()?;
    }
    Ok(before)
}

fn mend(file: &File, examined: &Examined) -> io::Result<()> {
    if examined.footer.disk_type == DiskType::Fixed {
        return Ok(());
    }
    let end = match &examined.header {
        Some(header) => {
            for block in &examined.lost {
                file.write_all_at(&ABSENT.to_be_bytes(), header.table_offset + u64::from(*block) * 4)?;
            }
            examined.used.next_multiple_of(SECTOR)
        }
        // Without a header nobody knows where the last block ends.
        None if examined.has_last_footer => examined.length - FOOTER_BYTES as u64,
        None => examined.length.next_multiple_of(SECTOR),
    };
    file.write_all_at(&examined.footer_bytes, end)?;
    file.resize(end + FOOTER_BYTES as u64)?;
    file.write_all_at(&examined.footer_bytes, 0)?;
    file.sync()
}

fn examine(path: &Path, file: &File) -> Result<Examined, VhdError> {
    let length = Storage::size(file).map_err(|source| io_error(path, "inspect", source))?;
    let (footer, footer_bytes, has_last_footer) = read_footer(file, length, path)?;
    let mut examined = Examined {
        length,
        footer,
        footer_bytes,
        has_last_footer,
        header: None,
        lost: Vec::new(),
        used: length.saturating_sub(FOOTER_BYTES as u64),
        findings: Vec::new(),
    };
    if examined.footer.disk_type == DiskType::Fixed {
        let (data, disk_bytes) = (length - FOOTER_BYTES as u64, examined.footer.disk_bytes);
        if data != disk_bytes {
            let what = if data < disk_bytes { "truncated" } else { "longer than its disk" };
            let message = format!("the footer says {disk_bytes} bytes, the file holds {data}: it is {what}");
            examined.add(data < disk_bytes, false, data + 48, message);
        }
        return Ok(examined);
    }
    let end = length.saturating_sub(FOOTER_BYTES as u64);
    if !has_last_footer {
        examined.add(false, true, end, "the footer at the end is damaged; the copy at the start is whole".to_owned());
    } else {
        let mut copy = [0; FOOTER_BYTES];
        file.read_exact_at(&mut copy, 0).map_err(|source| io_error(path, "read", source))?;
        if copy != footer_bytes {
            examined.add(false, true, 0, "the footer's copy at the start differs from the footer".to_owned());
        }
    }
    examine_tables(path, file, &mut examined)?;
    Ok(examined)
}

fn examine_tables(path: &Path, file: &File, examined: &mut Examined) -> Result<(), VhdError> {
    let footer = examined.footer.clone();
    let opening = Opening {
        name: path,
        storage: file,
        footer: &footer,
        length: examined.length,
        has_last_footer: examined.has_last_footer,
        access: Access::ReadOnly,
        epoch: Epoch::UNKNOWN,
    };
    let header = match opening.header() {
        Err(VhdError::Damaged { field, offset, why, .. }) => {
            examined.add(true, false, offset, format!("{field}: {why}"));
            return Ok(());
        }
        other => other?,
    };
    let count = header.blocks(footer.disk_bytes);
    let live = Live::find(file, footer.live_at, count, examined.length)
        .map_err(|source| io_error(path, "read the live region", source))?;
    let entries = match opening.table(&header, header.table_offset, count, ABSENT) {
        Err(VhdError::Damaged { field, offset, why, .. }) => {
            examined.add(true, false, offset, format!("{field}: {why}"));
            return Ok(());
        }
        other => other?,
    };
    // What the live table names is in use too, though after a power cut some of it may never have come to be.
    let live_entries = match live {
        Some(live) => opening.table(&header, live.table_at(), count, 0).unwrap_or_default(),
        None => Vec::new(),
    };
    let start = tables_end(&footer, &header, live);
    let span = header.bitmap_bytes() + u64::from(header.block_bytes);
    let end = examined.length.saturating_sub(FOOTER_BYTES as u64);
    let (mut used, mut places) = (start, Vec::new());
    for (block, sector) in entries {
        let at = u64::from(sector) * SECTOR;
        let entry_at = header.table_offset + u64::from(block) * 4;
        let data = header.bitmap_bytes() + used_part(&footer, &header, block);
        if at + header.bitmap_bytes() > examined.length {
            let message = format!(
                "block {block} would stand at {at}, past the file's {} bytes: its data is lost",
                examined.length
            );
            examined.add(true, true, entry_at, message);
            examined.lost.push(block);
            continue;
        }
        if at + data > (if examined.has_last_footer { end } else { examined.length }) {
            let message =
                format!("block {block} at {at} is cut off by the end of the file: a part of its data is lost");
            examined.add(true, false, entry_at, message);
        }
        used = used.max(at + if at + span > end { data } else { span });
        places.push((at, block, entry_at));
    }
    for (_, sector) in live_entries {
        let block_end = u64::from(sector) * SECTOR + span;
        used = if block_end <= end { used.max(block_end) } else { used };
    }
    used = used.next_multiple_of(SECTOR);
    places.sort_unstable();
    for pair in places.windows(2) {
        if pair[1].0 < pair[0].0 + span {
            let message = format!("blocks {} and {} both claim the bytes at {}", pair[0].1, pair[1].1, pair[1].0);
            examined.add(true, false, pair[1].2, message);
        }
    }
    examined.used = used;
    if examined.has_last_footer && used < end {
        examined.add(false, true, used, format!("{} bytes at the end belong to no block", end - used));
    }
    examined.header = Some(header);
    Ok(())
}

/// Where the tables, and what the header points to, end.
fn tables_end(footer: &Footer, header: &DynamicHeader, live: Option<Live>) -> u64 {
    let table = header.table_offset + u64::from(header.blocks(footer.disk_bytes)) * 4;
    let locators = header.locators.iter().map(|one| one.offset.saturating_add(u64::from(one.space.max(one.length))));
    let ends = locators.chain(live.map(|live| live.end())).chain([footer.data_offset + HEADER_BYTES as u64, table]);
    ends.max().unwrap_or(table).next_multiple_of(SECTOR)
}

/// Bytes of a block that belong to the disk.
fn used_part(footer: &Footer, header: &DynamicHeader, block: u32) -> u64 {
    let start = u64::from(block) * u64::from(header.block_bytes);
    u64::from(header.block_bytes).min(footer.disk_bytes.saturating_sub(start))
}

fn io_error(path: &Path, action: &'static str, source: io::Error) -> VhdError {
    VhdError::Io { path: path.to_owned(), action, source }
}

/// An error and its causes, in a line.
fn chain_text(error: &VhdError) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{error}{cause}")
}
