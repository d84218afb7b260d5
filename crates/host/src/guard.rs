//! The guard: asks the lease whether the host may serve, and acts on it.

use std::sync::Arc;
use std::time::Duration;

use mayfly_model::lease::MayServe;

use crate::agent::{Agent, lock};
use crate::clock;

const INTERVAL: Duration = Duration::from_millis(100);
/// How long the kernel passes an orphan's packets between two looks.
const ORPHAN_MILLIS: u64 = 600;

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
    let dips: Vec<_> = agent.statuses().guests().iter().map(|guest| guest.dip).collect();
    let mut nft = lock(&agent.nft);
    // After the lock: whoever waits for it must not hand out time that has passed.
    let now = clock::now();
    let (reached, others_fresh) = lock(&agent.peers).voters(now.0, agent.config.timings.mesh_timeout);
    // Without a goal state nobody knows how many they are, and no number is a majority.
    let voters = Some(agent.goal.borrow().network.voters).filter(|voters| *voters > 0).unwrap_or(usize::MAX / 2);
    let (may, until) = {
        let mut lease = lock(&agent.lease);
        (lease.may_serve(now, voters, reached + 1, others_fresh), lease.serve_until())
    };
    let millis = match may {
        MayServe::Lease => until.since(now),
        MayServe::Orphaned => ORPHAN_MILLIS,
        MayServe::No => 0,
    };
    let done = if millis > 0 { nft.lease(&dips, millis) } else { nft.revoke() };
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
