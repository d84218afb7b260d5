//! The client of the management and host APIs.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use mayfly_model::{
    ChunkDigest, HostName, HostReport, ImageName, Incarnation, InstanceKey, Manifest, ReservedName, RoleName, Scope,
    ServiceName, Slot, Thumbprint, UpgradeMode, VmId,
};
use reqwest::{Method, Request, RequestBuilder, Response, StatusCode, Upgraded};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::REQUEST_HEADER;
use crate::call::{CALL_PROTOCOL, HostNews, ScriptRunView};
use crate::certificate::{CertificateRequest, CertificateSecret, CertificateView};
use crate::error::{ApiError, ErrorCode};
use crate::host_api::ReportAnswer;
use crate::joining::{CertificateAnswer, JoinRequest, RenewRequest, TokenRequest, TokenView};
use crate::view::{
    AddressView, BreakerView, DeployRequest, EventView, HostView, ImageView, InstanceView, MetricRequest, PlanView,
    RollbackRequest, ScaleRequest, ServiceView, TraceView, UpgradeRequest, UsageView, WalkRequest,
};

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The controller refused, and says why.
    #[error(transparent)]
    Refused(#[from] ApiError),
    /// The controller cannot be reached, or the connection broke.
    #[error("the controller at {url} cannot be reached")]
    Unreachable {
        /// Its address.
        url: String,
        /// The network's reason.
        #[source]
        source: reqwest::Error,
    },
}

impl ClientError {
    /// Whether it may be otherwise in a moment, or at another controller: this one is not there, or does not lead.
    pub fn is_passing(&self) -> bool {
        match self {
            ClientError::Refused(error) => matches!(error.code, ErrorCode::NotLeader | ErrorCode::Unavailable),
            ClientError::Unreachable { .. } => true,
        }
    }

    /// The controller's own code, where it answered.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            ClientError::Refused(error) => Some(error.code),
            ClientError::Unreachable { .. } => None,
        }
    }
}

/// A client of one controller, or of several of which one leads.
#[derive(Clone, Debug)]
pub struct Client {
    http: Arc<RwLock<reqwest::Client>>,
    urls: Arc<Vec<String>>,
    /// The one that answered last.
    current: Arc<AtomicUsize>,
    token: String,
}

/// How long a request may take that does no work to speak of; a question for news is held for ten seconds.
const TIMEOUT: Duration = Duration::from_secs(14);
/// How long a request may take that carries much.
const TRANSFER: Duration = Duration::from_secs(300);
/// How long somebody may look at a console.
const DAY: Duration = Duration::from_secs(86_400);
/// How long several controllers are asked in turn until one leads.
const PATIENCE: Duration = Duration::from_secs(32);
/// Between two rounds.
const ROUND: Duration = Duration::from_millis(150);

impl Client {
    /// A client of the controllers at `urls`, separated by commas, for example `http://10.77.0.1:7070`.
    pub fn new(urls: &str, token: &str) -> Client {
        let roots = rustls::RootCertStore::empty();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let tls = tls.map(|tls| tls.with_root_certificates(roots).with_no_client_auth());
        Client { token: token.to_owned(), ..Client::over(urls, tls.ok()) }
    }

    /// A host's client of the controllers at `urls`, which begin with `https`.
    pub fn with_tls(urls: &str, tls: rustls::ClientConfig) -> Client {
        Client::over(urls, Some(tls))
    }

    fn over(urls: &str, tls: Option<rustls::ClientConfig>) -> Client {
        let urls = urls.split(',').map(|url| url.trim().trim_end_matches('/').to_owned()).collect();
        let current = Arc::new(AtomicUsize::new(0));
        Client { http: Arc::new(RwLock::new(connector(tls))), urls: Arc::new(urls), current, token: String::new() }
    }

    /// Shows another certificate from now on, on new connections.
    pub fn replace_tls(&self, tls: rustls::ClientConfig) {
        *self.http.write().unwrap_or_else(PoisonError::into_inner) = connector(Some(tls));
    }

    /// All images.
    pub async fn image_list(&self) -> Result<Vec<ImageView>, ClientError> {
        self.json(self.request(Method::GET, "/v1/images")).await
    }

    /// Which of these chunks the controller does not have.
    pub async fn chunks_missing(&self, chunks: &[ChunkDigest]) -> Result<Vec<ChunkDigest>, ClientError> {
        let body: String = chunks.iter().map(|chunk| format!("{chunk}\n")).collect();
        let request = self.request(Method::POST, "/v1/chunks/missing").timeout(TRANSFER).body(body);
        self.parsed(request, |text| text.lines().map(str::parse).collect()).await
    }

    /// Uploads a chunk.
    pub async fn chunk_put(&self, digest: ChunkDigest, bytes: Vec<u8>) -> Result<(), ClientError> {
        self.done(self.request(Method::PUT, &format!("/v1/chunks/{digest}")).timeout(TRANSFER).body(bytes)).await
    }

    /// Downloads a chunk.
    pub async fn chunk_get(&self, digest: ChunkDigest) -> Result<Vec<u8>, ClientError> {
        let request = self.request(Method::GET, &format!("/v1/chunks/{digest}")).timeout(TRANSFER);
        let bytes = self.checked(request).await?.bytes().await.map_err(|source| self.unreachable(source))?;
        match ChunkDigest::of(&bytes) == digest {
            true => Ok(bytes.to_vec()),
            false => Err(self.nonsense(format!("chunk {digest} came damaged; try again"))),
        }
    }

    /// Makes an image of chunks that have all been uploaded.
    pub async fn image_commit(&self, name: &ImageName, manifest: &Manifest) -> Result<ImageView, ClientError> {
        let request = self.request(Method::PUT, &format!("/v1/images/{name}"));
        self.json(request.timeout(TRANSFER).body(manifest.to_text())).await
    }

    /// An image's manifest.
    pub async fn image_manifest(&self, name: &str) -> Result<Manifest, ClientError> {
        let request = self.request(Method::GET, &format!("/v1/images/{name}/manifest")).timeout(TRANSFER);
        self.parsed(request, Manifest::parse).await
    }

    /// Forgets an image.
    pub async fn image_delete(&self, name: &ImageName) -> Result<(), ClientError> {
        self.done(self.request(Method::DELETE, &format!("/v1/images/{name}")).timeout(TRANSFER)).await
    }

    /// All services.
    pub async fn service_list(&self) -> Result<Vec<ServiceView>, ClientError> {
        self.json(self.request(Method::GET, "/v1/services")).await
    }

    /// One service.
    pub async fn service_show(&self, name: &ServiceName) -> Result<ServiceView, ClientError> {
        self.json(self.request(Method::GET, &format!("/v1/services/{name}"))).await
    }

    /// Makes a service.
    pub async fn service_create(&self, name: &ServiceName) -> Result<(), ClientError> {
        self.done(self.request(Method::POST, &format!("/v1/services/{name}"))).await
    }

    /// Deletes a service.
    pub async fn service_delete(&self, name: &ServiceName) -> Result<(), ClientError> {
        self.done(self.request(Method::DELETE, &format!("/v1/services/{name}"))).await
    }

    /// Reserves a public address.
    pub async fn address_reserve(&self, name: &ReservedName) -> Result<AddressView, ClientError> {
        self.json(self.request(Method::POST, &format!("/v1/addresses/{name}"))).await
    }

    /// The reserved public addresses.
    pub async fn address_list(&self) -> Result<Vec<AddressView>, ClientError> {
        self.json(self.request(Method::GET, "/v1/addresses")).await
    }

    /// Gives up a reserved public address.
    pub async fn address_release(&self, name: &ReservedName) -> Result<(), ClientError> {
        self.done(self.request(Method::DELETE, &format!("/v1/addresses/{name}"))).await
    }

    /// Gives a service a certificate.
    pub async fn certificate_add(
        &self,
        name: &ServiceName,
        request: &CertificateRequest,
    ) -> Result<CertificateView, ClientError> {
        self.ask(&format!("/v1/services/{name}/certificates"), request).await
    }

    /// The certificates of a service.
    pub async fn certificate_list(&self, name: &ServiceName) -> Result<Vec<CertificateView>, ClientError> {
        self.json(self.request(Method::GET, &format!("/v1/services/{name}/certificates"))).await
    }

    /// Takes a certificate from a service.
    pub async fn certificate_delete(&self, name: &ServiceName, thumbprint: &Thumbprint) -> Result<(), ClientError> {
        self.done(self.request(Method::DELETE, &format!("/v1/services/{name}/certificates/{thumbprint}"))).await
    }

    /// The certificates of a VM that is on the host that asks, with their private keys.
    pub async fn vm_secrets(&self, vm: VmId) -> Result<Vec<CertificateSecret>, ClientError> {
        self.json(self.request(Method::GET, &format!("/host/v1/vms/{}/secrets", vm.0))).await
    }

    /// Deploys into a slot.
    pub async fn deploy(&self, name: &ServiceName, slot: Slot, request: &DeployRequest) -> Result<(), ClientError> {
        self.send(&format!("/v1/services/{name}/deployments/{slot}"), request).await
    }

    /// What deploying would do.
    pub async fn deploy_plan(
        &self,
        name: &ServiceName,
        slot: Slot,
        request: &DeployRequest,
    ) -> Result<PlanView, ClientError> {
        self.ask(&format!("/v1/services/{name}/deployments/{slot}?plan=true"), request).await
    }

    /// Empties a slot.
    pub async fn deployment_delete(&self, name: &ServiceName, slot: Slot) -> Result<(), ClientError> {
        self.done(self.request(Method::DELETE, &format!("/v1/services/{name}/deployments/{slot}"))).await
    }

    /// Changes a deployment in place.
    pub async fn upgrade(&self, name: &ServiceName, slot: Slot, request: &UpgradeRequest) -> Result<(), ClientError> {
        self.send(&format!("/v1/services/{name}/deployments/{slot}/upgrade"), request).await
    }

    /// What changing a deployment in place would begin with.
    pub async fn upgrade_plan(
        &self,
        name: &ServiceName,
        slot: Slot,
        request: &UpgradeRequest,
    ) -> Result<PlanView, ClientError> {
        self.ask(&format!("/v1/services/{name}/deployments/{slot}/upgrade?plan=true"), request).await
    }

    /// Lets an update that is done by hand go on.
    pub async fn walk(&self, name: &ServiceName, slot: Slot, domain: Option<u32>) -> Result<(), ClientError> {
        self.send(&format!("/v1/services/{name}/deployments/{slot}/walk"), &WalkRequest { domain }).await
    }

    /// Takes an update back.
    pub async fn roll_back(&self, name: &ServiceName, slot: Slot, mode: UpgradeMode) -> Result<(), ClientError> {
        self.send(&format!("/v1/services/{name}/deployments/{slot}/rollback"), &RollbackRequest { mode }).await
    }

    /// Does `verb`, `suspend` or `start`, to a deployment.
    pub async fn deployment_act(&self, name: &ServiceName, slot: Slot, verb: &str) -> Result<(), ClientError> {
        self.done(self.request(Method::POST, &format!("/v1/services/{name}/deployments/{slot}/{verb}"))).await
    }

    /// Exchanges the slots of a service.
    pub async fn swap(&self, name: &ServiceName) -> Result<(), ClientError> {
        self.done(self.request(Method::POST, &format!("/v1/services/{name}/swap"))).await
    }

    /// Says how much a role has to do.
    pub async fn metric_push(
        &self,
        name: &ServiceName,
        slot: Slot,
        role: &RoleName,
        metric: &str,
        value: i64,
    ) -> Result<(), ClientError> {
        let path = format!("/v1/services/{name}/deployments/{slot}/metrics/{role}/{metric}");
        self.done(self.request(Method::PUT, &path).json(&MetricRequest { value })).await
    }

    /// What scaling would do.
    pub async fn scale_plan(
        &self,
        name: &ServiceName,
        slot: Slot,
        request: &ScaleRequest,
    ) -> Result<PlanView, ClientError> {
        self.ask(&format!("/v1/services/{name}/deployments/{slot}/scale?plan=true"), request).await
    }

    /// Sets numbers of instances.
    pub async fn scale(&self, name: &ServiceName, slot: Slot, request: &ScaleRequest) -> Result<(), ClientError> {
        self.send(&format!("/v1/services/{name}/deployments/{slot}/scale"), request).await
    }

    /// Instances of a service, or all.
    pub async fn instance_list(&self, service: Option<&ServiceName>) -> Result<Vec<InstanceView>, ClientError> {
        let query = service.map_or_else(String::new, |service| format!("?service={service}"));
        self.json(self.request(Method::GET, &format!("/v1/instances{query}"))).await
    }

    /// Does `verb`, `reboot` or `reimage`, to an instance.
    pub async fn instance_act(&self, key: &InstanceKey, verb: &str) -> Result<(), ClientError> {
        let (service, slot) = (&key.deployment.service, key.deployment.slot);
        self.done(self.request(Method::POST, &format!("/v1/instances/{service}/{slot}/{}/{verb}", key.name()))).await
    }

    /// Why an instance is where it is, or waits.
    pub async fn instance_explain(&self, key: &InstanceKey) -> Result<Vec<String>, ClientError> {
        let (service, slot) = (&key.deployment.service, key.deployment.slot);
        self.json(self.request(Method::GET, &format!("/v1/instances/{service}/{slot}/{}/explain", key.name()))).await
    }

    /// Whether a packet would pass from an instance or an address to `ADDRESS:PORT`, `NAME:PORT`, or either with `/udp`.
    pub async fn trace(&self, from: &str, to: &str) -> Result<TraceView, ClientError> {
        let encoded = reqwest::Url::parse_with_params("http://fabric", &[("from", from), ("to", to)]).ok();
        let query = encoded.as_ref().and_then(|url| url.query()).unwrap_or_default();
        self.json(self.request(Method::GET, &format!("/v1/trace?{query}"))).await
    }

    /// Does `verb`, one of `drain`, `undrain`, `reboot` and `forget`, to a host.
    pub async fn host_act(&self, name: &HostName, verb: &str) -> Result<(), ClientError> {
        self.done(self.request(Method::POST, &format!("/v1/hosts/{name}/{verb}"))).await
    }

    /// All hosts.
    pub async fn host_list(&self) -> Result<Vec<HostView>, ClientError> {
        self.json(self.request(Method::GET, "/v1/hosts")).await
    }

    /// Events from `first` on; with `wait`, the answer comes when there is at least one.
    pub async fn event_list(&self, first: u64, wait: bool) -> Result<Vec<EventView>, ClientError> {
        self.json(self.request(Method::GET, &format!("/v1/events?first={first}&wait={wait}"))).await
    }

    /// What healing has been stopped for.
    pub async fn breaker_show(&self) -> Result<Vec<BreakerView>, ClientError> {
        self.json(self.request(Method::GET, "/v1/breaker")).await
    }

    /// Lets healing go on.
    pub async fn breaker_reset(&self, scope: &Scope) -> Result<(), ClientError> {
        self.done(self.request(Method::POST, &format!("/v1/breaker/{scope}/reset"))).await
    }

    /// What each service has used on each day.
    pub async fn usage(&self) -> Result<Vec<UsageView>, ClientError> {
        self.json(self.request(Method::GET, "/v1/usage")).await
    }

    /// A host's report. It is sent once: the next one says more.
    pub async fn report(&self, report: &HostReport, timeout: Duration) -> Result<ReportAnswer, ClientError> {
        let request = self.request(Method::POST, "/host/v1/report").timeout(timeout).json(report);
        let answer = self.once(request.build().map_err(|source| self.unreachable(source))?).await?;
        answer.json().await.map_err(|source| self.unreachable(source))
    }

    /// Comes in as a host, with a join token.
    pub async fn join(&self, request: &JoinRequest) -> Result<CertificateAnswer, ClientError> {
        self.ask("/host/v1/join", request).await
    }

    /// Gets a new certificate.
    pub async fn renew(&self, request: &RenewRequest) -> Result<CertificateAnswer, ClientError> {
        self.ask("/host/v1/renew", request).await
    }

    /// All records, as `mayfly controller restore` reads them.
    pub async fn backup(&self) -> Result<Vec<u8>, ClientError> {
        let answer = self.checked(self.request(Method::GET, "/v1/backup").timeout(TRANSFER)).await?;
        Ok(answer.bytes().await.map_err(|source| self.unreachable(source))?.to_vec())
    }

    /// Makes a join token.
    pub async fn token_create(&self, request: &TokenRequest) -> Result<TokenView, ClientError> {
        self.ask("/v1/tokens", request).await
    }

    /// The join tokens that have not expired.
    pub async fn token_list(&self) -> Result<Vec<TokenView>, ClientError> {
        self.json(self.request(Method::GET, "/v1/tokens")).await
    }

    /// Takes a join token back.
    pub async fn token_delete(&self, id: &str) -> Result<(), ClientError> {
        self.done(self.request(Method::DELETE, &format!("/v1/tokens/{id}"))).await
    }

    /// Returns when there is a goal state for the host that is newer than `have`, when somebody calls, or after a while.
    pub async fn wait_for_news(&self, host: &HostName, have: Incarnation) -> Result<HostNews, ClientError> {
        let request = self.request(Method::GET, &format!("/host/v1/wait?host={host}&have={}", have.0));
        let answer = self.once(request.build().map_err(|source| self.unreachable(source))?).await?;
        answer.json().await.map_err(|source| self.unreachable(source))
    }

    /// Opens the connection over which a host answers a call.
    pub async fn call_answer(&self, id: &str) -> Result<Upgraded, ClientError> {
        self.upgraded(&format!("/host/v1/calls/{id}")).await
    }

    /// An instance's serial console: what is written goes to the guest, what is read comes from it.
    pub async fn instance_console(&self, instance: &InstanceKey) -> Result<Upgraded, ClientError> {
        self.upgraded(&format!("{}/console", instance_path(instance))).await
    }

    /// What an instance's serial console has said, in this boot or an earlier one; with `follow` it goes on.
    pub async fn instance_console_log(
        &self,
        instance: &InstanceKey,
        boots_ago: u8,
        follow: bool,
    ) -> Result<Response, ClientError> {
        let path = format!("{}/console-log?boots_ago={boots_ago}&follow={follow}", instance_path(instance));
        self.streamed(&path).await
    }

    /// What became of an instance's post-boot script.
    pub async fn instance_script(&self, instance: &InstanceKey) -> Result<Vec<ScriptRunView>, ClientError> {
        self.json(self.request(Method::GET, &format!("{}/script", instance_path(instance)))).await
    }

    /// A picture of an instance's screen, as PNG.
    pub async fn instance_screenshot(&self, instance: &InstanceKey) -> Result<Vec<u8>, ClientError> {
        let request = self.request(Method::GET, &format!("{}/screenshot", instance_path(instance))).timeout(TRANSFER);
        let bytes = self.checked(request).await?.bytes().await.map_err(|source| self.unreachable(source))?;
        Ok(bytes.to_vec())
    }

    /// The differencing disk of a stopped instance.
    pub async fn instance_disk(&self, instance: &InstanceKey) -> Result<Response, ClientError> {
        self.streamed(&format!("{}/disk", instance_path(instance))).await
    }

    /// An answer that may take as long as it takes.
    async fn streamed(&self, path: &str) -> Result<Response, ClientError> {
        let request = self.request(Method::GET, path).timeout(DAY);
        self.checked(request).await
    }

    /// A connection that is no longer HTTP.
    async fn upgraded(&self, path: &str) -> Result<Upgraded, ClientError> {
        let request = self.request(Method::GET, path).timeout(DAY);
        let request = request.header("connection", "upgrade").header("upgrade", CALL_PROTOCOL);
        let response = self.checked(request).await?;
        response.upgrade().await.map_err(|source| self.unreachable(source))
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let reads = method == Method::GET;
        let request = self.http().request(method, format!("{}{path}", self.url())).timeout(TIMEOUT);
        // Hosts show a certificate instead.
        let request = if self.token.is_empty() { request } else { request.bearer_auth(&self.token) };
        if reads { request } else { request.header(REQUEST_HEADER, format!("{:032x}", rand::random::<u128>())) }
    }

    fn http(&self) -> reqwest::Client {
        self.http.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The controller that is asked at present.
    pub fn url(&self) -> &str {
        let current = self.current.load(Ordering::Relaxed);
        self.urls.get(current).or(self.urls.first()).map_or("", String::as_str)
    }

    /// Asks the next controller from now on, unless somebody has turned away from this one already.
    fn turn_from(&self, asked: usize) {
        let next = (asked + 1) % self.urls.len().max(1);
        // Whoever was quicker has turned to the same one.
        let _ = self.current.compare_exchange(asked, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    async fn send(&self, path: &str, body: &impl Serialize) -> Result<(), ClientError> {
        self.done(self.request(Method::POST, path).json(body)).await
    }

    async fn ask<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        self.json(self.request(Method::POST, path).json(body)).await
    }

    async fn done(&self, request: RequestBuilder) -> Result<(), ClientError> {
        self.checked(request).await.map(drop)
    }

    async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, ClientError> {
        self.checked(request).await?.json().await.map_err(|source| self.unreachable(source))
    }

    async fn parsed<T>(
        &self,
        request: RequestBuilder,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, ClientError> {
        let text = self.checked(request).await?.text().await.map_err(|source| self.unreachable(source))?;
        parse(&text).map_err(|why| self.nonsense(why))
    }

    fn nonsense(&self, why: String) -> ClientError {
        ClientError::Refused(ApiError::new(ErrorCode::Internal, format!("the controller at {}: {why}", self.url())))
    }

    /// Sends a request, to one controller after the other until one answers that leads. That is safe, as each request that
    /// changes something has a name.
    async fn checked(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let request = request.build().map_err(|source| self.unreachable(source))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let Some(copy) = request.try_clone() else { return self.once(request).await };
            match self.once(copy).await {
                // A single controller that is starting will lead; one that is not there is for the caller to judge.
                Err(error)
                    if Instant::now() < deadline
                        && (error.code() == Some(ErrorCode::NotLeader)
                            || self.urls.len() > 1 && error.is_passing()) =>
                {
                    tokio::time::sleep(ROUND).await;
                }
                answer => return answer,
            }
        }
    }

    /// Sends a request to the present controller; if that does not lead, another one is asked next time.
    async fn once(&self, mut request: Request) -> Result<Response, ClientError> {
        let asked = self.current.load(Ordering::Relaxed);
        redirect(&mut request, self.url());
        let answer = self.answer(request).await;
        if answer.as_ref().is_err_and(ClientError::is_passing) {
            self.turn_from(asked);
        }
        answer
    }

    async fn answer(&self, request: Request) -> Result<Response, ClientError> {
        let response = self.http().execute(request).await.map_err(|source| self.unreachable(source))?;
        let status = response.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let text = response.text().await.map_err(|source| self.unreachable(source))?;
        Err(ClientError::Refused(serde_json::from_str(&text).unwrap_or_else(|_| {
            ApiError::new(ErrorCode::Internal, format!("the controller answered {status}: {text}"))
        })))
    }

    fn unreachable(&self, source: reqwest::Error) -> ClientError {
        ClientError::Unreachable { url: self.url().to_owned(), source }
    }
}

fn instance_path(instance: &InstanceKey) -> String {
    let InstanceKey { deployment, .. } = instance;
    format!("/v1/instances/{}/{}/{}", deployment.service, deployment.slot, instance.name())
}

fn connector(tls: Option<rustls::ClientConfig>) -> reqwest::Client {
    let builder = reqwest::Client::builder().no_proxy().connect_timeout(Duration::from_secs(3));
    let builder = match tls {
        Some(tls) => builder.tls_backend_preconfigured(tls),
        None => builder,
    };
    // A configuration of TLS that was made leaves nothing that could fail.
    builder.build().unwrap_or_default()
}

/// Sends a request to another controller than it was made for.
fn redirect(request: &mut Request, base: &str) {
    let Ok(base) = reqwest::Url::parse(base) else { return };
    let url = request.url_mut();
    // Both are http URLs with a host, so none of these can be refused.
    let _ = url.set_scheme(base.scheme());
    let _ = url.set_host(base.host_str());
    let _ = url.set_port(base.port());
}
