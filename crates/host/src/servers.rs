//! The servers that guests talk to: wire server, metadata, DNS.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::serve::ListenerExt;
use futures_util::future::BoxFuture;
use mayfly_model::Egress;
use mayfly_net::address::{METADATA, PLUGIN_PORT, WIRE_SERVER};
use mayfly_net::plan::{learned_set, learned_set6};
use mayfly_net::{Asked, DnsServer, Forwarder, Limit, NameObserver};
use mayfly_wire::{Guest, Guests, HealthReport, Word, metadata_router, plugin_router, wire_server_router};
use tokio::net::TcpListener;

use crate::agent::{Agent, lock};
use crate::clock;
use crate::limited::Limited;
use crate::status::{Stage, VmStatus};
use crate::vm::provision;

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
        if first {
            status.reach("the guest asks who it is");
        }
        let (mut goal, _) = self.0.secrets.with_user(status.goal.clone());
        if status.says_ready()
            && let Some(admin) = &mut goal.guest.admin
        {
            // It has made the user by now, and not everybody in it shall read this for ever.
            admin.password_hash = None;
        }
        let complete = self.0.secrets.know_user(&status.goal) || provision::is_done(&self.0, &status.goal);
        Some(Guest {
            goal,
            complete,
            // What is planned is a goal state of its own.
            incarnation: status.incarnation + u64::from(status.planned.is_some()),
            domain: domain(&status.goal, &zone),
            location: self.0.config.location.clone(),
            members: Arc::clone(&status.members),
            planned: status.planned.clone(),
        })
    }

    fn certificates<'a>(&'a self, guest: &'a Guest) -> BoxFuture<'a, Result<Arc<[u8]>, String>> {
        Box::pin(async move {
            let held = self.0.secrets.of(&self.0, &guest.goal).await;
            held.map(|held| Arc::clone(&held.pfx)).map_err(|error| format!("{error:#}"))
        })
    }

    fn hear(&self, address: Ipv4Addr, word: Word) -> bool {
        let news = {
            let mut statuses = self.0.statuses();
            let heard = statuses.at(address).filter(|status| status.stage == Stage::Running);
            let Some(status) = heard else { return false };
            take(status, word)
        };
        if news {
            self.0.tell();
        }
        true
    }
}

/// Takes a guest's word. Returns whether others want to know.
fn take(status: &mut VmStatus, word: Word) -> bool {
    let now = clock::now();
    match word {
        Word::Health(report) => {
            let news = status.said.as_ref().is_none_or(|(before, _)| *before != report);
            status.hear(report, now);
            news
        }
        Word::CloudInit => {
            status.reach("cloud-init has read what it is told");
            !std::mem::replace(&mut status.cloud_init, true)
        }
        Word::Alive => {
            status.beat(now);
            false
        }
        Word::Status => {
            // A guest that was provisioned in an earlier boot says it in no other way.
            let first = status.said.is_none();
            if first {
                status.hear(HealthReport { ready: true, detail: String::new() }, now);
            }
            status.beat(now);
            first
        }
        Word::Script(report) => {
            let news = status.script_runs.last() != Some(&report);
            if news {
                status.hear_script(report, now);
            }
            news
        }
        Word::AsksForEvents => {
            status.asks_for_events = true;
            false
        }
        Word::Acknowledges(id) => {
            let planned = status.planned.as_mut().filter(|planned| planned.id == id);
            planned.map(|planned| planned.acknowledged = true).is_some()
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
    for (address, port, router) in [
        (WIRE_SERVER, 80, wire_server_router(Arc::clone(&guests))),
        (WIRE_SERVER, PLUGIN_PORT, plugin_router(Arc::clone(&guests))),
        (METADATA, 80, metadata_router(guests)),
    ] {
        let listener = Limited::new(TcpListener::bind((address, port)).await?);
        let service = router.into_make_service_with_connect_info::<SocketAddr>();
        tokio::spawn(async move {
            // Only through this does axum tell who is at the other end of a listener that is not its own.
            if let Err(error) = axum::serve(listener.tap_io(|_| {}), service).await {
                tracing::error!(%address, %error, "a guests' server ended");
            }
        });
    }
    let dns = DnsServer {
        zone: agent.zone.subscribe(),
        forwarder: agent.config.name_servers().map(|servers| Arc::new(Forwarder::new(servers))),
        limit: Some(Arc::new(Mutex::new(Limit::new(DNS_LIMIT.0, DNS_LIMIT.1)))),
        observer: Some(Arc::new(Names { agent: Arc::clone(agent) })),
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(DNS_THREADS);
    Ok(dns.start(SocketAddrV4::new(WIRE_SERVER, 53), threads, Arc::default()).await?)
}

/// Who may ask for which names, and what opens to whom has been told their addresses.
struct Names {
    agent: Arc<Agent>,
}

/// What is open in sets that is remembered; beyond that, what is over is forgotten.
const OPEN_REMEMBERED: usize = 65_536;

impl Names {
    /// Those of the addresses that are not open for most of the time that is wanted anyway: a guest that asks again and again
    /// changes nothing, and an answer that may be kept for less time closes nothing.
    fn to_open(&self, set: &str, addresses: &[IpAddr], seconds: u32) -> Vec<IpAddr> {
        let (now, wanted) = (Instant::now(), Duration::from_secs(u64::from(seconds)));
        let mut open = lock(&self.agent.opened);
        if open.len() > OPEN_REMEMBERED {
            open.retain(|_, until| *until > now);
        }
        let is_open = |open: &HashMap<(String, IpAddr), Instant>, address: IpAddr| {
            open.get(&(set.to_owned(), address)).is_some_and(|until| *until > now + wanted / 2)
        };
        let new: Vec<IpAddr> = addresses.iter().copied().filter(|address| !is_open(&open, *address)).collect();
        open.extend(new.iter().map(|address| ((set.to_owned(), *address), now + wanted)));
        new
    }
}

impl NameObserver for Names {
    fn asked(&self, by: Ipv4Addr, name: &str, inside: bool) -> Asked {
        let mut statuses = self.agent.statuses();
        match statuses.at(by).map(|status| &status.goal.egress) {
            None | Some(Egress::Allow) => Asked::Freely,
            // Names inside are no secret, and lead out only where they are open.
            Some(egress) if egress.may_resolve(name) => Asked::Watched,
            Some(_) if inside => Asked::Freely,
            Some(_) => Asked::Refused,
        }
    }

    fn told(&self, guest: Ipv4Addr, name: &str, addresses: &[IpAddr], seconds: u32) {
        let policy = {
            let mut statuses = self.agent.statuses();
            statuses
                .at(guest)
                .map(|status| (status.goal.deployment_id.clone(), status.goal.egress.clone(), status.goal.ipv6))
        };
        let Some((deployment_id, Egress::Only(destinations), ipv6)) = policy else { return };
        let (older, newer): (Vec<IpAddr>, Vec<IpAddr>) = addresses.iter().partition(|address| address.is_ipv4());
        for destination in destinations.iter().filter(|one| one.target.is_named(name)) {
            let set = learned_set(&deployment_id, &destination.target);
            // A guest without IPv6 has nothing to open with such addresses.
            let newer = ipv6.map(|_| (learned_set6(&set), &newer));
            for (set, addresses) in [(set, &older)].into_iter().chain(newer) {
                let new = self.to_open(&set, addresses, seconds);
                if let Err(error) = lock(&self.agent.nft).learn(&set, &new, seconds) {
                    lock(&self.agent.opened).retain(|(of, _), _| *of != set);
                    // The guest's rules are not in force yet; it asks again.
                    tracing::debug!(%guest, name, %error, "addresses are not open yet");
                }
            }
        }
    }

    fn is_needed(&self) -> bool {
        self.agent.statuses().vms.values().any(|status| status.goal.egress != Egress::Allow)
    }
}
