//! How hosts come in: tokens that let one in once, and the hosts that have come.

use serde::{Deserialize, Serialize};

use crate::name::HostName;
use crate::time::Time;

/// A join token, as the fabric keeps it: the secret is only in what the operator was shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostToken {
    /// A digest of the secret.
    pub id: String,
    /// The only host that may use it, if it is for one.
    pub host: Option<HostName>,
    /// When it was made.
    pub made: Time,
    /// From when on it is of no use.
    pub expires: Time,
    /// The host that has used it, and the digest of its key: the same host may ask again if the answer was lost.
    pub used: Option<(HostName, String)>,
}

/// A host that has joined. Its certificates carry the number; others of the same name do not count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolment {
    /// Which host.
    pub host: HostName,
    /// A random number, another one each time that a host of this name joins.
    pub number: u64,
    /// When it joined.
    pub at: Time,
}
