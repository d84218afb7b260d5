//! DNS for guests: authoritative for the fabric's zone, from the goal state. Names outside it are refused.

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use mayfly_model::DnsRecord;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;

use crate::error::NetError;

/// Seconds that an answer may be kept: an instance's address can change at any time.
const TTL: u32 = 1;
const TCP_LIMIT: Duration = Duration::from_secs(10);

/// The zone, ready to be asked.
#[derive(Clone, Debug, Default)]
pub struct Zone {
    origin: String,
    addresses: HashMap<String, Vec<Ipv4Addr>>,
    /// Names that have no address but stand above one that has.
    above: HashSet<String>,
}

impl Zone {
    /// The zone `origin` with these records.
    pub fn new(origin: &str, records: &[DnsRecord]) -> Zone {
        let mut zone = Zone { origin: origin.to_ascii_lowercase(), ..Zone::default() };
        for record in records {
            zone.addresses.entry(record.name.clone()).or_default().push(record.address);
            let mut name = record.name.as_str();
            while let Some((_, parent)) = name.split_once('.') {
                zone.above.insert(parent.to_owned());
                name = parent;
            }
        }
        zone.above.insert(zone.origin.clone());
        zone
    }

    fn contains(&self, name: &str) -> bool {
        name == self.origin || name.strip_suffix(&self.origin).is_some_and(|rest| rest.ends_with('.'))
    }

    fn answer(&self, request: &Message) -> Message {
        let mut reply = Message::response(request.metadata.id, request.metadata.op_code);
        reply.metadata.recursion_desired = request.metadata.recursion_desired;
        let [query] = request.queries.as_slice() else {
            reply.metadata.response_code = ResponseCode::FormErr;
            return reply;
        };
        reply.add_query(query.clone());
        if request.metadata.op_code != OpCode::Query {
            reply.metadata.response_code = ResponseCode::NotImp;
            return reply;
        }
        let name = query.name().to_ascii().to_ascii_lowercase();
        let name = name.trim_end_matches('.');
        if !self.contains(name) {
            reply.metadata.response_code = ResponseCode::Refused;
            return reply;
        }
        reply.metadata.authoritative = true;
        let addresses = self.addresses.get(name).map_or(&[][..], Vec::as_slice);
        if matches!(query.query_type(), RecordType::A | RecordType::ANY) {
            for address in addresses {
                reply.add_answer(Record::from_rdata(query.name().clone(), TTL, RData::A(A(*address))));
            }
        }
        if reply.answers.is_empty() {
            if addresses.is_empty() && !self.above.contains(name) {
                reply.metadata.response_code = ResponseCode::NXDomain;
            }
            reply.authorities.extend(self.authority());
        }
        reply
    }

    fn authority(&self) -> Option<Record> {
        let origin = Name::from_ascii(format!("{}.", self.origin)).ok()?;
        let server = Name::from_ascii(format!("ns.{}.", self.origin)).ok()?;
        let soa = SOA::new(server, origin.clone(), 1, 60, 10, 3600, TTL);
        Some(Record::from_rdata(origin, TTL, RData::SOA(soa)))
    }
}

/// Answers on `address`, port 53, UDP and TCP, for ever.
///
/// # Errors
/// [`NetError::Io`] when the port cannot be had.
pub async fn serve_dns(address: Ipv4Addr, zone: watch::Receiver<Arc<Zone>>) -> Result<(), NetError> {
    let fail = || NetError::io(format!("serve DNS on {address}"));
    let udp = UdpSocket::bind((address, 53)).await.map_err(fail())?;
    let tcp = TcpListener::bind((address, 53)).await.map_err(fail())?;
    let tcp_zone = zone.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = tcp.accept().await {
            let zone = tcp_zone.clone();
            // A client that breaks off is no news.
            tokio::spawn(async move { tokio::time::timeout(TCP_LIMIT, converse(stream, zone)).await });
        }
    });
    let mut buffer = [0; 4096];
    loop {
        let (length, from): (usize, SocketAddr) = udp.recv_from(&mut buffer).await.map_err(fail())?;
        if let Some(bytes) = respond(&buffer[..length], &zone)
            && let Err(error) = udp.send_to(&bytes, from).await
        {
            tracing::debug!(%from, %error, "a DNS answer was lost");
        }
    }
}

async fn converse(mut stream: TcpStream, zone: watch::Receiver<Arc<Zone>>) -> std::io::Result<()> {
    loop {
        let length = stream.read_u16().await?;
        let mut request = vec![0; usize::from(length)];
        stream.read_exact(&mut request).await?;
        let Some(bytes) = respond(&request, &zone) else { return Ok(()) };
        stream.write_u16(bytes.len() as u16).await?;
        stream.write_all(&bytes).await?;
    }
}

fn respond(request: &[u8], zone: &watch::Receiver<Arc<Zone>>) -> Option<Vec<u8>> {
    let request = Message::from_vec(request).ok().filter(|one| one.metadata.message_type == MessageType::Query)?;
    zone.borrow().answer(&request).to_vec().ok()
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Query;

    use super::*;

    fn ask(name: &str, kind: RecordType) -> Message {
        let record = |name: &str, last| DnsRecord { name: name.to_owned(), address: Ipv4Addr::new(10, 80, 0, last) };
        let records = [record("shop.mayfly.test", 2), record("web-in-0.shop.internal.mayfly.test", 3)];
        let zone = Zone::new("mayfly.test", &records);
        let mut request = Message::query();
        request.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        zone.answer(&request)
    }

    #[test]
    fn names_have_addresses_or_say_why_not() {
        let reply = ask("SHOP.mayfly.test.", RecordType::A);
        assert!(reply.metadata.authoritative && reply.answers.len() == 1);
        for (name, kind, code, authorities) in [
            ("shop.mayfly.test.", RecordType::AAAA, ResponseCode::NoError, 1),
            ("internal.mayfly.test.", RecordType::A, ResponseCode::NoError, 1),
            ("none.mayfly.test.", RecordType::A, ResponseCode::NXDomain, 1),
            ("example.org.", RecordType::A, ResponseCode::Refused, 0),
            ("notmayfly.test.", RecordType::A, ResponseCode::Refused, 0),
        ] {
            let reply = ask(name, kind);
            assert_eq!((reply.metadata.response_code, reply.authorities.len()), (code, authorities), "{name} {kind}");
            assert!(reply.answers.is_empty());
        }
    }
}
