//! Management writes per second, durable, beside etcd; and a long list.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use mayfly_api::{Client, JoinRequest, TokenRequest};
use mayfly_identity::{Clock, JoinToken, Request, client_config, joining_config};
use mayfly_model::{HostFacts, HostReport, Incarnation, Transit};
use mayfly_xtask::etcd::Cluster;
use serde_json::json;

use super::region::{CAPACITY, name};
use crate::report::{Comparison, Report, median};

const TOKEN: &str = "bench";

pub fn measure(report: &mut Report, work: &Path, mayfly: &Path, pairs: usize, seconds: u32) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    report.table(
        "Management writes per second, durable",
        "etcd with one member, over its own HTTP API (the same client; gRPC is faster)",
    );
    let time = Duration::from_secs(seconds.into());
    for (clients, goal) in [(1, 1.0), (512, 10.0)] {
        let (mut ours, mut peer) = (Vec::new(), Vec::new());
        for _ in 0..pairs {
            let folder = tempfile::tempdir_in(work)?;
            let controller = Controller::start(mayfly, folder.path())?;
            ours.push(runtime.block_on(creates(&controller.url, clients, time))?);
            drop(controller);
            let cluster = Cluster::start(&folder.path().join("etcd"), 1, None)?;
            peer.push(runtime.block_on(puts(&cluster.endpoints()[0], clients, time))?);
        }
        let what = format!("{clients} clients: create a service, put a key of 200 bytes");
        report.compare(&Comparison { what: &what, ours: &ours, peer: &peer, is_time: false, unit: "/s", goal });
    }
    report.end();
    let folder = tempfile::tempdir_in(work)?;
    let controller = Controller::start(mayfly, folder.path())?;
    let (instances, times, memory) = runtime.block_on(list(&controller))?;
    report.bound(&format!("list of {instances} instances, JSON, read whole"), median(&times), "ms", 20.0);
    report.bound(&format!("memory of the controller's process with {instances} instances"), memory, "MiB", 64.0);
    Ok(())
}

/// A controller with the embedded store. Dropped, it is killed.
struct Controller {
    child: Child,
    url: String,
    hosts_url: String,
}

impl Controller {
    fn start(mayfly: &Path, folder: &Path) -> anyhow::Result<Controller> {
        let address = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
        let for_hosts = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
        let config = json!({
            "folder": folder.join("controller"),
            "listen": [address],
            "listen_hosts": [for_hosts],
            "user_token": TOKEN,
            "fabric": { "zone": "bench.test", "dips": ["10.0.0.0", 8], "vips": ["20.0.0.0", 8] },
        });
        let file = folder.join("controller.json");
        std::fs::write(&file, config.to_string())?;
        let log = std::fs::File::create(folder.join("controller.log"))?;
        let child = Command::new(mayfly)
            .args(["internal", "controller"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        let controller =
            Controller { child, url: format!("http://{address}"), hosts_url: format!("https://{for_hosts}") };
        let deadline = Instant::now() + Duration::from_secs(10);
        while std::net::TcpStream::connect(address).is_err() {
            if Instant::now() > deadline {
                bail!("the controller does not start");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_millis(300));
        Ok(controller)
    }

    fn memory(&self) -> anyhow::Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line =
            status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB")?.trim().parse().ok());
        line.context("no VmHWM")
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Requests per second that `clients` get through in `time`, each one after the other.
async fn rate<F, R>(clients: usize, time: Duration, request: F) -> anyhow::Result<f64>
where
    F: Fn(u64) -> R + Clone + Send + 'static,
    R: Future<Output = anyhow::Result<()>> + Send,
{
    let next = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let mut tasks = Vec::new();
    for _ in 0..clients {
        let (next, request) = (Arc::clone(&next), request.clone());
        tasks.push(tokio::spawn(async move {
            while began.elapsed() < time {
                request(next.fetch_add(1, Ordering::Relaxed)).await?;
            }
            anyhow::Ok(())
        }));
    }
    for task in tasks {
        task.await??;
    }
    Ok(next.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64())
}

async fn creates(url: &str, clients: usize, time: Duration) -> anyhow::Result<f64> {
    let client = Client::new(url, TOKEN);
    rate(clients, time, move |number| {
        let client = client.clone();
        async move { Ok(client.service_create(&name(&format!("s{number}"))?).await?) }
    })
    .await
}

async fn puts(url: &str, clients: usize, time: Duration) -> anyhow::Result<f64> {
    let http = reqwest::Client::builder().no_proxy().build()?;
    let (url, value) = (format!("{url}/v3/kv/put"), BASE64_STANDARD.encode("x".repeat(200)));
    rate(clients, time, move |number| {
        let (http, url) = (http.clone(), url.clone());
        let body = json!({ "key": BASE64_STANDARD.encode(format!("s{number}")), "value": value });
        async move {
            http.post(url).json(&body).send().await?.error_for_status()?.bytes().await?;
            Ok(())
        }
    })
    .await
}

/// A host that has joined, as a client.
async fn join(users: &Client, hosts_url: &str, host: &mayfly_model::HostName) -> anyhow::Result<Client> {
    let clock = Clock::start();
    let made = users.token_create(&TokenRequest { host: Some(host.clone()), minutes: 5 }).await?;
    let token = made.token.context("no join token")?;
    let stranger = joining_config(token.parse::<JoinToken>()?.authority, clock)?;
    let request = Request::generate()?;
    let body = JoinRequest { token, host: host.clone(), request: request.pem.clone() };
    let answer = Client::with_tls(hosts_url, stranger).join(&body).await?;
    let keys = request.into_keys(&answer.certificate, &answer.authority)?;
    Ok(Client::with_tls(hosts_url, client_config(&keys, clock)?))
}

/// A list of 10,000 instances: how many there are, the times to read it, and the controller's memory in MiB.
async fn list(controller: &Controller) -> anyhow::Result<(usize, Vec<f64>, f64)> {
    let client = Client::new(&controller.url, TOKEN);
    for number in 0..500u32 {
        let report = HostReport {
            host: name(&format!("host-{number}"))?,
            facts: HostFacts {
                fault_domain: format!("rack-{}", number / 20),
                address: Ipv4Addr::from(0x0b00_0000 + number),
                capacity: CAPACITY,
                labels: BTreeMap::new(),
                features: BTreeSet::new(),
                images: BTreeSet::new(),
                transit: Transit::default(),
                tunnel_key: None,
            },
            boot_id: 1,
            sequence: 1,
            lease_ack: 0,
            applied: Incarnation(u64::MAX),
            vms: Vec::new(),
            incidents: Vec::new(),
            counters: Default::default(),
        };
        let host = join(&client, &controller.hosts_url, &report.host).await?;
        host.report(&report, Duration::from_secs(5)).await?;
    }
    let image = mayfly_model::Manifest {
        disk_bytes: 512,
        chunk_bytes: mayfly_model::CHUNK_BYTES as _,
        vhd_id: [0; 16],
        vhd_timestamp: 0,
        chunks: Default::default(),
    };
    client.image_commit(&name("hello")?, &image).await?;
    let file = |file: &str, text: String| mayfly_api::SourceFile { name: file.to_owned(), text };
    for number in 0..10 {
        let service = name(&format!("s{number}"))?;
        client.service_create(&service).await?;
        let definition = "<ServiceDefinition name=\"s\" xmlns=\"http://schemas.microsoft.com/ServiceHosting/2008/10/ServiceDefinition\"><VirtualMachineRole name=\"web\" vmsize=\"ExtraSmall\"/></ServiceDefinition>";
        let configuration = "<ServiceConfiguration serviceName=\"s\" xmlns=\"http://schemas.microsoft.com/ServiceHosting/2008/10/ServiceConfiguration\"><Role name=\"web\"><OsImage href=\"hello\"/><Instances count=\"1000\"/></Role></ServiceConfiguration>";
        let request = mayfly_api::DeployRequest {
            definition: file("a.csdef", definition.to_owned()),
            configuration: file("a.cscfg", configuration.to_owned()),
            files: BTreeMap::new(),
        };
        client.deploy(&service, mayfly_model::Slot::Production, &request).await?;
    }
    let http = reqwest::Client::builder().no_proxy().build()?;
    let (mut times, mut count) = (Vec::new(), 0);
    for _ in 0..15 {
        let began = Instant::now();
        let request = http.get(format!("{}/v1/instances", controller.url)).bearer_auth(TOKEN);
        let bytes = request.send().await?.error_for_status()?.bytes().await?;
        times.push(began.elapsed().as_secs_f64() * 1000.0);
        count = serde_json::from_slice::<Vec<serde_json::Value>>(&bytes)?.len();
    }
    Ok((count, times, controller.memory()? / 1024.0))
}
