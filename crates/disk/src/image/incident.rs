//! What went wrong with images on this host, for people: kept until the agent has told the controller.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Incidents that are kept at the most.
const KEPT: usize = 32;

/// One thing that went wrong, and was mended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incident {
    /// Its number: grows, also over restarts.
    pub number: u64,
    /// One line for people.
    pub message: String,
}

/// The last incidents.
#[derive(Debug, Default)]
pub(crate) struct Incidents(Mutex<VecDeque<Incident>>);

impl Incidents {
    pub(crate) fn add(&self, message: String) {
        tracing::warn!(message, "incident");
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // What goes on happening is told once, and again when the ring has forgotten it.
        if kept.iter().any(|one| one.message == message) {
            return;
        }
        // Milliseconds since 1970 grow over restarts without being written down.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let number = kept.back().map_or(now, |last| now.max(last.number + 1));
        kept.push_back(Incident { number, message });
        if kept.len() > KEPT {
            kept.pop_front();
        }
    }

    pub(crate) fn list(&self) -> Vec<Incident> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}
