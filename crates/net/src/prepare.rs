//! Setting up a host's network namespace, and the taps in it, before there is anything to do.

use std::fs;

use crate::address::{GATEWAY, METADATA, WIRE_SERVER};
use crate::error::NetError;
use crate::links::Links;

/// Sets up what is the same for all goal states, in the calling thread's network namespace.
///
/// # Errors
/// [`NetError`].
pub async fn prepare_host(links: &Links) -> Result<(), NetError> {
    sysctl("net/ipv4/ip_forward", "1")?;
    for scope in ["all", "default"] {
        sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "0")?;
        // Nobody is to learn of a way around this host.
        sysctl(&format!("net/ipv4/conf/{scope}/send_redirects"), "0")?;
        // Hosts without IPv6 lack this.
        let _ = sysctl(&format!("net/ipv6/conf/{scope}/disable_ipv6"), "1");
    }
    // Connections that are over are remembered for as long as stray packets of them may come; the usual two minutes would fill
    // the kernel's table at two thousand new connections a second. A kernel that follows none yet lacks these.
    for (state, seconds) in [("time_wait", "10"), ("close_wait", "30"), ("fin_wait", "30"), ("last_ack", "10")] {
        let _ = sysctl(&format!("net/netfilter/nf_conntrack_tcp_timeout_{state}"), seconds);
    }
    for address in [WIRE_SERVER, METADATA, GATEWAY] {
        links.add_address("lo", address, 32).await?;
    }
    Ok(())
}

/// Sets what has to be set on a new tap.
///
/// # Errors
/// [`NetError::Io`].
pub fn prepare_tap(tap: &str) -> Result<(), NetError> {
    // The host answers ARP for every address that it can reach on another device, without the usual random delay.
    sysctl(&format!("net/ipv4/conf/{tap}/proxy_arp"), "1")?;
    sysctl(&format!("net/ipv4/neigh/{tap}/proxy_delay"), "0")?;
    sysctl(&format!("net/ipv4/conf/{tap}/send_redirects"), "0")?;
    let _ = sysctl(&format!("net/ipv6/conf/{tap}/disable_ipv6"), "1");
    Ok(())
}

fn sysctl(name: &str, value: &str) -> Result<(), NetError> {
    fs::write(format!("/proc/sys/{name}"), value).map_err(NetError::io(format!("set {}", name.replace('/', "."))))
}
