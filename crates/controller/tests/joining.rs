//! Hosts come in, are known, and are thrown out: a real controller, spoken to over TLS.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;

use mayfly_api::{Client, ClientError, ErrorCode, JoinRequest, RenewRequest, TokenRequest};
use mayfly_controller::{ControllerConfig, FabricConfig, StoreConfig};
use mayfly_identity::{Authority, Clock, HostKeys, JoinToken, Request, client_config, joining_config};
use mayfly_model::{HostFacts, HostName, HostReport, Incarnation, Resources, Transit};

const DAY: u64 = 86_400;

struct Stage {
    users: Client,
    hosts_url: String,
    authority: PathBuf,
    _folder: tempfile::TempDir,
}

impl Stage {
    async fn start() -> Stage {
        let free = || TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
        let (users, hosts): (SocketAddr, SocketAddr) = (free(), free());
        let folder = tempfile::tempdir().unwrap();
        let config = ControllerConfig {
            folder: folder.path().to_owned(),
            listen: vec![users],
            listen_hosts: vec![hosts],
            dns: vec![],
            advertise: Vec::new(),
            authority: None,
            host_certificate_days: 30,
            user_token: "secret".to_owned(),
            store: StoreConfig::Embedded,
            name: String::new(),
            images: None,
            fabric: FabricConfig {
                zone: "mayfly.test".to_owned(),
                dips: (Ipv4Addr::new(10, 80, 0, 0), 16),
                ipv6: None,
                vips: (Ipv4Addr::new(10, 78, 0, 0), 24),
                timings: Default::default(),
                overcommit: Default::default(),
                healing: Default::default(),
            },
        };
        tokio::spawn(mayfly_controller::run(config));
        let users = Client::new(&format!("http://{users}"), "secret");
        for _ in 0..200 {
            if users.host_list().await.is_ok() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        let authority = folder.path().join("authority");
        Stage { users, hosts_url: format!("https://{hosts}"), authority, _folder: folder }
    }

    async fn token(&self, host: Option<&str>) -> String {
        let host = host.map(|host| HostName::new(host).unwrap());
        self.users.token_create(&TokenRequest { host, minutes: 5 }).await.unwrap().token.unwrap()
    }

    fn stranger(&self, token: &str) -> Client {
        let authority = token.parse::<JoinToken>().unwrap().authority;
        Client::with_tls(&self.hosts_url, joining_config(authority, Clock::start()).unwrap())
    }

    async fn join(&self, token: &str, host: &str, request: Request) -> Result<HostKeys, ClientError> {
        let host = HostName::new(host).unwrap();
        let body = JoinRequest { token: token.to_owned(), host, request: request.pem.clone() };
        let answer = self.stranger(token).join(&body).await?;
        Ok(request.into_keys(&answer.certificate, &answer.authority).unwrap())
    }

    fn client(&self, keys: &HostKeys) -> Client {
        Client::with_tls(&self.hosts_url, client_config(keys, Clock::start()).unwrap())
    }
}

fn report(host: &str, sequence: u64) -> HostReport {
    HostReport {
        host: HostName::new(host).unwrap(),
        facts: HostFacts {
            fault_domain: "fd-1".to_owned(),
            address: Ipv4Addr::new(10, 77, 0, 11),
            capacity: Resources { cpu_milli: 1000, memory_mib: 1024 },
            labels: BTreeMap::new(),
            features: BTreeSet::new(),
            images: BTreeSet::new(),
            transit: Transit::default(),
            tunnel_key: None,
        },
        boot_id: 1,
        sequence,
        lease_ack: 0,
        applied: Incarnation(0),
        vms: Vec::new(),
        incidents: Vec::new(),
        counters: Default::default(),
    }
}

async fn said(client: &Client, report: &HostReport) -> Option<ErrorCode> {
    match client.report(report, std::time::Duration::from_secs(5)).await {
        Ok(_) => None,
        Err(error) => Some(error.code().unwrap_or_else(|| panic!("{error}: {:?}", std::error::Error::source(&error)))),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_joins_once_and_is_who_its_certificate_says() {
    let stage = Stage::start().await;
    let token = stage.token(Some("host-1")).await;
    let refused = stage.join(&token, "host-2", Request::generate().unwrap()).await.unwrap_err();
    assert_eq!(refused.code(), Some(ErrorCode::Unauthorized), "the token is for another host");
    let keys = stage.join(&token, "host-1", Request::generate().unwrap()).await.unwrap();
    let refused = stage.join(&token, "host-1", Request::generate().unwrap()).await.unwrap_err();
    assert!(refused.to_string().contains("was used already, by host-1"), "{refused}");

    let client = stage.client(&keys);
    assert_eq!(said(&client, &report("host-1", 1)).await, None);
    assert_eq!(stage.users.host_list().await.unwrap()[0].name, "host-1");
    assert_eq!(said(&client, &report("host-2", 2)).await, Some(ErrorCode::Unauthorized), "another host's name");
    let stranger = stage.stranger(&token);
    assert_eq!(said(&stranger, &report("host-1", 3)).await, Some(ErrorCode::Unauthorized), "no certificate");
    // What is for users is not served to hosts.
    assert_eq!(client.host_list().await.unwrap_err().code(), Some(ErrorCode::Internal));
    let tokens = stage.users.token_list().await.unwrap();
    assert_eq!(tokens[0].used_by.as_ref().map(HostName::as_str), Some("host-1"));
    assert!(tokens.iter().all(|one| one.token.is_none()), "the secret is shown once");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ended_certificate_is_good_for_a_new_one_and_nothing_else() {
    let stage = Stage::start().await;
    let token = stage.token(None).await;
    let keys = stage.join(&token, "host-1", Request::generate().unwrap()).await.unwrap();
    // The same enrolment, long ago: as if the controller had started with a clock that is two years ahead.
    let authority = Authority::open(&stage.authority, 0).unwrap();
    let number = keys.enrolled().unwrap().enrolment;
    let long_ago = Clock::start().now() - 730 * DAY;
    let of_then = |number: u64| {
        let request = Request::generate().unwrap();
        let certificate = authority.sign_host(&request.pem, "host-1", number, long_ago, 30 * DAY).unwrap();
        request.into_keys(&certificate, &authority.pem).unwrap()
    };
    let client = stage.client(&of_then(number));
    assert_eq!(said(&client, &report("host-1", 1)).await, Some(ErrorCode::CertificateEnded));
    let request = Request::generate().unwrap();
    let answer = client.renew(&RenewRequest { request: request.pem.clone() }).await.unwrap();
    let renewed = request.into_keys(&answer.certificate, &answer.authority).unwrap();
    client.replace_tls(client_config(&renewed, Clock::start()).unwrap());
    assert_eq!(said(&client, &report("host-1", 2)).await, None);
    // Of an earlier joining, it is good for nothing.
    let earlier = stage.client(&of_then(number.wrapping_add(1)));
    let request = Request::generate().unwrap();
    let refused = earlier.renew(&RenewRequest { request: request.pem }).await.unwrap_err();
    assert_eq!(refused.code(), Some(ErrorCode::Unauthorized));
}
