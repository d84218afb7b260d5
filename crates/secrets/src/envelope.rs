//! Envelopes: messages that only who has a certificate's private key can open (CMS `EnvelopedData`, RFC 5652, with RSA as
//! RFC 3370 describes it). Agents and every tool that knows PKCS #7 open them.

use aes::cipher::block_padding::Pkcs7;
use aes::cipher::{BlockModeDecrypt, BlockModeEncrypt, KeyIvInit};
use aws_lc_rs::rsa::{Pkcs1PrivateDecryptingKey, Pkcs1PublicEncryptingKey, PrivateDecryptingKey, PublicEncryptingKey};
use cms::cert::IssuerAndSerialNumber;
use cms::cert::x509::serial_number::SerialNumber;
use cms::cert::x509::spki::AlgorithmIdentifierOwned;
use cms::content_info::{CmsVersion, ContentInfo};
use cms::enveloped_data::{
    EncryptedContentInfo, EnvelopedData, KeyTransRecipientInfo, RecipientIdentifier, RecipientInfo, RecipientInfos,
};
use der::asn1::{ObjectIdentifier, OctetString, SetOfVec};
use der::{Any, Decode, Encode};
use rand::RngCore;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::certificate::KeyedCertificate;
use crate::error::SecretError;

const ENVELOPED_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.3");
const DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.1");
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

/// What the content is encrypted with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cipher {
    /// AES with a key of 128 bits.
    Aes128,
    /// AES with a key of 256 bits.
    Aes256,
    /// Triple DES, which older agents ask for.
    TripleDes,
}

impl Cipher {
    const ALL: [Cipher; 3] = [Cipher::Aes128, Cipher::Aes256, Cipher::TripleDes];

    /// The cipher that an agent asks for by the header `x-ms-cipher-name`; without one, what the first agents knew.
    pub fn named(name: &str) -> Option<Cipher> {
        match name {
            "AES128_CBC" => Some(Cipher::Aes128),
            "AES256_CBC" => Some(Cipher::Aes256),
            "DES_EDE3_CBC" | "" => Some(Cipher::TripleDes),
            _ => None,
        }
    }

    /// Its number (RFC 3565, RFC 3370), in cipher block chaining.
    fn id(self) -> ObjectIdentifier {
        ObjectIdentifier::new_unwrap(match self {
            Cipher::Aes128 => "2.16.840.1.101.3.4.1.2",
            Cipher::Aes256 => "2.16.840.1.101.3.4.1.42",
            Cipher::TripleDes => "1.2.840.113549.3.7",
        })
    }

    /// Bytes of a key and of a block.
    fn lengths(self) -> (usize, usize) {
        match self {
            Cipher::Aes128 => (16, 16),
            Cipher::Aes256 => (32, 16),
            Cipher::TripleDes => (24, 8),
        }
    }

    fn encrypt(self, key: &[u8], start: &[u8], content: &[u8]) -> Result<Vec<u8>, SecretError> {
        fn run<C: BlockModeEncrypt + KeyIvInit>(key: &[u8], start: &[u8], content: &[u8]) -> Option<Vec<u8>> {
            Some(C::new_from_slices(key, start).ok()?.encrypt_padded_vec::<Pkcs7>(content))
        }
        let done = match self {
            Cipher::Aes128 => run::<cbc::Encryptor<aes::Aes128>>(key, start, content),
            Cipher::Aes256 => run::<cbc::Encryptor<aes::Aes256>>(key, start, content),
            Cipher::TripleDes => run::<cbc::Encryptor<des::TdesEde3>>(key, start, content),
        };
        done.ok_or_else(|| SecretError::new("the envelope's key does not fit its cipher"))
    }

    fn decrypt(self, key: &[u8], start: &[u8], content: &[u8]) -> Result<Vec<u8>, SecretError> {
        fn run<C: BlockModeDecrypt + KeyIvInit>(key: &[u8], start: &[u8], content: &[u8]) -> Option<Vec<u8>> {
            C::new_from_slices(key, start).ok()?.decrypt_padded_vec::<Pkcs7>(content).ok()
        }
        let done = match self {
            Cipher::Aes128 => run::<cbc::Decryptor<aes::Aes128>>(key, start, content),
            Cipher::Aes256 => run::<cbc::Decryptor<aes::Aes256>>(key, start, content),
            Cipher::TripleDes => run::<cbc::Decryptor<des::TdesEde3>>(key, start, content),
        };
        done.ok_or_else(damaged)
    }
}

fn damaged() -> SecretError {
    SecretError::new("the envelope is damaged, or is not for this certificate")
}

/// Seals `content` to the holder of a certificate (X.509, DER). The envelope is DER too.
///
/// # Errors
/// When that is no certificate of an RSA key.
pub fn seal(recipient: &[u8], cipher: Cipher, content: &[u8]) -> Result<Vec<u8>, SecretError> {
    let mut random = rand::rng();
    let (key_bytes, block_bytes) = cipher.lengths();
    let (mut key, mut start) = (vec![0; key_bytes], vec![0; block_bytes]);
    random.fill_bytes(&mut key);
    random.fill_bytes(&mut start);
    let encrypted = cipher.encrypt(&key, &start, content)?;
    let recipient = KeyTransRecipientInfo {
        version: CmsVersion::V0,
        rid: RecipientIdentifier::IssuerAndSerialNumber(identifier(recipient)?),
        key_enc_alg: AlgorithmIdentifierOwned { oid: RSA, parameters: Some(Any::null()) },
        enc_key: octets(&encrypt_key(recipient, &key)?)?,
    };
    let recipients = SetOfVec::try_from(vec![RecipientInfo::Ktri(recipient)]).map_err(unwritable)?;
    let start = Any::encode_from(&octets(&start)?).map_err(unwritable)?;
    let envelope = EnvelopedData {
        version: CmsVersion::V0,
        originator_info: None,
        recip_infos: RecipientInfos(recipients),
        encrypted_content: EncryptedContentInfo {
            content_type: DATA,
            content_enc_alg: AlgorithmIdentifierOwned { oid: cipher.id(), parameters: Some(start) },
            encrypted_content: Some(octets(&encrypted)?),
        },
        unprotected_attrs: None,
    };
    let content = Any::encode_from(&envelope).map_err(unwritable)?;
    ContentInfo { content_type: ENVELOPED_DATA, content }.to_der().map_err(unwritable)
}

/// Opens an envelope (DER) that was sealed to this certificate.
///
/// # Errors
/// When it is none, or for another certificate.
pub fn open(envelope: &[u8], with: &KeyedCertificate) -> Result<Vec<u8>, SecretError> {
    let unreadable = |error: der::Error| SecretError::new(format!("that is no envelope (PKCS #7): {error}"));
    let outer = ContentInfo::from_der(envelope).map_err(unreadable)?;
    if outer.content_type != ENVELOPED_DATA {
        return Err(SecretError::new("that is PKCS #7, but no envelope"));
    }
    let envelope: EnvelopedData = outer.content.decode_as().map_err(unreadable)?;
    let content = envelope.encrypted_content;
    let cipher = Cipher::ALL.into_iter().find(|cipher| cipher.id() == content.content_enc_alg.oid);
    let cipher = cipher.ok_or_else(|| {
        SecretError::new(format!("the envelope's cipher {} is not known; use AES", content.content_enc_alg.oid))
    })?;
    let start = content.content_enc_alg.parameters.ok_or_else(damaged)?;
    let start: OctetString = start.decode_as().map_err(unreadable)?;
    let encrypted = content.encrypted_content.ok_or_else(damaged)?;
    let private = PrivateDecryptingKey::from_pkcs8(&with.key)
        .and_then(|key| Pkcs1PrivateDecryptingKey::new(key).map_err(|_| rejected()));
    let private = private.map_err(|_| SecretError::new("the certificate's key opens nothing: it has to be RSA"))?;
    for recipient in envelope.recip_infos.0.iter() {
        let RecipientInfo::Ktri(recipient) = recipient else { continue };
        if let Some(key) = decrypt_key(&private, recipient.enc_key.as_bytes()) {
            return cipher.decrypt(&key, start.as_bytes(), encrypted.as_bytes());
        }
    }
    Err(damaged())
}

fn unwritable(error: der::Error) -> SecretError {
    SecretError::new(format!("the envelope cannot be written: {error}"))
}

fn octets(bytes: &[u8]) -> Result<OctetString, SecretError> {
    OctetString::new(bytes).map_err(unwritable)
}

/// Who vouches for a certificate and its number there: by this a recipient knows which of its keys is meant.
fn identifier(recipient: &[u8]) -> Result<IssuerAndSerialNumber, SecretError> {
    let failed = |error: der::Error| SecretError::new(format!("that is no certificate to seal to: {error}"));
    let (_, parsed) = X509Certificate::from_der(recipient)
        .map_err(|error| SecretError::new(format!("that is no certificate to seal to: {error}")))?;
    let issuer = Decode::from_der(parsed.issuer().as_raw()).map_err(failed)?;
    let serial_number = SerialNumber::new(parsed.raw_serial()).map_err(failed)?;
    Ok(IssuerAndSerialNumber { issuer, serial_number })
}

fn encrypt_key(recipient: &[u8], key: &[u8]) -> Result<Vec<u8>, SecretError> {
    let (_, parsed) = X509Certificate::from_der(recipient)
        .map_err(|error| SecretError::new(format!("that is no certificate to seal to: {error}")))?;
    let failed =
        |_| SecretError::new("the certificate's key cannot be sealed to: it has to be RSA of 2048 to 8192 bits");
    let public = PublicEncryptingKey::from_der(parsed.public_key().raw).map_err(failed)?;
    let public = Pkcs1PublicEncryptingKey::new(public).map_err(|_| failed(rejected()))?;
    let mut encrypted = vec![0; public.ciphertext_size()];
    let written = public.encrypt(key, &mut encrypted).map_err(|_| failed(rejected()))?.len();
    encrypted.truncate(written);
    Ok(encrypted)
}

fn rejected() -> aws_lc_rs::error::KeyRejected {
    aws_lc_rs::error::KeyRejected::from(aws_lc_rs::error::Unspecified)
}

fn decrypt_key(private: &Pkcs1PrivateDecryptingKey, encrypted: &[u8]) -> Option<Vec<u8>> {
    let mut key = vec![0; private.min_output_size()];
    let read = private.decrypt(encrypted, &mut key).ok()?.len();
    key.truncate(read);
    Some(key)
}
