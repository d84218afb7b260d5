//! Hosts: their reports, and the list of them.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Query, State};
use mayfly_api::{ApiError, ErrorCode, HostView, ReportAnswer};
use mayfly_fabric::{Input, goal};
use mayfly_model::{HostReport, Incarnation};
use serde::Deserialize;

use super::Shared;
use super::error::Failure;

/// How long a host's question for news is held.
const WAIT: Duration = Duration::from_secs(10);

pub(super) async fn list(State(shared): State<Arc<Shared>>) -> Json<Vec<HostView>> {
    let core = shared.driver.committed();
    let state = core.state();
    let view = |host: &mayfly_model::Host| HostView {
        name: host.name.to_string(),
        state: host.condition.name().to_owned(),
        fault_domain: host.fault_domain.clone(),
        address: host.address,
        capacity: host.capacity,
        used: state.used_on(&host.name),
        instances: state.instances_on(&host.name).count(),
    };
    Json(state.hosts().values().map(view).collect())
}

pub(super) async fn report(
    State(shared): State<Arc<Shared>>,
    Json(report): Json<HostReport>,
) -> Result<Json<ReportAnswer>, Failure> {
    shared.usage.hear(&report);
    let (host, applied) = (report.host.clone(), report.applied);
    let outcome = shared.driver.submit(Input::Report(report)).await?;
    let grant = outcome.grant.ok_or_else(|| ApiError::new(ErrorCode::Internal, "a report without a grant"))?;
    // The commit comes before the answer, so this is the state of the grant or a later one.
    let core = shared.driver.committed();
    let goal = (core.state().meta().revision != applied).then(|| goal::goal_state(&core, &host));
    Ok(Json(ReportAnswer { grant, goal }))
}

#[derive(Deserialize)]
pub(super) struct Waiting {
    have: u64,
}

/// Answers when there is a newer goal state, or after a while.
pub(super) async fn wait(State(shared): State<Arc<Shared>>, Query(waiting): Query<Waiting>) {
    let mut watch = shared.driver.watch();
    let newer = watch.wait_for(|core| core.state().meta().revision != Incarnation(waiting.have));
    // Either way the host asks again.
    let _ = tokio::time::timeout(WAIT, newer).await;
}
