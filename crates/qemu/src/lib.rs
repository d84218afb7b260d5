//! One VM process: from a typed specification to QEMU's arguments, its monitor (QMP), why it ended, and whether this
//! machine's KVM can be used. It knows nothing of deployments.

pub mod accelerator;
mod process;
mod qmp;
mod spec;

pub use accelerator::{Accelerator, Verdict};
pub use process::{Exit, Machine, MachineError, PROGRAM};
pub use qmp::{Qmp, QmpError, QmpEvent};
pub use spec::{Card, DiskDevice, DiskSpec, Firmware, LocalDisk, Maker, Memory, Network, SATA_LOCAL_DISKS_MAX, VmSpec};
