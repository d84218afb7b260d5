//! Coming in: this host's key and certificate, and their renewal.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use mayfly_api::{CertificateAnswer, Client, ClientError, JoinRequest, RenewRequest};
use mayfly_identity::{Clock, HostKeys, JoinToken, Request, client_config, is_due, joining_config};

use crate::agent::Agent;
use crate::config::HostConfig;

/// Between two tries to come in, while no controller leads or the last host of this name may still live.
const RETRY: Duration = Duration::from_millis(500);
/// Between two looks at whether the certificate should be renewed, and two tries to renew it.
const LOOK: Duration = Duration::from_secs(60);

/// Where the key and the certificates are.
pub(crate) fn keys_file(folder: &Path) -> PathBuf {
    folder.join("identity.pem")
}

/// A client that shows this host's certificate. A host that has none joins first, for as long as it takes.
pub(crate) async fn client(config: &HostConfig, clock: Clock) -> anyhow::Result<Client> {
    let path = keys_file(&config.folder);
    let keys = match HostKeys::read(&path)? {
        Some(keys) => keys,
        None => join(config, &path, clock).await?,
    };
    Ok(Client::with_tls(&config.controller, client_config(&keys, clock)?))
}

async fn join(config: &HostConfig, path: &Path, clock: Clock) -> anyhow::Result<HostKeys> {
    let Some(token) = &config.join else {
        bail!(
            "this host has not joined, and its configuration has no join token: \
             write one that `mayfly token create` has made under `join`"
        );
    };
    let authority = token.parse::<JoinToken>()?.authority;
    // Kept until the answer is, so that a repeated request is for the same key.
    let kept = config.folder.join("joining.key");
    let request = Request::kept(&kept)?;
    let client = Client::with_tls(&config.controller, joining_config(authority, clock)?);
    let body = JoinRequest { token: token.clone(), host: config.name.clone(), request: request.pem.clone() };
    let mut told = String::new();
    let answer = loop {
        match client.join(&body).await {
            Ok(answer) => break answer,
            Err(error) => {
                let cause = std::error::Error::source(&error).map_or_else(String::new, |cause| format!(": {cause}"));
                let why = format!("{error}{cause}");
                if why != told {
                    tracing::warn!("this host cannot join yet: {why}");
                    told = why;
                }
                tokio::time::sleep(RETRY).await;
            }
        }
    };
    let keys = request.into_keys(&answer.certificate, &answer.authority)?;
    keys.write(path)?;
    std::fs::remove_file(&kept).with_context(|| format!("cannot remove {}", kept.display()))?;
    tracing::info!("this host has joined");
    Ok(keys)
}

/// Renews the certificate long before it ends, for ever.
pub(crate) async fn renew(agent: Arc<Agent>) {
    loop {
        match try_renew(&agent).await {
            Ok(true) => tracing::info!("the host's certificate is renewed"),
            Ok(false) => {}
            Err(error) => tracing::warn!(error = format!("{error:#}"), "the host's certificate cannot be renewed yet"),
        }
        // Who is told that it has ended need not wait.
        let _ = tokio::time::timeout(LOOK, agent.renew_now.notified()).await;
    }
}

async fn try_renew(agent: &Agent) -> anyhow::Result<bool> {
    let path = keys_file(&agent.config.folder);
    let keys = HostKeys::read(&path)?.with_context(|| format!("{} is gone", path.display()))?;
    let ended = agent.certificate_ended.swap(false, std::sync::atomic::Ordering::Relaxed);
    if !ended && !is_due(keys.validity()?, agent.wall.now()) {
        return Ok(false);
    }
    let request = Request::generate()?;
    let answer: Result<CertificateAnswer, ClientError> =
        agent.client.renew(&RenewRequest { request: request.pem.clone() }).await;
    let answer = answer?;
    let keys = request.into_keys(&answer.certificate, &answer.authority)?;
    keys.write(&path)?;
    agent.client.replace_tls(client_config(&keys, agent.wall)?);
    agent.identity.send_modify(|number| *number += 1);
    Ok(true)
}
