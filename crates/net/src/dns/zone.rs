//! The zone, ready to be asked.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use mayfly_model::ipv6::PREFIX_BITS;
use mayfly_model::{DnsRecord, ServiceRecord};

use crate::address::{DIP_NETWORK, DIP_PREFIX};
use crate::dns::question::{self, Edns, HEADER, Question, Reading, code, kind};

/// Seconds that an answer may be kept: an instance's address can change at any time.
const TTL: u32 = 1;
/// A name that the message holds already, as its question.
const ASKED: [u8; 2] = [0xc0, HEADER as u8];
/// What is asked for or answered is about the Internet.
const INTERNET: [u8; 2] = [0, 1];

/// The fabric's names, with their answers made.
#[derive(Clone, Debug, Default)]
pub struct Zone {
    /// What is answered for; the most specific first.
    origins: Vec<Origin>,
    nodes: HashMap<Vec<u8>, Node>,
}

/// A name below which the zone knows everything.
#[derive(Clone, Debug)]
struct Origin {
    name: Vec<u8>,
    /// Its SOA record, as it goes with an answer that says no.
    authority: Vec<u8>,
}

/// A name; without records, it only stands above others.
#[derive(Clone, Debug, Default)]
struct Node {
    /// Records ready for the message, by their types.
    records: Vec<(u16, Vec<u8>)>,
}

/// What the zone makes of a message.
#[derive(Debug)]
pub(super) enum Reply {
    /// Nothing: it is no question.
    Nothing,
    /// This message.
    Message(Vec<u8>),
    /// It asks for this name, which is outside the zone.
    Elsewhere(String),
}

impl Zone {
    /// The zone `origin` with these records. The first name that an address is given by is the one it leads back to.
    pub fn new(origin: &str, records: &[DnsRecord], services: &[ServiceRecord]) -> Zone {
        let mut zone = Zone::default();
        let network = DIP_NETWORK.octets();
        let reverse = network[..usize::from(DIP_PREFIX / 8)].iter().rev();
        let reverse: String = reverse.map(|byte| format!("{byte}.")).collect();
        for name in [origin.to_owned(), format!("{reverse}in-addr.arpa")] {
            zone.add_origin(&name, origin);
        }
        for record in records {
            match record.address {
                IpAddr::V4(address) => zone.add(&record.name, kind::A, &address.octets()),
                IpAddr::V6(address) => zone.add(&record.name, kind::AAAA, &address.octets()),
            }
            let back = backwards(record.address);
            if zone.origin_of(&question::labels(&back).unwrap_or_default()).is_none() {
                // A public address: nobody else in the world knows its name. Over IPv6, all of the location's have a prefix in
                // common.
                let digits = if record.address.is_ipv6() { usize::from(128 - PREFIX_BITS) / 4 } else { 0 };
                zone.add_origin(back.splitn(digits + 1, '.').last().unwrap_or(&back), origin);
            }
            let known = question::labels(&back).and_then(|name| zone.nodes.get(&name));
            if record.canonical
                && known.is_none_or(|node| node.records.iter().all(|(kind, _)| *kind != kind::PTR))
                && let Some(target) = question::labels(&record.name)
            {
                zone.add(&back, kind::PTR, &target);
            }
        }
        for service in services {
            let Some(target) = question::labels(&service.target) else { continue };
            // Priority and weight are the same for all.
            let data = [&[0; 4], &service.port.to_be_bytes()[..], &target].concat();
            zone.add(&service.name, kind::SRV, &data);
        }
        zone
    }

    /// Tells where the zone `origin` is answered for: the address of `ns.`, which its NS records name.
    pub fn answered_at(mut self, origin: &str, server: Ipv4Addr) -> Zone {
        if !server.is_unspecified() {
            self.add(&format!("ns.{origin}"), kind::A, &server.octets());
        }
        self
    }

    fn add_origin(&mut self, name: &str, zone: &str) {
        let (Some(labels), Some(server), Some(person)) = (
            question::labels(name),
            question::labels(&format!("ns.{zone}")),
            question::labels(&format!("hostmaster.{zone}")),
        ) else {
            return;
        };
        let numbers = [1, 60, 10, 3600, TTL].map(u32::to_be_bytes).concat();
        let data = [server.clone(), person, numbers].concat();
        let authority = record(&labels, kind::SOA, &data);
        self.add(name, kind::SOA, &data);
        self.add(name, kind::NS, &server);
        self.origins.push(Origin { name: labels, authority });
        self.origins.sort_by_key(|origin| std::cmp::Reverse(origin.name.len()));
    }

    fn add(&mut self, name: &str, kind: u16, data: &[u8]) {
        let Some(labels) = question::labels(name) else { return };
        // Names above it exist too, though they have nothing to say.
        let mut above = &labels[..];
        while let Some(length) = above.first().filter(|length| **length > 0) {
            above = &above[1 + usize::from(*length)..];
            if above.len() > 1 {
                self.nodes.entry(above.to_vec()).or_default();
            }
        }
        self.nodes.entry(labels).or_default().records.push((kind, record(&ASKED, kind, data)));
    }

    fn origin_of(&self, name: &[u8]) -> Option<&Origin> {
        self.origins.iter().find(|origin| {
            let before = name.len().checked_sub(origin.name.len());
            before.is_some_and(|before| name[before..] == origin.name && is_boundary(name, before))
        })
    }

    /// What to say to a message. By TCP there is always room.
    pub(super) fn answer(&self, message: &[u8], tcp: bool) -> Reply {
        match question::read(message) {
            Reading::Nothing => Reply::Nothing,
            Reading::Wrong(code) => Reply::Message(refusal(message, code)),
            Reading::Question(question) if !question.internet => Reply::Message(refusal(message, code::REFUSED)),
            Reading::Question(question) => match self.origin_of(&question.name) {
                None => Reply::Elsewhere(question::text(&question.name)),
                Some(origin) => Reply::Message(self.authoritative(message, &question, origin, tcp)),
            },
        }
    }

    fn authoritative(&self, message: &[u8], question: &Question<'_>, origin: &Origin, tcp: bool) -> Vec<u8> {
        let limit = if tcp { usize::from(u16::MAX) } else { question.udp_limit() };
        let mut reply = Vec::with_capacity(512);
        // An answer, authoritative, with the asker's wish for recursion repeated.
        reply.extend([message[0], message[1], 0x84 | (message[2] & 1), 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        reply.extend(question.bytes);
        if question.edns.is_some_and(|edns| edns.version > 0) {
            end(&mut reply, question.edns, code::BAD_VERSION);
            return reply;
        }
        let node = self.nodes.get(&question.name);
        let wanted = |kind: u16| kind == question.kind || question.kind == kind::ANY;
        let mut answers: u16 = 0;
        for (_, bytes) in node.iter().flat_map(|node| &node.records).filter(|(kind, _)| wanted(*kind)) {
            if reply.len() + bytes.len() + 11 > limit {
                reply[2] |= 0x02;
                break;
            }
            reply.extend(bytes);
            answers += 1;
        }
        reply[6..8].copy_from_slice(&answers.to_be_bytes());
        if answers == 0 && reply[2] & 0x02 == 0 {
            if node.is_none() {
                reply[3] |= code::NO_SUCH_NAME;
            }
            reply.extend(&origin.authority);
            reply[9] = 1;
        }
        end(&mut reply, question.edns, 0);
        reply
    }
}

/// Whether a label starts at `at`.
fn is_boundary(name: &[u8], at: usize) -> bool {
    let mut start = 0;
    while start < at {
        start += 1 + usize::from(name[start]);
    }
    start == at
}

/// Ends an answer: who speaks EDNS is spoken to likewise.
fn end(reply: &mut Vec<u8>, edns: Option<Edns>, code: u16) {
    if edns.is_some() {
        let [_, upper] = (code >> 4).to_be_bytes();
        reply.extend([0, 0, kind::OPT as u8, 0x04, 0xd0, upper, 0, 0, 0, 0, 0]);
        reply[11] = 1;
    }
}

/// An answer that says only what is wrong.
pub(super) fn refusal(message: &[u8], code: u8) -> Vec<u8> {
    let mut reply = vec![0; HEADER];
    if let Some(header) = message.first_chunk::<HEADER>() {
        reply[..2].copy_from_slice(&header[..2]);
        reply[2] = 0x80 | (header[2] & 0x79);
    }
    reply[3] = code;
    // The question is repeated where it can be read, so that it is known again.
    if let Reading::Question(question) = question::read(message) {
        reply[5] = 1;
        reply.extend(question.bytes);
        end(&mut reply, question.edns, 0);
    }
    reply
}

fn record(name: &[u8], kind: u16, data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u16).to_be_bytes();
    [name, &kind.to_be_bytes(), &INTERNET, &TTL.to_be_bytes(), &length, data].concat()
}

/// The name that leads from an address to its name.
fn backwards(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(address) => {
            let digits = address.octets().into_iter().rev().flat_map(|byte| [byte & 15, byte >> 4]);
            digits.map(|digit| format!("{digit:x}.")).chain(["ip6.arpa".to_owned()]).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{Message, Query, ResponseCode};
    use hickory_proto::rr::{Name, RData, RecordType};

    use super::*;

    fn labels_of(name: &Name) -> Vec<u8> {
        let labels = name.iter().flat_map(|label| [&[label.len() as u8], label].concat());
        labels.chain([0]).collect()
    }

    fn zone() -> Zone {
        let record = |name: &str, address: IpAddr, canonical| DnsRecord { name: name.to_owned(), address, canonical };
        let prefix: mayfly_model::Ipv6Prefix = "fd6d:6179:666c:79::/96".parse().unwrap();
        let dip = Ipv4Addr::new(10, 80, 0, 3);
        let records = [
            record("shop.mayfly.test", Ipv4Addr::new(192, 0, 2, 2).into(), true),
            record("mfabc.shop.internal.mayfly.test", dip.into(), false),
            record("web-in-0.shop.internal.mayfly.test", dip.into(), true),
            record("web-in-0.shop.internal.mayfly.test", prefix.embed(dip).into(), true),
        ];
        let service = |name: &str, port, target: &str| ServiceRecord {
            name: format!("{name}.mayfly.test"),
            port,
            target: format!("{target}.mayfly.test"),
        };
        let services = [
            service("_http._tcp.shop", 8080, "shop"),
            service("_sql._tcp.shop.internal", 1433, "web-in-0.shop.internal"),
        ];
        Zone::new("Mayfly.test", &records, &services).answered_at("Mayfly.test", Ipv4Addr::new(192, 0, 2, 53))
    }

    fn ask(name: &str, kind: RecordType) -> Option<Message> {
        let mut request = Message::query();
        request.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        request.metadata.recursion_desired = true;
        match zone().answer(&request.to_vec().unwrap(), false) {
            Reply::Message(bytes) => {
                let reply = Message::from_vec(&bytes).unwrap();
                assert_eq!((reply.metadata.id, &reply.queries), (request.metadata.id, &request.queries));
                assert!(reply.metadata.recursion_desired);
                Some(reply)
            }
            Reply::Elsewhere(_) => None,
            Reply::Nothing => panic!("no answer for {name}"),
        }
    }

    #[test]
    fn names_lead_to_addresses_and_back() {
        for (name, kind, expected) in [
            ("SHOP.mayfly.test.", RecordType::A, "192.0.2.2"),
            ("mfabc.shop.internal.mayfly.test.", RecordType::A, "10.80.0.3"),
            ("3.0.80.10.in-addr.arpa.", RecordType::PTR, "web-in-0.shop.internal.mayfly.test."),
            ("web-in-0.shop.internal.mayfly.test.", RecordType::AAAA, "fd6d:6179:666c:79::a50:3"),
            (
                "3.0.0.0.0.5.a.0.0.0.0.0.0.0.0.0.9.7.0.0.c.6.6.6.9.7.1.6.d.6.d.f.ip6.arpa.",
                RecordType::PTR,
                "web-in-0.shop.internal.mayfly.test.",
            ),
            ("2.2.0.192.in-addr.arpa.", RecordType::PTR, "shop.mayfly.test."),
            ("_http._tcp.shop.mayfly.test.", RecordType::SRV, "0 0 8080 shop.mayfly.test."),
            ("_sql._tcp.shop.internal.mayfly.test.", RecordType::SRV, "0 0 1433 web-in-0.shop.internal.mayfly.test."),
        ] {
            let reply = ask(name, kind).unwrap();
            assert!(reply.metadata.authoritative && reply.metadata.response_code == ResponseCode::NoError, "{name}");
            let [answer] = reply.answers.as_slice() else { panic!("{name}: {:?}", reply.answers) };
            assert_eq!((answer.data.to_string().as_str(), answer.ttl), (expected, 1), "{name}");
        }
    }

    #[test]
    fn what_is_not_there_is_told_apart_from_what_has_nothing_to_say() {
        for (name, kind, code) in [
            ("shop.mayfly.test.", RecordType::AAAA, ResponseCode::NoError),
            ("internal.mayfly.test.", RecordType::A, ResponseCode::NoError),
            ("mayfly.test.", RecordType::A, ResponseCode::NoError),
            ("none.mayfly.test.", RecordType::A, ResponseCode::NXDomain),
            ("a.shop.mayfly.test.", RecordType::AAAA, ResponseCode::NXDomain),
            ("9.9.80.10.in-addr.arpa.", RecordType::PTR, ResponseCode::NXDomain),
            // All addresses with the prefix are the fabric's.
            (
                "9.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.9.7.0.0.c.6.6.6.9.7.1.6.d.6.d.f.ip6.arpa.",
                RecordType::PTR,
                ResponseCode::NXDomain,
            ),
        ] {
            let reply = ask(name, kind).unwrap();
            assert_eq!((reply.metadata.response_code, reply.answers.len()), (code, 0), "{name} {kind}");
            let [authority] = reply.authorities.as_slice() else { panic!("{name}: {:?}", reply.authorities) };
            let RData::SOA(soa) = &authority.data else { panic!("{authority}") };
            assert_eq!(soa.minimum, 1, "{name}: what is not there may be there soon");
        }
        let soa = ask("mayfly.test.", RecordType::SOA).unwrap();
        assert_eq!(soa.answers.len(), 1);
        let server = ask("mayfly.test.", RecordType::NS).unwrap().answers[0].data.to_string();
        assert_eq!(ask(&server, RecordType::A).unwrap().answers[0].data.to_string(), "192.0.2.53");
        for name in ["example.org.", "notmayfly.test.", "test.", ".", "4.0.81.10.in-addr.arpa.", "d.f.ip6.arpa."] {
            assert!(ask(name, RecordType::A).is_none(), "{name} is not ours to answer for");
        }
    }

    #[test]
    fn who_speaks_edns_is_spoken_to_likewise_and_large_answers_are_cut() {
        let dip = |last: u8| Ipv4Addr::new(10, 80, 1, last);
        let records: Vec<DnsRecord> = (0..100)
            .map(|last| DnsRecord { name: "many.mayfly.test".to_owned(), address: dip(last).into(), canonical: false })
            .collect();
        let zone = Zone::new("mayfly.test", &records, &[]);
        let ask = |size: Option<u16>, version: u8, tcp: bool| {
            let mut request = Message::query();
            request.add_query(Query::query(Name::from_ascii("many.mayfly.test.").unwrap(), RecordType::A));
            if let Some(size) = size {
                let mut edns = hickory_proto::op::Edns::new();
                edns.set_max_payload(size).set_version(version);
                request.edns = Some(edns);
            }
            let Reply::Message(bytes) = zone.answer(&request.to_vec().unwrap(), tcp) else { panic!("no answer") };
            (bytes.len(), Message::from_vec(&bytes).unwrap())
        };
        for (size, tcp, limit) in [(None, false, 512), (Some(4096), false, 1232), (Some(100), false, 512)] {
            let (length, reply) = ask(size, 0, tcp);
            assert!(length <= limit && reply.metadata.truncation && reply.answers.len() > 20, "{size:?}: {length}");
            assert_eq!(reply.edns.is_some(), size.is_some());
        }
        let (_, whole) = ask(None, 0, true);
        assert!(!whole.metadata.truncation && whole.answers.len() == 100);
        let (_, newer) = ask(Some(1232), 1, false);
        // 16 stands for two errors; without a signature, it is the version.
        assert_eq!(u16::from(newer.metadata.response_code), code::BAD_VERSION);
    }

    #[test]
    fn garbage_gets_an_error_or_nothing() {
        let zone = zone();
        let mut request = Message::query();
        request.add_query(Query::query(Name::from_ascii("shop.mayfly.test.").unwrap(), RecordType::A));
        let good = request.to_vec().unwrap();
        for cut in 0..good.len() {
            match zone.answer(&good[..cut], false) {
                Reply::Nothing => assert!(cut < HEADER),
                Reply::Message(bytes) => assert_eq!(bytes[3] & 15, code::FORMAT_ERROR, "cut at {cut}"),
                Reply::Elsewhere(name) => panic!("cut at {cut}: {name}"),
            }
        }
        // Every byte changed in every way: never a panic, and what is read is what another reader reads.
        for at in 0..good.len() {
            for value in 0..=255 {
                let mut bytes = good.clone();
                bytes[at] = value;
                if let Reading::Question(question) = question::read(&bytes) {
                    let theirs = Message::from_vec(&bytes).unwrap();
                    assert_eq!(u16::from(theirs.queries[0].query_type()), question.kind);
                    assert_eq!(labels_of(&theirs.queries[0].name().to_lowercase()), question.name);
                }
                if let Reply::Message(reply) = zone.answer(&bytes, false) {
                    Message::from_vec(&reply).unwrap();
                }
            }
        }
    }
}
