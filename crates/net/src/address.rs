//! The addresses and device names that are the same on every host.

use std::net::{Ipv4Addr, Ipv6Addr};

use mayfly_model::VmId;

/// Where guests find wire server and DNS (the original platform's address).
pub const WIRE_SERVER: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);
/// Where guests' agents upload their status, on the wire server's address.
pub const PLUGIN_PORT: u16 = 32526;
/// Where guests find instance metadata.
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// The network that DIPs are from, as guests see it.
pub const DIP_NETWORK: Ipv4Addr = Ipv4Addr::new(10, 80, 0, 0);
/// Bits of the network part of [`DIP_NETWORK`].
pub const DIP_PREFIX: u8 = 16;
/// The guests' gateway: every host, for its own guests.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 80, 0, 1);
/// The guests' gateway over IPv6: on each tap, their host.
pub const TAP_GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// The network of the hosts inside the overlay.
pub const OVERLAY_NETWORK: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 0);
/// Bits of the network part of [`OVERLAY_NETWORK`].
pub const OVERLAY_PREFIX: u8 = 16;
/// The host's device into the data centre's network.
pub const UNDERLAY_DEVICE: &str = "eth0";
/// The tunnel device.
pub const OVERLAY_DEVICE: &str = "mfvx";
/// The encrypted tunnel's device.
pub const TUNNEL_DEVICE: &str = "mfwg";
/// Where it is spoken to by other hosts (the usual port of WireGuard).
pub const TUNNEL_PORT: u16 = 51820;
/// The table of routes that lead into it.
pub const TUNNEL_TABLE: u32 = 7077;
/// The port of VXLAN (RFC 7348).
pub const VXLAN_PORT: u16 = 4789;
/// Where hosts give each other chunks of images.
pub const IMAGE_PORT: u16 = 7473;
/// What all taps start with.
pub const TAP_PREFIX: &str = "mft";
/// What the devices start with through which guests' packets are led to limit their rate.
pub const RATE_PREFIX: &str = "mfi";
/// The VXLAN's number.
pub const OVERLAY_ID: u32 = 7070;
/// The routing protocol number by which the agent knows its own routes again.
pub const ROUTE_PROTOCOL: u8 = 77;
/// The same of routes into the tunnel.
pub const TUNNEL_ROUTE_PROTOCOL: u8 = 78;

/// The tap of a VM.
pub fn tap_name(vm: VmId) -> String {
    format!("{TAP_PREFIX}{}", vm.0)
}
