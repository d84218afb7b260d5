//! The wire server: 168.63.129.16, port 80.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Query, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Deserialize;

use crate::documents;
use crate::guest::{Guest, Guests, HealthReport};

/// Tells a guest, with the answer to its health report, the number of the newest goal state.
const LATEST_INCARNATION: HeaderName = HeaderName::from_static("x-ms-latest-goal-state-incarnation-number");

#[derive(Deserialize)]
struct Component {
    comp: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
}

/// The wire server's routes. It has to be served with connection information.
pub fn wire_server_router(guests: Arc<dyn Guests>) -> Router {
    let machine = get(machine).post(post_machine);
    Router::new()
        .route("/", get(root))
        .route("/machine", machine.clone())
        .route("/machine/", machine)
        .route("/machine/{container}/{instance}", get(config))
        .route("/HealthService", post(StatusCode::OK))
        .layer(DefaultBodyLimit::max(crate::BODY_BYTES_MAX))
        .with_state(guests)
}

pub(crate) fn who(guests: &Arc<dyn Guests>, from: SocketAddr) -> Result<Guest, StatusCode> {
    let IpAddr::V4(address) = from.ip() else { return Err(StatusCode::FORBIDDEN) };
    guests.guest(address).ok_or(StatusCode::FORBIDDEN)
}

fn xml(body: String) -> Response {
    ([(header::CONTENT_TYPE, "text/xml; charset=utf-8")], body).into_response()
}

async fn root(Query(query): Query<Component>) -> Result<Response, StatusCode> {
    match query.comp.as_deref() {
        Some("versions") => Ok(xml(documents::versions())),
        _ => Err(StatusCode::NOT_FOUND),
    }
}

async fn machine(
    State(guests): State<Arc<dyn Guests>>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    Query(query): Query<Component>,
) -> Result<Response, StatusCode> {
    let guest = who(&guests, from)?;
    match query.comp.as_deref() {
        Some("goalstate") => Ok(xml(documents::goal_state(&guest))),
        _ => Err(StatusCode::NOT_FOUND),
    }
}

async fn config(
    State(guests): State<Arc<dyn Guests>>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    axum::extract::Path((container, instance)): axum::extract::Path<(String, String)>,
    Query(query): Query<Component>,
) -> Result<Response, StatusCode> {
    let guest = who(&guests, from)?;
    // The path is decoded already. Another's name is not told apart from one that nobody has.
    if container != guest.container_id() || instance != guest.instance_id() {
        return Err(StatusCode::NOT_FOUND);
    }
    match (query.comp.as_deref(), query.kind.as_deref()) {
        (Some("config"), Some("hostingEnvironmentConfig")) => Ok(xml(documents::hosting_environment(&guest))),
        (Some("config"), Some("sharedConfig")) => Ok(xml(documents::shared_config(&guest))),
        (Some("config"), Some("extensionsConfig")) => Ok(xml(documents::extensions_config(&guest))),
        _ => Err(StatusCode::NOT_FOUND),
    }
}

async fn post_machine(
    State(guests): State<Arc<dyn Guests>>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    Query(query): Query<Component>,
    body: String,
) -> Result<Response, StatusCode> {
    let guest = who(&guests, from)?;
    match query.comp.as_deref() {
        Some("health") => {
            let report = parse_health(&body).ok_or(StatusCode::BAD_REQUEST)?;
            guests.report(guest.goal.dip, report);
            Ok(([(LATEST_INCARNATION, guest.incarnation.to_string())], "").into_response())
        }
        Some("roleProperties") => Ok(StatusCode::ACCEPTED.into_response()),
        Some("telemetrydata") => Ok(StatusCode::OK.into_response()),
        _ => Err(StatusCode::NOT_FOUND),
    }
}

/// Reads `<Health>…<State>`; the details are for people.
pub(crate) fn parse_health(body: &str) -> Option<HealthReport> {
    let document = roxmltree::Document::parse(body.trim_start_matches('\u{feff}')).ok()?;
    let text = |name: &str| {
        let node = document.descendants().find(|node| node.tag_name().name() == name);
        node.and_then(|node| node.text()).map(|text| text.trim().chars().take(200).collect::<String>())
    };
    let state = text("State")?;
    let words = [text("SubStatus"), text("Description")];
    let detail: Vec<String> = words.into_iter().flatten().filter(|word| !word.is_empty()).collect();
    match state.as_str() {
        "Ready" => Some(HealthReport { ready: true, detail: String::new() }),
        "NotReady" => Some(HealthReport { ready: false, detail: detail.join(": ") }),
        _ => None,
    }
}
