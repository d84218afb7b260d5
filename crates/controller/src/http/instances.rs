//! Instances.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use mayfly_api::{ApiError, ErrorCode, InstanceView};
use mayfly_fabric::{Command, Input, State as Records};
use mayfly_model::{HostCondition, Instance, InstanceKey, InstanceState, ServiceName, VmPhase};
use serde::Deserialize;

use super::Shared;
use super::error::{Failure, invalid};

#[derive(Deserialize)]
pub(super) struct Filter {
    service: Option<String>,
}

pub(super) async fn list(
    State(shared): State<Arc<Shared>>,
    Query(filter): Query<Filter>,
) -> Result<Json<Vec<InstanceView>>, Failure> {
    let core = shared.driver.committed();
    let service = filter.service.map(ServiceName::new).transpose()?;
    if let Some(name) = &service
        && !core.state().services().contains_key(name)
    {
        return Err(ApiError::new(ErrorCode::NotFound, format!("there is no service `{name}`")).into());
    }
    let wanted = |instance: &&Instance| service.as_ref().is_none_or(|name| instance.key.deployment.service == *name);
    Ok(Json(core.state().instances().values().filter(wanted).map(|one| view(&shared, core.state(), one)).collect()))
}

pub(super) async fn act(
    State(shared): State<Arc<Shared>>,
    Path((service, slot, name, verb)): Path<(String, String, String, String)>,
) -> Result<(), Failure> {
    let key: InstanceKey = format!("{service}@{slot}/{name}").parse()?;
    let command = match verb.as_str() {
        "reboot" => Command::Reboot(key),
        "reimage" => Command::Reimage(key),
        other => return Err(invalid(format!("`{other}` is neither `reboot` nor `reimage`"))),
    };
    shared.driver.submit(Input::Command(command)).await?;
    Ok(())
}

fn view(shared: &Shared, state: &Records, instance: &Instance) -> InstanceView {
    let vm = instance.vm();
    let host = vm.and_then(|vm| state.hosts().get(&vm.host));
    let (mut name, mut detail) = (instance.state.name(), instance.state.detail().map(str::to_owned));
    if let Some(host) = host.filter(|host| host.condition != HostCondition::Up) {
        // Nobody knows how the instance is doing; what was known last would be misleading.
        (name, detail) = ("RoleStateUnknown", Some(format!("{} is {}", host.name, host.condition.name())));
    }
    let usage = vm.and_then(|vm| shared.usage.of(&vm.host, vm.id));
    let size = state.size_of(&instance.key);
    let rebooting = matches!(&instance.state, InstanceState::Placed { phase: VmPhase::Restarting, .. });
    InstanceView {
        service: instance.key.deployment.service.to_string(),
        slot: instance.key.deployment.slot,
        role: instance.key.role.to_string(),
        name: instance.key.name(),
        state: name.to_owned(),
        detail,
        host: vm.map(|vm| vm.host.to_string()),
        fault_domain: host.map(|host| host.fault_domain.clone()),
        update_domain: instance.update_domain,
        computer_name: vm.map(|vm| vm.computer_name.clone()),
        dip: vm.map(|vm| vm.dip),
        generation: instance.generation,
        vm: vm.map(|vm| vm.id.to_string()),
        reboots: vm.map_or(0, |vm| vm.reboots),
        disk_bytes: usage.map(|usage| usage.disk_bytes),
        disk_quota_bytes: size.map(mayfly_model::VmSize::disk_quota_bytes),
        image_bytes: usage.map(|usage| usage.image_bytes),
        in_motion: rebooting || instance.wanted_vm().is_none(),
    }
}
