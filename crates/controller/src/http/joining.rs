//! How hosts come in: tokens, certificates, and their renewal.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::{Extension, Json};
use mayfly_api::{ApiError, CertificateAnswer, ErrorCode, JoinRequest, RenewRequest, TokenRequest, TokenView};
use mayfly_fabric::{Command, Input};
use mayfly_identity::{Authority, Enrolled, IdentityError, JoinToken};
use mayfly_model::{HostName, HostToken};

use super::Shared;
use super::error::{Failure, invalid};
use super::events::rfc3339;

/// Most minutes that a token may be good for: a week.
const MINUTES_MAX: u64 = 7 * 24 * 60;

pub(super) async fn make(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    Json(request): Json<TokenRequest>,
) -> Result<Json<TokenView>, Failure> {
    if request.minutes == 0 || request.minutes > MINUTES_MAX {
        return Err(invalid(format!("a join token is good for 1 to {MINUTES_MAX} minutes (a week)")));
    }
    let token = JoinToken::generate(shared.identity.authority.digest());
    let (id, host) = (token.id(), request.host);
    let expires = shared.driver.now().plus(request.minutes * 60_000);
    shared.command(&headers, Command::MakeToken { id: id.clone(), host, expires }).await?;
    let made = shared.driver.read(|core| core.state().tokens().get(&id).map(|token| view(token))).await?;
    // The same request came before, and the secret that it made is lost with the answer.
    let lost = || ApiError::new(ErrorCode::Conflict, "the answer was lost, and the token with it; ask for another");
    Ok(Json(TokenView { token: Some(token.to_string()), ..made.ok_or_else(lost)? }))
}

pub(super) async fn list(State(shared): State<Arc<Shared>>) -> Result<Json<Vec<TokenView>>, Failure> {
    let now = shared.driver.now();
    let views = shared.driver.read(|core| {
        let tokens = core.state().tokens().values();
        tokens.filter(|token| token.expires > now).map(|token| view(token)).collect()
    });
    Ok(Json(views.await?))
}

fn view(token: &HostToken) -> TokenView {
    TokenView {
        id: token.id.clone(),
        host: token.host.clone(),
        expires: rfc3339(token.expires),
        used_by: token.used.as_ref().map(|(host, _)| host.clone()),
        token: None,
    }
}

pub(super) async fn delete(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<(), Failure> {
    shared.command(&headers, Command::DeleteToken(id)).await
}

/// A host comes in. Its certificate is made only once it is durable that the token was used.
pub(super) async fn join(
    State(shared): State<Arc<Shared>>,
    Json(request): Json<JoinRequest>,
) -> Result<Json<CertificateAnswer>, Failure> {
    let token: JoinToken = request.token.parse()?;
    let key = Authority::key_of(&request.request)?;
    let command = Command::Enrol { token: token.id(), host: request.host.clone(), key };
    shared.driver.submit(Input::Command(command)).await?;
    let number = shared.driver.read(|core| core.state().enrolments().get(&request.host).map(|one| one.number)).await?;
    let number = number.ok_or_else(|| ApiError::new(ErrorCode::Conflict, "the host was forgotten at this moment"))?;
    answer(&shared, &request.host, &request.request, number)
}

/// A host that has joined gets a certificate for a new key.
pub(super) async fn renew(
    State(shared): State<Arc<Shared>>,
    Extension(enrolled): Extension<Enrolled>,
    Json(request): Json<RenewRequest>,
) -> Result<Json<CertificateAnswer>, Failure> {
    let now = shared.identity.clock.now();
    if now > enrolled.validity.until {
        let days = (now - enrolled.validity.until) / 86_400;
        tracing::warn!(host = enrolled.host, days, "a host renews a certificate that has ended; is a clock wrong?");
    }
    answer(&shared, &HostName::new(enrolled.host)?, &request.request, enrolled.enrolment)
}

fn answer(shared: &Shared, host: &HostName, request: &str, number: u64) -> Result<Json<CertificateAnswer>, Failure> {
    let identity = &shared.identity;
    let certificate =
        identity.authority.sign_host(request, host.as_str(), number, identity.clock.now(), identity.host_life)?;
    Ok(Json(CertificateAnswer { certificate, authority: identity.authority.pem.clone() }))
}

impl From<IdentityError> for Failure {
    fn from(error: IdentityError) -> Failure {
        invalid(error.to_string())
    }
}
