//! The guest's IPv6 address: once the kernel has heard of a router, asked for by DHCPv6 (RFC 8415).

use std::fs;
use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use dhcproto::v6::{DhcpOption, DhcpOptions, IANA, Message, MessageType, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable, Encoder};

/// All servers of the link.
const SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
/// Between two looks for a router.
const LOOK: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(1);
const TRIES: u32 = 10;

/// Waits for a router, as long as it takes, and returns the address that the card has then.
pub fn configure(mac: &str) -> anyhow::Result<Ipv6Addr> {
    while !has_router() {
        std::thread::sleep(LOOK);
    }
    let card = fs::read_to_string("/sys/class/net/eth0/ifindex").context("no card")?.trim().parse()?;
    let address = ask(mac, card)?;
    let add = ["ip", "-6", "address", "add", &format!("{address}/128"), "dev", "eth0"];
    let status = Command::new("/bin/busybox").args(add).status().context("cannot run ip")?;
    if !status.success() {
        bail!("ip: {status}");
    }
    Ok(address)
}

/// Whether the kernel has a default route that a router has told it of.
fn has_router() -> bool {
    const NOWHERE: &str = "00000000000000000000000000000000";
    let routes = fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
    routes.lines().any(|route| {
        let fields: Vec<&str> = route.split_whitespace().collect();
        matches!(fields[..], [to, "00", _, _, gateway, .., card] if to == NOWHERE && gateway != NOWHERE && card == "eth0")
    })
}

fn ask(mac: &str, card: u32) -> anyhow::Result<Ipv6Addr> {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 546)).context("cannot listen for DHCPv6")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let to = SocketAddrV6::new(SERVERS, 547, 0, card);
    // A DUID made of the card's address.
    let mut client = vec![0, 3, 0, 1];
    for byte in mac.split(':') {
        client.push(u8::from_str_radix(byte, 16).context("no hardware address")?);
    }
    for _ in 0..TRIES {
        // Until the kernel knows that its own address is nobody else's, it sends nothing.
        if socket.send_to(&message(MessageType::Solicit, &client, &[])?, to).is_err() {
            std::thread::sleep(PATIENCE);
            continue;
        }
        let Some(offer) = receive(&socket, MessageType::Advertise) else { continue };
        let (Some(server), Some(association)) =
            (offer.opts().get(OptionCode::ServerId), offer.opts().get(OptionCode::IANA))
        else {
            continue;
        };
        let request = message(MessageType::Request, &client, &[server.clone(), association.clone()])?;
        socket.send_to(&request, to)?;
        let Some(reply) = receive(&socket, MessageType::Reply) else { continue };
        if let Some(DhcpOption::IANA(association)) = reply.opts().get(OptionCode::IANA)
            && let Some(DhcpOption::IAAddr(lease)) = association.opts.get(OptionCode::IAAddr)
        {
            return Ok(lease.addr);
        }
    }
    bail!("nobody answers by DHCPv6")
}

fn message(kind: MessageType, client: &[u8], more: &[DhcpOption]) -> anyhow::Result<Vec<u8>> {
    let mut message = Message::new_with_id(kind, [0x6d, 0x66, kind.into()]);
    let options = message.opts_mut();
    options.insert(DhcpOption::ClientId(client.to_vec()));
    options.insert(DhcpOption::ElapsedTime(0));
    if more.is_empty() {
        options.insert(DhcpOption::IANA(IANA { id: 1, t1: 0, t2: 0, opts: DhcpOptions::new() }));
    }
    more.iter().for_each(|option| options.insert(option.clone()));
    let mut bytes = Vec::new();
    message.encode(&mut Encoder::new(&mut bytes)).context("cannot write a message")?;
    Ok(bytes)
}

fn receive(socket: &UdpSocket, kind: MessageType) -> Option<Message> {
    let mut buffer = [0; 1500];
    let length = socket.recv(&mut buffer).ok()?;
    Message::decode(&mut Decoder::new(&buffer[..length])).ok().filter(|message| message.msg_type() == kind)
}
