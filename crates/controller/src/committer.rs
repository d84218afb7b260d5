//! Makes decisions durable, in order, in a thread of its own: while one transaction is encoded and written, the core
//! decides on the next. What has queued up meanwhile becomes one transaction.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use mayfly_fabric::Change;
use mayfly_store::{Store, StoreError};

use crate::stored::commit;

/// Decisions that may wait for the store; who decides more waits.
const WAITING: usize = 2;
/// Changes up to which it is quicker to write at once than to wake another thread.
const FEW: usize = 64;

/// What is told when a decision is durable, or cannot be.
type Then = Box<dyn FnOnce(Result<(), Arc<StoreError>>) + Send>;

/// A decision: changes that are to be committed together.
pub struct Decision {
    /// What changes, in order.
    pub changes: Vec<Change>,
    /// Who writes.
    pub epoch: u64,
    /// What follows.
    pub then: Then,
}

/// The store, and the thread that writes to it.
pub struct Committer {
    store: Arc<Mutex<Box<dyn Store>>>,
    queue: SyncSender<Decision>,
    /// Decisions that have been handed to the thread and are not durable yet.
    waiting: Arc<AtomicUsize>,
}

impl Committer {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system has none.
    pub fn start(store: Box<dyn Store>) -> std::io::Result<Committer> {
        let (queue, decisions) = sync_channel(WAITING);
        let (store, waiting) = (Arc::new(Mutex::new(store)), Arc::new(AtomicUsize::new(0)));
        let (shared, count) = (Arc::clone(&store), Arc::clone(&waiting));
        std::thread::Builder::new().name("committer".to_owned()).spawn(move || {
            let _end = super::driver::EndWithThread;
            run(&decisions, &shared, &count);
        })?;
        Ok(Committer { store, queue, waiting })
    }

    /// Commits a decision after all that came before it. May wait for those; `then` is called in any thread.
    pub fn commit(&self, decision: Decision) {
        if self.waiting.load(Ordering::SeqCst) == 0 && decision.changes.len() <= FEW {
            return write(&self.store, vec![decision]);
        }
        self.waiting.fetch_add(1, Ordering::SeqCst);
        if let Err(returned) = self.queue.send(decision) {
            // The thread has panicked, and the process is ending.
            drop(returned);
        }
    }
}

fn run(decisions: &Receiver<Decision>, store: &Mutex<Box<dyn Store>>, waiting: &AtomicUsize) {
    while let Ok(first) = decisions.recv() {
        let mut all = vec![first];
        all.extend(decisions.try_iter());
        let count = all.len();
        write(store, all);
        waiting.fetch_sub(count, Ordering::SeqCst);
    }
}

/// Writes decisions as one transaction.
fn write(store: &Mutex<Box<dyn Store>>, decisions: Vec<Decision>) {
    let epoch = decisions.iter().map(|one| one.epoch).max().unwrap_or(0);
    let (changes, then): (Vec<Vec<Change>>, Vec<Then>) =
        decisions.into_iter().map(|decision| (decision.changes, decision.then)).unzip();
    let changes: Vec<Change> = changes.into_iter().flatten().collect();
    let done = match changes.is_empty() {
        true => Ok(()),
        false => commit(store.lock().unwrap_or_else(PoisonError::into_inner).as_mut(), epoch, &changes),
    };
    let done = done.map_err(Arc::new);
    for then in then {
        then(done.clone());
    }
}
