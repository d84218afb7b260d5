//! Certificates, fetched and opened as agents do it.

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::BoxFuture;
use mayfly_model::{CertificateDefinition, GuestCertificate, Thumbprint};

use super::{OWN, ask, get, guest};
use crate::{Guest, Guests, Word, wire_server_router};

/// A guest with a certificate, whose archive is what is said here.
struct Keyed(Result<&'static [u8], &'static str>);

impl Guests for Keyed {
    fn guest(&self, address: Ipv4Addr) -> Option<Guest> {
        let mut guest = guest();
        guest.goal.guest.certificates = vec![GuestCertificate {
            definition: CertificateDefinition {
                name: "Site".to_owned(),
                store_location: "LocalMachine".to_owned(),
                store_name: "My".to_owned(),
            },
            thumbprint: Thumbprint::of(&[0xab; 20]),
        }];
        (address == OWN).then_some(guest)
    }

    fn certificates<'a>(&'a self, _: &'a Guest) -> BoxFuture<'a, Result<Arc<[u8]>, String>> {
        Box::pin(async { self.0.map(Arc::from).map_err(str::to_owned) })
    }

    fn hear(&self, _: Ipv4Addr, _: Word) -> bool {
        true
    }
}

fn element<'d>(document: &'d roxmltree::Document<'_>, name: &str) -> &'d str {
    document.descendants().find(|node| node.tag_name().name() == name).unwrap().text().unwrap()
}

#[tokio::test]
async fn an_agent_opens_its_certificates_and_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let openssl = |arguments: &str| {
        let done = Command::new("openssl").args(arguments.split_whitespace()).current_dir(&folder).output().unwrap();
        assert!(done.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&done.stderr));
        done.stdout
    };
    openssl("req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=LinuxTransport");
    let transport = STANDARD.encode(openssl("x509 -in cert.pem -outform DER"));
    let guests = Arc::new(Keyed(Ok(b"the archive")));
    let router = || wire_server_router(guests.clone());
    let goal = get(router(), OWN, "/machine/?comp=goalstate").await.1;
    let document = roxmltree::Document::parse(&goal).unwrap();
    let path = |name: &str| element(&document, name).strip_prefix("http://168.63.129.16:80").unwrap().to_owned();
    let environment = get(router(), OWN, &path("HostingEnvironmentConfig")).await.1;
    assert!(environment.contains("certificateId=\"sha1:ABABAB"), "{environment}");
    let asked = |cipher: Option<&str>, certificate: Option<&str>| {
        let mut request = Request::get(path("Certificates"));
        if let Some(certificate) = certificate {
            request = request.header("x-ms-guest-agent-public-x509-cert", certificate);
        }
        if let Some(cipher) = cipher {
            request = request.header("x-ms-cipher-name", cipher);
        }
        request.body(Body::empty()).unwrap()
    };
    for cipher in [Some("AES128_CBC"), Some("DES_EDE3_CBC"), None] {
        let (status, body, _) = ask(router(), OWN, asked(cipher, Some(&transport))).await;
        assert_eq!(status, StatusCode::OK, "{cipher:?}");
        let document = roxmltree::Document::parse(&body).unwrap();
        assert_eq!(element(&document, "Format"), "Pkcs7BlobWithPfxContents");
        let sealed: String = element(&document, "Data").split_whitespace().collect();
        std::fs::write(folder.path().join("sealed"), STANDARD.decode(sealed).unwrap()).unwrap();
        let opened = openssl("cms -decrypt -inform DER -in sealed -inkey key.pem -recip cert.pem");
        assert_eq!(opened, b"the archive");
    }
    for (cipher, certificate, why) in [
        (None, None, "no certificate"),
        (Some("ROT13"), Some(transport.as_str()), "a cipher that nobody knows"),
        (None, Some("!"), "no base64"),
        (None, Some("aGVsbG8="), "no certificate in it"),
    ] {
        assert_eq!(ask(router(), OWN, asked(cipher, certificate)).await.0, StatusCode::BAD_REQUEST, "{why}");
    }
    let late = Arc::new(Keyed(Err("the controller does not answer")));
    let later = ask(wire_server_router(late), OWN, asked(None, Some(&transport))).await.0;
    assert_eq!(later, StatusCode::SERVICE_UNAVAILABLE, "agents ask again");
    let stranger = ask(router(), super::STRANGER, asked(None, Some(&transport))).await.0;
    assert_eq!(stranger, StatusCode::FORBIDDEN);
}
