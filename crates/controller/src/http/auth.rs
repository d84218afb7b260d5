//! Who may come in: users with their token, hosts with the certificate that they got when they joined.

use std::sync::Arc;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::Response;
use mayfly_api::{ApiError, ErrorCode};
use mayfly_model::HostName;

use super::Shared;
use super::error::Failure;
use crate::listener::Peer;

pub(super) async fn users(
    State(shared): State<Arc<Shared>>,
    request: Request,
    next: Next,
) -> Result<Response, Failure> {
    check(&request, &shared.config.user_token)?;
    Ok(next.run(request).await)
}

pub(super) async fn hosts(
    State(shared): State<Arc<Shared>>,
    mut request: Request,
    next: Next,
) -> Result<Response, Failure> {
    let peer = request.extensions().get::<ConnectInfo<Peer>>().map(|ConnectInfo(peer)| peer.clone());
    let Some(enrolled) = peer.and_then(|peer| peer.enrolled) else {
        return Err(denied("a host that has not joined; it needs a join token (`mayfly token create`)"));
    };
    // Asked each time, so that a host that is forgotten is out at once, whatever its certificate says.
    let number = shared.driver.peek(|core| {
        let host = HostName::new(enrolled.host.as_str()).ok()?;
        core.state().enrolments().get(&host).map(|enrolment| enrolment.number)
    });
    if number != Some(enrolled.enrolment) {
        let host = &enrolled.host;
        return Err(denied(&format!("{host} was forgotten, or has joined again; it needs a new join token")));
    }
    request.extensions_mut().insert(InTime(shared.identity.clock.now() <= enrolled.validity.until));
    request.extensions_mut().insert(enrolled);
    Ok(next.run(request).await)
}

/// Whether the certificate has not ended yet.
#[derive(Clone, Copy)]
struct InTime(bool);

/// A certificate that has ended is good for one thing only: to get a new one.
pub(super) async fn in_time(request: Request, next: Next) -> Result<Response, Failure> {
    if request.extensions().get::<InTime>().is_some_and(|InTime(is_in_time)| *is_in_time) {
        return Ok(next.run(request).await);
    }
    Err(ApiError::new(ErrorCode::CertificateEnded, "the host's certificate has ended; it has to renew it first").into())
}

fn denied(message: &str) -> Failure {
    ApiError::new(ErrorCode::Unauthorized, message).into()
}

/// A sign of life, for everybody.
pub(super) async fn nothing() {}

fn check(request: &Request, token: &str) -> Result<(), Failure> {
    let given = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    if same(given.as_bytes(), token.as_bytes()) {
        return Ok(());
    }
    let message = "the token is missing or wrong: send `Authorization: Bearer TOKEN`";
    Err(ApiError::new(ErrorCode::Unauthorized, message).into())
}

/// Compares in a time that does not depend on where the two differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
}
