//! Handing out addresses: each DIP to one VM, each VIP to one deployment.

use std::net::Ipv4Addr;

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

    /// Whether this is one of them.
    pub(crate) fn contains(self, address: Ipv4Addr) -> bool {
        let number = u32::from(address).wrapping_sub(u32::from(self.network));
        (2..2 + self.usable()).contains(&number)
    }

    fn address(self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network) + 2 + number)
    }

    /// The first address, which the hosts themselves answer to.
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network) + 1)
    }
}

/// The next free address of a range from number `start` on, and where to go on looking after it. Addresses are taken in
/// turn, so that one that was given back is the last to be used again.
pub(crate) fn next_free(used: impl Fn(&Ipv4Addr) -> bool, range: AddressRange, start: u32) -> Option<(Ipv4Addr, u32)> {
    (0..range.usable())
        .map(|step| (start.wrapping_add(step)) % range.usable())
        .map(|number| (range.address(number), number + 1))
        .find(|(address, _)| !used(address))
}
