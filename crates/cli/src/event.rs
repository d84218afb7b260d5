//! `mayfly event`.

use mayfly_api::EventView;

use crate::arguments::{EventCommand, Output};
use crate::connection::Connection;
use crate::output;

pub async fn run(connection: &Connection, command: EventCommand) -> anyhow::Result<()> {
    let EventCommand::List { follow } = command;
    let events = connection.client.event_list(0, false).await?;
    if !follow {
        return output::list(connection.output, &events, &["time", "kind", "subject", "message"], |event| {
            vec![event.time.clone(), event.kind.clone(), event.subject.clone(), event.message.clone()]
        });
    }
    let mut next = 0;
    let mut batch = events;
    loop {
        for event in &batch {
            next = event.number + 1;
            print(connection.output, event)?;
        }
        batch = match connection.client.event_list(next, true).await {
            Ok(batch) => batch,
            Err(error) => {
                // The controller may be restarting; its events are kept.
                eprintln!("{error}; trying again");
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                Vec::new()
            }
        };
    }
}

fn print(format: Output, event: &EventView) -> anyhow::Result<()> {
    match format {
        Output::Json => output::line(&serde_json::to_string(event)?),
        Output::Table => {
            output::line(&format!("{} {:9} {:16} {}", event.time, event.kind, event.subject, event.message))
        }
    }
}
