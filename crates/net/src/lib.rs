//! The host's data plane.
//!
//! Each instance has a tap of its own and a /32; the host is its gateway, DHCP, DNS and metadata server, and answers
//! ARP for everybody. Between hosts, DIPs are routed, through one VXLAN device or as they are, encrypted if that is wanted
//! ([`Transit`]). nftables isolates deployments, drops spoofed packets, balances load, limits where guests may go and, by a set whose
//! elements time out in the kernel, takes instances off the network when the host's lease runs out, even if the agent hangs.
//!
//! [`plan`] chooses, purely: from the goal state and what is healthy to rules, routes and addresses. The rest does.

pub mod address;
mod ask;
mod dhcp;
mod dhcp6;
mod dns;
mod error;
mod flows;
mod garp;
mod guest;
mod links;
pub mod mesh;
mod nft;
mod overlay;
pub mod plan;
mod prepare;
pub mod probe;
mod rate;
mod router;
mod routes;
mod tap;
mod tunnel;

pub use dhcp::DhcpLease;
pub use dns::{Asked, DnsServer, Forwarder, Limit, NameObserver, Zone};
pub use error::NetError;
pub use flows::{Flows, forget_strays};
pub use garp::announce;
pub use guest::serve_guest;
pub use links::Links;
pub use nft::Nft;
pub use prepare::{enable_ipv6, has_ipv6, prepare_host, prepare_ipv6, prepare_tap};
pub use tap::{create_tap, delete_tap, traffic};
pub use tunnel::Tunnel;
