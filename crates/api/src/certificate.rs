//! Certificates of services, and what hosts need of them.

use mayfly_model::Thumbprint;
use serde::{Deserialize, Serialize};

/// How a certificate is handed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CertificateFormat {
    /// An archive of certificates and a key (PKCS #12).
    Pfx,
    /// Certificates and a key as PEM.
    Pem,
}

/// A certificate for a service.
#[derive(Clone, Serialize, Deserialize)]
pub struct CertificateRequest {
    /// What the data are.
    pub format: CertificateFormat,
    /// The file's bytes, in base64.
    pub data: String,
    /// What opens an archive.
    #[serde(default)]
    pub password: String,
}

impl std::fmt::Debug for CertificateRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // It holds a private key.
        write!(f, "CertificateRequest({:?})", self.format)
    }
}

/// A certificate of a service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CertificateView {
    /// Its SHA-1, by which configurations name it.
    pub thumbprint: Thumbprint,
    /// Whom it is for.
    pub subject: String,
    /// When it ends (RFC 3339).
    pub not_after: String,
    /// When it was added (RFC 3339).
    pub added: String,
    /// The certificate without its key (X.509, DER), in base64.
    pub certificate: String,
}

/// A certificate with its private key, for the host of a VM that gets it.
#[derive(Clone, Serialize, Deserialize)]
pub struct CertificateSecret {
    /// The certificate, then those that vouch for it (X.509, DER), each in base64.
    pub chain: Vec<String>,
    /// The private key (PKCS #8, DER), in base64.
    pub key: String,
}

impl std::fmt::Debug for CertificateSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CertificateSecret({} certificates)", self.chain.len())
    }
}
