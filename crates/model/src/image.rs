//! Base images: read-only disks, named by the digest of their manifest.

use serde::{Deserialize, Serialize};

use crate::name::ImageName;
use crate::time::Time;

/// A SHA-256, as 64 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// That of `bytes`.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(crate::manifest::ChunkDigest::of(bytes).to_string())
    }

    /// Checks that `text` is 64 lower-case hexadecimal digits.
    pub fn new(text: impl Into<String>) -> Result<Digest, String> {
        let text = text.into();
        let good = text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if good { Ok(Digest(text)) } else { Err(format!("`{text}` is not a SHA-256 in hexadecimal")) }
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&self.0)
    }
}

impl TryFrom<String> for Digest {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Digest::new(text)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.0
    }
}

/// A committed base image. Its bytes never change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The name that configurations refer to.
    pub name: ImageName,
    /// The digest of the manifest, and so of the whole.
    pub digest: Digest,
    /// Bytes of the chunks that are not zeros.
    pub data_bytes: u64,
    /// Bytes of the disk that a guest sees.
    pub disk_bytes: u64,
    /// The identity of the VHD that was pushed, by which its children know it.
    pub vhd_id: [u8; 16],
    /// When it was committed.
    pub created: Time,
}
