//! Gratuitous ARP: telling the neighbours that an address lives here now.

use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

use socket2::{Domain, Protocol, Socket, Type};

use crate::error::NetError;

const ETHERTYPE_ARP: u16 = 0x0806;

/// Broadcasts that `address` is at `mac` on the device with this index (RFC 5227, announcement).
///
/// # Errors
/// [`NetError::Io`].
pub fn announce(device: u32, mac: [u8; 6], address: Ipv4Addr) -> Result<(), NetError> {
    let frame = frame(mac, address);
    let protocol = Protocol::from(i32::from(ETHERTYPE_ARP.to_be()));
    let fail = || NetError::io(format!("announce {address}"));
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol)).map_err(fail())?;
    send(&socket, device, &frame).map_err(fail())
}

#[expect(unsafe_code, reason = "a packet socket's address has no safe constructor")]
fn send(socket: &Socket, device: u32, frame: &[u8]) -> std::io::Result<()> {
    // SAFETY: all zeroes is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = ETHERTYPE_ARP.to_be();
    address.sll_ifindex = device as i32;
    address.sll_halen = 6;
    address.sll_addr[..6].fill(0xff);
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

fn frame(mac: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    let mut frame = Vec::with_capacity(42);
    frame.extend([0xff; 6]);
    frame.extend(mac);
    frame.extend(ETHERTYPE_ARP.to_be_bytes());
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]); // Ethernet, IPv4, sizes, request
    frame.extend(mac);
    frame.extend(address.octets());
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame
}
