//! Giving chunks to other hosts. A digest is the permission: who knows it could ask the controller too, and guests do
//! not reach this address.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use mayfly_model::Digest;

use super::cache::ImageCache;

/// The port on the hosts' own network.
pub const PEER_PORT: u16 = 7473;

/// Listens, and answers in a thread of its own.
pub(super) fn start(cache: &ImageCache, address: Ipv4Addr) -> io::Result<()> {
    let listener = std::net::TcpListener::bind(SocketAddr::from((address, PEER_PORT)))?;
    listener.set_nonblocking(true)?;
    let router = Router::new().route("/v1/images/{digest}/chunks/{index}", get(chunk)).with_state(cache.clone());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(16).build()?;
    std::thread::Builder::new().name("peers".to_owned()).spawn(move || {
        let serve = async { axum::serve(tokio::net::TcpListener::from_std(listener)?, router).await };
        if let Err(error) = runtime.block_on(serve) {
            tracing::error!(%error, "chunks are not given to other hosts any more");
        }
    })?;
    Ok(())
}

/// What is to be done about a chunk that is not here.
#[derive(serde::Deserialize)]
struct Wish {
    fetch: bool,
}

/// A chunk of an image that is in use here; fetched first if need be.
async fn chunk(
    State(cache): State<ImageCache>,
    Path((digest, index)): Path<(String, u32)>,
    Query(wish): Query<Wish>,
) -> Result<Vec<u8>, StatusCode> {
    let image = Digest::new(digest).ok().and_then(|digest| cache.image(&digest)).ok_or(StatusCode::NOT_FOUND)?;
    if image.manifest.chunk(index).is_none() {
        return Err(StatusCode::NOT_FOUND);
    }
    let give = tokio::task::spawn_blocking(move || image.give(index, wish.fetch)).await;
    give.ok().and_then(Result::ok).ok_or(StatusCode::SERVICE_UNAVAILABLE)
}
