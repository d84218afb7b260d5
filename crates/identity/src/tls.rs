//! Both ends of mutual TLS.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WantsClientCert, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    ServerConfig, SignatureScheme,
};
use sha2::{Digest, Sha256};

use crate::certificate::Validity;
use crate::clock::Clock;
use crate::error::IdentityError;
use crate::keys::HostKeys;

/// What a server shows; it can be exchanged while the server runs.
#[derive(Debug)]
pub struct Presented(std::sync::RwLock<Arc<CertifiedKey>>);

impl Presented {
    /// Shows this.
    pub fn new(certified: Arc<CertifiedKey>) -> Arc<Presented> {
        Arc::new(Presented(std::sync::RwLock::new(certified)))
    }

    /// Shows this to who connects from now on.
    pub fn replace(&self, certified: Arc<CertifiedKey>) {
        *self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner) = certified;
    }
}

impl ResolvesServerCert for Presented {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner)))
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn roots(authority: &CertificateDer<'static>) -> Result<Arc<RootCertStore>, IdentityError> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone()).map_err(|error| IdentityError::unusable("the authority's certificate", error))?;
    Ok(Arc::new(roots))
}

fn unusable(error: impl fmt::Display) -> IdentityError {
    IdentityError::unusable("the TLS configuration", error)
}

/// For a controller: shows its certificate, and asks for a host's; who joins has none yet. Whether a certificate has ended
/// is left to who looks at the request.
///
/// # Errors
/// When the authority's certificate cannot be used.
pub fn server_config(
    authority: &CertificateDer<'static>,
    presented: Arc<Presented>,
    clock: Clock,
) -> Result<ServerConfig, IdentityError> {
    let inner = WebPkiClientVerifier::builder_with_provider(roots(authority)?, provider())
        .allow_unauthenticated()
        .build()
        .map_err(unusable)?;
    let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&rustls::version::TLS13]);
    let mut config = builder
        .map_err(unusable)?
        .with_client_cert_verifier(Arc::new(AnyTime { inner, clock }))
        .with_cert_resolver(presented);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // A resumed session would carry a certificate that has been renewed since.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// For a host that has joined.
///
/// # Errors
/// When its keys cannot be used.
pub fn client_config(keys: &HostKeys, clock: Clock) -> Result<ClientConfig, IdentityError> {
    let resolver = rustls::sign::SingleCertAndKey::from(keys.certified().map_err(unusable)?.as_ref().clone());
    let verifier = Controllers { trust: Trust::Authority(roots(&keys.authority)?), clock, provider: provider() };
    Ok(verifier.builder()?.with_client_cert_resolver(Arc::new(resolver)))
}

/// For a host that joins: it knows the controllers by the authority's digest in its token.
///
/// # Errors
/// None that could be named; rustls' own.
pub fn joining_config(authority: [u8; 32], clock: Clock) -> Result<ClientConfig, IdentityError> {
    let verifier = Controllers { trust: Trust::Digest(authority), clock, provider: provider() };
    Ok(verifier.builder()?.with_no_client_auth())
}

fn unix(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

fn validity(certificate: &CertificateDer<'_>) -> Result<Validity, Error> {
    Validity::of(certificate).map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))
}

/// Checks a host's certificate, but not its time.
#[derive(Debug)]
struct AnyTime {
    inner: Arc<dyn ClientCertVerifier>,
    clock: Clock,
}

impl ClientCertVerifier for AnyTime {
    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let at = validity(certificate)?.nearest(self.clock.now());
        self.inner.verify_client_cert(certificate, chain, unix(at))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// How controllers are known.
#[derive(Debug)]
enum Trust {
    /// By their authority.
    Authority(Arc<RootCertStore>),
    /// By the digest of an authority that they show themselves.
    Digest([u8; 32]),
}

/// Checks a controller's certificate, by the process's own clock; one that has not begun by it will do.
#[derive(Debug)]
struct Controllers {
    trust: Trust,
    clock: Clock,
    provider: Arc<CryptoProvider>,
}

impl Controllers {
    fn builder(self) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, IdentityError> {
        let builder = ClientConfig::builder_with_provider(Arc::clone(&self.provider));
        let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]).map_err(unusable)?;
        Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(self)))
    }

    fn roots(&self, chain: &[CertificateDer<'_>]) -> Option<Arc<RootCertStore>> {
        match &self.trust {
            Trust::Authority(known) => Some(Arc::clone(known)),
            Trust::Digest(digest) => {
                let authority = chain.iter().find(|one| Sha256::digest(one).as_slice() == digest)?;
                roots(&authority.clone().into_owned()).ok()
            }
        }
    }
}

impl ServerCertVerifier for Controllers {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let roots = self.roots(chain).ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let inner = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&self.provider)).build();
        let at = self.clock.now().max(validity(certificate)?.from);
        let inner = inner.map_err(|error| Error::General(error.to_string()))?;
        inner.verify_server_cert(certificate, chain, name, ocsp, unix(at))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let schemes = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, schemes)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let schemes = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, schemes)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
