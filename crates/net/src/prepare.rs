//! Setting up a host's network namespace, and the taps in it, before there is anything to do.

use std::fs;

use mayfly_model::ipv6::PREFIX_BITS;
use mayfly_model::{Ipv6Prefix, PeerGoal, Transit};

use crate::address::{GATEWAY, METADATA, OVERLAY_DEVICE, OVERLAY_PREFIX, TAP_GATEWAY, UNDERLAY_DEVICE, WIRE_SERVER};
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
    }
    // The fabric's own devices speak IPv6 only where that is asked for. Kernels without IPv6 lack this.
    let _ = sysctl("net/ipv6/conf/default/disable_ipv6", "1");
    // Connections that are over are remembered for as long as stray packets of them may come; the usual two minutes would fill
    // the kernel's table at two thousand new connections a second. A kernel that follows none yet lacks these.
    // Of those that one side has closed, the other may have much to say: an earlier version left them less than the kernel does.
    for (state, seconds) in [("time_wait", "10"), ("last_ack", "10"), ("close_wait", "60"), ("fin_wait", "120")] {
        let _ = sysctl(&format!("net/netfilter/nf_conntrack_tcp_timeout_{state}"), seconds);
    }
    for address in [WIRE_SERVER, METADATA, GATEWAY] {
        links.add_address("lo", address, 32).await?;
    }
    Ok(())
}

/// Sets up IPv6 on a host, once there is a way to the others. `bits` is what the hosts' own network has of its addresses.
///
/// # Errors
/// [`NetError`], for example where the kernel has no IPv6.
pub async fn prepare_ipv6(
    links: &Links,
    prefix: Ipv6Prefix,
    own: &PeerGoal,
    (transit, bits): (Transit, u8),
) -> Result<(), NetError> {
    keep_listening_to_routers(links).await?;
    sysctl("net/ipv6/conf/all/forwarding", "1")?;
    // Answers to those whose connections another host balances go to that host.
    let mut addresses = vec![("lo", GATEWAY, 32), (UNDERLAY_DEVICE, own.address, bits)];
    if transit.has_overlay() {
        addresses.push((OVERLAY_DEVICE, own.overlay, OVERLAY_PREFIX));
    }
    for (device, address, bits) in addresses {
        enable_ipv6(device)?;
        links.add_aside(device, prefix.embed(address).into(), PREFIX_BITS + bits).await?;
    }
    Ok(())
}

/// A host that forwards would else hear no more of the routers that tell it its own addresses.
async fn keep_listening_to_routers(links: &Links) -> Result<(), NetError> {
    for device in links.names().await? {
        let is = |name: &str, value: &str| {
            fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{device}/{name}"))
                .is_ok_and(|text| text.trim() == value)
        };
        if is("disable_ipv6", "0") && is("accept_ra", "1") && is("forwarding", "0") {
            sysctl(&format!("net/ipv6/conf/{device}/accept_ra"), "2")?;
        }
    }
    Ok(())
}

/// Whether the kernel has IPv6.
pub fn has_ipv6() -> bool {
    fs::exists("/proc/sys/net/ipv6").unwrap_or(false)
}

/// Lets a device speak IPv6.
///
/// # Errors
/// [`NetError::Io`], for example where the kernel has no IPv6.
pub fn enable_ipv6(device: &str) -> Result<(), NetError> {
    sysctl(&format!("net/ipv6/conf/{device}/disable_ipv6"), "0")
}

/// Sets what has to be set on a tap, for a guest with IPv6 or without.
///
/// # Errors
/// [`NetError`].
pub async fn prepare_tap(links: &Links, tap: &str, ipv6: bool) -> Result<(), NetError> {
    // The host answers ARP for every address that it can reach on another device, without the usual random delay.
    sysctl(&format!("net/ipv4/conf/{tap}/proxy_arp"), "1")?;
    sysctl(&format!("net/ipv4/neigh/{tap}/proxy_delay"), "0")?;
    sysctl(&format!("net/ipv4/conf/{tap}/send_redirects"), "0")?;
    if !ipv6 {
        let _ = sysctl(&format!("net/ipv6/conf/{tap}/disable_ipv6"), "1");
        return Ok(());
    }
    // The host is there at one address that all guests are told, and no other; and it learns nothing from a guest.
    for (name, value) in [("addr_gen_mode", "1"), ("accept_ra", "0"), ("accept_redirects", "0"), ("disable_ipv6", "0")]
    {
        sysctl(&format!("net/ipv6/conf/{tap}/{name}"), value)?;
    }
    links.add_address(tap, TAP_GATEWAY, 64).await
}

pub(crate) fn sysctl(name: &str, value: &str) -> Result<(), NetError> {
    fs::write(format!("/proc/sys/{name}"), value).map_err(NetError::io(format!("set {}", name.replace('/', "."))))
}
