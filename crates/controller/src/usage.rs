//! What hosts say of the disks of their VMs. It is only shown, changes all the time and is said again with each report,
//! so it is no record.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use mayfly_model::{HostName, HostReport, VmId};

/// The disk of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskUsage {
    /// Bytes of the differencing disk's file.
    pub disk_bytes: u64,
    /// Bytes of the base image that are on the host.
    pub image_bytes: u64,
}

/// The disks, as each host said last.
#[derive(Debug, Default)]
pub struct Usage(Mutex<HashMap<HostName, HashMap<VmId, DiskUsage>>>);

impl Usage {
    /// Takes a host's word.
    pub fn hear(&self, report: &HostReport) {
        let usage =
            report.vms.iter().map(|vm| (vm.vm, DiskUsage { disk_bytes: vm.disk_bytes, image_bytes: vm.image_bytes }));
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(report.host.clone(), usage.collect());
    }

    /// What was said last.
    pub fn of(&self, host: &HostName, vm: VmId) -> Option<DiskUsage> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(host)?.get(&vm).copied()
    }
}
