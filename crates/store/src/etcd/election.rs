//! Who leads: the controller whose name stands under a key with a lease, for as long as it renews that.
//!
//! The leader counts the lease from before it asked for its renewal, less a margin, so it knows that it leads no longer
//! before anybody else can lead. Commits are fenced by the epoch besides; this is for what is not committed: the leases
//! that a leader grants to hosts, and what it answers.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

use super::gateway::{Act, Compare, EtcdConfig, EtcdError, Gateway, number};

/// How long the lease lasts: the shortest that etcd grants with its default settings.
const TTL: Duration = Duration::from_secs(2);
/// What the leader takes off it.
const MARGIN: Duration = Duration::from_millis(200);
const RENEW: Duration = Duration::from_millis(350);
/// How long members are asked in turn to renew it.
const RENEWAL: Duration = Duration::from_millis(700);
/// Between two looks of one that does not lead.
const LOOK: Duration = Duration::from_millis(100);

/// A candidate.
pub struct Election {
    gateway: Gateway,
    key: String,
    name: String,
}

/// Leadership, as long as it holds.
#[derive(Clone)]
pub struct Leadership {
    until: Arc<Mutex<Instant>>,
}

impl Leadership {
    /// Whether this controller certainly leads.
    pub fn holds(&self) -> bool {
        Instant::now() < *self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leads no longer from now on. Others can lead when the lease has run out.
    pub fn give_up(&self) {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

impl Election {
    /// A candidate of this name, by which others find it.
    ///
    /// # Errors
    /// [`EtcdError`] where the configuration cannot be used.
    pub fn new(config: &EtcdConfig, name: &str) -> Result<Election, EtcdError> {
        let gateway = Gateway::connect(config)?;
        Ok(Election { gateway, key: format!("{}/leader", config.prefix), name: name.to_owned() })
    }

    /// Who leads now.
    ///
    /// # Errors
    /// [`EtcdError`].
    pub fn leader(&self) -> Result<Option<String>, EtcdError> {
        Ok(self.gateway.get(&self.key)?.map(|name| String::from_utf8_lossy(&name).into_owned()))
    }

    /// Waits until nobody leads, and leads. `seen` is told who leads meanwhile.
    pub fn win(self, seen: impl Fn(&str)) -> Leadership {
        loop {
            match self.attempt() {
                Ok(Some((lease, until))) => return self.keep(lease, until),
                Ok(None) => {
                    if let Ok(Some(leader)) = self.leader() {
                        seen(&leader);
                    }
                }
                Err(error) => tracing::warn!(%error, "cannot stand for election"),
            }
            std::thread::sleep(LOOK);
        }
    }

    fn attempt(&self) -> Result<Option<(i64, Instant)>, EtcdError> {
        if self.leader()?.is_some() {
            return Ok(None);
        }
        let sent = Instant::now();
        let granted = self.gateway.call("/v3/lease/grant", &json!({ "TTL": TTL.as_secs().to_string() }))?;
        let lease = number(&granted["ID"]);
        // The lease is part of the name: a request of an earlier attempt that arrives late is not taken for this one's.
        let name = format!("{} by lease {lease:x}", self.name);
        let put = [Act::PutLeased(&self.key, name.as_bytes(), lease)];
        let leads = self.gateway.transact(&[Compare::Missing(&self.key)], &put)?;
        let leads = leads || self.leader()?.as_deref() == Some(name.as_str());
        Ok(leads.then(|| (lease, sent + TTL - MARGIN)))
    }

    fn keep(self, lease: i64, until: Instant) -> Leadership {
        let leadership = Leadership { until: Arc::new(Mutex::new(until)) };
        let shared = leadership.clone();
        let work = move || {
            while shared.holds() {
                let sent = Instant::now();
                let answer =
                    self.gateway.call_within("/v3/lease/keepalive", &json!({ "ID": lease.to_string() }), RENEWAL);
                let failed = answer.is_err();
                if answer.is_ok_and(|answer| number(&answer["result"]["TTL"]) > 0) {
                    let mut until = shared.until.lock().unwrap_or_else(PoisonError::into_inner);
                    // One that has given up meanwhile does not come back.
                    if Instant::now() < *until {
                        *until = sent + TTL - MARGIN;
                    }
                }
                if !failed {
                    std::thread::sleep(RENEW);
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("leader".to_owned()).spawn(work) {
            tracing::error!(%error, "leadership cannot be kept");
        }
        leadership
    }
}
