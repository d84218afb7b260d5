//! The fabric controller: the core, driven by time, users and hosts; the store that keeps its records; the images;
//! and the API server. It never touches a guest's process or disk.

pub mod backup;
mod calls;
pub mod committer;
mod config;
mod driver;
mod gate;
mod http;
mod identity;
mod images;
mod invariants;
mod listener;
mod names;
pub mod stored;
mod usage;

pub use config::{ControllerConfig, FabricConfig, StoreConfig};
pub use images::ObjectStoreConfig;

use std::future::IntoFuture;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use axum::serve::ListenerExt;
use driver::Driver;
use gate::{Gate, Side};
use identity::Identity;
use listener::{HostListener, Peer};
use mayfly_fabric::{Command, Input};
use mayfly_store::{Election, EmbeddedStore, EtcdStore, Leadership};
use tokio::net::TcpListener;

/// How long requests that are under way have when the process is told to end.
const GRACE: Duration = Duration::from_secs(5);

/// Runs the controller until the process is told to end.
///
/// # Errors
/// When it cannot start: the port is taken, the store is in use or damaged, the folder cannot be written.
pub async fn run(config: ControllerConfig) -> anyhow::Result<()> {
    let folder = &config.folder;
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    if config.authority.is_none() && !matches!(config.store, StoreConfig::Embedded) {
        bail!("controllers that share a store share an authority too: say under `authority` in which folder it is");
    }
    // The ports first: a second controller must not get as far as the store.
    let for_users = listen(&config.listen).await?;
    let for_hosts = listen(&config.listen_hosts).await?;
    let identity = Identity::open(&config)?;
    tokio::spawn(Arc::clone(&identity).renew());
    let gate = Gate::closed();
    let (users, hosts) = (gate.router(Side::Users), gate.router(Side::Hosts));
    let mut servers = Vec::new();
    for listener in for_users {
        let listener = listener.tap_io(|stream| listener::keep_alive(stream));
        let serve = axum::serve(listener, users.clone()).with_graceful_shutdown(terminated());
        servers.push(tokio::spawn(serve.into_future()));
    }
    for listener in for_hosts {
        let listener = HostListener::start(listener, identity.server_config()?);
        let service = hosts.clone().into_make_service_with_connect_info::<Peer>();
        let serve = axum::serve(listener, service).with_graceful_shutdown(terminated());
        servers.push(tokio::spawn(serve.into_future()));
    }
    let servers = futures_util::future::try_join_all(servers);
    let lead = async {
        lead(&config, &gate, identity).await?;
        std::future::pending::<anyhow::Result<()>>().await
    };
    tokio::select! {
        ended = servers => ended?.into_iter().collect::<Result<(), _>>().context("the API server failed"),
        failed = lead => failed,
        // Whoever follows a console would hold it up for ever.
        () = overtime() => Ok(()),
    }
}

async fn listen(addresses: &[SocketAddr]) -> anyhow::Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    for address in addresses {
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!(
                "cannot listen on {address}; is another controller running there? `ss -ltnp` shows who has the port"
            )
        })?;
        listeners.push(listener);
    }
    Ok(listeners)
}

/// Waits until this controller may lead, and opens the gate.
async fn lead(config: &ControllerConfig, gate: &Arc<Gate>, identity: Arc<Identity>) -> anyhow::Result<()> {
    let images = images::ImageStore::open(&config.folder.join("images"), config.images.as_ref())?;
    let (waiting, stands_by) = (Arc::clone(gate), config.clone());
    let (driver, leadership) = tokio::task::spawn_blocking(move || start_driver(&stands_by, &waiting))
        .await
        .context("the store's thread ended")??;
    if let Some(leadership) = leadership {
        tokio::spawn(end_with(leadership));
    }
    let authority = identity.digest();
    let known = driver.submit(Input::Command(Command::SetAuthority(authority))).await;
    known.map_err(|error| anyhow::anyhow!("{error:?}")).context(
        "this controller does not have the fabric's authority; copy authority.pem and authority.key from a controller that does",
    )?;
    tokio::spawn(driver.clone().tick());
    names::serve(&config.dns, &driver).await.context("names cannot be told; see `dns` in the configuration")?;
    let holders = images::Holders::default();
    let usage = usage::Usage::default();
    let (calls, own) = (calls::Calls::default(), config.clone());
    let invariants = invariants::Invariants::default();
    tokio::spawn(invariants.clone().run(driver.clone()));
    let shared = Arc::new(http::Shared { driver, images, holders, usage, calls, invariants, identity, config: own });
    tokio::spawn(sweep(Arc::clone(&shared)));
    tracing::info!(addresses = ?config.listen, "the controller is up");
    gate.open(http::users(Arc::clone(&shared)), http::hosts(shared));
    Ok(())
}

/// Opens the store; where several controllers share it, once this one leads.
fn start_driver(config: &ControllerConfig, gate: &Gate) -> anyhow::Result<(Driver, Option<Leadership>)> {
    let core = config.fabric.to_core();
    match &config.store {
        StoreConfig::Embedded => {
            let store = EmbeddedStore::open(&config.folder.join("records.redb"))?;
            Ok((Driver::start(Box::new(store), &core, None)?, None))
        }
        StoreConfig::Etcd(etcd) => {
            // A name that no other process has, before it or after it.
            let name = format!("{} ({:08x})", config.name, rand::random::<u32>());
            let leadership = Election::new(etcd, &name)?.win(|leader| gate.name(leader));
            let store = EtcdStore::open(etcd)?;
            Ok((Driver::start(Box::new(store), &core, Some(leadership.clone()))?, Some(leadership)))
        }
    }
}

/// Ends the process when it leads no longer: whoever leads now goes on, and this one starts anew, standing by.
async fn end_with(leadership: Leadership) {
    while leadership.holds() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tracing::error!("this controller could not renew its lease in the store and leads no longer; it ends");
    std::process::exit(1)
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

/// Ends some time after this process was told to end: what has not been answered by then is not.
async fn overtime() {
    terminated().await;
    tokio::time::sleep(GRACE).await;
    tracing::info!("some requests take too long to wait for");
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
