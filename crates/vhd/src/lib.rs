//! Virtual hard disks in Microsoft's VHD format (Virtual Hard Disk Image Format Specification, version 1.0, 2006):
//! fixed, dynamic and differencing ones, to create, read, write, check, repair and convert, in chains of any depth.
//!
//! Every size and offset in a file is checked before it is used; a damaged or hostile file gives a [`VhdError`] that
//! names the field and the byte. What a write acknowledges is in the file (though perhaps still in the kernel's cache):
//! killing the process that writes loses nothing, and [`Vhd::flush`] makes it survive a power cut. Until then each
//! sector is, whatever happens, either old or new; `live.rs` says how.
//!
//! ```
//! use mayfly_vhd::{Access, CreateOptions, Vhd, create_differencing, create_dynamic, open_chain, seconds_since_2000};
//! # let folder = tempfile::tempdir()?;
//! # let (base, child) = (folder.path().join("base.vhd"), folder.path().join("child.vhd"));
//! let mut options = CreateOptions { unique_id: [1; 16], timestamp: seconds_since_2000(), durable: false };
//! create_dynamic(&base, 1 << 30, &options)?;
//! options.unique_id = [2; 16];
//! create_differencing(&child, &*open_chain(&base, Access::ReadOnly)?, &options)?;
//! let disk = open_chain(&child, Access::ReadWrite)?;
//! disk.write_at(&[7; 4096], 1 << 20)?;
//! disk.flush()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod bitmap;
mod chain;
mod check;
mod convert;
mod create;
mod error;
mod footer;
mod header;
mod live;
mod sparse;
mod storage;
mod vhd;
mod write;

pub use chain::{differencing_header, open_chain, parent_candidates};
pub use check::{Finding, check, repair};
pub use convert::{Progress, Source, Target, convert};
pub use create::{CreateOptions, create_differencing, create_dynamic, create_fixed, fixed_footer};
pub use error::VhdError;
pub use footer::{DISK_BYTES_MAX, DiskType, Footer, Geometry, seconds_since_2000};
pub use header::{BLOCK_BYTES, DynamicHeader, ParentLocator};
pub use live::Epoch;
pub use storage::{MemoryStorage, Storage};
pub use vhd::{Access, Holder, Segment, Vhd};

/// Bytes of a sector.
pub const SECTOR: u64 = 512;

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod disk_tests;
