//! Base images as the controller keeps them: one file each, named by its digest, never written again.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use axum::body::{Body, BodyDataStream};
use futures_util::StreamExt;
use mayfly_api::{ApiError, ErrorCode};
use mayfly_model::Digest;
use mayfly_vhd::{Access, DiskType, Vhd, VhdError};
use sha2::{Digest as _, Sha256};

/// The images.
pub struct ImageStore {
    folder: PathBuf,
    next: AtomicU64,
    /// Held from a file's appearance to its record's commit, and while a file is deleted with its record.
    pub turn: tokio::sync::Mutex<()>,
}

/// An image that has arrived and is what it has to be.
pub struct Received {
    /// The digest of the file.
    pub digest: Digest,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Bytes of the disk.
    pub disk_bytes: u64,
    partial: Partial,
}

impl ImageStore {
    /// Opens the store, and throws away what was half uploaded when an earlier controller ended.
    pub fn open(folder: &Path) -> anyhow::Result<ImageStore> {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "part") {
                fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        Ok(ImageStore { folder: folder.to_owned(), next: AtomicU64::new(0), turn: tokio::sync::Mutex::new(()) })
    }

    /// Deletes files that no record names: their uploads were not committed.
    pub fn sweep(&self, named: &[&Digest]) {
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let digest = name.strip_suffix(".vhd").and_then(|name| Digest::new(name).ok());
            if let Some(digest) = digest.filter(|digest| !named.contains(&digest)) {
                self.delete(&digest);
            }
        }
    }

    /// The file of an image.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(format!("{digest}.vhd"))
    }

    /// Receives a file and checks that it is a whole VHD. `length` is what the sender announced.
    pub async fn receive(&self, body: Body, length: Option<u64>) -> Result<Received, ApiError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let partial = Partial(self.folder.join(format!("upload-{number}.part")));
        let (digest, file_bytes) = write(&partial.0, body.into_data_stream()).await?;
        if length.is_some_and(|length| length != file_bytes) {
            return Err(ApiError::new(ErrorCode::Invalid, "the upload broke off before its end; push it again"));
        }
        let disk_bytes = check(&partial.0).await?;
        Ok(Received { digest, file_bytes, disk_bytes, partial })
    }

    /// Gives a received file its own name. The caller has the turn.
    pub fn keep(&self, received: &Received) -> Result<(), ApiError> {
        let (partial, target) = (&received.partial, self.path(&received.digest));
        let keep = || {
            fs::set_permissions(&partial.0, fs::Permissions::from_mode(0o444))?;
            File::open(&partial.0)?.sync_all()?;
            fs::rename(&partial.0, &target)?;
            File::open(&self.folder)?.sync_all()
        };
        keep().map_err(|error| io_error(&error))
    }

    /// Deletes the file of an image that no record names any more.
    pub fn delete(&self, digest: &Digest) {
        // A file that stays is only waste.
        if let Err(error) = fs::remove_file(self.path(digest)) {
            tracing::warn!(%digest, %error, "the file of a deleted image stays");
        }
    }
}

/// A file that goes away unless it was renamed.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

async fn write(path: &Path, mut stream: BodyDataStream) -> Result<(Digest, u64), ApiError> {
    let written = write_all(path, &mut stream).await;
    if written.is_err() {
        drain(&mut stream).await;
    }
    written
}

/// Takes what the sender still has to say. Most clients read an answer only when they have been let finish.
pub async fn drain(stream: &mut BodyDataStream) {
    while matches!(stream.next().await, Some(Ok(_))) {}
}

async fn write_all(path: &Path, stream: &mut BodyDataStream) -> Result<(Digest, u64), ApiError> {
    let internal = |error: tokio::task::JoinError| ApiError::new(ErrorCode::Internal, error.to_string());
    let mut file = File::create(path).map_err(|error| io_error(&error))?;
    let (mut hasher, mut bytes) = (Sha256::new(), 0);
    while let Some(chunk) = stream.next().await {
        let chunk =
            chunk.map_err(|error| ApiError::new(ErrorCode::Invalid, format!("the upload broke off: {error}")))?;
        bytes += chunk.len() as u64;
        let work = tokio::task::spawn_blocking(move || {
            hasher.update(&chunk);
            file.write_all(&chunk).map(|()| (hasher, file))
        });
        (hasher, file) = work.await.map_err(internal)?.map_err(|error| io_error(&error))?;
    }
    let text: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let digest = Digest::new(text).map_err(|error| ApiError::new(ErrorCode::Internal, error))?;
    Ok((digest, bytes))
}

/// Returns the bytes of the disk.
async fn check(path: &Path) -> Result<u64, ApiError> {
    let path = path.to_owned();
    let opened = tokio::task::spawn_blocking(move || Vhd::open(&path, Access::ReadOnly, None)).await;
    let opened = opened.map_err(|error| ApiError::new(ErrorCode::Internal, error.to_string()))?;
    let invalid = |what: String| ApiError::new(ErrorCode::Invalid, what);
    match opened {
        Ok(vhd) if vhd.disk_type() != DiskType::Differencing => Ok(vhd.disk_bytes()),
        Ok(_) | Err(VhdError::WrongParent { .. }) => Err(invalid(
            "this is a differencing VHD; merge it with its parent first, a base image has to be complete".to_owned(),
        )),
        Err(VhdError::NotVhd { why, .. }) => Err(invalid(format!(
            "not a VHD: {why} (make one: qemu-img convert -O vpc -o subformat=fixed,force_size=on IN OUT.vhd)"
        ))),
        Err(VhdError::Damaged { field, offset, why, .. }) => {
            Err(invalid(format!("damaged VHD: {field} at byte {offset}: {why}")))
        }
        Err(VhdError::Io { source, .. }) => Err(io_error(&source)),
        Err(other) => Err(ApiError::new(ErrorCode::Internal, other.to_string())),
    }
}

fn io_error(error: &std::io::Error) -> ApiError {
    if error.raw_os_error() == Some(libc::ENOSPC) {
        return ApiError::new(ErrorCode::DiskFull, "the controller's disk is full; the image was not stored");
    }
    ApiError::new(ErrorCode::Internal, format!("the controller cannot store the image: {error}"))
}
