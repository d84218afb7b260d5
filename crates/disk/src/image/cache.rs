//! The cache: a folder with a folder for each image.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::SystemTime;

use mayfly_model::{Digest, Manifest};
use mayfly_vhd::{Access, Epoch, Vhd};

use super::fetch::{Fetched, Fetcher, Sources};
use super::incident::{Incident, Incidents};
use super::lazy::{LazyImage, LazyStorage};
use super::{fill, peer};
use crate::turns::Turns;

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The system refused, or nobody has the image.
    #[error("image cache: cannot {action} {path}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

/// The images of this host.
#[derive(Clone, Debug)]
pub struct ImageCache {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    folder: PathBuf,
    pub fetcher: Arc<Fetcher>,
    pub incidents: Arc<Incidents>,
    open: Mutex<HashMap<Digest, Open>>,
    /// An image is opened by one at a time.
    turns: Turns<Digest>,
    /// Whether other hosts can ask this one.
    listens: Mutex<bool>,
}

/// An image that is, or lately was, in use.
#[derive(Debug)]
struct Open {
    image: Weak<LazyImage>,
    disk: Weak<Vhd>,
}

impl ImageCache {
    /// Opens the cache.
    ///
    /// # Errors
    /// [`CacheError::Io`] when the folder cannot be made.
    pub fn open(folder: &Path) -> Result<ImageCache, CacheError> {
        fs::create_dir_all(folder).map_err(|source| CacheError::Io {
            action: "create",
            path: folder.to_owned(),
            source,
        })?;
        let inner = Inner {
            folder: folder.to_owned(),
            fetcher: Arc::default(),
            incidents: Arc::default(),
            open: Mutex::default(),
            turns: Turns::default(),
            listens: Mutex::new(false),
        };
        Ok(ImageCache { inner: Arc::new(inner) })
    }

    /// Says where images come from, and starts to give them to others.
    ///
    /// # Errors
    /// [`CacheError::Io`] when this host's address cannot be listened on.
    pub fn set_sources(&self, sources: Sources) -> Result<(), CacheError> {
        let address = sources.address;
        let identity = sources.identity.clone().unwrap_or_default();
        let unusable = |source| CacheError::Io { action: "use", path: identity, source };
        self.inner.fetcher.set_sources(sources).map_err(unusable)?;
        let mut listens = self.inner.listens.lock().unwrap_or_else(PoisonError::into_inner);
        if !*listens {
            // The address may come up later than this process; the agent asks again.
            peer::start(self, address).map_err(|source| CacheError::Io {
                action: "give chunks to others on",
                path: PathBuf::from(address.to_string()),
                source,
            })?;
            *listens = true;
            self.inner.fetcher.set_listening();
        }
        Ok(())
    }

    /// Starts to verify images again, to tell others of them, and to make room.
    pub fn look_after(&self) {
        fill::start(self);
    }

    /// The image as the parent of disks: opened once, however many use it. Only its manifest has to be here. With
    /// `is_boot`, the order in which it is read is worth knowing.
    ///
    /// # Errors
    /// [`CacheError::Io`].
    pub fn disk(&self, digest: &Digest, is_boot: bool) -> Result<Arc<Vhd>, CacheError> {
        let disk = self.inner.turns.take(digest, || self.open_disk(digest))?;
        if let Some(image) = self.image(digest).filter(|_| is_boot) {
            image.recorder.start();
        }
        Ok(disk)
    }

    fn open_disk(&self, digest: &Digest) -> Result<Arc<Vhd>, CacheError> {
        if let Some(disk) = self.inner.images().get(digest).and_then(|open| open.disk.upgrade()) {
            return Ok(disk);
        }
        let folder = self.inner.folder.join(digest.as_str());
        let error = |action| {
            let path = folder.clone();
            move |source| CacheError::Io { action, path, source }
        };
        let manifest = self.inner.manifest(&folder, digest).map_err(error("get the manifest of"))?;
        let (fetcher, incidents) = (Arc::clone(&self.inner.fetcher), Arc::clone(&self.inner.incidents));
        let image = LazyImage::open(&folder, digest.clone(), manifest, fetcher, incidents).map_err(error("open"))?;
        let image = Arc::new(image);
        let storage = Box::new(LazyStorage(Arc::clone(&image)));
        let name = folder.join("disk.vhd");
        let disk = Vhd::open_storage(&name, storage, Access::ReadOnly, None, Epoch::UNKNOWN);
        let disk = Arc::new(disk.map_err(io::Error::other).map_err(error("open"))?);
        let open = Open { image: Arc::downgrade(&image), disk: Arc::downgrade(&disk) };
        self.inner.images().insert(digest.clone(), open);
        fill::image(self, &image);
        Ok(disk)
    }

    /// The image, if it is in use.
    pub(super) fn image(&self, digest: &Digest) -> Option<Arc<LazyImage>> {
        self.inner.images().get(digest)?.image.upgrade()
    }

    /// All images in use.
    pub(super) fn images(&self) -> Vec<Arc<LazyImage>> {
        self.inner.images().values().filter_map(|open| open.image.upgrade()).collect()
    }

    /// Bytes of an image in use that are here, and its bytes.
    pub fn progress(&self, digest: &Digest) -> Option<(u64, u64)> {
        let image = self.image(digest)?;
        Some((image.present_bytes(), image.manifest.data_bytes()))
    }

    /// What went wrong lately.
    pub fn incidents(&self) -> Vec<Incident> {
        self.inner.incidents.list()
    }

    /// What was fetched.
    pub fn fetched(&self) -> Fetched {
        self.inner.fetcher.fetched()
    }

    /// Throws images away that nobody uses, the one that was used longest ago first, until the cache has no more than
    /// `limit` bytes.
    pub fn evict(&self, limit: u64) {
        self.inner.images().retain(|_, open| open.image.strong_count() > 0);
        let mut images = Vec::new();
        for entry in fs::read_dir(&self.inner.folder).into_iter().flatten().flatten() {
            let Ok(digest) = Digest::new(entry.file_name().to_string_lossy()) else { continue };
            let bytes = fs::metadata(entry.path().join("disk.vhd")).map_or(0, |data| data.blocks() * 512);
            let used = fs::metadata(entry.path().join("used")).and_then(|data| data.modified());
            images.push((used.unwrap_or(SystemTime::UNIX_EPOCH), digest, bytes));
        }
        let mut total: u64 = images.iter().map(|(.., bytes)| bytes).sum();
        images.sort_unstable();
        for (_, digest, bytes) in images {
            if total <= limit {
                return;
            }
            // One that is being opened must not lose its folder meanwhile.
            if self.inner.turns.try_take(&digest, || self.throw_away(&digest)) == Some(true) {
                total -= bytes;
            }
        }
    }

    /// Removes an image, unless it is in use; whether that was done.
    fn throw_away(&self, digest: &Digest) -> bool {
        if self.image(digest).is_some() {
            return false;
        }
        let removed = fs::remove_dir_all(self.inner.folder.join(digest.as_str()));
        match &removed {
            Ok(()) => tracing::info!(%digest, "an image that nobody uses left the cache"),
            Err(error) => tracing::warn!(%digest, %error, "an image cannot be thrown away"),
        }
        removed.is_ok()
    }
}

impl Inner {
    fn images(&self) -> MutexGuard<'_, HashMap<Digest, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The manifest, from the folder or from the controller.
    fn manifest(&self, folder: &Path, digest: &Digest) -> io::Result<Manifest> {
        let path = folder.join("manifest");
        let kept = fs::read_to_string(&path).ok().filter(|text| Digest::of(text.as_bytes()) == *digest);
        let manifest = match kept.and_then(|text| Manifest::parse(&text).ok()) {
            Some(manifest) => manifest,
            None => {
                let manifest = self.fetcher.manifest(digest)?;
                fs::create_dir_all(folder)?;
                let partial = folder.join("manifest.new");
                fs::write(&partial, manifest.to_text())?;
                fs::rename(&partial, &path)?;
                manifest
            }
        };
        self.touch(digest);
        Ok(manifest)
    }

    /// Notes that an image is used now.
    pub(super) fn touch(&self, digest: &Digest) {
        let path = self.folder.join(digest.as_str()).join("used");
        if let Err(error) = fs::write(&path, "") {
            tracing::debug!(%error, "when an image was used last is not known");
        }
    }
}
