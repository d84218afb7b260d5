//! DHCPv6 for one guest on one tap: always the same lease, the one that the fabric gave it (RFC 8415). That it is to be asked
//! for, the guest is told by its router ([`crate::router`]).

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};

use dhcproto::v6::{DhcpOption, DhcpOptions, IAAddr, IANA, Message, MessageType, OptionCode, Status, StatusCode};
use dhcproto::{Decodable, Decoder, Encodable, Encoder};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

use crate::error::NetError;

/// Where guests send their questions: all servers and relays of a link.
const SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
const SERVER_PORT: u16 = 547;
/// Seconds that a lease is good for, and after which it is to be renewed, with this server or with any.
const LEASE_SECONDS: u32 = 86_400;
const RENEW_SECONDS: u32 = 43_200;
const REBIND_SECONDS: u32 = 69_120;
/// Who answers: the same on every host, as a DUID made of a hardware address (type 3, Ethernet) that no device has.
const SERVER_ID: [u8; 10] = [0, 3, 0, 1, 0x02, 0x6d, 0x61, 0x79, 0x66, 0x79];

/// Answers the guest behind `tap` for ever.
///
/// # Errors
/// [`NetError::Io`] when the socket cannot be made or the tap is gone.
pub(crate) async fn serve(tap: &str, device: u32, address: Ipv6Addr) -> Result<(), NetError> {
    let socket = socket(tap, device).map_err(NetError::io(format!("serve DHCPv6 on {tap}")))?;
    let mut buffer = [0; 1500];
    loop {
        let (length, from) =
            socket.recv_from(&mut buffer).await.map_err(NetError::io(format!("read DHCPv6 on {tap}")))?;
        let request = Message::decode(&mut Decoder::new(&buffer[..length])).ok();
        let Some(reply) = request.and_then(|request| answer(&request, address)) else { continue };
        let mut bytes = Vec::new();
        // A guest that misses the answer asks again.
        if reply.encode(&mut Encoder::new(&mut bytes)).is_ok()
            && let Err(error) = socket.send_to(&bytes, from).await
        {
            tracing::debug!(tap, %error, "a DHCPv6 answer was lost");
        }
    }
}

fn socket(tap: &str, device: u32) -> std::io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_only_v6(true)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind_device(Some(tap.as_bytes()))?;
    socket.join_multicast_v6(&SERVERS, device)?;
    socket.bind(&SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, SERVER_PORT, 0, 0)).into())?;
    UdpSocket::from_std(socket.into())
}

fn answer(request: &Message, address: Ipv6Addr) -> Option<Message> {
    let named = match request.opts().get(OptionCode::ServerId) {
        Some(DhcpOption::ServerId(server)) => Some(server[..] == SERVER_ID),
        _ => None,
    };
    let at_once = request.opts().get(OptionCode::RapidCommit).is_some();
    let kind = match (request.msg_type(), named) {
        (MessageType::Solicit, None) if at_once => MessageType::Reply,
        (MessageType::Solicit, None) => MessageType::Advertise,
        (MessageType::Confirm | MessageType::Rebind, None) => MessageType::Reply,
        (MessageType::InformationRequest, None | Some(true)) => MessageType::Reply,
        (MessageType::Request | MessageType::Renew | MessageType::Release | MessageType::Decline, Some(true)) => {
            MessageType::Reply
        }
        _ => return None,
    };
    let client = request.opts().get(OptionCode::ClientId).cloned();
    if client.is_none() && request.msg_type() != MessageType::InformationRequest {
        return None;
    }
    let mut reply = Message::new_with_id(kind, request.xid());
    let options = reply.opts_mut();
    client.into_iter().for_each(|client| options.insert(client));
    options.insert(DhcpOption::ServerId(SERVER_ID.to_vec()));
    if request.msg_type() == MessageType::Solicit && at_once {
        options.insert(DhcpOption::RapidCommit);
    }
    match request.msg_type() {
        MessageType::Confirm => {
            let mut thought = associations(request).flat_map(|one| addresses(&one.opts)).peekable();
            thought.peek()?;
            let good = thought.all(|one| one == address);
            options.insert(status(if good { Status::Success } else { Status::NotOnLink }));
        }
        MessageType::Release | MessageType::Decline => options.insert(status(Status::Success)),
        MessageType::InformationRequest => {}
        _ if associations(request).next().is_none() => options.insert(status(Status::NoAddrsAvail)),
        _ => {
            for asked in associations(request) {
                options.insert(DhcpOption::IANA(granted(asked, address)));
            }
        }
    }
    Some(reply)
}

fn status(status: Status) -> DhcpOption {
    DhcpOption::StatusCode(StatusCode { status, msg: String::new() })
}

fn associations(request: &Message) -> impl Iterator<Item = &IANA> {
    request.opts().iter().filter_map(|option| match option {
        DhcpOption::IANA(association) => Some(association),
        _ => None,
    })
}

fn addresses(options: &DhcpOptions) -> impl Iterator<Item = Ipv6Addr> {
    options.iter().filter_map(|option| match option {
        DhcpOption::IAAddr(one) => Some(one.addr),
        _ => None,
    })
}

/// The one address; whatever else the guest thinks is its own is over.
fn granted(asked: &IANA, address: Ipv6Addr) -> IANA {
    let lease = |addr, seconds| {
        DhcpOption::IAAddr(IAAddr { addr, preferred_life: seconds, valid_life: seconds, opts: DhcpOptions::new() })
    };
    let mut opts = DhcpOptions::new();
    opts.insert(lease(address, LEASE_SECONDS));
    for other in addresses(&asked.opts).filter(|other| *other != address) {
        opts.insert(lease(other, 0));
    }
    IANA { id: asked.id, t1: RENEW_SECONDS, t2: REBIND_SECONDS, opts }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Ipv6Addr = Ipv6Addr::new(0xfd6d, 0, 0, 0, 0, 0, 0x0a50, 2);
    const OTHER: Ipv6Addr = Ipv6Addr::new(0xfd6d, 0, 0, 0, 0, 0, 0x0a50, 3);

    fn request(kind: MessageType, server: Option<[u8; 10]>, has: &[Ipv6Addr]) -> Message {
        let mut request = Message::new_with_id(kind, [1, 2, 3]);
        let mut opts = DhcpOptions::new();
        for addr in has {
            opts.insert(DhcpOption::IAAddr(IAAddr {
                addr: *addr,
                preferred_life: 9,
                valid_life: 9,
                opts: DhcpOptions::new(),
            }));
        }
        request.opts_mut().insert(DhcpOption::ClientId(vec![0, 4, 9]));
        request.opts_mut().insert(DhcpOption::IANA(IANA { id: 7, t1: 0, t2: 0, opts }));
        server.into_iter().for_each(|server| request.opts_mut().insert(DhcpOption::ServerId(server.to_vec())));
        request
    }

    /// The kind of the answer, and the addresses in it with their times.
    fn ask(request: &Message) -> Option<(MessageType, Vec<(Ipv6Addr, u32)>)> {
        let reply = answer(request, OWN)?;
        assert_eq!(reply.xid(), [1, 2, 3]);
        assert_eq!(reply.opts().get(OptionCode::ClientId), request.opts().get(OptionCode::ClientId));
        let granted = associations(&reply).flat_map(|one| one.opts.iter());
        let times = granted.filter_map(|option| match option {
            DhcpOption::IAAddr(one) => Some((one.addr, one.valid_life)),
            _ => None,
        });
        Some((reply.msg_type(), times.collect()))
    }

    #[test]
    fn the_lease_is_the_fabrics_and_no_other() {
        let own = vec![(OWN, LEASE_SECONDS)];
        assert_eq!(ask(&request(MessageType::Solicit, None, &[])), Some((MessageType::Advertise, own.clone())));
        let mut quick = request(MessageType::Solicit, None, &[]);
        quick.opts_mut().insert(DhcpOption::RapidCommit);
        assert_eq!(ask(&quick), Some((MessageType::Reply, own.clone())));
        let known = Some(SERVER_ID);
        assert_eq!(ask(&request(MessageType::Request, known, &[OWN])), Some((MessageType::Reply, own)));
        let mut moved = ask(&request(MessageType::Renew, known, &[OTHER])).unwrap().1;
        moved.sort_unstable();
        assert_eq!(moved, [(OWN, LEASE_SECONDS), (OTHER, 0)]);
        assert_eq!(ask(&request(MessageType::Request, Some([9; 10]), &[])), None, "it means another server");
        assert_eq!(ask(&request(MessageType::Request, None, &[])), None, "it names no server");
    }

    #[test]
    fn who_asks_whether_it_is_at_the_right_place_is_told() {
        let status = |has: &[Ipv6Addr]| {
            let reply = answer(&request(MessageType::Confirm, None, has), OWN).unwrap();
            match reply.opts().get(OptionCode::StatusCode) {
                Some(DhcpOption::StatusCode(code)) => code.status,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!((status(&[OWN]), status(&[OTHER])), (Status::Success, Status::NotOnLink));
    }
}
