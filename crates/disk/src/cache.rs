//! A host's base images: each under its digest, read-only, and there only after its digest was verified.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Why an image is not in the cache.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The system refused.
    #[error("image cache: cannot {action} {path}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Other bytes came than were asked for.
    #[error("image cache: the bytes that came have the digest {found}, not {wanted}; they were thrown away")]
    WrongDigest {
        /// What was asked for.
        wanted: String,
        /// What came.
        found: String,
    },
}

/// The cache: a folder with one file an image.
#[derive(Clone, Debug)]
pub struct ImageCache {
    folder: PathBuf,
}

impl ImageCache {
    /// Opens the cache and throws away what an earlier process left half done.
    ///
    /// # Errors
    /// [`CacheError::Io`] when the folder cannot be made or read.
    pub fn open(folder: &Path) -> Result<ImageCache, CacheError> {
        let io = |action| move |source| CacheError::Io { action, path: folder.to_owned(), source };
        fs::create_dir_all(folder).map_err(io("create"))?;
        for entry in fs::read_dir(folder).map_err(io("list"))? {
            let path = entry.map_err(io("list"))?.path();
            if path.extension().is_some_and(|extension| extension == "part") {
                fs::remove_file(&path).map_err(|source| CacheError::Io { action: "remove", path, source })?;
            }
        }
        Ok(ImageCache { folder: folder.to_owned() })
    }

    /// The file of the image with this digest, if it is there.
    pub fn find(&self, digest: &str) -> Option<PathBuf> {
        let path = self.path(digest);
        path.exists().then_some(path)
    }

    /// Starts to receive an image.
    ///
    /// # Errors
    /// [`CacheError::Io`] when the file cannot be created.
    pub fn begin(&self, digest: &str) -> Result<PartialImage, CacheError> {
        let path = self.folder.join(format!("{digest}.part"));
        let file =
            File::create(&path).map_err(|source| CacheError::Io { action: "create", path: path.clone(), source })?;
        let target = self.path(digest);
        Ok(PartialImage { file, path, target, wanted: digest.to_owned(), hasher: Sha256::new(), done: false })
    }

    /// The digest of the bytes that are in the file now.
    ///
    /// # Errors
    /// [`CacheError::Io`] when it cannot be read.
    pub fn digest_of(path: &Path) -> Result<String, CacheError> {
        let io = |action| move |source| CacheError::Io { action, path: path.to_owned(), source };
        let mut file = File::open(path).map_err(io("open"))?;
        let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
        loop {
            match file.read(&mut buffer).map_err(io("read"))? {
                0 => return Ok(hexadecimal(hasher)),
                count => hasher.update(&buffer[..count]),
            }
        }
    }

    fn path(&self, digest: &str) -> PathBuf {
        self.folder.join(format!("{digest}.vhd"))
    }
}

/// An image on its way into the cache. Dropped before [`PartialImage::finish`], it leaves nothing behind.
pub struct PartialImage {
    file: File,
    path: PathBuf,
    target: PathBuf,
    wanted: String,
    hasher: Sha256,
    done: bool,
}

impl PartialImage {
    /// Appends bytes.
    ///
    /// # Errors
    /// [`CacheError::Io`], for example when the disk is full.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), CacheError> {
        self.hasher.update(bytes);
        self.file.write_all(bytes).map_err(|source| CacheError::Io { action: "write", path: self.path.clone(), source })
    }

    /// Verifies the digest and puts the image into the cache.
    ///
    /// # Errors
    /// [`CacheError::WrongDigest`], [`CacheError::Io`].
    pub fn finish(mut self) -> Result<PathBuf, CacheError> {
        let found = hexadecimal(std::mem::take(&mut self.hasher));
        if found != self.wanted {
            return Err(CacheError::WrongDigest { wanted: self.wanted.clone(), found });
        }
        let io = |action| {
            let path = self.path.clone();
            move |source| CacheError::Io { action, path, source }
        };
        self.file.set_permissions(fs::Permissions::from_mode(0o444)).map_err(io("protect"))?;
        self.file.sync_all().map_err(io("flush"))?;
        fs::rename(&self.path, &self.target).map_err(io("rename"))?;
        self.done = true;
        Ok(self.target.clone())
    }
}

impl Drop for PartialImage {
    fn drop(&mut self) {
        if !self.done {
            // Best effort: what stays is thrown away at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn hexadecimal(hasher: Sha256) -> String {
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_verified_bytes_enter() {
        let folder = tempfile::tempdir().unwrap();
        let cache = ImageCache::open(folder.path()).unwrap();
        let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"; // of "abc", FIPS 180-2
        let mut image = cache.begin(digest).unwrap();
        image.write(b"abd").unwrap();
        assert!(matches!(image.finish(), Err(CacheError::WrongDigest { .. })));
        assert_eq!(cache.find(digest), None);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing stays behind");
        let mut image = cache.begin(digest).unwrap();
        image.write(b"abc").unwrap();
        let path = image.finish().unwrap();
        assert_eq!(cache.find(digest).as_deref(), Some(path.as_path()));
        assert_eq!(ImageCache::digest_of(&path).unwrap(), digest);
    }
}
