//! Where chunks come from: the other hosts first, then the controller.
//!
//! Each chunk has one *owner* among the hosts that use the image, the same for all of them (rendezvous hashing). A host
//! asks the owner, which fetches the chunk from the controller if it does not have it and then gives it to everybody. So
//! the controller sends each chunk once, however many hosts start at a time; whoever fails to answer is passed over.

use std::collections::HashMap;
use std::io::{self, Read};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use mayfly_identity::{Clock, HostKeys};
use mayfly_model::manifest::MANIFEST_BYTES_MAX;
use mayfly_model::{ChunkDigest, Digest, Manifest};
use reqwest::blocking::{Client, Response};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Incidents;
use super::peer::PEER_PORT;

/// How long another host may take to let us in: a host that has just died does not refuse, and a guest that is made anew
/// because of that must not wait for it.
const PEER_CONNECT: Duration = Duration::from_millis(150);
/// How long another host may take for a chunk; then the controller is asked.
const PEER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a host that did not answer is not asked again.
const PEER_PAUSE: Duration = Duration::from_secs(10);
/// How long the controller may take.
const CONTROLLER_TIMEOUT: Duration = Duration::from_secs(60);
/// Other hosts that are asked before the controller.
const ASKED_FIRST: usize = 2;
/// Between two tries; a guest that waits for a chunk waits on.
const RETRY: Duration = Duration::from_millis(500);
/// How long a chunk is tried for before the guest is told that its disk fails.
pub(super) const PATIENCE: Duration = Duration::from_secs(600);

/// Whom a host asks for images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sources {
    /// The controller, for example `https://10.77.0.1:7070`.
    pub controller: String,
    /// The file with this host's key and certificate, which it shows to the controller.
    pub identity: Option<PathBuf>,
    /// This host's address in the data centre's network, where it gives chunks to others.
    pub address: Ipv4Addr,
    /// Bytes a second at which what no guest has asked for is fetched.
    pub background_rate: u64,
    /// Most bytes that images nobody uses may fill the disk up to.
    pub cache_bytes: u64,
}

/// What was fetched, in bytes of chunks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetched {
    /// From the controller.
    pub controller_bytes: u64,
    /// From other hosts.
    pub peer_bytes: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Fetcher {
    sources: RwLock<Option<Sources>>,
    clients: RwLock<Option<Clients>>,
    /// The time by which certificates are judged.
    clock: OnceLock<Clock>,
    /// The hosts that use an image, this one included.
    holders: Mutex<HashMap<Digest, Vec<Ipv4Addr>>>,
    /// Hosts that did not answer, and when.
    silent: Mutex<HashMap<Ipv4Addr, Instant>>,
    /// Whether this host can be asked by others.
    listens: AtomicBool,
    controller_bytes: AtomicU64,
    peer_bytes: AtomicU64,
}

#[derive(Clone, Debug)]
struct Clients {
    controller: Client,
    peers: Client,
}

impl Clients {
    fn new(sources: &Sources, clock: Clock) -> io::Result<Clients> {
        let builder = |connect, timeout| {
            Client::builder().no_proxy().connect_timeout(connect).timeout(timeout).pool_max_idle_per_host(8)
        };
        let mut controller = builder(Duration::from_secs(1), CONTROLLER_TIMEOUT);
        if let Some(path) = &sources.identity {
            let keys = HostKeys::read(path).map_err(io::Error::other)?;
            let keys = keys.ok_or_else(|| io::Error::other(format!("there is no {}", path.display())))?;
            let tls = mayfly_identity::client_config(&keys, clock).map_err(io::Error::other)?;
            controller = controller.tls_backend_preconfigured(tls);
        }
        Ok(Clients {
            controller: controller.build().map_err(io::Error::other)?,
            peers: builder(PEER_CONNECT, PEER_TIMEOUT).build().map_err(io::Error::other)?,
        })
    }
}

impl Fetcher {
    /// Asks these from now on, with the certificate that is in the file now.
    pub(crate) fn set_sources(&self, sources: Sources) -> io::Result<()> {
        let clients = Clients::new(&sources, *self.clock.get_or_init(Clock::start))?;
        *self.clients.write().unwrap_or_else(PoisonError::into_inner) = Some(clients);
        *self.sources.write().unwrap_or_else(PoisonError::into_inner) = Some(sources);
        Ok(())
    }

    /// This host can be asked by others from now on.
    pub(crate) fn set_listening(&self) {
        self.listens.store(true, Ordering::Relaxed);
    }

    pub(crate) fn sources(&self) -> io::Result<Sources> {
        self.sources.read().unwrap_or_else(PoisonError::into_inner).clone().ok_or_else(unknown)
    }

    fn clients(&self) -> io::Result<Clients> {
        self.clients.read().unwrap_or_else(PoisonError::into_inner).clone().ok_or_else(unknown)
    }

    pub(crate) fn fetched(&self) -> Fetched {
        Fetched {
            controller_bytes: self.controller_bytes.load(Ordering::Relaxed),
            peer_bytes: self.peer_bytes.load(Ordering::Relaxed),
        }
    }

    /// The manifest of an image, verified.
    pub(crate) fn manifest(&self, digest: &Digest) -> io::Result<Manifest> {
        let bytes = self.ask_controller(&format!("/host/v1/images/{digest}/manifest"), MANIFEST_BYTES_MAX)?;
        let found = Digest::of(&bytes);
        if found != *digest {
            return Err(io::Error::other(format!("the controller sent a manifest with the digest {found}")));
        }
        let text = String::from_utf8(bytes).map_err(io::Error::other)?;
        Manifest::parse(&text).map_err(|error| io::Error::other(format!("the manifest is damaged: {error}")))
    }

    /// Tells the controller that this host uses an image, and learns which others do.
    pub(crate) fn announce(&self, digest: &Digest) -> io::Result<()> {
        let sources = self.sources()?;
        if !self.listens.load(Ordering::Relaxed) {
            return Ok(());
        }
        let path = format!("/host/v1/images/{digest}/holders?address={}", sources.address);
        let bytes = self.ask_controller(&path, 1 << 20)?;
        let holders = serde_json::from_slice(&bytes)?;
        self.holders.lock().unwrap_or_else(PoisonError::into_inner).insert(digest.clone(), holders);
        Ok(())
    }

    /// The order in which earlier boots read an image's chunks; empty when nobody knows.
    pub(crate) fn order(&self, digest: &Digest) -> io::Result<String> {
        let bytes = self.ask_controller(&format!("/host/v1/images/{digest}/order"), 1 << 20)?;
        String::from_utf8(bytes).map_err(io::Error::other)
    }

    /// Lets others know in which order a boot here has read an image's chunks.
    pub(crate) fn publish_order(&self, digest: &Digest, order: &str) -> io::Result<()> {
        let sources = self.sources()?;
        let url = format!("{}/host/v1/images/{digest}/order", sources.controller);
        let answer = self.clients()?.controller.put(url).body(order.to_owned()).send();
        answer.and_then(Response::error_for_status).map(drop).map_err(io::Error::other)
    }

    /// A chunk, verified. Tries until it comes, within reason.
    pub(crate) fn chunk(
        &self,
        image: &Digest,
        index: u32,
        digest: ChunkDigest,
        incidents: &Incidents,
        patience: Duration,
    ) -> io::Result<Vec<u8>> {
        let began = Instant::now();
        loop {
            let error = match self.try_chunk(image, index, digest, incidents) {
                Ok(bytes) => return Ok(bytes),
                Err(error) => error,
            };
            if began.elapsed() >= patience {
                return Err(error);
            }
            tracing::info!(%image, index, %error, "a chunk cannot be fetched yet");
            std::thread::sleep(RETRY);
        }
    }

    fn try_chunk(&self, image: &Digest, index: u32, digest: ChunkDigest, incidents: &Incidents) -> io::Result<Vec<u8>> {
        let verify = |bytes: Vec<u8>, from: &str| {
            let good = ChunkDigest::of(&bytes) == digest;
            if !good {
                incidents.add(format!("chunk {index} of image {image} came damaged from {from}; it is fetched again"));
            }
            good.then_some(bytes)
        };
        let own = self.sources()?.address;
        let holders = self.ranked(image, digest);
        let ask = |host: Ipv4Addr, fetch: bool| {
            let bytes = self.try_peer(host, image, index, fetch)?;
            let bytes = verify(bytes, &host.to_string())?;
            self.peer_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            Some(bytes)
        };
        // The owner fetches it if it has to; the others may have it from a time when there was another owner.
        let (mut asked, others) = (Vec::new(), holders.iter().copied().filter(|host| *host != own));
        for host in others.clone().take(ASKED_FIRST) {
            asked.push(host);
            if let Some(bytes) = ask(host, holders.first() == Some(&host)) {
                return Ok(bytes);
            }
        }
        self.try_controller(digest, |bytes| verify(bytes, "the controller")).or_else(|error| {
            let last = others.filter(|host| !asked.contains(host)).find_map(|host| ask(host, false));
            last.ok_or(error)
        })
    }

    fn try_peer(&self, host: Ipv4Addr, image: &Digest, index: u32, fetch: bool) -> Option<Vec<u8>> {
        match self.ask_peer(host, image, index, fetch) {
            Ok(bytes) => Some(bytes),
            Err(AskError::Busy) => None,
            Err(AskError::Failed(error)) => {
                tracing::info!(%host, index, %error, "another host does not answer");
                self.silent.lock().unwrap_or_else(PoisonError::into_inner).insert(host, Instant::now());
                None
            }
        }
    }

    fn try_controller(&self, digest: ChunkDigest, verify: impl Fn(Vec<u8>) -> Option<Vec<u8>>) -> io::Result<Vec<u8>> {
        let most = u64::from(mayfly_model::CHUNK_BYTES);
        let bytes = self.ask_controller(&format!("/host/v1/chunks/{digest}"), most)?;
        let bytes = verify(bytes).ok_or_else(|| io::Error::other("it came damaged"))?;
        self.controller_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(bytes)
    }

    /// The hosts that use an image and answer, the one that fetches this chunk for all first.
    fn ranked(&self, image: &Digest, chunk: ChunkDigest) -> Vec<Ipv4Addr> {
        let silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        let answers = |host: &&Ipv4Addr| silent.get(*host).is_none_or(|since| since.elapsed() > PEER_PAUSE);
        let holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        let mut list: Vec<Ipv4Addr> = holders.get(image).into_iter().flatten().filter(answers).copied().collect();
        let rank = |host: &Ipv4Addr| Sha256::new().chain_update(chunk.0).chain_update(host.octets()).finalize();
        list.sort_by_cached_key(|host| std::cmp::Reverse(rank(host)));
        list
    }

    /// Whether this host is the one that fetches a chunk for all.
    pub(crate) fn is_owner(&self, image: &Digest, chunk: ChunkDigest) -> bool {
        let own = self.sources().map(|sources| sources.address);
        own.is_ok_and(|own| self.ranked(image, chunk).first() == Some(&own))
    }

    fn ask_peer(&self, host: Ipv4Addr, image: &Digest, index: u32, fetch: bool) -> Result<Vec<u8>, AskError> {
        let url = format!("http://{host}:{PEER_PORT}/v1/images/{image}/chunks/{index}?fetch={fetch}");
        let clients = self.clients().map_err(AskError::Failed)?;
        match clients.peers.get(url).send() {
            Ok(answer) if !answer.status().is_success() => Err(AskError::Busy),
            other => read(other, u64::from(mayfly_model::CHUNK_BYTES)).map_err(AskError::Failed),
        }
    }

    fn ask_controller(&self, path: &str, most: u64) -> io::Result<Vec<u8>> {
        let sources = self.sources()?;
        let answer = self.clients()?.controller.get(format!("{}{path}", sources.controller)).send();
        read(answer.and_then(Response::error_for_status), most)
    }
}

/// Why another host has sent no chunk.
enum AskError {
    /// It does not have it, and is not to fetch it.
    Busy,
    /// It does not answer as it should.
    Failed(io::Error),
}

fn unknown() -> io::Error {
    io::Error::other("the agent has not said yet where images come from")
}

fn read(response: reqwest::Result<Response>, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if response.map_err(io::Error::other)?.take(most + 1).read_to_end(&mut bytes)? as u64 > most {
        return Err(io::Error::other(format!("the answer is longer than {most} bytes")));
    }
    Ok(bytes)
}
