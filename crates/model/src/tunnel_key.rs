//! The public key of a host's end of the encrypted tunnels.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// A public key of WireGuard (Curve25519), written in base64 as `wg` does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TunnelKey(pub [u8; 32]);

/// A text that is no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no public key of a tunnel: that is 32 bytes in base64, 44 characters")]
pub struct TunnelKeyError(String);

impl FromStr for TunnelKey {
    type Err = TunnelKeyError;

    fn from_str(text: &str) -> Result<TunnelKey, TunnelKeyError> {
        let bytes = STANDARD.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(TunnelKey).ok_or_else(|| TunnelKeyError(text.to_owned()))
    }
}

impl fmt::Display for TunnelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for TunnelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TunnelKey({self})")
    }
}

impl TryFrom<String> for TunnelKey {
    type Error = TunnelKeyError;

    fn try_from(text: String) -> Result<TunnelKey, TunnelKeyError> {
        text.parse()
    }
}

impl From<TunnelKey> for String {
    fn from(key: TunnelKey) -> String {
        key.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_written_as_wg_writes_them() {
        let text = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
        let key: TunnelKey = text.parse().unwrap();
        assert_eq!((key.0[0], key.to_string().as_str()), (0xc5, text));
        for wrong in ["", "xTIB", "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg", &"!".repeat(44)] {
            assert!(wrong.parse::<TunnelKey>().is_err(), "{wrong}");
        }
    }
}
