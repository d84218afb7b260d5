//! The two versions of IP: the rules are the same for both, with other words, other addresses and sets of their own.

use std::net::{IpAddr, Ipv4Addr};

use mayfly_model::ipv6::PREFIX_BITS;
use mayfly_model::{Ipv6Prefix, Subnet};

use crate::address::{DIP_NETWORK, DIP_PREFIX};
use crate::plan::Inputs;

/// A version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// What everybody has.
    V4,
    /// What some have besides, with addresses that begin so.
    V6(Ipv6Prefix),
}

impl Family {
    /// Those of a location.
    pub(super) fn of(inputs: &Inputs<'_>) -> impl Iterator<Item = Family> + Clone + use<> {
        [Some(Family::V4), inputs.goal.ipv6.map(Family::V6)].into_iter().flatten()
    }

    /// What nftables calls it in rules.
    pub(super) fn word(self) -> &'static str {
        match self {
            Family::V4 => "ip",
            Family::V6(_) => "ip6",
        }
    }

    /// What nftables calls the type of its addresses.
    pub(super) fn kind(self) -> &'static str {
        match self {
            Family::V4 => "ipv4_addr",
            Family::V6(_) => "ipv6_addr",
        }
    }

    /// The set, map or chain that has this name for the older version.
    pub(super) fn named(self, name: &str) -> String {
        match self {
            Family::V4 => name.to_owned(),
            Family::V6(_) => format!("{V6}{name}"),
        }
    }

    /// The address of whoever has this one.
    pub(super) fn address(self, address: Ipv4Addr) -> IpAddr {
        match self {
            Family::V4 => address.into(),
            Family::V6(prefix) => prefix.embed(address).into(),
        }
    }

    /// A network as this version has it: one of IPv4 addresses stands for the IPv6 addresses that go with them too.
    pub(super) fn network(self, network: Subnet) -> Option<Subnet> {
        match (self, network.address) {
            (Family::V4, IpAddr::V4(_)) | (Family::V6(_), IpAddr::V6(_)) => Some(network),
            (Family::V4, IpAddr::V6(_)) => None,
            (Family::V6(prefix), IpAddr::V4(address)) => {
                Some(Subnet { address: prefix.embed(address).into(), prefix: PREFIX_BITS + network.prefix })
            }
        }
    }

    /// An address with a port.
    pub(super) fn door(self, address: Ipv4Addr, port: u16) -> String {
        std::net::SocketAddr::new(self.address(address), port).to_string()
    }

    /// The network of all private addresses.
    pub(super) fn dips(self) -> String {
        match self {
            Family::V4 => format!("{DIP_NETWORK}/{DIP_PREFIX}"),
            Family::V6(prefix) => {
                let bits = PREFIX_BITS + DIP_PREFIX;
                format!("{}/{bits}", prefix.embed(DIP_NETWORK))
            }
        }
    }
}

/// What the names of the newer version's sets, maps and chains begin with.
pub(super) const V6: &str = "v6_";
