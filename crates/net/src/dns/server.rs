//! Answering on port 53: a thread for each processor, each with a socket of its own, many messages a system call.

use std::io::IoSlice;
use std::io::IoSliceMut;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::dns::forward::{Forwarder, addresses};
use crate::dns::limit::Limit;
use crate::dns::question::code;
use crate::dns::shares::Shares;
use crate::dns::zone::{Reply, Zone, refusal};
use crate::error::NetError;

/// Messages of one system call.
const BATCH: usize = 32;
/// Most bytes of a question by UDP.
const QUESTION_LIMIT: usize = 1500;
/// How soon a thread notices that it should end.
const LOOK: Duration = Duration::from_millis(500);
/// How long a conversation by TCP may take.
const TCP_LIMIT: Duration = Duration::from_secs(10);
/// Conversations by TCP at once, and of those one asker's.
const TCP_AT_ONCE: (usize, usize) = (256, 16);
/// Seconds for which the addresses of a name stay open at least: longer than a guest needs to use what it was told.
const LEARNED_AT_LEAST: u32 = 60;
/// Seconds for which they stay open at most, whatever an answer says.
const LEARNED_AT_MOST: u32 = 86_400;

/// What a guest may ask, and who wants to know what it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Anything, and nobody wants to know.
    Freely,
    /// This, and it is watched what the answer is.
    Watched,
    /// Not this.
    Refused,
}

/// Somebody who decides what guests may ask outside the zone, and wants to know what they are told before they are.
pub trait NameObserver: Send + Sync {
    /// What becomes of a question for `name`, in lower case; `inside` says whether it is in the zone.
    fn asked(&self, by: Ipv4Addr, name: &str, inside: bool) -> Asked;

    /// The guest is about to be told these addresses; they are good for so many seconds.
    fn told(&self, guest: Ipv4Addr, name: &str, addresses: &[IpAddr], seconds: u32);

    /// Whether any guest is restricted or watched.
    fn is_needed(&self) -> bool;
}

/// What answers.
#[derive(Clone)]
pub struct DnsServer {
    /// The zone of the moment.
    pub zone: watch::Receiver<Arc<Zone>>,
    /// Who knows the rest of the world; without anybody, questions about it are refused.
    pub forwarder: Option<Arc<Forwarder>>,
    /// Questions that one asker may put, whatever way they come.
    pub limit: Option<Arc<Mutex<Limit>>>,
    /// Who watches.
    pub observer: Option<Arc<dyn NameObserver>>,
}

/// What becomes of a message.
enum Answer {
    None,
    Now(Vec<u8>),
    Ask(String, Asked),
}

impl DnsServer {
    /// Answers on `address`, UDP and TCP, with so many threads, until `stop` is set.
    ///
    /// # Errors
    /// [`NetError::Io`] when the port cannot be had.
    pub async fn start(self, address: SocketAddrV4, threads: usize, stop: Arc<AtomicBool>) -> Result<(), NetError> {
        let fail = || NetError::io(format!("serve DNS on {address}"));
        let tcp = TcpListener::bind(address).await.map_err(fail())?;
        for number in 0..threads.max(1) {
            let socket = udp_socket(address).map_err(fail())?;
            let (server, stop, runtime) = (self.clone(), Arc::clone(&stop), Handle::current());
            let thread = std::thread::Builder::new().name(format!("dns-{number}"));
            thread.spawn(move || server.answer_all(socket, &stop, &runtime)).map_err(fail())?;
        }
        tokio::spawn(self.converse_all(tcp));
        Ok(())
    }

    fn answer_all(self, socket: UdpSocket, stop: &AtomicBool, runtime: &Handle) {
        let socket = Arc::new(socket);
        let mut buffers = vec![[0; QUESTION_LIMIT]; BATCH];
        let mut answers: Vec<(SockaddrIn, Vec<u8>)> = Vec::with_capacity(BATCH);
        let mut headers = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
        while !stop.load(Relaxed) {
            let now = Instant::now();
            {
                let mut slices: Vec<[IoSliceMut<'_>; 1]> =
                    buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
                let flags = MsgFlags::MSG_WAITFORONE;
                let Ok(received) = recvmmsg(socket.as_raw_fd(), &mut headers, slices.iter_mut(), flags, None) else {
                    continue;
                };
                let zone = Arc::clone(&self.zone.borrow());
                for message in received {
                    let Some(from) = message.address else { continue };
                    if !self.admits(from.ip(), now) {
                        continue;
                    }
                    let Some(bytes) = message.iovs().next() else { continue };
                    match self.answer(&zone, bytes, from.ip(), false) {
                        Answer::None => {}
                        Answer::Now(bytes) => answers.push((from, bytes)),
                        Answer::Ask(name, asked) => {
                            let (server, socket, bytes) = (self.clone(), Arc::clone(&socket), bytes.to_vec());
                            runtime.spawn(async move {
                                let answer = server.ask_elsewhere(&bytes, from.ip(), &name, asked, false).await;
                                // A guest that misses the answer asks again.
                                let _ = socket.send_to(&answer, SocketAddrV4::new(from.ip(), from.port()));
                            });
                        }
                    }
                }
            }
            send_all(&socket, &mut answers);
        }
    }

    fn admits(&self, asker: Ipv4Addr, now: Instant) -> bool {
        let Some(limit) = &self.limit else { return true };
        limit.lock().unwrap_or_else(PoisonError::into_inner).admits(IpAddr::V4(asker), now)
    }

    fn answer(&self, zone: &Zone, message: &[u8], from: Ipv4Addr, tcp: bool) -> Answer {
        let observer = self.observer.as_ref().filter(|observer| observer.is_needed());
        match zone.answer(message, tcp) {
            Reply::Nothing => Answer::None,
            Reply::Message(bytes) => {
                if let Some(observer) = observer
                    && let (found @ [_, ..], seconds) = (&addresses(&bytes).0[..], LEARNED_AT_LEAST)
                    && let Some(name) = crate::dns::question::asked_name(message)
                    && observer.asked(from, &name, true) == Asked::Watched
                {
                    observer.told(from, &name, found, seconds);
                }
                Answer::Now(bytes)
            }
            Reply::Elsewhere(name) => match observer.map_or(Asked::Freely, |one| one.asked(from, &name, false)) {
                Asked::Refused => Answer::Now(refusal(message, code::REFUSED)),
                _ if self.forwarder.is_none() => Answer::Now(refusal(message, code::REFUSED)),
                asked => Answer::Ask(name, asked),
            },
        }
    }

    async fn ask_elsewhere(&self, message: &[u8], from: Ipv4Addr, name: &str, asked: Asked, tcp: bool) -> Vec<u8> {
        let answer = match &self.forwarder {
            Some(forwarder) => forwarder.ask(message, from, tcp).await,
            None => None,
        };
        let Some(answer) = answer else { return refusal(message, code::SERVER_FAILURE) };
        if asked == Asked::Watched
            && let Some(observer) = &self.observer
        {
            let (found, seconds) = addresses(&answer);
            observer.told(from, name, &found, seconds.clamp(LEARNED_AT_LEAST, LEARNED_AT_MOST));
        }
        answer
    }

    async fn converse_all(self, listener: TcpListener) {
        let room = Shares::new(TCP_AT_ONCE.0, TCP_AT_ONCE.1);
        loop {
            let Ok((stream, from)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let SocketAddr::V4(from) = from else { continue };
            let Some(place) = room.take(*from.ip()) else { continue };
            let server = self.clone();
            tokio::spawn(async move {
                // A client that breaks off is no news.
                let _ = tokio::time::timeout(TCP_LIMIT, server.converse(stream, *from.ip())).await;
                drop(place);
            });
        }
    }

    async fn converse(&self, mut stream: TcpStream, from: Ipv4Addr) -> std::io::Result<()> {
        loop {
            let length = stream.read_u16().await?;
            let mut message = vec![0; usize::from(length)];
            stream.read_exact(&mut message).await?;
            if !self.admits(from, Instant::now()) {
                return Ok(());
            }
            let zone = Arc::clone(&self.zone.borrow());
            let answer = match self.answer(&zone, &message, from, true) {
                Answer::None => return Ok(()),
                Answer::Now(bytes) => bytes,
                Answer::Ask(name, asked) => self.ask_elsewhere(&message, from, &name, asked, true).await,
            };
            let length = u16::try_from(answer.len()).map_err(std::io::Error::other)?;
            stream.write_all(&[&length.to_be_bytes(), &answer[..]].concat()).await?;
        }
    }
}

fn udp_socket(address: SocketAddrV4) -> std::io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    // Each thread has a socket of its own, and the kernel spreads askers over them.
    socket.set_reuse_port(true)?;
    socket.set_read_timeout(Some(LOOK))?;
    // Bursts wait rather than being lost.
    socket.set_recv_buffer_size(4 << 20)?;
    socket.bind(&SocketAddr::V4(address).into())?;
    Ok(socket.into())
}

fn send_all(socket: &UdpSocket, answers: &mut Vec<(SockaddrIn, Vec<u8>)>) {
    let mut rest = &answers[..];
    let mut headers = MultiHeaders::<SockaddrIn>::preallocate(rest.len(), None);
    while !rest.is_empty() {
        let slices: Vec<[IoSlice<'_>; 1]> = rest.iter().map(|(_, bytes)| [IoSlice::new(bytes)]).collect();
        let to: Vec<Option<SockaddrIn>> = rest.iter().map(|(to, _)| Some(*to)).collect();
        let sent = match sendmmsg(socket.as_raw_fd(), &mut headers, &slices, to, [], MsgFlags::MSG_DONTWAIT) {
            Ok(sent) => sent.count(),
            Err(error) => {
                tracing::debug!(%error, "a DNS answer was lost");
                0
            }
        };
        // What could not be sent is left out: whoever misses it asks again.
        rest = &rest[sent.max(1).min(rest.len())..];
    }
    answers.clear();
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{Message, Query, ResponseCode};
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{Name, RData, Record, RecordType};
    use mayfly_model::DnsRecord;

    use super::*;

    /// Lets everybody ask for names below `org`, and writes down what they are told.
    #[derive(Default)]
    struct Watcher(Mutex<Vec<(String, Vec<IpAddr>, u32)>>);

    impl NameObserver for Watcher {
        fn asked(&self, _: Ipv4Addr, name: &str, inside: bool) -> Asked {
            if inside || name.ends_with(".org") { Asked::Watched } else { Asked::Refused }
        }

        fn told(&self, _: Ipv4Addr, name: &str, addresses: &[IpAddr], seconds: u32) {
            self.0.lock().unwrap().push((name.to_owned(), addresses.to_vec(), seconds));
        }

        fn is_needed(&self) -> bool {
            true
        }
    }

    /// A name server that says 192.0.2.7 to everything; the first answer it sends is somebody else's.
    async fn outside(address: &str) -> SocketAddr {
        let socket = tokio::net::UdpSocket::bind(address).await.unwrap();
        let own = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            loop {
                let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
                let request = Message::from_vec(&buffer[..length]).unwrap();
                let mut reply = Message::response(request.metadata.id, request.metadata.op_code);
                reply.add_query(request.queries[0].clone());
                let data = RData::A(A(Ipv4Addr::new(192, 0, 2, 7)));
                reply.add_answer(Record::from_rdata(request.queries[0].name().clone(), 300, data));
                let mut forged = reply.clone();
                forged.metadata.id ^= 1;
                for answer in [forged, reply] {
                    socket.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
                }
            }
        });
        own
    }

    async fn ask(server: SocketAddrV4, name: &str) -> Option<Message> {
        let mut request = Message::query();
        request.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(&request.to_vec().unwrap(), server).await.unwrap();
        let mut buffer = [0; 1500];
        let answered = tokio::time::timeout(Duration::from_secs(3), socket.recv(&mut buffer)).await.ok()?;
        let reply = Message::from_vec(&buffer[..answered.unwrap()]).unwrap();
        assert_eq!(reply.metadata.id, request.metadata.id);
        Some(reply)
    }

    fn zone() -> watch::Sender<Arc<Zone>> {
        let shop =
            DnsRecord { name: "shop.z".to_owned(), address: Ipv4Addr::new(192, 0, 2, 2).into(), canonical: true };
        watch::Sender::new(Arc::new(Zone::new("z", &[shop], &[])))
    }

    #[tokio::test]
    async fn the_zone_is_answered_and_the_rest_is_asked_elsewhere_where_it_may_be() {
        let zone = zone();
        let watcher = Arc::new(Watcher::default());
        let address = SocketAddrV4::new(Ipv4Addr::new(127, 53, 1, 1), 5353);
        let stop = Arc::new(AtomicBool::new(false));
        let server = DnsServer {
            zone: zone.subscribe(),
            forwarder: Some(Arc::new(Forwarder::new(vec![outside("127.53.1.2:0").await]))),
            limit: None,
            observer: Some(watcher.clone()),
        };
        server.start(address, 2, Arc::clone(&stop)).await.unwrap();
        for _ in 0..20 {
            assert_eq!(ask(address, "shop.z.").await.unwrap().answers[0].data.to_string(), "192.0.2.2");
        }
        let reply = ask(address, "www.example.org.").await.unwrap();
        assert_eq!(reply.answers[0].data.to_string(), "192.0.2.7");
        assert_eq!(ask(address, "www.example.com.").await.unwrap().metadata.response_code, ResponseCode::Refused);
        // What is told is open before it is told; a change is answered at once.
        let told = watcher.0.lock().unwrap().clone();
        assert_eq!(told[20], ("www.example.org".to_owned(), vec![Ipv4Addr::new(192, 0, 2, 7).into()], 300));
        assert_eq!(told[0], ("shop.z".to_owned(), vec![Ipv4Addr::new(192, 0, 2, 2).into()], LEARNED_AT_LEAST));
        zone.send_replace(Arc::new(Zone::new("z", &[], &[])));
        assert_eq!(ask(address, "shop.z.").await.unwrap().metadata.response_code, ResponseCode::NXDomain);
        stop.store(true, Relaxed);
    }

    #[tokio::test]
    async fn who_asks_too_often_is_not_answered() {
        let zone = zone();
        let address = SocketAddrV4::new(Ipv4Addr::new(127, 53, 2, 1), 5353);
        let stop = Arc::new(AtomicBool::new(false));
        let server = DnsServer {
            zone: zone.subscribe(),
            forwarder: None,
            limit: Some(Arc::new(Mutex::new(Limit::new(1, 5)))),
            observer: None,
        };
        server.start(address, 1, Arc::clone(&stop)).await.unwrap();
        for _ in 0..5 {
            assert!(ask(address, "shop.z.").await.is_some());
        }
        assert!(ask(address, "shop.z.").await.is_none());
        stop.store(true, Relaxed);
    }
}
