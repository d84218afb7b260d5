//! Handshakes in memory, under clocks that say what they like.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};

use super::*;

/// 2028-02-29T12:00:00Z: a leap day.
const LEAP_DAY: u64 = 1_835_438_400;
const DAY: u64 = 86_400;
const ADDRESS: &str = "10.77.0.1";

struct Stage {
    authority: Authority,
    _folder: tempfile::TempDir,
}

impl Stage {
    fn new(now: u64) -> Stage {
        let folder = tempfile::tempdir().unwrap();
        Stage { authority: Authority::open(folder.path(), now).unwrap(), _folder: folder }
    }

    fn server(&self, made: u64, now: u64) -> ServerConfig {
        let address: IpAddr = ADDRESS.parse().unwrap();
        let shown = self.authority.make_server(&[address], made, CONTROLLER_LIFE).unwrap();
        server_config(self.authority.certificate(), Presented::new(shown), Clock::at(now)).unwrap()
    }

    fn keys(&self, host: &str, now: u64, life: u64) -> HostKeys {
        let request = Request::generate().unwrap();
        let certificate = self.authority.sign_host(&request.pem, host, 42, now, life).unwrap();
        request.into_keys(&certificate, &self.authority.pem).unwrap()
    }
}

/// Whom the server sees, or why the two do not come together.
fn meet(client: ClientConfig, server: ServerConfig) -> Result<Option<Enrolled>, String> {
    let name = ServerName::try_from(ADDRESS).unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    for _ in 0..8 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut bytes = wire.as_slice();
        while !bytes.is_empty() {
            server.read_tls(&mut bytes).unwrap();
            server.process_new_packets().map_err(|error| error.to_string())?;
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut bytes = wire.as_slice();
        while !bytes.is_empty() {
            client.read_tls(&mut bytes).unwrap();
            client.process_new_packets().map_err(|error| error.to_string())?;
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok(server.peer_certificates().map(|chain| Enrolled::of(&chain[0]).unwrap()))
}

#[test]
fn a_host_joins_by_the_digest_and_is_known_by_its_certificate() {
    let stage = Stage::new(LEAP_DAY);
    let clock = Clock::at(LEAP_DAY);
    let joining = joining_config(stage.authority.digest(), clock).unwrap();
    assert_eq!(meet(joining, stage.server(LEAP_DAY, LEAP_DAY)), Ok(None));
    let keys = stage.keys("host-1", LEAP_DAY, HOST_LIFE);
    let seen = meet(client_config(&keys, clock).unwrap(), stage.server(LEAP_DAY, LEAP_DAY)).unwrap().unwrap();
    assert_eq!((seen.host.as_str(), seen.enrolment), ("host-1", 42));
}

#[test]
fn strangers_are_kept_apart() {
    let (stage, other) = (Stage::new(LEAP_DAY), Stage::new(LEAP_DAY));
    let clock = Clock::at(LEAP_DAY);
    let joining = joining_config(other.authority.digest(), clock).unwrap();
    assert!(meet(joining, stage.server(LEAP_DAY, LEAP_DAY)).unwrap_err().contains("UnknownIssuer"));
    // A host of another fabric takes this one's controller for nobody, and is nobody to it.
    let foreign = other.keys("host-1", LEAP_DAY, HOST_LIFE);
    meet(client_config(&foreign, clock).unwrap(), stage.server(LEAP_DAY, LEAP_DAY)).unwrap_err();
    let mixed = Request::generate().unwrap();
    let certificate = other.authority.sign_host(&mixed.pem, "host-1", 1, LEAP_DAY, HOST_LIFE).unwrap();
    let mixed = mixed.into_keys(&certificate, &stage.authority.pem).unwrap();
    meet(client_config(&mixed, clock).unwrap(), stage.server(LEAP_DAY, LEAP_DAY)).unwrap_err();
    // What a host shows does not make it a controller.
    let host = stage.keys("host-1", LEAP_DAY, HOST_LIFE);
    let shown = Presented::new(host.certified().unwrap());
    let posing = server_config(stage.authority.certificate(), shown, clock).unwrap();
    let honest = stage.keys("host-2", LEAP_DAY, HOST_LIFE);
    meet(client_config(&honest, clock).unwrap(), posing).unwrap_err();
}

#[test]
fn leap_days_end_nothing_early_and_nothing_late() {
    for life in [DAY, 365 * DAY, 366 * DAY, 4 * 365 * DAY] {
        let stage = Stage::new(LEAP_DAY);
        let keys = stage.keys("host-1", LEAP_DAY, life);
        let validity = keys.validity().unwrap();
        assert_eq!((validity.from, validity.until), (LEAP_DAY - 3600, LEAP_DAY + life));
        let last = LEAP_DAY + life;
        let config = client_config(&keys, Clock::at(last)).unwrap();
        assert!(meet(config, stage.server(last, last)).unwrap().is_some());
    }
}

#[test]
fn certificates_are_renewed_long_before_they_end() {
    let keys = Stage::new(LEAP_DAY).keys("host-1", LEAP_DAY, HOST_LIFE);
    let validity = keys.validity().unwrap();
    assert!(!is_due(validity, LEAP_DAY));
    assert!(!is_due(validity, LEAP_DAY + 9 * DAY));
    assert!(is_due(validity, LEAP_DAY + 11 * DAY));
    assert!(is_due(validity, LEAP_DAY - DAY), "a clock that has jumped back");
    assert!(is_due(validity, LEAP_DAY + 1000 * DAY));
}

#[test]
fn clocks_that_jump_lock_nobody_out() {
    let stage = Stage::new(LEAP_DAY);
    let keys = stage.keys("host-1", LEAP_DAY, HOST_LIFE);
    let config = || client_config(&keys, Clock::at(LEAP_DAY)).unwrap();
    // The controller starts again with a clock that is years off: the handshake works, and what the certificate is still
    // good for is decided by who looks at the request.
    for jumped in [LEAP_DAY + 5 * 365 * DAY, LEAP_DAY - 5 * 365 * DAY] {
        let seen = meet(config(), stage.server(LEAP_DAY, jumped)).unwrap().unwrap();
        assert_eq!(seen.validity, keys.validity().unwrap());
    }
    // What a controller makes in its future is good for a host that is behind, even one in 1970.
    let behind = client_config(&keys, Clock::at(0)).unwrap();
    assert!(meet(behind, stage.server(LEAP_DAY + 5 * 365 * DAY, LEAP_DAY)).is_ok());
    // But what ended long ago is not taken: it may have been stolen since.
    let ahead = client_config(&keys, Clock::at(LEAP_DAY + 2 * CONTROLLER_LIFE)).unwrap();
    assert!(meet(ahead, stage.server(LEAP_DAY, LEAP_DAY)).unwrap_err().contains("xpired"));
    // A date that X.509 cannot write is refused, not cut off.
    let request = Request::generate().unwrap();
    assert!(stage.authority.sign_host(&request.pem, "host-1", 1, u64::MAX, 1).is_err());
}

#[test]
fn keys_and_authority_are_read_back_and_damage_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::open(folder.path(), LEAP_DAY).unwrap();
    assert_eq!(Authority::open(folder.path(), 0).unwrap().digest(), authority.digest());
    let path = folder.path().join("keys.pem");
    assert!(HostKeys::read(&path).unwrap().is_none());
    let kept = folder.path().join("joining.key");
    let first = Request::kept(&kept).unwrap();
    let again = Request::kept(&kept).unwrap();
    assert_eq!(Authority::key_of(&first.pem).unwrap(), Authority::key_of(&again.pem).unwrap());
    let certificate = authority.sign_host(&first.pem, "host-1", 1, LEAP_DAY, HOST_LIFE).unwrap();
    again.into_keys(&certificate, &authority.pem).unwrap().write(&path).unwrap();
    assert_eq!(
        HostKeys::read(&path).unwrap().unwrap().validity().unwrap(),
        Validity { from: LEAP_DAY - 3600, until: LEAP_DAY + HOST_LIFE }
    );
    // A certificate for another key is not taken.
    assert!(Request::generate().unwrap().into_keys(&certificate, &authority.pem).is_err());
    std::fs::write(&path, "nonsense").unwrap();
    assert!(HostKeys::read(&path).unwrap_err().to_string().contains("keys.pem"));
    assert!(authority.sign_host("nonsense", "host-1", 1, LEAP_DAY, HOST_LIFE).is_err());
    std::fs::remove_file(folder.path().join("authority.key")).unwrap();
    let error = Authority::open(folder.path(), LEAP_DAY).err().unwrap().to_string();
    assert!(error.contains("authority.key is missing"), "{error}");
}

#[test]
fn controllers_that_start_at_once_make_one_authority() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("authority");
    let open = || Authority::open(&path, LEAP_DAY).unwrap().digest();
    let digests: Vec<[u8; 32]> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(digests.iter().all(|digest| *digest == digests[0]));
}
