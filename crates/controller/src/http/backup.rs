//! The backup of a fabric that runs.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use mayfly_api::{ApiError, ErrorCode};
use mayfly_fabric::Record;

use super::Shared;
use super::error::Failure;

/// All records, as of one moment.
pub(super) async fn take(State(shared): State<Arc<Shared>>) -> Result<impl IntoResponse, Failure> {
    let records: Vec<Record> = shared.driver.read(|core| core.state().records().collect()).await?;
    let now = shared.driver.now();
    let written = tokio::task::spawn_blocking(move || {
        let mut text = Vec::new();
        crate::backup::write(records.into_iter(), now, &mut text).map(|()| text)
    });
    let text = written.await.map_err(anyhow::Error::from).and_then(|text| text);
    let text = text.map_err(|error| ApiError::new(ErrorCode::Internal, format!("{error:#}")))?;
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], text))
}
