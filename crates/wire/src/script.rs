//! The role's post-boot script: what it is, for whoever runs it in the guest, and what became of it.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::guest::{Guests, ScriptReport, Word};
use crate::metadata::{Refused, check_headers, refused};
use crate::wire_server::who;

/// Most bytes of a script's output that are kept; the end of it says most.
const OUTPUT_BYTES: usize = 16 << 10;

/// What runs the script in a guest that has cloud-init, and so Python.
pub(crate) const RUNNER: &str = include_str!("run-script.py");

pub(crate) async fn show(
    headers: HeaderMap,
    State(guests): State<Arc<dyn Guests>>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
) -> Result<Json<Value>, Refused> {
    check_headers(&headers)?;
    let guest = who(&guests, from).map_err(|status| refused(status, "no guest of this host has this address"))?;
    let script = guest.goal.guest.script.as_ref();
    Ok(Json(json!({
        "vm": guest.goal.vm.to_string(),
        "script": script.map(|script| &script.text),
        "timeout_seconds": script.map_or(0, |script| script.timeout_seconds),
        "tries": script.map_or(0, |script| script.tries),
        "each_boot": script.is_some_and(|script| script.each_boot),
    })))
}

#[derive(Deserialize)]
struct Report {
    attempt: u32,
    status: Option<i32>,
    last: bool,
    #[serde(default)]
    output: String,
}

pub(crate) async fn report(
    headers: HeaderMap,
    State(guests): State<Arc<dyn Guests>>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    body: String,
) -> Result<StatusCode, Refused> {
    check_headers(&headers)?;
    let guest = who(&guests, from).map_err(|status| refused(status, "no guest of this host has this address"))?;
    let report: Report = serde_json::from_str(&body)
        .map_err(|error| refused(StatusCode::BAD_REQUEST, &format!("the body is no report: {error}")))?;
    let Report { attempt, status, last, output } = report;
    let output = end_of(&output, OUTPUT_BYTES).to_owned();
    match guests.hear(guest.goal.dip, Word::Script(ScriptReport { attempt, status, last, output })) {
        true => Ok(StatusCode::OK),
        false => Err(refused(StatusCode::SERVICE_UNAVAILABLE, "the host is not ready to hear this; say it again")),
    }
}

/// The end of a text, at most that many bytes of it.
fn end_of(text: &str, bytes: usize) -> &str {
    let mut from = text.len().saturating_sub(bytes);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    &text[from..]
}
