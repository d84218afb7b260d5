//! Instances.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use mayfly_api::{ApiError, ErrorCode, InstanceView, StepView};
use mayfly_fabric::{Command, Core, State as Records, explain, goal};
use mayfly_model::{
    DeploymentKey, HostCondition, Instance, InstanceKey, InstanceState, InstanceStatus, ServiceName, Slot, VmPhase,
};
use serde::Deserialize;

use super::Shared;
use super::error::{Failure, invalid};
use super::rfc3339;

#[derive(Deserialize)]
pub(super) struct Filter {
    service: Option<String>,
}

pub(super) async fn list(
    State(shared): State<Arc<Shared>>,
    Query(filter): Query<Filter>,
) -> Result<Json<Vec<InstanceView>>, Failure> {
    let service = filter.service.map(ServiceName::new).transpose()?;
    let all = |core: &Core| {
        let state = core.state();
        match &service {
            None => Some(state.instances().values().map(|one| view(&shared, state, one)).collect()),
            Some(name) => {
                state.services().get(name)?;
                let keys = [Slot::Production, Slot::Staging].map(|slot| DeploymentKey { service: name.clone(), slot });
                let instances = keys.iter().flat_map(|key| state.instances_of(key));
                Some(instances.map(|one| view(&shared, state, one)).collect())
            }
        }
    };
    let views = shared.driver.read(all).await?;
    let missing = || format!("there is no service `{}`", service.as_ref().map_or("", |name| name.as_str()));
    Ok(Json(views.ok_or_else(|| ApiError::new(ErrorCode::NotFound, missing()))?))
}

pub(super) async fn act(
    State(shared): State<Arc<Shared>>,
    Path((service, slot, name, verb)): Path<(String, String, String, String)>,
    headers: HeaderMap,
) -> Result<(), Failure> {
    let key: InstanceKey = format!("{service}@{slot}/{name}").parse()?;
    let command = match verb.as_str() {
        "reboot" => Command::Reboot(key),
        "reimage" => Command::Reimage(key),
        "rebuild" => Command::Rebuild(key),
        "stop" => Command::StopInstance(key),
        "start" => Command::StartInstance(key),
        other => return Err(invalid(format!("`{other}` is none of reboot, reimage, rebuild, stop and start"))),
    };
    shared.command(&headers, command).await
}

/// Why an instance is where it is, or waits.
pub(super) async fn explain(
    State(shared): State<Arc<Shared>>,
    Path((service, slot, name)): Path<(String, String, String)>,
) -> Result<Json<Vec<String>>, Failure> {
    let key: InstanceKey = format!("{service}@{slot}/{name}").parse()?;
    let now = shared.driver.now();
    let lines = shared.driver.read(|core| explain::instance(core, &key, now)).await?;
    let missing = || ApiError::new(ErrorCode::NotFound, format!("there is no instance `{key}`"));
    Ok(Json(lines.ok_or_else(missing)?))
}

fn steps(steps: &[mayfly_model::BootStep]) -> Vec<StepView> {
    let before = |number: usize| steps.get(number.wrapping_sub(1)).map_or(0, |before| before.at.0);
    let view = |(number, step): (usize, &mayfly_model::BootStep)| StepView {
        step: step.name.clone(),
        at: rfc3339(step.at),
        millis: if number == 0 { 0 } else { step.at.0.saturating_sub(before(number)) },
    };
    steps.iter().enumerate().map(view).collect()
}

fn view(shared: &Shared, state: &Records, instance: &Instance) -> InstanceView {
    let vm = instance.vm();
    let host = vm.and_then(|vm| state.hosts().get(&vm.host));
    let (mut status, mut detail) = (instance.state.status(), instance.state.detail().map(str::to_owned));
    if let Some(host) = host.filter(|host| host.condition != HostCondition::Up) {
        // Nobody knows how the instance is doing; what was known last would be misleading.
        (status, detail) =
            (InstanceStatus::RoleStateUnknown, Some(format!("{} is {}", host.name, host.condition.name())));
    }
    let prefix = shared.config.fabric.ipv6.filter(|_| goal::has_ipv6(state, instance));
    let usage = vm.and_then(|vm| shared.usage.of(&vm.host, vm.id));
    let size = vm.map(|vm| vm.size);
    let rebooting = matches!(&instance.state, InstanceState::Placed { phase: VmPhase::Restarting { .. }, .. });
    InstanceView {
        service: instance.key.deployment.service.to_string(),
        slot: instance.key.deployment.slot,
        role: instance.key.role.to_string(),
        name: instance.key.name(),
        state: status.to_string(),
        version: instance.version,
        detail,
        host: vm.map(|vm| vm.host.to_string()),
        fault_domain: host.map(|host| host.fault_domain.clone()),
        update_domain: instance.update_domain,
        computer_name: vm.map(|vm| vm.computer_name.to_string()),
        dip: vm.map(|vm| vm.dip),
        ipv6: vm.zip(prefix).map(|(vm, prefix)| prefix.embed(vm.dip)),
        generation: instance.generation,
        vm: vm.map(|vm| vm.id.to_string()),
        reboots: vm.map_or(0, |vm| vm.reboots),
        disk_bytes: usage.as_ref().map(|usage| usage.disk_bytes),
        disk_quota_bytes: size.map(mayfly_model::VmSize::disk_quota_bytes),
        image_bytes: usage.as_ref().map(|usage| usage.image_bytes),
        sent_bytes: usage.as_ref().map(|usage| usage.traffic.sent),
        received_bytes: usage.as_ref().map(|usage| usage.traffic.received),
        stopped: instance.stopped,
        steps: usage.map_or_else(Vec::new, |usage| steps(&usage.steps)),
        in_motion: rebooting || instance.wanted_vm().is_none(),
    }
}
