//! `mayfly net`.

use crate::arguments::{NetCommand, Output};
use crate::connection::Connection;
use crate::output;

pub async fn run(connection: &Connection, command: NetCommand) -> anyhow::Result<()> {
    let NetCommand::Trace { from, to } = command;
    let trace = connection.client.trace(&from, &to).await?;
    if connection.output == Output::Json {
        return output::line(&serde_json::to_string_pretty(&trace)?);
    }
    for (number, step) in (1..).zip(&trace.steps) {
        output::line(&format!("{number}. {}: {}", step.rule, if step.passes { "passes" } else { "stops here" }))?;
    }
    let verdict = if trace.passes { "passes" } else { "does not pass" };
    output::line(&format!("{from} to {}: {verdict}", trace.to))
}
