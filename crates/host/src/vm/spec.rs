//! What QEMU is started with for a VM.

use std::path::PathBuf;

use mayfly_model::{DiskModel, NetworkCard, Platform, VmGoal};
use mayfly_net::address::tap_name;
use mayfly_qemu::{Card, DiskDevice, DiskSpec, Firmware, LocalDisk, Maker, Memory, Network, VmSpec};

use super::prepare;
use crate::agent::Agent;
use crate::config::DiskFull;

/// Where a NoCloud guest finds its seed, as cloud-init reads it in the firmware's serial number.
const SEED: &str = "ds=nocloud-net;s=http://169.254.169.254/nocloud/";

/// The VM, with these further disks and, if there is one, this image in its CD drive.
pub(super) fn spec(agent: &Agent, goal: &VmGoal, local_disks: Vec<LocalDisk>, cdrom: Option<PathBuf>) -> VmSpec {
    let maker = match goal.guest.platform {
        Platform::NoCloud => Maker::Mayfly { serial: SEED.to_owned() },
        Platform::Azure | Platform::Windows => Maker::Azure,
    };
    VmSpec {
        name: goal.vm.to_string(),
        accelerator: agent.config.accelerator,
        vcpus: goal.size.vcpus(),
        memory_mib: goal.size.resources().memory_mib,
        disk: DiskSpec {
            socket: prepare::disk_socket(agent, goal),
            device: match prepare::model(agent, goal) {
                DiskModel::Virtio => DiskDevice::Virtio,
                DiskModel::VhostUser => DiskDevice::VhostUser,
                DiskModel::Sata => DiskDevice::Sata,
                DiskModel::Nvme => DiskDevice::Nvme,
            },
            pause_when_full: agent.config.disk_full == DiskFull::Pause,
        },
        local_disks,
        cdrom,
        memory: Memory::Own,
        identity: None,
        network: Network::Tap(tap_name(goal.vm)),
        card: match goal.guest.card {
            NetworkCard::Virtio => Card::Virtio,
            NetworkCard::E1000e => Card::E1000e,
        },
        mac: goal.mac(),
        firmware: Firmware { uuid: mayfly_wire::system_uuid(goal), maker },
        folder: agent.ledger.vm_folder(goal.vm),
    }
}
