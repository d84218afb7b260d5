//! What hosts say of the disks and the traffic of their VMs. It is only shown, changes all the time and is said again with
//! each report, so it is no record.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use mayfly_model::{BootStep, HostName, HostReport, Traffic, VmId};

/// What a VM uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmUsage {
    /// Bytes of the differencing disk's file.
    pub disk_bytes: u64,
    /// Bytes of the base image that are on the host.
    pub image_bytes: u64,
    /// What it has sent and received.
    pub traffic: Traffic,
    /// What it has reached on its way to Ready.
    pub steps: Vec<BootStep>,
}

/// What one host has said.
#[derive(Debug, Default)]
struct Said {
    vms: HashMap<VmId, VmUsage>,
    counters: BTreeMap<String, u64>,
}

/// What each host said last.
#[derive(Debug, Default)]
pub struct Usage(Mutex<BTreeMap<HostName, Said>>);

impl Usage {
    /// Takes a host's word.
    pub fn hear(&self, report: &HostReport) {
        let usage = report.vms.iter().map(|vm| {
            let (disk_bytes, image_bytes, traffic) = (vm.disk_bytes, vm.image_bytes, vm.traffic);
            (vm.vm, VmUsage { disk_bytes, image_bytes, traffic, steps: vm.steps.clone() })
        });
        let said = Said { vms: usage.collect(), counters: report.counters.clone() };
        self.all().insert(report.host.clone(), said);
    }

    /// What was said last of a VM.
    pub fn of(&self, host: &HostName, vm: VmId) -> Option<VmUsage> {
        self.all().get(host)?.vms.get(&vm).cloned()
    }

    /// What each host has counted.
    pub fn counters(&self) -> BTreeMap<HostName, BTreeMap<String, u64>> {
        self.all().iter().map(|(host, said)| (host.clone(), said.counters.clone())).collect()
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<HostName, Said>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
