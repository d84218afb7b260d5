//! What a guest asks on its own tap: its addresses, and who its router is.

use crate::dhcp::{self, DhcpLease};
use crate::error::NetError;
use crate::links::Links;
use crate::{dhcp6, router};

/// Answers the guest behind `tap` for ever, over IPv6 too if its lease says so.
///
/// # Errors
/// [`NetError`] when the sockets cannot be made or the tap is gone.
pub async fn serve_guest(links: &Links, tap: &str, lease: DhcpLease) -> Result<(), NetError> {
    let Some(address) = lease.ipv6 else { return dhcp::serve(tap, &lease).await };
    let (device, mac) = (links.index(tap).await?, links.mac(tap).await?);
    tokio::try_join!(
        dhcp::serve(tap, &lease),
        dhcp6::serve(tap, device, address),
        router::advertise(tap, device, mac, lease.mtu),
    )
    .map(drop)
}
