//! What the guest keeps on its disk: how often it has booted, and a mark that visitors may leave.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Context;
use nix::mount::{MsFlags, mount};

/// The data partition of a virtio, an NVMe and a SATA disk.
const DEVICES: [&str; 3] = ["/dev/vda2", "/dev/nvme0n1p2", "/dev/sda2"];
const FOLDER: &str = "/data";

/// Mounts the disk and counts this boot. Returns the count.
pub fn start() -> anyhow::Result<u32> {
    let find = || DEVICES.into_iter().find(|device| Path::new(device).exists());
    for _ in 0..250 {
        if find().is_some() {
            break;
        }
        sleep(Duration::from_millis(20));
    }
    let device = find().context("there is no disk")?;
    fs::create_dir_all(FOLDER)?;
    mount(Some(device), FOLDER, Some("ext4"), MsFlags::MS_NOATIME, None::<&str>).context(device)?;
    let boots = read("boots").and_then(|text| text.parse().ok()).unwrap_or(0u32) + 1;
    write("boots", boots.to_string().as_bytes())?;
    Ok(boots)
}

/// Writes everything back and lets go of the disk.
pub fn stop() {
    nix::unistd::sync();
    let _ = mount(None::<&str>, FOLDER, None::<&str>, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, None::<&str>);
}

/// A file's text.
pub fn read(name: &str) -> Option<String> {
    fs::read_to_string(Path::new(FOLDER).join(name)).ok()
}

/// Replaces a file so that it is on the disk when this returns.
pub fn write(name: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let (path, temporary) = (Path::new(FOLDER).join(name), Path::new(FOLDER).join(format!("{name}.new")));
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, &path)?;
    File::open(FOLDER)?.sync_all()?;
    Ok(())
}
