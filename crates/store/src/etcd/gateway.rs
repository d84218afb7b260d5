//! etcd's v3 API as JSON over HTTP, which etcd itself serves (its `grpc-gateway`): the five calls that the store needs.
//! The full client would bring gRPC, a hundred crates and a compiler for its protocol files.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use reqwest::blocking::Client;
use reqwest::{Certificate, Identity};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// How long one member may take to answer.
const ANSWER: Duration = Duration::from_millis(1500);
/// How long members are asked in turn.
const PATIENCE: Duration = Duration::from_secs(8);
const ROUND: Duration = Duration::from_millis(50);
/// The shortest time that a member is given.
const SHORTEST: Duration = Duration::from_millis(100);

/// Where etcd is, and how it is spoken to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EtcdConfig {
    /// The members' client addresses, `http://10.0.0.1:2379` or `https://…`.
    pub endpoints: Vec<String>,
    /// What all keys begin with, so that several fabrics can share one etcd.
    pub prefix: String,
    /// For https: the authority that signed the members' certificates, a PEM file.
    #[serde(default)]
    pub ca_file: Option<std::path::PathBuf>,
    /// For https with client certificates: certificate and key in one PEM file.
    #[serde(default)]
    pub identity_file: Option<std::path::PathBuf>,
}

/// Why etcd did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// A file of the configuration cannot be used.
    #[error("cannot use {path}: {why}")]
    File {
        /// The file.
        path: String,
        /// Why not.
        why: String,
    },
    /// No member answered.
    #[error("no member of etcd answers (asked: {endpoints}); the last said: {last}")]
    Unreachable {
        /// Who was asked.
        endpoints: String,
        /// The last error.
        last: String,
    },
    /// etcd refused.
    #[error("etcd refused: {0}")]
    Refused(String),
}

/// A client of all members.
pub(super) struct Gateway {
    http: Client,
    endpoints: Vec<String>,
    current: AtomicUsize,
}

/// A key and its value.
pub(super) struct Pair {
    pub(super) key: String,
    pub(super) value: Vec<u8>,
}

/// A condition of a transaction.
pub(super) enum Compare<'a> {
    /// The key has this value.
    Is(&'a str, &'a [u8]),
    /// There is no such key.
    Missing(&'a str),
}

/// What a transaction does.
pub(super) enum Act<'a> {
    Put(&'a str, &'a [u8]),
    /// With a lease, after which it is gone.
    PutLeased(&'a str, &'a [u8], i64),
    Delete(&'a str),
    /// Deletes from the first key up to, not including, the second.
    DeleteRange(&'a str, &'a str),
}

impl Gateway {
    pub(super) fn connect(config: &EtcdConfig) -> Result<Gateway, EtcdError> {
        let mut builder = Client::builder().no_proxy().timeout(ANSWER).connect_timeout(ANSWER);
        let read = |path: &std::path::Path| {
            let failed = |why: String| EtcdError::File { path: path.display().to_string(), why };
            std::fs::read(path).map_err(|error| failed(error.to_string()))
        };
        if let Some(path) = &config.ca_file {
            let failed =
                |error: reqwest::Error| EtcdError::File { path: path.display().to_string(), why: error.to_string() };
            builder = builder.tls_certs_only([Certificate::from_pem(&read(path)?).map_err(failed)?]);
        }
        if let Some(path) = &config.identity_file {
            let failed =
                |error: reqwest::Error| EtcdError::File { path: path.display().to_string(), why: error.to_string() };
            builder = builder.identity(Identity::from_pem(&read(path)?).map_err(failed)?);
        }
        let http = builder.build().map_err(|error| EtcdError::Refused(error.to_string()))?;
        let endpoints = config.endpoints.iter().map(|url| url.trim_end_matches('/').to_owned()).collect();
        Ok(Gateway { http, endpoints, current: AtomicUsize::new(0) })
    }

    /// Asks one member after the other until one answers. What is asked has to be harmless when it arrives twice.
    pub(super) fn call(&self, path: &str, body: &Value) -> Result<Value, EtcdError> {
        self.call_within(path, body, PATIENCE)
    }

    pub(super) fn call_within(&self, path: &str, body: &Value, patience: Duration) -> Result<Value, EtcdError> {
        let deadline = Instant::now() + patience;
        loop {
            let number = self.current.load(Ordering::Relaxed);
            let endpoint = self.endpoints.get(number % self.endpoints.len().max(1)).map_or("", String::as_str);
            let left = deadline.saturating_duration_since(Instant::now()).clamp(SHORTEST, ANSWER);
            let last = match self.once(endpoint, path, body, left.min(patience / 2)) {
                Ok(answer) => return Ok(answer),
                Err(Attempt::Refused(why)) => return Err(EtcdError::Refused(why)),
                Err(Attempt::Elsewhere(why)) => why,
            };
            // Whoever failed may be alone in that.
            self.current.store(number.wrapping_add(1), Ordering::Relaxed);
            if Instant::now() >= deadline {
                return Err(EtcdError::Unreachable { endpoints: self.endpoints.join(", "), last });
            }
            std::thread::sleep(ROUND);
        }
    }

    fn once(&self, endpoint: &str, path: &str, body: &Value, limit: Duration) -> Result<Value, Attempt> {
        let elsewhere = |error: reqwest::Error| Attempt::Elsewhere(error.to_string());
        let response =
            self.http.post(format!("{endpoint}{path}")).timeout(limit).json(body).send().map_err(elsewhere)?;
        let status = response.status();
        let text = response.text().map_err(elsewhere)?;
        if status.is_success() {
            return serde_json::from_str(&text).map_err(|error| Attempt::Refused(error.to_string()));
        }
        // Codes of gRPC: 4 deadline exceeded, 8 exhausted, 14 unavailable, and 2, unknown, while there is no leader.
        let code = serde_json::from_str::<Value>(&text).ok().and_then(|value| value["code"].as_i64());
        match code {
            Some(4 | 8 | 14 | 2) | None => Err(Attempt::Elsewhere(format!("{status}: {text}"))),
            Some(_) => Err(Attempt::Refused(text)),
        }
    }

    /// Whether the conditions held and everything was done.
    pub(super) fn transact(&self, compares: &[Compare<'_>], acts: &[Act<'_>]) -> Result<bool, EtcdError> {
        let body = json!({
            "compare": compares.iter().map(compare).collect::<Vec<_>>(),
            "success": acts.iter().map(act).collect::<Vec<_>>(),
        });
        Ok(self.call("/v3/kv/txn", &body)?["succeeded"].as_bool().unwrap_or(false))
    }

    pub(super) fn get(&self, key: &str) -> Result<Option<Vec<u8>>, EtcdError> {
        let answer = self.call("/v3/kv/range", &json!({ "key": encode(key.as_bytes()) }))?;
        Ok(pairs(&answer)?.pop().map(|pair| pair.value))
    }

    /// At most `limit` keys from `from` up to `to`, as of `revision` (0 for now); and the revision that was read.
    pub(super) fn range(
        &self,
        from: &str,
        to: &str,
        limit: u32,
        revision: i64,
    ) -> Result<(Vec<Pair>, bool, i64), EtcdError> {
        let body = json!({
            "key": encode(from.as_bytes()),
            "range_end": encode(to.as_bytes()),
            "limit": limit.to_string(),
            "revision": revision.to_string(),
        });
        let answer = self.call("/v3/kv/range", &body)?;
        let more = answer["more"].as_bool().unwrap_or(false);
        let read = if revision == 0 { number(&answer["header"]["revision"]) } else { revision };
        Ok((pairs(&answer)?, more, read))
    }
}

enum Attempt {
    Elsewhere(String),
    Refused(String),
}

fn encode(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

fn compare(compare: &Compare<'_>) -> Value {
    match compare {
        Compare::Is(key, value) => json!({
            "key": encode(key.as_bytes()), "target": "VALUE", "result": "EQUAL", "value": encode(value),
        }),
        Compare::Missing(key) => json!({
            "key": encode(key.as_bytes()), "target": "CREATE", "result": "EQUAL", "create_revision": "0",
        }),
    }
}

fn act(act: &Act<'_>) -> Value {
    match act {
        Act::Put(key, value) => {
            json!({ "request_put": { "key": encode(key.as_bytes()), "value": encode(value) } })
        }
        Act::PutLeased(key, value, lease) => json!({
            "request_put": { "key": encode(key.as_bytes()), "value": encode(value), "lease": lease.to_string() },
        }),
        Act::Delete(key) => json!({ "request_delete_range": { "key": encode(key.as_bytes()) } }),
        Act::DeleteRange(from, to) => json!({
            "request_delete_range": { "key": encode(from.as_bytes()), "range_end": encode(to.as_bytes()) },
        }),
    }
}

fn pairs(answer: &Value) -> Result<Vec<Pair>, EtcdError> {
    let broken = || EtcdError::Refused("an answer that is not etcd's".to_owned());
    let bytes = |value: &Value| match value {
        // An empty value is left out.
        Value::Null => Some(Vec::new()),
        value => BASE64_STANDARD.decode(value.as_str()?).ok(),
    };
    let read = |pair: &Value| {
        let key = String::from_utf8(bytes(&pair["key"])?).ok()?;
        Some(Pair { key, value: bytes(&pair["value"])? })
    };
    let Some(all) = answer["kvs"].as_array() else { return Ok(Vec::new()) };
    all.iter().map(|pair| read(pair).ok_or_else(broken)).collect()
}

/// A 64-bit number, which JSON carries as text.
pub(super) fn number(value: &Value) -> i64 {
    value.as_str().and_then(|text| text.parse().ok()).or(value.as_i64()).unwrap_or(0)
}
