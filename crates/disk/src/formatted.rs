//! Making an empty VHD with a file system on it, as guests find their local disks.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use mayfly_vhd::{CreateOptions, VhdError, create_fixed, seconds_since_2000};

/// Which file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// On the whole disk, as Linux guests mount it by its label.
    Ext4,
    /// In the one partition of the disk: Windows gives letters to partitions.
    Ntfs,
}

/// The program that makes ext4 (Debian: e2fsprogs).
const MKE2FS: (&str, &str) = ("mke2fs", "e2fsprogs");
/// The program that makes NTFS (Debian: ntfs-3g).
const MKNTFS: (&str, &str) = ("mkntfs", "ntfs-3g");
/// Where a partition begins, in sectors of 512 bytes: as Windows itself has it.
const PARTITION: u32 = 2048;
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
    #[error("`{program}` is not installed on this host (Debian: apt install {package})")]
    Missing {
        /// The program.
        program: &'static str,
        /// Debian's package that brings it.
        package: &'static str,
    },
    /// It failed.
    #[error("`{program}` failed: {said}")]
    Failed {
        /// The program.
        program: &'static str,
        /// What it said.
        said: String,
    },
}

/// Makes the file `path` a fixed VHD of `bytes`, holding an empty file system named `label`. Nothing of it takes space
/// but the file system's own tables. Where the file is there already, nothing is done.
///
/// # Errors
/// [`FormatError`]; no half-made file is left under that name.
pub fn make_formatted(path: &Path, bytes: u64, kind: FileSystem, label: &str) -> Result<(), FormatError> {
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
    let made = match kind {
        FileSystem::Ext4 => make_ext4(&partial, bytes, label),
        FileSystem::Ntfs => make_ntfs(&partial, bytes, label),
    };
    if made.is_err() {
        // It is tried again and again.
        let _ = fs::remove_file(&partial);
        return made;
    }
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
fn make_ext4(path: &Path, bytes: u64, label: &str) -> Result<(), FormatError> {
    let mut command = Command::new(MKE2FS.0);
    command.args(["-q", "-F", "-t", "ext4", "-b", &BLOCK.to_string(), "-m", "0", "-L", label]);
    // The trees are written when the guest needs them, and old kernels can read it.
    command.args(["-U", UUID, "-E", &format!("lazy_itable_init=1,lazy_journal_init=1,nodiscard,hash_seed={UUID}")]);
    command.env("E2FSPROGS_FAKE_TIME", TIME);
    command.arg(path).arg((bytes / BLOCK).to_string());
    run(command, MKE2FS, path)
}

/// The program makes a file system of a whole file only, so it is made in one of its own and put in its place.
fn make_ntfs(path: &Path, bytes: u64, label: &str) -> Result<(), FormatError> {
    let at = |source| FormatError::Io { path: path.to_owned(), source };
    let start = u64::from(PARTITION) * 512;
    let inside = path.with_extension("ntfs.part");
    let file = fs::File::create(&inside).map_err(at)?;
    file.set_len(bytes.saturating_sub(start)).map_err(at)?;
    let mut command = Command::new(MKNTFS.0);
    command.args(["--fast", "--force", "--quiet", "--partition-start", &PARTITION.to_string()]);
    command
        .args(["--heads", "255", "--sectors-per-track", "63", "--sector-size", "512", "--label", label])
        .arg(&inside);
    let made = run(command, MKNTFS, path).and_then(|()| place(&inside, path, bytes, start).map_err(at));
    fs::remove_file(&inside).map_err(at)?;
    made
}

/// Writes a table with one partition, and the partition.
fn place(inside: &Path, path: &Path, bytes: u64, start: u64) -> io::Result<()> {
    let sectors = u32::try_from((bytes - start) / 512).unwrap_or(u32::MAX);
    let disk = fs::OpenOptions::new().write(true).open(path)?;
    disk.write_all_at(&partition_table(PARTITION, sectors), 0)?;
    let (from, mut piece, mut position) = (fs::File::open(inside)?, vec![0; 64 << 10], 0);
    // What was never written takes no space, and no time.
    while let Some(data) = next_data(&from, position)? {
        let count = from.read_at(&mut piece, data)?;
        if count == 0 {
            break;
        }
        disk.write_all_at(&piece[..count], start + data)?;
        position = data + count as u64;
    }
    Ok(())
}

/// Where the next data of a file with holes begin.
fn next_data(file: &fs::File, from: u64) -> io::Result<Option<u64>> {
    let from = i64::try_from(from).map_err(io::Error::other)?;
    match lseek(file, from, Whence::SeekData) {
        Ok(at) => Ok(u64::try_from(at).ok()),
        Err(Errno::ENXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A master boot record that boots nothing, with one partition of type 7 (NTFS). Its addresses by cylinder, head and sector
/// say that they do not fit.
fn partition_table(first: u32, sectors: u32) -> [u8; 512] {
    let mut table = [0; 512];
    table[440..444].copy_from_slice(b"mfly");
    table[446..454].copy_from_slice(&[0, 0xfe, 0xff, 0xff, 7, 0xfe, 0xff, 0xff]);
    table[454..458].copy_from_slice(&first.to_le_bytes());
    table[458..462].copy_from_slice(&sectors.to_le_bytes());
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    table
}

fn run(mut command: Command, (program, package): (&'static str, &'static str), path: &Path) -> Result<(), FormatError> {
    command.stdin(Stdio::null()).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    let output = command.output().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => FormatError::Missing { program, package },
        _ => FormatError::Io { path: path.to_owned(), source },
    })?;
    if output.status.success() {
        return Ok(());
    }
    Err(FormatError::Failed { program, said: String::from_utf8_lossy(&output.stderr).trim().to_owned() })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_formatted_disk_is_a_fixed_vhd_with_a_file_system() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.vhd");
        make_formatted(&path, 64 << 20, FileSystem::Ext4, "scratch").unwrap();
        let disk = mayfly_vhd::Vhd::open(&path, mayfly_vhd::Access::ReadOnly, None).unwrap();
        assert_eq!(disk.disk_bytes(), 64 << 20);
        let mut block = [0; 1024];
        disk.read_at(&mut block, 1024).unwrap();
        assert_eq!(&block[0x38..0x3a], [0x53, 0xef], "the magic number of ext4");
        assert_eq!(&block[0x78..0x7f], b"scratch");
        let before = fs::metadata(&path).unwrap().modified().unwrap();
        make_formatted(&path, 64 << 20, FileSystem::Ext4, "scratch").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before, "made once");
    }

    #[test]
    fn windows_finds_a_partition() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.vhd");
        make_formatted(&path, 64 << 20, FileSystem::Ntfs, "scratch").unwrap();
        assert!(fs::metadata(&path).unwrap().blocks() * 512 < 8 << 20, "zeros take no space");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "nothing is left beside it");
        // What sfdisk(8) and ntfslabel(8) make of it.
        let said = |program: &str, arguments: &[&str]| {
            let output = Command::new(program).args(arguments).output().unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let table = said("/usr/sbin/sfdisk", &["--dump", &path.to_string_lossy()]);
        assert!(table.contains("start=        2048, size=      129024, type=7"), "{table}");
        let (disk, inside) = (fs::read(&path).unwrap(), folder.path().join("inside"));
        fs::write(&inside, &disk[1 << 20..64 << 20]).unwrap();
        assert_eq!(said("/usr/sbin/ntfslabel", &["--force", &inside.to_string_lossy()]).trim(), "scratch");
    }
}
