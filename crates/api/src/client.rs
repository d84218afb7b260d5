//! The client of the management and host APIs.

use std::time::Duration;

use mayfly_model::{
    ChunkDigest, HostName, HostReport, ImageName, Incarnation, InstanceKey, Manifest, ServiceName, Slot,
};
use reqwest::{Method, RequestBuilder, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{ApiError, ErrorCode};
use crate::host_api::ReportAnswer;
use crate::view::{DeployRequest, EventView, HostView, ImageView, InstanceView, ScaleRequest, ServiceView};

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
    /// The controller's own code, where it answered.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            ClientError::Refused(error) => Some(error.code),
            ClientError::Unreachable { .. } => None,
        }
    }
}

/// A client.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    url: String,
    token: String,
}

/// How long a request may take that does no work to speak of.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How long a request may take that carries much.
const TRANSFER: Duration = Duration::from_secs(300);

impl Client {
    /// A client of the controller at `url`, for example `http://10.77.0.1:7070`.
    pub fn new(url: &str, token: &str) -> Client {
        // Without TLS and proxies there is nothing in a client that could fail to be set up.
        let http = reqwest::Client::builder().no_proxy().connect_timeout(Duration::from_secs(3)).build();
        Client { http: http.unwrap_or_default(), url: url.trim_end_matches('/').to_owned(), token: token.to_owned() }
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

    /// Deploys into a slot.
    pub async fn deploy(&self, name: &ServiceName, slot: Slot, request: &DeployRequest) -> Result<(), ClientError> {
        self.send(&format!("/v1/services/{name}/deployments/{slot}"), request).await
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

    /// All hosts.
    pub async fn host_list(&self) -> Result<Vec<HostView>, ClientError> {
        self.json(self.request(Method::GET, "/v1/hosts")).await
    }

    /// Events from `first` on; with `wait`, the answer comes when there is at least one.
    pub async fn event_list(&self, first: u64, wait: bool) -> Result<Vec<EventView>, ClientError> {
        self.json(self.request(Method::GET, &format!("/v1/events?first={first}&wait={wait}"))).await
    }

    /// A host's report.
    pub async fn report(&self, report: &HostReport, timeout: Duration) -> Result<ReportAnswer, ClientError> {
        self.json(self.request(Method::POST, "/host/v1/report").timeout(timeout).json(report)).await
    }

    /// Returns when there is a goal state for the host that is newer than `have`, or after a while.
    pub async fn wait_for_goal(&self, host: &HostName, have: Incarnation) -> Result<(), ClientError> {
        self.done(self.request(Method::GET, &format!("/host/v1/wait?host={host}&have={have}"))).await
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url)).bearer_auth(&self.token).timeout(TIMEOUT)
    }

    async fn send(&self, path: &str, body: &impl Serialize) -> Result<(), ClientError> {
        self.done(self.request(Method::POST, path).json(body)).await
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
        ClientError::Refused(ApiError::new(ErrorCode::Internal, format!("the controller at {}: {why}", self.url)))
    }

    async fn checked(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let response = request.send().await.map_err(|source| self.unreachable(source))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = response.text().await.map_err(|source| self.unreachable(source))?;
        Err(ClientError::Refused(serde_json::from_str(&text).unwrap_or_else(|_| {
            ApiError::new(ErrorCode::Internal, format!("the controller answered {status}: {text}"))
        })))
    }

    fn unreachable(&self, source: reqwest::Error) -> ClientError {
        ClientError::Unreachable { url: self.url.clone(), source }
    }
}
