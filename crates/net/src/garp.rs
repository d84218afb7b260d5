//! Telling the neighbours that an address lives here now: gratuitous ARP, and over IPv6 unsolicited neighbour advertisements.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

use socket2::{Domain, Protocol, Socket, Type};

use crate::error::NetError;

const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// Ethernet's addresses for everybody, and for all that speak IPv6.
const EVERYBODY: [u8; 6] = [0xff; 6];
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ICMPV6: u8 = 58;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// Flags of an advertisement: it comes from a router, and what was known before is over.
const ROUTER_OVERRIDE: u8 = 0x80 | 0x20;

/// Tells everybody on the device with this index that `address` is at `mac` (RFC 5227, announcement; RFC 4861, 7.2.6).
///
/// # Errors
/// [`NetError::Io`].
pub fn announce(device: u32, mac: [u8; 6], address: IpAddr) -> Result<(), NetError> {
    let (kind, to, frame) = match address {
        IpAddr::V4(address) => (ETHERTYPE_ARP, EVERYBODY, arp(mac, address)),
        IpAddr::V6(address) => (ETHERTYPE_IPV6, ALL_NODES_MAC, advertisement(mac, address)),
    };
    let fail = || NetError::io(format!("announce {address}"));
    let socket =
        Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(kind.to_be())))).map_err(fail())?;
    send(&socket, device, (kind, to), &frame).map_err(fail())
}

#[expect(unsafe_code, reason = "a packet socket's address has no safe constructor")]
fn send(socket: &Socket, device: u32, (kind, to): (u16, [u8; 6]), frame: &[u8]) -> std::io::Result<()> {
    // SAFETY: all zeroes is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = kind.to_be();
    address.sll_ifindex = device as i32;
    address.sll_halen = 6;
    address.sll_addr[..6].copy_from_slice(&to);
    // SAFETY: frame and address live through the call, and their lengths are right.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        )
    };
    if sent < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

fn arp(mac: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    let mut frame = Vec::with_capacity(42);
    frame.extend(EVERYBODY);
    frame.extend(mac);
    frame.extend(ETHERTYPE_ARP.to_be_bytes());
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]); // Ethernet, IPv4, sizes, request
    frame.extend(mac);
    frame.extend(address.octets());
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame
}

fn advertisement(mac: [u8; 6], address: Ipv6Addr) -> Vec<u8> {
    let mut message = vec![NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, ROUTER_OVERRIDE, 0, 0, 0];
    message.extend(address.octets());
    message.extend([2, 1]); // the target's hardware address, 8 bytes
    message.extend(mac);
    let length = message.len() as u16;
    let pseudo = [&address.octets()[..], &ALL_NODES.octets(), &u32::from(length).to_be_bytes(), &[0, 0, 0, ICMPV6]];
    let sum = checksum(&[&pseudo.concat()[..], &message].concat());
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = Vec::with_capacity(86);
    frame.extend(ALL_NODES_MAC);
    frame.extend(mac);
    frame.extend(ETHERTYPE_IPV6.to_be_bytes());
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(length.to_be_bytes());
    frame.extend([ICMPV6, 255]); // of no use to whom it reaches through a router
    frame.extend(address.octets());
    frame.extend(ALL_NODES.octets());
    frame.extend(message);
    frame
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_advertisement_adds_up() {
        let address = Ipv6Addr::new(0xfd6d, 0, 0, 0, 0, 0, 0x0a4e, 2);
        let frame = advertisement([2, 0, 0, 0, 0, 9], address);
        let (header, message) = frame[14..].split_at(40);
        let length = u32::from(u16::from_be_bytes([header[4], header[5]]));
        assert_eq!(length as usize, message.len());
        let pseudo = [&header[8..], &length.to_be_bytes(), &[0, 0, 0, header[6]]].concat();
        // The sum over what holds its own checksum is nothing.
        assert_eq!(checksum(&[&pseudo[..], message].concat()), 0);
    }
}
