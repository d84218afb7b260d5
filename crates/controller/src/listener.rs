//! The ports where hosts connect: TLS, with the host's certificate if it has one.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use mayfly_identity::Enrolled;
use rustls::ServerConfig;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes at a time; more wait. Each costs a signature.
const HANDSHAKES: usize = 256;
/// How long a connection is silent before its other end is asked whether it is there.
const IDLE: Duration = Duration::from_secs(30);
/// Between two tries when the system is out of descriptors.
const PAUSE: Duration = Duration::from_millis(200);

/// Who is at the other end of a connection.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// What its certificate says, which the authority has signed; nothing for who joins.
    pub enrolled: Option<Enrolled>,
}

/// Connections of hosts, shaken hands with.
pub struct HostListener {
    accepted: mpsc::Receiver<(TlsStream<TcpStream>, Peer)>,
}

impl HostListener {
    /// Shakes hands with whoever connects, many at a time: one that is slow holds up nobody.
    pub fn start(listener: TcpListener, config: ServerConfig) -> HostListener {
        let (connected, accepted) = mpsc::channel(HANDSHAKES);
        tokio::spawn(accept(listener, TlsAcceptor::from(Arc::new(config)), connected));
        HostListener { accepted }
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, connected: mpsc::Sender<(TlsStream<TcpStream>, Peer)>) {
    let turns = Arc::new(Semaphore::new(HANDSHAKES));
    while let Ok(turn) = Arc::clone(&turns).acquire_owned().await {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a host cannot connect");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let (acceptor, connected) = (acceptor.clone(), connected.clone());
        tokio::spawn(async move {
            match tokio::time::timeout(HANDSHAKE, shake(acceptor, stream)).await {
                Ok(Ok(both)) => drop(connected.send(both).await),
                Ok(Err(error)) => tracing::debug!(%error, "a connection that did not come to be"),
                Err(_) => tracing::debug!("a handshake that took too long"),
            }
            drop(turn);
        });
    }
}

/// Has the system find out that whoever was at the other end is gone without a word: what it holds is free again then.
pub fn keep_alive(stream: &TcpStream) {
    let every = TcpKeepalive::new().with_time(IDLE).with_interval(IDLE / 3).with_retries(3);
    if let Err(error) = SockRef::from(stream).set_tcp_keepalive(&every) {
        tracing::debug!(%error, "a connection's other end is not watched");
    }
}

async fn shake(acceptor: TlsAcceptor, stream: TcpStream) -> io::Result<(TlsStream<TcpStream>, Peer)> {
    // Reports are small, and each is waited for.
    stream.set_nodelay(true)?;
    keep_alive(&stream);
    // A host reads what it is sent; a user may pause.
    SockRef::from(&stream).set_tcp_user_timeout(Some(IDLE * 2))?;
    let stream = acceptor.accept(stream).await?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let enrolled = certificate.map(Enrolled::of).transpose().map_err(io::Error::other)?;
    Ok((stream, Peer { enrolled }))
}

impl Listener for HostListener {
    type Io = TlsStream<TcpStream>;
    type Addr = Peer;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.accepted.recv().await {
            Some(both) => both,
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Peer> {
        Ok(Peer::default())
    }
}

impl Connected<IncomingStream<'_, HostListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, HostListener>) -> Peer {
        stream.remote_addr().clone()
    }
}
