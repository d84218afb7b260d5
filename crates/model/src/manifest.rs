//! The manifest of a base image: which chunk of the disk has which content.
//!
//! An image is stored in chunks of half a mebibyte, each named by its SHA-256, so that equal ones are kept once and
//! missing ones can be fetched one by one and verified before they are used. Chunks of zeros are not listed. The text is
//! the manifest's only form, and its SHA-256 names the image:
//!
//! ```text
//! mayfly-image 1
//! disk-bytes 2147483648
//! chunk-bytes 524288
//! vhd-id 6f1c… 12
//! 0 ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad
//! 7 …
//! ```
//!
//! `vhd-id` is the identity and time stamp of the VHD that was pushed, by which its children know it.

use std::fmt::Write;

use sha2::{Digest as _, Sha256};

use crate::image::Digest;

/// Bytes of a chunk: large enough that asking costs little, small enough that a boot fetches little that it does not
/// read.
pub const CHUNK_BYTES: u32 = 512 << 10;
/// Bytes of the longest manifest that is read: that of a disk of 2040 GiB without a chunk of zeros.
pub const MANIFEST_BYTES_MAX: u64 = 400 << 20;
/// Bytes of the largest disk.
const DISK_BYTES_MAX: u64 = 2040 << 30;

/// The SHA-256 of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkDigest(pub [u8; 32]);

impl ChunkDigest {
    /// That of `bytes`.
    pub fn of(bytes: &[u8]) -> ChunkDigest {
        ChunkDigest(Sha256::digest(bytes).into())
    }
}

impl std::fmt::Display for ChunkDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        for byte in self.0 {
            f.write_char(char::from(DIGITS[usize::from(byte >> 4)]))?;
            f.write_char(char::from(DIGITS[usize::from(byte & 15)]))?;
        }
        Ok(())
    }
}

impl std::str::FromStr for ChunkDigest {
    type Err = String;

    fn from_str(text: &str) -> Result<ChunkDigest, String> {
        hexadecimal(text).map(ChunkDigest).ok_or_else(|| format!("`{text}` is not a SHA-256 in hexadecimal"))
    }
}

fn hexadecimal<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    let good =
        digits.len() == 2 * N && digits.iter().all(|digit| digit.is_ascii_digit() || (b'a'..=b'f').contains(digit));
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    good.then_some(bytes)
}

/// A manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Bytes of the disk, whole sectors.
    pub disk_bytes: u64,
    /// Bytes of a chunk; the last one of the disk may be shorter.
    pub chunk_bytes: u32,
    /// The identity of the VHD that was pushed.
    pub vhd_id: [u8; 16],
    /// Its time stamp, in seconds since 2000-01-01.
    pub vhd_timestamp: u32,
    /// The chunks that are not all zeros, by their number, ascending.
    pub chunks: Vec<(u32, ChunkDigest)>,
}

impl Manifest {
    /// Reads a manifest, in exactly the form that [`Manifest::to_text`] gives.
    ///
    /// # Errors
    /// What is wrong, and in which line.
    pub fn parse(text: &str) -> Result<Manifest, String> {
        let mut lines = text.lines().enumerate();
        let mut head = |word: &str| {
            let (number, line) = lines.next().ok_or_else(|| format!("the manifest ends before its `{word}`"))?;
            let rest = line.strip_prefix(word).and_then(|rest| rest.strip_prefix(' '));
            rest.map(|rest| (number + 1, rest)).ok_or_else(|| format!("line {}: `{word}` is missing", number + 1))
        };
        let number = |(line, text): (usize, &str)| {
            text.parse::<u64>().map_err(|error| format!("line {line}: `{text}`: {error}"))
        };
        let version = number(head("mayfly-image")?)?;
        if version != 1 {
            return Err(format!("line 1: version {version} is newer than this program"));
        }
        let disk_bytes = number(head("disk-bytes")?)?;
        let chunk_bytes = number(head("chunk-bytes")?)?;
        let (line, identity) = head("vhd-id")?;
        let (id, timestamp) = identity.split_once(' ').unwrap_or((identity, ""));
        let vhd_id = hexadecimal(id).ok_or_else(|| format!("line {line}: `{id}` is no identity"))?;
        let vhd_timestamp = timestamp.parse().map_err(|error| format!("line {line}: `{timestamp}`: {error}"))?;
        if disk_bytes == 0 || !disk_bytes.is_multiple_of(512) || disk_bytes > DISK_BYTES_MAX {
            return Err(format!("line 2: no disk has {disk_bytes} bytes"));
        }
        if chunk_bytes != u64::from(CHUNK_BYTES) {
            return Err(format!("line 3: chunks have {CHUNK_BYTES} bytes, not {chunk_bytes}"));
        }
        let mut manifest = Manifest { disk_bytes, chunk_bytes: CHUNK_BYTES, vhd_id, vhd_timestamp, chunks: Vec::new() };
        for (line, text) in lines {
            let wrong = |what: &str| format!("line {}: {what}", line + 1);
            let (index, digest) = text.split_once(' ').ok_or_else(|| wrong("expected a number and a digest"))?;
            let index: u32 = index.parse().map_err(|_| wrong("not a chunk's number"))?;
            if index >= manifest.chunk_count() || manifest.chunks.last().is_some_and(|(last, _)| *last >= index) {
                return Err(wrong("chunks have to be within the disk and in order"));
            }
            manifest.chunks.push((index, digest.parse().map_err(|error: String| wrong(&error))?));
        }
        if manifest.to_text() != text {
            return Err("it is not in its canonical form".to_owned());
        }
        Ok(manifest)
    }

    /// The manifest's text.
    pub fn to_text(&self) -> String {
        let mut text = String::with_capacity(128 + self.chunks.len() * 76);
        let id: String = self.vhd_id.iter().map(|byte| format!("{byte:02x}")).collect();
        let (disk, chunk, timestamp) = (self.disk_bytes, self.chunk_bytes, self.vhd_timestamp);
        // Writing to a string cannot fail.
        let _ = write!(text, "mayfly-image 1\ndisk-bytes {disk}\nchunk-bytes {chunk}\nvhd-id {id} {timestamp}\n");
        for (index, digest) in &self.chunks {
            let _ = writeln!(text, "{index} {digest}");
        }
        text
    }

    /// The digest that names the image.
    pub fn digest(&self) -> Digest {
        Digest::of(self.to_text().as_bytes())
    }

    /// Chunks of the disk, those of zeros included.
    pub fn chunk_count(&self) -> u32 {
        // At most 2040 GiB / 512 KiB.
        self.disk_bytes.div_ceil(u64::from(self.chunk_bytes)) as u32
    }

    /// The content of a chunk; `None` where it is zeros.
    pub fn chunk(&self, index: u32) -> Option<ChunkDigest> {
        let found = self.chunks.binary_search_by_key(&index, |(index, _)| *index).ok()?;
        Some(self.chunks[found].1)
    }

    /// Where a chunk stands in the disk, and its bytes.
    pub fn place(&self, index: u32) -> (u64, u64) {
        let at = u64::from(index) * u64::from(self.chunk_bytes);
        (at, u64::from(self.chunk_bytes).min(self.disk_bytes.saturating_sub(at)))
    }

    /// Bytes of all chunks that are not zeros.
    pub fn data_bytes(&self) -> u64 {
        self.chunks.iter().map(|(index, _)| self.place(*index).1).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            disk_bytes: (3 << 20) + 512,
            chunk_bytes: CHUNK_BYTES,
            vhd_id: [0xab; 16],
            vhd_timestamp: 12,
            chunks: vec![(0, ChunkDigest::of(b"abc")), (6, ChunkDigest::of(b""))],
        }
    }

    #[test]
    fn a_manifest_reads_back() {
        let text = manifest().to_text();
        assert_eq!(Manifest::parse(&text).unwrap(), manifest());
        // FIPS 180-2.
        assert!(text.contains("\n0 ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\n"));
        assert_eq!((manifest().chunk_count(), manifest().place(6)), (7, (3 << 20, 512)));
        assert_eq!(manifest().data_bytes(), (512 << 10) + 512);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let good = manifest().to_text();
        for (from, to, what) in [
            ("disk-bytes 3146240", "disk-bytes 7", "line 2"),
            ("disk-bytes 3146240", "disk-bytes 99999999999999999999", "line 2"),
            ("\n6 ", "\n7 ", "line 6"),
            ("\n6 ", "\n06 ", "canonical"),
            ("\n6 e", "\n6 E", "line 6"),
            ("chunk-bytes 524288", "chunk-bytes 1", "line 3"),
            ("mayfly-image 1", "mayfly-image 2", "newer"),
            ("vhd-id ab", "vhd-id ", "line 4"),
        ] {
            let bad = good.replacen(from, to, 1);
            let error = Manifest::parse(&bad).unwrap_err();
            assert!(error.contains(what), "{from} -> {to}: {error}");
        }
        assert!(Manifest::parse("").is_err());
    }
}
