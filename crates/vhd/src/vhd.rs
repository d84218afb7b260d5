//! An open disk: one file, and the parent below it where there is one.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::SECTOR;
use crate::error::VhdError;
use crate::footer::{DiskType, FOOTER_BYTES, Footer};
use crate::header::{ABSENT, DynamicHeader, HEADER_BYTES};

/// Where data of a block starts within a page, so that a guest's 4 KiB writes stay whole pages of the file.
const DATA_ALIGNMENT: u64 = 4096;

/// What an open disk is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    ReadOnly,
    /// Reading and writing; differencing disks only.
    ReadWrite,
}

/// An open disk. It can be shared between threads.
#[derive(Debug)]
pub struct Vhd {
    path: PathBuf,
    file: File,
    footer: Footer,
    access: Access,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Fixed,
    Sparse { header: DynamicHeader, parent: Option<Arc<Vhd>>, blocks: RwLock<Blocks> },
}

/// The block table and bitmaps, as they stand in the file.
#[derive(Debug)]
struct Blocks {
    /// The sector of each block's bitmap, or [`ABSENT`].
    table: Vec<u32>,
    /// The bitmaps of the blocks that are there.
    bitmaps: HashMap<u32, Vec<u8>>,
    /// Where the footer at the end of the file stands.
    end: u64,
}

/// A run of sectors that lie together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Run {
    /// At this byte of the file.
    Own(u64),
    /// In the parent, or zero where there is none.
    Below,
}

impl Vhd {
    /// Opens a disk. `parent` is the disk below a differencing one, already open, so that many children share it.
    ///
    /// # Errors
    /// [`VhdError::NotVhd`] and [`VhdError::Damaged`] say what is wrong with the file, [`VhdError::WrongParent`] that
    /// the parent is missing, superfluous or another disk.
    pub fn open(path: &Path, access: Access, parent: Option<Arc<Vhd>>) -> Result<Vhd, VhdError> {
        let io = |action| move |source| VhdError::Io { path: path.to_owned(), action, source };
        let file = OpenOptions::new().read(true).write(access == Access::ReadWrite).open(path).map_err(io("open"))?;
        let length = file.metadata().map_err(io("inspect"))?.len();
        let footer = read_footer(&file, length, path)?;
        let content = match footer.disk_type {
            DiskType::Fixed => open_fixed(&footer, length, path, parent.as_deref())?,
            DiskType::Dynamic | DiskType::Differencing => open_sparse(&file, &footer, length, path, parent)?,
        };
        if access == Access::ReadWrite && footer.disk_type != DiskType::Differencing {
            return Err(VhdError::ReadOnly { path: path.to_owned() });
        }
        Ok(Vhd { path: path.to_owned(), file, footer, access, content })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the disk.
    pub fn disk_bytes(&self) -> u64 {
        self.footer.disk_bytes
    }

    /// The kind.
    pub fn disk_type(&self) -> DiskType {
        self.footer.disk_type
    }

    /// The disk's identity.
    pub fn unique_id(&self) -> [u8; 16] {
        self.footer.unique_id
    }

    /// The disk's time stamp, seconds since 2000-01-01.
    pub fn timestamp(&self) -> u32 {
        self.footer.timestamp
    }

    /// Fills `buffer` from byte `offset` of the disk.
    ///
    /// # Errors
    /// [`VhdError::OutOfRange`] and [`VhdError::Io`].
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), VhdError> {
        self.check_range(buffer.len() as u64, offset)?;
        let Content::Sparse { header, parent, blocks } = &self.content else {
            return self.file.read_exact_at(buffer, offset).map_err(self.io("read"));
        };
        let blocks = read_lock(blocks);
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let (run, bytes) = self.run(header, &blocks, at, (buffer.len() - done) as u64);
            let part = &mut buffer[done..done + bytes as usize];
            match (run, parent) {
                (Run::Own(position), _) => self.file.read_exact_at(part, position).map_err(self.io("read"))?,
                (Run::Below, Some(parent)) => parent.read_or_zero(part, at)?,
                (Run::Below, None) => part.fill(0),
            }
            done += bytes as usize;
        }
        Ok(())
    }

    /// Writes whole sectors at byte `offset` of a differencing disk. When this returns, killing the process loses
    /// nothing of it.
    ///
    /// # Errors
    /// [`VhdError::ReadOnly`], [`VhdError::OutOfRange`] (also when not on sector boundaries) and [`VhdError::Io`]. After
    /// an error each sector is either old or new.
    pub fn write_at(&self, data: &[u8], offset: u64) -> Result<(), VhdError> {
        self.check_range(data.len() as u64, offset)?;
        if !offset.is_multiple_of(SECTOR) || !(data.len() as u64).is_multiple_of(SECTOR) {
            return Err(self.out_of_range(data.len() as u64, offset));
        }
        let (Access::ReadWrite, Content::Sparse { header, blocks, .. }) = (self.access, &self.content) else {
            return Err(VhdError::ReadOnly { path: self.path.clone() });
        };
        let block_bytes = u64::from(header.block_bytes);
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let bytes = (block_bytes - at % block_bytes).min((data.len() - done) as u64);
            self.write_in_block(header, blocks, &data[done..done + bytes as usize], at)?;
            done += bytes as usize;
        }
        Ok(())
    }

    /// Makes everything written so far survive a power cut.
    ///
    /// # Errors
    /// [`VhdError::Io`] when the system cannot; what was written before may be lost then.
    pub fn flush(&self) -> Result<(), VhdError> {
        match self.access {
            Access::ReadOnly => Ok(()),
            Access::ReadWrite => self.file.sync_data().map_err(self.io("flush")),
        }
    }

    fn write_in_block(
        &self,
        header: &DynamicHeader,
        blocks: &RwLock<Blocks>,
        data: &[u8],
        at: u64,
    ) -> Result<(), VhdError> {
        {
            let known = read_lock(blocks);
            if let (Run::Own(position), bytes) = self.run(header, &known, at, data.len() as u64)
                && bytes == data.len() as u64
            {
                return self.file.write_all_at(data, position).map_err(self.io("write"));
            }
        }
        let mut blocks = write_lock(blocks);
        let block = (at / u64::from(header.block_bytes)) as u32;
        if blocks.table[block as usize] == ABSENT {
            self.allocate(header, &mut blocks, block)?;
        }
        let bitmap_at = u64::from(blocks.table[block as usize]) * SECTOR;
        let within = at % u64::from(header.block_bytes);
        // Data first, then the bits that make it visible: a kill in between leaves the old sectors.
        let position = bitmap_at + header.bitmap_bytes() + within;
        self.file.write_all_at(data, position).map_err(self.io("write"))?;
        let (first, last) = (within / SECTOR, (within + data.len() as u64) / SECTOR - 1);
        let (first_byte, last_byte) = ((first / 8) as usize, (last / 8) as usize);
        let Some(bitmap) = blocks.bitmaps.get_mut(&block) else { return Ok(()) };
        let mut changed = bitmap[first_byte..=last_byte].to_vec();
        for sector in first..=last {
            changed[(sector / 8) as usize - first_byte] |= 0x80 >> (sector % 8);
        }
        self.file.write_all_at(&changed, bitmap_at + first_byte as u64).map_err(self.io("write"))?;
        bitmap[first_byte..=last_byte].copy_from_slice(&changed);
        Ok(())
    }

    /// Gives `block` a place at the end of the file. Each step leaves a file that opens and reads as before.
    fn allocate(&self, header: &DynamicHeader, blocks: &mut Blocks, block: u32) -> Result<(), VhdError> {
        let bitmap_bytes = header.bitmap_bytes();
        let position = (blocks.end + bitmap_bytes).next_multiple_of(DATA_ALIGNMENT) - bitmap_bytes;
        let end = position + bitmap_bytes + u64::from(header.block_bytes);
        let sector = u32::try_from(position / SECTOR).ok().filter(|sector| *sector != ABSENT).ok_or_else(|| {
            VhdError::Damaged {
                path: self.path.clone(),
                field: "block allocation table entry",
                offset: header.table_offset + u64::from(block) * 4,
                why: "the file has reached the 2 TiB that the format can address".to_owned(),
            }
        })?;
        let write = |bytes: &[u8], at| self.file.write_all_at(bytes, at).map_err(self.io("write"));
        write(&self.footer.encode(), end)?;
        let clear = position + bitmap_bytes - blocks.end;
        write(&vec![0; clear as usize], blocks.end)?;
        write(&sector.to_be_bytes(), header.table_offset + u64::from(block) * 4)?;
        blocks.table[block as usize] = sector;
        blocks.bitmaps.insert(block, vec![0; bitmap_bytes as usize]);
        blocks.end = end;
        Ok(())
    }

    /// The run of equal kind that starts at byte `at` of the disk, no longer than `limit` and within one block.
    fn run(&self, header: &DynamicHeader, blocks: &Blocks, at: u64, limit: u64) -> (Run, u64) {
        let block_bytes = u64::from(header.block_bytes);
        let within = at % block_bytes;
        let limit = limit.min(block_bytes - within);
        let block = (at / block_bytes) as u32;
        let sector = blocks.table.get(block as usize).copied().unwrap_or(ABSENT);
        if sector == ABSENT {
            return (Run::Below, limit);
        }
        let position = u64::from(sector) * SECTOR + header.bitmap_bytes() + within;
        // In a dynamic disk a block that is there is there whole; writers do not agree about its bitmap.
        let Some(bitmap) = blocks.bitmaps.get(&block).filter(|_| self.footer.disk_type == DiskType::Differencing)
        else {
            return (Run::Own(position), limit);
        };
        let bit = |sector: u64| bitmap[(sector / 8) as usize] & (0x80 >> (sector % 8)) != 0;
        let own = bit(within / SECTOR);
        let mut end = (within / SECTOR + 1) * SECTOR;
        while end < within + limit && bit(end / SECTOR) == own {
            end += SECTOR;
        }
        let bytes = limit.min(end - within);
        (if own { Run::Own(position) } else { Run::Below }, bytes)
    }

    /// Like [`Vhd::read_at`], with zeros past the end: a child may be longer than its parent.
    fn read_or_zero(&self, buffer: &mut [u8], offset: u64) -> Result<(), VhdError> {
        let here = self.disk_bytes().saturating_sub(offset).min(buffer.len() as u64) as usize;
        let (inside, outside) = buffer.split_at_mut(here);
        outside.fill(0);
        if inside.is_empty() { Ok(()) } else { self.read_at(inside, offset) }
    }

    fn check_range(&self, bytes: u64, offset: u64) -> Result<(), VhdError> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.disk_bytes() => Ok(()),
            _ => Err(self.out_of_range(bytes, offset)),
        }
    }

    fn out_of_range(&self, bytes: u64, offset: u64) -> VhdError {
        VhdError::OutOfRange { path: self.path.clone(), offset, bytes, disk_bytes: self.disk_bytes() }
    }

    fn io(&self, action: &'static str) -> impl FnOnce(std::io::Error) -> VhdError + '_ {
        move |source| VhdError::Io { path: self.path.clone(), action, source }
    }
}

// A panic while a lock was held cannot leave the maps behind the file: they change last. So poison means nothing here.
fn read_lock(blocks: &RwLock<Blocks>) -> RwLockReadGuard<'_, Blocks> {
    blocks.read().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn write_lock(blocks: &RwLock<Blocks>) -> RwLockWriteGuard<'_, Blocks> {
    blocks.write().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The footer at the end; where a crash has torn that, the copy at the start of a sparse disk.
fn read_footer(file: &File, length: u64, path: &Path) -> Result<Footer, VhdError> {
    if length < FOOTER_BYTES as u64 {
        let why = format!("{length} bytes are fewer than the 512 of a footer");
        return Err(VhdError::NotVhd { path: path.to_owned(), why });
    }
    let at = |offset| {
        let mut bytes = [0; FOOTER_BYTES];
        file.read_exact_at(&mut bytes, offset).map_err(|source| VhdError::Io {
            path: path.to_owned(),
            action: "read the footer",
            source,
        })?;
        Footer::decode(&bytes, offset, path)
    };
    let last = at(length - FOOTER_BYTES as u64);
    match last {
        Ok(footer) => Ok(footer),
        Err(error) => at(0).ok().filter(|footer| footer.disk_type != DiskType::Fixed).ok_or(error),
    }
}

fn open_fixed(footer: &Footer, length: u64, path: &Path, parent: Option<&Vhd>) -> Result<Content, VhdError> {
    if parent.is_some() {
        return Err(VhdError::WrongParent { path: path.to_owned(), why: "a fixed disk has none".to_owned() });
    }
    let data = length - FOOTER_BYTES as u64;
    if data < footer.disk_bytes {
        return Err(VhdError::Damaged {
            path: path.to_owned(),
            field: "current size",
            offset: data + 48,
            why: format!("the footer says {} bytes, the file holds {data}: it is truncated", footer.disk_bytes),
        });
    }
    Ok(Content::Fixed)
}

fn open_sparse(
    file: &File,
    footer: &Footer,
    length: u64,
    path: &Path,
    parent: Option<Arc<Vhd>>,
) -> Result<Content, VhdError> {
    let io = |action| move |source| VhdError::Io { path: path.to_owned(), action, source };
    let damaged = |field, offset, why| VhdError::Damaged { path: path.to_owned(), field, offset, why };
    if footer.data_offset.checked_add(HEADER_BYTES as u64).is_none_or(|end| end > length) {
        let why = format!("{} lies outside the file of {length} bytes", footer.data_offset);
        return Err(damaged("data offset", length - FOOTER_BYTES as u64 + 16, why));
    }
    let mut bytes = [0; HEADER_BYTES];
    file.read_exact_at(&mut bytes, footer.data_offset).map_err(io("read the header"))?;
    let header = DynamicHeader::decode(&bytes, footer.data_offset, path, footer.disk_bytes)?;
    check_parent(footer, &header, path, parent.as_deref())?;
    let needed = footer.disk_bytes.div_ceil(u64::from(header.block_bytes));
    if header.table_offset.checked_add(needed * 4).is_none_or(|end| end > length) {
        let why = format!(
            "a table of {needed} entries at {} does not fit into the file of {length} bytes",
            header.table_offset
        );
        return Err(damaged("table offset", footer.data_offset + 16, why));
    }
    let mut raw = vec![0; needed as usize * 4];
    file.read_exact_at(&mut raw, header.table_offset).map_err(io("read the block table"))?;
    let table: Vec<u32> = raw.chunks_exact(4).map(|e| u32::from_be_bytes([e[0], e[1], e[2], e[3]])).collect();
    let mut end = header.table_offset + u64::from(header.table_entries) * 4;
    for locator in &header.locators {
        let locator_end = locator.offset.checked_add(u64::from(locator.length)).filter(|end| *end <= length);
        let why = || format!("{} bytes at {} lie outside the file", locator.length, locator.offset);
        end = end.max(locator_end.ok_or_else(|| damaged("parent locator", footer.data_offset + 576, why()))?);
    }
    let mut bitmaps = HashMap::new();
    for (block, sector) in table.iter().enumerate().filter(|(_, sector)| **sector != ABSENT) {
        let position = u64::from(*sector) * SECTOR;
        let block_end = position + header.bitmap_bytes() + u64::from(header.block_bytes);
        // The last block of a file may be cut at the disk's end, as some writers do; its bitmap may not.
        if position + header.bitmap_bytes() > length {
            let why = format!("block {block} would start at {position}, past the file's {length} bytes");
            return Err(damaged("block allocation table entry", header.table_offset + block as u64 * 4, why));
        }
        end = end.max(block_end);
        // A dynamic disk's bitmaps are not used.
        if footer.disk_type == DiskType::Dynamic {
            continue;
        }
        let mut bitmap = vec![0; header.bitmap_bytes() as usize];
        file.read_exact_at(&mut bitmap, position).map_err(io("read a sector bitmap"))?;
        bitmaps.insert(block as u32, bitmap);
    }
    let blocks = RwLock::new(Blocks { table, bitmaps, end: end.next_multiple_of(SECTOR) });
    Ok(Content::Sparse { header, parent, blocks })
}

fn check_parent(footer: &Footer, header: &DynamicHeader, path: &Path, parent: Option<&Vhd>) -> Result<(), VhdError> {
    let wrong = |why| Err(VhdError::WrongParent { path: path.to_owned(), why });
    match (footer.disk_type, parent) {
        (DiskType::Differencing, None) => {
            wrong(format!("it is a differencing disk over `{}`, which was not given", header.parent_name))
        }
        (DiskType::Differencing, Some(parent)) if parent.unique_id() != header.parent_id => {
            wrong(format!("{} has another identity than the parent it was made over", parent.path().display()))
        }
        (DiskType::Dynamic, Some(_)) => wrong("a dynamic disk has none".to_owned()),
        _ => Ok(()),
    }
}
