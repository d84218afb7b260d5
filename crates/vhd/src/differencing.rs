//! Making a differencing disk: a few sectors and an empty block table, whatever the size of the parent.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::VhdError;
use crate::footer::{DiskType, FOOTER_BYTES, Footer};
use crate::header::{ABSENT, BLOCK_BYTES, DynamicHeader, HEADER_BYTES, ParentLocator};
use crate::vhd::Vhd;

/// What a new differencing disk is made with, besides its parent.
#[derive(Clone, Debug)]
pub struct DifferencingOptions {
    /// The disk's own identity.
    pub unique_id: [u8; 16],
    /// Seconds since 2000-01-01, see [`crate::seconds_since_2000`].
    pub timestamp: u32,
}

/// Creates the file `path` as an empty differencing disk over `parent`. Fails if the file exists.
///
/// The file is complete when this returns, though not flushed: a disk that is lost in a power cut has no writes yet.
///
/// # Errors
/// [`VhdError::Io`] when the file exists or cannot be written; nothing is left behind then.
pub fn create_differencing(path: &Path, parent: &Vhd, options: &DifferencingOptions) -> Result<(), VhdError> {
    let image = layout(path, parent, options);
    let io = |action| move |source| VhdError::Io { path: path.to_owned(), action, source };
    let file = OpenOptions::new().write(true).create_new(true).open(path).map_err(io("create"))?;
    file.write_all_at(&image, 0).map_err(|source| {
        // The half-written file must not be taken for a disk; the write error is the one worth telling.
        let _ = std::fs::remove_file(path);
        io("write")(source)
    })
}

fn layout(path: &Path, parent: &Vhd, options: &DifferencingOptions) -> Vec<u8> {
    let footer = Footer {
        data_offset: FOOTER_BYTES as u64,
        timestamp: options.timestamp,
        disk_bytes: parent.disk_bytes(),
        disk_type: DiskType::Differencing,
        unique_id: options.unique_id,
    };
    let mut image = vec![0; FOOTER_BYTES + HEADER_BYTES];
    let absolute = std::path::absolute(parent.path()).unwrap_or_else(|_| parent.path().to_owned());
    let own = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut locators = Vec::new();
    for (code, text) in [(*b"W2ru", relative(&own, &absolute)), (*b"W2ku", absolute)] {
        let data: Vec<u8> = text.to_string_lossy().encode_utf16().flat_map(u16::to_le_bytes).collect();
        let space = data.len().next_multiple_of(512);
        locators.push(ParentLocator {
            code,
            space: space as u32,
            length: data.len() as u32,
            offset: image.len() as u64,
        });
        image.extend_from_slice(&data);
        image.resize(image.len().next_multiple_of(512), 0);
    }
    let name = parent.path().file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let header = DynamicHeader {
        table_offset: image.len() as u64,
        table_entries: parent.disk_bytes().div_ceil(u64::from(BLOCK_BYTES)) as u32,
        block_bytes: BLOCK_BYTES,
        parent_id: parent.unique_id(),
        parent_timestamp: parent.timestamp(),
        parent_name: name,
        locators,
    };
    let table_bytes = (header.table_entries as usize * size_of_val(&ABSENT)).next_multiple_of(512);
    image.resize(image.len() + table_bytes, 0xff);
    image[..FOOTER_BYTES].copy_from_slice(&footer.encode());
    image[FOOTER_BYTES..FOOTER_BYTES + HEADER_BYTES].copy_from_slice(&header.encode());
    image.extend_from_slice(&footer.encode());
    image
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
