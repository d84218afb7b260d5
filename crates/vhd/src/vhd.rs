//! An open disk: its bytes, and the parent below it where there is one.

use std::fs::{OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use crate::error::VhdError;
use crate::footer::{DiskType, FOOTER_BYTES, Footer};
use crate::header::DynamicHeader;
use crate::live::Epoch;
use crate::sparse::{Opening, Run, Sparse};
use crate::storage::Storage;

/// What an open disk is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    ReadOnly,
    /// Reading and writing.
    ReadWrite,
}

/// An open disk. It can be shared between threads.
#[derive(Debug)]
pub struct Vhd {
    pub(crate) path: PathBuf,
    pub(crate) storage: Box<dyn Storage>,
    pub(crate) footer: Footer,
    /// The footer as it stands in the file, with what this library does not know.
    pub(crate) footer_bytes: [u8; FOOTER_BYTES],
    pub(crate) access: Access,
    pub(crate) content: Content,
    /// The footer with the time stamp that the first write has set.
    pub(crate) stamped: OnceLock<[u8; FOOTER_BYTES]>,
    /// Whether a sync has failed.
    pub(crate) unsynced: AtomicBool,
}

#[derive(Debug)]
pub(crate) enum Content {
    Fixed,
    Sparse(Box<Sparse>),
}

/// A part of a disk, and where its bytes stand.
#[derive(Clone, Copy, Debug)]
pub enum Segment<'a> {
    /// So many zeros.
    Zero(u64),
    /// `bytes` bytes from byte `at` of `storage`.
    Data {
        /// What holds them.
        storage: &'a dyn Storage,
        /// From where.
        at: u64,
        /// How many.
        bytes: u64,
    },
}

impl Segment<'_> {
    /// Bytes of the disk that it covers.
    pub fn bytes(&self) -> u64 {
        match self {
            Segment::Zero(bytes) | Segment::Data { bytes, .. } => *bytes,
        }
    }
}

/// Which disk of a chain holds a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// None: it reads as zeros.
    Nobody,
    /// The disk itself (0), its parent (1), and so on.
    Ancestor(u32),
}

impl Vhd {
    /// Opens a file. `parent` is the disk below a differencing one, already open, so that many children share it. For
    /// writing, the file is locked: a second writer is refused.
    ///
    /// # Errors
    /// [`VhdError::NotVhd`] and [`VhdError::Damaged`] say what is wrong with the file, [`VhdError::WrongParent`] that
    /// the parent is missing, superfluous or another disk, [`VhdError::InUse`] that somebody else writes.
    pub fn open(path: &Path, access: Access, parent: Option<Arc<Vhd>>) -> Result<Vhd, VhdError> {
        let io = |action| move |source| VhdError::Io { path: path.to_owned(), action, source };
        let file = OpenOptions::new().read(true).write(access == Access::ReadWrite).open(path).map_err(io("open"))?;
        if access == Access::ReadWrite {
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => return Err(VhdError::InUse { path: path.to_owned() }),
                Err(TryLockError::Error(source)) => return Err(io("lock")(source)),
                Ok(()) => {}
            }
        }
        Vhd::open_storage(path, Box::new(file), access, parent, Epoch::current())
    }

    /// Opens what `storage` holds; `name` stands in messages.
    ///
    /// # Errors
    /// As [`Vhd::open`].
    pub fn open_storage(
        name: &Path,
        storage: Box<dyn Storage>,
        access: Access,
        parent: Option<Arc<Vhd>>,
        epoch: Epoch,
    ) -> Result<Vhd, VhdError> {
        let io = |action| move |source| VhdError::Io { path: name.to_owned(), action, source };
        let length = storage.size().map_err(io("inspect"))?;
        let (footer, footer_bytes, has_last_footer) = read_footer(&*storage, length, name)?;
        let opening = Opening { name, storage: &*storage, footer: &footer, length, has_last_footer, access, epoch };
        let content = if footer.disk_type == DiskType::Fixed {
            open_fixed(&opening, parent.as_deref())?
        } else {
            let header = opening.header()?;
            check_parent(&footer, &header, name, parent.as_deref())?;
            Content::Sparse(Box::new(opening.sparse(header, parent)?))
        };
        let vhd = Vhd {
            path: name.to_owned(),
            storage,
            footer,
            footer_bytes,
            access,
            content,
            stamped: OnceLock::new(),
            unsynced: AtomicBool::new(false),
        };
        if access == Access::ReadWrite && !has_last_footer {
            vhd.write_last_footer()?;
        }
        Ok(vhd)
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

    /// The footer's fields.
    pub fn footer(&self) -> &Footer {
        &self.footer
    }

    /// The dynamic header's fields; a fixed disk has none.
    pub fn header(&self) -> Option<&DynamicHeader> {
        match &self.content {
            Content::Fixed => None,
            Content::Sparse(sparse) => Some(&sparse.header),
        }
    }

    /// The disk below.
    pub fn parent(&self) -> Option<&Arc<Vhd>> {
        match &self.content {
            Content::Fixed => None,
            Content::Sparse(sparse) => sparse.parent.as_ref(),
        }
    }

    /// Blocks that are there, and those with writes that were never flushed.
    pub fn blocks(&self) -> (usize, usize) {
        match &self.content {
            Content::Fixed => (0, 0),
            Content::Sparse(sparse) => {
                let map = sparse.map();
                (map.blocks.len(), map.dirty.len())
            }
        }
    }

    /// Sectors that the disk holds itself.
    pub fn own_sectors(&self) -> u64 {
        let Content::Sparse(sparse) = &self.content else { return self.disk_bytes() / crate::SECTOR };
        let whole = sparse.block_bytes() / crate::SECTOR;
        sparse.map().blocks.values().map(|block| block.bitmap.as_ref().map_or(whole, |bitmap| bitmap.count())).sum()
    }

    /// Fills `buffer` from byte `offset` of the disk.
    ///
    /// # Errors
    /// [`VhdError::OutOfRange`] and [`VhdError::Io`].
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), VhdError> {
        let mut segments = Vec::new();
        self.resolve(offset, buffer.len() as u64, &mut segments)?;
        let mut done = 0;
        for segment in segments {
            let part = &mut buffer[done..done + segment.bytes() as usize];
            match segment {
                Segment::Zero(_) => part.fill(0),
                Segment::Data { storage, at, .. } => storage.read_exact_at(part, at).map_err(self.io("read"))?,
            }
            done += segment.bytes() as usize;
        }
        Ok(())
    }

    /// Finds out where the bytes of a range stand, through the whole chain, and appends that to `segments`. The places
    /// stay right while the disk is open, also when it is written to; a range that was the parent's may become the
    /// disk's own.
    ///
    /// # Errors
    /// [`VhdError::OutOfRange`].
    pub fn resolve<'a>(&'a self, offset: u64, bytes: u64, segments: &mut Vec<Segment<'a>>) -> Result<(), VhdError> {
        self.check_range(bytes, offset)?;
        self.resolve_within(offset, bytes, segments);
        Ok(())
    }

    fn resolve_within<'a>(&'a self, mut at: u64, bytes: u64, segments: &mut Vec<Segment<'a>>) {
        let end = at + bytes;
        // A child may be longer than its parent; what is past the parent's end is zero.
        let here = end.min(self.disk_bytes());
        match &self.content {
            Content::Fixed if at < here => {
                push(segments, Segment::Data { storage: &*self.storage, at, bytes: here - at });
                at = here;
            }
            Content::Fixed => {}
            Content::Sparse(sparse) => {
                let map = sparse.map();
                while at < here {
                    let (run, bytes) = sparse.run(&map, at, here - at);
                    match (run, &sparse.parent) {
                        (Run::Own(position), _) => {
                            push(segments, Segment::Data { storage: &*self.storage, at: position, bytes });
                        }
                        (Run::Below, Some(parent)) => parent.resolve_within(at, bytes, segments),
                        (Run::Below, None) => push(segments, Segment::Zero(bytes)),
                    }
                    at += bytes;
                }
            }
        }
        if at < end {
            push(segments, Segment::Zero(end - at));
        }
    }

    /// Who holds byte `offset`, and for how many bytes, at most `limit`, that is so.
    pub fn extent(&self, offset: u64, limit: u64) -> (Holder, u64) {
        self.extent_at_depth(offset, limit, 0)
    }

    fn extent_at_depth(&self, offset: u64, limit: u64, depth: u32) -> (Holder, u64) {
        let Some(left) = self.disk_bytes().checked_sub(offset).filter(|left| *left > 0) else {
            return (Holder::Nobody, limit);
        };
        let limit = limit.min(left);
        let (own, at, bytes, parent) = match &self.content {
            Content::Fixed => (true, offset, limit, None),
            Content::Sparse(sparse) => {
                let (run, bytes) = sparse.run(&sparse.map(), offset, limit);
                match run {
                    Run::Own(position) => (true, position, bytes, None),
                    Run::Below => (false, 0, bytes, sparse.parent.as_ref()),
                }
            }
        };
        match (own, parent) {
            (true, _) => match self.storage.is_hole(at, bytes) {
                (true, bytes) => (Holder::Nobody, bytes),
                (false, bytes) => (Holder::Ancestor(depth), bytes),
            },
            (false, Some(parent)) => parent.extent_at_depth(offset, bytes, depth + 1),
            (false, None) => (Holder::Nobody, bytes),
        }
    }

    /// Whether any sector of a range is the disk's own, zeros included, and not its parent's.
    pub fn holds_any(&self, mut offset: u64, bytes: u64) -> bool {
        let Content::Sparse(sparse) = &self.content else { return true };
        let (map, end) = (sparse.map(), offset.saturating_add(bytes).min(self.disk_bytes()));
        while offset < end {
            match sparse.run(&map, offset, end - offset) {
                (Run::Own(_), _) => return true,
                (Run::Below, bytes) => offset += bytes,
            }
        }
        false
    }

    pub(crate) fn check_range(&self, bytes: u64, offset: u64) -> Result<(), VhdError> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.disk_bytes() => Ok(()),
            _ => Err(self.out_of_range(bytes, offset)),
        }
    }

    pub(crate) fn out_of_range(&self, bytes: u64, offset: u64) -> VhdError {
        VhdError::OutOfRange { path: self.path.clone(), offset, bytes, disk_bytes: self.disk_bytes() }
    }

    pub(crate) fn io(&self, action: &'static str) -> impl FnOnce(std::io::Error) -> VhdError + '_ {
        move |source| VhdError::Io { path: self.path.clone(), action, source }
    }
}

/// Appends a segment, joined to the one before where it continues that.
fn push<'a>(segments: &mut Vec<Segment<'a>>, next: Segment<'a>) {
    match (segments.last_mut(), next) {
        (Some(Segment::Zero(before)), Segment::Zero(bytes)) => *before += bytes,
        (Some(Segment::Data { storage: before, at: start, bytes: length }), Segment::Data { storage, at, bytes })
            if std::ptr::addr_eq(&raw const **before, storage) && *start + *length == at =>
        {
            *length += bytes;
        }
        _ => segments.push(next),
    }
}

/// The footer at the end; where a crash has torn that, the copy at the start of a sparse disk. Says whether it is the
/// former.
pub(crate) fn read_footer(
    storage: &dyn Storage,
    length: u64,
    path: &Path,
) -> Result<(Footer, [u8; FOOTER_BYTES], bool), VhdError> {
    if length < FOOTER_BYTES as u64 {
        let why = format!("{length} bytes are fewer than the 512 of a footer");
        return Err(VhdError::NotVhd { path: path.to_owned(), why });
    }
    let at = |offset| {
        let mut bytes = [0; FOOTER_BYTES];
        storage.read_exact_at(&mut bytes, offset).map_err(|source| VhdError::Io {
            path: path.to_owned(),
            action: "read the footer",
            source,
        })?;
        Footer::decode(&bytes, offset, path).map(|footer| (footer, bytes))
    };
    match at(length - FOOTER_BYTES as u64) {
        Ok((footer, bytes)) => Ok((footer, bytes, true)),
        Err(error) => {
            let copy = at(0).ok().filter(|(footer, _)| footer.disk_type != DiskType::Fixed);
            copy.map(|(footer, bytes)| (footer, bytes, false)).ok_or(error)
        }
    }
}

fn open_fixed(opening: &Opening, parent: Option<&Vhd>) -> Result<Content, VhdError> {
    if parent.is_some() {
        return Err(VhdError::WrongParent { path: opening.name.to_owned(), why: "a fixed disk has none".to_owned() });
    }
    let data = opening.length - FOOTER_BYTES as u64;
    let disk_bytes = opening.footer.disk_bytes;
    if data < disk_bytes {
        let why = format!("the footer says {disk_bytes} bytes, the file holds {data}: it is truncated");
        return Err(opening.damaged("current size", data + 48, why));
    }
    Ok(Content::Fixed)
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
        (DiskType::Differencing, Some(parent)) if parent.timestamp() != header.parent_timestamp => wrong(format!(
            "{} was written to after this disk was made over it (time stamp {}, not {})",
            parent.path().display(),
            parent.timestamp(),
            header.parent_timestamp
        )),
        (DiskType::Dynamic, Some(_)) => wrong("a dynamic disk has none".to_owned()),
        _ => Ok(()),
    }
}
