//! Installs what the project needs on a Debian machine.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};

use crate::run::{output, run};

/// A program that has to be there, and the package that brings it.
const NEEDED: &[(&str, &str)] = &[
    ("/usr/bin/qemu-system-x86_64", "qemu-system-x86"),
    ("/usr/bin/qemu-img", "qemu-utils"),
    ("/usr/sbin/nft", "nftables"),
    ("/usr/bin/syslinux", "syslinux"),
    ("/usr/lib/syslinux/mbr/mbr.bin", "syslinux-common"),
    ("/usr/bin/mcopy", "mtools"),
    ("/usr/sbin/mkfs.vfat", "dosfstools"),
    ("/usr/sbin/mke2fs", "e2fsprogs"),
    ("/usr/sbin/mkntfs", "ntfs-3g"),
    ("/usr/sbin/sfdisk", "fdisk"),
    ("/usr/bin/cpio", "cpio"),
    ("/usr/bin/vhdiinfo", "libvhdi-utils"),
    ("/usr/bin/etcd", "etcd-server"),
    ("/usr/sbin/bird", "bird2"),
    ("/usr/bin/openssl", "openssl"),
    ("/usr/bin/python3", "python3"),
    ("/sbin/ip", "iproute2"),
    ("/usr/bin/gcc", "gcc"),
    ("/usr/lib/x86_64-linux-gnu/libc.a", "libc6-dev"),
];

/// Installs the packages that the project needs and that are missing.
pub fn install() -> anyhow::Result<()> {
    install_all(NEEDED)
}

/// Installs the packages of those programs that are missing.
pub fn install_all(needed: &[(&str, &'static str)]) -> anyhow::Result<()> {
    let missing: Vec<&str> =
        needed.iter().filter(|(file, _)| !Path::new(file).exists()).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("installing {}", missing.join(" "));
    if output("id", &["-u"])?.trim() != "0" {
        bail!("missing: {}; run this as root once, or: apt-get install {0}", missing.join(" "));
    }
    run("apt-get", &["update", "-qq"]).context("cannot update the package lists")?;
    if apt_install(&missing).is_ok() {
        return Ok(());
    }
    // Debian's QEMU packages have to be of one version. Where newer tools from elsewhere are in the way of the
    // emulator, they step back to the emulator's version.
    let version = candidate("qemu-system-x86")?;
    println!("trying again with qemu-utils of the same version, {version}");
    let tools = format!("qemu-utils={version}");
    let mut packages = missing;
    packages.push(&tools);
    apt_install(&packages).with_context(|| format!("cannot install {}", packages.join(" ")))
}

fn apt_install(packages: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new("apt-get");
    command.args(["install", "-y", "-qq", "--no-install-recommends", "--allow-downgrades"]).args(packages);
    command.env("DEBIAN_FRONTEND", "noninteractive");
    let output = command.output().context("cannot run apt-get")?;
    if !output.status.success() {
        bail!("apt-get: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// The version of a package that would be installed.
fn candidate(package: &str) -> anyhow::Result<String> {
    let policy = output("apt-cache", &["policy", package])?;
    let line = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
    line.map(str::to_owned).with_context(|| format!("apt knows no package {package}"))
}

/// Fetches a package's file without installing it, and unpacks it into `target`.
pub fn unpack_package(package: &str, target: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(target)?;
    let uri_list = output("apt-get", &["download", "--print-uris", package]);
    if uri_list.is_err() {
        run("apt-get", &["update", "-qq"]).context("cannot update the package lists")?;
    }
    let mut command = Command::new("apt-get");
    let status =
        command.args(["download", "-qq", "-o", "APT::Sandbox::User=root", package]).current_dir(target).status()?;
    if !status.success() {
        bail!("apt-get cannot download {package}");
    }
    for entry in std::fs::read_dir(target)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            let (file, folder) = (path.to_string_lossy(), target.to_string_lossy());
            run("dpkg-deb", &["-x", &file, &folder])?;
            std::fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// The package of the newest cloud kernel.
pub fn kernel_package() -> anyhow::Result<String> {
    let find = || {
        let depends = output("apt-cache", &["depends", "linux-image-cloud-amd64"]).ok()?;
        let name = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: "))?;
        Some(name.to_owned())
    };
    if let Some(name) = find() {
        return Ok(name);
    }
    run("apt-get", &["update", "-qq"]).context("cannot update the package lists")?;
    find().context("apt knows no cloud kernel (linux-image-cloud-amd64)")
}
