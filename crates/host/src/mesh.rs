//! Telling the other hosts what is healthy here, and hearing it from them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use mayfly_model::HostName;
use mayfly_net::mesh::{INTERVAL, PORT, Word, listen, tell};
use tokio::net::UdpSocket;

use crate::agent::{Agent, lock};
use crate::clock;

/// Starts to hear, and returns the socket to speak through.
pub(crate) async fn start(agent: &Arc<Agent>) -> std::io::Result<Arc<UdpSocket>> {
    let socket = Arc::new(UdpSocket::bind((agent.config.address, PORT)).await?);
    tokio::spawn(hear(Arc::clone(agent), Arc::clone(&socket)));
    Ok(socket)
}

async fn hear(agent: Arc<Agent>, socket: Arc<UdpSocket>) {
    loop {
        let Ok((from, word)) = listen(&socket).await else { continue };
        let goal = agent.goal.borrow().clone();
        let known = goal.network.peers.iter().any(|peer| peer.host == word.host && peer.address == from);
        if !known || word.host == agent.config.name {
            continue;
        }
        let news = {
            let mut peers = lock(&agent.peers);
            let now = clock::now().0;
            let before = peers.live(now, agent.config.timings.mesh_timeout).find(|known| known.host == word.host);
            let news = before.is_none_or(|known| known.healthy != word.healthy || known.serving != word.serving);
            peers.hear(now, word);
            news
        };
        if news {
            agent.changed.send_modify(|count| *count += 1);
        }
    }
}

/// Waits until each peer has been heard, or has been silent for so long that it counts as gone. Before that, an agent that
/// has just started would take itself for the only one left, and everybody's public addresses with it.
pub(crate) async fn acquainted(agent: &Agent) {
    let timeout = agent.config.timings.mesh_timeout;
    let deadline = tokio::time::Instant::now() + Duration::from_millis(timeout);
    let mut changed = agent.changed.subscribe();
    loop {
        let goal = agent.goal.borrow().clone();
        let others = goal.network.peers.iter().filter(|peer| peer.host != agent.config.name);
        let heard: BTreeSet<HostName> =
            lock(&agent.peers).live(clock::now().0, timeout).map(|word| word.host.clone()).collect();
        let all = others.into_iter().all(|peer| heard.contains(&peer.host));
        if all || tokio::time::timeout_at(deadline, changed.changed()).await.is_err() {
            return;
        }
    }
}

/// Speaks at every interval, and at once when something has changed here.
pub(crate) async fn speak(agent: Arc<Agent>, socket: Arc<UdpSocket>) {
    let mut changed = agent.changed.subscribe();
    loop {
        let now = clock::now();
        let word = Word {
            host: agent.config.name.clone(),
            fresh_for: lock(&agent.lease).fresh_for(now),
            votes: now >= agent.votes_from,
            serving: *agent.serving.borrow(),
            healthy: agent.statuses().health(now).into_iter().collect(),
        };
        let goal = agent.goal.borrow().clone();
        let addresses: Vec<_> =
            goal.network.peers.iter().filter(|peer| peer.host != agent.config.name).map(|peer| peer.address).collect();
        tell(&socket, &addresses, &word).await;
        let said = (word.serving, word.healthy);
        let until = tokio::time::Instant::now() + INTERVAL;
        // Changes elsewhere wake this task too, and are no reason to speak.
        while tokio::time::timeout_at(until, changed.changed()).await.is_ok() {
            let now = clock::now();
            let present = (*agent.serving.borrow(), agent.statuses().health(now).into_iter().collect::<Vec<_>>());
            if present != said {
                break;
            }
        }
    }
}
