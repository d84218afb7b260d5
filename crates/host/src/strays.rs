//! Follows what the plan says of flows. One look at the kernel's table of connections at a time, as there may be many; changes that
//! come meanwhile wait for the next.

use std::sync::Arc;
use std::time::Duration;

use mayfly_net::{Flows, forget_strays};

use crate::agent::Agent;

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);

/// Follows for ever.
pub(crate) async fn run(agent: Arc<Agent>) {
    let mut planned = agent.flows.subscribe();
    // What the kernel's flows obey.
    let mut obeyed: Option<Flows> = None;
    loop {
        let wanted = planned.borrow_and_update().clone();
        if let Some(wanted) = wanted.filter(|wanted| obeyed.as_ref() != Some(wanted)) {
            let may_have = obeyed.as_ref().is_none_or(|before| wanted.may_have_strays(before));
            let looked = if may_have { forget_strays(&wanted, obeyed.as_ref()).await } else { Ok(0) };
            match looked {
                Ok(count) => {
                    if count > 0 {
                        tracing::info!(count, "flows look for another instance");
                    }
                    obeyed = Some(wanted);
                }
                Err(error) => {
                    tracing::warn!(%error, "flows stay with instances that are gone");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            }
            if may_have {
                tokio::time::sleep(PAUSE).await;
            }
        }
        if planned.changed().await.is_err() {
            return;
        }
    }
}
