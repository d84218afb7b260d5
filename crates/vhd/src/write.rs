//! Writing. The order of the steps is what crash safety consists of; see [`crate::live`].

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use crate::SECTOR;
use crate::bitmap::Bitmap;
use crate::error::VhdError;
use crate::footer::{FOOTER_BYTES, seconds_since_2000, with_timestamp};
use crate::header::ABSENT;
use crate::live::Epoch;
use crate::sparse::{Block, DATA_ALIGNMENT, Map, Run, Sparse};
use crate::vhd::{Access, Content, Vhd};

/// What is to become of a range of sectors.
#[derive(Clone, Copy)]
enum Change<'a> {
    Data(&'a [u8]),
    Zeros(u64),
}

impl<'a> Change<'a> {
    fn bytes(self) -> u64 {
        match self {
            Change::Data(data) => data.len() as u64,
            Change::Zeros(bytes) => bytes,
        }
    }

    /// The first `bytes` of it, and the rest.
    fn split(self, bytes: u64) -> (Change<'a>, Change<'a>) {
        match self {
            Change::Data(data) => {
                let (first, rest) = data.split_at(bytes as usize);
                (Change::Data(first), Change::Data(rest))
            }
            Change::Zeros(all) => (Change::Zeros(bytes), Change::Zeros(all - bytes)),
        }
    }
}

impl Vhd {
    /// Writes whole sectors at byte `offset`. When this returns, killing the process loses nothing of it; after
    /// [`Vhd::flush`], a power cut neither.
    ///
    /// # Errors
    /// [`VhdError::ReadOnly`], [`VhdError::OutOfRange`] (also when not on sector boundaries) and [`VhdError::Io`]. After
    /// an error each sector is either old or new.
    pub fn write_at(&self, data: &[u8], offset: u64) -> Result<(), VhdError> {
        self.change(Change::Data(data), offset)
    }

    /// Makes whole sectors zero, and frees their space where the system can.
    ///
    /// # Errors
    /// As [`Vhd::write_at`].
    pub fn write_zeros(&self, bytes: u64, offset: u64) -> Result<(), VhdError> {
        self.change(Change::Zeros(bytes), offset)
    }

    /// Frees the space of whole sectors whose content does not matter any more. The disk's own sectors become zero,
    /// others stay the parent's.
    ///
    /// # Errors
    /// As [`Vhd::write_at`].
    pub fn trim(&self, bytes: u64, offset: u64) -> Result<(), VhdError> {
        self.check_writable(bytes, offset)?;
        self.stamp()?;
        let Content::Sparse(sparse) = &self.content else { return self.clear(offset, bytes) };
        let map = sparse.map();
        let mut at = offset;
        while at < offset + bytes {
            let (run, length) = sparse.run(&map, at, offset + bytes - at);
            if let Run::Own(position) = run {
                self.clear(position, length)?;
            }
            at += length;
        }
        Ok(())
    }

    /// Makes everything written so far survive a power cut: syncs the data, then writes the table entries and bitmaps
    /// that make it visible to the format, and syncs those.
    ///
    /// # Errors
    /// [`VhdError::Io`] when the system cannot; what was written before may be lost by a power cut then.
    pub fn flush(&self) -> Result<(), VhdError> {
        if self.access == Access::ReadOnly {
            return Ok(());
        }
        let Content::Sparse(sparse) = &self.content else { return self.sync() };
        let _turn = sparse.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        // Only what is there before the sync may become visible after it.
        let dirty = std::mem::take(&mut sparse.map_mut().dirty);
        let published = self.publish(sparse, &dirty.iter().copied().collect::<Vec<_>>());
        if published.is_err() {
            sparse.map_mut().dirty.extend(dirty);
        }
        published
    }

    fn publish(&self, sparse: &Sparse, dirty: &[u32]) -> Result<(), VhdError> {
        let states: Vec<(u32, u32, bool, Option<Bitmap>)> = {
            let map = sparse.map();
            let state = |number: &u32| {
                let block = map.blocks.get(number)?;
                Some((*number, block.sector, block.published, block.bitmap.clone()))
            };
            dirty.iter().filter_map(state).collect()
        };
        self.sync()?;
        if states.is_empty() {
            return Ok(());
        }
        for (number, sector, published, bitmap) in &states {
            let bytes = match bitmap {
                Some(bitmap) => bitmap.bytes(),
                None if *published => continue,
                None => &vec![0xff; sparse.header.bitmap_bytes() as usize],
            };
            self.write_raw(bytes, u64::from(*sector) * SECTOR)?;
            if !published {
                self.write_raw(&sector.to_be_bytes(), sparse.header.table_offset + u64::from(*number) * 4)?;
            }
        }
        self.sync()?;
        let mut map = sparse.map_mut();
        for (number, ..) in &states {
            if let Some(block) = map.blocks.get_mut(number) {
                block.published = true;
            }
        }
        Ok(())
    }

    /// Syncs. After a failure the system may forget what it could not write and let the next one succeed, so from then on
    /// every one fails, and the live state, which counts on the page cache, is not trusted any more.
    fn sync(&self) -> Result<(), VhdError> {
        if self.unsynced.load(Ordering::Acquire) {
            let source = std::io::Error::other("an earlier flush failed, and what it had to write may be lost");
            return Err(VhdError::Io { path: self.path.clone(), action: "flush", source });
        }
        self.storage.sync().map_err(|source| {
            self.unsynced.store(true, Ordering::Release);
            if let Content::Sparse(sparse) = &self.content
                && let Some(live) = &sparse.live
            {
                // The error to tell is the first one.
                let _ = live.set_epoch(&*self.storage, Epoch::UNKNOWN);
            }
            self.io("flush")(source)
        })
    }

    fn check_writable(&self, bytes: u64, offset: u64) -> Result<(), VhdError> {
        self.check_range(bytes, offset)?;
        if !offset.is_multiple_of(SECTOR) || !bytes.is_multiple_of(SECTOR) {
            return Err(self.out_of_range(bytes, offset));
        }
        match self.access {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => Err(VhdError::ReadOnly { path: self.path.clone() }),
        }
    }

    fn change(&self, change: Change, offset: u64) -> Result<(), VhdError> {
        self.check_writable(change.bytes(), offset)?;
        if change.bytes() == 0 {
            return Ok(());
        }
        self.stamp()?;
        let Content::Sparse(sparse) = &self.content else { return self.put(change, offset) };
        let (mut change, mut at) = (change, offset);
        while change.bytes() > 0 {
            let here = (sparse.block_bytes() - at % sparse.block_bytes()).min(change.bytes());
            let (first, rest) = change.split(here);
            self.change_in_block(sparse, first, at)?;
            (change, at) = (rest, at + here);
        }
        Ok(())
    }

    fn change_in_block(&self, sparse: &Sparse, change: Change, at: u64) -> Result<(), VhdError> {
        {
            let map = sparse.map();
            match sparse.run(&map, at, change.bytes()) {
                (Run::Own(position), bytes) if bytes == change.bytes() => return self.put(change, position),
                (Run::Below, bytes)
                    if bytes == change.bytes()
                        && matches!(change, Change::Zeros(_))
                        && self.is_zero_below(sparse, at, bytes) =>
                {
                    return Ok(());
                }
                _ => {}
            }
        }
        let mut map = sparse.map_mut();
        let number = (at / sparse.block_bytes()) as u32;
        let place = map.blocks.get(&number).map(|block| block.sector);
        let sector = match place {
            Some(sector) => sector,
            None => self.allocate(sparse, &mut map, number)?,
        };
        let within = at % sparse.block_bytes();
        // Data first, then the bits that make it visible: a kill in between leaves the old sectors.
        self.put(change, sparse.data_at(sector) + within)?;
        self.show(sparse, &mut map, number, within / SECTOR, change.bytes() / SECTOR)
    }

    /// Whether what a run of absent sectors shows is known to be zeros.
    fn is_zero_below(&self, sparse: &Sparse, mut at: u64, bytes: u64) -> bool {
        let Some(parent) = &sparse.parent else { return true };
        let end = at + bytes;
        while at < end {
            match parent.extent(at, end - at) {
                (crate::vhd::Holder::Nobody, bytes) => at += bytes,
                _ => return false,
            }
        }
        true
    }

    /// Lets sectors count that have been written: in the live region; where there is none, in the format's own place,
    /// once the data cannot be lost any more.
    fn show(&self, sparse: &Sparse, map: &mut Map, number: u32, first: u64, count: u64) -> Result<(), VhdError> {
        let Some(block) = map.blocks.get_mut(&number) else { return Ok(()) };
        let bitmap_at = u64::from(block.sector) * SECTOR;
        let bitmap_bytes = sparse.header.bitmap_bytes();
        if let Some(bitmap) = &mut block.bitmap {
            let mut changed = bitmap.clone();
            let range = changed.set(first, count);
            let live_at = match sparse.live {
                Some(_) => bitmap_at - bitmap_bytes,
                None => {
                    self.sync()?;
                    bitmap_at
                }
            };
            self.write_raw(&changed.bytes()[range.clone()], live_at + range.start as u64)?;
            *bitmap = changed;
        }
        if sparse.live.is_some() {
            map.dirty.insert(number);
        }
        Ok(())
    }

    /// Gives a block a place at the end of the file. Each step leaves a file that opens and reads as before.
    fn allocate(&self, sparse: &Sparse, map: &mut Map, number: u32) -> Result<u32, VhdError> {
        let bitmap_bytes = sparse.header.bitmap_bytes();
        let bitmaps = bitmap_bytes * if sparse.live.is_some() { 2 } else { 1 };
        // Behind the old footer, where the file has never been written: it reads as zeros, also after a power cut.
        let data_at = (map.end + FOOTER_BYTES as u64 + bitmaps).next_multiple_of(DATA_ALIGNMENT);
        let end = data_at + sparse.block_bytes();
        let sector = u32::try_from((data_at - bitmap_bytes) / SECTOR).ok().filter(|sector| *sector != ABSENT);
        let sector = sector.ok_or_else(|| VhdError::Damaged {
            path: self.path.clone(),
            field: "block allocation table entry",
            offset: sparse.header.table_offset + u64::from(number) * 4,
            why: "the file has reached the 2 TiB that the format can address".to_owned(),
        })?;
        self.write_raw(self.current_footer(), end)?;
        let bitmap = if sparse.differencing { Some(Bitmap::clear(bitmap_bytes)) } else { None };
        match sparse.live {
            Some(live) => live.set_entry(&*self.storage, number, sector).map_err(self.io("write"))?,
            None => {
                if bitmap.is_none() {
                    self.write_raw(&vec![0xff; bitmap_bytes as usize], data_at - bitmap_bytes)?;
                }
                self.sync()?;
                self.write_raw(&sector.to_be_bytes(), sparse.header.table_offset + u64::from(number) * 4)?;
            }
        }
        map.blocks.insert(number, Block { sector, bitmap, published: sparse.live.is_none() });
        map.end = end;
        if sparse.live.is_some() {
            map.dirty.insert(number);
        }
        Ok(sector)
    }

    /// Has children notice that their parent was changed: the first write sets a new time stamp.
    fn stamp(&self) -> Result<(), VhdError> {
        if self.stamped.get().is_some() {
            return Ok(());
        }
        let now = seconds_since_2000().max(self.footer.timestamp.saturating_add(1));
        let footer = with_timestamp(self.footer_bytes, now);
        match &self.content {
            Content::Fixed => {
                let at = self.storage.size().map_err(self.io("inspect"))? - FOOTER_BYTES as u64;
                self.write_raw(self.stamped.get_or_init(|| footer), at)
            }
            Content::Sparse(sparse) => {
                let map = sparse.map_mut();
                let footer = self.stamped.get_or_init(|| footer);
                self.write_raw(footer, map.end)?;
                self.write_raw(footer, 0)
            }
        }
    }

    /// The footer as it has to stand at the end now.
    fn current_footer(&self) -> &[u8; FOOTER_BYTES] {
        self.stamped.get().unwrap_or(&self.footer_bytes)
    }

    /// Puts back the footer at the end, which a crash has torn off.
    pub(crate) fn write_last_footer(&self) -> Result<(), VhdError> {
        match &self.content {
            Content::Fixed => Ok(()),
            Content::Sparse(sparse) => self.write_raw(&self.footer_bytes, sparse.map().end),
        }
    }

    fn put(&self, change: Change, at: u64) -> Result<(), VhdError> {
        match change {
            Change::Data(data) => self.write_raw(data, at),
            Change::Zeros(bytes) => self.clear(at, bytes),
        }
    }

    fn clear(&self, at: u64, bytes: u64) -> Result<(), VhdError> {
        self.storage.clear(at, bytes).map_err(self.io("free space"))
    }

    fn write_raw(&self, data: &[u8], at: u64) -> Result<(), VhdError> {
        self.storage.write_all_at(data, at).map_err(self.io("write"))
    }
}
