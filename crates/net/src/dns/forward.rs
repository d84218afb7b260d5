//! Asking others about names outside the zone.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::Message;
use hickory_proto::rr::RData;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::dns::question::HEADER;
use crate::dns::shares::Shares;

/// How long one server may take before the next is asked.
const PATIENCE: Duration = Duration::from_secs(2);
/// Addresses of one answer that are looked at.
const ADDRESSES: usize = 64;
/// Questions that are under way at once, and of those one asker's; what comes beyond is told to try again.
const UNDER_WAY: (usize, usize) = (1024, 64);

/// The servers that know the rest of the world.
#[derive(Debug)]
pub struct Forwarder {
    servers: Vec<SocketAddr>,
    room: Arc<Shares>,
}

impl Forwarder {
    /// Asks these, in this order.
    pub fn new(servers: Vec<SocketAddr>) -> Forwarder {
        Forwarder { servers, room: Shares::new(UNDER_WAY.0, UNDER_WAY.1) }
    }

    /// The answer of the first server that gives one.
    pub(super) async fn ask(&self, question: &[u8], asker: Ipv4Addr, tcp: bool) -> Option<Vec<u8>> {
        let _room = self.room.take(asker)?;
        for server in &self.servers {
            let asked = async { if tcp { by_tcp(*server, question).await } else { by_udp(*server, question).await } };
            match timeout(PATIENCE, asked).await {
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(error)) => tracing::debug!(%server, %error, "a name server cannot be asked"),
                Err(_) => tracing::debug!(%server, "a name server does not answer"),
            }
        }
        None
    }
}

async fn by_udp(server: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let any = if server.is_ipv4() {
        SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))
    } else {
        SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    // A number of our own, so that nobody who knows the guest's can answer in the server's place.
    let number = random();
    socket.send(&with_number(question, number)).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let answer = &buffer[..length];
        if is_answer(answer, question, number) {
            return Ok(with_number(answer, [question[0], question[1]]));
        }
    }
}

async fn by_tcp(server: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(question.len()).map_err(std::io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), question].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    let number = [question[0], question[1]];
    if is_answer(&answer, question, number) { Ok(answer) } else { Err(std::io::Error::other("not an answer")) }
}

fn random() -> [u8; 2] {
    // The standard library's only source of random bits; it is seeded by the operating system.
    let [a, b, ..] = RandomState::new().build_hasher().finish().to_be_bytes();
    [a, b]
}

fn with_number(message: &[u8], number: [u8; 2]) -> Vec<u8> {
    let mut message = message.to_vec();
    message[..2].copy_from_slice(&number);
    message
}

/// Whether it answers this question, asked under this number.
fn is_answer(answer: &[u8], question: &[u8], number: [u8; 2]) -> bool {
    let end = question[HEADER..].iter().position(|byte| *byte == 0).map_or(question.len(), |at| HEADER + at + 5);
    let same = answer.get(HEADER..end).zip(question.get(HEADER..end));
    answer.starts_with(&number)
        && same.is_some_and(|(theirs, ours)| theirs.eq_ignore_ascii_case(ours))
        && answer[2] & 0x80 != 0
}

/// The addresses in an answer, and for how many seconds the shortest-lived of them may be kept.
pub(super) fn addresses(answer: &[u8]) -> (Vec<IpAddr>, u32) {
    let Ok(message) = Message::from_vec(answer) else { return (Vec::new(), 0) };
    let found = message.answers.iter().filter_map(|record| match &record.data {
        RData::A(address) => Some((address.0.into(), record.ttl)),
        RData::AAAA(address) => Some((address.0.into(), record.ttl)),
        _ => None,
    });
    found.take(ADDRESSES).fold((Vec::new(), u32::MAX), |(mut all, seconds), (address, ttl)| {
        all.push(address);
        (all, seconds.min(ttl))
    })
}
