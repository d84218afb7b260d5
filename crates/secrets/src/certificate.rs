//! A service's certificate: read as people hand it in, and written as guests read it.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use p12_keystore::{
    Certificate, EncryptionAlgorithm, KeyStore, KeyStoreEntry, MacAlgorithm, Pkcs12Archive, PrivateKey, PrivateKeyChain,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::error::SecretError;

/// Rounds by which a guest's archive stretches its password, which is empty: the fewest that openssl(1) writes by itself.
const ROUNDS: u32 = 2048;
/// Most certificates of a chain.
const CHAIN_MAX: usize = 8;

/// What everybody may know of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicCertificate {
    /// The certificate (X.509, DER).
    pub der: Vec<u8>,
    /// Its SHA-1, by which configurations name it.
    pub sha1: [u8; 20],
    /// Whom it is for, as text.
    pub subject: String,
    /// When it ends, in seconds since the Unix epoch.
    pub not_after: u64,
}

impl PublicCertificate {
    /// Reads a certificate: DER, or the first one of PEM.
    ///
    /// # Errors
    /// When it is none.
    pub fn read(bytes: &[u8]) -> Result<PublicCertificate, SecretError> {
        match CertificateDer::from_pem_slice(bytes) {
            Ok(der) => PublicCertificate::of(der.as_ref()),
            Err(_) => PublicCertificate::of(bytes),
        }
    }

    fn of(der: &[u8]) -> Result<PublicCertificate, SecretError> {
        let (rest, parsed) = X509Certificate::from_der(der)
            .map_err(|error| SecretError::new(format!("that is no X.509 certificate: {error}")))?;
        if !rest.is_empty() {
            return Err(SecretError::new(format!("{} bytes follow the certificate's end", rest.len())));
        }
        Ok(PublicCertificate {
            der: der.to_vec(),
            sha1: sha1(der),
            subject: parsed.subject().to_string(),
            not_after: u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0),
        })
    }
}

fn sha1(der: &[u8]) -> [u8; 20] {
    let (hash, mut bytes) = (digest(&SHA1_FOR_LEGACY_USE_ONLY, der), [0; 20]);
    bytes.copy_from_slice(hash.as_ref());
    bytes
}

/// A certificate with its private key.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyedCertificate {
    /// The certificate, then those that vouch for it, each as DER.
    pub chain: Vec<Vec<u8>>,
    /// The private key (PKCS #8, DER).
    pub key: Vec<u8>,
}

impl std::fmt::Debug for KeyedCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeyedCertificate({} certificates, and a key)", self.chain.len())
    }
}

impl KeyedCertificate {
    /// Reads an archive of certificates and a private key (PKCS #12, often called PFX).
    ///
    /// # Errors
    /// When it is none, the password is wrong, or there is not exactly one key with its certificate in it.
    pub fn read_pfx(bytes: &[u8], password: &str) -> Result<KeyedCertificate, SecretError> {
        let archive = Pkcs12Archive::from_pkcs12(bytes, password).map_err(|error| match error {
            p12_keystore::error::Error::MacError(_) => {
                SecretError::new("the password is wrong, or the file is damaged")
            }
            other => SecretError::new(format!("that is no PKCS #12 archive (.pfx) that can be read: {other}")),
        })?;
        let [key] = archive.keys.as_slice() else {
            let found = archive.keys.len();
            return Err(SecretError::new(format!("the archive holds {found} private keys; it has to be one")));
        };
        let certificates = archive.certs.iter().map(|bag| bag.cert.as_der().to_vec()).collect();
        KeyedCertificate::join(key.key.as_der().to_vec(), certificates)
    }

    /// Reads a certificate, those that vouch for it and its private key, all as PEM.
    ///
    /// # Errors
    /// When something of that is missing.
    pub fn read_pem(bytes: &[u8]) -> Result<KeyedCertificate, SecretError> {
        let failed = |what: &str, error| SecretError::new(format!("{what}: {error}"));
        let key = PrivateKeyDer::from_pem_slice(bytes).map_err(|error| match error {
            rustls::pki_types::pem::Error::NoItemsFound => SecretError::new(
                "the file has no private key that is not encrypted: put certificate and key into one file, or into an \
                 archive (`openssl pkcs12 -export -inkey KEY -in CERTIFICATE -out ARCHIVE.pfx`)",
            ),
            other => failed("the private key", other),
        })?;
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
        let certificates = certificates.map_err(|error| failed("the certificates", error))?;
        let certificates = certificates.into_iter().map(|der| der.as_ref().to_vec()).collect();
        let pair = rcgen::KeyPair::try_from(&key)
            .map_err(|error| SecretError::new(format!("the private key cannot be used: {error}")))?;
        KeyedCertificate::join(pair.serialize_der(), certificates)
    }

    /// Finds the certificate of a key, and who vouches for it.
    fn join(key: Vec<u8>, mut certificates: Vec<Vec<u8>>) -> Result<KeyedCertificate, SecretError> {
        let parsed = PrivateKeyDer::try_from(key.as_slice()).map_err(|why| SecretError::new(why.to_owned()))?;
        let pair = rcgen::KeyPair::try_from(&parsed)
            .map_err(|error| SecretError::new(format!("the private key is of a kind that is not known: {error}")))?;
        let public = pair.public_key_raw();
        let is_of_key = |der: &Vec<u8>| {
            let parsed = X509Certificate::from_der(der).ok();
            parsed.is_some_and(|(_, parsed)| *parsed.public_key().subject_public_key.data == *public)
        };
        let Some(leaf) = certificates.iter().position(is_of_key) else {
            return Err(SecretError::new("no certificate in it belongs to the private key"));
        };
        let mut chain = vec![certificates.swap_remove(leaf)];
        while let Some(next) = issuer_in(&chain, &certificates) {
            if chain.len() == CHAIN_MAX {
                break;
            }
            chain.push(certificates.swap_remove(next));
        }
        Ok(KeyedCertificate { chain, key })
    }

    /// What everybody may know of it.
    ///
    /// # Errors
    /// When it holds no certificate.
    pub fn public(&self) -> Result<PublicCertificate, SecretError> {
        self.chain.first().map_or_else(
            || Err(SecretError::new("there is no certificate beside the key")),
            |leaf| PublicCertificate::of(leaf),
        )
    }
}

/// Which of the certificates vouches for the last one of the chain, if that does not do so itself.
fn issuer_in(chain: &[Vec<u8>], certificates: &[Vec<u8>]) -> Option<usize> {
    let (_, last) = X509Certificate::from_der(chain.last()?).ok()?;
    if last.issuer().as_raw() == last.subject().as_raw() {
        return None;
    }
    certificates.iter().position(|der| {
        let parsed = X509Certificate::from_der(der).ok();
        parsed.is_some_and(|(_, parsed)| parsed.subject().as_raw() == last.issuer().as_raw())
    })
}

/// The archive (PKCS #12) of a guest's certificates, with the empty password that agents expect: what protects it is the
/// envelope. Its ciphers are those that each version of Windows and of OpenSSL reads.
///
/// # Errors
/// When a certificate or key cannot be written.
pub fn guest_pfx(certificates: &[KeyedCertificate]) -> Result<Vec<u8>, SecretError> {
    let failed = |error: p12_keystore::error::Error| SecretError::new(format!("the guest's archive: {error}"));
    let mut store = KeyStore::new();
    for (number, one) in certificates.iter().enumerate() {
        let key = PrivateKey::from_der(&one.key).map_err(failed)?;
        let chain: Result<Vec<_>, _> = one.chain.iter().map(|der| Certificate::from_der(der)).collect();
        let id = vec![0, 0, 0, u8::try_from(number + 1).unwrap_or(u8::MAX)];
        let chain = PrivateKeyChain::new(id, key, chain.map_err(failed)?);
        store.add_entry(&format!("certificate {}", number + 1), KeyStoreEntry::PrivateKeyChain(chain));
    }
    let writer = store.writer("").encryption_algorithm(EncryptionAlgorithm::PbeWithShaAnd3KeyTripleDesCbc);
    let writer = writer.encryption_iterations(ROUNDS).mac_algorithm(MacAlgorithm::HmacSha1);
    writer.mac_iterations(ROUNDS).write().map_err(failed)
}
