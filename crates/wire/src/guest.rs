//! Who asks.

use std::net::Ipv4Addr;

use mayfly_model::VmGoal;

/// A guest, as the protocols show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// What it should be.
    pub goal: VmGoal,
    /// The number of the guest's own goal state; grows when its settings change.
    pub incarnation: u64,
    /// Its domain, for example `shop.internal.mayfly.test`.
    pub domain: String,
    /// The location's name.
    pub location: String,
}

impl Guest {
    /// The container's id: a UUID made of the VM's id.
    pub fn container_id(&self) -> String {
        self.uuid("c0")
    }

    /// The system's UUID, new with each VM.
    pub fn system_uuid(&self) -> String {
        self.uuid("51")
    }

    /// `{deployment}.{instance}`.
    pub fn instance_id(&self) -> String {
        format!("{}.{}", self.goal.deployment_id, self.goal.instance.name())
    }

    /// A UUID (version 8: made by the maker's own rule) of the deployment's id and the VM's.
    fn uuid(&self, kind: &str) -> String {
        let deployment = &self.goal.deployment_id;
        let part = |from: usize, to: usize| deployment.get(from..to).unwrap_or("0000");
        format!("{}-{}-8{}-8{kind}0-{:012x}", part(0, 8), part(8, 12), part(12, 15), self.goal.vm.0)
    }
}

/// What a guest says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthReport {
    /// Whether it is ready.
    pub ready: bool,
    /// Its own words, if it is not.
    pub detail: String,
}

/// The guests of a host.
pub trait Guests: Send + Sync + 'static {
    /// The guest with this address.
    fn guest(&self, address: Ipv4Addr) -> Option<Guest>;

    /// The guest with this address has said how it is.
    fn report(&self, address: Ipv4Addr, report: HealthReport);
}
