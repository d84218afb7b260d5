//! The recipe of the demo image: Debian's cloud kernel, busybox, and the init of `images/hello`, as a bootable VHD.
//!
//! No loop device, no mount, no root. The disk has a FAT partition with the boot loader (SYSLINUX), the kernel and an
//! initial RAM disk that holds the whole system, and an empty ext4 partition for what the guest keeps.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::run::{feed, finish, output, run};
use crate::setup;

/// Drivers in the order in which they have to be loaded; ext4 and the serial console are in the kernel.
const DRIVERS: &[&str] = &[
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "drivers/block/virtio_blk.ko",
    "net/core/failover.ko",
    "drivers/net/net_failover.ko",
    "drivers/net/virtio_net.ko",
    "drivers/misc/pvpanic/pvpanic.ko",
    "drivers/misc/pvpanic/pvpanic-pci.ko",
    "drivers/firmware/qemu_fw_cfg.ko",
    "drivers/input/evdev.ko",
    "drivers/acpi/button.ko",
];
const MIB: u64 = 1 << 20;
const BOOT_MIB: u64 = 20;
const DATA_MIB: u64 = 16;

/// The image as it lies in the build folder, built anew if anything it is made of is newer.
pub fn build(root: &Path) -> anyhow::Result<PathBuf> {
    let folder = root.join("target/hello");
    fs::create_dir_all(&folder)?;
    let init = build_init(root, &folder)?;
    let image = folder.join("hello.vhd");
    let files = root.join("images/hello/files");
    let recipe = root.join("crates/xtask/src/image.rs");
    let sources = [init.clone(), files.join("udhcpc.sh"), files.join("syslinux.cfg"), recipe];
    if is_newer(&image, &sources)? {
        return Ok(image);
    }
    let kernel = kernel(&folder)?;
    let initrd = initrd(root, &folder, &kernel, &init)?;
    let boot = boot_partition(root, &folder, &kernel, &initrd)?;
    let data = data_partition(&folder)?;
    let raw = assemble(&folder, &boot, &data)?;
    let partial = folder.join("hello.vhd.part");
    let options = "subformat=fixed,force_size=on";
    let (from, to) = (raw.to_string_lossy(), partial.to_string_lossy());
    run("qemu-img", &["convert", "-f", "raw", "-O", "vpc", "-o", options, &from, &to])?;
    fs::rename(&partial, &image)?;
    Ok(image)
}

fn is_newer(image: &Path, sources: &[PathBuf]) -> anyhow::Result<bool> {
    let Ok(made) = image.metadata().and_then(|data| data.modified()) else { return Ok(false) };
    for source in sources {
        if source.metadata().with_context(|| source.display().to_string())?.modified()? > made {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The init, linked statically, in a build folder of its own as it has other flags than the rest.
fn build_init(root: &Path, folder: &Path) -> anyhow::Result<PathBuf> {
    let target = folder.join("build");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["build", "--quiet", "--locked", "--release", "--package", "mayfly-hello"]).current_dir(root);
    command.env("CARGO_TARGET_DIR", &target).env("RUSTFLAGS", "-C target-feature=+crt-static -C strip=symbols");
    finish("cargo build of the demo guest's init", &mut command)?;
    Ok(target.join("release/mayfly-hello"))
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

fn initrd(root: &Path, folder: &Path, kernel: &Path, init: &Path) -> anyhow::Result<PathBuf> {
    let tree = folder.join("tree");
    let _ = fs::remove_dir_all(&tree);
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
    for (number, driver) in DRIVERS.iter().enumerate() {
        let name = Path::new(driver).file_name().context("a driver without a name")?.to_string_lossy();
        let source = version.join(driver);
        fs::copy(&source, tree.join(format!("lib/modules/{:02}-{name}", number + 10)))
            .with_context(|| format!("the kernel has no {driver}"))?;
    }
    let initrd = folder.join("initrd");
    let script = "find . | LC_ALL=C sort | cpio --quiet -o -H newc --reproducible -R 0:0 | gzip -9n > ../initrd";
    finish("cpio", Command::new("sh").args(["-ec", script]).current_dir(&tree))?;
    Ok(initrd)
}

fn boot_partition(root: &Path, folder: &Path, kernel: &Path, initrd: &Path) -> anyhow::Result<PathBuf> {
    let boot = folder.join("boot.fat");
    empty(&boot, BOOT_MIB)?;
    let image = boot.to_string_lossy();
    run("mkfs.vfat", &["--invariant", "-i", "0B007001", "-n", "BOOT", &image])?;
    let vmlinuz = fs::read_dir(kernel.join("boot"))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz")))
        .context("the kernel package has no vmlinuz")?;
    let configuration = root.join("images/hello/files/syslinux.cfg");
    for (source, name) in
        [(vmlinuz.as_path(), "vmlinuz"), (initrd, "initrd"), (configuration.as_path(), "syslinux.cfg")]
    {
        let (source, target) = (source.to_string_lossy(), format!("::/{name}"));
        let mut copy = Command::new("mcopy");
        finish("mcopy", copy.env("MTOOLS_SKIP_CHECK", "1").args(["-i", &image, &source, &target]))?;
    }
    run("syslinux", &["--install", &image])?;
    Ok(boot)
}

fn data_partition(folder: &Path) -> anyhow::Result<PathBuf> {
    let data = folder.join("data.ext4");
    empty(&data, DATA_MIB)?;
    let image = data.to_string_lossy();
    let extended = "root_owner=0:0,lazy_itable_init=1,lazy_journal_init=1";
    run("mke2fs", &["-q", "-t", "ext4", "-L", "data", "-m", "0", "-J", "size=4", "-E", extended, &image])?;
    Ok(data)
}

fn assemble(folder: &Path, boot: &Path, data: &Path) -> anyhow::Result<PathBuf> {
    let disk = folder.join("disk.raw");
    empty(&disk, 1 + BOOT_MIB + DATA_MIB)?;
    let sectors = |mib: u64| mib * MIB / 512;
    let table = format!(
        "label: dos\nlabel-id: 0x6d61796d\nstart={}, size={}, type=c, bootable\nstart={}, size={}, type=83\n",
        sectors(1),
        sectors(BOOT_MIB),
        sectors(1 + BOOT_MIB),
        sectors(DATA_MIB)
    );
    feed("sfdisk", &["-q", &disk.to_string_lossy()], &table)?;
    let file = fs::OpenOptions::new().write(true).open(&disk)?;
    let loader = fs::read("/usr/lib/syslinux/mbr/mbr.bin").context("the boot loader of syslinux-common")?;
    file.write_all_at(&loader, 0)?;
    file.write_all_at(&fs::read(boot)?, MIB)?;
    file.write_all_at(&fs::read(data)?, (1 + BOOT_MIB) * MIB)?;
    Ok(disk)
}

fn empty(path: &Path, mib: u64) -> anyhow::Result<()> {
    let file = fs::File::create(path).with_context(|| path.display().to_string())?;
    Ok(file.set_len(mib * MIB)?)
}
