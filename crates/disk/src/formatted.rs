//! Making an empty VHD with a file system on it, as guests find their local disks.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use mayfly_vhd::{CreateOptions, VhdError, create_fixed, seconds_since_2000};

/// The program that makes file systems (Debian: e2fsprogs).
const PROGRAM: &str = "mke2fs";
/// The same name and size always make the same bytes.
const UUID: &str = "6d61796d-666c-4179-8000-6c6f63616c21";
const TIME: &str = "1700000000";
/// Bytes of a file system's block.
const BLOCK: u64 = 4096;

/// Why there is no formatted disk.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The system refused.
    #[error("cannot make {path}", path = path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The disk could not be made.
    #[error("cannot make a disk to format")]
    Vhd(#[from] VhdError),
    /// The program is not there.
    #[error("`{PROGRAM}` is not installed on this host (Debian: apt install e2fsprogs)")]
    Missing,
    /// It failed.
    #[error("`{PROGRAM}` failed: {0}")]
    Failed(String),
}

/// Makes the file `path` a fixed VHD of `bytes`, holding an empty ext4 file system named `label`. Nothing of it takes space
/// but the file system's own tables. Where the file is there already, nothing is done.
///
/// # Errors
/// [`FormatError`]; no half-made file is left under that name.
pub fn make_formatted(path: &Path, bytes: u64, label: &str) -> Result<(), FormatError> {
    if path.exists() {
        return Ok(());
    }
    let at = |source| FormatError::Io { path: path.to_owned(), source };
    // Two may want the same at once; either's will do.
    static MADE: AtomicU64 = AtomicU64::new(0);
    let partial = path.with_extension(format!("{}-{}.part", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed)));
    match fs::remove_file(&partial) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(error)),
        _ => {}
    }
    // All hosts' are the same: what they hold is in their children.
    let unique_id = *b"mayfly-formatted";
    create_fixed(&partial, bytes, &CreateOptions { unique_id, timestamp: seconds_since_2000(), durable: false })?;
    format(&partial, bytes, label)?;
    let file = fs::File::open(&partial).map_err(at)?;
    file.sync_all().map_err(at)?;
    // The first one's stays: somebody may have it open already.
    let linked = match fs::hard_link(&partial, path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(at(error)),
        _ => Ok(()),
    };
    fs::remove_file(&partial).map_err(at)?;
    linked
}

/// The file is longer than the disk by its footer, so the file system's size is said.
fn format(path: &Path, bytes: u64, label: &str) -> Result<(), FormatError> {
    let mut command = Command::new(PROGRAM);
    command.args(["-q", "-F", "-t", "ext4", "-b", &BLOCK.to_string(), "-m", "0", "-L", label]);
    // The trees are written when the guest needs them, and old kernels can read it.
    command.args(["-U", UUID, "-E", &format!("lazy_itable_init=1,lazy_journal_init=1,nodiscard,hash_seed={UUID}")]);
    command.env("E2FSPROGS_FAKE_TIME", TIME);
    command.arg(path).arg((bytes / BLOCK).to_string());
    command.stdin(Stdio::null()).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    let output = command.output().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => FormatError::Missing,
        _ => FormatError::Io { path: path.to_owned(), source },
    })?;
    if output.status.success() {
        return Ok(());
    }
    Err(FormatError::Failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_formatted_disk_is_a_fixed_vhd_with_a_file_system() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.vhd");
        make_formatted(&path, 64 << 20, "scratch").unwrap();
        let disk = mayfly_vhd::Vhd::open(&path, mayfly_vhd::Access::ReadOnly, None).unwrap();
        assert_eq!(disk.disk_bytes(), 64 << 20);
        let mut block = [0; 1024];
        disk.read_at(&mut block, 1024).unwrap();
        assert_eq!(&block[0x38..0x3a], [0x53, 0xef], "the magic number of ext4");
        assert_eq!(&block[0x78..0x7f], b"scratch");
        let before = fs::metadata(&path).unwrap().modified().unwrap();
        make_formatted(&path, 64 << 20, "scratch").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before, "made once");
    }
}
