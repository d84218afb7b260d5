//! Waiting until the fabric is as wanted: level-triggered, with progress, a time limit, and patience with a
//! controller that is being restarted.

use std::time::{Duration, Instant};

use anyhow::bail;
use mayfly_api::{ClientError, InstanceView};

use crate::arguments::Wait;
use crate::output::Progress;

const POLL: Duration = Duration::from_millis(250);
/// How long a host may keep failing to start a VM before waiting is given up: longer than it pauses between two tries.
const HOST_PATIENCE: Duration = Duration::from_secs(20);

/// What a look has found.
pub enum Seen {
    /// It is as wanted.
    Done,
    /// Not yet; the text says what is under way.
    NotYet(String),
}

/// Looks again and again until it is done.
pub async fn until<F>(wait: &Wait, mut look: impl FnMut() -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<Seen>>,
{
    let deadline = Instant::now() + wait.timeout;
    let mut progress = Progress::start();
    loop {
        let state = match look().await {
            Ok(Seen::Done) => {
                progress.finish();
                return Ok(());
            }
            Ok(Seen::NotYet(state)) => state,
            Err(error) if error.downcast_ref().is_some_and(ClientError::is_passing) => {
                "the controller does not answer".to_owned()
            }
            Err(error) => {
                progress.finish();
                return Err(error);
            }
        };
        if Instant::now() >= deadline {
            progress.finish();
            bail!("not done within {} s: {state}", wait.timeout.as_secs());
        }
        progress.show(state);
        tokio::time::sleep(POLL).await;
    }
}

/// Judges instances: an error for one that has failed, else how far they are.
pub struct Judge {
    failing_since: Option<Instant>,
}

impl Judge {
    /// A judge who has seen nothing yet.
    pub fn new() -> Judge {
        Judge { failing_since: None }
    }

    /// Whether all `instances` are ready and there are `wanted` of them.
    pub fn look(&mut self, instances: &[InstanceView], wanted: usize) -> anyhow::Result<Seen> {
        // Not before the others have settled: one that failed earlier must not hide what becomes of the new ones.
        let settled = |one: &InstanceView| is_as_wanted(one) || one.state.starts_with("Failed");
        let failed = |state: &str| instances.iter().find(|one| one.state == state && instances.iter().all(settled));
        if let Some(one) = failed("FailedStartingRole") {
            bail!("{}", describe(one));
        }
        match failed("FailedStartingVM") {
            None => self.failing_since = None,
            Some(one) => {
                let since = *self.failing_since.get_or_insert_with(Instant::now);
                if since.elapsed() > HOST_PATIENCE {
                    bail!("{}", describe(one));
                }
            }
        }
        let ready = instances.iter().filter(|one| is_as_wanted(one) && !one.in_motion).count();
        if ready == wanted && instances.len() == wanted {
            return Ok(Seen::Done);
        }
        let others: Vec<String> =
            instances.iter().filter(|one| !is_as_wanted(one) || one.in_motion).map(describe).collect();
        Ok(Seen::NotYet(format!("{ready} of {wanted} ready; {}", others.join("; "))))
    }
}

/// Ready, or stopped as it was told.
fn is_as_wanted(instance: &InstanceView) -> bool {
    instance.state == if instance.stopped { "StoppedVM" } else { "ReadyRole" }
}

fn describe(instance: &InstanceView) -> String {
    match &instance.detail {
        Some(detail) => format!("{} is {}: {detail}", instance.name, instance.state),
        None => format!("{} is {}", instance.name, instance.state),
    }
}
