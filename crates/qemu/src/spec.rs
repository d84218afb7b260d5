//! What a VM consists of, and the QEMU arguments that make it so.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::accelerator::Accelerator;

/// What the guest reads in its firmware tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Firmware {
    /// The system's UUID.
    pub uuid: String,
    /// Whose machine it is.
    pub maker: Maker,
}

/// Whose machine a guest finds itself on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Maker {
    /// Mayfly's own, with this serial number; a NoCloud seed's address can stand there.
    Mayfly {
        /// The system's serial number.
        serial: String,
    },
    /// The original platform's, as agents made for it look for it: the names in the tables, the asset tag, and no word of a
    /// hypervisor from the processor (systemd takes the tables' word then).
    Azure,
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

/// The asset tag of the original platform's machines, by which cloud-init knows them.
const ASSET_TAG: &str = "7783-7084-3265-9085-8269-3286-77";

/// A further disk, over NBD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalDisk {
    /// Its serial number.
    pub name: String,
    /// The Unix socket on which the disk server serves it.
    pub socket: PathBuf,
}

/// Where a VM's memory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Memory {
    /// Its own, and gone with it.
    Own,
    /// A file that becomes a template's memory.
    Template(PathBuf),
    /// A template's file, of which it sees what it has not changed itself. The VM waits to be told its other state.
    Clone(PathBuf),
}

/// What a VM's card leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Network {
    /// A tap device, made beforehand.
    Tap(String),
    /// Nothing: what is sent is lost.
    Nowhere,
}

/// What a guest sees its network card as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Card {
    /// virtio-net.
    Virtio,
    /// An Intel 82574L, which systems know by themselves.
    E1000e,
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
    /// Further disks.
    pub local_disks: Vec<LocalDisk>,
    /// The image in its CD drive; without one it has no such drive.
    pub cdrom: Option<PathBuf>,
    /// Where its memory is.
    pub memory: Memory,
    /// A file whose text the guest finds as its identity (`opt/org.mayfly/identity` of QEMU's fw_cfg). Its length never changes.
    pub identity: Option<PathBuf>,
    /// What its card leads to.
    pub network: Network,
    /// What the guest sees it as.
    pub card: Card,
    /// The hardware address of the guest's card.
    pub mac: [u8; 6],
    /// What the guest reads in its firmware tables.
    pub firmware: Firmware,
    /// The folder for the monitor's socket, the serial console's socket and log, and the process id.
    pub folder: PathBuf,
}

/// The id of the CD drive.
pub(crate) const CD_DRIVE: &str = "cd";
/// The name of its medium.
pub(crate) const CD_MEDIUM: &str = "medium";
/// Most local disks of a guest that has SATA: its controller has six ports.
pub const SATA_LOCAL_DISKS_MAX: usize = 4;

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
        let hides = if self.firmware.maker == Maker::Azure { ",-hypervisor" } else { "" };
        arguments.pair("-cpu", &format!("{cpu}{hides}"));
        arguments.pair("-smp", &self.vcpus.to_string());
        arguments.pair("-m", &format!("{}M", self.memory_mib));
        self.disk(&mut arguments);
        self.local_disks(&mut arguments);
        self.cdrom(&mut arguments);
        let mac = self.mac.map(|byte| format!("{byte:02x}")).join(":");
        match &self.network {
            Network::Tap(name) => {
                arguments.pair("-netdev", &format!("tap,id=n0,ifname={},script=no,downscript=no", escape(name)));
            }
            Network::Nowhere => arguments.pair("-netdev", "hubport,id=n0,hubid=0"),
        }
        let card = match self.card {
            Card::Virtio => "virtio-net-pci",
            Card::E1000e => "e1000e",
        };
        arguments.pair("-device", &format!("{card},netdev=n0,mac={mac},romfile="));
        arguments.pair("-device", "virtio-rng-pci");
        // A picture of its screen can be taken. Four MiB are 1024 by 768 points.
        arguments.pair("-device", "VGA,vgamem_mb=4");
        // A guest whose kernel has given up says so, and waits for its host to start it again.
        arguments.pair("-device", "pvpanic-pci");
        arguments.pair("-action", "panic=pause");
        self.firmware(&mut arguments);
        if let Some(identity) = &self.identity {
            arguments.path_pair("-fw_cfg", "name=opt/org.mayfly/identity,file=", identity, "");
        }
        if let Memory::Clone(_) = self.memory {
            arguments.pair("-incoming", "defer");
        }
        arguments.path_pair("-pidfile", "", &self.pid_file(), "");
        arguments.path_pair("-qmp", "unix:", &self.monitor(), ",server=on,wait=off");
        let log = format!(",server=on,wait=off,logfile={},logappend=on", escape(&self.serial_log().to_string_lossy()));
        arguments.path_pair("-chardev", "socket,id=serial,path=", &self.folder.join("serial.sock"), &log);
        arguments.pair("-serial", "chardev:serial");
        arguments.0
    }

    fn firmware(&self, arguments: &mut Arguments) {
        let uuid = escape(&self.firmware.uuid);
        match &self.firmware.maker {
            Maker::Mayfly { serial } => {
                let serial = escape(serial);
                let names = format!("manufacturer=Mayfly,product=Virtual Machine,uuid={uuid},serial={serial}");
                arguments.pair("-smbios", &format!("type=1,{names}"));
            }
            Maker::Azure => {
                let names = "manufacturer=Microsoft Corporation,product=Virtual Machine";
                arguments.pair("-smbios", "type=0,vendor=American Megatrends Inc.,version=090008");
                // systemd looks for the first word of the version.
                let version = "version=Hyper-V UEFI Release v4.1";
                arguments.pair("-smbios", &format!("type=1,{names},{version},uuid={uuid}"));
                arguments.pair("-smbios", &format!("type=2,{names}"));
                arguments.pair("-smbios", &format!("type=3,manufacturer=Microsoft Corporation,asset={ASSET_TAG}"));
            }
        }
    }

    fn machine(&self, arguments: &mut Arguments) {
        let size = format!("id=memory,size={}M", self.memory_mib);
        match &self.memory {
            Memory::Own if self.disk.device == DiskDevice::VhostUser => {
                arguments.pair("-object", &format!("memory-backend-memfd,{size},share=on"));
            }
            Memory::Own => return arguments.pair("-machine", "q35"),
            Memory::Template(file) => {
                arguments.path_pair("-object", &format!("memory-backend-file,{size},share=on,mem-path="), file, "");
            }
            Memory::Clone(file) => {
                arguments.path_pair("-object", &format!("memory-backend-file,{size},share=off,mem-path="), file, "");
            }
        }
        arguments.pair("-machine", "q35,memory-backend=memory");
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
    fn local_disks(&self, arguments: &mut Arguments) {
        let full = if self.disk.pause_when_full { "enospc" } else { "report" };
        for (number, LocalDisk { name, socket }) in self.local_disks.iter().enumerate() {
            let options = format!(",node-name=local{number},reconnect-delay={DISK_RECONNECT_SECONDS}");
            arguments.path_pair("-blockdev", "driver=nbd,server.type=unix,server.path=", socket, &options);
            let name = escape(name);
            let device = match self.disk.device {
                DiskDevice::Sata => format!("ide-hd,bus=ide.{},drive=local{number},serial={name}", number + 2),
                DiskDevice::Nvme => format!("nvme,drive=local{number},serial={name}"),
                DiskDevice::Virtio | DiskDevice::VhostUser => {
                    format!("virtio-blk-pci,drive=local{number},serial={name},werror={full}")
                }
            };
            arguments.pair("-device", &device);
        }
    }

    /// A guest that has the drivers for its disk has those for a drive of the same kind.
    fn cdrom(&self, arguments: &mut Arguments) {
        let Some(image) = &self.cdrom else { return };
        let options = format!(",node-name={CD_MEDIUM},read-only=on");
        arguments.path_pair("-blockdev", "driver=raw,file.driver=file,file.filename=", image, &options);
        match self.disk.device {
            DiskDevice::Sata => {
                arguments.pair("-device", &format!("ide-cd,bus=ide.1,drive={CD_MEDIUM},id={CD_DRIVE}"));
            }
            DiskDevice::Virtio | DiskDevice::VhostUser | DiskDevice::Nvme => {
                arguments.pair("-device", "virtio-scsi-pci");
                arguments.pair("-device", &format!("scsi-cd,drive={CD_MEDIUM},id={CD_DRIVE}"));
            }
        }
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
            memory: Memory::Own,
            identity: None,
            network: Network::Tap("mft7".to_owned()),
            card: Card::Virtio,
            mac: [2, 0, 10, 80, 0, 2],
            local_disks: vec![],
            cdrom: None,
            firmware: Firmware {
                uuid: "u".to_owned(),
                maker: Maker::Mayfly { serial: "ds=nocloud-net;s=http://169.254.169.254/nocloud/".to_owned() },
            },
            folder: "/run/vm7".into(),
        }
    }

    #[test]
    fn another_card_is_another_device() {
        let spec = VmSpec { card: Card::E1000e, ..spec() };
        let arguments: Vec<String> =
            spec.arguments().iter().map(|argument| argument.to_string_lossy().into_owned()).collect();
        assert!(arguments.contains(&"e1000e,netdev=n0,mac=02:00:0a:50:00:02,romfile=".to_owned()), "{arguments:?}");
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
    fn the_original_platform_is_known_by_its_names() {
        let mut spec = spec();
        spec.firmware.maker = Maker::Azure;
        spec.cdrom = Some("/run/a,b/provision.iso".into());
        spec.local_disks = vec![LocalDisk { name: "scratch".to_owned(), socket: "/run/l.sock".into() }];
        let text: Vec<String> = spec.arguments().into_iter().map(|one| one.into_string().unwrap()).collect();
        let text = text.join("\n");
        for part in [
            "max,-hypervisor",
            "asset=7783-7084-3265-9085-8269-3286-77",
            "file.filename=/run/a,,b/provision.iso",
            "scsi-cd,drive=medium,id=cd",
            "virtio-blk-pci,drive=local0,serial=scratch",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
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
