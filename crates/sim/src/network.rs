//! The simulated network between hosts and controller: latency, loss, repetition and partitions.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::nodes::{Node, Nodes};

/// Who can talk to whom.
#[derive(Debug, Default)]
pub(crate) struct Network {
    now: Cut,
    /// How it was before, and when that ended.
    before: (Cut, u64),
    /// Share of messages that are lost, repeated or late, in percent.
    pub(crate) badness: u32,
}

#[derive(Debug, Default, Clone)]
struct Cut {
    /// Nodes cut off from all that are not in here with them.
    minority: Nodes,
    /// Nodes that hear, and are not heard.
    mute: Nodes,
}

impl Cut {
    fn hears(&self, listener: Node, speaker: Node) -> bool {
        self.minority.contains(listener) == self.minority.contains(speaker) && !self.mute.contains(speaker)
    }
}

impl Network {
    /// When the last word was said that `listener` has heard from `speaker`, if that is no longer ago than `age`. Words
    /// come five times a second and travel for some time.
    pub(crate) fn last_word(&self, listener: Node, speaker: Node, now: u64, age: u64) -> Option<u64> {
        let lag = ((listener * 31 + speaker * 17) as u64 * 7 + now / 200 * 13) % 380;
        let said = now.saturating_sub(lag);
        // A word that was said before the cut arrives none the less.
        let (before, until) = (&self.before.0, self.before.1);
        let then = if said >= until { &self.now } else { before };
        let heard = if then.hears(listener, speaker) {
            said
        } else if before.hears(listener, speaker) {
            until
        } else {
            return None;
        };
        (now.saturating_sub(heard) <= age).then_some(heard)
    }

    pub(crate) fn partition(&mut self, minority: Nodes, now: u64) {
        let next = Cut { minority, mute: self.now.mute };
        self.before = (std::mem::replace(&mut self.now, next), now);
    }

    pub(crate) fn mute(&mut self, mute: Nodes, now: u64) {
        let next = Cut { minority: self.now.minority, mute };
        self.before = (std::mem::replace(&mut self.now, next), now);
    }

    pub(crate) fn heal(&mut self, now: u64) {
        self.before = (std::mem::take(&mut self.now), now);
        self.badness = 0;
    }

    /// When a message from `a` arrives at `b`, in ms from now: not at all, once, or more than once.
    pub(crate) fn deliver(&self, a: Node, b: Node, rng: &mut ChaCha8Rng) -> Vec<u64> {
        if !self.now.hears(b, a) || rng.random_ratio(self.badness, 100) {
            return Vec::new();
        }
        let late = rng.random_ratio(1 + self.badness, 100);
        let mut times = vec![if late { rng.random_range(100..2500) } else { rng.random_range(1..20) }];
        if rng.random_ratio(self.badness, 100) {
            times.push(rng.random_range(1..2500));
        }
        times
    }
}
