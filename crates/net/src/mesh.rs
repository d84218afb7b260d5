//! The hosts' word to each other, a few times a second: that they are there, whether their lease is fresh, and which
//! of their instances are healthy. Load balancers need no controller to let go of a dead host.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use mayfly_model::{HostName, ProbeGoal, VmId};
use serde::{Deserialize, Serialize};
use tokio::net::UdpSocket;

/// The port, on the hosts' own network.
pub const PORT: u16 = 7471;
/// Between two words.
pub const INTERVAL: Duration = Duration::from_millis(200);

/// One host's word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Word {
    /// Who speaks.
    pub host: HostName,
    /// Milliseconds that its lease stays fresh; 0 when it is not.
    pub fresh_for: u64,
    /// Whether it counts as a voter; one that has just been started has forgotten what lease it held.
    pub votes: bool,
    /// Whether its guests are on the network.
    pub serving: bool,
    /// What is healthy on it.
    pub healthy: Vec<(VmId, Option<ProbeGoal>)>,
}

/// The last word of each peer, and when it came, in milliseconds of the caller's clock.
#[derive(Clone, Debug, Default)]
pub struct Peers {
    heard: BTreeMap<HostName, (u64, Word)>,
}

impl Peers {
    /// Takes a word.
    pub fn hear(&mut self, now: u64, word: Word) {
        self.heard.insert(word.host.clone(), (now, word));
    }

    /// The words that still hold: no older than `timeout` ms.
    pub fn live(&self, now: u64, timeout: u64) -> impl Iterator<Item = &Word> {
        self.heard.values().filter(move |(at, _)| now.saturating_sub(*at) < timeout).map(|(_, word)| word)
    }

    /// How many of the voters are heard, and whether any of them said that its lease is fresh. A word that has grown old
    /// does not mean that the lease has: only a newer word can say so.
    pub fn voters(&self, now: u64, timeout: u64, is_voter: impl Fn(&HostName) -> bool) -> (usize, bool) {
        let live = self.heard.iter().filter(|(_, (at, word))| word.votes && now.saturating_sub(*at) < timeout);
        let voters = live.filter(|(host, _)| is_voter(host));
        voters.fold((0, false), |(count, fresh), (_, (_, word))| (count + 1, fresh || word.fresh_for > 0))
    }
}

/// Sends a word to all peers. One that cannot be reached is no error: it will miss the word.
pub async fn tell(socket: &UdpSocket, peers: &[Ipv4Addr], word: &Word) {
    let Ok(bytes) = serde_json::to_vec(word) else { return };
    for peer in peers {
        if let Err(error) = socket.send_to(&bytes, SocketAddr::from((*peer, PORT))).await {
            tracing::debug!(%peer, %error, "a word to a peer was lost");
        }
    }
}

/// The next word that arrives from one of `peers`.
pub async fn listen(socket: &UdpSocket) -> std::io::Result<(Ipv4Addr, Word)> {
    let mut buffer = vec![0; 65_536];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).await?;
        if let (SocketAddr::V4(from), Ok(word)) = (from, serde_json::from_slice(&buffer[..length])) {
            return Ok((*from.ip(), word));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(host: &str, fresh_for: u64, votes: bool) -> Word {
        let host = HostName::new(host).unwrap();
        Word { host, fresh_for, votes, serving: true, healthy: Vec::new() }
    }

    #[test]
    fn an_old_word_of_a_fresh_lease_is_not_a_word_of_a_lost_one() {
        let mut peers = Peers::default();
        peers.hear(1000, word("a", 100, true));
        assert_eq!(peers.voters(1500, 1000, |_| true), (1, true), "it may have been renewed since");
        peers.hear(1600, word("a", 0, true));
        assert_eq!(peers.voters(1700, 1000, |_| true), (1, false));
        assert_eq!(peers.voters(2600, 1000, |_| true), (0, false), "nothing has been heard for too long");
    }

    #[test]
    fn only_voters_count() {
        let mut peers = Peers::default();
        peers.hear(1000, word("a", 0, true));
        peers.hear(1000, word("b", 500, true));
        peers.hear(1000, word("c", 500, false));
        assert_eq!(peers.voters(1100, 1000, |host| host.as_str() != "b"), (1, false));
    }
}
