//! What all tasks share, and starting them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::Context;
use mayfly_api::Client;
use mayfly_disk::DiskClient;
use mayfly_identity::Clock;
use mayfly_model::{Digest, GoalState, HostLease, Incident, Ipv6Prefix, Time, VmId};
use mayfly_net::address::{UNDERLAY_DEVICE, WIRE_SERVER};
use mayfly_net::mesh::Peers;
use mayfly_net::{Flows, Links, Nft, Zone};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::UdpSocket;
use tokio::sync::{Notify, Semaphore, mpsc, watch};

use crate::clock;
use crate::config::{HostConfig, disk_control};
use crate::ledger::Ledger;
use crate::secrets::{self, Secrets};
use crate::status::Statuses;
use crate::tunnel::{self, OwnTunnel};
use crate::{disks, guard, joining, mesh, network, probes, reporting, servers, strays, vm};

/// What all tasks share.
pub(crate) struct Agent {
    pub config: HostConfig,
    pub boot_id: u64,
    pub client: Client,
    /// The time by which certificates are judged.
    pub wall: Clock,
    /// A controller has said that the host's certificate has ended.
    pub certificate_ended: AtomicBool,
    /// The certificate should be looked at now.
    pub renew_now: Notify,
    /// Counts the certificates that this agent has got.
    pub identity: watch::Sender<u64>,
    pub ledger: Ledger,
    pub disks: DiskClient,
    pub links: Links,
    /// This host's end of the encrypted tunnels, if there are any.
    pub tunnel: Option<OwnTunnel>,
    /// The largest packet that a guest may send, in bytes.
    pub guest_mtu: u16,
    pub nft: Mutex<Nft>,
    /// Whether clients are answered by the hosts of the backends, where this one has the public address.
    pub direct_return: bool,
    /// What should be.
    pub goal: watch::Sender<Arc<GoalState>>,
    /// Whether the controller has answered this agent, so that the goal state is the one in force.
    pub confirmed: watch::Sender<bool>,
    /// What is.
    statuses: Mutex<Statuses>,
    /// Something in the statuses has changed that others want to know.
    pub changed: watch::Sender<u64>,
    pub lease: Mutex<HostLease>,
    /// When it was last written down that this host is an orphan, in ms of its clock.
    pub orphan_noted: AtomicU64,
    /// Before this, the host does not count as a voter, see `mayfly_model::lease`.
    pub votes_from: Time,
    /// The base images that are here, whole or in part.
    pub images: Mutex<BTreeSet<Digest>>,
    /// What went wrong on this host lately.
    pub incidents: Mutex<Vec<Incident>>,
    /// Where each VM's task is asked for what only it can do.
    pub doors: Mutex<BTreeMap<VmId, mpsc::Sender<vm::Ask>>>,
    /// Certificates and passwords of the VMs.
    pub secrets: Secrets,
    /// Where files with secrets lie: in memory.
    pub secrets_folder: PathBuf,
    /// The templates that are being made.
    pub templates: Mutex<BTreeSet<String>>,
    /// One throws away at a time.
    pub sweeping: Mutex<()>,
    /// Templates are made one after the other.
    pub template_turn: Semaphore,
    /// Since when nobody wants a template.
    pub unwanted_templates: Mutex<BTreeMap<String, Instant>>,
    /// Turns to boot: more guests at once than this would all be slower.
    pub boots: Arc<Semaphore>,
    /// The VMs whose consoles somebody has.
    pub consoles: Mutex<BTreeSet<VmId>>,
    /// The VMs whose disks are being read for new images.
    pub captures: Mutex<BTreeSet<VmId>>,
    /// Whether guests may run and be on the network.
    pub serving: watch::Sender<bool>,
    /// What the kernel has counted, by name.
    pub counters: Mutex<BTreeMap<String, u64>>,
    pub peers: Mutex<Peers>,
    pub zone: watch::Sender<Arc<Zone>>,
    /// The public addresses that this host has.
    pub vips: Mutex<BTreeSet<IpAddr>>,
    /// Which flows may stay, once that is known.
    pub flows: watch::Sender<Option<Flows>>,
    /// Until when an address that a guest was told is open in a set, as far as it was this agent that opened it.
    pub opened: Mutex<HashMap<(String, IpAddr), Instant>>,
    /// A report should be sent now.
    pub report_now: Notify,
    /// When the last report was made that the controller has taken, by the host's clock.
    pub reported: watch::Sender<Time>,
}

impl Agent {
    /// What is known of the VMs.
    pub(crate) fn statuses(&self) -> MutexGuard<'_, Statuses> {
        lock(&self.statuses)
    }

    /// What IPv6 addresses begin with, where the location has them and this host's kernel too.
    pub(crate) fn ipv6(&self) -> Option<Ipv6Prefix> {
        self.goal.borrow().network.ipv6.filter(|_| mayfly_net::has_ipv6())
    }

    /// Tells the other tasks that something has changed.
    pub(crate) fn tell(&self) {
        self.changed.send_modify(|count| *count += 1);
        self.report_now.notify_one();
    }

    /// Takes a goal state, if it is newer. Returns whether a lease of the same moment may be used: not if neither the goal state
    /// nor that there is no lease any more can be written down, as an agent that starts then would follow an old one with a lease.
    pub(crate) fn take_goal(&self, goal: GoalState) -> bool {
        if goal.incarnation <= self.goal.borrow().incarnation {
            return true;
        }
        if let Err(error) = self.ledger.write_goal(&goal) {
            // Removing a file needs no room on the disk.
            if let Err(worse) = self.ledger.forget_lease() {
                let (error, worse) = (format!("{error:#}"), format!("{worse:#}"));
                tracing::error!(
                    error,
                    worse,
                    "the goal state cannot be written down: this host takes no lease, and its guests stop"
                );
                return false;
            }
            let error = format!("{error:#}");
            tracing::error!(
                error,
                "the goal state cannot be written down: an agent that starts again waits for the controller"
            );
        }
        self.take_names(&goal);
        self.goal.send_replace(Arc::new(goal));
        self.tell();
        true
    }
}

impl Agent {
    fn take_names(&self, goal: &GoalState) {
        let network = &goal.network;
        let zone = Zone::new(&network.zone, &network.dns, &network.services);
        self.zone.send_replace(Arc::new(zone.answered_at(&network.zone, WIRE_SERVER)));
    }
}

/// A lock whose data is changed in single steps, so that a panic elsewhere leaves nothing half done.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Each guest may hold some connections; the usual limit of 1024 would be one guest's to use up.
fn allow_many_files() -> anyhow::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most.min(65_536), most).context("cannot raise the limit of open files")
}

/// Runs the agent until it is told to end. Guests run on.
///
/// # Errors
/// When it cannot start.
pub async fn run(config: HostConfig, boot_id: u64) -> anyhow::Result<()> {
    allow_many_files()?;
    let folder: PathBuf = config.folder.clone();
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let ledger = Ledger::new(&folder, boot_id);
    let links = Links::open()?;
    network::join_underlay(&config, &links).await.context("cannot prepare the network")?;
    let mut nft = Nft::load()?;
    let wall = Clock::start();
    let agent = Arc::new(Agent {
        client: joining::client(&config, wall).await.context("this host cannot join")?,
        wall,
        certificate_ended: AtomicBool::new(false),
        renew_now: Notify::new(),
        identity: watch::Sender::new(0),
        disks: DiskClient::new(disk_control(&folder)),
        tunnel: tunnel::open(&config, &links).await?,
        guest_mtu: config.transit.guest_mtu(links.mtu(UNDERLAY_DEVICE).await?),
        links,
        direct_return: config.direct_return && network::can_hand_on(&mut nft),
        nft: Mutex::new(nft),
        goal: watch::Sender::new(Arc::new(ledger.goal())),
        confirmed: watch::Sender::new(false),
        statuses: Mutex::default(),
        changed: watch::Sender::new(0),
        votes_from: match ledger.lease() {
            none if none == HostLease::default() => clock::now().plus(config.timings.fresh),
            _ => Time(0),
        },
        lease: Mutex::new(ledger.lease()),
        orphan_noted: AtomicU64::new(0),
        images: Mutex::default(),
        incidents: Mutex::default(),
        doors: Mutex::default(),
        secrets: Secrets::default(),
        secrets_folder: secrets::folder(&folder)?,
        templates: Mutex::default(),
        sweeping: Mutex::default(),
        template_turn: Semaphore::new(1),
        unwanted_templates: Mutex::default(),
        boots: Arc::new(Semaphore::new(std::thread::available_parallelism().map_or(2, usize::from).max(2))),
        consoles: Mutex::default(),
        captures: Mutex::default(),
        serving: watch::Sender::new(false),
        counters: Mutex::default(),
        peers: Mutex::default(),
        zone: watch::Sender::new(Arc::new(Zone::default())),
        vips: Mutex::default(),
        flows: watch::Sender::new(None),
        opened: Mutex::default(),
        report_now: Notify::new(),
        reported: watch::Sender::new(Time(0)),
        config,
        boot_id,
        ledger,
    });
    network::prepare(&agent).await.context("cannot prepare the network")?;
    guard::check(&agent);
    let goal = GoalState::clone(&agent.goal.borrow());
    agent.take_names(&goal);
    servers::start(&agent).await.context("cannot serve guests")?;
    let mesh = mesh::start(&agent).await.context("cannot talk to the other hosts")?;
    tracing::info!(host = %agent.config.name, incarnation = %goal.incarnation, "the agent is up");
    start(&agent, mesh)?;
    reporting::run(agent).await;
    Ok(())
}

/// Starts everything that goes on for ever, besides the reports.
fn start(agent: &Arc<Agent>, mesh: Arc<UdpSocket>) -> anyhow::Result<()> {
    tokio::spawn(guard::run(Arc::clone(agent)));
    tokio::spawn(probes::run(Arc::clone(agent)));
    tokio::spawn(network::count(Arc::clone(agent)));
    tokio::spawn(disks::run(Arc::clone(agent)));
    tokio::spawn(joining::renew(Arc::clone(agent)));
    tokio::spawn(reporting::listen(Arc::clone(agent)));
    // VMs of before are known before the first report, which lists all that exist.
    let known = vm::adopt_all(agent)?;
    tokio::spawn(vm::run(Arc::clone(agent), known));
    let agent = Arc::clone(agent);
    tokio::spawn(async move {
        vm::settled(&agent).await;
        tokio::spawn(mesh::speak(Arc::clone(&agent), mesh));
        mesh::acquainted(&agent).await;
        tokio::spawn(strays::run(Arc::clone(&agent)));
        network::run(agent).await;
    });
    Ok(())
}
