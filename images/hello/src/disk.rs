//! What the guest keeps on its disks: how often it has booted, and marks that visitors may leave.

use std::collections::BTreeMap;
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
/// The folder below which local disks are mounted, by their serial numbers.
const LOCAL: &str = "/local";

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

/// Mounts the local disks, which come formatted, by the names that are their serial numbers.
pub fn mount_local() -> anyhow::Result<()> {
    for entry in fs::read_dir("/sys/block")?.flatten() {
        let serial =
            ["serial", "device/serial"].iter().find_map(|name| fs::read_to_string(entry.path().join(name)).ok());
        let name = serial.unwrap_or_default().trim().to_owned();
        // The disk of the system has none, or its maker's name.
        if name.is_empty() || name == "mayfly" || name.contains('/') {
            continue;
        }
        let folder = Path::new(LOCAL).join(&name);
        fs::create_dir_all(&folder)?;
        let device = Path::new("/dev").join(entry.file_name());
        mount(Some(&device), &folder, Some("ext4"), MsFlags::MS_NOATIME, None::<&str>)
            .with_context(|| format!("local disk {name}"))?;
    }
    Ok(())
}

/// What visitors have left on each local disk.
pub fn local_marks() -> BTreeMap<String, String> {
    let folders = fs::read_dir(LOCAL).into_iter().flatten().flatten();
    let mark = |path: &Path| fs::read_to_string(path.join("mark")).unwrap_or_default();
    folders.map(|folder| (folder.file_name().to_string_lossy().into_owned(), mark(&folder.path()))).collect()
}

/// Leaves a mark on a local disk.
pub fn mark_local(name: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let folder = Path::new(LOCAL).join(name);
    anyhow::ensure!(!name.contains('/') && folder.is_dir(), "there is no local disk {name}");
    replace(&folder, "mark", bytes)
}

/// Writes everything back and lets go of the disks.
pub fn stop() {
    nix::unistd::sync();
    let local = fs::read_dir(LOCAL).into_iter().flatten().flatten().map(|entry| entry.path());
    for folder in local.chain([Path::new(FOLDER).to_owned()]) {
        let _ = mount(None::<&str>, &folder, None::<&str>, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, None::<&str>);
    }
}

/// A file's text.
pub fn read(name: &str) -> Option<String> {
    fs::read_to_string(Path::new(FOLDER).join(name)).ok()
}

/// Replaces a file so that it is on the disk when this returns.
pub fn write(name: &str, bytes: &[u8]) -> anyhow::Result<()> {
    replace(Path::new(FOLDER), name, bytes)
}

fn replace(folder: &Path, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let (path, temporary) = (folder.join(name), folder.join(format!("{name}.new")));
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, &path)?;
    File::open(folder)?.sync_all()?;
    Ok(())
}
