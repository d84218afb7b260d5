//! Opening a disk with all its parents, which the files themselves name.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::VhdError;
use crate::footer::DiskType;
use crate::header::DynamicHeader;
use crate::live::Epoch;
use crate::sparse::Opening;
use crate::storage::Storage;
use crate::vhd::{Access, Vhd, read_footer};

/// More disks upon each other than anybody has; a circle of parents ends here.
const DEPTH_MAX: usize = 128;

/// Opens a disk and, where it is a differencing one, its parents, for reading all of them.
///
/// A parent is looked for where the child's locators say (relative, then absolute), then under its name in the child's
/// folder.
///
/// # Errors
/// As [`Vhd::open`]; [`VhdError::NoParent`] names the child whose parent is missing and where it was looked for.
pub fn open_chain(path: &Path, access: Access) -> Result<Arc<Vhd>, VhdError> {
    let mut names = vec![path.to_owned()];
    loop {
        let last = &names[names.len() - 1];
        let Some(header) = differencing_header(last)? else { break };
        if names.len() == DEPTH_MAX {
            let why = format!("there are {DEPTH_MAX} parents below it, or they form a circle");
            return Err(VhdError::WrongParent { path: path.to_owned(), why });
        }
        let parent = find_parent(last, &header)?;
        names.push(parent);
    }
    let mut disk: Option<Arc<Vhd>> = None;
    for (index, name) in names.iter().enumerate().rev() {
        let access = if index == 0 { access } else { Access::ReadOnly };
        disk = Some(Arc::new(Vhd::open(name, access, disk)?));
    }
    disk.ok_or_else(|| VhdError::NotVhd { path: path.to_owned(), why: "there is no such disk".to_owned() })
}

/// The dynamic header of a differencing disk; `None` for disks of other kinds.
///
/// # Errors
/// As [`Vhd::open`], when it is no VHD or the header is damaged.
pub fn differencing_header(path: &Path) -> Result<Option<DynamicHeader>, VhdError> {
    let io = |action| move |source| VhdError::Io { path: path.to_owned(), action, source };
    let file = File::open(path).map_err(io("open"))?;
    let length = Storage::size(&file).map_err(io("inspect"))?;
    let (footer, _, has_last_footer) = read_footer(&file, length, path)?;
    if footer.disk_type != DiskType::Differencing {
        return Ok(None);
    }
    let (access, epoch) = (Access::ReadOnly, Epoch::UNKNOWN);
    let opening = Opening { name: path, storage: &file, footer: &footer, length, has_last_footer, access, epoch };
    opening.header().map(Some)
}

/// The paths at which a disk's parent may be, the likeliest first.
///
/// # Errors
/// [`VhdError::Io`] when the locators cannot be read.
pub fn parent_candidates(path: &Path, header: &DynamicHeader) -> Result<Vec<PathBuf>, VhdError> {
    let io = |action| move |source| VhdError::Io { path: path.to_owned(), action, source };
    let file = File::open(path).map_err(io("open"))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let (mut relative, mut absolute) = (Vec::new(), Vec::new());
    for locator in header.locators.iter().filter(|locator| locator.length <= 8192) {
        let mut bytes = vec![0; locator.length as usize];
        Storage::read_exact_at(&file, &mut bytes, locator.offset).map_err(io("read a parent locator"))?;
        let units: Vec<u16> = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
        let text = String::from_utf16_lossy(&units).trim_end_matches('\0').replace('\\', "/");
        match &locator.code {
            b"W2ru" => relative.push(folder.join(text)),
            // `C:/x.vhd` of another system cannot be found here; its name perhaps can, below.
            b"W2ku" => absolute.push(PathBuf::from(text)),
            _ => {}
        }
    }
    let name = header.parent_name.replace('\\', "/");
    let beside = Path::new(&name).file_name().map(|name| folder.join(name));
    Ok(relative.into_iter().chain(absolute).chain(beside).collect())
}

fn find_parent(path: &Path, header: &DynamicHeader) -> Result<PathBuf, VhdError> {
    let mut tried = Vec::new();
    for candidate in parent_candidates(path, header)? {
        let opened = File::open(&candidate).map_err(|error| error.to_string()).and_then(|file| {
            let length = Storage::size(&file).map_err(|error| error.to_string())?;
            read_footer(&file, length, &candidate).map_err(|error| error.to_string())
        });
        match opened {
            // Whether it was changed since, opening the child finds out.
            Ok((footer, ..)) if footer.unique_id == header.parent_id => return Ok(candidate),
            Ok(_) => tried.push(format!("{} (another disk: its identity differs)", candidate.display())),
            Err(why) => tried.push(format!("{} ({why})", candidate.display())),
        }
    }
    tried.dedup();
    Err(VhdError::NoParent { path: path.to_owned(), tried: tried.join("; ") })
}
