//! Drives the core: one thread takes what has queued up, lets the core step, commits all changes in one transaction,
//! and only then answers. What others read is the state of the last commit.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use mayfly_fabric::{Change, Config, Core, Input, Outcome, Record, Rejected};
use mayfly_model::Time;
use mayfly_store::{Store, StoreError, Write};
use tokio::sync::{mpsc, oneshot, watch};

/// Between two ticks of the core.
const TICK: Duration = Duration::from_millis(100);
/// Most inputs of one transaction.
const BATCH: usize = 256;

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

/// A handle on the driver.
#[derive(Clone)]
pub struct Driver {
    inputs: mpsc::Sender<(Input, Reply)>,
    committed: watch::Receiver<Arc<Core>>,
}

impl Driver {
    /// Loads the records and starts the thread.
    ///
    /// # Errors
    /// When the records cannot be loaded.
    pub fn start(store: Box<dyn Store>, config: &Config) -> anyhow::Result<Driver> {
        let clock = Clock::start();
        let mut thread = Thread::load(store, config, clock)?;
        let (inputs, queue) = mpsc::channel(BATCH * 4);
        let (publish, committed) = watch::channel(Arc::new(thread.core.clone()));
        std::thread::Builder::new()
            .name("driver".to_owned())
            .spawn(move || {
                let _end = EndWithThread;
                thread.run(queue, &publish);
            })
            .context("cannot start the driver's thread")?;
        Ok(Driver { inputs, committed })
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

    /// The core as of the last commit.
    pub fn committed(&self) -> Arc<Core> {
        self.committed.borrow().clone()
    }

    /// Tells of every commit.
    pub fn watch(&self) -> watch::Receiver<Arc<Core>> {
        self.committed.clone()
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
    core: Core,
    store: Box<dyn Store>,
    clock: Clock,
}

impl Thread {
    fn load(mut store: Box<dyn Store>, config: &Config, clock: Clock) -> anyhow::Result<Thread> {
        let core = start_core(store.as_mut(), config, clock)?;
        Ok(Thread { core, store, clock })
    }

    fn run(&mut self, mut queue: mpsc::Receiver<(Input, Reply)>, publish: &watch::Sender<Arc<Core>>) {
        let mut batch = Vec::new();
        while let Some(first) = queue.blocking_recv() {
            batch.push(first);
            while batch.len() < BATCH
                && let Ok(next) = queue.try_recv()
            {
                batch.push(next);
            }
            self.take(&mut batch, publish);
        }
    }

    fn take(&mut self, batch: &mut Vec<(Input, Reply)>, publish: &watch::Sender<Arc<Core>>) {
        let mut changes = Vec::new();
        let mut answers = Vec::new();
        for (input, reply) in batch.drain(..) {
            let result = self.core.step(self.clock.now(), rand::random(), input).map_err(DriverError::Rejected);
            if let Ok(outcome) = &result {
                changes.extend(outcome.changes.iter().cloned());
            }
            answers.push((reply, result));
        }
        if !changes.is_empty() {
            match self.commit(&changes) {
                Ok(()) => drop(publish.send(Arc::new(self.core.clone()))),
                Err(error) => Thread::give_up(answers, error),
            }
        }
        for (reply, result) in answers {
            // Whoever asked may have gone; what was decided stands.
            let _ = reply.send(result);
        }
    }

    fn commit(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        commit(self.store.as_mut(), self.core.state().meta().epoch, changes)
    }

    /// The store could not commit what the core has decided, and may be unusable from now on. Everybody is told, and
    /// the process ends: the next one starts from what is stored.
    fn give_up(answers: Vec<(Reply, Result<Outcome, DriverError>)>, error: StoreError) -> ! {
        tracing::error!(%error, cause = ?std::error::Error::source(&error), "a transaction failed; the controller ends");
        let error = Arc::new(error);
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
struct EndWithThread;

impl Drop for EndWithThread {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

fn commit(store: &mut dyn Store, epoch: u64, changes: &[Change]) -> Result<(), StoreError> {
    let writes: Result<Vec<Write>, serde_json::Error> = changes
        .iter()
        .map(|change| match change {
            Change::Put(record) => Ok(Write::Put(record.key(), record.encode()?)),
            Change::Delete(key) => Ok(Write::Delete(key.clone())),
        })
        .collect();
    let writes = writes.map_err(|source| StoreError::Engine { action: "write a record", source: source.into() })?;
    store.commit(epoch, &writes)
}

fn start_core(store: &mut dyn Store, config: &Config, clock: Clock) -> anyhow::Result<Core> {
    let (core, changes) = Core::start(records(store)?, config.clone(), clock.now());
    let epoch = core.state().meta().epoch;
    store.fence(epoch)?;
    commit(store, epoch, &changes)?;
    Ok(core)
}

fn records(store: &dyn Store) -> anyhow::Result<Vec<Record>> {
    let stored = store.load()?;
    let decode = |(key, bytes): &(String, Vec<u8>)| Record::decode(bytes).with_context(|| format!("the record {key}"));
    stored.iter().map(decode).collect()
}
