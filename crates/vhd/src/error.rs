//! What can be wrong with a VHD.

use std::io;
use std::path::PathBuf;

/// Why a VHD cannot be opened, created, read or written.
#[derive(Debug, thiserror::Error)]
pub enum VhdError {
    /// The operating system refused.
    #[error("{path}: cannot {action}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The file is no VHD at all.
    #[error("{path}: not a VHD: {why}", path = path.display())]
    NotVhd {
        /// The file.
        path: PathBuf,
        /// What is missing.
        why: String,
    },
    /// A field has a value that cannot be right.
    #[error("{path}: damaged VHD: {field} at byte {offset}: {why}", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// Where it stands.
        offset: u64,
        /// What is wrong with it.
        why: String,
    },
    /// The parent is not the disk that the child was made over.
    #[error("{path}: wrong parent: {why}", path = path.display())]
    WrongParent {
        /// The child.
        path: PathBuf,
        /// What differs.
        why: String,
    },
    /// A request outside the disk, or not on sector boundaries where it has to be.
    #[error("{path}: {bytes} bytes at {offset} are not within the disk of {disk_bytes} bytes", path = path.display())]
    OutOfRange {
        /// The file.
        path: PathBuf,
        /// Where the request starts.
        offset: u64,
        /// How long it is.
        bytes: u64,
        /// How long the disk is.
        disk_bytes: u64,
    },
    /// Another process writes to the disk.
    #[error("{path}: another process has it open for writing; stop that first", path = path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The parent's file cannot be found.
    #[error("{path}: its parent cannot be found; tried {tried}", path = path.display())]
    NoParent {
        /// The child.
        path: PathBuf,
        /// Where it was looked for, and what was found there.
        tried: String,
    },
    /// What was asked for cannot be made in this format.
    #[error("{path}: {why}", path = path.display())]
    Unsuitable {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// A write to a disk that is open for reading only.
    #[error("{path}: open for reading only", path = path.display())]
    ReadOnly {
        /// The file.
        path: PathBuf,
    },
}

impl VhdError {
    /// The system's error code, where there is one.
    pub fn os_error(&self) -> Option<i32> {
        match self {
            VhdError::Io { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}
