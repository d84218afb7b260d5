//! DHCP for one guest on one tap: always the same lease, the one that the fabric gave it (RFC 2131).

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, Opcode, OptionCode, UnknownOption};
use dhcproto::{Decodable, Decoder, Encodable, Encoder};
use ipnet::Ipv4Net;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

use crate::address::{DIP_PREFIX, GATEWAY, METADATA, WIRE_SERVER};
use crate::error::NetError;

/// What the guest is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DhcpLease {
    /// Its address.
    pub address: Ipv4Addr,
    /// Its IPv6 address, if it has one.
    pub ipv6: Option<Ipv6Addr>,
    /// Its computer name.
    pub host_name: String,
    /// Its search domain.
    pub domain: String,
    /// The largest packet that it may send, in bytes.
    pub mtu: u16,
}

const LEASE_SECONDS: u32 = 86_400;
/// Where the wire server is; the original platform's option.
const OPTION_WIRE_SERVER: u8 = 245;

/// Answers the guest behind `tap` for ever.
///
/// # Errors
/// [`NetError::Io`] when the socket cannot be made or the tap is gone.
pub(crate) async fn serve(tap: &str, lease: &DhcpLease) -> Result<(), NetError> {
    let socket = socket(tap).map_err(NetError::io(format!("serve DHCP on {tap}")))?;
    let mut buffer = [0; 1500];
    loop {
        let (length, _) = socket.recv_from(&mut buffer).await.map_err(NetError::io(format!("read DHCP on {tap}")))?;
        let Some(reply) =
            Message::decode(&mut Decoder::new(&buffer[..length])).ok().and_then(|one| answer(&one, lease))
        else {
            continue;
        };
        let mut bytes = Vec::new();
        if reply.encode(&mut Encoder::new(&mut bytes)).is_ok() {
            // A guest that misses the answer asks again.
            if let Err(error) = socket.send_to(&bytes, SocketAddr::from((Ipv4Addr::BROADCAST, 68))).await {
                tracing::debug!(tap, %error, "a DHCP answer was lost");
            }
        }
    }
}

fn socket(tap: &str) -> std::io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.set_broadcast(true)?;
    socket.set_nonblocking(true)?;
    socket.bind_device(Some(tap.as_bytes()))?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 67)).into())?;
    UdpSocket::from_std(socket.into())
}

fn answer(request: &Message, lease: &DhcpLease) -> Option<Message> {
    if request.opcode() != Opcode::BootRequest {
        return None;
    }
    let wanted = match request.opts().get(OptionCode::RequestedIpAddress) {
        Some(DhcpOption::RequestedIpAddress(address)) => *address,
        _ => request.ciaddr(),
    };
    let for_us = match request.opts().get(OptionCode::ServerIdentifier) {
        Some(DhcpOption::ServerIdentifier(server)) => *server == WIRE_SERVER,
        _ => true,
    };
    let kind = match request.opts().get(OptionCode::MessageType) {
        Some(DhcpOption::MessageType(MessageType::Discover)) => MessageType::Offer,
        Some(DhcpOption::MessageType(MessageType::Request)) if !for_us => return None,
        Some(DhcpOption::MessageType(MessageType::Request)) if wanted == lease.address => MessageType::Ack,
        Some(DhcpOption::MessageType(MessageType::Request)) => MessageType::Nak,
        Some(DhcpOption::MessageType(MessageType::Inform)) => MessageType::Ack,
        _ => return None,
    };
    let mut reply = Message::default();
    reply.set_opcode(Opcode::BootReply).set_xid(request.xid()).set_chaddr(request.chaddr());
    reply.set_flags(Flags::default().set_broadcast());
    let options = reply.opts_mut();
    options.insert(DhcpOption::MessageType(kind));
    options.insert(DhcpOption::ServerIdentifier(WIRE_SERVER));
    if kind == MessageType::Nak {
        return Some(reply);
    }
    options.insert(DhcpOption::SubnetMask(Ipv4Addr::from(u32::MAX << (32 - u32::from(DIP_PREFIX)))));
    options.insert(DhcpOption::Router(vec![GATEWAY]));
    // Whoever asks for these routes ignores the router above (RFC 3442); guests' agents look for the wire server's.
    let way = |address, prefix| Some((Ipv4Net::new(address, prefix).ok()?, GATEWAY));
    let ways = [way(Ipv4Addr::UNSPECIFIED, 0), way(WIRE_SERVER, 32), way(METADATA, 32)];
    options.insert(DhcpOption::ClasslessStaticRoute(ways.into_iter().flatten().collect()));
    options.insert(DhcpOption::DomainNameServer(vec![WIRE_SERVER]));
    options.insert(DhcpOption::Hostname(lease.host_name.clone()));
    options.insert(DhcpOption::DomainName(lease.domain.clone()));
    options.insert(DhcpOption::InterfaceMtu(lease.mtu));
    options.insert(DhcpOption::AddressLeaseTime(LEASE_SECONDS));
    let wire_server = UnknownOption::new(OptionCode::Unknown(OPTION_WIRE_SERVER), WIRE_SERVER.octets().to_vec());
    options.insert(DhcpOption::Unknown(wire_server));
    reply.set_yiaddr(lease.address);
    Some(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(kind: MessageType, wanted: Option<Ipv4Addr>) -> Option<MessageType> {
        let mut request = Message::default();
        request.set_opcode(Opcode::BootRequest).set_xid(7);
        request.opts_mut().insert(DhcpOption::MessageType(kind));
        if let Some(address) = wanted {
            request.opts_mut().insert(DhcpOption::RequestedIpAddress(address));
        }
        let lease = DhcpLease {
            address: Ipv4Addr::new(10, 80, 0, 9),
            ipv6: None,
            host_name: "mfx".to_owned(),
            domain: "d".to_owned(),
            mtu: 1450,
        };
        let reply = answer(&request, &lease)?;
        assert_eq!(reply.xid(), 7);
        match reply.opts().get(OptionCode::MessageType) {
            Some(DhcpOption::MessageType(kind)) => Some(*kind),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_lease_is_the_fabrics_and_no_other() {
        assert_eq!(ask(MessageType::Discover, None), Some(MessageType::Offer));
        assert_eq!(ask(MessageType::Request, Some(Ipv4Addr::new(10, 80, 0, 9))), Some(MessageType::Ack));
        assert_eq!(ask(MessageType::Request, Some(Ipv4Addr::new(10, 80, 0, 8))), Some(MessageType::Nak));
        assert_eq!(ask(MessageType::Release, None), None);
    }
}
