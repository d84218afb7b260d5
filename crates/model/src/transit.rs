//! How hosts carry packets to each other's guests.

use std::fmt;

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
    /// Through VXLAN, and that, with all else that hosts say to each other, through WireGuard: nobody on the way can read or
    /// change it. It costs the most.
    Wireguard,
}

/// Bytes that VXLAN over IPv4 adds to a guest's packet: outer IP, UDP and VXLAN headers, and the inner Ethernet header.
const VXLAN_BYTES: u16 = 50;

impl fmt::Display for Transit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Transit::Vxlan => "vxlan",
            Transit::Routed => "routed",
            Transit::Wireguard => "wireguard",
        })
    }
}

impl Transit {
    /// Bytes that WireGuard over IPv4 adds: outer IP, UDP and data headers, and the authentication tag.
    pub const TUNNEL_BYTES: u16 = 60;

    /// The largest packet of a guest that passes to another host, where the network between them carries packets of
    /// `underlay_mtu` bytes.
    pub fn guest_mtu(self, underlay_mtu: u16) -> u16 {
        match self {
            Transit::Vxlan => underlay_mtu.saturating_sub(VXLAN_BYTES),
            Transit::Wireguard => underlay_mtu.saturating_sub(Transit::TUNNEL_BYTES + VXLAN_BYTES),
            Transit::Routed => underlay_mtu,
        }
    }

    /// Whether guests' packets are wrapped up in VXLAN.
    pub fn has_overlay(self) -> bool {
        match self {
            Transit::Vxlan | Transit::Wireguard => true,
            Transit::Routed => false,
        }
    }

    /// Whether what hosts say to each other is encrypted.
    pub fn encrypts(self) -> bool {
        self == Transit::Wireguard
    }
}
