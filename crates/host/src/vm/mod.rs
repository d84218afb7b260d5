//! VMs: one task for each, started when the goal state names it and ended when nothing is left of it.

mod ask;
mod connections;
pub(crate) mod console;
mod farewell;
mod local;
mod prepare;
pub(crate) mod provision;
mod runner;
mod running;
mod spec;
mod start;
mod template;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mayfly_model::{Time, VmGoal, VmId};
use mayfly_wire::HealthReport;
use tokio::sync::{mpsc, watch};

pub(crate) use self::ask::Ask;
use crate::agent::{Agent, lock};
use crate::status::{Stage, VmStatus};
use crate::{clock, topology};

/// How long a restarted agent leaves the network as it found it.
const SETTLE: Duration = Duration::from_millis(1500);

/// Questions to a VM's task that may wait.
const ASKS: usize = 8;

/// What is wanted of a VM: this, or that it goes away.
pub(crate) type Desired = Option<VmGoal>;

/// The tasks, by VM.
pub(crate) type Runners = BTreeMap<VmId, watch::Sender<Desired>>;

/// Takes up the VMs that exist from before. Their tasks find out whether the guests still run.
pub(crate) fn adopt_all(agent: &Arc<Agent>) -> anyhow::Result<Runners> {
    let mut runners = Runners::new();
    let goal = agent.goal.borrow().clone();
    for mut note in agent.ledger.vms()? {
        // What an earlier build noted says nothing of this.
        if let Some(newer) = goal.vms.iter().find(|goal| goal.vm == note.goal.vm) {
            note.goal.egress = newer.egress.clone();
        }
        let mut status = VmStatus::new(note.goal.clone());
        status.traffic = note.traffic;
        (status.reboots, status.restarts) = (note.reboots, note.restarts);
        (status.script_runs, status.steps) = (note.script_runs.clone(), note.steps.clone());
        (status.asked, status.cloud_init) = note.asked;
        status.stage = Stage::Preparing("the agent has been restarted".to_owned());
        if note.ready {
            // As far as anybody knows, it runs on; its task finds out.
            status.hear(HealthReport { ready: true, detail: String::new() }, clock::now());
            status.ready_since = Some(Time(0));
            status.beats.1 = note.beats;
            status.stage = Stage::Running;
        }
        status.members = Arc::new(topology::members(&goal.network, &note.goal.deployment_id));
        agent.statuses().vms.insert(note.goal.vm, status);
        runners.insert(note.goal.vm, start(agent, note.goal, true));
    }
    provision::sweep(agent, |vm| runners.keys().any(|known| known.to_string() == vm));
    Ok(runners)
}

/// Waits until it is known again how the guests of before are doing, so that nobody is taken out of rotation because
/// the agent was restarted. Not for long: a guest that has died meanwhile is no reason to wait.
pub(crate) async fn settled(agent: &Agent) {
    let deadline = tokio::time::Instant::now() + SETTLE;
    while tokio::time::Instant::now() < deadline {
        if agent.statuses().vms.values().all(|status| !status.says_ready() || status.is_settled()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Follows the goal state for ever, once the controller has confirmed it: what the last agent wrote down may be out of
/// date, and nothing is created or thrown away on the word of a note.
pub(crate) async fn run(agent: Arc<Agent>, mut runners: Runners) {
    template::recover(&agent);
    // The sender lives as long as the agent.
    let _ = agent.confirmed.subscribe().wait_for(|confirmed| *confirmed).await;
    let mut goals = agent.goal.subscribe();
    loop {
        let goal = goals.borrow_and_update().clone();
        runners.retain(|_, desired| !desired.is_closed());
        for (vm, desired) in &runners {
            let wanted = goal.vms.iter().find(|goal| goal.vm == *vm).cloned();
            desired.send_if_modified(|before| std::mem::replace(before, wanted.clone()) != wanted);
        }
        // What a backup has and this host has not may be another host's by now.
        for wanted in goal.vms.iter().filter(|_| !goal.restored) {
            runners.entry(wanted.vm).or_insert_with(|| {
                agent.statuses().vms.insert(wanted.vm, VmStatus::new(wanted.clone()));
                start(&agent, wanted.clone(), false)
            });
        }
        tell_of_members(&agent);
        sweep(&agent);
        agent.tell();
        if goals.changed().await.is_err() {
            return;
        }
    }
}

fn start(agent: &Arc<Agent>, goal: VmGoal, adopted: bool) -> watch::Sender<Desired> {
    let (sender, desired) = watch::channel(Some(goal.clone()));
    let (door, asks) = mpsc::channel(ASKS);
    lock(&agent.doors).insert(goal.vm, door);
    let (agent, vm) = (Arc::clone(agent), goal.vm);
    tokio::spawn(async move {
        runner::run(Arc::clone(&agent), goal, adopted, desired, asks).await;
        lock(&agent.doors).remove(&vm);
    });
    sender
}

/// Guests whose deployment has other instances now get a new goal state of their own.
fn tell_of_members(agent: &Agent) {
    let goal = agent.goal.borrow().clone();
    for status in agent.statuses().vms.values_mut() {
        let members = topology::members(&goal.network, &status.goal.deployment_id);
        if *status.members != members {
            status.incarnation += u64::from(!status.members.is_empty());
            status.members = Arc::new(members);
        }
    }
}

/// Throws away local disks that nobody will use again.
fn sweep(agent: &Agent) {
    if !*agent.confirmed.borrow() {
        return;
    }
    let _turn = lock(&agent.sweeping);
    let wanted = || {
        let goal = agent.goal.borrow().clone();
        let vms = agent.statuses().vms.values().map(|status| status.goal.clone()).collect::<Vec<_>>();
        let all: Vec<VmGoal> = vms.into_iter().chain(goal.vms.iter().cloned()).collect();
        (goal, all)
    };
    local::sweep(agent, wanted);
    template::sweep(agent, &wanted().1);
}
