//! Services.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use mayfly_api::{ApiError, DeploymentView, EndpointView, ErrorCode, RoleView, ServiceView};
use mayfly_fabric::{Command, Input, State as Records};
use mayfly_model::{Deployment, Endpoint, RoleConfiguration, Service, ServiceName};

use super::error::Failure;
use super::{Shared, events};

pub(super) async fn list(State(shared): State<Arc<Shared>>) -> Json<Vec<ServiceView>> {
    let core = shared.driver.committed();
    Json(core.state().services().values().map(|service| view(&shared, core.state(), service)).collect())
}

pub(super) async fn show(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
) -> Result<Json<ServiceView>, Failure> {
    let name = ServiceName::new(name)?;
    let core = shared.driver.committed();
    let service = core.state().services().get(&name);
    let service = service.ok_or_else(|| ApiError::new(ErrorCode::NotFound, format!("there is no service `{name}`")))?;
    Ok(Json(view(&shared, core.state(), service)))
}

pub(super) async fn create(State(shared): State<Arc<Shared>>, Path(name): Path<String>) -> Result<(), Failure> {
    let command = Command::CreateService(ServiceName::new(name)?);
    shared.driver.submit(Input::Command(command)).await?;
    Ok(())
}

pub(super) async fn delete(State(shared): State<Arc<Shared>>, Path(name): Path<String>) -> Result<(), Failure> {
    let command = Command::DeleteService(ServiceName::new(name)?);
    shared.driver.submit(Input::Command(command)).await?;
    Ok(())
}

fn view(shared: &Shared, state: &Records, service: &Service) -> ServiceView {
    let deployments = state.deployments().values().filter(|one| one.key.service == service.name);
    ServiceView {
        name: service.name.to_string(),
        dns_name: format!("{}.{}", service.name, shared.config.fabric.zone),
        state: if service.deleting { "Deleting" } else { "Active" }.to_owned(),
        created: events::rfc3339(service.created),
        deployments: deployments.map(|deployment| deployment_view(state, deployment)).collect(),
    }
}

fn deployment_view(state: &Records, deployment: &Deployment) -> DeploymentView {
    let roles = deployment.configuration.roles.iter().map(|role| role_view(state, deployment, role));
    DeploymentView {
        slot: deployment.key.slot,
        id: deployment.id.clone(),
        state: if deployment.deleting { "Deleting" } else { "Running" }.to_owned(),
        vip: deployment.vip,
        roles: roles.collect(),
    }
}

fn role_view(state: &Records, deployment: &Deployment, role: &RoleConfiguration) -> RoleView {
    let defined = deployment.definition.role(&role.name);
    let endpoints = defined.into_iter().flat_map(|defined| &defined.endpoints).filter_map(|endpoint| match endpoint {
        Endpoint::Input { name, protocol, port, local_port, .. } => {
            let (name, protocol) = (name.clone(), protocol.to_string());
            Some(EndpointView { name, protocol, port: *port, local_port: *local_port })
        }
        Endpoint::Internal { .. } | Endpoint::InstanceInput { .. } => None,
    });
    RoleView {
        name: role.name.to_string(),
        size: defined.map_or_else(String::new, |defined| defined.size.to_string()),
        image: role.image.as_ref().map(ToString::to_string),
        wanted: if deployment.deleting { 0 } else { role.instances },
        ready: state.members(&deployment.key, &role.name).filter(|one| one.is_ready()).count() as u32,
        endpoints: endpoints.collect(),
    }
}
