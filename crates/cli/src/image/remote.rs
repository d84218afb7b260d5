//! The parent of a disk that is being pushed, where it is not a file here but an image there.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use mayfly_api::Client;
use mayfly_model::Manifest;
use mayfly_vhd::{Access, CreateOptions, Epoch, Storage, Vhd, VhdError, fixed_footer};

/// An image, read over the network, as a fixed VHD.
#[derive(Debug)]
pub struct RemoteParent {
    client: Client,
    runtime: tokio::runtime::Handle,
    manifest: Manifest,
    footer: [u8; 512],
    /// The chunk that was read last.
    last: Mutex<Option<(u32, Arc<Vec<u8>>)>>,
}

impl RemoteParent {
    /// The image as a disk. It may be read outside of the runtime's own threads only.
    pub fn disk(client: Client, name: &str, manifest: Manifest) -> Result<Arc<Vhd>, VhdError> {
        let options = CreateOptions { unique_id: manifest.vhd_id, timestamp: manifest.vhd_timestamp, durable: false };
        let footer = fixed_footer(manifest.disk_bytes, &options).encode();
        let runtime = tokio::runtime::Handle::current();
        let storage = Box::new(RemoteParent { client, runtime, manifest, footer, last: Mutex::default() });
        let disk = Vhd::open_storage(Path::new(name), storage, Access::ReadOnly, None, Epoch::UNKNOWN)?;
        Ok(Arc::new(disk))
    }

    fn chunk(&self, index: u32) -> io::Result<Option<Arc<Vec<u8>>>> {
        let Some(digest) = self.manifest.chunk(index) else { return Ok(None) };
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, bytes)) = last.as_ref().filter(|(known, _)| *known == index) {
            return Ok(Some(Arc::clone(bytes)));
        }
        let bytes = Arc::new(self.runtime.block_on(self.client.chunk_get(digest)).map_err(io::Error::other)?);
        *last = Some((index, Arc::clone(&bytes)));
        Ok(Some(bytes))
    }
}

impl Storage for RemoteParent {
    fn read_exact_at(&self, mut buffer: &mut [u8], mut at: u64) -> io::Result<()> {
        while !buffer.is_empty() {
            let count = if let Some(within) = at.checked_sub(self.manifest.disk_bytes) {
                let footer = self.footer.get(within as usize..).ok_or(io::ErrorKind::UnexpectedEof)?;
                let footer = footer.get(..buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
                buffer.copy_from_slice(footer);
                return Ok(());
            } else {
                let index = (at / u64::from(self.manifest.chunk_bytes)) as u32;
                let (start, bytes) = self.manifest.place(index);
                let within = (at - start) as usize;
                let count = buffer.len().min(bytes as usize - within);
                match self.chunk(index)? {
                    Some(chunk) => buffer[..count].copy_from_slice(&chunk[within..within + count]),
                    None => buffer[..count].fill(0),
                }
                count
            };
            (buffer, at) = (&mut buffer[count..], at + count as u64);
        }
        Ok(())
    }

    fn write_all_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.manifest.disk_bytes + self.footer.len() as u64)
    }

    fn clear(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn resize(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
}
