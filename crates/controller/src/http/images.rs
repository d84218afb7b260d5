//! Images: chunks are uploaded, then the manifest commits them; hosts download both.

use std::net::Ipv4Addr;
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use mayfly_api::{ApiError, ErrorCode, ImageView};
use mayfly_fabric::{Command, Input};
use mayfly_model::{ChunkDigest, Digest, Image, ImageName, Manifest, Time};
use serde::Deserialize;

use super::error::{Failure, invalid};
use super::{Shared, events};

/// Most chunks in one question for missing ones.
const QUESTION_MAX: usize = 16_384;

pub(super) async fn list(State(shared): State<Arc<Shared>>) -> Result<Json<Vec<ImageView>>, Failure> {
    let views = shared.driver.read(|core| core.state().images().values().map(|image| view(image)).collect()).await?;
    Ok(Json(views))
}

fn view(image: &Image) -> ImageView {
    ImageView {
        name: image.name.to_string(),
        digest: image.digest.to_string(),
        disk_bytes: image.disk_bytes,
        data_bytes: image.data_bytes,
        vhd_id: image.vhd_id.iter().map(|byte| format!("{byte:02x}")).collect(),
        created: events::rfc3339(image.created),
    }
}

/// Which chunks, of those in the body, one a line, are not here; one a line.
pub(super) async fn missing(State(shared): State<Arc<Shared>>, body: String) -> Result<String, Failure> {
    let chunks: Vec<ChunkDigest> = body.lines().map(str::parse).collect::<Result<_, _>>().map_err(invalid)?;
    if chunks.len() > QUESTION_MAX {
        return Err(invalid(format!("{} chunks are more than the {QUESTION_MAX} of one question", chunks.len())));
    }
    let missing = shared.images.missing(&chunks).await?;
    Ok(missing.iter().map(|chunk| format!("{chunk}\n")).collect())
}

pub(super) async fn put_chunk(
    State(shared): State<Arc<Shared>>,
    Path(digest): Path<String>,
    body: Bytes,
) -> Result<(), Failure> {
    Ok(shared.images.put_chunk(digest.parse().map_err(invalid)?, body).await?)
}

pub(super) async fn chunk(State(shared): State<Arc<Shared>>, Path(digest): Path<String>) -> Result<Bytes, Failure> {
    Ok(shared.images.chunk(digest.parse().map_err(invalid)?).await?)
}

/// Commits an image, given as its manifest, all of whose chunks are here.
pub(super) async fn commit(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    body: String,
) -> Result<Json<ImageView>, Failure> {
    let name = ImageName::new(name)?;
    let parsed = tokio::task::spawn_blocking(move || Manifest::parse(&body)).await.map_err(broken)?;
    let manifest = parsed.map_err(|error| invalid(format!("the manifest is damaged: {error}")))?;
    // A client that goes away must not leave half of it done.
    tokio::spawn(async move { commit_image(&shared, name, &manifest).await }).await.map_err(broken)?
}

async fn commit_image(shared: &Shared, name: ImageName, manifest: &Manifest) -> Result<Json<ImageView>, Failure> {
    let image = Image {
        name,
        digest: manifest.digest(),
        data_bytes: manifest.data_bytes(),
        disk_bytes: manifest.disk_bytes,
        vhd_id: manifest.vhd_id,
        created: now(),
    };
    let _turn = shared.images.turn.lock().await;
    let known = named(shared, &image.name).await?;
    // A push that never heard that it was done asks again.
    if let Some(done) = known.filter(|done| done.digest == image.digest) {
        return Ok(Json(view(&done)));
    }
    shared.images.put_manifest(manifest).await?;
    // A refusal leaves a manifest that no record names; the sweep finds it.
    shared.driver.submit(Input::Command(Command::CommitImage(image.clone()))).await?;
    shared.images.committed(manifest);
    Ok(Json(view(&image)))
}

async fn named(shared: &Shared, name: &ImageName) -> Result<Option<Arc<Image>>, Failure> {
    Ok(shared.driver.read(|core| core.state().images().get(name).cloned()).await?)
}

fn broken(error: tokio::task::JoinError) -> Failure {
    ApiError::new(ErrorCode::Internal, error.to_string()).into()
}

fn now() -> Time {
    Time(u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0))
}

pub(super) async fn delete(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<(), Failure> {
    let name = ImageName::new(name)?;
    tokio::spawn(async move { delete_image(&shared, name, &headers).await }).await.map_err(broken)?
}

async fn delete_image(shared: &Shared, name: ImageName, headers: &HeaderMap) -> Result<(), Failure> {
    let _turn = shared.images.turn.lock().await;
    let before = named(shared, &name).await?;
    shared.command(headers, Command::DeleteImage(name.clone())).await?;
    let Some(image) = before else { return Ok(()) };
    let others = shared.image_digests().await?;
    if !others.contains(&image.digest) {
        shared.images.delete(&image.digest, &others).await;
    }
    Ok(())
}

/// The manifest of an image, by its name: what a child of it is pushed over.
pub(super) async fn manifest_by_name(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
) -> Result<Bytes, Failure> {
    let name = ImageName::new(name)?;
    let image = named(&shared, &name).await?;
    let image = image.ok_or_else(|| ApiError::new(ErrorCode::NotFound, format!("there is no image `{name}`")))?;
    Ok(shared.images.manifest_text(&image.digest).await?)
}

/// The manifest of an image, for a host.
pub(super) async fn manifest(State(shared): State<Arc<Shared>>, Path(digest): Path<String>) -> Result<Bytes, Failure> {
    let digest = committed(&shared, digest).await?;
    Ok(shared.images.manifest_text(&digest).await?)
}

/// A digest that a record names: an upload that was not committed is nobody's image.
async fn committed(shared: &Shared, digest: String) -> Result<Digest, Failure> {
    let digest = Digest::new(digest).map_err(invalid)?;
    if shared.driver.read(|core| core.state().images().values().any(|image| image.digest == digest)).await? {
        return Ok(digest);
    }
    Err(ApiError::new(ErrorCode::NotFound, format!("there is no image {digest}")).into())
}

#[derive(Deserialize)]
pub(super) struct Holder {
    address: Ipv4Addr,
}

/// Takes a host's word that it uses an image; lists the hosts that do.
pub(super) async fn holders(
    State(shared): State<Arc<Shared>>,
    Path(digest): Path<String>,
    Query(holder): Query<Holder>,
) -> Result<Json<Vec<Ipv4Addr>>, Failure> {
    let digest = committed(&shared, digest).await?;
    Ok(Json(shared.holders.announce(digest, holder.address)))
}

pub(super) async fn order(State(shared): State<Arc<Shared>>, Path(digest): Path<String>) -> Result<Bytes, Failure> {
    let digest = committed(&shared, digest).await?;
    Ok(shared.images.order(&digest).await?)
}

pub(super) async fn put_order(
    State(shared): State<Arc<Shared>>,
    Path(digest): Path<String>,
    body: Bytes,
) -> Result<(), Failure> {
    let digest = committed(&shared, digest).await?;
    Ok(shared.images.put_order(&digest, body).await?)
}
