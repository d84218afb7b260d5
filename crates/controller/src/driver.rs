//! Drives the core: one thread takes what has queued up and lets the core step; another commits all changes in one
//! transaction, and only then answers.
//!
//! Who reads sees the core as it is, which may be ahead of the store by the transaction that is being committed; so a
//! reader's answer waits until that is durable ([`Driver::read`]). There is one copy of the records, and nobody is ever
//! told of what a crash could undo.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use mayfly_fabric::{Config, Core, Input, Outcome, Rejected};
use mayfly_model::{Incarnation, Time};
use mayfly_store::{Leadership, Store, StoreError};
use tokio::sync::{mpsc, oneshot, watch};

use crate::committer::{Committer, Decision};
use crate::stored::{commit, read};

/// Between two ticks of the core.
const TICK: Duration = Duration::from_millis(100);
/// Most inputs of one transaction.
const BATCH: usize = 1024;

/// Why an input was not taken.
#[derive(Debug)]
pub enum DriverError {
    /// The core refused a command.
    Rejected(Rejected),
    /// The store could not commit; nothing has changed.
    Store(Arc<StoreError>),
    /// The driver has ended.
    Stopped,
}

type Reply = oneshot::Sender<Result<Outcome, DriverError>>;

/// How far the store is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// Transactions that are durable.
    pub count: u64,
    /// The goal states' number as of the last.
    pub revision: Incarnation,
    /// The number that the next event gets, as of the last.
    pub next_event: u64,
}

struct Shared {
    /// Where several controllers share the store, whether this one leads.
    leadership: Option<Leadership>,
    core: RwLock<Core>,
    /// Transactions that the core is ahead by, or the store has.
    decided: AtomicU64,
}

impl Shared {
    /// Whether what this controller says counts. One that another has followed must neither grant leases to hosts nor
    /// tell what may be long past.
    fn leads(&self) -> bool {
        self.leadership.as_ref().is_none_or(Leadership::holds)
    }
}

/// A handle on the driver.
#[derive(Clone)]
pub struct Driver {
    inputs: mpsc::Sender<(Input, Reply)>,
    shared: Arc<Shared>,
    committed: watch::Receiver<Committed>,
    clock: Clock,
}

impl Driver {
    /// Loads the records and starts the thread.
    ///
    /// # Errors
    /// When the records cannot be loaded, or another controller has the store.
    pub fn start(mut store: Box<dyn Store>, config: &Config, leadership: Option<Leadership>) -> anyhow::Result<Driver> {
        let clock = Clock::start();
        let core = start_core(store.as_mut(), config, clock)?;
        let (publish, committed) = watch::channel(progress(&core, 0));
        let shared = Arc::new(Shared { leadership, core: RwLock::new(core), decided: AtomicU64::new(0) });
        let (inputs, queue) = mpsc::channel(BATCH * 4);
        let committer = Committer::start(store).context("cannot start the committer's thread")?;
        let mut thread = Thread { shared: Arc::clone(&shared), committer, clock, publish: Arc::new(publish) };
        std::thread::Builder::new()
            .name("driver".to_owned())
            .spawn(move || {
                let _end = EndWithThread;
                thread.run(queue);
            })
            .context("cannot start the driver's thread")?;
        Ok(Driver { inputs, shared, committed, clock })
    }

    /// Hands an input to the core and waits for its commit.
    ///
    /// # Errors
    /// [`DriverError`].
    pub async fn submit(&self, input: Input) -> Result<Outcome, DriverError> {
        let (reply, answer) = oneshot::channel();
        self.inputs.send((input, reply)).await.map_err(|_| DriverError::Stopped)?;
        answer.await.map_err(|_| DriverError::Stopped)?
    }

    /// What `look` sees in the core, once all of that is durable. Nobody else can go on meanwhile, so it has to be quick.
    ///
    /// # Errors
    /// [`DriverError::Stopped`].
    pub async fn read<T>(&self, look: impl FnOnce(&Core) -> T) -> Result<T, DriverError> {
        let (seen, decided) = {
            let core = self.shared.core.read().unwrap_or_else(PoisonError::into_inner);
            (look(&core), self.shared.decided.load(Ordering::SeqCst))
        };
        let mut committed = self.committed.clone();
        committed.wait_for(|committed| committed.count >= decided).await.map_err(|_| DriverError::Stopped)?;
        if self.shared.leads() { Ok(seen) } else { Err(DriverError::Stopped) }
    }

    /// What `look` sees in the core at this moment, durable or not: for what only ever is looked at again.
    pub fn peek<T>(&self, look: impl FnOnce(&Core) -> T) -> T {
        look(&self.shared.core.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Tells of every commit.
    pub fn watch(&self) -> watch::Receiver<Committed> {
        self.committed.clone()
    }

    /// The controller's time.
    pub fn now(&self) -> Time {
        self.clock.now()
    }

    /// Lets time pass for the core.
    pub async fn tick(self) {
        let mut interval = tokio::time::interval(TICK);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            interval.tick().await;
            match self.submit(Input::Tick).await {
                Err(DriverError::Stopped) => return,
                Err(DriverError::Store(error)) => {
                    tracing::error!(%error, cause = ?std::error::Error::source(&*error), "a tick was not committed");
                }
                Ok(_) | Err(DriverError::Rejected(_)) => {}
            }
        }
    }
}

fn progress(core: &Core, count: u64) -> Committed {
    let meta = core.state().meta();
    Committed { count, revision: meta.revision, next_event: meta.next_event }
}

/// Time that starts at the wall clock's and then only follows the monotonic clock.
#[derive(Clone, Copy)]
struct Clock {
    base: u64,
    start: Instant,
}

impl Clock {
    fn start() -> Clock {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Clock { base: wall.as_millis() as u64, start: Instant::now() }
    }

    fn now(self) -> Time {
        Time(self.base + self.start.elapsed().as_millis() as u64)
    }
}

struct Thread {
    shared: Arc<Shared>,
    committer: Committer,
    clock: Clock,
    publish: Arc<watch::Sender<Committed>>,
}

impl Thread {
    fn run(&mut self, mut queue: mpsc::Receiver<(Input, Reply)>) {
        let mut batch = Vec::new();
        while let Some(first) = queue.blocking_recv() {
            batch.push(first);
            while batch.len() < BATCH
                && let Ok(next) = queue.try_recv()
            {
                batch.push(next);
            }
            self.take(&mut batch);
        }
    }

    fn take(&mut self, batch: &mut Vec<(Input, Reply)>) {
        let mut changes = Vec::new();
        let mut answers = Vec::new();
        let (progress, epoch) = {
            let mut core = self.shared.core.write().unwrap_or_else(PoisonError::into_inner);
            for (input, reply) in batch.drain(..) {
                let plans = matches!(input, Input::Plan(_));
                let mut result = core.step(self.clock.now(), rand::random(), input).map_err(DriverError::Rejected);
                if let Ok(outcome) = &mut result
                    && !plans
                {
                    changes.append(&mut outcome.changes);
                }
                answers.push((reply, result));
            }
            let ahead = u64::from(!changes.is_empty());
            let decided = self.shared.decided.fetch_add(ahead, Ordering::SeqCst) + ahead;
            (progress(&core, decided), core.state().meta().epoch)
        };
        let (shared, publish) = (Arc::clone(&self.shared), Arc::clone(&self.publish));
        // An answer that goes with no change may still show what an earlier one has not made durable yet.
        let then = Box::new(move |done: Result<(), Arc<StoreError>>| {
            if let Err(error) = done {
                Thread::give_up(answers, error);
            }
            publish.send_if_modified(|committed| std::mem::replace(committed, progress) != progress);
            let leads = shared.leads();
            for (reply, result) in answers {
                // Whoever asked may have gone; what was decided stands.
                let _ = reply.send(if leads { result } else { Err(DriverError::Stopped) });
            }
        });
        self.committer.commit(Decision { changes, epoch, then });
    }

    /// The store could not commit what the core has decided, and may be unusable from now on. Everybody is told, and
    /// the process ends: the next one starts from what is stored.
    fn give_up(answers: Vec<(Reply, Result<Outcome, DriverError>)>, error: Arc<StoreError>) -> ! {
        tracing::error!(%error, cause = ?std::error::Error::source(&*error), "a transaction failed; the controller ends");
        for (reply, result) in answers {
            let _ = reply.send(match result {
                Err(DriverError::Rejected(rejected)) => Err(DriverError::Rejected(rejected)),
                _ => Err(DriverError::Store(Arc::clone(&error))),
            });
        }
        // The answers have to leave the house first.
        std::thread::sleep(Duration::from_millis(300));
        std::process::exit(1)
    }
}

/// Ends the process when the driver's thread panics: a controller that only listens is worse than none.
pub(crate) struct EndWithThread;

impl Drop for EndWithThread {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

fn start_core(store: &mut dyn Store, config: &Config, clock: Clock) -> anyhow::Result<Core> {
    // First the store is taken over, then it is read: what another controller still writes in between would be lost.
    let epoch = store.take_over(0)?;
    let (core, changes) = read(store, |records| Core::start(records, epoch, config.clone(), clock.now()))?;
    commit(store, epoch, &changes)?;
    Ok(core)
}
