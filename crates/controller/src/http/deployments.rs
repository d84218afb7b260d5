//! Deployments: made, updated, swapped, scaled, suspended and deleted.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use mayfly_api::{
    ApiError, DeployRequest, ErrorCode, MetricRequest, PlanView, RollbackRequest, ScaleRequest, UpgradeRequest,
    WalkRequest,
};
use mayfly_fabric::Command;
use mayfly_model::{DeploymentKey, RoleName, ServiceName, Slot, Version};
use mayfly_service_model::{Diagnostics, Source, check, parse_configuration, parse_definition, resolve_files};
use serde::Deserialize;

use super::error::{Failure, invalid};
use super::{Shared, certificates};

type Place = Path<(String, Slot)>;

#[derive(Deserialize)]
pub(super) struct Planning {
    /// Only say what would happen.
    #[serde(default)]
    plan: bool,
}

fn key((service, slot): (String, Slot)) -> Result<DeploymentKey, Failure> {
    Ok(DeploymentKey { service: ServiceName::new(service)?, slot })
}

pub(super) async fn deploy(
    State(shared): State<Arc<Shared>>,
    Path(place): Place,
    Query(planning): Query<Planning>,
    headers: HeaderMap,
    Json(request): Json<DeployRequest>,
) -> Result<Json<Option<PlanView>>, Failure> {
    let (key, version) = (key(place)?, version(request).await?);
    certificates::check_passwords(&shared, &key.service, &version).await?;
    let command = Command::Deploy { key, version };
    do_or_plan(&shared, planning.plan, &headers, command).await
}

async fn do_or_plan(
    shared: &Shared,
    plan: bool,
    headers: &HeaderMap,
    command: Command,
) -> Result<Json<Option<PlanView>>, Failure> {
    match plan {
        true => Ok(Json(Some(shared.plan(command).await?))),
        false => shared.command(headers, command).await.map(|()| Json(None)),
    }
}

/// Parses and checks a user's files. Large ones must not keep hosts from renewing their leases meanwhile.
async fn version(request: DeployRequest) -> Result<Version, Failure> {
    let parsed = tokio::task::spawn_blocking(move || read(&request)).await;
    Ok(parsed.map_err(|error| ApiError::new(ErrorCode::Internal, error.to_string()))??)
}

fn read(request: &DeployRequest) -> Result<Version, Diagnostics> {
    let definition_source = Source::new(&request.definition.name, request.definition.text.as_bytes())?;
    let configuration_source = Source::new(&request.configuration.name, request.configuration.text.as_bytes())?;
    let definition = parse_definition(&definition_source)?;
    let mut configuration = parse_configuration(&configuration_source)?;
    check(&definition, &configuration, &configuration_source)?;
    resolve_files(&mut configuration, &request.files, &configuration_source)?;
    Ok(Version { definition, configuration })
}

pub(super) async fn delete(
    State(shared): State<Arc<Shared>>,
    Path(place): Place,
    headers: HeaderMap,
) -> Result<(), Failure> {
    shared.command(&headers, Command::DeleteDeployment(key(place)?)).await
}

pub(super) async fn upgrade(
    State(shared): State<Arc<Shared>>,
    Path(place): Place,
    Query(planning): Query<Planning>,
    headers: HeaderMap,
    Json(request): Json<UpgradeRequest>,
) -> Result<Json<Option<PlanView>>, Failure> {
    let (key, mode, version) = (key(place)?, request.mode, version(request.files).await?);
    certificates::check_passwords(&shared, &key.service, &version).await?;
    let command = Command::Upgrade { key, version, mode };
    do_or_plan(&shared, planning.plan, &headers, command).await
}

pub(super) async fn walk(
    State(shared): State<Arc<Shared>>,
    Path(place): Place,
    headers: HeaderMap,
    Json(request): Json<WalkRequest>,
) -> Result<(), Failure> {
    shared.command(&headers, Command::Walk { key: key(place)?, domain: request.domain }).await
}

pub(super) async fn rollback(
    State(shared): State<Arc<Shared>>,
    Path(place): Place,
    headers: HeaderMap,
    Json(request): Json<RollbackRequest>,
) -> Result<(), Failure> {
    shared.command(&headers, Command::Rollback { key: key(place)?, mode: request.mode }).await
}

pub(super) async fn suspend(
    State(shared): State<Arc<Shared>>,
    Path(place): Place,
    headers: HeaderMap,
) -> Result<(), Failure> {
    shared.command(&headers, Command::Suspend(key(place)?)).await
}

pub(super) async fn start(
    State(shared): State<Arc<Shared>>,
    Path(place): Place,
    headers: HeaderMap,
) -> Result<(), Failure> {
    shared.command(&headers, Command::Start(key(place)?)).await
}

pub(super) async fn swap(
    State(shared): State<Arc<Shared>>,
    Path(service): Path<String>,
    headers: HeaderMap,
) -> Result<(), Failure> {
    shared.command(&headers, Command::Swap(ServiceName::new(service)?)).await
}

pub(super) async fn scale(
    State(shared): State<Arc<Shared>>,
    Path(place): Place,
    Query(planning): Query<Planning>,
    headers: HeaderMap,
    Json(request): Json<ScaleRequest>,
) -> Result<Json<Option<PlanView>>, Failure> {
    let mut counts = BTreeMap::new();
    for (role, count) in request.instances {
        counts.insert(RoleName::new(role)?, count);
    }
    do_or_plan(&shared, planning.plan, &headers, Command::Scale { key: key(place)?, counts }).await
}

pub(super) async fn metric(
    State(shared): State<Arc<Shared>>,
    Path((service, slot, role, name)): Path<(String, Slot, String, String)>,
    headers: HeaderMap,
    Json(request): Json<MetricRequest>,
) -> Result<(), Failure> {
    if name.is_empty() || name.len() > 64 || !name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
        return Err(invalid(format!("`{name}` is not the name of a number: use letters, digits, -, _ and .")));
    }
    let (key, role) = (key((service, slot))?, RoleName::new(role)?);
    shared.command(&headers, Command::PushMetric { key, role, name, value: request.value }).await
}
