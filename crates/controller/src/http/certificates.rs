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
use mayfly_model::{GuestGoal, HostName, ServiceCertificate, ServiceName, Thumbprint, Time, Version, VmId};
use mayfly_secrets::{KeyedCertificate, SecretError, envelope};
use tokio::sync::Semaphore;

use super::Shared;
use super::error::{Failure, invalid};
use super::events::rfc3339;

/// Most letters of a file in base64: 256 KiB of it.
const DATA_MAX: usize = (256 << 10) * 4 / 3 + 4;
/// An archive's maker says how long it takes to read; one at a time takes no more than one core.
static READING: Semaphore = Semaphore::const_new(1);

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
    if request.data.len() > DATA_MAX {
        return Err(invalid(format!("{} bytes are too many for a certificate", request.data.len() / 4 * 3)));
    }
    let _turn = READING.acquire().await.map_err(|error| ApiError::new(ErrorCode::Internal, error.to_string()))?;
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

/// Whether each role's password for remote access opens: an update that no guest could make a user of is not begun.
pub(super) async fn check_passwords(shared: &Shared, service: &ServiceName, version: &Version) -> Result<(), Failure> {
    for role in &version.definition.roles {
        let Some((role, configuration)) = version.role(&role.name) else { continue };
        let guest = GuestGoal::of(role, configuration);
        let Some((access, wanted)) = guest.remote_access.as_ref().zip(guest.password_certificate()) else { continue };
        let key = (service.clone(), wanted.thumbprint.clone());
        let stored = shared.driver.read(|core| core.state().certificates().get(&key).cloned()).await?;
        // That it is missing is said by who knows what else is.
        let Some(stored) = stored else { continue };
        let secret = unseal(shared, &stored)?;
        let keyed = KeyedCertificate { chain: Vec::new(), key: STANDARD.decode(&secret.key).unwrap_or_default() };
        let sealed = STANDARD.decode(&access.password).map_err(|error| error.to_string());
        let opened = sealed.and_then(|sealed| envelope::open(&sealed, &keyed).map_err(|error| error.to_string()));
        if let Err(why) = opened {
            let (role, thumbprint) = (&role.name, &wanted.thumbprint);
            return Err(invalid(format!(
                "`{role}`: the password for remote access does not open with the certificate {thumbprint}: {why}; \
                 `mayfly certificate encrypt {service} {thumbprint}` makes one that does"
            )));
        }
    }
    Ok(())
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
    let secrets: Result<Vec<CertificateSecret>, Failure> =
        wanted.ok_or_else(missing)?.into_iter().map(|one| unseal(&shared, &one)).collect();
    Ok(Json(secrets?))
}

fn unseal(shared: &Shared, one: &ServiceCertificate) -> Result<CertificateSecret, Failure> {
    let sealed = STANDARD.decode(&one.sealed).unwrap_or_default();
    let opened = shared.identity.sealing.open(&sealed_name(&one.service, &one.thumbprint), &sealed)?;
    serde_json::from_slice(&opened).map_err(|error| ApiError::new(ErrorCode::Internal, error.to_string()).into())
}

/// The certificates of a VM that is on that host, in the order of its role's definition; none if one is missing.
fn wanted_by(state: &Records, host: &HostName, vm: VmId) -> Option<Vec<Arc<ServiceCertificate>>> {
    let instance = state.instances_on(host).find(|one| one.wanted_vm().is_some_and(|wanted| wanted.id == vm))?;
    let (role, configuration) = state.role_of(instance)?;
    let service = &instance.key.deployment.service;
    let of = |thumbprint: &Thumbprint| state.certificates().get(&(service.clone(), thumbprint.clone())).cloned();
    let mut wanted = Vec::new();
    for one in GuestGoal::of(role, configuration).certificates {
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
