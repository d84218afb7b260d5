//! What a VM has sent and received in all. Its network card counts from nothing each time that it is made.

use mayfly_model::Traffic;
use serde::{Deserialize, Serialize};

/// Bytes after which a VM's count is written down, in a power of two: what a host that loses power may lose of it.
const NOTED: u32 = 26;

/// What has been counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// On all cards.
    pub total: Traffic,
    /// On the present one.
    card: Traffic,
}

impl Counted {
    /// The card says so now.
    pub(crate) fn see(&mut self, card: Traffic) {
        self.total = self.total.plus(card.since(self.card));
        self.card = card;
    }

    /// Changes when it is worth writing down.
    pub(crate) fn worth(&self) -> u64 {
        (self.total.sent >> NOTED) + (self.total.received >> NOTED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_cards_count_and_each_byte_once() {
        let mut counted = Counted::default();
        let card = |sent, received| Traffic { sent, received };
        for seen in [card(10, 1), card(30, 2), card(0, 0), card(5, 4), card(5, 4)] {
            counted.see(seen);
        }
        assert_eq!(counted.total, card(35, 6));
    }
}
