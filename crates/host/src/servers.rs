//! The servers that guests talk to: wire server, metadata, DNS.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use mayfly_net::address::{METADATA, WIRE_SERVER};
use mayfly_net::serve_dns;
use mayfly_wire::{Guest, Guests, HealthReport, metadata_router, wire_server_router};
use tokio::net::TcpListener;

use crate::agent::Agent;
use crate::clock;
use crate::status::Stage;

/// The agent, as the protocols see it.
struct Directory(Arc<Agent>);

impl Guests for Directory {
    fn guest(&self, address: Ipv4Addr) -> Option<Guest> {
        let zone = self.0.goal.borrow().network.zone.clone();
        let mut statuses = self.0.statuses();
        let status = statuses.at(address)?;
        let first = !std::mem::replace(&mut status.asked, true);
        if first && status.said.is_none() {
            self.0.tell();
        }
        let domain = domain(&status.goal, &zone);
        let location = self.0.config.location.clone();
        Some(Guest { goal: status.goal.clone(), incarnation: status.incarnation, domain, location })
    }

    fn report(&self, address: Ipv4Addr, report: HealthReport) {
        let news = {
            let mut statuses = self.0.statuses();
            let Some(status) = statuses.at(address).filter(|status| status.stage == Stage::Running) else { return };
            let news = status.said.as_ref().is_none_or(|(before, _)| *before != report);
            status.hear(report, clock::now());
            news
        };
        if news {
            self.0.tell();
        }
    }
}

/// The domain of a guest, `shop.internal.<zone>`.
pub(crate) fn domain(goal: &mayfly_model::VmGoal, zone: &str) -> String {
    format!("{}.internal.{zone}", goal.instance.deployment.service)
}

/// Starts the servers.
pub(crate) async fn start(agent: &Arc<Agent>) -> anyhow::Result<()> {
    let guests: Arc<dyn Guests> = Arc::new(Directory(Arc::clone(agent)));
    for (address, router) in
        [(WIRE_SERVER, wire_server_router(Arc::clone(&guests))), (METADATA, metadata_router(guests))]
    {
        let listener = TcpListener::bind((address, 80)).await?;
        let service = router.into_make_service_with_connect_info::<SocketAddr>();
        tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, service).await {
                tracing::error!(%address, %error, "a guests' server ended");
            }
        });
    }
    let zone = agent.zone.subscribe();
    tokio::spawn(async move {
        if let Err(error) = serve_dns(WIRE_SERVER, zone).await {
            tracing::error!(%error, "the guests' DNS ended");
        }
    });
    Ok(())
}
