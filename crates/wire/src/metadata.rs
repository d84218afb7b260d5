//! Instance metadata and the NoCloud seed: 169.254.169.254, port 80.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::guest::{Guest, Guests};
use crate::wire_server::who;

type Asked = (State<Arc<dyn Guests>>, ConnectInfo<SocketAddr>);

/// The metadata server's routes. It has to be served with connection information.
pub fn metadata_router(guests: Arc<dyn Guests>) -> Router {
    Router::new()
        .route("/nocloud/meta-data", get(meta_data))
        .route("/nocloud/user-data", get(user_data))
        .route("/nocloud/vendor-data", get(vendor_data))
        .route("/metadata/instance", get(instance))
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
    who(&guests, from).map(|_| text(String::new()))
}

/// The header is what a page in a guest's browser, or a fooled proxy, cannot send.
async fn instance(headers: HeaderMap, (State(guests), ConnectInfo(from)): Asked) -> Result<Response, StatusCode> {
    let asked = headers.get("metadata").and_then(|value| value.to_str().ok());
    if !asked.is_some_and(|value| value.eq_ignore_ascii_case("true")) || headers.contains_key("x-forwarded-for") {
        return Err(StatusCode::BAD_REQUEST);
    }
    let guest = who(&guests, from)?;
    Ok(Json(document(&guest)).into_response())
}

fn document(guest: &Guest) -> Value {
    let goal = &guest.goal;
    let mac: String = goal.mac().iter().map(|byte| format!("{byte:02X}")).collect();
    json!({
        "compute": {
            "location": guest.location,
            "name": goal.instance.name(),
            "osType": "Linux",
            "osProfile": { "computerName": goal.computer_name, "adminUsername": "", "disablePasswordAuthentication": "true" },
            "platformFaultDomain": goal.fault_domain,
            "platformUpdateDomain": goal.update_domain.to_string(),
            "provider": "Mayfly",
            "resourceGroupName": goal.instance.deployment.service.to_string(),
            "vmId": guest.system_uuid(),
            "vmSize": goal.size.as_str(),
            "tags": "",
            "tagsList": [],
        },
        "network": { "interface": [{
            "ipv4": {
                "ipAddress": [{ "privateIpAddress": goal.dip.to_string(), "publicIpAddress": "" }],
                "subnet": [{ "address": "10.80.0.0", "prefix": "16" }],
            },
            "ipv6": { "ipAddress": [] },
            "macAddress": mac,
        }] },
    })
}
