//! The protocols, asked as guests ask.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::ConnectInfo;
use axum::http::{Request, StatusCode};
use mayfly_model::{Digest, VmGoal, VmId, VmSize};
use tower::ServiceExt;

use crate::wire_server::parse_health;
use crate::{Guest, Guests, HealthReport, metadata_router, wire_server_router};

const OWN: Ipv4Addr = Ipv4Addr::new(10, 80, 0, 5);
const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 80, 0, 6);

#[derive(Default)]
struct One(Mutex<Vec<HealthReport>>);

impl Guests for One {
    fn guest(&self, address: Ipv4Addr) -> Option<Guest> {
        (address == OWN).then(guest)
    }

    fn report(&self, _: Ipv4Addr, report: HealthReport) {
        self.0.lock().unwrap().push(report);
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
    };
    Guest { goal, incarnation: 3, domain: "shop.internal.z".to_owned(), location: "here".to_owned() }
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
    for name in ["SharedConfig", "ExtensionsConfig"] {
        assert_eq!(get(router(), OWN, &url(name).replace("%5F", "_")).await.0, StatusCode::OK, "{name}");
    }
    let body = "<Health><Container><RoleInstanceList><Role><Health><State>Ready</State></Health></Role></RoleInstanceList></Container></Health>";
    let request = Request::post("/machine?comp=health").body(Body::from(body)).unwrap();
    let (status, _, latest) = ask(router(), OWN, request).await;
    assert_eq!((status, latest.as_deref()), (StatusCode::OK, Some("3")));
    assert_eq!(guests.0.lock().unwrap().as_slice(), [HealthReport { ready: true, detail: String::new() }]);
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
    assert_eq!(get(metadata_router(guests.clone()), OWN, "/nocloud/user-data").await.1, "#!/bin/sh\n");
    let path = "/metadata/instance?api-version=2021-08-01";
    assert_eq!(
        get(metadata_router(guests.clone()), OWN, path).await.0,
        StatusCode::BAD_REQUEST,
        "the header is missing"
    );
    let request = Request::get(path).header("Metadata", "True").body(Body::empty()).unwrap();
    let (status, body, _) = ask(metadata_router(guests), OWN, request).await;
    assert_eq!(status, StatusCode::OK);
    assert!(body.contains("\"macAddress\":\"02000A500005\""), "{body}");
}

#[test]
fn health_is_read_and_nonsense_is_not() {
    let text = "<Health><State>NotReady</State><Details><SubStatus>Provisioning</SubStatus><Description>Starting</Description></Details></Health>";
    assert_eq!(parse_health(text).unwrap().detail, "Provisioning: Starting");
    for bad in ["", "<Health/>", "<State>Fine</State>", "<State>", "\0"] {
        assert_eq!(parse_health(bad), None, "{bad}");
    }
}
