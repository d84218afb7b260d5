//! What is written is read with openssl(1), and what that writes is read.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::envelope::{self, Cipher};
use crate::{KeyedCertificate, PublicCertificate, SealingKey, guest_pfx, hash_password};

/// Runs openssl(1) in a folder and returns what it prints.
fn openssl(folder: &Path, arguments: &str) -> Vec<u8> {
    let output = Command::new("openssl").args(arguments.split_whitespace()).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// A folder with `key.pem`, `cert.pem` and `one.pfx` with the password `secret`.
fn made(kind: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let request =
        format!("req -x509 -newkey {kind} -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=shop.example");
    openssl(folder.path(), &request);
    openssl(folder.path(), "pkcs12 -export -inkey key.pem -in cert.pem -passout pass:secret -out one.pfx");
    folder
}

fn read(folder: &Path, name: &str) -> Vec<u8> {
    fs::read(folder.join(name)).unwrap()
}

fn hex(public: &PublicCertificate) -> String {
    public.sha1.iter().map(|byte| format!("{byte:02X}")).collect()
}

#[test]
fn archives_are_read_in_old_and_new_ciphers() {
    let folder = made("rsa:2048");
    openssl(folder.path(), "pkcs12 -export -inkey key.pem -in cert.pem -passout pass:secret -out old.pfx -legacy");
    openssl(folder.path(), "pkcs12 -export -inkey key.pem -in cert.pem -passout pass: -out empty.pfx");
    let printed = openssl(folder.path(), "x509 -in cert.pem -noout -fingerprint -sha1");
    let printed = String::from_utf8(printed).unwrap().split('=').nth(1).unwrap().trim().replace(':', "");
    for (name, password) in [("one.pfx", "secret"), ("old.pfx", "secret"), ("empty.pfx", "")] {
        let read = KeyedCertificate::read_pfx(&read(folder.path(), name), password).unwrap();
        let public = read.public().unwrap();
        assert_eq!((hex(&public), public.subject.as_str()), (printed.clone(), "CN=shop.example"));
    }
    let both = [read(folder.path(), "cert.pem"), read(folder.path(), "key.pem")].concat();
    assert_eq!(hex(&KeyedCertificate::read_pem(&both).unwrap().public().unwrap()), printed);
}

#[test]
fn other_kinds_of_keys_are_read_and_cannot_be_sealed_to() {
    let folder = made("ec -pkeyopt ec_paramgen_curve:prime256v1");
    let read = KeyedCertificate::read_pfx(&read(folder.path(), "one.pfx"), "secret").unwrap();
    let refused = envelope::seal(&read.chain[0], Cipher::Aes128, b"hello").unwrap_err();
    assert!(refused.to_string().contains("RSA"), "{refused}");
}

#[test]
fn what_cannot_be_read_is_refused_in_words() {
    let folder = made("rsa:2048");
    let pfx = read(folder.path(), "one.pfx");
    let wrong = KeyedCertificate::read_pfx(&pfx, "wrong").unwrap_err().to_string();
    assert!(wrong.contains("password"), "{wrong}");
    for end in (0..pfx.len()).step_by(7) {
        assert!(KeyedCertificate::read_pfx(&pfx[..end], "secret").is_err());
    }
    let other = made("rsa:2048");
    let mixed = [read(folder.path(), "cert.pem"), read(other.path(), "key.pem")].concat();
    let mixed = KeyedCertificate::read_pem(&mixed).unwrap_err().to_string();
    assert_eq!(mixed, "no certificate in it belongs to the private key");
    assert!(PublicCertificate::read(b"hello").is_err());
}

/// The chain of a certificate that another one vouches for, whatever the order in the file.
#[test]
fn who_vouches_comes_along() {
    let folder = made("rsa:2048");
    let at = folder.path();
    openssl(at, "req -newkey rsa:2048 -nodes -keyout leaf.key -out leaf.csr -subj /CN=leaf");
    openssl(at, "x509 -req -in leaf.csr -CA cert.pem -CAkey key.pem -CAcreateserial -days 1 -out leaf.pem");
    let all = [read(at, "cert.pem"), read(at, "leaf.pem"), read(at, "leaf.key")].concat();
    let read = KeyedCertificate::read_pem(&all).unwrap();
    assert_eq!(read.chain.len(), 2);
    assert_eq!(read.public().unwrap().subject, "CN=leaf");
}

#[test]
fn a_guest_opens_its_envelope_and_its_archive() {
    let (one, other, transport) = (made("rsa:2048"), made("rsa:3072"), made("rsa:2048"));
    let keyed = |folder: &Path| KeyedCertificate::read_pfx(&read(folder, "one.pfx"), "secret").unwrap();
    let pfx = guest_pfx(&[keyed(one.path()), keyed(other.path())]).unwrap();
    let to = PublicCertificate::read(&read(transport.path(), "cert.pem")).unwrap();
    for cipher in [Cipher::Aes128, Cipher::Aes256, Cipher::TripleDes] {
        let sealed = envelope::seal(&to.der, cipher, &pfx).unwrap();
        fs::write(transport.path().join("sealed"), sealed).unwrap();
        // As agents do it.
        openssl(transport.path(), "cms -decrypt -inform DER -in sealed -inkey key.pem -recip cert.pem -out guest.pfx");
        let shown = openssl(transport.path(), "pkcs12 -nodes -in guest.pfx -password pass:");
        let shown = String::from_utf8(shown).unwrap();
        assert_eq!(shown.matches("BEGIN PRIVATE KEY").count(), 2);
        assert_eq!(shown.matches("BEGIN CERTIFICATE").count(), 2);
    }
}

#[test]
fn envelopes_of_others_open_and_damaged_ones_do_not() {
    let folder = made("rsa:2048");
    let keyed = KeyedCertificate::read_pfx(&read(folder.path(), "one.pfx"), "secret").unwrap();
    fs::write(folder.path().join("text"), "correct horse").unwrap();
    for cipher in ["-aes128", "-aes256", "-des3"] {
        let arguments = format!("cms -encrypt -binary -outform DER {cipher} -in text -out sealed cert.pem");
        openssl(folder.path(), &arguments);
        let sealed = read(folder.path(), "sealed");
        assert_eq!(envelope::open(&sealed, &keyed).unwrap(), b"correct horse");
    }
    let sealed = read(folder.path(), "sealed");
    let other = made("rsa:2048");
    let other = KeyedCertificate::read_pfx(&read(other.path(), "one.pfx"), "secret").unwrap();
    assert!(envelope::open(&sealed, &other).is_err());
    for at in 0..sealed.len() {
        assert!(envelope::open(&sealed[..at], &keyed).is_err());
        let mut damaged = sealed.clone();
        damaged[at] ^= 0x55;
        // Some bytes do not matter, such as the number of the form; what opens is never another text of the same kind.
        drop(envelope::open(&damaged, &keyed));
    }
}

#[test]
fn sealed_bytes_open_under_their_own_name_only() {
    let key = SealingKey::from_secret(b"an authority's key").unwrap();
    let sealed = key.seal("certificate/shop/AB", b"private").unwrap();
    assert_eq!(key.open("certificate/shop/AB", &sealed).unwrap(), b"private");
    assert!(!sealed.windows(7).any(|part| part == b"private"));
    assert!(key.open("certificate/bank/AB", &sealed).is_err());
    assert!(SealingKey::from_secret(b"another").unwrap().open("certificate/shop/AB", &sealed).is_err());
    for at in 0..sealed.len() {
        let mut damaged = sealed.clone();
        damaged[at] ^= 1;
        assert!(
            key.open("certificate/shop/AB", &damaged).is_err()
                && key.open("certificate/shop/AB", &sealed[..at]).is_err()
        );
    }
}

#[test]
fn a_password_s_hash_is_that_of_crypt() {
    let hash = hash_password("correct horse").unwrap();
    let salt = hash.trim_start_matches("$6$").rsplit_once('$').unwrap().0;
    let folder = tempfile::tempdir().unwrap();
    let output =
        Command::new("openssl").args(["passwd", "-6", "-salt", salt, "correct horse"]).current_dir(&folder).output();
    assert_eq!(String::from_utf8(output.unwrap().stdout).unwrap().trim(), hash);
}
