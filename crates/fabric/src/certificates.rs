//! Certificates of services: which there are, and who needs them.

use std::sync::Arc;

use mayfly_model::{
    DeploymentKey, EventKind, ServiceCertificate, ServiceConfiguration, ServiceName, Thumbprint, Version, limits,
};

use crate::command::Rejected;
use crate::record::{Record, RecordId};
use crate::services;
use crate::state::State;
use crate::step::Step;

pub(crate) fn add(step: &mut Step<'_>, certificate: ServiceCertificate) -> Result<(), Rejected> {
    let (service, thumbprint) = (certificate.service.clone(), certificate.thumbprint.clone());
    services::find(step.state, &service)?;
    if step.state.certificates.contains_key(&(service.clone(), thumbprint.clone())) {
        return Err(Rejected::AlreadyExists { kind: "certificate", name: thumbprint.to_string() });
    }
    if step.state.certificates_of(&service).count() >= limits::CERTIFICATES_MAX {
        let most = limits::CERTIFICATES_MAX;
        return Err(Rejected::Conflict(format!("`{service}` has {most} certificates, and no service can have more")));
    }
    step.event(EventKind::Command, &service, format!("certificate {thumbprint} added: {}", certificate.subject));
    step.put(Record::Certificate(Arc::new(ServiceCertificate { added: step.now, ..certificate })));
    Ok(())
}

pub(crate) fn delete(step: &mut Step<'_>, service: &ServiceName, thumbprint: &Thumbprint) -> Result<(), Rejected> {
    services::find(step.state, service)?;
    if !step.state.certificates.contains_key(&(service.clone(), thumbprint.clone())) {
        let name = format!("{thumbprint}` of the service `{service}");
        return Err(Rejected::NotFound { kind: "certificate", name });
    }
    if let Some(user) = user_of(step.state, service, thumbprint) {
        return Err(Rejected::Conflict(format!("the certificate {thumbprint} is in use by {user}")));
    }
    step.delete(RecordId::Certificate(service.clone(), thumbprint.clone()));
    step.event(EventKind::Command, service, format!("certificate {thumbprint} deleted"));
    Ok(())
}

/// Deletes those of a service that is gone.
pub(crate) fn delete_all(step: &mut Step<'_>, service: &ServiceName) {
    let all: Vec<Thumbprint> = step.state.certificates_of(service).map(|one| one.thumbprint.clone()).collect();
    for thumbprint in all {
        step.delete(RecordId::Certificate(service.clone(), thumbprint));
    }
}

/// Whether the service has what a configuration names.
pub(crate) fn check(
    state: &State,
    service: &ServiceName,
    configuration: &ServiceConfiguration,
) -> Result<(), Rejected> {
    let missing =
        |thumbprint: &&Thumbprint| !state.certificates.contains_key(&(service.clone(), Thumbprint::clone(thumbprint)));
    match named(configuration).find(missing) {
        None => Ok(()),
        Some(thumbprint) => Err(Rejected::Conflict(format!(
            "the service `{service}` has no certificate {thumbprint}, which the configuration names; \
             `mayfly certificate add {service} FILE` adds it"
        ))),
    }
}

fn named(configuration: &ServiceConfiguration) -> impl Iterator<Item = &Thumbprint> {
    configuration.roles.iter().flat_map(|role| &role.certificates).map(|(_, thumbprint)| thumbprint)
}

fn user_of<'s>(state: &'s State, service: &ServiceName, thumbprint: &Thumbprint) -> Option<&'s DeploymentKey> {
    let uses = |version: &Version| named(&version.configuration).any(|one| one == thumbprint);
    let mut deployments = state.deployments.values().filter(|one| one.key.service == *service);
    deployments.find(|one| uses(&one.version) || one.older.values().any(uses)).map(|one| &one.key)
}
