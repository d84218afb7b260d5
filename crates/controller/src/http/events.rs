//! Events.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Query, State};
use mayfly_api::EventView;
use mayfly_model::{Event, Time};
use serde::Deserialize;

use super::Shared;
use super::error::Failure;

/// How long a follower's question is held.
const WAIT: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
pub(super) struct Wanted {
    #[serde(default)]
    first: u64,
    #[serde(default)]
    wait: bool,
}

pub(super) async fn list(
    State(shared): State<Arc<Shared>>,
    Query(wanted): Query<Wanted>,
) -> Result<Json<Vec<EventView>>, Failure> {
    if wanted.wait {
        let mut watch = shared.driver.watch();
        let newer = watch.wait_for(|committed| committed.next_event > wanted.first);
        // After a while the answer is empty, and the follower asks again.
        let _ = tokio::time::timeout(WAIT, newer).await;
    }
    let events: Vec<Arc<Event>> = shared
        .driver
        .read(|core| core.state().events().range(wanted.first..).map(|(_, one)| Arc::clone(one)).collect())
        .await?;
    Ok(Json(events.iter().map(|event| view(event)).collect()))
}

fn view(event: &Event) -> EventView {
    EventView {
        number: event.number,
        time: rfc3339(event.time),
        kind: format!("{:?}", event.kind),
        subject: event.subject.clone(),
        message: event.message.clone(),
    }
}

/// A time as text, with milliseconds.
pub(crate) fn rfc3339(time: Time) -> String {
    let millis = i64::try_from(time.0).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(millis).map_or_else(|_| time.0.to_string(), |time| format!("{time:.3}"))
}
