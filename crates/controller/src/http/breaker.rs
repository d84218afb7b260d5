//! The breaker, and what services have used.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use mayfly_api::{BreakerView, UsageView};
use mayfly_fabric::{Command, meter};
use mayfly_model::usage::DAY;
use mayfly_model::{Time, Usage};

use super::error::{Failure, invalid};
use super::{Shared, events};

pub(super) async fn show(State(shared): State<Arc<Shared>>) -> Result<Json<Vec<BreakerView>>, Failure> {
    let trips = shared.driver.read(|core| core.state().breaker().trips.clone()).await?;
    let view = |(scope, trip): (mayfly_model::Scope, mayfly_model::Trip)| BreakerView {
        scope: scope.to_string(),
        since: events::rfc3339(trip.since),
        why: trip.why,
    };
    Ok(Json(trips.into_iter().map(view).collect()))
}

pub(super) async fn reset(
    State(shared): State<Arc<Shared>>,
    Path(scope): Path<String>,
    headers: HeaderMap,
) -> Result<(), Failure> {
    let scope = scope.parse().map_err(|error: String| invalid(error))?;
    shared.command(&headers, Command::ResetBreaker(scope)).await
}

/// What each service has used on each day, to this moment.
pub(super) async fn usage(State(shared): State<Arc<Shared>>) -> Result<Json<Vec<UsageView>>, Failure> {
    let now = shared.driver.now();
    let ledger = shared.driver.read(|core| meter::ledger(core.state(), now)).await?;
    let view = |usage: Usage| UsageView {
        service: usage.service.to_string(),
        day: events::rfc3339(Time(usage.day * DAY)).chars().take(10).collect(),
        instance_seconds: usage.millis.into_iter().map(|(size, millis)| (size.to_string(), millis / 1000)).collect(),
        sent_bytes: usage.traffic.sent,
        received_bytes: usage.traffic.received,
    };
    Ok(Json(ledger.into_values().map(view).collect()))
}
