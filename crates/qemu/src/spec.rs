//! What a VM consists of, and the QEMU arguments that make it so.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::accelerator::Accelerator;

/// What the guest reads in its firmware tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Firmware {
    /// The system's UUID.
    pub uuid: String,
    /// The system's serial number; a NoCloud seed's address can stand here.
    pub serial: String,
}

/// What the guest sees its disk as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskDevice {
    /// virtio-blk, over NBD.
    Virtio,
    /// virtio-blk, over vhost-user: the guest's memory is shared with the disk server.
    VhostUser,
    /// A SATA disk, over NBD.
    Sata,
    /// An NVMe disk, over NBD.
    Nvme,
}

/// A VM's disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSpec {
    /// The Unix socket on which the disk server serves it.
    pub socket: PathBuf,
    /// What the guest sees it as.
    pub device: DiskDevice,
    /// Whether a guest is paused that writes when the host's disk is full; else its write fails.
    pub pause_when_full: bool,
}

/// One VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmSpec {
    /// A name for process listings.
    pub name: String,
    /// How instructions are executed.
    pub accelerator: Accelerator,
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// The disk.
    pub disk: DiskSpec,
    /// The tap device, made beforehand.
    pub tap: String,
    /// The hardware address of the guest's card.
    pub mac: [u8; 6],
    /// What the guest reads in its firmware tables.
    pub firmware: Firmware,
    /// The folder for the monitor's socket, the serial console's socket and log, and the process id.
    pub folder: PathBuf,
}

/// Seconds that a guest's requests wait for a disk server that is being restarted.
const DISK_RECONNECT_SECONDS: u32 = 30;
/// Queues that the disk server offers.
const VHOST_QUEUES_MAX: u32 = 8;
/// MiB that TCG may use for translated code; the default of up to 1 GiB is too much for many small guests.
const TCG_CACHE_MIB: u32 = 64;

impl VmSpec {
    /// The monitor's socket.
    pub fn monitor(&self) -> PathBuf {
        self.folder.join("qmp.sock")
    }

    /// The file with the process id.
    pub fn pid_file(&self) -> PathBuf {
        self.folder.join("qemu.pid")
    }

    /// The serial console's log.
    pub fn serial_log(&self) -> PathBuf {
        self.folder.join("serial.log")
    }

    /// QEMU's arguments.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut arguments = Arguments(Vec::new());
        arguments.pair("-name", &format!("{},process={}", escape(&self.name), escape(&self.name)));
        arguments.flags("-nodefaults -no-user-config -display none");
        arguments.pair("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
        let (accelerator, cpu) = match self.accelerator {
            Accelerator::Kvm => ("kvm".to_owned(), "host"),
            Accelerator::Tcg => (format!("tcg,thread=multi,tb-size={TCG_CACHE_MIB}"), "max"),
        };
        arguments.pair("-accel", &accelerator);
        self.machine(&mut arguments);
        arguments.pair("-cpu", cpu);
        arguments.pair("-smp", &self.vcpus.to_string());
        arguments.pair("-m", &format!("{}M", self.memory_mib));
        self.disk(&mut arguments);
        let mac = self.mac.map(|byte| format!("{byte:02x}")).join(":");
        arguments.pair("-netdev", &format!("tap,id=n0,ifname={},script=no,downscript=no", escape(&self.tap)));
        arguments.pair("-device", &format!("virtio-net-pci,netdev=n0,mac={mac},romfile="));
        arguments.pair("-device", "virtio-rng-pci");
        let Firmware { uuid, serial } = &self.firmware;
        let (uuid, serial) = (escape(uuid), escape(serial));
        arguments.pair(
            "-smbios",
            &format!("type=1,manufacturer=Mayfly,product=Virtual Machine,uuid={uuid},serial={serial}"),
        );
        arguments.path_pair("-pidfile", "", &self.pid_file(), "");
        arguments.path_pair("-qmp", "unix:", &self.monitor(), ",server=on,wait=off");
        let log = format!(",server=on,wait=off,logfile={},logappend=on", escape(&self.serial_log().to_string_lossy()));
        arguments.path_pair("-chardev", "socket,id=serial,path=", &self.folder.join("serial.sock"), &log);
        arguments.pair("-serial", "chardev:serial");
        arguments.0
    }

    fn machine(&self, arguments: &mut Arguments) {
        if self.disk.device == DiskDevice::VhostUser {
            let memory = format!("memory-backend-memfd,id=memory,size={}M,share=on", self.memory_mib);
            arguments.pair("-object", &memory);
            arguments.pair("-machine", "q35,memory-backend=memory");
        } else {
            arguments.pair("-machine", "q35");
        }
    }

    fn disk(&self, arguments: &mut Arguments) {
        let socket = &self.disk.socket;
        if self.disk.device == DiskDevice::VhostUser {
            // The disk server waits by itself when the host's disk is full. Without its write cache being shown as one,
            // a guest would send no flushes.
            arguments.path_pair("-chardev", "socket,id=disk,path=", socket, ",reconnect=1");
            let queues = self.vcpus.min(VHOST_QUEUES_MAX);
            let device = format!("vhost-user-blk-pci,chardev=disk,num-queues={queues},config-wce=off,bootindex=0");
            return arguments.pair("-device", &device);
        }
        let options = format!(",node-name=disk,reconnect-delay={DISK_RECONNECT_SECONDS}");
        arguments.path_pair("-blockdev", "driver=nbd,server.type=unix,server.path=", socket, &options);
        let full = if self.disk.pause_when_full { "enospc" } else { "report" };
        let device = match self.disk.device {
            DiskDevice::Sata => format!("ide-hd,bus=ide.0,drive=disk,bootindex=0,werror={full}"),
            // It knows no policy: a write to a full disk fails.
            DiskDevice::Nvme => "nvme,drive=disk,serial=mayfly,bootindex=0".to_owned(),
            DiskDevice::Virtio | DiskDevice::VhostUser => {
                format!("virtio-blk-pci,drive=disk,bootindex=0,werror={full}")
            }
        };
        arguments.pair("-device", &device);
    }
}

struct Arguments(Vec<OsString>);

impl Arguments {
    fn flags(&mut self, flags: &str) {
        self.0.extend(flags.split(' ').map(OsString::from));
    }

    fn pair(&mut self, option: &str, value: &str) {
        self.0.extend([option.into(), value.into()]);
    }

    fn path_pair(&mut self, option: &str, before: &str, path: &Path, after: &str) {
        // A process id file is a plain argument; all others are option lists, where a comma has to be doubled.
        let path = path.to_string_lossy();
        let path = if before.is_empty() { path.into_owned() } else { escape(&path) };
        self.pair(option, &format!("{before}{path}{after}"));
    }
}

/// A value within an option list.
fn escape(text: &str) -> String {
    text.replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> VmSpec {
        VmSpec {
            name: "vm7".to_owned(),
            accelerator: Accelerator::Tcg,
            vcpus: 2,
            memory_mib: 768,
            disk: DiskSpec { socket: "/run/a,b/disk.sock".into(), device: DiskDevice::Virtio, pause_when_full: true },
            tap: "mft7".to_owned(),
            mac: [2, 0, 10, 80, 0, 2],
            firmware: Firmware {
                uuid: "u".to_owned(),
                serial: "ds=nocloud-net;s=http://169.254.169.254/nocloud/".to_owned(),
            },
            folder: "/run/vm7".into(),
        }
    }

    #[test]
    fn other_disks_are_other_devices() {
        for (device, expected) in [
            (DiskDevice::Sata, "ide-hd,bus=ide.0,drive=disk"),
            (DiskDevice::Nvme, "nvme,drive=disk"),
            (DiskDevice::VhostUser, "vhost-user-blk-pci,chardev=disk,num-queues=2,config-wce=off"),
        ] {
            let mut spec = spec();
            spec.disk.device = device;
            let text: Vec<String> = spec.arguments().into_iter().map(|one| one.into_string().unwrap()).collect();
            assert!(text.iter().any(|one| one.starts_with(expected)), "{text:?}");
            let shared = text.iter().any(|one| one.contains("share=on"));
            assert_eq!(shared, device == DiskDevice::VhostUser, "{text:?}");
        }
    }

    #[test]
    fn a_specification_becomes_arguments() {
        let spec = spec();
        let text: Vec<String> = spec.arguments().into_iter().map(|one| one.into_string().unwrap()).collect();
        let text = text.join("\n") + "\n";
        let golden = include_str!("../tests/arguments.golden");
        assert_eq!(text, golden, "if this is meant, write it to crates/qemu/tests/arguments.golden:\n{text}");
    }
}
