//! Whether a history of operations could have happened one at a time.
//!
//! The search of Wing and Gong (1993) with Lowe's memory (2017): take, of the operations that may come first, one that
//! agrees with what its client saw, and go on from there; give up a path whose set of operations and state were met before.
//! An operation whose answer was lost may have happened at any time after it was sent, or never.

use std::collections::HashSet;
use std::hash::Hash;

/// What one client did, and what it saw of it.
#[derive(Clone, Debug)]
pub struct Operation<T> {
    /// When it was sent, on a clock that all clients share.
    pub sent: u64,
    /// When its answer came; nothing if none did.
    pub answered: Option<u64>,
    /// What it was, and what the answer said.
    pub what: T,
}

/// Whether there is an order in which `apply`, from `state` on, agrees with every operation that was answered, and in
/// which no operation comes before one that had been answered when it was sent. `apply` returns nothing where an operation
/// cannot have been answered so in a state. At most 128 operations.
pub fn is_linearizable<T, S: Clone + Eq + Hash>(
    history: &[Operation<T>],
    state: S,
    apply: impl Fn(&S, &T) -> Option<S>,
) -> bool {
    assert!(history.len() <= 128, "a history of {} operations is too long to search", history.len());
    let answered = history.iter().enumerate().filter(|(_, one)| one.answered.is_some());
    let needed = answered.fold(0u128, |set, (at, _)| set | 1 << at);
    let mut seen = HashSet::new();
    let mut paths = vec![(0u128, state)];
    while let Some((done, state)) = paths.pop() {
        if done & needed == needed {
            return true;
        }
        let left = || history.iter().enumerate().filter(move |(at, _)| done & (1 << at) == 0);
        // What was sent after this cannot come first: something else had been answered by then.
        let first_answer = left().filter_map(|(_, one)| one.answered).min().unwrap_or(u64::MAX);
        for (at, one) in left().filter(|(_, one)| one.sent <= first_answer) {
            if let Some(next) = apply(&state, &one.what) {
                let path = (done | 1 << at, next);
                if seen.insert(path.clone()) {
                    paths.push(path);
                }
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// Operations on one number.
    #[derive(Clone, Copy, Debug)]
    enum On {
        Write(u8),
        Read(u8),
        /// Writes the second if the first is there, and says whether it was.
        Swap(u8, u8, bool),
        /// Its answer was lost.
        Lost(u8),
    }

    fn apply(state: &u8, what: &On) -> Option<u8> {
        match *what {
            On::Write(value) | On::Lost(value) => Some(value),
            On::Read(value) => (value == *state).then_some(*state),
            On::Swap(from, to, done) => ((from == *state) == done).then_some(if done { to } else { *state }),
        }
    }

    fn check(history: &[(u64, u64, On)]) -> bool {
        let operation = |(sent, answered, what): &(u64, u64, On)| Operation {
            sent: *sent,
            answered: (!matches!(what, On::Lost(_))).then_some(*answered),
            what: *what,
        };
        is_linearizable(&history.iter().map(operation).collect::<Vec<_>>(), 0, apply)
    }

    #[test]
    fn what_can_have_happened_is_told_from_what_cannot() {
        use On::{Lost, Read, Swap, Write};
        assert!(check(&[]));
        assert!(check(&[(0, 10, Write(1)), (11, 12, Read(1))]));
        assert!(!check(&[(0, 10, Write(1)), (11, 12, Read(0))]), "a stale read");
        assert!(check(&[(0, 10, Write(1)), (5, 12, Read(0))]), "they overlap");
        assert!(!check(&[(0, 10, Write(1)), (2, 3, Read(1)), (4, 5, Read(0))]), "back in time");
        assert!(!check(&[(0, 1, Swap(0, 1, true)), (2, 3, Swap(0, 2, true))]), "both cannot have found it");
        assert!(check(&[(0, 9, Swap(0, 1, true)), (0, 9, Swap(0, 2, false)), (10, 11, Read(1))]));
        assert!(!check(&[(0, 9, Write(1)), (10, 11, Write(2)), (12, 13, Read(1))]), "a lost write");
        // What was not answered may happen late, or never, but not before it was sent, and not twice.
        assert!(check(&[(0, 0, Lost(1)), (5, 6, Read(0)), (7, 8, Read(1))]));
        assert!(check(&[(0, 0, Lost(1)), (5, 6, Read(0))]));
        assert!(!check(&[(5, 6, Read(1)), (7, 0, Lost(1))]));
        assert!(!check(&[(0, 0, Lost(1)), (1, 2, Read(1)), (3, 4, Write(2)), (5, 6, Read(2)), (7, 8, Read(1))]));
    }

    /// Histories that did happen one at a time are accepted; the same with one read changed are what a search through
    /// all orders says they are.
    #[test]
    fn it_agrees_with_trying_all_orders() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let mut refused = 0;
        for _ in 0..2000 {
            let mut state = 0u8;
            let mut history: Vec<(u64, u64, On)> = (0..6u64)
                .map(|at| {
                    let point = at * 10 + 10;
                    let (sent, answered) =
                        (point - rng.random_range(0..20u64).min(point), point + rng.random_range(0..20));
                    let (a, b) = (rng.random_range(0..3), rng.random_range(0..3));
                    let what = match rng.random_range(0..3) {
                        0 => On::Write(a),
                        1 => On::Read(state),
                        _ => On::Swap(a, b, a == state),
                    };
                    state = apply(&state, &what).unwrap();
                    (sent, answered, what)
                })
                .collect();
            assert!(check(&history), "{history:?}");
            let at = rng.random_range(0..history.len());
            history[at].2 = On::Read(rng.random_range(0..3));
            let possible = orders(&history, &mut vec![], 0);
            assert_eq!(check(&history), possible, "{history:?}");
            refused += usize::from(!possible);
        }
        assert!(refused > 200, "only {refused} of 2000 were impossible");
    }

    fn orders(history: &[(u64, u64, On)], taken: &mut Vec<usize>, state: u8) -> bool {
        if taken.len() == history.len() {
            return true;
        }
        (0..history.len()).any(|at| {
            let rest = |other: &usize| *other != at && !taken.contains(other);
            if taken.contains(&at) || (0..history.len()).filter(rest).any(|other| history[other].1 < history[at].0) {
                return false;
            }
            let Some(next) = apply(&state, &history[at].2) else { return false };
            taken.push(at);
            let possible = orders(history, taken, next);
            taken.pop();
            possible
        })
    }
}
