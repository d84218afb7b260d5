//! `mayfly breaker`.

use crate::arguments::BreakerCommand;
use crate::connection::Connection;
use crate::output;

pub async fn run(connection: &Connection, command: BreakerCommand) -> anyhow::Result<()> {
    match command {
        BreakerCommand::Show => {
            let trips = connection.client.breaker_show().await?;
            if trips.is_empty() && connection.output == crate::arguments::Output::Table {
                return output::line("healing goes on everywhere");
            }
            output::list(connection.output, &trips, &["stopped for", "since", "why"], |one| {
                vec![one.scope.clone(), one.since.clone(), one.why.clone()]
            })
        }
        BreakerCommand::Reset { scope } => {
            connection.client.breaker_reset(&scope).await?;
            output::line(&format!("healing of {scope} goes on"))
        }
    }
}
