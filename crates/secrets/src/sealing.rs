//! Sealing what is stored.

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, RandomizedNonceKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};

use crate::error::SecretError;

/// What the first byte of sealed bytes says of the form of the rest.
const FORM: u8 = 1;

/// The key under which a fabric's secrets lie in its store.
pub struct SealingKey(RandomizedNonceKey);

struct Length;

impl KeyType for Length {
    fn len(&self) -> usize {
        AES_256_GCM.key_len()
    }
}

impl SealingKey {
    /// The key that follows from a secret: HKDF-SHA-256 (RFC 5869), for AES-256 in Galois counter mode.
    ///
    /// # Errors
    /// When the library fails.
    pub fn from_secret(secret: &[u8]) -> Result<SealingKey, SecretError> {
        let failed = |_| SecretError::new("the sealing key cannot be made");
        let made = Salt::new(HKDF_SHA256, b"mayfly").extract(secret);
        let mut key = [0; 32];
        made.expand(&[b"sealed records, form 1"], Length).map_err(failed)?.fill(&mut key).map_err(failed)?;
        Ok(SealingKey(RandomizedNonceKey::new(&AES_256_GCM, &key).map_err(failed)?))
    }

    /// Seals `secret` so that it opens under the same `name` only.
    ///
    /// # Errors
    /// When the library fails.
    pub fn seal(&self, name: &str, secret: &[u8]) -> Result<Vec<u8>, SecretError> {
        let mut sealed = secret.to_vec();
        let nonce = self.0.seal_in_place_append_tag(Aad::from(name), &mut sealed);
        let nonce = nonce.map_err(|_| SecretError::new("it cannot be sealed"))?;
        Ok([&[FORM][..], nonce.as_ref(), &sealed].concat())
    }

    /// Opens what was sealed under `name`.
    ///
    /// # Errors
    /// When it was sealed by another fabric's authority or under another name, or is damaged.
    pub fn open(&self, name: &str, sealed: &[u8]) -> Result<Vec<u8>, SecretError> {
        let failed = || {
            SecretError::new(format!(
                "`{name}` does not open: it is damaged, or the authority that sealed it was another"
            ))
        };
        let (form, rest) = sealed.split_first().ok_or_else(failed)?;
        let (nonce, rest) = rest.split_first_chunk::<NONCE_LEN>().ok_or_else(failed)?;
        if *form != FORM {
            return Err(failed());
        }
        let mut rest = rest.to_vec();
        let opened = self.0.open_in_place(nonce.into(), Aad::from(name), &mut rest).map_err(|_| failed())?;
        Ok(opened.to_vec())
    }
}
