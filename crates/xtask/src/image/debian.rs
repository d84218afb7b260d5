//! The recipe of the Debian image: systemd, unmodified cloud-init and Azure agent, SSH. What is Debian's is put together by
//! mmdebstrap; `images/debian` has what is ours.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::parts::{MIB, boot_partition, fresh, initrd, vhd};
use super::{DATE, files_below, is_newer, pinned};
use crate::run::{finish, run};
use crate::setup;

const SUITE: &str = "bookworm";
const PACKAGES: &str = "linux-image-cloud-amd64,systemd-sysv,systemd-resolved,udev,dbus,iproute2,netbase,ca-certificates,\
                        openssh-server,cloud-init,python3-minimal,e2fsprogs,kmod,initramfs-tools,waagent,busybox-static,\
                        eject,sudo,iptables,isc-dhcp-client";
const BOOT_MIB: u64 = 24;
const ROOT_MIB: u64 = 743;
const INODES: &str = "49152";
const LABEL: &str = "mayfly-root";
const UUID: &str = "6d61796d-666c-4179-8000-64656269616e";

/// What the recipe needs beside what the project needs anyway.
const NEEDED: &[(&str, &str)] = &[
    ("/usr/bin/mmdebstrap", "mmdebstrap"),
    ("/usr/share/keyrings/debian-archive-keyring.gpg", "debian-archive-keyring"),
    ("/usr/bin/genext2fs", "genext2fs"),
];

/// The image as it lies in the build folder, built anew if anything of its recipe is newer. It has to be built as root.
pub fn build(root: &Path) -> anyhow::Result<PathBuf> {
    let recipe = root.join("images/debian");
    let image = root.join("target/debian/debian.vhd");
    let mut sources = files_below(&recipe)?;
    sources.push(root.join("crates/xtask/src/image/debian.rs"));
    sources.push(root.join("crates/xtask/src/image/parts.rs"));
    if is_newer(&image, &sources)? {
        return Ok(image);
    }
    setup::install_all(NEEDED)?;
    let folder = fresh(root.join("target/debian/build"))?;
    root_archive(&recipe, &folder)?;
    build_in(&recipe, &folder, &image)?;
    fs::remove_dir_all(&folder)?;
    Ok(image)
}

/// Makes the image of what mmdebstrap has left in the folder.
fn build_in(recipe: &Path, folder: &Path, image: &Path) -> anyhow::Result<()> {
    let ram_disk = folder.join("initrd");
    initrd(&initrd_tree(recipe, folder)?, &ram_disk)?;
    let boot = folder.join("boot.fat");
    let (kernel, configuration) = (folder.join("vmlinuz"), recipe.join("syslinux.cfg"));
    boot_partition(&boot, BOOT_MIB, &[(&kernel, "vmlinuz"), (&ram_disk, "initrd"), (&configuration, "syslinux.cfg")])?;
    let system = folder.join("root.ext4");
    root_partition(&folder.join("root.tar"), &system)?;
    vhd(image, "0x64656269", &boot, &system)
}

/// The root file system as an archive, and beside it what the boot needs.
fn root_archive(recipe: &Path, folder: &Path) -> anyhow::Result<()> {
    let hook = format!("{} \"$1\"", recipe.join("customize.sh").display());
    let mut command = pinned("mmdebstrap");
    command.args(["--quiet", "--mode=root", "--variant=minbase", "--format=tar", "--architectures=amd64"]);
    command.args(["--aptopt=Acquire::Languages \"none\"", "--aptopt=APT::Install-Recommends \"false\""]);
    for unused in ["man", "doc", "locale", "i18n", "info"] {
        command.arg(format!("--dpkgopt=path-exclude=/usr/share/{unused}/*"));
    }
    command.arg(format!("--include={PACKAGES}")).arg(format!("--customize-hook={hook}"));
    command.args([SUITE, "root.tar"]).current_dir(folder);
    // The kernel's package makes no initial RAM disk of its own.
    command.env("INITRD", "No").env("DEBIAN_FRONTEND", "noninteractive").env("RECIPE", recipe).env("OUT", folder);
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    finish("mmdebstrap", &mut command).map(drop).context("cannot put Debian together")
}

fn initrd_tree(recipe: &Path, folder: &Path) -> anyhow::Result<PathBuf> {
    let tree = fresh(folder.join("tree"))?;
    for name in ["bin", "dev", "new"] {
        fs::create_dir(tree.join(name))?;
    }
    fs::copy(folder.join("busybox"), tree.join("bin/busybox"))?;
    for applet in ["sh", "mount", "insmod", "switch_root", "sleep", "findfs"] {
        symlink("busybox", tree.join("bin").join(applet))?;
    }
    fs::rename(folder.join("modules"), tree.join("modules"))?;
    fs::copy(recipe.join("init"), tree.join("init"))?;
    Ok(tree)
}

/// An archive becomes ext2 and then ext4: so the order of everything is the archive's, which mke2fs would not keep.
fn root_partition(archive: &Path, target: &Path) -> anyhow::Result<()> {
    let (target, archive) = (target.to_string_lossy(), archive.to_string_lossy());
    let blocks = (ROOT_MIB * MIB / 4096).to_string();
    let mut command = pinned("genext2fs");
    command.args(["-z", "-B", "4096", "-b", &blocks, "-N", INODES, "-m", "0", "-L", LABEL, "-a", &archive, &target]);
    // In the plain locale it refuses names that are not ASCII.
    finish("genext2fs", command.env("LC_ALL", "C.UTF-8"))?;
    // Before tune2fs, which would draw a random one.
    let seed = format!("set_super_value hash_seed {UUID}");
    finish("debugfs", pinned("debugfs").args(["-w", "-R", &seed, &target]))?;
    let features = "extents,sparse_super,large_file,dir_index,filetype";
    let mut command = pinned("tune2fs");
    command.args(["-U", UUID, "-c", "0", "-i", "0", "-e", "continue", "-O", features, "-J", "size=8", "-j", &target]);
    finish("tune2fs", &mut command)?;
    // It counts the blocks anew and makes indexes, which is a correction (exit status 1) and no failure.
    let status = pinned("e2fsck").args(["-fyD", &target]).stdout(std::process::Stdio::null()).status()?;
    anyhow::ensure!(status.code().is_some_and(|code| code < 4), "e2fsck: {status}");
    run("e2fsck", &["-fn", &target]).with_context(|| format!("the file system of {DATE} is not sound"))
}
