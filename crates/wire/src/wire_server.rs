//! The wire server: 168.63.129.16, port 80, and the host's plug-in on port 32526.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{ConnectInfo, DefaultBodyLimit, Path, Query, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mayfly_secrets::envelope::{self, Cipher};
use serde::Deserialize;

use crate::documents;
use crate::guest::{Guest, Guests, HealthReport, Word};

/// Tells a guest, with the answer to its health report, the number of the newest goal state.
const LATEST_INCARNATION: HeaderName = HeaderName::from_static("x-ms-latest-goal-state-incarnation-number");
/// The certificate (X.509, DER, base64) to which an agent wants to have its certificates sealed.
const TRANSPORT_CERTIFICATE: &str = "x-ms-guest-agent-public-x509-cert";
/// The cipher by which it wants that.
const CIPHER: &str = "x-ms-cipher-name";
/// Most bytes of an upload that are read, and thrown away: agents send logs of some megabytes.
const UPLOAD_BYTES_MAX: usize = 8 << 20;

#[derive(Deserialize)]
struct Component {
    comp: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    incarnation: Option<u64>,
}

type Asked = (State<Arc<dyn Guests>>, ConnectInfo<SocketAddr>);

/// The wire server's routes. It has to be served with connection information.
pub fn wire_server_router(guests: Arc<dyn Guests>) -> Router {
    let machine = get(machine).post(post_machine);
    Router::new()
        .route("/", get(root))
        .route("/machine", machine.clone())
        .route("/machine/", machine)
        .route("/machine/{container}/{instance}", get(config))
        .route("/HealthService", post(accept))
        .route("/status/{container}", put(take_status))
        .layer(DefaultBodyLimit::max(crate::BODY_BYTES_MAX))
        .with_state(guests)
}

/// The routes of the host's plug-in, by which newer agents upload their status. It offers nothing that would need
/// extensions, and says so in the way that agents understand.
pub fn plugin_router(guests: Arc<dyn Guests>) -> Router {
    Router::new()
        .route("/versions", get(plugin_versions))
        .route("/health", get(accept))
        .route("/status", put(take_status))
        .route("/vmAgentLog", put(take_upload))
        .with_state(guests)
}

pub(crate) fn who(guests: &Arc<dyn Guests>, from: SocketAddr) -> Result<Guest, StatusCode> {
    let IpAddr::V4(address) = from.ip() else { return Err(StatusCode::FORBIDDEN) };
    guests.guest(address).ok_or(StatusCode::FORBIDDEN)
}

fn xml(body: String) -> Response {
    ([(header::CONTENT_TYPE, "text/xml; charset=utf-8")], body).into_response()
}

async fn root(
    (State(guests), ConnectInfo(from)): Asked,
    Query(query): Query<Component>,
) -> Result<Response, StatusCode> {
    who(&guests, from)?;
    match query.comp.as_deref() {
        Some("versions") => Ok(xml(documents::versions())),
        _ => Err(StatusCode::NOT_FOUND),
    }
}

async fn machine(
    (State(guests), ConnectInfo(from)): Asked,
    Query(query): Query<Component>,
) -> Result<Response, StatusCode> {
    let guest = who(&guests, from)?;
    match query.comp.as_deref() {
        Some("goalstate") => {
            guests.hear(guest.goal.dip, Word::Alive);
            Ok(xml(documents::goal_state(&guest)))
        }
        _ => Err(StatusCode::NOT_FOUND),
    }
}

async fn config(
    (State(guests), ConnectInfo(from)): Asked,
    Path((container, instance)): Path<(String, String)>,
    Query(query): Query<Component>,
    headers: HeaderMap,
) -> Result<Response, StatusCode> {
    let guest = who(&guests, from)?;
    // The path is decoded already. Another's name is not told apart from one that nobody has.
    if container != guest.container_id() || instance != guest.instance_id() {
        return Err(StatusCode::NOT_FOUND);
    }
    // Agents read the goal state again when a document of an old one is gone.
    if query.incarnation.is_some_and(|asked| asked != guest.incarnation) {
        return Err(StatusCode::GONE);
    }
    match query.comp.as_deref() {
        Some("config") => {}
        Some("certificates") if guest.goal.guest.own_certificates().next().is_some() => {
            return certificates(guests.as_ref(), &guest, &headers).await;
        }
        _ => return Err(StatusCode::NOT_FOUND),
    }
    match query.kind.as_deref() {
        Some("hostingEnvironmentConfig") => Ok(xml(documents::hosting_environment(&guest))),
        Some("sharedConfig") => Ok(xml(documents::shared_config(&guest))),
        Some("extensionsConfig") => Ok(xml(documents::extensions_config(&guest))),
        Some("fullConfig") => Ok(xml(documents::full_config(&guest))),
        _ => Err(StatusCode::NOT_FOUND),
    }
}

/// A guest's certificates, in an envelope for the transport certificate that its agent has made for this: whoever else reads
/// this answer can do nothing with it.
async fn certificates(guests: &dyn Guests, guest: &Guest, headers: &HeaderMap) -> Result<Response, StatusCode> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let transport = text(TRANSPORT_CERTIFICATE).ok_or(StatusCode::BAD_REQUEST)?;
    let transport = STANDARD.decode(transport.trim()).map_err(|_| StatusCode::BAD_REQUEST)?;
    let cipher = Cipher::named(text(CIPHER).unwrap_or_default()).ok_or(StatusCode::BAD_REQUEST)?;
    // Agents ask again.
    let archive = guests.certificates(guest).await.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    let sealed = envelope::seal(&transport, cipher, &archive).map_err(|_| StatusCode::BAD_REQUEST)?;
    Ok(xml(documents::certificates(guest, &STANDARD.encode(sealed))))
}

async fn post_machine(
    (State(guests), ConnectInfo(from)): Asked,
    Query(query): Query<Component>,
    headers: HeaderMap,
    body: String,
) -> Result<Response, StatusCode> {
    let guest = who(&guests, from)?;
    match query.comp.as_deref() {
        Some("health") => {
            let (report, instance) = parse_health(&body).ok_or(StatusCode::BAD_REQUEST)?;
            // A guest that was restored from another's memory would report for that one.
            if instance.is_some_and(|instance| instance != guest.instance_id()) {
                return Err(StatusCode::GONE);
            }
            let agent = headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
            let early = report.ready && agent.starts_with("Cloud-Init");
            if !guests.hear(guest.goal.dip, if early { Word::CloudInit } else { Word::Health(report) }) {
                return Err(StatusCode::SERVICE_UNAVAILABLE);
            }
            Ok(([(LATEST_INCARNATION, guest.incarnation.to_string())], "").into_response())
        }
        Some("roleProperties") => Ok(StatusCode::ACCEPTED.into_response()),
        Some("telemetrydata") => Ok(StatusCode::OK.into_response()),
        _ => Err(StatusCode::NOT_FOUND),
    }
}

async fn accept((State(guests), ConnectInfo(from)): Asked) -> Result<StatusCode, StatusCode> {
    who(&guests, from).map(|_| StatusCode::OK)
}

async fn plugin_versions((State(guests), ConnectInfo(from)): Asked) -> Result<Response, StatusCode> {
    who(&guests, from)?;
    Ok(xml("<?xml version=\"1.0\" encoding=\"utf-8\"?><Versions><Version>2015-09-01</Version></Versions>".to_owned()))
}

/// A status says that the agent is there; what else it says is not needed.
async fn take_status((State(guests), ConnectInfo(from)): Asked, body: Body) -> Result<StatusCode, StatusCode> {
    let guest = who(&guests, from)?;
    swallow(body).await?;
    guests.hear(guest.goal.dip, Word::Status);
    Ok(StatusCode::CREATED)
}

async fn take_upload((State(guests), ConnectInfo(from)): Asked, body: Body) -> Result<StatusCode, StatusCode> {
    who(&guests, from)?;
    swallow(body).await
}

/// Reads an upload to its end, and keeps nothing of it.
async fn swallow(body: Body) -> Result<StatusCode, StatusCode> {
    let mut body = std::pin::pin!(body);
    let mut read = 0;
    while let Some(frame) = std::future::poll_fn(|context| body.as_mut().poll_frame(context)).await {
        let frame = frame.map_err(|_| StatusCode::BAD_REQUEST)?;
        read += frame.data_ref().map_or(0, |data| data.len());
        if read > UPLOAD_BYTES_MAX {
            return Err(StatusCode::PAYLOAD_TOO_LARGE);
        }
    }
    Ok(StatusCode::OK)
}

/// Reads `<Health>…<State>` and the instance that it is about; the details are for people.
pub(crate) fn parse_health(body: &str) -> Option<(HealthReport, Option<String>)> {
    let document = roxmltree::Document::parse(body.trim_start_matches('\u{feff}')).ok()?;
    let text = |name: &str| {
        let node = document.descendants().find(|node| node.tag_name().name() == name);
        node.and_then(|node| node.text()).map(|text| text.trim().chars().take(200).collect::<String>())
    };
    let state = text("State")?;
    let words = [text("SubStatus"), text("Description")];
    let detail: Vec<String> = words.into_iter().flatten().filter(|word| !word.is_empty()).collect();
    let report = match state.as_str() {
        "Ready" => HealthReport { ready: true, detail: String::new() },
        "NotReady" => HealthReport { ready: false, detail: detail.join(": ") },
        _ => return None,
    };
    Some((report, text("InstanceId")))
}
