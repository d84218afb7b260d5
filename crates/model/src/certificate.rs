//! Certificates of services, which their guests get with the private keys.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::guest::{PASSWORD_ENCRYPTION, REMOTE_ACCESS};
use crate::name::ServiceName;
use crate::time::Time;

/// Why a text is not a thumbprint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no thumbprint: that is the SHA-1 of a certificate, 40 hexadecimal digits")]
pub struct ThumbprintError(String);

/// The SHA-1 of a certificate, by which configurations name it: 40 hexadecimal digits, in capitals.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Thumbprint(String);

impl Thumbprint {
    /// Reads a thumbprint. Blanks and colons between digits, and marks that cannot be seen, which some programs copy along
    /// with it, do not count.
    ///
    /// # Errors
    /// When what is left is not 40 hexadecimal digits.
    pub fn new(text: impl Into<String>) -> Result<Thumbprint, ThumbprintError> {
        let text = text.into();
        let digits: String = text
            .chars()
            .filter(|c| !c.is_whitespace() && !matches!(c, ':' | '\u{200e}' | '\u{200f}' | '\u{feff}'))
            .collect();
        match digits.len() == 40 && digits.chars().all(|c| c.is_ascii_hexdigit()) {
            true => Ok(Thumbprint(digits.to_ascii_uppercase())),
            false => Err(ThumbprintError(text)),
        }
    }

    /// The thumbprint whose bytes these are.
    pub fn of(hash: &[u8]) -> Thumbprint {
        Thumbprint(hash.iter().map(|byte| format!("{byte:02X}")).collect())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Thumbprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Thumbprint {
    type Err = ThumbprintError;

    fn from_str(text: &str) -> Result<Thumbprint, ThumbprintError> {
        Thumbprint::new(text)
    }
}

impl TryFrom<String> for Thumbprint {
    type Error = ThumbprintError;

    fn try_from(text: String) -> Result<Thumbprint, ThumbprintError> {
        Thumbprint::new(text)
    }
}

impl From<Thumbprint> for String {
    fn from(thumbprint: Thumbprint) -> String {
        thumbprint.0
    }
}

/// A certificate that a role wants, as its definition names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written")]
pub struct CertificateDefinition {
    /// Its name in the definition and the configuration.
    pub name: String,
    /// Whose store it goes to in Windows guests: `LocalMachine` or `CurrentUser`.
    pub store_location: String,
    /// Which store there, for example `My`.
    pub store_name: String,
}

/// Earlier builds wrote the name alone.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Name(String),
    Whole { name: String, store_location: String, store_name: String },
}

impl From<Written> for CertificateDefinition {
    fn from(written: Written) -> CertificateDefinition {
        match written {
            Written::Name(name) => CertificateDefinition::of_machine(name),
            Written::Whole { name, store_location, store_name } => {
                CertificateDefinition { name, store_location, store_name }
            }
        }
    }
}

impl CertificateDefinition {
    /// One that goes where certificates go unless it is said.
    pub fn of_machine(name: impl Into<String>) -> CertificateDefinition {
        let (store_location, store_name) = ("LocalMachine".to_owned(), "My".to_owned());
        CertificateDefinition { name: name.into(), store_location, store_name }
    }
}

/// A certificate of a service, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceCertificate {
    /// The service.
    pub service: ServiceName,
    /// Its thumbprint.
    pub thumbprint: Thumbprint,
    /// Whom it is for, as text.
    pub subject: String,
    /// When it ends.
    pub not_after: Time,
    /// When it was added.
    pub added: Time,
    /// The certificate (X.509, DER), in base64.
    pub certificate: String,
    /// Its private key and who vouches for it, sealed under a key that only the controllers have, in base64.
    pub sealed: String,
}

/// A certificate of a role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestCertificate {
    /// What the role calls it.
    pub definition: CertificateDefinition,
    /// Which it is.
    pub thumbprint: Thumbprint,
}

impl GuestCertificate {
    /// Whether it is the one to which the password for remote access is encrypted.
    pub fn opens_password(&self) -> bool {
        self.definition.name.strip_prefix(REMOTE_ACCESS) == Some(PASSWORD_ENCRYPTION)
    }
}
