//! The disk server: one process a host, one Unix socket a disk. What it serves stands in a folder, so that a new
//! process serves the same when the old one was killed; QEMU reconnects by itself.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use mayfly_model::Digest;
use mayfly_vhd::{Access, CreateOptions, Vhd, VhdError, create_differencing, seconds_since_2000};
use nix::sys::socket::shutdown;
use serde::{Deserialize, Serialize};

use crate::control::{ExportNews, ImageNews, News};
use crate::disk::ServedDisk;
use crate::image::{CacheError, ImageCache, Sources};
use crate::turns::Turns;
use crate::{nbd, vhost};

/// Bytes that a reply may wait in for its client.
const SEND_BUFFER: usize = 1 << 20;
/// How long requests that are under way may take when a disk is closed.
const CLOSING: Duration = Duration::from_secs(5);

/// A disk that is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    /// Its name, unique on the host: letters, digits, `-` and `_`.
    pub name: String,
    /// The differencing disk; made when the export is opened for the first time and the file is not there.
    pub disk: PathBuf,
    /// What is below it.
    pub base: Base,
    /// The socket to serve it on.
    pub socket: PathBuf,
    /// Most bytes that the disk's file may take.
    #[serde(default)]
    pub quota_bytes: Option<u64>,
    /// How the hypervisor talks to it.
    #[serde(default)]
    pub transport: Transport,
}

/// How a hypervisor talks to a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Transport {
    /// NBD: works with every device model, and with memory that is mapped privately.
    #[default]
    Nbd,
    /// vhost-user-blk: shared memory, for throughput.
    VhostUser,
}

/// What a differencing disk stands on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Base {
    /// A base image, which fills as it is read.
    Image(Digest),
    /// A fixed or dynamic VHD that is here.
    File(PathBuf),
    /// A template's disk, which is itself a differencing disk over a base image.
    Template {
        /// The template's disk. It is not written any more.
        disk: PathBuf,
        /// The image below it.
        image: Digest,
    },
}

/// Why a disk is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The system refused.
    #[error("disk server: cannot {action} {path}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The disk cannot be opened.
    #[error("disk server: cannot open a disk")]
    Vhd(#[from] VhdError),
    /// The base image cannot be used.
    #[error("disk server: no base image")]
    Image(#[from] CacheError),
    /// The name cannot be a file name.
    #[error("disk server: `{0}` is no name for an export")]
    Name(String),
}

/// The server. It lives as long as its process.
#[derive(Clone)]
pub struct DiskServer {
    shared: Arc<Shared>,
}

struct Shared {
    folder: PathBuf,
    images: ImageCache,
    state: Mutex<State>,
    /// An export is opened or closed by one at a time.
    turns: Turns<String>,
}

#[derive(Default)]
struct State {
    /// Base files that a disk uses, each open once.
    bases: HashMap<PathBuf, Weak<Vhd>>,
    serving: HashMap<String, Serving>,
}

/// The open connections of an export.
type Connections = Arc<Mutex<Vec<Arc<UnixStream>>>>;

struct Serving {
    export: Export,
    disk: Arc<ServedDisk>,
    listener: Arc<UnixListener>,
    /// Connections, to be cut when the export is closed.
    connections: Connections,
}

impl DiskServer {
    /// Starts a server that remembers its exports in `folder`, and serves those that are remembered there. Base images
    /// are kept in `images`.
    ///
    /// # Errors
    /// [`ServerError::Io`] when a folder cannot be used. A remembered disk that cannot be served is only logged.
    pub fn start(folder: &Path, images: &Path) -> Result<DiskServer, ServerError> {
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| ServerError::Io { action, path, source }
        };
        fs::create_dir_all(folder).map_err(io("create", folder))?;
        let images = ImageCache::open(images)?;
        let shared = Shared { folder: folder.to_owned(), images, state: Mutex::default(), turns: Turns::default() };
        let server = DiskServer { shared: Arc::new(shared) };
        server.recall_sources();
        for entry in fs::read_dir(folder).map_err(io("list", folder))? {
            let path = entry.map_err(io("list", folder))?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let text = fs::read(&path).map_err(io("read", &path))?;
            let opened = serde_json::from_slice(&text)
                .map_err(|error| error.to_string())
                .and_then(|export: Export| server.serve_again(export).map_err(|error| error.to_string()));
            // A disk that is gone is not made anew here: its guest may still run and must not find it empty.
            if let Err(error) = opened {
                tracing::error!(export = %path.display(), %error, "a disk of before cannot be served");
            }
        }
        // Not before: what these disks stand on must not be taken for unused.
        server.shared.images.look_after();
        Ok(server)
    }

    fn serve_again(&self, export: Export) -> Result<(), ServerError> {
        let base = self.base(&export.base, false)?;
        self.serve(export, base)
    }

    /// Serves a disk until [`DiskServer::close`], also after a restart. Serving it already is success.
    ///
    /// # Errors
    /// [`ServerError`] says why it cannot.
    pub fn open(&self, export: Export) -> Result<(), ServerError> {
        let name = export.name.clone();
        self.shared.turns.take(&name, || self.open_in_turn(export))
    }

    fn open_in_turn(&self, export: Export) -> Result<(), ServerError> {
        let file = self.remembered(&export.name)?;
        let served = self.state().serving.get(&export.name).is_some_and(|serving| serving.export == export);
        if served && export.socket.exists() && file.exists() {
            return Ok(());
        }
        let is_new = !export.disk.exists();
        let base = self.base(&export.base, is_new)?;
        if is_new {
            make_disk(&export.disk, &base)?;
        }
        let text = serde_json::to_vec(&export).map_err(|error| ServerError::Name(error.to_string()))?;
        // Written first: a disk that is served and forgotten would be lost to its guest with this process.
        let temporary = file.with_extension("tmp");
        fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, &file)).map_err(|source| ServerError::Io {
            action: "write",
            path: file,
            source,
        })?;
        self.stop_serving(&export.name);
        self.serve(export, base)
    }

    /// The base, opened once for all its children. With `is_new`, a disk over it is going to be booted from.
    fn base(&self, base: &Base, is_new: bool) -> Result<Arc<Vhd>, ServerError> {
        let (path, below) = match base {
            Base::Image(digest) => return Ok(self.shared.images.disk(digest, is_new)?),
            Base::File(path) => (path, None),
            Base::Template { disk, image } => (disk, Some(self.shared.images.disk(image, is_new)?)),
        };
        let mut state = self.state();
        if let Some(base) = state.bases.get(path).and_then(Weak::upgrade) {
            return Ok(base);
        }
        let base = Arc::new(Vhd::open(path, Access::ReadOnly, below)?);
        state.bases.insert(path.to_owned(), Arc::downgrade(&base));
        Ok(base)
    }

    /// Stops serving a disk and forgets it. Not serving it is success.
    ///
    /// # Errors
    /// [`ServerError::Io`] when it cannot be forgotten.
    pub fn close(&self, name: &str) -> Result<(), ServerError> {
        let file = self.remembered(name)?;
        self.shared.turns.take(&name.to_owned(), || {
            match fs::remove_file(&file) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(ServerError::Io { action: "remove", path: file.clone(), source });
                }
                _ => {}
            }
            self.stop_serving(name);
            Ok(())
        })
    }

    /// Stops serving all disks, without forgetting them.
    pub fn stop(&self) {
        for name in self.names() {
            self.stop_serving(&name);
        }
    }

    fn stop_serving(&self, name: &str) {
        let serving = self.state().serving.remove(name);
        let Some(serving) = serving else { return };
        // This wakes up the thread that waits for clients.
        let _ = shutdown(serving.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        let _ = fs::remove_file(&serving.export.socket);
        for connection in lock(&serving.connections).drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
        // The file is unlocked when the last request has ended.
        let deadline = Instant::now() + CLOSING;
        while Arc::strong_count(&serving.disk) > 1 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Says where images come from, also after a restart.
    ///
    /// # Errors
    /// [`ServerError`] when that cannot be written down, or this host's address not be listened on.
    pub fn set_sources(&self, sources: Sources) -> Result<(), ServerError> {
        let file = self.sources_file();
        let error = |source| ServerError::Io { action: "write", path: file.clone(), source };
        let text = serde_json::to_vec(&sources).map_err(io::Error::from).map_err(error)?;
        let partial = file.with_extension("tmp");
        fs::write(&partial, &text).map_err(error)?;
        fs::rename(&partial, &file).map_err(error)?;
        Ok(self.shared.images.set_sources(sources)?)
    }

    fn recall_sources(&self) {
        let Ok(text) = fs::read(self.sources_file()) else { return };
        let sources = serde_json::from_slice(&text).map_err(|error| error.to_string());
        let set =
            sources.and_then(|sources| self.shared.images.set_sources(sources).map_err(|error| error.to_string()));
        if let Err(error) = set {
            tracing::warn!(error, "where images come from has to be said again");
        }
    }

    fn sources_file(&self) -> PathBuf {
        self.shared.folder.join("sources.conf")
    }

    /// How everything is doing.
    pub fn news(&self) -> News {
        let (images, fetched) = (&self.shared.images, self.shared.images.fetched());
        let exports: Vec<Export> = self.state().serving.values().map(|serving| serving.export.clone()).collect();
        let progress = |export: &Export| match &export.base {
            Base::Image(digest) | Base::Template { image: digest, .. } => {
                images.progress(digest).map(|progress| (digest.clone(), progress))
            }
            Base::File(_) => None,
        };
        let used: BTreeMap<Digest, (u64, u64)> = exports.iter().filter_map(progress).collect();
        let size = |export: &Export| fs::metadata(&export.disk).map_or(0, |data| data.blocks() * 512);
        News {
            exports: exports.iter().map(|e| ExportNews { name: e.name.clone(), file_bytes: size(e) }).collect(),
            images: used
                .into_iter()
                .map(|(digest, (present_bytes, data_bytes))| ImageNews { digest, present_bytes, data_bytes })
                .collect(),
            incidents: images.incidents(),
            controller_bytes: fetched.controller_bytes,
            peer_bytes: fetched.peer_bytes,
        }
    }

    /// Throws images away that nobody uses until no more than `limit` bytes of images are left.
    pub fn evict(&self, limit: u64) {
        self.shared.images.evict(limit);
    }

    /// The names of the disks that are served.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.state().serving.keys().cloned().collect();
        names.sort();
        names
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.shared.state)
    }

    fn remembered(&self, name: &str) -> Result<PathBuf, ServerError> {
        let good = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
        if good { Ok(self.shared.folder.join(format!("{name}.json"))) } else { Err(ServerError::Name(name.to_owned())) }
    }

    fn serve(&self, export: Export, base: Arc<Vhd>) -> Result<(), ServerError> {
        let vhd = Vhd::open(&export.disk, Access::ReadWrite, Some(base))?;
        let disk = Arc::new(ServedDisk::new(vhd, export.quota_bytes));
        let io = |action| {
            let path = export.socket.clone();
            move |source| ServerError::Io { action, path, source }
        };
        match fs::remove_file(&export.socket) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(io("remove")(source)),
            _ => {}
        }
        let listener = Arc::new(UnixListener::bind(&export.socket).map_err(io("listen on"))?);
        let connections = Arc::default();
        let serving = Serving {
            export: export.clone(),
            disk: Arc::clone(&disk),
            listener: Arc::clone(&listener),
            connections: Arc::clone(&connections),
        };
        self.state().serving.insert(export.name.clone(), serving);
        let server = self.clone();
        std::thread::Builder::new()
            .name(export.name.clone())
            .spawn(move || server.accept(&export, &listener, &disk, &connections))
            .map_err(|source| ServerError::Io { action: "start a thread for", path: PathBuf::new(), source })?;
        Ok(())
    }

    fn accept(&self, export: &Export, listener: &UnixListener, disk: &Arc<ServedDisk>, connections: &Connections) {
        let name = export.name.as_str();
        let is_serving = || {
            let state = self.state();
            state.serving.get(name).is_some_and(|serving| Arc::ptr_eq(&serving.connections, connections))
        };
        loop {
            let accepted = listener.accept();
            let Ok((stream, _)) = accepted.inspect_err(|error| tracing::debug!(name, %error, "a connection failed"))
            else {
                if !is_serving() {
                    return;
                }
                // Too many open files, perhaps; trying on at once would only make it worse.
                std::thread::sleep(Duration::from_millis(100));
                continue;
            };
            widen(&stream);
            let stream = Arc::new(stream);
            lock(connections).push(Arc::clone(&stream));
            // Closing cuts what it finds; what came after that must not be let in.
            if !is_serving() {
                return;
            }
            let (export, disk, connections) = (export.clone(), Arc::clone(disk), Arc::clone(connections));
            let (client, thread) = (Arc::clone(&stream), std::thread::Builder::new().name(name.to_owned()));
            if let Err(error) = thread.spawn(move || talk(&export, &client, &disk, &connections)) {
                // The client tries again.
                tracing::error!(name, %error, "a connection cannot be served");
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }
}

/// Serves a client until it goes.
fn talk(export: &Export, stream: &Arc<UnixStream>, disk: &Arc<ServedDisk>, connections: &Connections) {
    let served = match export.transport {
        Transport::Nbd => nbd::serve(stream, disk),
        Transport::VhostUser => vhost::serve(stream, disk),
    };
    if let Err(error) = served {
        tracing::info!(export = export.name, %error, "a connection ended");
    }
    // The client has to see the end, whoever else still knows of the connection.
    let _ = stream.shutdown(Shutdown::Both);
    lock(connections).retain(|other| !Arc::ptr_eq(other, stream));
}

// The maps are changed in single steps, so a panic elsewhere cannot leave them half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes an empty disk over `base`.
fn make_disk(path: &Path, base: &Vhd) -> Result<(), ServerError> {
    let options = CreateOptions { unique_id: rand::random(), timestamp: seconds_since_2000(), durable: true };
    // Under its own name only when it is whole.
    let partial = path.with_extension("new");
    let _ = fs::remove_file(&partial);
    create_differencing(&partial, base, &options)?;
    let error = |source| ServerError::Io { action: "name the new disk", path: path.to_owned(), source };
    fs::rename(&partial, path).map_err(error)?;
    // What the guest flushes would be lost with the name.
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(error)
}

/// Gives a connection room for several long replies, so that sender and receiver wake each other up less often.
fn widen(stream: &UnixStream) {
    use nix::sys::socket::{setsockopt, sockopt};
    // Beyond the system's limit where this process may; up to it elsewhere. Only speed depends on it.
    if setsockopt(stream, sockopt::SndBuf, &SEND_BUFFER).is_ok() {
        let _ = setsockopt(stream, sockopt::SndBufForce, &SEND_BUFFER);
    }
}
