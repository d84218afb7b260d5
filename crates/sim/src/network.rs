//! The simulated network between hosts and controller: latency, loss and partitions.

use std::collections::BTreeSet;

use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// Index of a host; the controller is one past the last.
pub(crate) type Node = usize;

/// Who can talk to whom.
#[derive(Debug, Default)]
pub(crate) struct Network {
    /// Nodes cut off from all that are not in here with them.
    minority: BTreeSet<Node>,
    /// The partition before the present one, and when it ended.
    before: (BTreeSet<Node>, u64),
    /// Share of messages that are lost, in percent.
    pub(crate) loss: u32,
}

impl Network {
    pub(crate) fn connected(&self, a: Node, b: Node) -> bool {
        self.minority.contains(&a) == self.minority.contains(&b)
    }

    /// Whether a word from `b` that reached `a` within `age` ms before `now` may still count.
    pub(crate) fn heard_within(&self, a: Node, b: Node, now: u64, age: u64) -> bool {
        let connected_before = self.before.0.contains(&a) == self.before.0.contains(&b);
        self.connected(a, b) || (connected_before && now.saturating_sub(self.before.1) < age)
    }

    /// When the present partition began.
    pub(crate) fn changed_at(&self) -> u64 {
        self.before.1
    }

    pub(crate) fn partition(&mut self, minority: BTreeSet<Node>, now: u64) {
        self.before = (std::mem::replace(&mut self.minority, minority), now);
    }

    /// The latency of a message that arrives, in ms.
    pub(crate) fn deliver(&self, a: Node, b: Node, rng: &mut ChaCha8Rng) -> Option<u64> {
        if !self.connected(a, b) || rng.random_ratio(self.loss, 100) {
            return None;
        }
        Some(if rng.random_ratio(1, 50) { rng.random_range(100..1500) } else { rng.random_range(1..20) })
    }
}
