//! Images: upload, list, delete, and download by hosts.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use mayfly_api::{ApiError, ErrorCode, ImageView};
use mayfly_fabric::{Command, Input};
use mayfly_model::{Digest, Image, ImageName, Time};
use tokio_util::io::ReaderStream;

use super::error::{Failure, invalid};
use super::{Shared, events};
use crate::images::drain;

pub(super) async fn list(State(shared): State<Arc<Shared>>) -> Json<Vec<ImageView>> {
    Json(shared.driver.committed().state().images().values().map(view).collect())
}

fn view(image: &Image) -> ImageView {
    ImageView {
        name: image.name.to_string(),
        digest: image.digest.to_string(),
        disk_bytes: image.disk_bytes,
        file_bytes: image.file_bytes,
        created: events::rfc3339(image.created),
    }
}

pub(super) async fn push(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<ImageView>, Failure> {
    let name = match ImageName::new(name) {
        Ok(name) => name,
        Err(error) => {
            drain(&mut body.into_data_stream()).await;
            return Err(error.into());
        }
    };
    // Known before the bytes have travelled; the core has the last word.
    if shared.driver.committed().state().images().contains_key(&name) {
        drain(&mut body.into_data_stream()).await;
        let message = format!("there is an image `{name}` already; images never change, so choose another name");
        return Err(ApiError::new(ErrorCode::AlreadyExists, message).into());
    }
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let received = shared.images.receive(body, length).await?;
    let _turn = shared.images.turn.lock().await;
    shared.images.keep(&received)?;
    let image = Image {
        name,
        digest: received.digest.clone(),
        file_bytes: received.file_bytes,
        disk_bytes: received.disk_bytes,
        created: now(),
    };
    let committed = shared.driver.submit(Input::Command(Command::CommitImage(image.clone()))).await;
    if committed.is_err() {
        forget(&shared, &image.digest);
    }
    committed?;
    Ok(Json(view(&image)))
}

fn now() -> Time {
    Time(u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0))
}

pub(super) async fn delete(State(shared): State<Arc<Shared>>, Path(name): Path<String>) -> Result<(), Failure> {
    let name = ImageName::new(name)?;
    let _turn = shared.images.turn.lock().await;
    let before = shared.driver.committed();
    shared.driver.submit(Input::Command(Command::DeleteImage(name.clone()))).await?;
    if let Some(image) = before.state().images().get(&name) {
        forget(&shared, &image.digest);
    }
    Ok(())
}

/// Deletes the file of an image unless a record names it.
fn forget(shared: &Shared, digest: &Digest) {
    if !shared.driver.committed().state().images().values().any(|other| other.digest == *digest) {
        shared.images.delete(digest);
    }
}

pub(super) async fn fetch(State(shared): State<Arc<Shared>>, Path(digest): Path<String>) -> Result<Response, Failure> {
    let digest = Digest::new(digest).map_err(invalid)?;
    let file = tokio::fs::File::open(shared.images.path(&digest))
        .await
        .map_err(|error| ApiError::new(ErrorCode::NotFound, format!("the image {digest} cannot be read: {error}")))?;
    let length = file.metadata().await.map_or(0, |data| data.len());
    let body = Body::from_stream(ReaderStream::with_capacity(file, 256 << 10));
    Ok(([(header::CONTENT_LENGTH, length)], body).into_response())
}
