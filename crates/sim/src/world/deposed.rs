//! A leader that is cut off from the store while another takes over. For a while it does not know, and goes on answering
//! hosts; what keeps the two apart is time (`mayfly_store::Leadership`): it stops before the other one can begin.

use std::sync::Arc;

use mayfly_fabric::{Core, Input};
use mayfly_model::{GoalState, HostReport, LeaseGrant};
use rand::Rng;

use super::{World, small_goal};
use crate::nodes::{Node, Nodes};
use crate::options::Plant;

/// By how much it stops before another can begin, in ms: the margin of the election.
const MARGIN: u64 = 200;
/// How much longer one goes on that does not look at the time.
const OBLIVIOUS: u64 = 10_000;

/// A controller that was the leader.
pub(super) struct Deposed {
    core: Core,
    until: u64,
    /// The hosts that still ask it.
    reached_by: Nodes,
}

impl World {
    /// The controller loses the store; the next one begins in `delay` ms.
    pub(super) fn depose(&mut self, delay: u64) {
        let Some(core) = self.core.take() else { return };
        let late = if self.options.mutant == Some(Plant::StaleLeader) { OBLIVIOUS } else { 0 };
        let until = self.now + delay.saturating_sub(MARGIN) + late;
        let reached_by = (0..self.hosts.len()).filter(|_| self.rng.faults.random()).collect();
        self.deposed = Some(Deposed { core, until, reached_by });
    }

    /// Another one begins, sooner than was said perhaps: never before this one's time is over.
    pub(super) fn end_deposed(&mut self) {
        if self.options.mutant != Some(Plant::StaleLeader) {
            self.deposed = None;
        }
    }

    /// What it answers a host that asks it: a grant, and what the host should be running as far as it knows. Nothing if the host
    /// asks the leader, or nobody answers.
    pub(super) fn ask_deposed(&mut self, host: Node, report: &HostReport) -> Option<(LeaseGrant, Arc<GoalState>)> {
        let (entropy, now) = (self.rng.core.random(), self.core_time());
        let deposed = self.deposed.as_mut().filter(|deposed| deposed.reached_by.contains(host))?;
        let outcome = deposed.core.step(now, entropy, Input::Report(report.clone())).ok()?;
        // It can write down nothing, so it ends when something has changed.
        if self.now >= deposed.until || !outcome.changes.is_empty() {
            self.deposed = None;
            return None;
        }
        let goal = small_goal(&deposed.core, &self.hosts[host]);
        Some((outcome.grant?, Arc::new(goal)))
    }
}
