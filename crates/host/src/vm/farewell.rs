//! The time before a planned stop: nobody new is sent to the guest, it is told what is coming, and those whom it serves are
//! waited for.

use std::net::IpAddr;
use std::time::Duration;

use mayfly_wire::{Planned, event_id};

use super::connections;
use super::runner::Runner;

/// How long it takes until no host sends anybody new to a guest that is leaving.
const HEARSAY: Duration = Duration::from_millis(600);
/// Between two looks at its connections.
const LINGER: Duration = Duration::from_millis(100);

/// What is planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// It is started again.
    Reboot,
    /// It is stopped for a while.
    Stop,
    /// Its VM is thrown away.
    Discard,
}

impl Plan {
    /// The word of the original's scheduled events.
    fn kind(self) -> &'static str {
        match self {
            Plan::Reboot => "Reboot",
            Plan::Stop => "Terminate",
            Plan::Discard => "Redeploy",
        }
    }

    /// For people.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Plan::Reboot => "it is being rebooted",
            Plan::Stop => "it was told to stop",
            Plan::Discard => "it is being thrown away",
        }
    }
}

/// Takes a guest that is well out of rotation before it is stopped, tells it why, and lets the requests that it serves come
/// to an end. A guest that asks what is planned is waited for until it agrees, or its time is over. Returns whether the
/// guest was well, so that it is worth asking it to end in good order.
pub(super) async fn say(runner: &Runner, plan: Plan) -> bool {
    let limit = Duration::from_secs(u64::from(runner.goal.drain_seconds));
    let serves = runner.update_quietly(|status| status.says_ready() || status.answered.values().any(|well| *well));
    if serves != Some(true) {
        return false;
    }
    let not_before = jiff::Timestamp::now().saturating_add(jiff::SignedDuration::from_secs(limit.as_secs() as i64));
    let not_before =
        not_before.map_or_else(|_| String::new(), |time| time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string());
    let planned = Planned {
        id: runner.update_quietly(|status| event_id(&status.goal, status.life)).unwrap_or_default(),
        kind: plan.kind(),
        not_before,
        acknowledged: false,
        description: plan.reason().to_owned(),
    };
    runner.update(|status| {
        status.leaving = true;
        status.planned = Some(planned);
    });
    if limit.is_zero() {
        return true;
    }
    let goal = &runner.goal;
    let addresses: Vec<IpAddr> = [Some(goal.dip.into()), goal.ipv6.map(IpAddr::V6)].into_iter().flatten().collect();
    let began = tokio::time::Instant::now();
    // The other hosts have to hear of it, and change their tables.
    tokio::time::sleep(HEARSAY.min(limit)).await;
    while began.elapsed() < limit && *runner.serving.borrow() {
        let said = runner.update_quietly(|status| {
            let acknowledged = status.planned.as_ref().is_none_or(|planned| planned.acknowledged);
            (acknowledged || !status.asks_for_events, status.age())
        });
        let (has_agreed, age) = said.unwrap_or((true, Duration::MAX));
        if has_agreed && !connections::are_open(&addresses, age) {
            break;
        }
        tokio::time::sleep(LINGER).await;
    }
    true
}
