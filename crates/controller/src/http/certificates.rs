//! Certificates of services: handed in by users, sealed for the store, opened for the hosts of their VMs.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::{Extension, Json};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mayfly_api::{ApiError, CertificateFormat, CertificateRequest, CertificateSecret, CertificateView, ErrorCode};
use mayfly_fabric::{Command, State as Records};
use mayfly_identity::Enrolled;
use mayfly_model::{HostName, ServiceCertificate, ServiceName, Thumbprint, Time, VmId};
use mayfly_secrets::{KeyedCertificate, SecretError};

use super::Shared;
use super::error::{Failure, invalid};
use super::events::rfc3339;

pub(super) async fn list(
    State(shared): State<Arc<Shared>>,
    Path(service): Path<String>,
) -> Result<Json<Vec<CertificateView>>, Failure> {
    let service = ServiceName::new(service)?;
    let all = |core: &mayfly_fabric::Core| {
        let known = core.state().services().contains_key(&service);
        known.then(|| core.state().certificates_of(&service).map(|one| view(one)).collect())
    };
    let views = shared.driver.read(all).await?;
    Ok(Json(views.ok_or_else(|| ApiError::new(ErrorCode::NotFound, format!("there is no service `{service}`")))?))
}

fn view(certificate: &ServiceCertificate) -> CertificateView {
    CertificateView {
        thumbprint: certificate.thumbprint.clone(),
        subject: certificate.subject.clone(),
        not_after: rfc3339(certificate.not_after),
        added: rfc3339(certificate.added),
        certificate: certificate.certificate.clone(),
    }
}

pub(super) async fn add(
    State(shared): State<Arc<Shared>>,
    Path(service): Path<String>,
    headers: HeaderMap,
    Json(request): Json<CertificateRequest>,
) -> Result<Json<CertificateView>, Failure> {
    let service = ServiceName::new(service)?;
    let data = STANDARD.decode(&request.data).map_err(|error| invalid(format!("`data` is not base64: {error}")))?;
    // Stretching an archive's password takes as long as its maker wanted.
    let read = tokio::task::spawn_blocking(move || match request.format {
        CertificateFormat::Pfx => KeyedCertificate::read_pfx(&data, &request.password),
        CertificateFormat::Pem => KeyedCertificate::read_pem(&data),
    });
    let keyed = read.await.map_err(|error| ApiError::new(ErrorCode::Internal, error.to_string()))??;
    let public = keyed.public()?;
    let thumbprint = Thumbprint::of(&public.sha1);
    let name = sealed_name(&service, &thumbprint);
    let secret = serde_json::to_vec(&CertificateSecret {
        chain: keyed.chain.iter().map(|der| STANDARD.encode(der)).collect(),
        key: STANDARD.encode(&keyed.key),
    });
    let secret = secret.map_err(|error| ApiError::new(ErrorCode::Internal, error.to_string()))?;
    let certificate = ServiceCertificate {
        service,
        thumbprint,
        subject: public.subject,
        not_after: Time(public.not_after.saturating_mul(1000)),
        added: Time(0),
        certificate: STANDARD.encode(&public.der),
        sealed: STANDARD.encode(shared.identity.sealing.seal(&name, &secret)?),
    };
    shared.command(&headers, Command::AddCertificate(certificate.clone())).await?;
    Ok(Json(view(&ServiceCertificate { added: shared.driver.now(), ..certificate })))
}

pub(super) async fn delete(
    State(shared): State<Arc<Shared>>,
    Path((service, thumbprint)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<(), Failure> {
    let thumbprint = Thumbprint::new(thumbprint).map_err(|error| invalid(error.to_string()))?;
    shared.command(&headers, Command::DeleteCertificate(ServiceName::new(service)?, thumbprint)).await
}

/// What a host's own VM gets, with the private keys: nobody else is told.
pub(super) async fn of_vm(
    State(shared): State<Arc<Shared>>,
    Extension(enrolled): Extension<Enrolled>,
    Path(vm): Path<u64>,
) -> Result<Json<Vec<CertificateSecret>>, Failure> {
    let host = HostName::new(enrolled.host)?;
    let wanted = shared.driver.read(|core| wanted_by(core.state(), &host, VmId(vm))).await?;
    let missing = || ApiError::new(ErrorCode::NotFound, format!("vm{vm} is not on {host}, or lacks a certificate"));
    let open = |one: Arc<ServiceCertificate>| {
        let sealed = STANDARD.decode(&one.sealed).unwrap_or_default();
        let opened = shared.identity.sealing.open(&sealed_name(&one.service, &one.thumbprint), &sealed)?;
        serde_json::from_slice(&opened)
            .map_err(|error| Failure::from(ApiError::new(ErrorCode::Internal, error.to_string())))
    };
    let secrets: Result<Vec<CertificateSecret>, Failure> = wanted.ok_or_else(missing)?.into_iter().map(open).collect();
    Ok(Json(secrets?))
}

/// The certificates of a VM that is on that host, in the order of its role's definition; none if one is missing.
fn wanted_by(state: &Records, host: &HostName, vm: VmId) -> Option<Vec<Arc<ServiceCertificate>>> {
    let instance = state.instances_on(host).find(|one| one.wanted_vm().is_some_and(|wanted| wanted.id == vm))?;
    let (role, configuration) = state.role_of(instance)?;
    let service = &instance.key.deployment.service;
    let of = |thumbprint: &Thumbprint| state.certificates().get(&(service.clone(), thumbprint.clone())).cloned();
    let mut wanted = Vec::new();
    for one in mayfly_model::GuestGoal::of(role, configuration).certificates {
        if !wanted.iter().any(|known: &Arc<ServiceCertificate>| known.thumbprint == one.thumbprint) {
            wanted.push(of(&one.thumbprint)?);
        }
    }
    Some(wanted)
}

/// Under which name a certificate's key is sealed: that of its record.
fn sealed_name(service: &ServiceName, thumbprint: &Thumbprint) -> String {
    format!("certificate/{service}/{thumbprint}")
}

impl From<SecretError> for Failure {
    fn from(error: SecretError) -> Failure {
        invalid(error.to_string())
    }
}
