//! The object store: `chunks/aa/DIGEST`, `manifests/DIGEST` and `orders/DIGEST`, in a folder, in S3 or in Azure Blob.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::{StreamExt, TryStreamExt, stream};
use mayfly_api::{ApiError, ErrorCode};
use mayfly_model::{CHUNK_BYTES, ChunkDigest, Digest, Manifest};
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use serde::{Deserialize, Serialize};

/// How long a chunk that no image has yet is kept: the time that a push may take, interruptions included.
const UPLOAD: Duration = Duration::from_secs(24 * 3600);
/// Requests to the store at a time.
const PARALLEL: usize = 16;

/// Where images are kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ObjectStoreConfig {
    /// `s3://BUCKET/PREFIX`, `az://CONTAINER/PREFIX` or `file:///FOLDER`.
    pub url: String,
    /// Further settings by the names that `object_store` gives them, for example `aws_region` or
    /// `azure_storage_account_key`.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

impl ObjectStoreConfig {
    /// A folder, which has to be named from the root.
    pub fn folder(path: &Path) -> ObjectStoreConfig {
        let url = url::Url::from_file_path(path).map_or_else(|()| path.display().to_string(), |url| url.to_string());
        ObjectStoreConfig { url, options: BTreeMap::new() }
    }
}

/// The images.
pub struct ImageStore {
    objects: Arc<dyn ObjectStore>,
    /// The folder, where that is what images are kept in: it is synced before an image is committed.
    folder: Option<PathBuf>,
    manifests: Mutex<HashMap<Digest, Known>>,
    /// Chunks whose bytes this process has seen to be right.
    verified: Mutex<HashSet<ChunkDigest>>,
    /// Chunks that a push was told are here, and when: they must not go before it is committed.
    promised: Mutex<HashMap<ChunkDigest, Instant>>,
    /// Held from a manifest's last check to its record's commit, and while chunks are deleted.
    pub turn: tokio::sync::Mutex<()>,
}

/// A manifest and its text.
#[derive(Clone)]
struct Known {
    manifest: Arc<Manifest>,
    text: bytes::Bytes,
}

impl ImageStore {
    /// Opens the store: that of the configuration, or `folder`.
    pub fn open(folder: &Path, config: Option<&ObjectStoreConfig>) -> anyhow::Result<ImageStore> {
        let (objects, folder): (Arc<dyn ObjectStore>, _) = match config {
            Some(config) => {
                let url = url::Url::parse(&config.url)
                    .with_context(|| format!("`{}` is no address of an object store", config.url))?;
                let (store, prefix) = object_store::parse_url_opts(&url, &config.options)
                    .with_context(|| format!("cannot use the object store {}", config.url))?;
                let folder = if url.scheme() == "file" { url.to_file_path().ok() } else { None };
                (Arc::new(PrefixStore::new(store, prefix)), folder)
            }
            None => {
                std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
                let store = LocalFileSystem::new_with_prefix(folder)
                    .with_context(|| format!("cannot keep images in {}", folder.display()))?;
                (Arc::new(store), Some(folder.to_owned()))
            }
        };
        Ok(ImageStore {
            objects,
            folder,
            manifests: Mutex::default(),
            verified: Mutex::default(),
            promised: Mutex::default(),
            turn: tokio::sync::Mutex::new(()),
        })
    }

    /// Which of these chunks are not here. The others stay for as long as a push may take.
    pub async fn missing(&self, chunks: &[ChunkDigest]) -> Result<Vec<ChunkDigest>, ApiError> {
        let look = |chunk: ChunkDigest| async move {
            match self.objects.head(&chunk_key(chunk)).await {
                // A power cut may leave a name without bytes.
                Ok(meta) if meta.size > 0 => Ok(None),
                Ok(_) => Ok(Some(chunk)),
                Err(object_store::Error::NotFound { .. }) => Ok(Some(chunk)),
                Err(error) => Err(internal(&error)),
            }
        };
        let found: Vec<Option<ChunkDigest>> =
            stream::iter(chunks.iter().copied()).map(look).buffered(PARALLEL).try_collect().await?;
        let missing: Vec<ChunkDigest> = found.into_iter().flatten().collect();
        let absent: HashSet<&ChunkDigest> = missing.iter().collect();
        self.promise(chunks.iter().filter(|chunk| !absent.contains(chunk)).copied());
        Ok(missing)
    }

    fn promise(&self, chunks: impl Iterator<Item = ChunkDigest>) {
        let mut promised = self.promised.lock().unwrap_or_else(PoisonError::into_inner);
        promised.retain(|_, since| since.elapsed() < UPLOAD);
        promised.extend(chunks.map(|chunk| (chunk, Instant::now())));
    }

    /// Keeps a chunk, after its digest was verified.
    pub async fn put_chunk(&self, digest: ChunkDigest, bytes: bytes::Bytes) -> Result<(), ApiError> {
        if bytes.is_empty() || bytes.len() > CHUNK_BYTES as usize {
            let message = format!("a chunk has 1 to {CHUNK_BYTES} bytes, not {}", bytes.len());
            return Err(ApiError::new(ErrorCode::Invalid, message));
        }
        let payload = bytes.clone();
        let found = tokio::task::spawn_blocking(move || ChunkDigest::of(&payload)).await;
        let found = found.map_err(|error| ApiError::new(ErrorCode::Internal, error.to_string()))?;
        if found != digest {
            let message = format!(
                "the chunk came with the digest {found}, not {digest}: it was damaged on the way, or the file is changing"
            );
            return Err(ApiError::new(ErrorCode::Invalid, message));
        }
        self.promise(std::iter::once(digest));
        let put = self.objects.put(&chunk_key(digest), PutPayload::from_bytes(bytes)).await;
        put.map_err(|error| write_error(&error))?;
        self.verified.lock().unwrap_or_else(PoisonError::into_inner).insert(digest);
        Ok(())
    }

    /// A chunk's bytes.
    pub async fn chunk(&self, digest: ChunkDigest) -> Result<bytes::Bytes, ApiError> {
        self.get(&chunk_key(digest), || format!("there is no chunk {digest}")).await
    }

    async fn get(&self, key: &Key, what: impl FnOnce() -> String) -> Result<bytes::Bytes, ApiError> {
        let got = match self.objects.get(key).await {
            Ok(found) => found.bytes().await,
            Err(error) => Err(error),
        };
        got.map_err(|error| match error {
            object_store::Error::NotFound { .. } => ApiError::new(ErrorCode::NotFound, what()),
            other => internal(&other),
        })
    }

    /// Keeps a manifest all of whose chunks are here, each with the bytes that its digest says. The caller has the turn.
    pub async fn put_manifest(&self, manifest: &Manifest) -> Result<(), ApiError> {
        let lengths: HashMap<ChunkDigest, u64> =
            manifest.chunks.iter().map(|(index, chunk)| (*chunk, manifest.place(*index).1)).collect();
        let chunks: Vec<ChunkDigest> = lengths.keys().copied().collect();
        let mut missing = self.missing(&chunks).await?;
        let known: Vec<ChunkDigest> = {
            let verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
            chunks.iter().filter(|chunk| !verified.contains(chunk) && !missing.contains(chunk)).copied().collect()
        };
        // Those that came with an earlier process: a folder does not verify what it gives, object stores do.
        if self.folder.is_some() {
            let check = |chunk: ChunkDigest| async move { (chunk, self.is_whole(chunk).await) };
            let checked: Vec<(ChunkDigest, bool)> = stream::iter(known).map(check).buffered(PARALLEL).collect().await;
            missing.extend(checked.into_iter().filter(|(_, whole)| !whole).map(|(chunk, _)| chunk));
        }
        if !missing.is_empty() {
            // Those that are damaged have to be seen to be missing when the push asks again.
            self.remove(missing.iter().copied().map(chunk_key)).await;
            let message = format!("{} chunks of the image have not been uploaded; push it again", missing.len());
            return Err(ApiError::new(ErrorCode::Invalid, message));
        }
        for (chunk, length) in &lengths {
            let meta = self.objects.head(&chunk_key(*chunk)).await.map_err(|error| internal(&error))?;
            if meta.size != *length {
                let message = format!("chunk {chunk} has {} bytes, and {length} in the manifest", meta.size);
                return Err(ApiError::new(ErrorCode::Invalid, message));
            }
        }
        let (digest, text) = (manifest.digest(), manifest.to_text());
        let put = self.objects.put(&manifest_key(&digest), PutPayload::from(text.into_bytes())).await;
        put.map_err(|error| write_error(&error))?;
        self.sync().await
    }

    /// Whether a chunk's bytes are what its digest says.
    async fn is_whole(&self, chunk: ChunkDigest) -> bool {
        let Ok(bytes) = self.chunk(chunk).await else { return false };
        let found = tokio::task::spawn_blocking(move || ChunkDigest::of(&bytes)).await;
        let whole = found.is_ok_and(|found| found == chunk);
        if whole {
            self.verified.lock().unwrap_or_else(PoisonError::into_inner).insert(chunk);
        }
        whole
    }

    /// An image was committed: its chunks are its own now, and go with it.
    pub fn committed(&self, manifest: &Manifest) {
        let mut promised = self.promised.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, chunk) in &manifest.chunks {
            promised.remove(chunk);
        }
    }

    /// Makes what was written to the folder survive a power cut.
    async fn sync(&self) -> Result<(), ApiError> {
        let Some(folder) = self.folder.clone() else { return Ok(()) };
        let synced = tokio::task::spawn_blocking(move || {
            nix::unistd::syncfs(std::fs::File::open(folder)?).map_err(std::io::Error::from)
        });
        let synced = synced.await.map_err(|error| ApiError::new(ErrorCode::Internal, error.to_string()))?;
        synced.map_err(|error| ApiError::new(ErrorCode::Internal, format!("the image cannot be made durable: {error}")))
    }

    /// An image's manifest.
    pub async fn manifest(&self, digest: &Digest) -> Result<Arc<Manifest>, ApiError> {
        Ok(self.known(digest).await?.manifest)
    }

    /// The text of an image's manifest.
    pub async fn manifest_text(&self, digest: &Digest) -> Result<bytes::Bytes, ApiError> {
        Ok(self.known(digest).await?.text)
    }

    async fn known(&self, digest: &Digest) -> Result<Known, ApiError> {
        let known = self.manifests.lock().unwrap_or_else(PoisonError::into_inner).get(digest).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let text = self.get(&manifest_key(digest), || format!("there is no image {digest}")).await?;
        let damaged = |why: String| ApiError::new(ErrorCode::Internal, format!("the manifest of {digest}: {why}"));
        let (wanted, copy) = (digest.clone(), text.clone());
        let parsed = tokio::task::spawn_blocking(move || {
            if Digest::of(&copy) != wanted {
                return Err("its bytes have changed".to_owned());
            }
            Manifest::parse(std::str::from_utf8(&copy).map_err(|error| error.to_string())?)
        });
        let manifest = parsed.await.map_err(|error| damaged(error.to_string()))?.map_err(damaged)?;
        let known = Known { manifest: Arc::new(manifest), text };
        let mut manifests = self.manifests.lock().unwrap_or_else(PoisonError::into_inner);
        manifests.insert(digest.clone(), known.clone());
        Ok(known)
    }

    /// The order in which boots read an image's chunks; empty where nobody has said it.
    pub async fn order(&self, digest: &Digest) -> Result<bytes::Bytes, ApiError> {
        match self.get(&order_key(digest), String::new).await {
            Err(error) if error.code == ErrorCode::NotFound => Ok(bytes::Bytes::new()),
            other => other,
        }
    }

    /// Keeps the order in which a boot has read an image's chunks.
    pub async fn put_order(&self, digest: &Digest, order: bytes::Bytes) -> Result<(), ApiError> {
        let put = self.objects.put(&order_key(digest), PutPayload::from_bytes(order)).await;
        put.map(drop).map_err(|error| write_error(&error))
    }

    /// Deletes an image and those of its chunks that no image of `others` has. The caller has the turn.
    pub async fn delete(&self, digest: &Digest, others: &[Digest]) {
        let Ok(manifest) = self.manifest(digest).await else { return };
        let kept = self.kept(others).await;
        let gone: HashSet<ChunkDigest> = match kept {
            Some(kept) => {
                manifest.chunks.iter().map(|(_, chunk)| *chunk).filter(|chunk| !kept.contains(chunk)).collect()
            }
            None => HashSet::new(),
        };
        self.manifests.lock().unwrap_or_else(PoisonError::into_inner).remove(digest);
        {
            let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
            verified.retain(|chunk| !gone.contains(chunk));
        }
        let keys = gone.into_iter().map(chunk_key).chain([manifest_key(digest), order_key(digest)]);
        self.remove(keys).await;
    }

    /// Deletes what no record names and no push may be about to: what is older than a day.
    pub async fn sweep(&self, named: &[Digest]) {
        let Some(kept) = self.kept(named).await else { return };
        let old = |meta: &object_store::ObjectMeta| {
            let age = std::time::SystemTime::now().duration_since(meta.last_modified.into());
            age.is_ok_and(|age| age > UPLOAD)
        };
        let unused = |meta: object_store::ObjectMeta| async move { Some(meta) };
        let all: Vec<_> =
            self.objects.list(None).filter_map(|meta| async { meta.ok() }).filter_map(unused).collect().await;
        let keys = all.into_iter().filter(|meta| old(meta)).map(|meta| meta.location).filter(|key| {
            let name = key.filename().unwrap_or_default();
            match key.parts().next().as_ref().map(AsRef::as_ref) {
                Some("chunks") => name.parse().is_ok_and(|chunk: ChunkDigest| !kept.contains(&chunk)),
                Some("manifests" | "orders") => !named.iter().any(|digest| digest.as_str() == name),
                _ => false,
            }
        });
        self.remove(keys).await;
    }

    /// The chunks of these images and of pushes that are under way; nothing when that cannot be known.
    async fn kept(&self, images: &[Digest]) -> Option<HashSet<ChunkDigest>> {
        let mut kept: HashSet<ChunkDigest> = {
            let promised = self.promised.lock().unwrap_or_else(PoisonError::into_inner);
            promised.iter().filter(|(_, since)| since.elapsed() < UPLOAD).map(|(chunk, _)| *chunk).collect()
        };
        for image in images {
            match self.manifest(image).await {
                Ok(manifest) => kept.extend(manifest.chunks.iter().map(|(_, chunk)| *chunk)),
                Err(error) => {
                    tracing::error!(%image, error = error.message, "an image cannot be read, so no chunk is deleted");
                    return None;
                }
            }
        }
        Some(kept)
    }

    async fn remove(&self, keys: impl Iterator<Item = Key>) {
        let remove = |key: Key| async move {
            match self.objects.delete(&key).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                // An object that stays is only waste.
                Err(error) => tracing::warn!(%key, %error, "a part of a deleted image stays"),
            }
        };
        stream::iter(keys).map(remove).buffer_unordered(PARALLEL).for_each(|()| async {}).await;
    }
}

fn chunk_key(digest: ChunkDigest) -> Key {
    let name = digest.to_string();
    Key::from(format!("chunks/{}/{name}", &name[..2]))
}

fn manifest_key(digest: &Digest) -> Key {
    Key::from(format!("manifests/{digest}"))
}

fn order_key(digest: &Digest) -> Key {
    Key::from(format!("orders/{digest}"))
}

fn internal(error: &object_store::Error) -> ApiError {
    ApiError::new(ErrorCode::Internal, format!("the object store of images fails: {error}"))
}

fn write_error(error: &object_store::Error) -> ApiError {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = source {
        let system = cause.downcast_ref::<std::io::Error>();
        if system.is_some_and(|error| error.kind() == std::io::ErrorKind::StorageFull) {
            return ApiError::new(ErrorCode::DiskFull, "the controller's disk is full; the image was not stored");
        }
        source = cause.source();
    }
    internal(error)
}
