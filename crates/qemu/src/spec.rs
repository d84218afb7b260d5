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
    /// The Unix socket on which the disk server serves the disk.
    pub disk_socket: PathBuf,
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
        arguments.pair("-machine", "q35");
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

    fn disk(&self, arguments: &mut Arguments) {
        let options = format!(",node-name=disk,reconnect-delay={DISK_RECONNECT_SECONDS}");
        arguments.path_pair("-blockdev", "driver=nbd,server.type=unix,server.path=", &self.disk_socket, &options);
        arguments.pair("-device", "virtio-blk-pci,drive=disk,bootindex=0");
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

    #[test]
    fn a_specification_becomes_arguments() {
        let spec = VmSpec {
            name: "vm7".to_owned(),
            accelerator: Accelerator::Tcg,
            vcpus: 2,
            memory_mib: 768,
            disk_socket: "/run/a,b/disk.sock".into(),
            tap: "mft7".to_owned(),
            mac: [2, 0, 10, 80, 0, 2],
            firmware: Firmware {
                uuid: "u".to_owned(),
                serial: "ds=nocloud-net;s=http://169.254.169.254/nocloud/".to_owned(),
            },
            folder: "/run/vm7".into(),
        };
        let text: Vec<String> = spec.arguments().into_iter().map(|one| one.into_string().unwrap()).collect();
        let text = text.join("\n") + "\n";
        let golden = include_str!("../tests/arguments.golden");
        assert_eq!(text, golden, "if this is meant, write it to crates/qemu/tests/arguments.golden:\n{text}");
    }
}
