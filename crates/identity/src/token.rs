//! Join tokens: what lets a new host in, once.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use crate::error::IdentityError;

const PREFIX: &str = "mayfly-join";

/// A join token: a secret, and the digest by which a host that knows nobody yet knows the controllers. Written
/// `mayfly-join.SECRET.AUTHORITY`, both in hexadecimal digits.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    secret: [u8; 16],
    /// The SHA-256 of the authority's certificate.
    pub authority: [u8; 32],
}

impl JoinToken {
    /// A new token for the fabric with this authority.
    pub fn generate(authority: [u8; 32]) -> JoinToken {
        JoinToken { secret: rand::random(), authority }
    }

    /// By what the controllers know it. The secret cannot be computed from it, so they need not keep that.
    pub fn id(&self) -> String {
        hex(&Sha256::digest(self.secret)[..16])
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}.{}.{}", hex(&self.secret), hex(&self.authority))
    }
}

impl fmt::Debug for JoinToken {
    /// Without the secret, so that it does not get into logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({})", self.id())
    }
}

impl FromStr for JoinToken {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<JoinToken, IdentityError> {
        let read = || {
            let (secret, authority) = text.trim().strip_prefix(PREFIX)?.strip_prefix('.')?.split_once('.')?;
            Some(JoinToken { secret: unhex(secret)?, authority: unhex(authority)? })
        };
        let why = "it has the form mayfly-join.SECRET.AUTHORITY; `mayfly token create` makes one";
        read().ok_or_else(|| IdentityError::unusable("the join token", why))
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if text.len() != N * 2 || !text.is_ascii() {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[at * 2..at * 2 + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_back_and_nothing_else_does() {
        let token = JoinToken::generate([7; 32]);
        assert_eq!(token.to_string().parse::<JoinToken>().unwrap(), token);
        assert_ne!(token.id(), JoinToken::generate([7; 32]).id());
        assert!(!format!("{token:?}").contains(&hex(&token.secret)));
        let text = token.to_string();
        for bad in ["", "mayfly-join", "mayfly-join.ä.b", &text[1..], &text[..text.len() - 1], &format!("{text}0")] {
            assert!(bad.parse::<JoinToken>().is_err(), "{bad}");
        }
    }
}
