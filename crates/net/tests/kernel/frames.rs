//! Ethernet frames by hand, and sockets that send and see them.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

const UDP: u8 = 17;
const TCP: u8 = 6;
const SYN: u8 = 2;

/// Two endpoints of an IPv4 packet.
#[derive(Clone, Copy)]
pub struct Way {
    pub from: (Ipv4Addr, u16),
    pub to: (Ipv4Addr, u16),
}

/// The ones' complement sum of RFC 1071.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let sum = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    (!((folded & 0xffff) + (folded >> 16)) as u16).to_be_bytes()
}

/// An Ethernet frame.
pub fn ethernet(to: [u8; 6], from: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), payload].concat()
}

fn ipv4(way: Way, protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let length = (20 + payload.len()) as u16;
    let mut header =
        [&[0x45, 0][..], &length.to_be_bytes(), &[0, 7], &fragment.to_be_bytes(), &[64, protocol, 0, 0]].concat();
    header.extend(way.from.0.octets());
    header.extend(way.to.0.octets());
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum);
    [&header, payload].concat()
}

fn with_sum(way: Way, protocol: u8, mut segment: Vec<u8>, at: usize) -> Vec<u8> {
    let length = (segment.len() as u16).to_be_bytes();
    let pseudo = [&way.from.0.octets()[..], &way.to.0.octets(), &[0, protocol], &length, &segment].concat();
    segment[at..at + 2].copy_from_slice(&checksum(&pseudo));
    segment
}

/// An IPv4 packet with a UDP datagram.
pub fn udp(way: Way, payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len()) as u16;
    let segment =
        [&way.from.1.to_be_bytes()[..], &way.to.1.to_be_bytes(), &length.to_be_bytes(), &[0, 0], payload].concat();
    ipv4(way, UDP, 0, &with_sum(way, UDP, segment, 6))
}

/// The first fragment of an IPv4 packet, too short to hold a whole UDP header's worth of payload.
pub fn fragment(way: Way, payload: &[u8]) -> Vec<u8> {
    let segment = [&way.from.1.to_be_bytes()[..], &way.to.1.to_be_bytes(), &[4, 0, 0, 0], payload].concat();
    ipv4(way, UDP, 0x2000, &segment)
}

/// An IPv4 packet that opens a TCP connection.
pub fn syn(way: Way) -> Vec<u8> {
    let ports = [way.from.1.to_be_bytes(), way.to.1.to_be_bytes()].concat();
    let segment = [&ports[..], &[0, 0, 0, 1, 0, 0, 0, 0, 0x50, SYN, 0x20, 0, 0, 0, 0, 0]].concat();
    ipv4(way, TCP, 0, &with_sum(way, TCP, segment, 16))
}

/// The flags of a TCP segment in a frame, and the port that it came from.
pub fn tcp_of(frame: &[u8]) -> Option<(u16, u8)> {
    let segment = frame.get(34..).filter(|_| frame[12..14] == [8, 0] && frame[23] == TCP)?;
    Some((u16::from_be_bytes([segment[0], segment[1]]), *segment.get(13)?))
}

/// An ARP reply that says that `address` is at `mac`.
pub fn arp_reply(mac: [u8; 6], address: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, 2];
    [&head[..], &mac, &address.octets(), &[0xff; 6], &to.octets()].concat()
}

/// A socket that sends and sees all frames of a device in the calling thread's namespace.
pub struct Tap(OwnedFd);

impl Tap {
    #[expect(unsafe_code, reason = "packet sockets have no safe constructor")]
    pub fn open(device: &str) -> Tap {
        let all = u16::to_be(libc::ETH_P_ALL as u16);
        // SAFETY: plain system calls; the address is whole and its length is right.
        unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(all));
            assert!(fd >= 0, "{}", std::io::Error::last_os_error());
            let socket = OwnedFd::from_raw_fd(fd);
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = all;
            address.sll_ifindex = nix::net::if_::if_nametoindex(device).unwrap() as i32;
            let length = size_of::<libc::sockaddr_ll>() as u32;
            assert_eq!(libc::bind(fd, (&raw const address).cast(), length), 0);
            Tap(socket)
        }
    }

    pub fn send(&self, frame: &[u8]) {
        // A full queue is no matter: who floods does not care.
        let _ = nix::sys::socket::send(self.0.as_raw_fd(), frame, nix::sys::socket::MsgFlags::empty());
    }

    /// The frames that arrive until `quiet` has passed without any.
    pub fn seen(&self, quiet: Duration) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut buffer = [0; 2048];
        let mut last = Instant::now();
        while last.elapsed() < quiet {
            match nix::sys::socket::recv(self.0.as_raw_fd(), &mut buffer, nix::sys::socket::MsgFlags::MSG_DONTWAIT) {
                Ok(length) => {
                    frames.push(buffer[..length].to_vec());
                    last = Instant::now();
                }
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
        frames
    }
}
