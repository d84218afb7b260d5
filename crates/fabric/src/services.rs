//! Images and services.

use std::sync::Arc;

use mayfly_model::{DeploymentKey, EventKind, Image, ImageName, Service, ServiceName, Version};

use crate::command::Rejected;
use crate::record::{Record, RecordId};
use crate::state::State;
use crate::step::Step;

/// Names that mean something else where services are named.
const RESERVED: [(&str, &str); 3] = [
    ("fleet", "`mayfly breaker` means all services by it"),
    ("internal", "in DNS, the names of instances stand below it"),
    ("ns", "in DNS, it is the name of the name server"),
];

pub(crate) fn commit_image(step: &mut Step<'_>, image: Image) -> Result<(), Rejected> {
    if step.state.images.contains_key(&image.name) {
        return Err(Rejected::AlreadyExists { kind: "image", name: image.name.to_string() });
    }
    let message = format!("image committed: {} bytes, {}", image.disk_bytes, image.digest);
    step.event(EventKind::Command, &image.name, message);
    step.put(Record::Image(Arc::new(image)));
    Ok(())
}

pub(crate) fn delete_image(step: &mut Step<'_>, name: &ImageName) -> Result<(), Rejected> {
    if !step.state.images.contains_key(name) {
        return Err(Rejected::NotFound { kind: "image", name: name.to_string() });
    }
    if let Some(user) = users_of(step.state, name).next() {
        return Err(Rejected::Conflict(format!("the image `{name}` is in use by {user}")));
    }
    step.delete(RecordId::Image(name.clone()));
    step.event(EventKind::Command, name, "image deleted");
    Ok(())
}

fn users_of<'a>(state: &'a State, image: &'a ImageName) -> impl Iterator<Item = &'a DeploymentKey> {
    let uses =
        move |version: &Version| version.configuration.roles.iter().any(|role| role.image.as_ref() == Some(image));
    let deployments = state.deployments.values();
    deployments.filter(move |one| uses(&one.version) || one.older.values().any(uses)).map(|one| &one.key)
}

pub(crate) fn create(step: &mut Step<'_>, name: ServiceName) -> Result<(), Rejected> {
    if step.state.services.contains_key(&name) {
        return Err(Rejected::AlreadyExists { kind: "service", name: name.to_string() });
    }
    if let Some((_, why)) = RESERVED.into_iter().find(|(reserved, _)| *reserved == name.as_str()) {
        return Err(Rejected::Conflict(format!("a service cannot be called `{name}`: {why}")));
    }
    step.event(EventKind::Command, &name, "service created");
    step.put(Record::Service(Arc::new(Service { name, created: step.now, deleting: false, vips: Default::default() })));
    Ok(())
}

pub(crate) fn delete(step: &mut Step<'_>, name: &ServiceName) -> Result<(), Rejected> {
    let service = find(step.state, name)?.clone();
    step.event(EventKind::Command, name, "service is being deleted");
    step.put(Record::Service(Arc::new(Service { deleting: true, ..service })));
    for slot in [mayfly_model::Slot::Production, mayfly_model::Slot::Staging] {
        let key = DeploymentKey { service: name.clone(), slot };
        if step.deployment(&key).is_some_and(|deployment| !deployment.is_deleting()) {
            crate::deployments::mark_deleted(step, &key);
        }
    }
    Ok(())
}

/// Deletes services that are marked as deleted and have become empty.
pub(crate) fn bury(step: &mut Step<'_>) {
    let dying: Vec<ServiceName> = step.state.index.dying.iter().cloned().collect();
    for name in dying {
        let slots = [mayfly_model::Slot::Production, mayfly_model::Slot::Staging];
        let has = |slot| step.state.deployments.contains_key(&DeploymentKey { service: name.clone(), slot });
        if !slots.into_iter().any(has) {
            crate::certificates::delete_all(step, &name);
            step.delete(RecordId::Service(name.clone()));
            step.event(EventKind::Command, name, "service deleted");
        }
    }
}

/// The service, unless it is going away.
pub(crate) fn find<'s>(state: &'s State, name: &ServiceName) -> Result<&'s Service, Rejected> {
    let service =
        state.services.get(name).ok_or_else(|| Rejected::NotFound { kind: "service", name: name.to_string() })?;
    if service.deleting {
        return Err(Rejected::Conflict(format!("the service `{name}` is being deleted")));
    }
    Ok(service)
}
