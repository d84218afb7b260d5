//! Virtual hard disks in Microsoft's VHD format (Virtual Hard Disk Image Format Specification, version 1.0, 2006):
//! fixed and dynamic ones to read, differencing ones to create, read and write over a parent that is never written.
//!
//! Every size and offset in a file is checked before it is used; a damaged or hostile file gives a [`VhdError`] that
//! names the field. What a write acknowledges is in the file (though perhaps still in the kernel's cache): killing
//! the process that writes loses nothing, and [`Vhd::flush`] makes it survive a power cut.

mod differencing;
mod error;
mod footer;
mod header;
mod vhd;

pub use differencing::{DifferencingOptions, create_differencing};
pub use error::VhdError;
pub use footer::{DiskType, Footer, Geometry, seconds_since_2000};
pub use header::{BLOCK_BYTES, DynamicHeader};
pub use vhd::{Access, Vhd};

/// Bytes of a sector.
pub const SECTOR: u64 = 512;

#[cfg(test)]
mod differencing_tests;
