//! Makes the kernel's tables what the plan says.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use mayfly_model::{HostName, NetworkGoal};
use mayfly_net::address::UNDERLAY_DEVICE;
use mayfly_net::plan::ruleset::Present;
use mayfly_net::plan::{Health, Inputs, Plan, clear, plan};
use mayfly_net::{Links, NetError, Nft, prepare_host, prepare_ipv6};

use crate::agent::{Agent, lock};
use crate::announcer::Announcer;
use crate::clock;
use crate::config::HostConfig;

/// How long a change that nobody told of may go unnoticed, a peer's silence above all.
const LOOK: Duration = Duration::from_millis(200);
/// Between two looks at the kernel's counters.
const COUNT: Duration = Duration::from_secs(5);
/// How often it is tried whether packets can be handed on.
const TRIALS: usize = 3;

/// Takes the host's address in the data centre's network, which it needs to reach anybody.
pub(crate) async fn join_underlay(config: &HostConfig, links: &Links) -> anyhow::Result<()> {
    links.up("lo").await?;
    links.add_address(UNDERLAY_DEVICE, config.address, config.prefix).await?;
    links.up(UNDERLAY_DEVICE).await?;
    if let Some(gateway) = config.gateway {
        links.add_default_route(gateway).await?;
    }
    Ok(())
}

/// Whether packets can be handed on to other hosts as they come in; says so where they cannot.
pub(crate) fn can_hand_on(nft: &mut Nft) -> bool {
    // More than once, as open connections would be cut by an error that passes.
    for _ in 0..TRIALS {
        match nft.try_handing_on() {
            Ok(()) => return true,
            Err(error) => tracing::warn!(%error, "packets cannot be handed on as they come in"),
        }
    }
    tracing::warn!("answers to clients come back through this host");
    false
}

/// Sets up what is the same for all goal states.
pub(crate) async fn prepare(agent: &Agent) -> anyhow::Result<()> {
    prepare_host(&agent.links).await?;
    // Public addresses that an earlier agent took are answered for until it is known whose they are.
    let alone = agent.links.addresses(UNDERLAY_DEVICE).await?.into_iter().filter(|(_, prefix)| *prefix == 32);
    let taken = alone.map(|(address, _)| address).filter(|address| *address != agent.config.address);
    lock(&agent.vips).extend(taken.map(IpAddr::V4));
    // Where there are rules already, an earlier agent made them for guests that may still run; they hold until it is
    // known how those are doing.
    let first = current(agent, &BTreeSet::new(), Health::new());
    // Before anything is said or heard, also where an earlier agent had another transit.
    lock(&agent.nft).apply(&clear(agent.config.transit))?;
    if let Some(own) = &agent.tunnel {
        own.tunnel.lead_to(&first.tunnels).await?;
    }
    let mut nft = lock(&agent.nft);
    let present = nft.present(first.rules.table)?;
    if present == Present::default() {
        nft.apply(&(first.rules.whole(&present) + &first.arp))?;
    }
    Ok(())
}

/// Reads the kernel's counters now and then.
pub(crate) async fn count(agent: Arc<Agent>) {
    loop {
        tokio::time::sleep(COUNT).await;
        let counted = lock(&agent.nft).counters();
        match counted {
            Ok(counted) => {
                let packets = counted.into_iter().map(|(name, (packets, _))| (name, packets));
                *lock(&agent.counters) = packets.collect();
            }
            Err(error) => tracing::debug!(%error, "the kernel's counters cannot be read"),
        }
    }
}

/// Follows the plan for ever.
pub(crate) async fn run(agent: Arc<Agent>) {
    let mut changed = agent.changed.subscribe();
    // What the kernel holds as planned; nothing if that is unknown, so that everything is set again.
    let mut applied: Option<Plan> = None;
    let mut announcer = Announcer::default();
    loop {
        let (live, healthy) = live(&agent);
        let wanted = current(&agent, &live, healthy);
        if applied.as_ref() != Some(&wanted) {
            match apply(&agent, applied.as_ref(), &wanted).await {
                Ok(new) => {
                    announcer.has_new |= new;
                    applied = Some(wanted);
                }
                Err(error) => {
                    tracing::error!(%error, cause = ?std::error::Error::source(&error), "the network is not as planned");
                    applied = None;
                }
            }
        }
        if let Some(applied) = &applied {
            announcer.follow(&agent, live);
            hand_on_flows(&agent, applied);
        }
        let _ = tokio::time::timeout(LOOK, changed.changed()).await;
    }
}

/// Tells who looks after what the kernel remembers.
fn hand_on_flows(agent: &Agent, applied: &Plan) {
    // What the last agent wrote down may not know of guests that there are by now.
    if *agent.confirmed.borrow() {
        agent.flows.send_if_modified(|flows| {
            let changed = *flows != applied.flows;
            if changed {
                flows.clone_from(&applied.flows);
            }
            changed
        });
    }
}

/// The plan for what is known now.
fn current(agent: &Agent, live: &BTreeSet<HostName>, healthy: Health) -> Plan {
    let now = clock::now();
    let goal = agent.goal.borrow().clone();
    let (guests, mut health): (_, Health) = {
        let statuses = agent.statuses();
        (statuses.guests(), statuses.health(now))
    };
    health.extend(healthy);
    let (underlay, underlay6) = (agent.config.underlay(), agent.config.underlay6());
    let network = match agent.ipv6() == goal.network.ipv6 {
        true => Cow::Borrowed(&goal.network),
        // Whoever cannot do it does the rest.
        false => Cow::Owned(NetworkGoal { ipv6: None, ..goal.network.clone() }),
    };
    let inputs = Inputs {
        host: &agent.config.name,
        goal: &network,
        guests: &guests,
        health: &health,
        live,
        underlay: agent.config.guest_egress.then_some(underlay.as_str()),
        underlay6: underlay6.as_deref(),
        closed: &agent.config.closed_networks,
        transit: agent.config.transit,
        direct_return: agent.direct_return,
    };
    plan(&inputs)
}

/// The hosts that serve, as far as they are heard, and what the others say is healthy.
fn live(agent: &Agent) -> (BTreeSet<HostName>, Health) {
    let own = agent.serving.borrow().then(|| agent.config.name.clone());
    let (mut live, mut healthy): (BTreeSet<_>, Health) = (own.into_iter().collect(), Health::new());
    let peers = lock(&agent.peers);
    for word in peers.live(clock::now().0, agent.config.timings.mesh_timeout).filter(|word| word.serving) {
        live.insert(word.host.clone());
        healthy.extend(word.healthy.iter().cloned());
    }
    (live, healthy)
}

/// Makes the network as planned. Returns whether there are public addresses that were not there.
async fn apply(agent: &Agent, before: Option<&Plan>, wanted: &Plan) -> Result<bool, NetError> {
    lock(&agent.vips).clone_from(&wanted.vips);
    if let Some(own) = agent.tunnel.as_ref().filter(|_| before.is_none_or(|before| before.tunnels != wanted.tunnels)) {
        own.tunnel.lead_to(&wanted.tunnels).await?;
    }
    let own = agent.goal.borrow().network.peers.iter().find(|peer| peer.host == agent.config.name).cloned();
    let new_peers = before.is_none_or(|before| {
        (&before.peers, before.ipv6, &before.spread.frame) != (&wanted.peers, wanted.ipv6, &wanted.spread.frame)
    });
    let mut new_overlay = false;
    if let Some(own) = own.filter(|_| new_peers) {
        if agent.config.transit.has_overlay() {
            let way = (agent.config.address, agent.config.transit);
            new_overlay = agent.links.create_overlay(own.overlay, own.mac, way).await?;
        }
        if let Some(prefix) = wanted.ipv6 {
            prepare_ipv6(&agent.links, prefix, &own, (agent.config.transit, agent.config.prefix)).await?;
        }
        if agent.config.transit.has_overlay() {
            agent.links.set_peers(&wanted.peers, wanted.ipv6).await?;
        }
    }
    let other_rules =
        |before: &Plan| (&before.rules, &before.spread, &before.arp) != (&wanted.rules, &wanted.spread, &wanted.arp);
    if new_overlay || before.is_none_or(other_rules) {
        set_rules(agent, before, wanted, new_overlay)?;
        crate::guard::check(agent);
    }
    if before.is_none_or(|before| before.routes != wanted.routes) {
        agent.links.set_routes(&wanted.routes).await?;
    }
    if before.is_none_or(|before| before.vips != wanted.vips) {
        // Also when there is another prefix now, or none.
        let prefixes = [wanted.ipv6, before.and_then(|before| before.ipv6)];
        let own = agent.config.address;
        // The host's own may be alone in its network too.
        let is_public = |address| match address {
            IpAddr::V4(address) => address != own,
            IpAddr::V6(address) => {
                let mut embedded = prefixes.iter().flatten().filter_map(|prefix| prefix.embedded(address));
                embedded.any(|one| one != own)
            }
        };
        let new = agent.links.set_vips(&wanted.vips, is_public).await?;
        if !new.is_empty() {
            tracing::info!(?new, "public addresses taken");
            return Ok(true);
        }
    }
    Ok(false)
}

fn set_rules(agent: &Agent, before: Option<&Plan>, wanted: &Plan, new_overlay: bool) -> Result<(), NetError> {
    let mut nft = lock(&agent.nft);
    if let Some(before) = before {
        nft.give_up(before, wanted)?;
    }
    // Rules name the overlay's device by its number.
    let script = nft.script(before.filter(|_| !new_overlay), wanted)?;
    nft.apply(&script)?;
    // A set that is new, or gone and will come back, is empty.
    let stays = |set: &String| before.is_some_and(|before| before.rules.kept.contains_key(set));
    lock(&agent.opened).retain(|(set, _), _| stays(set) && wanted.rules.kept.contains_key(set));
    if before.is_none_or(|before| before.arp != wanted.arp) {
        nft.apply(&wanted.arp)?;
    }
    Ok(())
}
