//! Instance metadata, scheduled events and the NoCloud seed: 169.254.169.254, port 80.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, DefaultBodyLimit, Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::guest::{Guest, Guests, Planned, Word};
use crate::wire_server::who;
use crate::{script, seed};

type Asked = (State<Arc<dyn Guests>>, ConnectInfo<SocketAddr>);

/// Versions of the instance document that public agents ask for, newest first. The document is the same in all of them:
/// it has what they look for.
const API_VERSIONS: [&str; 9] = [
    "2023-07-01",
    "2021-12-13",
    "2021-08-01",
    "2021-02-01",
    "2020-09-01",
    "2019-06-01",
    "2018-10-01",
    "2018-02-01",
    "2017-08-01",
];

/// The metadata server's routes. It has to be served with connection information.
pub fn metadata_router(guests: Arc<dyn Guests>) -> Router {
    Router::new()
        .route("/nocloud/meta-data", get(meta_data))
        .route("/nocloud/user-data", get(user_data))
        .route("/nocloud/vendor-data", get(vendor_data))
        .route("/nocloud/network-config", get(network_config))
        .route("/metadata/versions", get(versions))
        .route("/metadata/instance", get(instance))
        .route("/metadata/instance/{*path}", get(part))
        .route("/metadata/attested/{*path}", get(attested))
        .route("/metadata/scheduledevents", get(events).post(acknowledge))
        .route("/mayfly/v1/script", get(script::show))
        .route("/mayfly/v1/script/report", post(script::report))
        .layer(DefaultBodyLimit::max(crate::BODY_BYTES_MAX))
        .with_state(guests)
}

fn text(body: String) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response()
}

async fn meta_data((State(guests), ConnectInfo(from)): Asked) -> Result<Response, StatusCode> {
    let guest = who(&guests, from)?;
    let (id, name) = (guest.system_uuid(), &guest.goal.computer_name);
    Ok(text(format!("instance-id: {id}\nlocal-hostname: {name}\n")))
}

async fn user_data((State(guests), ConnectInfo(from)): Asked) -> Result<Response, StatusCode> {
    Ok(text(who(&guests, from)?.goal.user_data))
}

async fn vendor_data((State(guests), ConnectInfo(from)): Asked) -> Result<Response, StatusCode> {
    let guest = who(&guests, from)?;
    match guest.complete {
        true => Ok(text(seed::vendor_data(&guest.goal.guest))),
        // cloud-init asks again, for some seconds.
        false => Err(StatusCode::SERVICE_UNAVAILABLE),
    }
}

/// Guests ask by DHCP, of which nobody has to tell them; those with IPv6 have to ask twice.
async fn network_config((State(guests), ConnectInfo(from)): Asked) -> Result<Response, StatusCode> {
    let guest = who(&guests, from)?;
    if guest.goal.ipv6.is_none() {
        return Err(StatusCode::NOT_FOUND);
    }
    let mac = guest.goal.mac().map(|byte| format!("{byte:02x}")).join(":");
    Ok(text(format!(
        "version: 2\nethernets:\n  card:\n    match: {{macaddress: \"{mac}\"}}\n    dhcp4: true\n    dhcp6: true\n"
    )))
}

/// The header is what a page in a guest's browser, or a fooled proxy, cannot send; a proxy names itself in the other.
pub(crate) fn check_headers(headers: &HeaderMap) -> Result<(), Refused> {
    let asked = headers.get("metadata").and_then(|value| value.to_str().ok());
    if !asked.is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Err(refused(StatusCode::BAD_REQUEST, "the header `Metadata: true` is missing"));
    }
    if headers.contains_key("x-forwarded-for") {
        return Err(refused(StatusCode::BAD_REQUEST, "requests with `X-Forwarded-For` are not answered"));
    }
    Ok(())
}

/// Why a request is not answered, as JSON.
pub(crate) type Refused = (StatusCode, Json<Value>);

pub(crate) fn refused(status: StatusCode, why: &str) -> Refused {
    (status, Json(json!({ "error": why })))
}

fn asking(guests: &Arc<dyn Guests>, from: SocketAddr, headers: &HeaderMap) -> Result<Guest, Refused> {
    check_headers(headers)?;
    who(guests, from).map_err(|status| refused(status, "no guest of this host has this address"))
}

async fn versions(headers: HeaderMap) -> Result<Json<Value>, Refused> {
    check_headers(&headers)?;
    Ok(Json(json!({ "apiVersions": API_VERSIONS })))
}

#[derive(Deserialize)]
struct Form {
    #[serde(rename = "api-version")]
    version: Option<String>,
    format: Option<String>,
}

impl Form {
    /// A version has to be named, but any that looks like one will do: the newest of them that is known is answered.
    fn check(&self) -> Result<(), Refused> {
        let is_version = |text: &String| {
            let digits = |part: Option<&str>, count| {
                part.is_some_and(|part| part.len() == count && part.bytes().all(|byte| byte.is_ascii_digit()))
            };
            let mut parts = text.trim_end_matches("-preview").split('-');
            digits(parts.next(), 4) && digits(parts.next(), 2) && digits(parts.next(), 2) && parts.next().is_none()
        };
        if self.version.as_ref().is_some_and(is_version) {
            return Ok(());
        }
        let why = json!({ "error": "api-version is missing or not a version", "newest-versions": API_VERSIONS[..3] });
        Err((StatusCode::BAD_REQUEST, Json(why)))
    }
}

async fn instance(
    headers: HeaderMap,
    (State(guests), ConnectInfo(from)): Asked,
    Query(form): Query<Form>,
) -> Result<Json<Value>, Refused> {
    let guest = asking(&guests, from, &headers)?;
    form.check()?;
    Ok(Json(document(&guest)))
}

/// A part of the instance document, by its path.
async fn part(
    headers: HeaderMap,
    (State(guests), ConnectInfo(from)): Asked,
    Path(path): Path<String>,
    Query(form): Query<Form>,
) -> Result<Response, Refused> {
    let guest = asking(&guests, from, &headers)?;
    form.check()?;
    let whole = document(&guest);
    let pointer = format!("/{}", path.trim_matches('/'));
    let Some(value) = whole.pointer(&pointer) else {
        return Err(refused(StatusCode::NOT_FOUND, &format!("the instance document has no `{path}`")));
    };
    match (form.format.as_deref(), value) {
        (Some("text"), Value::String(word)) => Ok(text(word.clone())),
        (Some("text"), Value::Object(_) | Value::Array(_)) => {
            Err(refused(StatusCode::BAD_REQUEST, "only single values are there as text"))
        }
        (Some("text"), other) => Ok(text(other.to_string())),
        _ => Ok(Json(value).into_response()),
    }
}

/// Nobody vouches for what is said here: a signature that is not the original platform's would only mislead.
async fn attested(headers: HeaderMap) -> Result<StatusCode, Refused> {
    check_headers(&headers)?;
    Err(refused(StatusCode::FORBIDDEN, "this fabric signs no documents about its guests"))
}

async fn events(headers: HeaderMap, (State(guests), ConnectInfo(from)): Asked) -> Result<Json<Value>, Refused> {
    let guest = asking(&guests, from, &headers)?;
    guests.hear(guest.goal.dip, Word::AsksForEvents);
    let event = |planned: &Planned| {
        json!({
            "EventId": planned.id,
            "EventType": planned.kind,
            "ResourceType": "VirtualMachine",
            "Resources": [guest.goal.instance.name()],
            "EventStatus": if planned.acknowledged { "Started" } else { "Scheduled" },
            "NotBefore": planned.not_before,
            "Description": planned.description,
            "EventSource": "Platform",
            "DurationInSeconds": -1,
        })
    };
    let events: Vec<Value> = guest.planned.iter().map(event).collect();
    Ok(Json(json!({ "DocumentIncarnation": guest.incarnation, "Events": events })))
}

/// The guest is ready for what is planned, so that it need not be waited for.
async fn acknowledge(
    headers: HeaderMap,
    (State(guests), ConnectInfo(from)): Asked,
    body: String,
) -> Result<StatusCode, Refused> {
    let guest = asking(&guests, from, &headers)?;
    let body: Value = serde_json::from_str(&body)
        .map_err(|error| refused(StatusCode::BAD_REQUEST, &format!("the body is not JSON: {error}")))?;
    let requests = body["StartRequests"].as_array().map_or(&[][..], Vec::as_slice);
    let ids: Vec<&str> = requests.iter().filter_map(|request| request["EventId"].as_str()).collect();
    match guest.planned.filter(|planned| ids.contains(&planned.id.as_str())) {
        Some(planned) => {
            guests.hear(guest.goal.dip, Word::Acknowledges(planned.id));
            Ok(StatusCode::OK)
        }
        None => Err(refused(StatusCode::BAD_REQUEST, "StartRequests names no event that is scheduled")),
    }
}

fn document(guest: &Guest) -> Value {
    let goal = &guest.goal;
    let mac: String = goal.mac().iter().map(|byte| format!("{byte:02X}")).collect();
    let admin = goal.guest.admin.as_ref();
    let keys: Vec<Value> = admin
        .map_or(&[][..], |admin| &admin.ssh_keys)
        .iter()
        .map(|key| {
            let name = admin.map_or("", |admin| admin.name.as_str());
            json!({ "keyData": key, "path": format!("/home/{name}/.ssh/authorized_keys") })
        })
        .collect();
    let password = admin.is_some_and(|admin| admin.password_hash.is_some());
    let service = &goal.instance.deployment.service;
    let data = |text: String| base64::engine::general_purpose::STANDARD.encode(text);
    json!({
        "compute": {
            "azEnvironment": "Mayfly",
            "customData": "",
            "location": guest.location,
            "name": goal.instance.name(),
            "offer": "",
            "osProfile": {
                "adminUsername": admin.map_or("", |admin| admin.name.as_str()),
                "computerName": goal.computer_name,
                "disablePasswordAuthentication": (!password).to_string(),
            },
            "osType": if goal.guest.platform == mayfly_model::Platform::Windows { "Windows" } else { "Linux" },
            "placementGroupId": "",
            "platformFaultDomain": goal.fault_domain,
            "platformUpdateDomain": goal.update_domain.to_string(),
            "provider": "Microsoft.Compute",
            "publicKeys": keys,
            "publisher": "",
            "resourceGroupName": service.to_string(),
            "resourceId": format!("/services/{service}/instances/{}", goal.instance.name()),
            "securityProfile": {},
            "sku": "",
            "storageProfile": {},
            "subscriptionId": "",
            "tags": "",
            "tagsList": [],
            "userData": data(seed::custom_data(goal)),
            "version": "",
            "vmId": guest.system_uuid(),
            "vmScaleSetName": "",
            "vmSize": goal.size.as_str(),
            "zone": "",
        },
        "network": { "interface": [{
            "ipv4": {
                "ipAddress": [{ "privateIpAddress": goal.dip.to_string(), "publicIpAddress": "" }],
                "subnet": [{ "address": "10.80.0.0", "prefix": "16" }],
            },
            "ipv6": { "ipAddress": goal.ipv6.iter().map(|own| json!({ "privateIpAddress": own })).collect::<Vec<_>>() },
            "macAddress": mac,
        }] },
    })
}
