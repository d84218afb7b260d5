//! `mayfly token`.

use mayfly_api::TokenRequest;

use crate::arguments::{Output, TokenCommand};
use crate::connection::Connection;
use crate::output;

pub async fn run(connection: &Connection, command: TokenCommand) -> anyhow::Result<()> {
    match command {
        TokenCommand::Create { host, minutes } => {
            let made = connection.client.token_create(&TokenRequest { host, minutes }).await?;
            match connection.output {
                Output::Json => output::line(&serde_json::to_string_pretty(&made)?),
                // Nothing but the token, for scripts.
                Output::Table => output::line(made.token.as_deref().unwrap_or_default()),
            }
        }
        TokenCommand::List => {
            let tokens = connection.client.token_list().await?;
            output::list(connection.output, &tokens, &["id", "for", "expires", "used by"], |token| {
                vec![
                    token.id.clone(),
                    output::or_dash(token.host.as_ref()),
                    token.expires.clone(),
                    output::or_dash(token.used_by.as_ref()),
                ]
            })
        }
        TokenCommand::Delete { id } => {
            connection.client.token_delete(&id).await?;
            output::line(&format!("the join token {id} is of no use any more"))
        }
    }
}
