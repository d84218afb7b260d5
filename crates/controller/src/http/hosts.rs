//! Hosts: their reports, the list of them, and what people decide about them.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::{Extension, Json};
use mayfly_api::{ApiError, ErrorCode, HostNews, HostView, ReportAnswer};
use mayfly_fabric::{Command, Input, State as Records, goal};
use mayfly_identity::Enrolled;
use mayfly_model::{Host, HostName, HostReport, Incarnation};
use serde::Deserialize;

use super::Shared;
use super::error::{Failure, invalid};

/// How long a host's question for news is held.
const WAIT: Duration = Duration::from_secs(10);

pub(super) async fn list(State(shared): State<Arc<Shared>>) -> Result<Json<Vec<HostView>>, Failure> {
    let views = shared.driver.read(|core| core.state().hosts().values().map(|host| view(core.state(), host)).collect());
    Ok(Json(views.await?))
}

fn view(state: &Records, host: &Host) -> HostView {
    HostView {
        name: host.name.to_string(),
        state: host.state().to_owned(),
        fault_domain: host.fault_domain.clone(),
        address: host.address,
        capacity: host.capacity,
        used: state.used_on(&host.name),
        instances: state.instances_on(&host.name).count(),
        labels: host.labels.clone(),
        features: host.features.clone(),
        transit: host.transit.unwrap_or_default(),
    }
}

pub(super) async fn act(
    State(shared): State<Arc<Shared>>,
    Path((name, verb)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<(), Failure> {
    let host = HostName::new(name)?;
    let command = match verb.as_str() {
        "drain" => Command::Drain { host, reboot: false },
        "reboot" => Command::Drain { host, reboot: true },
        "undrain" => Command::Undrain(host),
        "forget" => Command::ForgetHost(host),
        other => return Err(invalid(format!("`{other}` is none of drain, undrain, reboot and forget"))),
    };
    shared.command(&headers, command).await
}

pub(super) async fn report(
    State(shared): State<Arc<Shared>>,
    Extension(enrolled): Extension<Enrolled>,
    Json(report): Json<HostReport>,
) -> Result<Json<ReportAnswer>, Failure> {
    if report.host.as_str() != enrolled.host {
        let message = format!("a report of {} with the certificate of {}", report.host, enrolled.host);
        return Err(ApiError::new(ErrorCode::Unauthorized, message).into());
    }
    shared.usage.hear(&report);
    let (host, applied) = (report.host.clone(), report.applied);
    let outcome = shared.driver.submit(Input::Report(report)).await?;
    let grant = outcome.grant.ok_or_else(|| ApiError::new(ErrorCode::Internal, "a report without a grant"))?;
    // What is read now is the state of the grant or a later one.
    let news =
        |core: &mayfly_fabric::Core| (core.state().meta().revision != applied).then(|| goal::goal_state(core, &host));
    let goal = shared.driver.read(news).await?;
    Ok(Json(ReportAnswer { grant, goal }))
}

#[derive(Deserialize)]
pub(super) struct Waiting {
    have: u64,
}

/// Answers when there is a newer goal state, when somebody calls, or after a while.
pub(super) async fn wait(
    State(shared): State<Arc<Shared>>,
    Extension(enrolled): Extension<Enrolled>,
    Query(waiting): Query<Waiting>,
) -> Json<HostNews> {
    let (mut watch, mut called) = (shared.driver.watch(), shared.calls.watch());
    let newer = watch.wait_for(|committed| committed.revision != Incarnation(waiting.have));
    let calls = async {
        loop {
            called.borrow_and_update();
            let calls = shared.calls.take(&enrolled.host);
            if !calls.is_empty() || called.changed().await.is_err() {
                return calls;
            }
        }
    };
    // Either way the host asks again.
    let calls = tokio::select! {
        biased;
        calls = calls => calls,
        _ = newer => Vec::new(),
        () = tokio::time::sleep(WAIT) => Vec::new(),
    };
    Json(HostNews { calls })
}
