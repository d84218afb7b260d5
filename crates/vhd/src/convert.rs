//! Copying a disk into another kind of file: streaming, zeros left out.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::SECTOR;
use crate::create::{Blank, CreateOptions, check_size, dynamic, fixed_footer};
use crate::error::VhdError;
use crate::header::BLOCK_BYTES;
use crate::sparse::DATA_ALIGNMENT;
use crate::storage::Storage;
use crate::vhd::{Holder, Vhd};

/// What is copied.
#[derive(Debug)]
pub enum Source {
    /// A disk with all its parents.
    Vhd(Arc<Vhd>),
    /// A file that is the disk, byte for byte, and its length.
    Raw(File, u64),
}

/// What it becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A fixed VHD.
    Fixed,
    /// A dynamic VHD.
    Dynamic,
    /// The disk, byte for byte.
    Raw,
}

/// How far copying is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the disk that are done.
    pub done: u64,
    /// Bytes of the disk.
    pub total: u64,
    /// Bytes that were not zero and had to be written.
    pub written: u64,
}

impl Source {
    /// Bytes of the disk: whole sectors, so that the last one of a raw file may have to be filled up.
    pub fn disk_bytes(&self) -> u64 {
        match self {
            Source::Vhd(vhd) => vhd.disk_bytes(),
            Source::Raw(_, length) => length.next_multiple_of(SECTOR),
        }
    }

    /// Whether a range is known to be zeros, and how long, at most `limit`, that range or its opposite is.
    fn is_hole(&self, at: u64, limit: u64) -> (bool, u64) {
        match self {
            Source::Vhd(vhd) => {
                let (holder, bytes) = vhd.extent(at, limit);
                (holder == Holder::Nobody, bytes)
            }
            Source::Raw(file, length) if at < *length => file.is_hole(at, limit.min(length - at)),
            Source::Raw(..) => (true, limit),
        }
    }

    fn read(&self, buffer: &mut [u8], at: u64, name: &Path) -> Result<(), VhdError> {
        match self {
            Source::Vhd(vhd) => vhd.read_at(buffer, at),
            Source::Raw(file, length) => {
                let (inside, outside) = buffer.split_at_mut((length - at).min(buffer.len() as u64) as usize);
                outside.fill(0);
                Storage::read_exact_at(file, inside, at).map_err(io_error(name, "read the source of"))
            }
        }
    }
}

/// Writes the disk `source` to the empty file `file` as a `target`. `name` stands in messages; `progress` is asked
/// whether to go on.
///
/// # Errors
/// [`VhdError::Unsuitable`] when the format cannot hold the disk, [`VhdError::Io`], also
/// ([`io::ErrorKind::Interrupted`]) when `progress` says no. The file is of no use then.
pub fn convert(
    source: &Source,
    target: Target,
    file: &dyn Storage,
    name: &Path,
    options: &CreateOptions,
    progress: &mut dyn FnMut(Progress) -> bool,
) -> Result<(), VhdError> {
    let total = source.disk_bytes();
    if target != Target::Raw {
        check_size(name, total)?;
    }
    let mut output = match target {
        Target::Dynamic => Output::Dynamic(Box::new(Blocks::new(total, options))),
        Target::Fixed | Target::Raw => Output::Flat,
    };
    let mut buffer = vec![0; BLOCK_BYTES as usize];
    let (mut at, mut written) = (0, 0);
    while at < total {
        let block_end = (at + 1).next_multiple_of(u64::from(BLOCK_BYTES)).min(total);
        let mut here = at;
        while here < block_end {
            let (hole, bytes) = source.is_hole(here, block_end - here);
            if !hole {
                let part = &mut buffer[..bytes as usize];
                source.read(part, here, name)?;
                written += output.write(file, part, here).map_err(io_error(name, "write"))?;
            }
            here += bytes;
        }
        at = block_end;
        if !progress(Progress { done: at, total, written }) {
            return Err(io_error(name, "write")(io::ErrorKind::Interrupted.into()));
        }
    }
    let finish = || match &output {
        Output::Dynamic(blocks) => blocks.finish(file),
        Output::Flat if target == Target::Raw => file.resize(total),
        Output::Flat => file.write_all_at(&fixed_footer(total, options).encode(), total),
    };
    finish().and_then(|()| file.sync()).map_err(io_error(name, "write"))
}

fn io_error(name: &Path, action: &'static str) -> impl Fn(io::Error) -> VhdError {
    let path = name.to_owned();
    move |source| VhdError::Io { path: path.clone(), action, source }
}

enum Output {
    Flat,
    Dynamic(Box<Blocks>),
}

impl Output {
    /// Writes what is not zero; returns how much that was.
    fn write(&mut self, file: &dyn Storage, data: &[u8], at: u64) -> io::Result<u64> {
        let (mut written, mut done) = (0, 0);
        // In pages: a file system does not keep smaller holes.
        while done < data.len() {
            let zero = |page: &[u8]| is_zero(page);
            let rest = &data[done..];
            let pages = || rest.chunks(DATA_ALIGNMENT as usize);
            let skip: usize = pages().take_while(|page| zero(page)).map(<[u8]>::len).sum();
            let keep: usize =
                rest[skip..].chunks(DATA_ALIGNMENT as usize).take_while(|page| !zero(page)).map(<[u8]>::len).sum();
            if keep > 0 {
                let part = &rest[skip..skip + keep];
                let offset = at + (done + skip) as u64;
                let position = match self {
                    Output::Flat => offset,
                    Output::Dynamic(blocks) => blocks.place(file, offset)?,
                };
                file.write_all_at(part, position)?;
                written += keep as u64;
            }
            done += skip + keep;
        }
        Ok(written)
    }
}

/// Whether all bytes are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}

/// A dynamic disk that is written once, from front to back.
struct Blocks {
    blank: Blank,
    /// The sector of each block's bitmap, where it is there.
    table: Vec<Option<u32>>,
    end: u64,
}

impl Blocks {
    fn new(disk_bytes: u64, options: &CreateOptions) -> Blocks {
        let blank = dynamic(disk_bytes, options);
        let end = blank.plain_end();
        Blocks { blank, table: vec![None; disk_bytes.div_ceil(u64::from(BLOCK_BYTES)) as usize], end }
    }

    /// Where byte `at` of the disk goes.
    fn place(&mut self, file: &dyn Storage, at: u64) -> io::Result<u64> {
        let block_bytes = u64::from(BLOCK_BYTES);
        let bitmap_bytes = block_bytes / SECTOR / 8;
        let entry = &mut self.table[(at / block_bytes) as usize];
        let sector = match *entry {
            Some(sector) => sector,
            None => {
                let data_at = (self.end + bitmap_bytes).next_multiple_of(DATA_ALIGNMENT);
                let sector =
                    u32::try_from((data_at - bitmap_bytes) / SECTOR).map_err(|_| io::ErrorKind::FileTooLarge)?;
                file.write_all_at(&vec![0xff; bitmap_bytes as usize], data_at - bitmap_bytes)?;
                self.end = data_at + block_bytes;
                *entry.insert(sector)
            }
        };
        Ok(u64::from(sector) * SECTOR + bitmap_bytes + at % block_bytes)
    }

    fn finish(&self, file: &dyn Storage) -> io::Result<()> {
        self.blank.write_plain(file, &self.table, self.end)
    }
}
