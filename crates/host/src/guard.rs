//! The guard: asks the lease whether the host may serve, and acts on it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use mayfly_model::lease::MayServe;
use mayfly_model::{HostName, Time};

use crate::agent::{Agent, lock};
use crate::clock;

const INTERVAL: Duration = Duration::from_millis(100);
/// How long the kernel passes an orphan's packets between two looks.
const ORPHAN_MILLIS: u64 = 600;
/// How often an orphan writes down that it is one.
const NOTE_MILLIS: u64 = 300;

/// Looks for ever.
pub(crate) async fn run(agent: Arc<Agent>) {
    let mut interval = tokio::time::interval(INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        check(&agent);
    }
}

/// Looks once: renews what the kernel lets pass, or ends it.
pub(crate) fn check(agent: &Agent) {
    let prefix = agent.ipv6();
    // Each once: the kernel refuses a whole transaction that names one twice.
    let guests: BTreeSet<_> = agent.statuses().guests().iter().map(|guest| (guest.dip, guest.ipv6)).collect();
    let newer = guests.iter().filter(|(_, ipv6)| *ipv6).filter_map(|(dip, _)| prefix.map(|prefix| prefix.embed(*dip)));
    let dips: BTreeSet<IpAddr> = guests.iter().map(|(dip, _)| (*dip).into()).chain(newer.map(IpAddr::V6)).collect();
    let dips: Vec<_> = dips.into_iter().collect();
    let vips = lock(&agent.vips).clone();
    let mut nft = lock(&agent.nft);
    // After the lock: whoever waits for it must not hand out time that has passed.
    let now = clock::now();
    let goal = agent.goal.borrow().clone();
    let is_voter = |host: &HostName| goal.network.peers.iter().any(|peer| peer.voter && peer.host == *host);
    let timings = &agent.config.timings;
    let (reached, others_fresh) = lock(&agent.peers).voters(now.0, timings.mesh_timeout, is_voter);
    let reached = reached + usize::from(is_voter(&agent.config.name));
    // Without a goal state nobody knows how many they are, and no number is a majority.
    let voters = Some(goal.network.voters).filter(|voters| *voters > 0).unwrap_or(usize::MAX / 2);
    let (may, lease, grew) = {
        let mut lease = lock(&agent.lease);
        let before = lease.entitled_until();
        let may = lease.may_serve(now, timings, voters, (reached, others_fresh));
        (may, *lease, lease.entitled_until().since(before) > NOTE_MILLIS)
    };
    if may == MayServe::Orphaned && (grew || now.since(Time(agent.orphan_noted.load(Relaxed))) > NOTE_MILLIS) {
        // An agent that starts again has to know that this one was entitled until now.
        agent.orphan_noted.store(now.0, Relaxed);
        if let Err(error) = agent.ledger.write_lease(&lease) {
            tracing::error!(error = format!("{error:#}"), "the lease cannot be written down");
        }
    }
    let until = lease.serve_until();
    let millis = match may {
        MayServe::Lease => until.since(now),
        MayServe::Orphaned => ORPHAN_MILLIS,
        MayServe::No => 0,
    };
    let done = if millis > 0 { nft.lease(&dips, &vips, millis) } else { nft.revoke(prefix.is_some()) };
    drop(nft);
    if let Err(error) = done {
        tracing::error!(%error, "the kernel's leases cannot be set");
    }
    let serving = may != MayServe::No;
    let changed = agent.serving.send_if_modified(|before| std::mem::replace(before, serving) != serving);
    if changed {
        tracing::info!(?may, "{}", if serving { "guests may serve" } else { "no lease: guests are stopped" });
        agent.tell();
    }
}
