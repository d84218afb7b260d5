//! What the controller answers to a host's report.

use mayfly_model::{GoalState, LeaseGrant};
use serde::{Deserialize, Serialize};

/// The answer to a report: a renewed lease, and the goal state if the host does not have it yet. Both are of the same
/// moment, so a host that was given up cannot get a lease without also learning what it no longer carries.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReportAnswer {
    /// The lease.
    pub grant: LeaseGrant,
    /// The goal state, if it is newer than what the host has applied.
    pub goal: Option<GoalState>,
}
