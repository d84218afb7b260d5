//! Pushing an image: read the disk, ask which chunks are missing, send those, commit.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use futures_util::{StreamExt, TryStreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use mayfly_api::{Client, ImageView};
use mayfly_model::{CHUNK_BYTES, ChunkDigest, ImageName, Manifest};
use mayfly_vhd::{Access, Holder, Vhd, VhdError, differencing_header, open_chain};

use super::remote::RemoteParent;

/// Uploads at a time.
const PARALLEL: usize = 4;
/// Chunks in one question.
const QUESTION: usize = 4096;

/// What a push has done.
pub struct Pushed {
    pub image: ImageView,
    /// Bytes that had to be sent.
    pub sent: u64,
}

/// Pushes the VHD `file` as `name`.
pub async fn push(client: &Client, file: &Path, name: &ImageName) -> anyhow::Result<Pushed> {
    if client.image_list().await?.iter().any(|image| image.name == name.as_str()) {
        bail!("there is an image `{name}` already; images never change, so choose another name");
    }
    let (disk, parent) = open(client, file).await?;
    let (scanned, below) = (Arc::clone(&disk), parent.clone());
    let manifest = tokio::task::spawn_blocking(move || scan(&scanned, below.as_ref())).await??;
    // A push that finds chunks gone at its end, after an image was deleted meanwhile, has to send them.
    let mut sent = 0;
    for attempt in 1.. {
        sent += send(client, &disk, &manifest).await?;
        match client.image_commit(name, &manifest).await {
            Ok(image) => return Ok(Pushed { image, sent }),
            Err(mayfly_api::ClientError::Refused(error))
                if attempt == 1 && error.message.contains("have not been uploaded") => {}
            Err(error) => return Err(error.into()),
        }
    }
    bail!("the image's chunks do not stay with the controller")
}

/// Opens the disk; its parent, when that is not here, by the image that was pushed from it.
async fn open(client: &Client, file: &Path) -> anyhow::Result<(Arc<Vhd>, Option<Manifest>)> {
    let path = file.to_owned();
    let missing = match tokio::task::spawn_blocking(move || open_chain(&path, Access::ReadOnly)).await? {
        Ok(disk) => return Ok((disk, None)),
        Err(VhdError::NotVhd { path, why }) => {
            bail!("{}: not a VHD: {why} (make one: mayfly vhd convert {} OUT.vhd)", path.display(), path.display())
        }
        Err(error @ VhdError::NoParent { .. }) => error,
        Err(error) => return Err(error.into()),
    };
    let Some(header) = differencing_header(file)? else { return Err(missing.into()) };
    let id: String = header.parent_id.iter().map(|byte| format!("{byte:02x}")).collect();
    let images = client.image_list().await?;
    let mut parents = std::collections::BTreeMap::new();
    for image in images.into_iter().filter(|image| image.vhd_id == id) {
        let manifest = client.image_manifest(&image.name).await?;
        if manifest.vhd_timestamp == header.parent_timestamp {
            parents.insert(image.digest, (image.name, manifest));
        }
    }
    if parents.len() > 1 {
        let names: Vec<&str> = parents.values().map(|(name, _)| name.as_str()).collect();
        bail!("{missing}, and the images {} differ though they say they are it", names.join(", "));
    }
    let Some((_, (name, manifest))) = parents.pop_first() else {
        return Err(missing).context("and no image here was pushed from that parent; push the parent first");
    };
    let parent = RemoteParent::disk(client.clone(), &name, manifest.clone())?;
    let path = file.to_owned();
    let disk = tokio::task::spawn_blocking(move || Vhd::open(&path, Access::ReadOnly, Some(parent))).await??;
    Ok((Arc::new(disk), Some(manifest)))
}

/// Reads the whole disk, but for what is known: zeros, and what a child shares with a parent that is an image.
fn scan(disk: &Vhd, parent: Option<&Manifest>) -> anyhow::Result<Manifest> {
    let bar = bar("reading {wide_bar} {bytes} of {total_bytes}", disk.disk_bytes());
    let mut manifest = Manifest {
        disk_bytes: disk.disk_bytes(),
        chunk_bytes: CHUNK_BYTES,
        vhd_id: disk.unique_id(),
        vhd_timestamp: disk.timestamp(),
        chunks: Vec::new(),
    };
    let mut buffer = vec![0; CHUNK_BYTES as usize];
    for index in 0..manifest.chunk_count() {
        let (at, bytes) = manifest.place(index);
        bar.set_position(at);
        if !has_data(disk, at, bytes) {
            continue;
        }
        let shared = parent.filter(|parent| !disk.holds_any(at, bytes) && parent.place(index).1 == bytes);
        if let Some(parent) = shared {
            manifest.chunks.extend(parent.chunk(index).map(|digest| (index, digest)));
            continue;
        }
        let chunk = &mut buffer[..bytes as usize];
        disk.read_at(chunk, at)?;
        if chunk.iter().any(|byte| *byte != 0) {
            manifest.chunks.push((index, ChunkDigest::of(chunk)));
        }
    }
    bar.finish_and_clear();
    Ok(manifest)
}

/// Whether a range has anything that may not be zero.
fn has_data(disk: &Vhd, mut at: u64, bytes: u64) -> bool {
    let end = at + bytes;
    while at < end {
        match disk.extent(at, end - at) {
            (Holder::Nobody, bytes) => at += bytes,
            _ => return true,
        }
    }
    false
}

/// Sends the chunks that the controller does not have; returns their bytes.
async fn send(client: &Client, disk: &Arc<Vhd>, manifest: &Manifest) -> anyhow::Result<u64> {
    let places: HashMap<ChunkDigest, u32> = manifest.chunks.iter().map(|(index, digest)| (*digest, *index)).collect();
    let digests: Vec<ChunkDigest> = places.keys().copied().collect();
    let mut missing = HashSet::new();
    for question in digests.chunks(QUESTION) {
        missing.extend(client.chunks_missing(question).await?);
    }
    let mut queue: Vec<(u32, ChunkDigest)> =
        missing.iter().filter_map(|digest| Some((*places.get(digest)?, *digest))).collect();
    queue.sort_unstable();
    let total = queue.iter().map(|(index, _)| manifest.place(*index).1).sum();
    let bar = bar("sending {wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left", total);
    let upload = |(index, digest): (u32, ChunkDigest)| {
        let (disk, bar, (at, bytes)) = (Arc::clone(disk), bar.clone(), manifest.place(index));
        async move {
            let read = tokio::task::spawn_blocking(move || {
                let mut chunk = vec![0; bytes as usize];
                disk.read_at(&mut chunk, at).map(|()| chunk)
            });
            client.chunk_put(digest, read.await??).await?;
            bar.inc(bytes);
            anyhow::Ok(())
        }
    };
    stream::iter(queue).map(upload).buffer_unordered(PARALLEL).try_for_each(|()| async { Ok(()) }).await?;
    bar.finish_and_clear();
    Ok(total)
}

fn bar(template: &str, bytes: u64) -> ProgressBar {
    use std::io::IsTerminal;
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(bytes) } else { ProgressBar::hidden() };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}
