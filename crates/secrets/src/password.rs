//! Passwords.

use rand::Rng;
use sha_crypt::{PasswordHasher, ShaCrypt};

use crate::error::SecretError;

/// A hash of a password as crypt(3) keeps it, SHA-512 (`$6$`), with salt of its own.
///
/// # Errors
/// When the library fails.
pub fn hash_password(password: &str) -> Result<String, SecretError> {
    let salt: [u8; 12] = rand::rng().random();
    let hash = ShaCrypt::SHA512.hash_password_with_salt(password.as_bytes(), &salt);
    hash.map(|hash| hash.to_string()).map_err(|error| SecretError::new(format!("the password: {error}")))
}

/// A password that nobody knows, for an account that has to have one: letters, digits and what Windows asks for beside them.
pub fn random_password() -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz23456789-_+=.:!";
    let mut random = rand::rng();
    let letters = (0..24).map(|_| char::from(LETTERS[random.random_range(0..LETTERS.len())]));
    letters.chain("aZ7!".chars()).collect()
}
