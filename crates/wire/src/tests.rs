//! The protocols, asked as guests ask.

mod certificates;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::ConnectInfo;
use axum::http::{Request, StatusCode};
use mayfly_model::{Admin, Digest, GuestGoal, Platform, RemoteAccess, VmGoal, VmId, VmSize};
use tower::ServiceExt;

use crate::wire_server::parse_health;
use crate::{
    Guest, Guests, HealthReport, Member, MemberEndpoint, Planned, ScriptReport, Word, metadata_router, plugin_router,
    provisioning_files, wire_server_router,
};
use futures_util::future::BoxFuture;

const OWN: Ipv4Addr = Ipv4Addr::new(10, 80, 0, 5);
const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 80, 0, 6);

#[derive(Default)]
struct One(Mutex<Vec<Word>>);

impl Guests for One {
    fn guest(&self, address: Ipv4Addr) -> Option<Guest> {
        (address == OWN).then(guest)
    }

    fn certificates<'a>(&'a self, _: &'a Guest) -> BoxFuture<'a, Result<Arc<[u8]>, String>> {
        Box::pin(async { Err("it has none".to_owned()) })
    }

    fn hear(&self, _: Ipv4Addr, word: Word) -> bool {
        self.0.lock().unwrap().push(word);
        true
    }
}

fn guest() -> Guest {
    let goal = VmGoal {
        vm: VmId(7),
        instance: "shop/web_IN_0".parse().unwrap(),
        deployment_id: "0123456789abcdef0123456789abcdef".to_owned(),
        generation: 1,
        computer_name: "mfabcdefghij".to_owned(),
        fault_domain: "fd-1".to_owned(),
        update_domain: 0,
        dip: OWN,
        ipv6: Some(std::net::Ipv6Addr::new(0xfd6d, 0, 0, 0, 0, 0, 0x0a50, 5)),
        size: VmSize::Small,
        image: Digest::new("0".repeat(64)).unwrap(),
        image_bytes: 1,
        disk: mayfly_model::DiskModel::Virtio,
        reboots: 0,
        on: true,
        user_data: "#!/bin/sh\n".to_owned(),
        settings: BTreeMap::from([("A&B".to_owned(), "<\"x\ny\">".to_owned())]),
        probes: vec![],
        drain_seconds: 0,
        egress: mayfly_model::Egress::Allow,
        guest: GuestGoal {
            admin: Some(Admin {
                name: "ada".to_owned(),
                password_hash: Some("$6$salt$hash".to_owned()),
                ssh_keys: vec!["ssh-ed25519 AAAA ada".to_owned()],
                expires: None,
            }),
            time_zone: Some("Europe/Berlin".to_owned()),
            locale: Some("de_DE.UTF-8".to_owned()),
            ..GuestGoal::default()
        },
        local_generation: 0,
    };
    let endpoint =
        MemberEndpoint { name: "http".to_owned(), udp: false, local_port: 8080, vip: [10, 78, 0, 2].into(), port: 80 };
    let member =
        |index, dip, endpoints| Member { role: "web".parse().unwrap(), index, update_domain: index, dip, endpoints };
    let members = vec![member(0, OWN, vec![endpoint]), member(1, Ipv4Addr::new(10, 80, 0, 9), vec![])];
    Guest {
        goal,
        complete: true,
        incarnation: 3,
        domain: "shop.internal.z".to_owned(),
        location: "here".to_owned(),
        members: Arc::new(members),
        planned: None,
    }
}

async fn ask(router: Router, from: Ipv4Addr, request: Request<Body>) -> (StatusCode, String, Option<String>) {
    let mut request = request;
    request.extensions_mut().insert(ConnectInfo(SocketAddr::from((from, 4000))));
    let response = router.oneshot(request).await.unwrap();
    let latest = response.headers().get("x-ms-latest-goal-state-incarnation-number");
    let latest = latest.map(|value| value.to_str().unwrap().to_owned());
    let status = response.status();
    let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap(), latest)
}

async fn get(router: Router, from: Ipv4Addr, path: &str) -> (StatusCode, String) {
    let (status, body, _) = ask(router, from, Request::get(path).body(Body::empty()).unwrap()).await;
    (status, body)
}

#[tokio::test]
async fn an_agent_finds_its_way() {
    let guests = Arc::new(One::default());
    let router = || wire_server_router(guests.clone());
    assert!(get(router(), OWN, "/?comp=versions").await.1.contains("2012-11-30"));
    let (_, goal) = get(router(), OWN, "/machine/?comp=goalstate").await;
    let document = roxmltree::Document::parse(&goal).unwrap();
    let url = |name: &str| {
        let node = document.descendants().find(|node| node.tag_name().name() == name).unwrap();
        node.text().unwrap().strip_prefix("http://168.63.129.16:80").unwrap().to_owned()
    };
    let (status, text) = get(router(), OWN, &url("HostingEnvironmentConfig")).await;
    assert_eq!(status, StatusCode::OK);
    let environment = roxmltree::Document::parse(&text).unwrap();
    let setting = environment.descendants().find(|node| node.tag_name().name() == "Setting").unwrap();
    assert_eq!((setting.attribute("name"), setting.attribute("value")), (Some("A&B"), Some("<\"x\ny\">")));
    for name in ["SharedConfig", "ExtensionsConfig", "FullConfig"] {
        assert_eq!(get(router(), OWN, &url(name).replace("%5F", "_")).await.0, StatusCode::OK, "{name}");
    }
    let (_, shared) = get(router(), OWN, &url("SharedConfig")).await;
    let shared = roxmltree::Document::parse(&shared).unwrap();
    let instances: Vec<_> = shared.descendants().filter(|node| node.tag_name().name() == "Instance").collect();
    let ids: Vec<_> = instances.iter().map(|node| node.attribute("id").unwrap()).collect();
    assert_eq!(ids, ["web_IN_0", "web_IN_1"], "everybody in the deployment is named");
    let endpoint = shared.descendants().find(|node| node.tag_name().name() == "Endpoint").unwrap();
    assert_eq!(endpoint.attribute("address"), Some("10.80.0.5:8080"));
    assert_eq!(endpoint.attribute("loadBalancedPublicAddress"), Some("10.78.0.2:80"));
    let stale = url("SharedConfig").replace("incarnation=3", "incarnation=2");
    assert_eq!(get(router(), OWN, &stale).await.0, StatusCode::GONE, "an old goal state's document");
    let body = "<Health><Container><RoleInstanceList><Role><Health><State>Ready</State></Health></Role></RoleInstanceList></Container></Health>";
    let request = Request::post("/machine?comp=health").body(Body::from(body)).unwrap();
    let (status, _, latest) = ask(router(), OWN, request).await;
    assert_eq!((status, latest.as_deref()), (StatusCode::OK, Some("3")));
    let heard = guests.0.lock().unwrap().clone();
    assert_eq!(heard, [Word::Alive, Word::Health(HealthReport { ready: true, detail: String::new() })]);
    let early = Request::post("/machine?comp=health").header("User-Agent", "Cloud-Init/22.4.2").body(Body::from(body));
    assert_eq!(ask(router(), OWN, early.unwrap()).await.0, StatusCode::OK);
    assert_eq!(guests.0.lock().unwrap().pop(), Some(Word::CloudInit), "it says so long before it is through");
    let another = body.replace("<Role>", "<Role><InstanceId>0.web_IN_7</InstanceId>");
    let request = Request::post("/machine?comp=health").body(Body::from(another)).unwrap();
    assert_eq!(ask(router(), OWN, request).await.0, StatusCode::GONE, "a report about somebody else");
}

#[tokio::test]
async fn uploads_are_read_and_forgotten_up_to_a_limit() {
    let guests = Arc::new(One::default());
    let put = async |path: &str, bytes: usize| {
        let request = Request::put(path).body(Body::from(vec![b'x'; bytes])).unwrap();
        ask(plugin_router(guests.clone()), OWN, request).await.0
    };
    assert_eq!(put("/status", 200 << 10).await, StatusCode::CREATED);
    assert_eq!(guests.0.lock().unwrap().as_slice(), [Word::Status]);
    assert_eq!(put("/vmAgentLog", 5 << 20).await, StatusCode::OK);
    assert_eq!(put("/vmAgentLog", 9 << 20).await, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(get(plugin_router(guests.clone()), OWN, "/versions").await.1.contains("2015-09-01"));
    assert_eq!(get(plugin_router(guests.clone()), OWN, "/vmSettings").await.0, StatusCode::NOT_FOUND);
    assert_eq!(get(plugin_router(guests), STRANGER, "/versions").await.0, StatusCode::FORBIDDEN);
}

/// One guest, about to be rebooted.
struct Leaving(Mutex<Vec<Word>>);

impl Guests for Leaving {
    fn guest(&self, address: Ipv4Addr) -> Option<Guest> {
        let planned = Planned {
            id: "e1".to_owned(),
            kind: "Reboot",
            not_before: "Sat, 28 Nov 2026 11:00:00 GMT".to_owned(),
            acknowledged: false,
            description: "it is being rebooted".to_owned(),
        };
        (address == OWN).then(|| Guest { planned: Some(planned), ..guest() })
    }

    fn certificates<'a>(&'a self, _: &'a Guest) -> BoxFuture<'a, Result<Arc<[u8]>, String>> {
        Box::pin(async { Err("it has none".to_owned()) })
    }

    fn hear(&self, _: Ipv4Addr, word: Word) -> bool {
        self.0.lock().unwrap().push(word);
        true
    }
}

#[tokio::test]
async fn what_is_planned_is_told_and_can_be_acknowledged() {
    let guests = Arc::new(Leaving(Mutex::default()));
    let router = || metadata_router(guests.clone());
    let path = "/metadata/scheduledevents?api-version=2020-07-01";
    let request = Request::get(path).header("Metadata", "true").body(Body::empty()).unwrap();
    let (_, body, _) = ask(router(), OWN, request).await;
    let document: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(document["Events"][0]["EventType"], "Reboot");
    assert_eq!(document["Events"][0]["EventStatus"], "Scheduled");
    let post = |id: &str| {
        let body = format!("{{\"StartRequests\":[{{\"EventId\":\"{id}\"}}]}}");
        Request::post(path).header("Metadata", "true").body(Body::from(body)).unwrap()
    };
    assert_eq!(ask(router(), OWN, post("other")).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(ask(router(), OWN, post("e1")).await.0, StatusCode::OK);
    let heard = guests.0.lock().unwrap().clone();
    assert_eq!(heard, [Word::AsksForEvents, Word::Acknowledges("e1".to_owned())]);
    let (_, goal) = get(wire_server_router(guests.clone()), OWN, "/machine/?comp=goalstate").await;
    assert!(goal.contains("<ExpectedState>Stopped</ExpectedState>"), "the first agents read it there: {goal}");
}

#[tokio::test]
async fn a_script_is_told_and_its_end_is_heard() {
    let guests = Arc::new(One::default());
    let request = Request::get("/mayfly/v1/script").header("Metadata", "true").body(Body::empty()).unwrap();
    let (status, body, _) = ask(metadata_router(guests.clone()), OWN, request).await;
    assert_eq!(status, StatusCode::OK);
    assert!(body.contains("\"script\":null"), "{body}");
    let report = format!("{{\"attempt\":2,\"status\":3,\"last\":true,\"output\":\"{}\"}}", "é".repeat(20_000));
    let request = |text: &str| {
        let request = Request::post("/mayfly/v1/script/report").header("Metadata", "true");
        request.body(Body::from(text.to_owned())).unwrap()
    };
    assert_eq!(ask(metadata_router(guests.clone()), OWN, request(&report)).await.0, StatusCode::OK);
    let heard = guests.0.lock().unwrap().pop();
    let Some(Word::Script(ScriptReport { attempt: 2, status: Some(3), last: true, output })) = heard else {
        panic!("{heard:?}")
    };
    assert!(output.len() <= 16 << 10 && output.starts_with('é'), "the end of it is kept, in whole letters");
    assert_eq!(ask(metadata_router(guests), OWN, request("nonsense")).await.0, StatusCode::BAD_REQUEST);
}

/// The parts of a message, by their types.
fn parts_of(message: &str) -> BTreeMap<String, String> {
    let boundary = message.split("boundary=\"").nth(1).unwrap().split('"').next().unwrap();
    let boundary = format!("--{boundary}\n");
    let parts = message.split(&boundary).skip(1);
    let part = |text: &str| {
        let (head, body) = text.split_once("\n\n").unwrap();
        let kind = head.split("Content-Type: ").nth(1).unwrap().split(';').next().unwrap();
        assert!(head.contains("Content-Transfer-Encoding: base64"), "{head}");
        let body: String = body.split("\n--").next().unwrap().split_whitespace().collect();
        (kind.to_owned(), String::from_utf8(decoded(&body)).unwrap())
    };
    parts.map(part).collect()
}

/// The text of an element of a document.
fn element(document: &roxmltree::Document<'_>, name: &str) -> String {
    let node = document.descendants().find(|node| node.tag_name().name() == name);
    node.and_then(|node| node.text()).unwrap_or_default().to_owned()
}

fn decoded(text: &str) -> Vec<u8> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(text).unwrap()
}

#[test]
fn the_provisioning_disk_of_linux_holds_name_user_keys_and_data() {
    let mut goal = guest().goal;
    assert!(provisioning_files(&goal, "x").is_empty(), "a NoCloud guest needs none");
    goal.guest.platform = Platform::Azure;
    let files = provisioning_files(&goal, "secret");
    let [(name, bytes)] = files.as_slice() else { panic!("{} files", files.len()) };
    assert_eq!(name, "ovf-env.xml");
    let text = String::from_utf8(bytes.clone()).unwrap();
    let document = roxmltree::Document::parse(&text).unwrap();
    assert_eq!(element(&document, "HostName"), "mfabcdefghij");
    assert_eq!(element(&document, "UserName"), "ada");
    assert_eq!(element(&document, "Value"), "ssh-ed25519 AAAA ada");
    assert_eq!(element(&document, "DisableSshPasswordAuthentication"), "false");
    assert!(!text.contains("secret"), "Linux guests get no password in clear text");
    let custom = String::from_utf8(decoded(&element(&document, "CustomData"))).unwrap();
    let parts = parts_of(&custom);
    assert_eq!(parts["text/x-shellscript"], "#!/bin/sh\n");
    let config = &parts["text/cloud-config"];
    assert!(config.contains("\"timezone\":\"Europe/Berlin\"") && config.contains("ada:$6$salt$hash"), "{config}");
}

/// Elements of the unattend schema's components that are used, each with its parents (Microsoft's "Components" reference).
const UNATTEND: [&str; 20] = [
    "specialize/Microsoft-Windows-Shell-Setup/ComputerName",
    "specialize/Microsoft-Windows-Shell-Setup/TimeZone",
    "oobeSystem/Microsoft-Windows-International-Core/InputLocale",
    "oobeSystem/Microsoft-Windows-International-Core/SystemLocale",
    "oobeSystem/Microsoft-Windows-International-Core/UILanguage",
    "oobeSystem/Microsoft-Windows-International-Core/UserLocale",
    "oobeSystem/Microsoft-Windows-Shell-Setup/OOBE/HideEULAPage",
    "oobeSystem/Microsoft-Windows-Shell-Setup/OOBE/HideLocalAccountScreen",
    "oobeSystem/Microsoft-Windows-Shell-Setup/OOBE/NetworkLocation",
    "oobeSystem/Microsoft-Windows-Shell-Setup/OOBE/ProtectYourPC",
    "oobeSystem/Microsoft-Windows-Shell-Setup/UserAccounts/AdministratorPassword/Value",
    "oobeSystem/Microsoft-Windows-Shell-Setup/UserAccounts/AdministratorPassword/PlainText",
    "oobeSystem/Microsoft-Windows-Shell-Setup/UserAccounts/LocalAccounts/LocalAccount/Password/Value",
    "oobeSystem/Microsoft-Windows-Shell-Setup/UserAccounts/LocalAccounts/LocalAccount/Password/PlainText",
    "oobeSystem/Microsoft-Windows-Shell-Setup/UserAccounts/LocalAccounts/LocalAccount/Group",
    "oobeSystem/Microsoft-Windows-Shell-Setup/UserAccounts/LocalAccounts/LocalAccount/Name",
    "specialize/Microsoft-Windows-TerminalServices-LocalSessionManager/fDenyTSConnections",
    "specialize/Networking-MPSSVC-Svc/FirewallGroups/FirewallGroup/Active",
    "specialize/Networking-MPSSVC-Svc/FirewallGroups/FirewallGroup/Group",
    "specialize/Networking-MPSSVC-Svc/FirewallGroups/FirewallGroup/Profile",
];

#[test]
fn the_provisioning_disk_of_windows_answers_its_setup() {
    let mut goal = guest().goal;
    goal.guest.platform = Platform::Windows;
    let access = ("ada".to_owned(), "MII".to_owned(), "2039-12-31".to_owned());
    goal.guest.remote_access = Some(RemoteAccess { user: access.0, password: access.1, expires: access.2 });
    let files = provisioning_files(&goal, "s3cret");
    let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        ["ovf-env.xml", "CustomData.bin", "E6DA6616-8EC4-48E0-BE93-58CE6ACE3CFB.tag", "unattend.xml"],
        "what cloudbase-init and Windows look for"
    );
    let text = String::from_utf8(files[3].1.clone()).unwrap();
    let document = roxmltree::Document::parse(&text).unwrap();
    assert_eq!(document.root_element().tag_name().namespace(), Some("urn:schemas-microsoft-com:unattend"));
    let leaves =
        document.descendants().filter(|node| node.is_element() && !node.children().any(|one| one.is_element()));
    let paths = leaves.map(|leaf| {
        let up = leaf.ancestors().filter(|node| node.is_element());
        let names = up.filter_map(|node| match node.tag_name().name() {
            "settings" => node.attribute("pass"),
            "component" => node.attribute("name"),
            "unattend" => None,
            name => Some(name),
        });
        let mut names: Vec<&str> = names.collect();
        names.reverse();
        names.join("/")
    });
    let paths: Vec<String> = paths.collect();
    assert_eq!(paths.len(), UNATTEND.len());
    for path in paths {
        assert!(UNATTEND.contains(&path.as_str()), "{path} is in no component");
    }
    assert_eq!(element(&document, "ComputerName"), "mfabcdefghij");
    assert_eq!(element(&document, "UserLocale"), "de-DE");
    let hidden = decoded(&element(&document, "Value"));
    let units: Vec<u16> = hidden.chunks(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
    assert_eq!(String::from_utf16(&units).unwrap(), "s3cretAdministratorPassword");
}

#[tokio::test]
async fn strangers_and_other_peoples_documents_are_refused() {
    let guests: Arc<dyn Guests> = Arc::new(One::default());
    assert_eq!(
        get(wire_server_router(guests.clone()), STRANGER, "/machine/?comp=goalstate").await.0,
        StatusCode::FORBIDDEN
    );
    assert_eq!(get(metadata_router(guests.clone()), STRANGER, "/nocloud/user-data").await.0, StatusCode::FORBIDDEN);
    let other = "/machine/other/0123.web%5FIN%5F0?comp=config&type=sharedConfig";
    assert_eq!(get(wire_server_router(guests.clone()), OWN, other).await.0, StatusCode::NOT_FOUND);
    let flood = Request::post("/machine?comp=health").body(Body::from("x".repeat(1 << 20))).unwrap();
    assert_eq!(ask(wire_server_router(guests), OWN, flood).await.0, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn metadata_and_seed() {
    let guests: Arc<dyn Guests> = Arc::new(One::default());
    let (_, text) = get(metadata_router(guests.clone()), OWN, "/nocloud/meta-data").await;
    assert!(text.contains("local-hostname: mfabcdefghij\n"), "{text}");
    let (_, text) = get(metadata_router(guests.clone()), OWN, "/nocloud/network-config").await;
    assert!(text.contains("{macaddress: \"02:00:0a:50:00:05\"}") && text.contains("dhcp6: true"), "{text}");
    assert_eq!(get(metadata_router(guests.clone()), OWN, "/nocloud/user-data").await.1, "#!/bin/sh\n");
    let path = "/metadata/instance?api-version=2021-08-01";
    assert_eq!(
        get(metadata_router(guests.clone()), OWN, path).await.0,
        StatusCode::BAD_REQUEST,
        "the header is missing"
    );
    let request = Request::get(path).header("Metadata", "True").body(Body::empty()).unwrap();
    let (status, body, _) = ask(metadata_router(guests.clone()), OWN, request).await;
    assert_eq!(status, StatusCode::OK);
    assert!(body.contains("\"macAddress\":\"02000A500005\""), "{body}");
    assert!(body.contains("{\"privateIpAddress\":\"fd6d::a50:5\"}"), "{body}");
    let ask_for = async |path: &str| {
        let request = Request::get(path).header("Metadata", "true").body(Body::empty()).unwrap();
        let (status, body, _) = ask(metadata_router(guests.clone()), OWN, request).await;
        (status, body)
    };
    let name = "/metadata/instance/compute/osProfile/computerName?api-version=2021-08-01&format=text";
    assert_eq!(ask_for(name).await, (StatusCode::OK, "mfabcdefghij".to_owned()));
    let (status, body) = ask_for("/metadata/instance").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(body.contains("newest-versions"), "{body}");
    assert_eq!(ask_for("/metadata/instance/compute/nothing?api-version=2021-08-01").await.0, StatusCode::NOT_FOUND);
    let (status, body) = ask_for("/metadata/attested/document?api-version=2021-08-01").await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(body.contains("signs no documents"), "{body}");
    let request = Request::get(path).header("Metadata", "true").header("X-Forwarded-For", "10.0.0.1");
    let request = request.body(Body::empty()).unwrap();
    assert_eq!(ask(metadata_router(guests.clone()), OWN, request).await.0, StatusCode::BAD_REQUEST);
    let (_, vendor) = get(metadata_router(guests.clone()), OWN, "/nocloud/vendor-data").await;
    let parts = parts_of(&vendor);
    assert!(parts["text/cloud-boothook"].contains("per-boot/50-mayfly"), "{vendor}");
    let config = parts["text/cloud-config"].strip_prefix("#cloud-config\n").unwrap();
    let config: serde_json::Value = serde_json::from_str(config).unwrap();
    assert_eq!(config["users"][1]["ssh_authorized_keys"][0], "ssh-ed25519 AAAA ada");
    assert_eq!(config["timezone"], "Europe/Berlin");
}

#[test]
fn health_is_read_and_nonsense_is_not() {
    let text = "<Health><State>NotReady</State><Details><SubStatus>Provisioning</SubStatus><Description>Starting</Description></Details></Health>";
    assert_eq!(parse_health(text).unwrap().0.detail, "Provisioning: Starting");
    for bad in ["", "<Health/>", "<State>Fine</State>", "<State>", "\0"] {
        assert_eq!(parse_health(bad), None, "{bad}");
    }
}

/// Bytes that look random and are the same each time.
struct Noise(u64);

impl Noise {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % below
    }

    fn pick<'p>(&mut self, parts: &[&'p str]) -> &'p str {
        parts[self.next(parts.len())]
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        (0..self.next(most)).map(|_| self.next(256) as u8).collect()
    }
}

#[tokio::test]
async fn garbage_is_answered_and_leaves_nothing() {
    let guests = Arc::new(One::default());
    let mut noise = Noise(20_261_128);
    let paths = [
        "/machine",
        "/machine/",
        "/",
        "/metadata/instance",
        "/metadata/scheduledevents",
        "/nocloud/user-data",
        "/mayfly/v1/script/report",
        "/status/x",
        "/status",
        "/vmAgentLog",
        "/HealthService",
        "/metadata/attested/x",
        "/machine/a/b",
        "/metadata/instance/compute/../../x",
        "/%00%ff",
        "/machine/%5F/%2e%2e",
    ];
    let queries = [
        "",
        "?comp=health",
        "?comp=goalstate",
        "?comp=config&type=x&incarnation=99999999999999999999",
        "?comp=telemetrydata",
        "?api-version=2021-02-01&format=text",
        "?api-version=%ff",
        "?comp=%",
        "?&&&===",
    ];
    let bodies: [&[u8]; 6] = [
        b"<Health><State>Ready</State>",
        b"{\"StartRequests\":[{\"EventId\":7}]}",
        b"{\"attempt\":-1}",
        b"<!DOCTYPE x [<!ENTITY a \"aaaa\"><!ENTITY b \"&a;&a;&a;\">]><Health><State>&b;</State></Health>",
        b"\xff\xfe<\0H\0",
        b"",
    ];
    for round in 0..4000 {
        let uri = format!("{}{}", noise.pick(&paths), noise.pick(&queries));
        let method = noise.pick(&["GET", "POST", "PUT", "DELETE", "BREW"]);
        let body = match noise.next(3) {
            0 => noise.bytes(2000),
            1 => bodies[noise.next(bodies.len())].to_vec(),
            _ => "<a>".repeat(noise.next(5000)).into_bytes(),
        };
        let request = Request::builder().method(method).uri(&uri).header("Metadata", "true").body(Body::from(body));
        let Ok(request) = request else { continue };
        let router = match noise.next(3) {
            0 => wire_server_router(guests.clone()),
            1 => plugin_router(guests.clone()),
            _ => metadata_router(guests.clone()),
        };
        let (status, text, _) = ask(router, OWN, request).await;
        assert!(text.len() < 64 << 10, "round {round}: {method} {uri} is answered with {} bytes", text.len());
        assert!(status != StatusCode::INTERNAL_SERVER_ERROR, "round {round}: {method} {uri}");
    }
    let heard = guests.0.lock().unwrap().clone();
    let harmless = |word: &Word| matches!(word, Word::Alive | Word::Status | Word::AsksForEvents);
    assert!(heard.iter().all(harmless), "garbage is no report: {:?}", heard.iter().find(|word| !harmless(word)));
}
