//! This host's end of the encrypted tunnels, where its configuration asks for them.

use anyhow::Context;
use mayfly_identity::tunnel_secret;
use mayfly_model::TunnelKey;
use mayfly_net::{Links, Tunnel};

use crate::config::HostConfig;

// Chunks of images go between hosts too.
const _: () = assert!(mayfly_disk::PEER_PORT == mayfly_net::address::IMAGE_PORT);

/// The end, and the public key by which the others know it.
pub(crate) struct OwnTunnel {
    pub(crate) tunnel: Tunnel,
    pub(crate) key: TunnelKey,
}

/// Sets it up; or takes away what an earlier configuration asked for.
pub(crate) async fn open(config: &HostConfig, links: &Links) -> anyhow::Result<Option<OwnTunnel>> {
    if !config.transit.encrypts() {
        Tunnel::close(links).await?;
        return Ok(None);
    }
    let secret = tunnel_secret(&config.folder.join("tunnel.key"))?;
    let tunnel =
        Tunnel::open(links, config.address, secret).await.context("cannot encrypt what goes to other hosts")?;
    let key = tunnel.key().await?;
    tracing::info!(%key, "what goes to other hosts is encrypted");
    Ok(Some(OwnTunnel { tunnel, key }))
}
