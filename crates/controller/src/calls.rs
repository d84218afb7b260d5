//! Calls from users to hosts: see `mayfly_api::Call`. They live in the memory of the controller that leads; one that is lost
//! is made again by whoever wanted it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use mayfly_api::{ApiError, Call, CallAnswer, CallKind, ErrorCode};
use mayfly_model::{HostName, VmId};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::sync::{oneshot, watch};

/// A connection of a host, after its answer.
pub type Answered = BufReader<TokioIo<hyper::upgrade::Upgraded>>;

/// How long a host may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most bytes of the line with which it does.
const ANSWER_BYTES: u64 = 4096;
/// Calls that may wait at a time.
const WAITING_MAX: usize = 256;

/// A call that its host has not answered yet.
struct Waiting {
    host: HostName,
    call: Call,
    told: bool,
    answer: oneshot::Sender<hyper::upgrade::Upgraded>,
}

/// All calls that wait.
pub struct Calls {
    waiting: Mutex<HashMap<String, Waiting>>,
    news: watch::Sender<u64>,
}

impl Default for Calls {
    fn default() -> Calls {
        Calls { waiting: Mutex::default(), news: watch::Sender::new(0) }
    }
}

impl Calls {
    /// Calls a VM's host, and returns what it says after it has agreed.
    pub async fn call(&self, host: &HostName, vm: VmId, what: CallKind) -> Result<Answered, ApiError> {
        let id = format!("{:032x}", rand::random::<u128>());
        let (answer, answered) = oneshot::channel();
        let call = Call { id: id.clone(), vm, what };
        {
            let mut waiting = self.waiting();
            // Who called and has gone waits no longer.
            waiting.retain(|_, one| !one.answer.is_closed());
            if waiting.len() >= WAITING_MAX {
                let message = format!("{WAITING_MAX} calls to hosts wait already; try again");
                return Err(ApiError::new(ErrorCode::Unavailable, message));
            }
            waiting.insert(id.clone(), Waiting { host: host.clone(), call, told: false, answer });
        }
        self.news.send_modify(|count| *count += 1);
        let answered = tokio::time::timeout(PATIENCE, hear(answered)).await;
        self.waiting().remove(&id);
        let silent = || {
            let message =
                format!("{host} did not answer within {} s; is it up? (`mayfly host list`)", PATIENCE.as_secs());
            // Not one that a client tries again by itself: it has waited long enough.
            ApiError::new(ErrorCode::Conflict, message)
        };
        let broken = || ApiError::new(ErrorCode::Conflict, format!("{host} broke off; try again"));
        match answered.map_err(|_| silent())?.ok_or_else(broken)? {
            (CallAnswer::Follows, stream) => Ok(stream),
            (CallAnswer::Refused(why), _) => Err(ApiError::new(ErrorCode::Conflict, why)),
        }
    }

    /// The calls that wait for a host and that it has not been told of.
    pub fn take(&self, host: &str) -> Vec<Call> {
        let mut waiting = self.waiting();
        let new = waiting.values_mut().filter(|one| one.host.as_str() == host && !one.told);
        new.map(|one| {
            one.told = true;
            one.call.clone()
        })
        .collect()
    }

    /// A call that this host was told of, to be answered.
    pub fn answer(&self, id: &str, host: &str) -> Option<oneshot::Sender<hyper::upgrade::Upgraded>> {
        let mut waiting = self.waiting();
        let is_its_own = waiting.get(id).is_some_and(|one| one.host.as_str() == host);
        is_its_own.then(|| waiting.remove(id)).flatten().map(|one| one.answer)
    }

    /// Tells of new calls.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<String, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a host answers; nothing if its connection breaks.
async fn hear(answered: oneshot::Receiver<hyper::upgrade::Upgraded>) -> Option<(CallAnswer, Answered)> {
    let mut stream = BufReader::new(TokioIo::new(answered.await.ok()?));
    let mut line = Vec::new();
    (&mut stream).take(ANSWER_BYTES).read_until(b'\n', &mut line).await.ok()?;
    Some((serde_json::from_slice(&line).ok()?, stream))
}
