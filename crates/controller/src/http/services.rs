//! Services.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use mayfly_api::{ApiError, DeploymentView, EndpointView, ErrorCode, RoleView, ServiceView, UpdateView};
use mayfly_fabric::{Command, Core, State as Records, goal};
use mayfly_model::{Deployment, DeploymentKey, Endpoint, RoleConfiguration, Service, ServiceName, Slot, Upgrade};

use super::error::Failure;
use super::{Shared, events};

pub(super) async fn list(State(shared): State<Arc<Shared>>) -> Result<Json<Vec<ServiceView>>, Failure> {
    let all = |core: &Core| core.state().services().values().map(|one| view(&shared, core.state(), one)).collect();
    Ok(Json(shared.driver.read(all).await?))
}

pub(super) async fn show(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
) -> Result<Json<ServiceView>, Failure> {
    let name = ServiceName::new(name)?;
    let one = |core: &Core| core.state().services().get(&name).map(|one| view(&shared, core.state(), one));
    let service = shared.driver.read(one).await?;
    let service = service.ok_or_else(|| ApiError::new(ErrorCode::NotFound, format!("there is no service `{name}`")))?;
    Ok(Json(service))
}

pub(super) async fn create(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<(), Failure> {
    shared.command(&headers, Command::CreateService(ServiceName::new(name)?)).await
}

pub(super) async fn delete(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<(), Failure> {
    shared.command(&headers, Command::DeleteService(ServiceName::new(name)?)).await
}

fn view(shared: &Shared, state: &Records, service: &Service) -> ServiceView {
    let slots = [Slot::Production, Slot::Staging].map(|slot| DeploymentKey { service: service.name.clone(), slot });
    let deployments = slots.iter().filter_map(|key| state.deployments().get(key));
    ServiceView {
        name: service.name.to_string(),
        dns_name: format!("{}.{}", service.name, shared.config.fabric.zone),
        state: if service.deleting { "Deleting" } else { "Active" }.to_owned(),
        created: events::rfc3339(service.created),
        deployments: deployments.map(|deployment| deployment_view(shared, state, deployment)).collect(),
    }
}

fn deployment_view(shared: &Shared, state: &Records, deployment: &Deployment) -> DeploymentView {
    let prefix = shared.config.fabric.ipv6.filter(|_| goal::is_public_over_ipv6(deployment));
    let roles = deployment.version.configuration.roles.iter().map(|role| role_view(state, deployment, role));
    DeploymentView {
        slot: deployment.key.slot,
        id: deployment.id.clone(),
        state: deployment.status.name().to_owned(),
        version: deployment.number,
        update: deployment.upgrade.as_ref().map(|upgrade| update_view(state, deployment, upgrade)),
        vip: deployment.vip,
        ipv6: prefix.map(|prefix| prefix.embed(deployment.vip)),
        roles: roles.collect(),
    }
}

fn update_view(state: &Records, deployment: &Deployment, upgrade: &Upgrade) -> UpdateView {
    let members = state.instances_of(&deployment.key).filter(|one| !one.is_leaving());
    let (mut done, mut left) = (0, 0);
    members.for_each(|one| if one.version == deployment.number { done += 1 } else { left += 1 });
    UpdateView {
        mode: upgrade.mode,
        rollback: upgrade.rollback,
        walking: upgrade.walking.map(|(domain, _)| domain),
        walked: upgrade.walked.iter().copied().collect(),
        updated: done,
        left,
        stuck: upgrade.stuck.clone(),
    }
}

fn role_view(state: &Records, deployment: &Deployment, role: &RoleConfiguration) -> RoleView {
    let defined = deployment.version.definition.role(&role.name);
    let endpoints = defined.into_iter().flat_map(|defined| &defined.endpoints).filter_map(|endpoint| match endpoint {
        Endpoint::Input { name, protocol, port, local_port, .. } => {
            let (name, protocol) = (name.clone(), protocol.to_string());
            Some(EndpointView { name, protocol, port: *port, last_port: None, local_port: *local_port })
        }
        Endpoint::InstanceInput { name, protocol, local_port, public_ports } => {
            let (name, protocol) = (name.clone(), protocol.to_string());
            let last_port = Some(public_ports.max);
            Some(EndpointView { name, protocol, port: public_ports.min, last_port, local_port: *local_port })
        }
        Endpoint::Internal { .. } => None,
    });
    RoleView {
        name: role.name.to_string(),
        size: defined.map_or_else(String::new, |defined| defined.size.to_string()),
        image: role.image.as_ref().map(ToString::to_string),
        wanted: if deployment.is_deleting() { 0 } else { role.instances },
        ready: state.members(&deployment.key, &role.name).filter(|one| one.is_ready()).count() as u32,
        endpoints: endpoints.collect(),
    }
}
