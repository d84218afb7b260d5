//! Who may come in: users with the users' token, hosts with the hosts'.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::Response;
use mayfly_api::{ApiError, ErrorCode};

use super::Shared;
use super::error::Failure;

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
    request: Request,
    next: Next,
) -> Result<Response, Failure> {
    check(&request, &shared.config.host_token)?;
    Ok(next.run(request).await)
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
