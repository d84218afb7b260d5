//! In-place updates: what changes, and how far the walk over the update domains is.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::time::Time;

/// How an update goes from one update domain to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UpgradeMode {
    /// By itself, as soon as the one before is healthy.
    #[default]
    Auto,
    /// When it is told to.
    Manual,
    /// All at once.
    Simultaneous,
}

/// An update under way.
///
/// ```text
///   begin ──▶ walking(domain) ──healthy or timed out──▶ next domain … ──▶ over
///               │                        (manual: waits for the word)
///               ├── crash-loops ──▶ stuck ──a newer update, or a rollback──▶ begin
///               └── rollback, while some instance is still old ──▶ begin, backwards
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upgrade {
    /// The version that a rollback returns to.
    pub from: u32,
    /// How it goes on.
    pub mode: UpgradeMode,
    /// When it began.
    pub started: Time,
    /// The update domain that is being changed, and since when.
    pub walking: Option<(u32, Time)>,
    /// Update domains that are done.
    pub walked: BTreeSet<u32>,
    /// Why the walk has stopped.
    pub stuck: Option<String>,
    /// Whether it is a rollback.
    pub rollback: bool,
}

impl Upgrade {
    /// Whether an instance of this update domain has been changed, or is being changed.
    pub fn has_begun(&self, domain: u32) -> bool {
        self.walked.contains(&domain) || self.walking.is_some_and(|(walking, _)| walking == domain)
    }
}

/// What an update does to a role's instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RoleChange {
    /// Nothing.
    None,
    /// New settings reach the guests while they run.
    Live,
    /// New settings, and the role wants a reboot for them.
    Reboot,
    /// A new VM.
    Replace,
}
