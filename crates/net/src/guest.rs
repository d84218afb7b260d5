//! What a guest asks on its own tap: its addresses, and who its router is.

use std::net::Ipv6Addr;

use crate::dhcp::{self, DhcpLease};
use crate::error::NetError;
use crate::links::Links;
use crate::{dhcp6, router};

/// Answers the guest behind `tap` for ever, over IPv6 too if its lease says so.
///
/// # Errors
/// [`NetError`] when the sockets cannot be made or the tap is gone.
pub async fn serve_guest(links: &Links, tap: &str, lease: DhcpLease) -> Result<(), NetError> {
    let newer = async {
        let Some(address) = lease.ipv6 else { return };
        if let Err(error) = serve_ipv6(links, tap, address, lease.mtu).await {
            // What is older goes on.
            tracing::error!(tap, %error, "nobody answers its guest over IPv6 any more");
        }
    };
    tokio::join!(dhcp::serve(tap, &lease), newer).0
}

async fn serve_ipv6(links: &Links, tap: &str, address: Ipv6Addr, mtu: u16) -> Result<(), NetError> {
    let (device, mac) = (links.index(tap).await?, links.mac(tap).await?);
    tokio::try_join!(dhcp6::serve(tap, device, address), router::advertise(tap, device, mac, mtu)).map(drop)
}
