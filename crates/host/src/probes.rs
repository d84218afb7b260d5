//! Probing this host's own guests.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use mayfly_model::{ProbeGoal, Time, VmId};
use mayfly_net::probe::{Steadiness, ask};

use crate::agent::Agent;
use crate::clock;
use crate::status::Stage;

/// Between two looks at what has to be asked.
const LOOK: Duration = Duration::from_millis(50);
/// Between two questions until the first answer, so that a new guest enters the rotation at once.
const EAGER: u64 = 250;
/// How long one question may take.
const LIMIT: Duration = Duration::from_secs(2);

/// One probe of one guest: the VM, which of its guests, and the probe.
type Key = (VmId, u32, ProbeGoal);

/// The history of one probe.
#[derive(Clone, Debug, Default)]
struct Record {
    asked: Time,
    answered: Option<Time>,
    steadiness: Steadiness,
    in_rotation: bool,
}

/// Asks for ever.
pub(crate) async fn run(agent: Arc<Agent>) {
    let mut records: BTreeMap<Key, Record> = BTreeMap::new();
    let (sender, mut answers) = tokio::sync::mpsc::unbounded_channel();
    loop {
        let now = clock::now();
        let wanted = wanted(&agent);
        records.retain(|key, _| wanted.contains_key(key));
        for (key, address) in wanted {
            let record = records.entry(key.clone()).or_default();
            let interval = u64::from(key.2.interval_millis);
            let interval = if record.in_rotation { interval } else { interval.min(EAGER) };
            if record.asked != Time(0) && now.since(record.asked) < interval {
                continue;
            }
            record.asked = now;
            let sender = sender.clone();
            tokio::spawn(async move {
                let limit = LIMIT.min(Duration::from_millis(u64::from(key.2.timeout_millis)));
                let answered = ask(address, &key.2, limit).await;
                // The receiver lives as long as the agent.
                let _ = sender.send((key, answered));
            });
        }
        // The sender above lives as long as this task.
        let mut next = tokio::time::timeout(LOOK, answers.recv()).await.ok().flatten();
        while let Some((key, answered)) = next {
            next = answers.try_recv().ok();
            let Some(record) = records.get_mut(&key) else { continue };
            if answered {
                record.answered = Some(clock::now());
            }
            let patience = u64::from(key.2.timeout_millis);
            let well = record.answered.is_some_and(|at| clock::now().since(at) < patience);
            if !well {
                record.answered = None;
            }
            record.in_rotation = record.steadiness.note(clock::now().0, well);
            note(&agent, &key, record.in_rotation);
        }
    }
}

/// The probes of running guests.
fn wanted(agent: &Agent) -> BTreeMap<Key, Ipv4Addr> {
    let statuses = agent.statuses();
    let running = statuses.vms.values().filter(|status| status.stage == Stage::Running);
    let probes = running.flat_map(|status| {
        status.goal.probes.iter().map(|probe| ((status.goal.vm, status.life, probe.clone()), status.goal.dip))
    });
    probes.collect()
}

fn note(agent: &Agent, (vm, life, probe): &Key, well: bool) {
    let changed = {
        let mut statuses = agent.statuses();
        let status = statuses.vms.get_mut(vm).filter(|status| status.stage == Stage::Running && status.life == *life);
        let Some(status) = status else { return };
        status.answered.insert(probe.clone(), well) != Some(well)
    };
    if changed {
        agent.tell();
    }
}
