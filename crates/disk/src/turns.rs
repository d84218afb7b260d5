//! One at a time for each name: others go on.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

/// A lock for each key that somebody holds or waits for.
#[derive(Debug)]
pub(crate) struct Turns<K>(Mutex<HashMap<K, Arc<Mutex<()>>>>);

impl<K> Default for Turns<K> {
    fn default() -> Turns<K> {
        Turns(Mutex::default())
    }
}

impl<K: Hash + Eq + Clone> Turns<K> {
    /// Does `work` if nobody else is at work on `key`.
    pub(crate) fn try_take<T>(&self, key: &K, work: impl FnOnce() -> T) -> Option<T> {
        // Whoever comes in between has a short turn, and is waited for.
        let is_free = !self.locks().contains_key(key);
        is_free.then(|| self.take(key, work))
    }

    /// Does `work` when nobody else is at work on `key`.
    pub(crate) fn take<T>(&self, key: &K, work: impl FnOnce() -> T) -> T {
        let lock = Arc::clone(self.locks().entry(key.clone()).or_default());
        let result = {
            let _turn = lock.lock().unwrap_or_else(PoisonError::into_inner);
            work()
        };
        let mut locks = self.locks();
        // This one and the map's: nobody waits.
        if Arc::strong_count(&lock) == 2 {
            locks.remove(key);
        }
        result
    }

    fn locks(&self) -> std::sync::MutexGuard<'_, HashMap<K, Arc<Mutex<()>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
