//! How hosts carry packets to each other's guests.

use serde::{Deserialize, Serialize};

/// How hosts carry packets to each other's guests. All hosts of a location do it in the same way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transit {
    /// Through a VXLAN tunnel: works over any network that carries UDP between hosts, also where it is routed.
    #[default]
    Vxlan,
    /// As they are, where the hosts share a network at layer 2, or their routers know where every guest is: nothing is
    /// wrapped up, so more fits into a packet and less is done to it.
    Routed,
}

/// Bytes that VXLAN over IPv4 adds to a guest's packet: outer IP, UDP and VXLAN headers, and the inner Ethernet header.
const VXLAN_BYTES: u16 = 50;

impl Transit {
    /// The largest packet of a guest that passes to another host, where the network between them carries packets of
    /// `underlay_mtu` bytes.
    pub fn guest_mtu(self, underlay_mtu: u16) -> u16 {
        match self {
            Transit::Vxlan => underlay_mtu.saturating_sub(VXLAN_BYTES),
            Transit::Routed => underlay_mtu,
        }
    }
}
