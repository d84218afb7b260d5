//! The private key of a host's end of the encrypted tunnels.

use std::fs;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::error::IdentityError;
use crate::keys::replace;

/// The private key in a file, in the form of `wg genkey`; a new one is made, and written there, if there is none. So a host
/// that is started again is known to the others by the key that they have.
///
/// # Errors
/// When the file cannot be read or written, or holds something else.
pub fn tunnel_secret(path: &Path) -> Result<[u8; 32], IdentityError> {
    match fs::read_to_string(path) {
        Ok(text) => {
            let key = STANDARD.decode(text.trim()).ok().and_then(|bytes| bytes.try_into().ok());
            key.ok_or_else(|| {
                IdentityError::unusable(
                    path.display(),
                    "it holds no key of 32 bytes in base64; remove it for a new one",
                )
            })
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let mut key: [u8; 32] = rand::random();
            // As Curve25519 wants it (RFC 7748, section 5).
            (key[0], key[31]) = (key[0] & 0xf8, (key[31] & 0x7f) | 0x40);
            replace(path, &(STANDARD.encode(key) + "\n"))?;
            Ok(key)
        }
        Err(error) => Err(IdentityError::file("read", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_host_keeps_its_key_to_itself() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tunnel.key");
        let key = tunnel_secret(&path).unwrap();
        assert_eq!(tunnel_secret(&path).unwrap(), key);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_ne!(tunnel_secret(&folder.path().join("other.key")).unwrap(), key);
        fs::write(&path, "nonsense").unwrap();
        let error = tunnel_secret(&path).unwrap_err().to_string();
        assert!(error.contains("tunnel.key") && error.contains("base64"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "nonsense");
    }
}
