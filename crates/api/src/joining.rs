//! How hosts come in.

use mayfly_model::HostName;
use serde::{Deserialize, Serialize};

/// A request for a join token.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TokenRequest {
    /// The only host that may use it; any one host if it is not said.
    pub host: Option<HostName>,
    /// How many minutes it is good for.
    pub minutes: u64,
}

/// A join token.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TokenView {
    /// By what it is known; not a secret.
    pub id: String,
    /// The only host that may use it.
    pub host: Option<HostName>,
    /// When it is of no use any more (RFC 3339).
    pub expires: String,
    /// The host that has used it.
    pub used_by: Option<HostName>,
    /// The token itself: only in the answer to who asked for it to be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// A host wants to come in.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The join token.
    pub token: String,
    /// Its name.
    pub host: HostName,
    /// A certificate request (PKCS #10) as PEM; only its key counts.
    pub request: String,
}

/// A host wants a new certificate.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RenewRequest {
    /// A certificate request (PKCS #10) as PEM; only its key counts.
    pub request: String,
}

/// A certificate.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CertificateAnswer {
    /// The host's, as PEM.
    pub certificate: String,
    /// The authority's, as PEM.
    pub authority: String,
}
