//! The fabric controller: the core, driven by time, users and hosts; the store that keeps its records; the images;
//! and the API server. It never touches a guest's process or disk.

mod config;
mod driver;
mod http;
mod images;
mod usage;

pub use config::{ControllerConfig, FabricConfig};
pub use images::ObjectStoreConfig;

use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use mayfly_store::EmbeddedStore;
use tokio::net::TcpListener;

/// Runs the controller until the process is told to end.
///
/// # Errors
/// When it cannot start: the port is taken, the store is in use or damaged, the folder cannot be written.
pub async fn run(config: ControllerConfig) -> anyhow::Result<()> {
    let folder = &config.folder;
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    // The ports first: a second controller must not get as far as the store.
    let mut listeners = Vec::new();
    for address in &config.listen {
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!(
                "cannot listen on {address}; is another controller running there? `ss -ltnp` shows who has the port"
            )
        })?;
        listeners.push(listener);
    }
    let store = EmbeddedStore::open(&folder.join("records.redb"))?;
    let images = images::ImageStore::open(&folder.join("images"), config.images.as_ref())?;
    let driver = driver::Driver::start(Box::new(store), &config.fabric.to_core())?;
    tokio::spawn(driver.clone().tick());
    let holders = images::Holders::default();
    let usage = usage::Usage::default();
    let shared = Arc::new(http::Shared { driver, images, holders, usage, config: config.clone() });
    tokio::spawn(sweep(Arc::clone(&shared)));
    tracing::info!(addresses = ?config.listen, "the controller is up");
    let router = http::router(shared);
    let servers = listeners
        .into_iter()
        .map(|listener| axum::serve(listener, router.clone()).with_graceful_shutdown(terminated()).into_future());
    futures_util::future::try_join_all(servers).await.map(drop).context("the API server failed")
}

/// Throws away, now and every hour, what uploads that were never committed have left.
async fn sweep(shared: Arc<http::Shared>) {
    loop {
        {
            let _turn = shared.images.turn.lock().await;
            if let Ok(named) = shared.image_digests().await {
                shared.images.sweep(&named).await;
            }
        }
        tokio::time::sleep(Duration::from_secs(3600)).await;
    }
}

async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut signal) => drop(signal.recv().await),
        Err(error) => {
            tracing::error!(%error, "cannot wait for a signal to end");
            std::future::pending::<()>().await;
        }
    }
}
