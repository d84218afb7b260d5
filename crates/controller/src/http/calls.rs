//! What only a VM's host has: its console, what became of its script, its screen, its disk.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::header::{CONNECTION, CONTENT_TYPE, UPGRADE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use hyper_util::rt::TokioIo;
use mayfly_api::{ApiError, CALL_PROTOCOL, CallKind, ErrorCode};
use mayfly_identity::Enrolled;
use mayfly_model::InstanceKey;
use serde::Deserialize;
use tokio_util::io::ReaderStream;

use super::Shared;
use super::error::{Failure, invalid};
use crate::calls::Answered;

type Named = Path<(String, String, String)>;

/// Calls the host of an instance's VM.
async fn call(
    shared: &Shared,
    (service, slot, name): (String, String, String),
    what: CallKind,
) -> Result<Answered, Failure> {
    let key: InstanceKey = format!("{service}@{slot}/{name}").parse()?;
    let place = shared.driver.read(|core| {
        let instance = core.state().instances().get(&key)?;
        Some(instance.vm().map(|vm| (vm.host.clone(), vm.id)).ok_or_else(|| instance.state.status()))
    });
    let missing = || ApiError::new(ErrorCode::NotFound, format!("there is no instance `{key}`"));
    let (host, vm) = place.await?.ok_or_else(missing)?.map_err(|status| {
        ApiError::new(ErrorCode::Conflict, format!("{key} has no VM at the moment: it is in state {status}"))
    })?;
    Ok(shared.calls.call(&host, vm, what).await?)
}

fn stream(kind: &'static str, answered: Answered) -> Response {
    ([(CONTENT_TYPE, kind)], Body::from_stream(ReaderStream::new(answered))).into_response()
}

#[derive(Deserialize)]
pub(super) struct Which {
    #[serde(default)]
    boots_ago: u8,
    #[serde(default)]
    follow: bool,
}

pub(super) async fn console_log(
    State(shared): State<Arc<Shared>>,
    Path(named): Named,
    Query(Which { boots_ago, follow }): Query<Which>,
) -> Result<Response, Failure> {
    let answered = call(&shared, named, CallKind::ConsoleLog { boots_ago, follow }).await?;
    Ok(stream("application/octet-stream", answered))
}

pub(super) async fn script(State(shared): State<Arc<Shared>>, Path(named): Named) -> Result<Response, Failure> {
    Ok(stream("application/json", call(&shared, named, CallKind::Script).await?))
}

pub(super) async fn screenshot(State(shared): State<Arc<Shared>>, Path(named): Named) -> Result<Response, Failure> {
    Ok(stream("image/png", call(&shared, named, CallKind::Screenshot).await?))
}

pub(super) async fn disk(State(shared): State<Arc<Shared>>, Path(named): Named) -> Result<Response, Failure> {
    Ok(stream("application/octet-stream", call(&shared, named, CallKind::Disk).await?))
}

/// Joins a user and a guest's console.
pub(super) async fn console(
    State(shared): State<Arc<Shared>>,
    Path(named): Named,
    mut request: Request,
) -> Result<Response, Failure> {
    check_upgrade(request.headers())?;
    let mut answered = call(&shared, named, CallKind::Console).await?;
    tokio::spawn(async move {
        if let Ok(upgraded) = hyper::upgrade::on(&mut request).await {
            // Either side may go at any time.
            let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(upgraded), &mut answered).await;
        }
    });
    Ok(switching())
}

/// A host answers a call.
pub(super) async fn answer(
    State(shared): State<Arc<Shared>>,
    Extension(enrolled): Extension<Enrolled>,
    Path(id): Path<String>,
    mut request: Request,
) -> Result<Response, Failure> {
    check_upgrade(request.headers())?;
    let Some(answer) = shared.calls.answer(&id, &enrolled.host) else {
        return Err(ApiError::new(ErrorCode::NotFound, "nobody waits for this call any more").into());
    };
    tokio::spawn(async move {
        if let Ok(upgraded) = hyper::upgrade::on(&mut request).await {
            // Whoever called may have gone.
            let _ = answer.send(upgraded);
        }
    });
    Ok(switching())
}

fn check_upgrade(headers: &HeaderMap) -> Result<(), Failure> {
    let asked = headers.get(UPGRADE).and_then(|value| value.to_str().ok());
    match asked == Some(CALL_PROTOCOL) {
        true => Ok(()),
        false => Err(invalid(format!("this needs `Connection: upgrade` and `Upgrade: {CALL_PROTOCOL}`"))),
    }
}

fn switching() -> Response {
    (StatusCode::SWITCHING_PROTOCOLS, [(CONNECTION, "upgrade"), (UPGRADE, CALL_PROTOCOL)]).into_response()
}
