//! The authority: the key that makes a fabric's certificates.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use crate::certificate::{HOST_SUFFIX, SERIAL_MARK};
use crate::error::IdentityError;
use crate::keys::{certified, replace};
use crate::token::hex;

/// How long the authority's own certificate lasts, in seconds: 20 years of 365 days.
const AUTHORITY_LIFE: u64 = 20 * 365 * 86_400;
/// How long before it is made a certificate begins: another machine's clock may be behind.
const BACKDATED: u64 = 3600;

/// The authority of a fabric.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    /// Its certificate, as PEM.
    pub pem: String,
}

impl Authority {
    /// The authority in the files `authority.pem` and `authority.key` of a folder, which are made if neither is there.
    /// Controllers that share a store have to share these files too.
    ///
    /// # Errors
    /// When a file cannot be read, written or used, or one of them is missing.
    pub fn open(folder: &Path, now: u64) -> Result<Authority, IdentityError> {
        let (certificate, key) = (folder.join("authority.pem"), folder.join("authority.key"));
        fs::create_dir_all(folder).map_err(IdentityError::file("create", folder))?;
        // Controllers that start at the same time must not make one each.
        let lock = fs::File::open(folder).map_err(IdentityError::file("open", folder))?;
        lock.lock().map_err(IdentityError::file("lock", folder))?;
        match (certificate.exists(), key.exists()) {
            (false, false) => Authority::found(folder, now)?,
            (true, true) => {}
            (there, _) => {
                let (missing, there) = if there { (&key, &certificate) } else { (&certificate, &key) };
                let why = format!("{} is there, but {} is missing", there.display(), missing.display());
                return Err(IdentityError::unusable("the authority", why));
            }
        }
        let read = |path: &Path| fs::read_to_string(path).map_err(IdentityError::file("read", path));
        let (pem, key) = (read(&certificate)?, read(&key)?);
        let failed = |why: String| IdentityError::unusable(certificate.display(), why);
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| failed(error.to_string()))?;
        let key = KeyPair::from_pem(&key).map_err(|error| failed(format!("its key: {error}")))?;
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(|error| failed(error.to_string()))?;
        Ok(Authority { issuer, certificate: der, pem })
    }

    /// Makes an authority in a folder. The key is written first: a certificate without its key would be of no use.
    fn found(folder: &Path, now: u64) -> Result<(), IdentityError> {
        let failed = |error: rcgen::Error| IdentityError::unusable("a new authority", error);
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::default();
        // Two fabrics' authorities must not be taken for each other, by people either.
        params.distinguished_name = named(&format!("Mayfly authority {}", hex(&rand::random::<[u8; 4]>())));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params.not_before, params.not_after) = window(now, AUTHORITY_LIFE)?;
        let certificate = params.self_signed(&key).map_err(failed)?;
        replace(&folder.join("authority.key"), &key.serialize_pem())?;
        replace(&folder.join("authority.pem"), &certificate.pem())
    }

    /// The SHA-256 of the certificate, which join tokens carry.
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(&self.certificate).into()
    }

    /// The certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Its private key (PKCS #8, DER): what other keys of the fabric are derived from.
    pub fn secret(&self) -> Vec<u8> {
        self.issuer.key().serialize_der()
    }

    /// Makes a host's certificate for the key of `request`, valid from `now` for `life` seconds.
    ///
    /// # Errors
    /// When the request is not one, or was not signed with its key.
    pub fn sign_host(
        &self,
        request: &str,
        host: &str,
        enrolment: u64,
        now: u64,
        life: u64,
    ) -> Result<String, IdentityError> {
        let failed = |error: rcgen::Error| IdentityError::unusable("the certificate request", error);
        // What the request asks for besides does not count.
        let asked = CertificateSigningRequestParams::from_pem(request).map_err(failed)?;
        let name = format!("{host}{HOST_SUFFIX}");
        let mut params = self.leaf(host, now, life)?;
        params.subject_alt_names = vec![SanType::DnsName(name.try_into().map_err(failed)?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let serial = [&[SERIAL_MARK][..], &enrolment.to_be_bytes(), &rand::random::<[u8; 7]>()].concat();
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let signed = params.signed_by(&asked.public_key, &self.issuer).map_err(failed)?;
        Ok(signed.pem())
    }

    /// The SHA-256 of the public key that a request is for, in hexadecimal digits.
    ///
    /// # Errors
    /// When the request is not one.
    pub fn key_of(request: &str) -> Result<String, IdentityError> {
        let asked = CertificateSigningRequestParams::from_pem(request)
            .map_err(|error| IdentityError::unusable("the certificate request", error))?;
        Ok(hex(&Sha256::digest(rcgen::PublicKeyData::subject_public_key_info(&asked.public_key))))
    }

    /// A new key and certificate for a controller, or another server, at these addresses. The authority's own certificate
    /// follows, so that a host that joins can compare its digest.
    ///
    /// # Errors
    /// When the times cannot be written.
    pub fn make_server(
        &self,
        addresses: &[IpAddr],
        now: u64,
        life: u64,
    ) -> Result<Arc<rustls::sign::CertifiedKey>, IdentityError> {
        let (chain, key) = self.server_parts(addresses, now, life)?;
        let key = PrivateKeyDer::try_from(key.serialize_der())
            .map_err(|why| IdentityError::unusable("a controller's new key", why))?;
        certified(chain, &key).map_err(|error| IdentityError::unusable("a controller's new key", error))
    }

    /// The same as PEM, for programs that read files: certificate and key.
    ///
    /// # Errors
    /// As [`Authority::make_server`].
    pub fn make_server_pem(
        &self,
        addresses: &[IpAddr],
        now: u64,
        life: u64,
    ) -> Result<(String, String), IdentityError> {
        let (params, key) = self.server_params(addresses, now, life)?;
        let signed = params.signed_by(&key, &self.issuer);
        let signed = signed.map_err(|error| IdentityError::unusable("a new certificate", error))?;
        Ok((signed.pem(), key.serialize_pem()))
    }

    fn server_parts(
        &self,
        addresses: &[IpAddr],
        now: u64,
        life: u64,
    ) -> Result<(Vec<CertificateDer<'static>>, KeyPair), IdentityError> {
        let (params, key) = self.server_params(addresses, now, life)?;
        let signed = params.signed_by(&key, &self.issuer);
        let signed = signed.map_err(|error| IdentityError::unusable("a controller's new certificate", error))?;
        Ok((vec![signed.der().clone(), self.certificate.clone()], key))
    }

    fn server_params(
        &self,
        addresses: &[IpAddr],
        now: u64,
        life: u64,
    ) -> Result<(CertificateParams, KeyPair), IdentityError> {
        let key = KeyPair::generate().map_err(|error| IdentityError::unusable("a new key", error))?;
        let mut params = self.leaf("controller", now, life)?;
        params.subject_alt_names = addresses.iter().copied().map(SanType::IpAddress).collect();
        // As a client too: etcd's gateway talks to etcd itself with the server's certificate.
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        Ok((params, key))
    }

    fn leaf(&self, name: &str, now: u64, life: u64) -> Result<CertificateParams, IdentityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = named(name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = window(now, life)?;
        Ok(params)
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

/// From when to when. In seconds, as the calendar has days that a year later are not there.
fn window(now: u64, life: u64) -> Result<(OffsetDateTime, OffsetDateTime), IdentityError> {
    let at = |seconds: u64| {
        let time = i64::try_from(seconds).ok().and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
        // X.509 has no year 10000.
        time.ok_or_else(|| IdentityError::unusable("the clock", format!("it says {seconds} seconds since 1970")))
    };
    Ok((at(now.saturating_sub(BACKDATED))?, at(now.saturating_add(life))?))
}
