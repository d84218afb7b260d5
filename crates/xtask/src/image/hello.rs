//! The recipe of the demo image: Debian's cloud kernel, busybox, and the init of `images/hello`.
//!
//! The disk has a FAT partition with the boot loader (SYSLINUX), the kernel and an initial RAM disk that holds the whole
//! system, and an empty ext4 partition for what the guest keeps.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::parts::{boot_partition, empty, fresh, initrd, vhd};
use super::{is_newer, pinned};
use crate::run::{finish, output};
use crate::setup;

/// Drivers in the order in which they have to be loaded; ext4 and the serial console are in the kernel.
const EARLY: &[&str] = &[
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "drivers/misc/pvpanic/pvpanic.ko",
    "drivers/misc/pvpanic/pvpanic-pci.ko",
    "drivers/firmware/qemu_fw_cfg.ko",
    "drivers/input/evdev.ko",
    "drivers/acpi/button.ko",
];
/// Those that wait until the guest knows who it is.
const LATE: &[&str] = &[
    // What is read of a disk is remembered, and a copy has others.
    "drivers/block/virtio_blk.ko",
    "net/core/failover.ko",
    "drivers/net/net_failover.ko",
    "drivers/net/virtio_net.ko",
];
/// What the init is built for: what Debian's kernel of the image is.
const TARGET: &str = "x86_64-unknown-linux-gnu";
const BOOT_MIB: u64 = 20;
const DATA_MIB: u64 = 16;
const DATA_UUID: &str = "6d61796d-666c-4179-8000-68656c6c6f21";

/// The image as it lies in the build folder, built anew if anything it is made of is newer.
pub fn build(root: &Path) -> anyhow::Result<PathBuf> {
    let folder = root.join("target/hello");
    fs::create_dir_all(&folder)?;
    let init = build_init(root, &folder)?;
    let image = folder.join("hello.vhd");
    let files = root.join("images/hello/files");
    let recipe = root.join("crates/xtask/src/image");
    let recipe = [recipe.join("hello.rs"), recipe.join("parts.rs")];
    let mut sources = vec![init.clone(), files.join("udhcpc.sh"), files.join("syslinux.cfg")];
    sources.extend(recipe);
    if is_newer(&image, &sources)? {
        return Ok(image);
    }
    build_in(root, &folder, &init, &image)?;
    Ok(image)
}

/// Makes the image of the init and of what has been fetched into the folder.
fn build_in(root: &Path, folder: &Path, init: &Path, image: &Path) -> anyhow::Result<()> {
    let (kernel, files) = (kernel(folder)?, root.join("images/hello/files"));
    let ram_disk = folder.join("initrd");
    initrd(&tree(root, folder, &kernel, init)?, &ram_disk)?;
    let vmlinuz = fs::read_dir(kernel.join("boot"))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz")))
        .context("the kernel package has no vmlinuz")?;
    let (boot, configuration) = (folder.join("boot.fat"), files.join("syslinux.cfg"));
    boot_partition(&boot, BOOT_MIB, &[(&vmlinuz, "vmlinuz"), (&ram_disk, "initrd"), (&configuration, "syslinux.cfg")])?;
    vhd(image, "0x6d61796d", &boot, &data_partition(folder)?)
}

/// The init, linked statically, in a build folder of its own as it has other flags than the rest.
fn build_init(root: &Path, folder: &Path) -> anyhow::Result<PathBuf> {
    let target = folder.join("build");
    // Folders of this machine have no place in it.
    let home = std::env::var("CARGO_HOME").or_else(|_| std::env::var("HOME").map(|home| home + "/.cargo"));
    let remap = |from: &str, to: &str| format!(" --remap-path-prefix={from}={to}");
    let flags = "-C target-feature=+crt-static -C strip=symbols".to_owned()
        + &remap(&root.to_string_lossy(), "/mayfly")
        + &home.map_or_else(|_| String::new(), |home| remap(&home, "/cargo"));
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["build", "--quiet", "--locked", "--release", "--package", "mayfly-hello"]).current_dir(root);
    // Named, so that what runs while it is built does not have the same flags.
    command.args(["--target", TARGET]);
    command.env("CARGO_TARGET_DIR", &target).env("RUSTFLAGS", flags);
    finish("cargo build of the demo guest's init", &mut command)?;
    Ok(target.join(TARGET).join("release/mayfly-hello"))
}

/// The unpacked kernel package, fetched once.
fn kernel(folder: &Path) -> anyhow::Result<PathBuf> {
    let package = setup::kernel_package()?;
    let target = folder.join(&package);
    if !target.join("boot").exists() {
        let partial = folder.join("kernel.part");
        let _ = fs::remove_dir_all(&partial);
        setup::unpack_package(&package, &partial)?;
        fs::rename(&partial, &target)?;
    }
    Ok(target)
}

fn busybox(folder: &Path) -> anyhow::Result<PathBuf> {
    let target = folder.join("busybox");
    if !target.join("bin/busybox").exists() {
        let partial = folder.join("busybox.part");
        let _ = fs::remove_dir_all(&partial);
        setup::unpack_package("busybox-static", &partial)?;
        fs::rename(&partial, &target)?;
    }
    Ok(target.join("bin/busybox"))
}

/// Everything that the initial RAM disk holds.
fn tree(root: &Path, folder: &Path, kernel: &Path, init: &Path) -> anyhow::Result<PathBuf> {
    let tree = fresh(folder.join("tree"))?;
    for name in ["bin", "etc", "dev", "proc", "sys", "run", "tmp", "lib/modules"] {
        fs::create_dir_all(tree.join(name))?;
    }
    let busybox = busybox(folder)?;
    fs::copy(&busybox, tree.join("bin/busybox"))?;
    for applet in output(&busybox.to_string_lossy(), &["--list"])?.lines().filter(|applet| *applet != "busybox") {
        symlink("busybox", tree.join("bin").join(applet)).with_context(|| applet.to_owned())?;
    }
    fs::copy(init, tree.join("init"))?;
    fs::copy(root.join("images/hello/files/udhcpc.sh"), tree.join("etc/udhcpc.sh"))?;
    fs::set_permissions(tree.join("etc/udhcpc.sh"), fs::Permissions::from_mode(0o755))?;
    let modules = kernel.join("lib/modules");
    let version = fs::read_dir(&modules)?.next().context("the kernel package has no modules")??.file_name();
    let version = modules.join(version).join("kernel");
    for (when, drivers) in [("early", EARLY), ("late", LATE)] {
        let folder = tree.join("lib/modules").join(when);
        fs::create_dir(&folder)?;
        for (number, driver) in drivers.iter().enumerate() {
            let name = Path::new(driver).file_name().context("a driver without a name")?.to_string_lossy();
            let source = version.join(driver);
            fs::copy(&source, folder.join(format!("{:02}-{name}", number + 10)))
                .with_context(|| format!("the kernel has no {driver}"))?;
        }
    }
    Ok(tree)
}

fn data_partition(folder: &Path) -> anyhow::Result<PathBuf> {
    let data = folder.join("data.ext4");
    empty(&data, DATA_MIB)?;
    let image = data.to_string_lossy();
    let extended = format!("root_owner=0:0,lazy_itable_init=1,lazy_journal_init=1,hash_seed={DATA_UUID}");
    let mut command = pinned("mke2fs");
    command.args(["-q", "-t", "ext4", "-L", "data", "-U", DATA_UUID, "-m", "0", "-J", "size=4"]);
    finish("mke2fs", command.args(["-O", "^metadata_csum_seed", "-E", &extended, &image]))?;
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_parts_make_the_same_bytes() {
        let root = crate::workspace();
        let image = build(&root).unwrap();
        let folder = root.join("target/hello");
        let again = folder.join("again.vhd");
        build_in(&root, &folder, &build_init(&root, &folder).unwrap(), &again).unwrap();
        assert!(fs::read(&image).unwrap() == fs::read(&again).unwrap(), "the demo image is another each time");
        fs::remove_file(again).unwrap();
    }
}
