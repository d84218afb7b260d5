//! What can be wrong with a secret.

/// What can be wrong with a secret. Nothing of the secret itself is in the message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SecretError(pub String);

impl SecretError {
    pub(crate) fn new(what: impl Into<String>) -> SecretError {
        SecretError(what.into())
    }
}
