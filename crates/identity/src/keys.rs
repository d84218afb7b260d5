//! A host's key and certificate, and how they are kept.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::certificate::{Enrolled, Validity};
use crate::error::IdentityError;

/// A key without a certificate yet, and the request for one.
pub struct Request {
    key: KeyPair,
    /// The request, as PEM: the public key, signed with the private one.
    pub pem: String,
}

impl Request {
    /// A new key.
    ///
    /// # Errors
    /// When there is no randomness, which no machine lacks.
    pub fn generate() -> Result<Request, IdentityError> {
        Request::with(KeyPair::generate().map_err(|error| IdentityError::unusable("a new key", error))?)
    }

    /// The key in a file; a new one is made, and written there, if there is none. So a request that is repeated after a
    /// crash is for the same key.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn kept(path: &Path) -> Result<Request, IdentityError> {
        match fs::read_to_string(path) {
            Ok(text) => {
                Request::with(KeyPair::from_pem(&text).map_err(|error| IdentityError::unusable(path.display(), error))?)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let request = Request::generate()?;
                replace(path, &request.key.serialize_pem())?;
                Ok(request)
            }
            Err(error) => Err(IdentityError::file("read", path)(error)),
        }
    }

    fn with(key: KeyPair) -> Result<Request, IdentityError> {
        let failed = |error: rcgen::Error| IdentityError::unusable("a new request", error);
        let mut params = CertificateParams::default();
        // Who it is for is the authority's to say.
        params.distinguished_name = DistinguishedName::new();
        let pem = params.serialize_request(&key).and_then(|request| request.pem()).map_err(failed)?;
        Ok(Request { key, pem })
    }

    /// The key with the certificate that was made for it.
    ///
    /// # Errors
    /// When the certificates cannot be read, or are for another key.
    pub fn into_keys(self, certificate: &str, authority: &str) -> Result<HostKeys, IdentityError> {
        HostKeys::parse(&format!("{certificate}\n{authority}\n{}", self.key.serialize_pem()), "the answer")
    }
}

/// A host's key, its certificate, and the authority's certificate.
pub struct HostKeys {
    text: String,
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) authority: CertificateDer<'static>,
    pub(crate) key: PrivateKeyDer<'static>,
}

impl Clone for HostKeys {
    fn clone(&self) -> HostKeys {
        HostKeys {
            text: self.text.clone(),
            certificate: self.certificate.clone(),
            authority: self.authority.clone(),
            key: self.key.clone_key(),
        }
    }
}

impl std::fmt::Debug for HostKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HostKeys")
    }
}

impl HostKeys {
    /// Reads what [`HostKeys::write`] has written; none where there is no such file.
    ///
    /// # Errors
    /// When the file cannot be read, or is damaged.
    pub fn read(path: &Path) -> Result<Option<HostKeys>, IdentityError> {
        match fs::read_to_string(path) {
            Ok(text) => HostKeys::parse(&text, path.display()).map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(IdentityError::file("read", path)(error)),
        }
    }

    /// Writes them into a file that only its owner may read, whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), IdentityError> {
        replace(path, &self.text)
    }

    /// When the certificate is valid.
    ///
    /// # Errors
    /// Never for what could be read.
    pub fn validity(&self) -> Result<Validity, IdentityError> {
        Validity::of(&self.certificate)
    }

    /// Whom the certificate was made for.
    ///
    /// # Errors
    /// When it is not a host's certificate.
    pub fn enrolled(&self) -> Result<Enrolled, IdentityError> {
        Enrolled::of(&self.certificate)
    }

    fn parse(text: &str, what: impl ToString) -> Result<HostKeys, IdentityError> {
        let what = what.to_string();
        let failed = |why: String| IdentityError::unusable(&what, why);
        let mut certificates = CertificateDer::pem_slice_iter(text.as_bytes());
        let mut certificate = |name: &str| match certificates.next() {
            Some(Ok(certificate)) => Ok(certificate),
            Some(Err(error)) => Err(failed(error.to_string())),
            None => Err(failed(format!("it lacks the {name} certificate"))),
        };
        let (own, authority) = (certificate("host's")?, certificate("authority's")?);
        let key = PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|error| failed(error.to_string()))?;
        let keys = HostKeys { text: text.to_owned(), certificate: own, authority, key };
        keys.certified().map_err(|error| failed(error.to_string()))?;
        Ok(keys)
    }

    /// For TLS. Fails where key and certificate do not belong together.
    pub(crate) fn certified(&self) -> Result<Arc<rustls::sign::CertifiedKey>, rustls::Error> {
        certified(vec![self.certificate.clone()], &self.key)
    }
}

pub(crate) fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: &PrivateKeyDer<'static>,
) -> Result<Arc<rustls::sign::CertifiedKey>, rustls::Error> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    Ok(Arc::new(rustls::sign::CertifiedKey::from_der(chain, key.clone_key(), &provider)?))
}

/// Replaces a file that only its owner may read; a crash leaves the old one or the new one.
pub(crate) fn replace(path: &Path, text: &str) -> Result<(), IdentityError> {
    let new = path.with_extension("new");
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        path.parent().map_or(Ok(()), |folder| fs::File::open(folder)?.sync_all())
    };
    write().map_err(IdentityError::file("write", path))
}
