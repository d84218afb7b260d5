//! Handing out addresses: each DIP to one VM, each VIP to one deployment.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use mayfly_model::Instance;

use crate::state::State;

/// A range of IPv4 addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange {
    /// The network's address.
    pub network: Ipv4Addr,
    /// Bits of the network part.
    pub prefix: u8,
}

impl AddressRange {
    /// How many addresses hosts may have: all but the network's, the gateway's (the first) and the broadcast address.
    fn usable(self) -> u32 {
        (1u32 << (32 - u32::from(self.prefix))).saturating_sub(3)
    }

    fn address(self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network) + 2 + number)
    }

    /// The first address, which the hosts themselves answer to.
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network) + 1)
    }
}

/// The next free DIP and where to go on looking after it. Addresses are taken in turn, so that an address that was
/// given back is the last to be used again.
pub(crate) fn free_dip(state: &State, range: AddressRange, taken: &HashSet<Ipv4Addr>) -> Option<(Ipv4Addr, u32)> {
    let used: HashSet<Ipv4Addr> = state.instances.values().filter_map(Instance::vm).map(|vm| vm.dip).collect();
    let start = state.meta.next_dip;
    (0..range.usable())
        .map(|step| (start + step) % range.usable())
        .map(|number| (range.address(number), number + 1))
        .find(|(address, _)| !used.contains(address) && !taken.contains(address))
}

/// The lowest free VIP.
pub(crate) fn free_vip(state: &State, range: AddressRange) -> Option<Ipv4Addr> {
    let used: HashSet<Ipv4Addr> = state.deployments.values().map(|deployment| deployment.vip).collect();
    (0..range.usable()).map(|number| range.address(number)).find(|address| !used.contains(address))
}
