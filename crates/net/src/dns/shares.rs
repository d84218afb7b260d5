//! What may be under way at once: so much in all, and of that only a part for one asker, so that none takes the others'.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

/// How much may be under way, and what is.
#[derive(Debug)]
pub(super) struct Shares {
    all: usize,
    each: usize,
    taken: Mutex<(usize, HashMap<Ipv4Addr, usize>)>,
}

/// One thing that is under way, until it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    shares: Arc<Shares>,
    asker: Ipv4Addr,
}

impl Shares {
    pub(super) fn new(all: usize, each: usize) -> Arc<Shares> {
        Arc::new(Shares { all, each, taken: Mutex::default() })
    }

    /// Room for one more thing of this asker, if there is any.
    pub(super) fn take(self: &Arc<Self>, asker: Ipv4Addr) -> Option<Share> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.1.get(&asker).copied().unwrap_or(0);
        if taken.0 >= self.all || own >= self.each {
            return None;
        }
        taken.0 += 1;
        taken.1.insert(asker, own + 1);
        Some(Share { shares: Arc::clone(self), asker })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.shares.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.0 -= 1;
        if let Some(own) = taken.1.get_mut(&self.asker) {
            *own -= 1;
            if *own == 0 {
                taken.1.remove(&self.asker);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_asker_leaves_room_for_others() {
        let (one, other) = (Ipv4Addr::new(10, 80, 0, 2), Ipv4Addr::new(10, 80, 0, 3));
        let shares = Shares::new(5, 3);
        let mut held: Vec<Share> = (0..10).filter_map(|_| shares.take(one)).collect();
        assert_eq!(held.len(), 3);
        held.extend((0..10).filter_map(|_| shares.take(other)));
        assert_eq!(held.len(), 5, "and no more than five in all");
        held.remove(0);
        assert!(shares.take(one).is_some());
        held.clear();
        assert_eq!(*shares.taken.lock().unwrap(), (0, HashMap::new()), "nothing is remembered of who is done");
    }
}
