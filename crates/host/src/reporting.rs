//! Reports to the controller, which renew the lease and bring the goal state.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mayfly_api::ErrorCode;
use mayfly_model::{EGRESS_FEATURE, EGRESS6_FEATURE, HostFacts, HostReport, IPV6_FEATURE};

use crate::agent::{Agent, lock};
use crate::clock;
use crate::config::RebootBy;

/// Between two reports when there is news.
const SPACING: Duration = Duration::from_millis(50);

/// Reports for ever.
pub(crate) async fn run(agent: Arc<Agent>) {
    let renew = Duration::from_millis(agent.config.timings.renew);
    let mut reachable = true;
    let searches = agent.config.controller.contains(',');
    loop {
        let answered = report(&agent).await;
        match &answered {
            Err(error) if reachable => {
                tracing::warn!(%error, cause = ?std::error::Error::source(error), "the controller does not answer");
            }
            Ok(()) if !reachable => tracing::info!("the controller answers again"),
            _ => {}
        }
        if answered.as_ref().is_err_and(|error| error.code() == Some(ErrorCode::CertificateEnded)) {
            agent.certificate_ended.store(true, Ordering::Relaxed);
            agent.renew_now.notify_one();
        }
        reachable = answered.is_ok();
        tokio::time::sleep(SPACING).await;
        if !reachable && searches {
            // Another controller may lead, and this host's lease runs: no time to lose.
            continue;
        }
        // Either it is time, or there is news.
        let _ = tokio::time::timeout(renew - SPACING, agent.report_now.notified()).await;
    }
}

async fn report(agent: &Agent) -> Result<(), mayfly_api::ClientError> {
    // A host that slept through its lease's end stops its guests before it is told what to run instead.
    crate::guard::check(agent);
    let sent = clock::now();
    let report = HostReport {
        host: agent.config.name.clone(),
        facts: HostFacts {
            fault_domain: agent.config.fault_domain.clone(),
            address: agent.config.address,
            capacity: agent.config.capacity,
            labels: agent.config.labels.clone(),
            features: features(agent),
            images: lock(&agent.images).clone(),
            transit: agent.config.transit,
            tunnel_key: agent.tunnel.as_ref().map(|tunnel| tunnel.key),
        },
        boot_id: agent.boot_id,
        // Grows over restarts of the agent too.
        sequence: sent.0.max(1),
        lease_ack: lock(&agent.lease).number(),
        applied: agent.goal.borrow().incarnation,
        vms: agent.statuses().reports(sent),
        incidents: lock(&agent.incidents).clone(),
        counters: lock(&agent.counters).clone(),
    };
    // One stalled request must not use up the lease.
    let answer = agent.client.report(&report, Duration::from_millis(agent.config.timings.renew * 2)).await?;
    agent.reported.send_replace(sent);
    // The goal state first: with the lease alone, a VM that is no longer wanted could be served for a moment.
    let may_use = answer.goal.is_none_or(|goal| agent.take_goal(goal));
    if !may_use {
        return Ok(());
    }
    if agent.ledger.lacks_goal() {
        let goal = Arc::clone(&agent.goal.borrow());
        if agent.ledger.write_goal(&goal).is_ok() {
            tracing::info!("the goal state is written down again");
        }
    }
    let lease = {
        let mut lease = lock(&agent.lease);
        lease.granted(sent, clock::now(), answer.grant);
        *lease
    };
    if let Err(error) = agent.ledger.write_lease(&lease) {
        // The next start of the agent would think that it has no lease, and stop the guests: safe, if not nice.
        tracing::error!(error = format!("{error:#}"), "the lease cannot be written down");
    }
    agent.confirmed.send_replace(true);
    if agent.goal.borrow().reboot == Some(agent.boot_id) {
        reboot(agent);
    }
    crate::guard::check(agent);
    Ok(())
}

/// Reboots the host, which carries nothing any more.
fn reboot(agent: &Agent) {
    tracing::info!("a planned reboot");
    match agent.config.reboot {
        RebootBy::Supervisor => std::process::exit(crate::REBOOT_STATUS),
        RebootBy::Kernel => {
            nix::unistd::sync();
            let Err(error) = nix::sys::reboot::reboot(nix::sys::reboot::RebootMode::RB_AUTOBOOT);
            tracing::error!(%error, "the host cannot be rebooted");
        }
    }
}

/// What this host can do: what its operator says, and what it has found out.
fn features(agent: &Agent) -> BTreeSet<String> {
    let mut features = agent.config.features.clone();
    if agent.config.accelerator == mayfly_qemu::Accelerator::Kvm {
        features.insert("kvm".to_owned());
    }
    if agent.config.guest_egress {
        features.insert(EGRESS_FEATURE.to_owned());
    }
    if mayfly_net::has_ipv6() {
        features.insert(IPV6_FEATURE.to_owned());
    }
    if agent.config.underlay6().is_some() {
        features.insert(EGRESS6_FEATURE.to_owned());
    }
    features
}

/// Asks the controller for news, and has a report sent when there is some.
pub(crate) async fn listen(agent: Arc<Agent>) {
    loop {
        let have = agent.goal.borrow().incarnation;
        match agent.client.wait_for_news(&agent.config.name, have).await {
            Ok(news) if !news.calls.is_empty() => {
                news.calls.into_iter().for_each(|call| crate::calls::answer(&agent, call));
            }
            Ok(_) => {
                agent.report_now.notify_one();
                let mut newer = agent.goal.subscribe();
                // Until the report has brought it, asking again would answer at once.
                let arrived = newer.wait_for(|goal| goal.incarnation != have);
                let _ = tokio::time::timeout(Duration::from_millis(500), arrived).await;
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
        }
    }
}
