//! What a guest sends to its servers: a letter for the server, then a request as HTTP has it.

#![no_main]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::ConnectInfo;
use axum::http::{Request, StatusCode};
use futures_util::future::BoxFuture;
use libfuzzer_sys::fuzz_target;
use mayfly_wire::{Guest, Guests, Word, metadata_router, plugin_router, wire_server_router};
use tower::ServiceExt;

/// A guest with a certificate and a script, as its host's goal state has it.
const GOAL: &str = r#"{"vm":7,"instance":{"deployment":{"service":"shop","slot":"production"},"role":"web","index":0},
"deployment_id":"0123456789abcdef0123456789abcdef","generation":1,"computer_name":"mfabcdefghij","fault_domain":"fd-1",
"update_domain":0,"dip":"10.80.0.5","size":"Small",
"image":"0000000000000000000000000000000000000000000000000000000000000000","image_bytes":1,"reboots":0,
"user_data":"","settings":{"A":"b"},"probes":[],"guest":{"certificates":[{"definition":{"name":"Site",
"store_location":"LocalMachine","store_name":"My"},"thumbprint":"ABABABABABABABABABABABABABABABABABABABAB"}],
"script":{"text":"x","timeout_seconds":1,"tries":1,"each_boot":false,"must_succeed":true}}}"#;

static GUEST: LazyLock<Guest> = LazyLock::new(|| Guest {
    goal: serde_json::from_str(GOAL).expect("the goal is one"),
    complete: true,
    incarnation: 1,
    domain: "shop.internal.z".to_owned(),
    location: "here".to_owned(),
    members: Arc::default(),
    planned: None,
});

struct One;

impl Guests for One {
    fn guest(&self, _: Ipv4Addr) -> Option<Guest> {
        Some(GUEST.clone())
    }

    fn certificates<'a>(&'a self, _: &'a Guest) -> BoxFuture<'a, Result<Arc<[u8]>, String>> {
        Box::pin(async { Ok(Arc::from(&b"archive"[..])) })
    }

    fn hear(&self, _: Ipv4Addr, word: Word) -> bool {
        if let Word::Script(report) = &word {
            assert!(report.output.len() <= 16 << 10);
        }
        if let Word::Health(report) = &word {
            assert!(report.detail.len() <= 2000);
        }
        true
    }
}

static ROUTERS: LazyLock<[Router; 3]> = LazyLock::new(|| {
    let one: Arc<dyn Guests> = Arc::new(One);
    [wire_server_router(Arc::clone(&one)), plugin_router(Arc::clone(&one)), metadata_router(one)]
});

fn request(data: &[u8]) -> Option<(&'static Router, Request<Body>)> {
    let (server, rest) = data.split_first()?;
    let end = rest.windows(2).position(|two| two == b"\n\n").unwrap_or(rest.len());
    let (head, body) = (std::str::from_utf8(&rest[..end]).ok()?, rest.get(end + 2..).unwrap_or_default());
    let mut lines = head.lines();
    let (method, uri) = lines.next()?.split_once(' ')?;
    let mut request = Request::builder().method(method).uri(uri);
    for line in lines {
        let (name, value) = line.split_once(": ")?;
        request = request.header(name, value);
    }
    let mut request = request.body(Body::from(body.to_vec())).ok()?;
    request.extensions_mut().insert(ConnectInfo(SocketAddr::from(([10, 80, 0, 5], 4000))));
    Some((&ROUTERS[usize::from(*server) % 3], request))
}

fuzz_target!(|data: &[u8]| {
    let Some((router, request)) = request(data) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let response = router.clone().oneshot(request).await.expect("it always answers");
        assert_ne!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        to_bytes(response.into_body(), 64 << 10).await.expect("answers are short");
    });
});
