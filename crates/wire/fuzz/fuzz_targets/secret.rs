//! What people hand in for guests, and what guests hand in to have secrets sealed to: archives, PEM, certificates, envelopes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mayfly_secrets::envelope::{self, Cipher};
use mayfly_secrets::{KeyedCertificate, PublicCertificate};

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    match kind % 4 {
        0 => drop(KeyedCertificate::read_pfx(data, "")),
        1 => drop(KeyedCertificate::read_pem(data)),
        2 => {
            if let Ok(read) = PublicCertificate::read(data) {
                drop(envelope::seal(&read.der, Cipher::Aes128, b"secret"));
            }
        }
        _ => {
            let nobody = KeyedCertificate { chain: Vec::new(), key: Vec::new() };
            assert!(envelope::open(data, &nobody).is_err());
        }
    }
});
