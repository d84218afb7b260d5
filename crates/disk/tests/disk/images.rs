//! Images that fill as they are read, from a controller of the tests' own and from other hosts. Each test's hosts have
//! loopback addresses of their own.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Path as Part, Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use mayfly_disk::{Base, DiskServer, Export, Sources, Transport};
use mayfly_model::{CHUNK_BYTES, ChunkDigest, Digest, Manifest};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::tool::{qemu_io, wait_until};

const CHUNKS: u32 = 32;

/// A controller that gives one image away and counts what it gives.
#[derive(Default)]
struct Controller {
    manifest: String,
    chunks: HashMap<String, Vec<u8>>,
    given: Mutex<HashMap<String, u32>>,
    holders: Mutex<Vec<Ipv4Addr>>,
    order: String,
    /// The next chunk goes out with a flipped bit.
    lies: Mutex<bool>,
}

impl Controller {
    fn start(port: u16, order: &str) -> (Arc<Controller>, Digest, Vec<u8>) {
        let mut disk = vec![0; (CHUNKS * CHUNK_BYTES) as usize];
        ChaCha8Rng::seed_from_u64(u64::from(port)).fill_bytes(&mut disk);
        // Chunk 3 is zeros.
        disk[3 * CHUNK_BYTES as usize..4 * CHUNK_BYTES as usize].fill(0);
        let pieces = || disk.chunks(CHUNK_BYTES as usize).enumerate().filter(|(index, _)| *index != 3);
        let manifest = Manifest {
            disk_bytes: disk.len() as u64,
            chunk_bytes: CHUNK_BYTES,
            vhd_id: [5; 16],
            vhd_timestamp: 9,
            chunks: pieces().map(|(index, piece)| (index as u32, ChunkDigest::of(piece))).collect(),
        };
        let chunks = pieces().map(|(_, piece)| (ChunkDigest::of(piece).to_string(), piece.to_vec())).collect();
        let (digest, manifest) = (manifest.digest(), manifest.to_text());
        let controller = Arc::new(Controller { manifest, chunks, order: order.to_owned(), ..Controller::default() });
        let router = Router::new()
            .route("/host/v1/images/{digest}/manifest", get(manifest_of))
            .route("/host/v1/images/{digest}/holders", get(holders))
            .route("/host/v1/images/{digest}/order", get(order_of))
            .route("/host/v1/chunks/{digest}", get(chunk))
            .with_state(Arc::clone(&controller));
        let listener = std::net::TcpListener::bind(SocketAddr::from(([127, 88, 0, 1], port))).unwrap();
        listener.set_nonblocking(true).unwrap();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let serve = async { axum::serve(tokio::net::TcpListener::from_std(listener).unwrap(), router).await };
            runtime.block_on(serve).unwrap();
        });
        (controller, digest, disk)
    }

    /// How often each chunk was given, the most.
    fn most_given(&self) -> u32 {
        self.given.lock().unwrap().values().copied().max().unwrap_or(0)
    }

    fn total_given(&self) -> u32 {
        self.given.lock().unwrap().values().sum()
    }
}

async fn manifest_of(State(controller): State<Arc<Controller>>) -> String {
    controller.manifest.clone()
}

async fn order_of(State(controller): State<Arc<Controller>>) -> String {
    controller.order.clone()
}

async fn holders(State(controller): State<Arc<Controller>>, Query(query): Query<HashMap<String, Ipv4Addr>>) -> String {
    let mut holders = controller.holders.lock().unwrap();
    if !holders.contains(&query["address"]) {
        holders.push(query["address"]);
    }
    serde_json::to_string(&*holders).unwrap()
}

async fn chunk(State(controller): State<Arc<Controller>>, Part(digest): Part<String>) -> Result<Vec<u8>, StatusCode> {
    let mut bytes = controller.chunks.get(&digest).ok_or(StatusCode::NOT_FOUND)?.clone();
    *controller.given.lock().unwrap().entry(digest).or_default() += 1;
    // As long as a chunk takes on a quick network: two guests have the time to ask for the same one.
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    if std::mem::take(&mut *controller.lies.lock().unwrap()) {
        bytes[77] ^= 4;
    }
    Ok(bytes)
}

struct Host {
    server: DiskServer,
    folder: tempfile::TempDir,
    digest: Digest,
}

impl Host {
    fn start(port: u16, number: u8, digest: &Digest, background_rate: u64) -> Host {
        let folder = tempfile::tempdir().unwrap();
        let server = DiskServer::start(&folder.path().join("exports"), &folder.path().join("images")).unwrap();
        let sources = Sources {
            controller: format!("http://127.88.0.1:{port}"),
            identity: None,
            address: Ipv4Addr::new(127, 88, (port % 250) as u8, number),
            background_rate,
            // Two servers over one folder are the tests' own: neither makes room under the other.
            cache_bytes: u64::MAX,
        };
        server.set_sources(sources).unwrap();
        Host { server, folder, digest: digest.clone() }
    }

    fn guest(&self, name: &str) -> PathBuf {
        let socket = self.folder.path().join(format!("{name}.sock"));
        let export = Export {
            name: name.to_owned(),
            disk: self.folder.path().join(format!("{name}.vhd")),
            base: Base::Image(self.digest.clone()),
            socket: socket.clone(),
            quota_bytes: None,
            transport: Transport::Nbd,
        };
        self.server.open(export).unwrap();
        socket
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("images").join(self.digest.as_str()).join("disk.vhd")
    }
}

/// What a guest reads from its whole disk.
fn read_all(socket: &Path, folder: &Path) -> Vec<u8> {
    let (uri, copy) = (format!("nbd+unix:///?socket={}", socket.display()), folder.join("copy.raw"));
    crate::tool::run("qemu-img", &["convert", "-f", "raw", "-O", "raw", &uri, copy.to_str().unwrap()]);
    std::fs::read(copy).unwrap()
}

#[test]
fn two_guests_with_a_cold_cache_fetch_each_chunk_once() {
    let (controller, digest, disk) = Controller::start(17001, "");
    let host = Host::start(17001, 1, &digest, 1);
    let (one, two) = (host.guest("one"), host.guest("two"));
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    std::thread::scope(|scope| {
        let reads = [(&one, &folders[0]), (&two, &folders[1])]
            .map(|(socket, folder)| scope.spawn(move || read_all(socket, folder.path())));
        for read in reads {
            assert!(read.join().unwrap() == disk, "each guest reads the image");
        }
    });
    assert_eq!((controller.most_given(), controller.total_given()), (1, CHUNKS - 1), "zeros are not fetched");
}

#[test]
fn a_guest_starts_before_the_image_is_there() {
    let (controller, digest, disk) = Controller::start(17002, "");
    let host = Host::start(17002, 1, &digest, 1);
    let socket = host.guest("one");
    let digest_of =
        |index: usize| ChunkDigest::of(&disk[index * CHUNK_BYTES as usize..(index + 1) * CHUNK_BYTES as usize]);
    qemu_io(&socket, &["read 5M 4k"]);
    assert!(controller.given.lock().unwrap().contains_key(&digest_of(10).to_string()));
    assert!(controller.total_given() <= 4, "only what was read, and a little in the background");
    // A write over what is not there needs nothing of it.
    let before = controller.total_given();
    qemu_io(&socket, &["write -P 6 14M 4k", "read -P 6 14M 4k"]);
    assert!(controller.total_given() <= before + 1);
}

#[test]
fn what_earlier_boots_read_is_fetched_ahead_and_the_rest_later() {
    let order: String = (20..26).map(|index| format!("{index}\n")).collect();
    let (controller, digest, _) = Controller::start(17003, &order);
    let host = Host::start(17003, 1, &digest, 1);
    host.guest("one");
    wait_until("six chunks are fetched ahead", || controller.total_given() >= 6);
    assert!(controller.total_given() <= 8, "the rest comes slowly");
    let quick = Host::start(17003, 2, &digest, 1 << 30);
    quick.guest("one");
    wait_until("the rest is fetched in the background", || {
        quick.server.news().images.iter().all(|image| image.present_bytes == image.data_bytes)
    });
}

#[test]
fn hosts_give_each_other_what_they_have() {
    let (controller, digest, disk) = Controller::start(17004, "");
    let hosts = [1, 2, 3].map(|number| Host::start(17004, number, &digest, 1));
    let sockets = hosts.each_ref().map(|host| host.guest("one"));
    // All know of each other a round later.
    wait_until("each has told that it is there", || controller.holders.lock().unwrap().len() == 3);
    std::thread::sleep(std::time::Duration::from_millis(2500));
    let folders = [(); 3].map(|()| tempfile::tempdir().unwrap());
    std::thread::scope(|scope| {
        let reads: Vec<_> = sockets
            .iter()
            .zip(&folders)
            .map(|(socket, folder)| scope.spawn(move || read_all(socket, folder.path())))
            .collect();
        for read in reads {
            assert!(read.join().unwrap() == disk);
        }
    });
    // Before they knew of each other, the background may have fetched a chunk or two for each.
    assert!(controller.total_given() <= CHUNKS - 1 + 6, "{} chunks came from the controller", controller.total_given());
    let peers: u64 = hosts.iter().map(|host| host.server.news().peer_bytes).sum();
    assert!(peers >= u64::from(CHUNK_BYTES) * 40, "{peers} bytes came from other hosts");
}

#[test]
fn a_flipped_bit_is_found_and_mended() {
    use std::os::unix::fs::FileExt;
    let (controller, digest, disk) = Controller::start(17005, "");
    *controller.lies.lock().unwrap() = true;
    let host = Host::start(17005, 1, &digest, 1 << 30);
    let socket = host.guest("one");
    let folder = tempfile::tempdir().unwrap();
    assert!(read_all(&socket, folder.path()) == disk, "what came damaged was fetched again");
    let told = |what: &str| host.server.news().incidents.iter().any(|one| one.message.contains(what));
    assert!(told("came damaged from the controller"), "{:?}", host.server.news());
    // In the cache, while it is in use.
    let file = std::fs::OpenOptions::new().write(true).open(host.image()).unwrap();
    file.write_all_at(&[!disk[9 << 20]], 9 << 20).unwrap();
    wait_until("it is found", || told("was damaged on this host's disk"));
    wait_until("it is mended", || std::fs::read(host.image()).unwrap()[..disk.len()] == disk);
    // And while nobody looked.
    host.server.stop();
    // Only so many are kept, so it is their numbers that grow.
    let last = |server: &DiskServer| server.news().incidents.last().map(|one| one.number);
    let found = last(&host.server);
    file.write_all_at(&[!disk[1 << 20]], 1 << 20).unwrap();
    let again = DiskServer::start(&host.folder.path().join("exports"), &host.folder.path().join("images")).unwrap();
    assert!(read_all(&socket, folder.path()) == disk);
    // The server that was stopped may have come first, as it goes on looking after its images.
    let told = (last(&again), last(&host.server));
    assert!(told.0.is_some() || told.1 > found, "{told:?} after {found:?}");
}

#[test]
fn what_nobody_uses_leaves_the_cache() {
    let (_controller, digest, _) = Controller::start(17006, "");
    let host = Host::start(17006, 1, &digest, 1 << 30);
    let socket = host.guest("one");
    qemu_io(&socket, &["read 0 1M"]);
    host.server.evict(0);
    assert!(host.image().exists(), "it is in use");
    host.server.close("one").unwrap();
    wait_until("nobody uses it", || {
        host.server.evict(0);
        !host.image().exists()
    });
}
