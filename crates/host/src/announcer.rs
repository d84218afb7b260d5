//! Tells the neighbours which public addresses this host has.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mayfly_model::HostName;
use mayfly_net::address::UNDERLAY_DEVICE;
use mayfly_net::announce;
use tokio::task::JoinHandle;

use crate::agent::{Agent, lock};

/// When a public address that has moved is announced: at once, and again in case that was lost or came too early.
const MOVED: &[Duration] =
    &[Duration::ZERO, Duration::from_millis(300), Duration::from_millis(1100), Duration::from_millis(2500)];
/// The same of one that is where it was.
const STAYS: &[Duration] = &[Duration::ZERO];
/// Between two announcements whatever happens: another host may have taken an address and given it up without this one's
/// hearing of it.
const PERIOD: Duration = Duration::from_secs(30);

/// Knows what has been said, and to whom.
#[derive(Default)]
pub(crate) struct Announcer {
    /// Whether there are addresses that were not there.
    pub has_new: bool,
    heard: BTreeSet<HostName>,
    looked: Option<Instant>,
    said: Option<Instant>,
    saying: Option<JoinHandle<()>>,
}

impl Announcer {
    /// Says what has to be said, where the plan for these live hosts is in force.
    pub(crate) fn follow(&mut self, agent: &Arc<Agent>, live: BTreeSet<HostName>) {
        // Whoever was not heard may have taken this host's addresses meanwhile, and told everybody; so may all others while this agent
        // was held up.
        let somebody = live.difference(&self.heard).next().is_some();
        self.heard = live;
        let patience = Duration::from_millis(agent.config.timings.mesh_timeout);
        let late = self.looked.replace(Instant::now()).is_some_and(|at| at.elapsed() > patience);
        let when = match std::mem::take(&mut self.has_new) || somebody || late {
            true => MOVED,
            false if self.said.is_none_or(|at| at.elapsed() > PERIOD) => STAYS,
            false => return,
        };
        self.said = Some(Instant::now());
        if let Some(before) = self.saying.replace(tokio::spawn(announce_all(Arc::clone(agent), when))) {
            before.abort();
        }
    }
}

async fn announce_all(agent: Arc<Agent>, when: &[Duration]) {
    let (index, mac) = (agent.links.index(UNDERLAY_DEVICE).await, agent.links.mac(UNDERLAY_DEVICE).await);
    let (Ok(index), Ok(mac)) = (index, mac) else { return };
    let start = tokio::time::Instant::now();
    for at in when {
        tokio::time::sleep_until(start + *at).await;
        // One that has gone to another host meanwhile is that one's to announce.
        let own: Vec<IpAddr> = lock(&agent.vips).iter().copied().collect();
        for address in own {
            if let Err(error) = announce(index, mac, address) {
                tracing::warn!(%address, %error, "a public address was not announced");
            }
        }
    }
}
