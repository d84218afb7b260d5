//! The guest's router over IPv6: says that it is there, and that addresses are had by DHCPv6 (RFC 4861).

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket as StdUdpSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

use crate::address::TAP_GATEWAY;
use crate::error::NetError;

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const SOLICITATION: u8 = 133;
const ADVERTISEMENT: u8 = 134;
/// Between two advertisements that nobody has asked for, and for how many seconds each is good.
const INTERVAL: Duration = Duration::from_secs(300);
const LIFETIME: u16 = 1800;
/// Between two advertisements at the least.
const PAUSE: Duration = Duration::from_secs(1);
/// The hop limit by which neighbours know that a packet has passed no router.
const FROM_HERE: u32 = 255;
/// Flags: addresses, and whatever else, are had by DHCPv6.
const MANAGED: u8 = 0x80 | 0x40;

/// Advertises the router on `tap` for ever, at once and whenever the guest asks.
///
/// # Errors
/// [`NetError::Io`] when the socket cannot be made or the tap is gone.
pub(crate) async fn advertise(tap: &str, device: u32, mac: [u8; 6], mtu: u16) -> Result<(), NetError> {
    let socket = socket(tap, device).map_err(NetError::io(format!("advertise the router on {tap}")))?;
    let to = SocketAddr::V6(SocketAddrV6::new(ALL_NODES, 0, 0, device));
    let advertisement = advertisement(mac, mtu);
    let mut buffer = [0; 1500];
    loop {
        // While there is no guest, nobody hears it.
        if let Err(error) = socket.send_to(&advertisement, to).await {
            tracing::debug!(tap, %error, "an advertisement was lost");
        }
        let asked = async {
            // A guest that asks on and on is answered now and then.
            tokio::time::sleep(PAUSE).await;
            loop {
                let (length, _) = socket.recv_from(&mut buffer).await?;
                if buffer[..length].first() == Some(&SOLICITATION) {
                    return Ok(());
                }
            }
        };
        if let Ok(result) = tokio::time::timeout(INTERVAL, asked).await {
            result.map_err(NetError::io(format!("read solicitations on {tap}")))?;
        }
    }
}

fn socket(tap: &str, device: u32) -> std::io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    socket.set_nonblocking(true)?;
    socket.bind_device(Some(tap.as_bytes()))?;
    socket.bind(&SocketAddr::V6(SocketAddrV6::new(TAP_GATEWAY, 0, 0, device)).into())?;
    socket.set_multicast_hops_v6(FROM_HERE)?;
    socket.set_multicast_if_v6(device)?;
    socket.join_multicast_v6(&ALL_ROUTERS, device)?;
    // It is no UDP, but sends and receives messages in the same way.
    UdpSocket::from_std(StdUdpSocket::from(OwnedFd::from(socket)))
}

/// The message; its checksum is the kernel's work.
fn advertisement(mac: [u8; 6], mtu: u16) -> Vec<u8> {
    let mut message = vec![ADVERTISEMENT, 0, 0, 0, 64, MANAGED];
    message.extend(LIFETIME.to_be_bytes());
    // How long neighbours are believed to be there: as the guest likes.
    message.extend([0; 8]);
    // The router's hardware address, and the largest packet.
    message.extend([1, 1]);
    message.extend(mac);
    message.extend([5, 1, 0, 0]);
    message.extend(u32::from(mtu).to_be_bytes());
    message
}
