//! Deploying and scaling.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use mayfly_api::{ApiError, DeployRequest, ErrorCode, ScaleRequest};
use mayfly_fabric::{Command, Input};
use mayfly_model::{DeploymentKey, RoleName, ServiceConfiguration, ServiceDefinition, ServiceName, Slot};
use mayfly_service_model::{Diagnostics, Source, check, parse_configuration, parse_definition, resolve_user_data};

use super::Shared;
use super::error::Failure;

pub(super) async fn deploy(
    State(shared): State<Arc<Shared>>,
    Path((service, slot)): Path<(String, Slot)>,
    Json(request): Json<DeployRequest>,
) -> Result<(), Failure> {
    let key = DeploymentKey { service: ServiceName::new(service)?, slot };
    // Large files must not keep hosts from renewing their leases meanwhile.
    let parsed = tokio::task::spawn_blocking(move || read(&request)).await;
    let (definition, configuration) =
        parsed.map_err(|error| ApiError::new(ErrorCode::Internal, error.to_string()))??;
    let command = Command::Deploy { key, definition, configuration };
    shared.driver.submit(Input::Command(command)).await?;
    Ok(())
}

fn read(request: &DeployRequest) -> Result<(ServiceDefinition, ServiceConfiguration), Diagnostics> {
    let definition_source = Source::new(&request.definition.name, request.definition.text.as_bytes())?;
    let configuration_source = Source::new(&request.configuration.name, request.configuration.text.as_bytes())?;
    let definition = parse_definition(&definition_source)?;
    let mut configuration = parse_configuration(&configuration_source)?;
    check(&definition, &configuration, &configuration_source)?;
    resolve_user_data(&mut configuration, &request.files, &configuration_source)?;
    Ok((definition, configuration))
}

pub(super) async fn scale(
    State(shared): State<Arc<Shared>>,
    Path((service, slot)): Path<(String, Slot)>,
    Json(request): Json<ScaleRequest>,
) -> Result<(), Failure> {
    let key = DeploymentKey { service: ServiceName::new(service)?, slot };
    let mut counts = BTreeMap::new();
    for (role, count) in request.instances {
        counts.insert(RoleName::new(role)?, count);
    }
    shared.driver.submit(Input::Command(Command::Scale { key, counts })).await?;
    Ok(())
}
