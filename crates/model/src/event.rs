//! Events: what the fabric did and why, for people.

use serde::{Deserialize, Serialize};

use crate::time::Time;

/// What an event tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventKind {
    /// A user's command was accepted.
    Command,
    /// An instance got a place.
    Placed,
    /// An instance changed its state.
    State,
    /// An instance waits, and why.
    Waiting,
    /// A host changed its condition.
    Host,
    /// An instance was lost with its host and gets a new VM elsewhere.
    Healing,
    /// An instance moves so that its role is spread evenly again.
    Rebalance,
    /// An update goes on, stops or ends.
    Update,
    /// A sick instance is rebooted, reimaged or moved, or its host is drained.
    Repair,
    /// Healing was stopped, or a person lets it go on.
    Breaker,
    /// A role's rules changed its count.
    Autoscale,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its number; grows by one.
    pub number: u64,
    /// When.
    pub time: Time,
    /// What it tells of.
    pub kind: EventKind,
    /// The thing it is about, for example `shop/web_IN_0` or `host-2`.
    pub subject: String,
    /// One line for people.
    pub message: String,
}
