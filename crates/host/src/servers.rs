//! The servers that guests talk to: wire server, metadata, DNS.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;

use mayfly_model::Egress;
use mayfly_net::address::{METADATA, WIRE_SERVER};
use mayfly_net::plan::learned_set;
use mayfly_net::{Asked, DnsServer, Forwarder, NameObserver};
use mayfly_wire::{Guest, Guests, HealthReport, metadata_router, wire_server_router};
use tokio::net::TcpListener;

use crate::agent::{Agent, lock};
use crate::clock;
use crate::status::Stage;

/// Questions that one guest may put to DNS in a second, and at once.
const DNS_LIMIT: (u32, u32) = (1000, 2000);
/// Most threads that answer DNS.
const DNS_THREADS: usize = 4;

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
    let dns = DnsServer {
        zone: agent.zone.subscribe(),
        forwarder: agent.config.name_servers().map(|servers| Arc::new(Forwarder::new(servers))),
        limit: Some(DNS_LIMIT),
        observer: Some(Arc::new(Names(Arc::clone(agent)))),
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(DNS_THREADS);
    Ok(dns.start(SocketAddrV4::new(WIRE_SERVER, 53), threads, Arc::default()).await?)
}

/// Who may ask for which names, and what opens to whom has been told their addresses.
struct Names(Arc<Agent>);

impl NameObserver for Names {
    fn asked(&self, by: Ipv4Addr, name: &str, inside: bool) -> Asked {
        let mut statuses = self.0.statuses();
        match statuses.at(by).map(|status| &status.goal.egress) {
            None | Some(Egress::Allow) => Asked::Freely,
            // Names inside are no secret, and lead out only where they are open.
            Some(egress) if egress.may_resolve(name) => Asked::Watched,
            Some(_) if inside => Asked::Freely,
            Some(_) => Asked::Refused,
        }
    }

    fn told(&self, guest: Ipv4Addr, name: &str, addresses: &[Ipv4Addr], seconds: u32) {
        let policy = {
            let mut statuses = self.0.statuses();
            statuses.at(guest).map(|status| (status.goal.deployment_id.clone(), status.goal.egress.clone()))
        };
        let Some((deployment_id, Egress::Only(destinations))) = policy else { return };
        let egress = Egress::Only(destinations.clone());
        for (number, _) in destinations.iter().enumerate().filter(|(_, one)| one.target.is_named(name)) {
            let set = learned_set(&deployment_id, &egress, number);
            if let Err(error) = lock(&self.0.nft).learn(&set, addresses, seconds) {
                // The guest's rules are not in force yet; it asks again.
                tracing::debug!(%guest, name, %error, "addresses are not open yet");
            }
        }
    }

    fn is_needed(&self) -> bool {
        self.0.goal.borrow().vms.iter().any(|vm| vm.egress != Egress::Allow)
    }
}
