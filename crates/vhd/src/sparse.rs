//! The inside of a dynamic or differencing disk: which block is where, and which of its sectors are its own.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::SECTOR;
use crate::bitmap::Bitmap;
use crate::error::VhdError;
use crate::footer::{DiskType, FOOTER_BYTES, Footer};
use crate::header::{ABSENT, DynamicHeader, HEADER_BYTES};
use crate::live::{Epoch, Live};
use crate::storage::Storage;
use crate::vhd::{Access, Vhd};

/// Data of a block starts at a multiple of this, so that a guest's 4 KiB writes stay whole pages of the file.
pub(crate) const DATA_ALIGNMENT: u64 = 4096;
/// Table entries that are read at a time.
const TABLE_PART: u64 = 1 << 16;

#[derive(Debug)]
pub(crate) struct Sparse {
    pub header: DynamicHeader,
    pub differencing: bool,
    pub parent: Option<Arc<Vhd>>,
    pub live: Option<Live>,
    pub map: RwLock<Map>,
    /// Held while bitmaps and table entries go from live to the format's place.
    pub flushing: Mutex<()>,
}

/// What is where, as it stands in the file.
#[derive(Debug, Default)]
pub(crate) struct Map {
    pub blocks: HashMap<u32, Block>,
    /// Blocks whose live state is newer than the format's.
    pub dirty: BTreeSet<u32>,
    /// Where the footer at the end of the file stands.
    pub end: u64,
}

#[derive(Debug)]
pub(crate) struct Block {
    /// The sector of the file at which the (format's) bitmap stands.
    pub sector: u32,
    /// None where all sectors are the block's own.
    pub bitmap: Option<Bitmap>,
    /// Whether the format's table knows the block.
    pub published: bool,
}

/// A run of sectors that lie together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Run {
    /// At this byte of the file.
    Own(u64),
    /// In the parent, or zero where there is none.
    Below,
}

/// What opening needs to know.
pub(crate) struct Opening<'a> {
    pub name: &'a Path,
    pub storage: &'a dyn Storage,
    pub footer: &'a Footer,
    pub length: u64,
    /// Whether the footer at the end is whole.
    pub has_last_footer: bool,
    pub access: Access,
    pub epoch: Epoch,
}

impl Opening<'_> {
    pub(crate) fn damaged(&self, field: &'static str, offset: u64, why: String) -> VhdError {
        VhdError::Damaged { path: self.name.to_owned(), field, offset, why }
    }

    fn io(&self, action: &'static str) -> impl FnOnce(std::io::Error) -> VhdError {
        let path = self.name.to_owned();
        move |source| VhdError::Io { path, action, source }
    }

    /// Reads the header.
    pub(crate) fn header(&self) -> Result<DynamicHeader, VhdError> {
        let (at, length) = (self.footer.data_offset, self.length);
        if at.checked_add(HEADER_BYTES as u64).is_none_or(|end| end > length) {
            let why = format!("{at} lies outside the file of {length} bytes");
            return Err(self.damaged("data offset", length - FOOTER_BYTES as u64 + 16, why));
        }
        let mut bytes = [0; HEADER_BYTES];
        self.storage.read_exact_at(&mut bytes, at).map_err(self.io("read the header"))?;
        let header = DynamicHeader::decode(&bytes, at, self.name, self.footer.disk_bytes)?;
        let needed = u64::from(header.blocks(self.footer.disk_bytes)) * 4;
        if header.table_offset.checked_add(needed).is_none_or(|end| end > length) {
            let why = format!(
                "a table of {needed} bytes at {} does not fit into the file of {length} bytes",
                header.table_offset
            );
            return Err(self.damaged("table offset", at + 16, why));
        }
        for locator in &header.locators {
            if locator.offset.checked_add(u64::from(locator.length)).is_none_or(|end| end > length) {
                let why = format!("{} bytes at {} lie outside the file", locator.length, locator.offset);
                return Err(self.damaged("parent locator", at + 576, why));
            }
        }
        Ok(header)
    }

    /// The entries of a table that are not `absent`: no more than the file has room for.
    pub(crate) fn table(
        &self,
        header: &DynamicHeader,
        at: u64,
        entries: u32,
        absent: u32,
    ) -> Result<Vec<(u32, u32)>, VhdError> {
        let (mut found, mut next) = (Vec::new(), 0);
        // Blocks may lack their ends in a file that was cut, so some more than fit.
        let most = self.length / (header.bitmap_bytes() + u64::from(header.block_bytes)) * 2 + 16;
        let entries = u64::from(entries);
        let mut bytes = vec![0; (entries.min(TABLE_PART) * 4) as usize];
        while next < entries {
            let part = (entries - next).min(TABLE_PART);
            let bytes = &mut bytes[..(part * 4) as usize];
            self.storage.read_exact_at(bytes, at + next * 4).map_err(self.io("read the block table"))?;
            for (index, entry) in bytes.chunks_exact(4).enumerate() {
                let sector = u32::from_be_bytes([entry[0], entry[1], entry[2], entry[3]]);
                if sector != absent {
                    if found.len() as u64 == most {
                        let why = format!("it names more than {most} blocks, which the file cannot hold");
                        return Err(self.damaged("block allocation table", at, why));
                    }
                    found.push(((next + index as u64) as u32, sector));
                }
            }
            next += part;
        }
        Ok(found)
    }

    /// Checks that blocks lie within the file and neither on each other nor on the tables.
    fn check_places(
        &self,
        header: &DynamicHeader,
        live: Option<Live>,
        table_at: u64,
        entries: &[(u32, u32)],
    ) -> Result<(), VhdError> {
        let needed = u64::from(header.blocks(self.footer.disk_bytes)) * 4;
        let mut taken = vec![
            (0, FOOTER_BYTES as u64, None),
            (self.footer.data_offset, self.footer.data_offset + HEADER_BYTES as u64, None),
            (header.table_offset, header.table_offset + needed, None),
        ];
        taken.extend(live.map(|live| (live.start(), live.end(), None)));
        // Only our own disks have live bitmaps, and dynamic ones need none.
        let has_front = live.is_some() && self.footer.disk_type == DiskType::Differencing;
        let front = if has_front { header.bitmap_bytes() } else { 0 };
        for (block, sector) in entries {
            let bitmap_at = u64::from(*sector) * SECTOR;
            let field = "block allocation table entry";
            let entry_at = table_at + u64::from(*block) * 4;
            let data_at = bitmap_at + header.bitmap_bytes();
            // The last block of a file may be cut at the disk's end, as some writers do; its bitmap may not.
            let used = self.footer.disk_bytes - u64::from(*block) * u64::from(header.block_bytes);
            let used = used.min(u64::from(header.block_bytes));
            let limit = if self.access == Access::ReadWrite { data_at + used } else { data_at };
            if limit > self.length || bitmap_at < front {
                let why = format!(
                    "block {block} would stand at {bitmap_at}, which the file of {} bytes does not hold",
                    self.length
                );
                return Err(self.damaged(field, entry_at, why));
            }
            taken.push((bitmap_at - front, data_at + used, Some(*block)));
        }
        taken.sort_unstable();
        for pair in taken.windows(2) {
            if pair[0].1 > pair[1].0 {
                let name = |block: Option<u32>| block.map_or("the tables".to_owned(), |block| format!("block {block}"));
                let block = pair[1].2.or(pair[0].2).unwrap_or(0);
                let why = format!("{} at {} lies upon {}", name(pair[1].2), pair[1].0, name(pair[0].2));
                return Err(self.damaged("block allocation table entry", table_at + u64::from(block) * 4, why));
            }
        }
        Ok(())
    }

    fn bitmap(&self, at: u64, bytes: u64) -> Result<Bitmap, VhdError> {
        let mut bitmap = vec![0; bytes as usize];
        self.storage.read_exact_at(&mut bitmap, at).map_err(self.io("read a sector bitmap"))?;
        Ok(Bitmap::from_bytes(bitmap))
    }

    /// Reads what is where.
    pub(crate) fn sparse(&self, header: DynamicHeader, parent: Option<Arc<Vhd>>) -> Result<Sparse, VhdError> {
        let differencing = self.footer.disk_type == DiskType::Differencing;
        let count = header.blocks(self.footer.disk_bytes);
        let live = Live::find(self.storage, self.footer.live_at, count, self.length)
            .map_err(self.io("read the live region"))?;
        let published = self.table(&header, header.table_offset, count, ABSENT)?;
        self.check_places(&header, live, header.table_offset, &published)?;
        let mut map = Map {
            end: if self.has_last_footer {
                self.length - FOOTER_BYTES as u64
            } else {
                self.length.next_multiple_of(SECTOR)
            },
            ..Map::default()
        };
        let bitmap_bytes = header.bitmap_bytes();
        for (block, sector) in published {
            let bitmap = if differencing {
                Some(self.bitmap(u64::from(sector) * SECTOR, bitmap_bytes)?)
            } else {
                // A block that is there is there whole; writers do not agree about its bitmap.
                None
            };
            map.blocks.insert(block, Block { sector, bitmap, published: true });
        }
        if let Some(live) = live {
            let epoch = live.epoch(self.storage).map_err(self.io("read the live region"))?;
            if epoch != Epoch::UNKNOWN && epoch == self.epoch {
                self.take_live(&header, live, &mut map)?;
            } else if self.access == Access::ReadWrite {
                self.renew_live(&header, live, count, &map).map_err(self.io("renew the live region"))?;
            }
        }
        Ok(Sparse { header, differencing, parent, live, map: RwLock::new(map), flushing: Mutex::new(()) })
    }

    /// Lets what was written since the last flush count.
    fn take_live(&self, header: &DynamicHeader, live: Live, map: &mut Map) -> Result<(), VhdError> {
        let entries = self.table(header, live.table_at(), header.blocks(self.footer.disk_bytes), 0)?;
        self.check_places(header, Some(live), live.table_at(), &entries)?;
        for (number, sector) in entries {
            let before = map.blocks.get(&number);
            if let Some(before) = before.filter(|before| before.sector != sector) {
                let why = format!("block {number} stands at sector {} in the table", before.sector);
                return Err(self.damaged("live table entry", live.table_at() + u64::from(number) * 4, why));
            }
            let bitmap = match self.footer.disk_type {
                DiskType::Differencing => {
                    let at = u64::from(sector) * SECTOR - header.bitmap_bytes();
                    Some(self.bitmap(at, header.bitmap_bytes())?)
                }
                _ => None,
            };
            let block = Block { sector, bitmap, published: before.is_some() };
            if before.is_none_or(|before| before.bitmap != block.bitmap) {
                map.dirty.insert(number);
            }
            map.blocks.insert(number, block);
        }
        // Blocks that only the format's table knows are another writer's.
        Ok(())
    }

    /// Makes the live state what the format says, for this epoch.
    fn renew_live(&self, header: &DynamicHeader, live: Live, count: u32, map: &Map) -> std::io::Result<()> {
        live.set_epoch(self.storage, Epoch::UNKNOWN)?;
        self.storage.clear(live.table_at(), u64::from(count) * 4)?;
        for (number, block) in &map.blocks {
            if let Some(bitmap) = &block.bitmap {
                let at = u64::from(block.sector) * SECTOR - header.bitmap_bytes();
                self.storage.write_all_at(bitmap.bytes(), at)?;
            }
            live.set_entry(self.storage, *number, block.sector)?;
        }
        live.set_epoch(self.storage, self.epoch)
    }
}

impl Sparse {
    pub(crate) fn block_bytes(&self) -> u64 {
        u64::from(self.header.block_bytes)
    }

    // A panic while a lock was held cannot leave the map behind the file: it changes last. So poison means nothing.
    pub(crate) fn map(&self) -> RwLockReadGuard<'_, Map> {
        self.map.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn map_mut(&self) -> RwLockWriteGuard<'_, Map> {
        self.map.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The run of equal kind that starts at byte `at` of the disk, no longer than `limit` and within one block.
    pub(crate) fn run(&self, map: &Map, at: u64, limit: u64) -> (Run, u64) {
        let within = at % self.block_bytes();
        let limit = limit.min(self.block_bytes() - within);
        let Some(block) = map.blocks.get(&((at / self.block_bytes()) as u32)) else { return (Run::Below, limit) };
        let position = self.data_at(block.sector) + within;
        let Some(bitmap) = &block.bitmap else { return (Run::Own(position), limit) };
        let (first, last) = (within / SECTOR, (within + limit - 1) / SECTOR);
        let (own, sectors) = bitmap.run(first, last - first + 1);
        let bytes = limit.min((first + sectors) * SECTOR - within);
        (if own { Run::Own(position) } else { Run::Below }, bytes)
    }

    /// Where the data of a block stands whose bitmap stands at `sector`.
    pub(crate) fn data_at(&self, sector: u32) -> u64 {
        u64::from(sector) * SECTOR + self.header.bitmap_bytes()
    }
}
