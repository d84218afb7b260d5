//! A guest's serial console, as its host keeps it: a log for each of the last boots, of bounded length, and the last words
//! of a kernel that has given up.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Bytes of one boot's log at the most; then the older half goes.
const LOG_BYTES: u64 = 1 << 20;
/// Boots before the present one whose logs are kept.
const BOOTS_KEPT: usize = 3;
/// How far back a kernel's last words are looked for.
const LAST_WORDS_BYTES: u64 = 16 << 10;
/// What Linux says when it gives up.
const PANIC: &str = "Kernel panic - not syncing: ";

/// The log of a boot: 0 is the present one, 1 the one before it.
pub(crate) fn log(folder: &Path, boots_ago: usize) -> PathBuf {
    match boots_ago {
        0 => folder.join("serial.log"),
        number => folder.join(format!("serial.{number}.log")),
    }
}

/// Makes room for the log of a new boot.
pub(super) fn rotate(folder: &Path) {
    for number in (0..BOOTS_KEPT).rev() {
        match fs::rename(log(folder, number), log(folder, number + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(folder = %folder.display(), %error, "a console's log cannot be put aside");
            }
            _ => {}
        }
    }
}

/// Shortens a log that has grown too long: a guest must not fill its host's disk by talking. QEMU appends, so what is cut
/// away is gone.
pub(super) fn limit(path: &Path) {
    if let Err(error) = shorten(path) {
        tracing::warn!(path = %path.display(), %error, "a long console log cannot be shortened");
    }
}

fn shorten(path: &Path) -> io::Result<()> {
    let long = fs::metadata(path).is_ok_and(|data| data.len() > LOG_BYTES);
    if !long {
        return Ok(());
    }
    let tail = tail(path, LOG_BYTES / 2)?;
    OpenOptions::new().write(true).truncate(true).open(path)?;
    // Appended, as QEMU may have written meanwhile.
    OpenOptions::new().append(true).open(path)?.write_all(&tail)
}

/// The end of a file.
pub(crate) fn tail(path: &Path, bytes: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
    let mut tail = Vec::new();
    file.take(bytes).read_to_end(&mut tail)?;
    Ok(tail)
}

/// What a kernel said when it gave up, if that is what the console's end says and no later boot follows.
/// `from` is where the present boot begins in the log.
pub(super) fn last_words(path: &Path, from: u64) -> Option<String> {
    let length = fs::metadata(path).ok()?.len();
    // A log that was shortened begins with the present boot.
    let present = if length >= from { length - from } else { length };
    let tail = tail(path, LAST_WORDS_BYTES.min(present)).ok()?;
    let text = String::from_utf8_lossy(&tail);
    let (_, after) = text.rsplit_once(PANIC)?;
    // A boot loader or a new kernel has spoken since.
    if after.contains("Linux version ") || after.contains("SYSLINUX") {
        return None;
    }
    let line = after.lines().next().unwrap_or_default();
    Some(line.chars().filter(|c| !c.is_control()).take(160).collect::<String>().trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_those_of_the_last_boot() {
        let folder = tempfile::tempdir().unwrap();
        let path = log(folder.path(), 0);
        let write = |text: &str| fs::write(&path, text).unwrap();
        write("all is well\r\n");
        assert_eq!(last_words(&path, 0), None);
        write("x\r\n[    2.1] Kernel panic - not syncing: sysrq triggered crash\r\n[    2.2] CPU: 0\r\n");
        assert_eq!(last_words(&path, 0).as_deref(), Some("sysrq triggered crash"));
        let length = fs::metadata(&path).unwrap().len();
        assert_eq!(last_words(&path, length), None, "those of the boot before");
        write("Kernel panic - not syncing: old\r\nSYSLINUX 6.04\r\nLinux version 6.1\r\n");
        assert_eq!(last_words(&path, 0), None, "it has been started again since");
    }

    #[test]
    fn logs_are_put_aside_and_shortened() {
        let folder = tempfile::tempdir().unwrap();
        for boot in 0..6 {
            rotate(folder.path());
            fs::write(log(folder.path(), 0), format!("boot {boot}")).unwrap();
        }
        assert_eq!(fs::read_to_string(log(folder.path(), 3)).unwrap(), "boot 2");
        assert!(!log(folder.path(), 4).exists());
        let path = log(folder.path(), 0);
        let long = "0123456789".repeat(150_000);
        fs::write(&path, &long).unwrap();
        limit(&path);
        let short = fs::read_to_string(&path).unwrap();
        assert!(short.len() as u64 == LOG_BYTES / 2 && long.ends_with(&short), "the newer half is kept");
    }
}
