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
                Output::Table => {
                    let whom = made.host.as_ref().map_or_else(|| "any one host".to_owned(), ToString::to_string);
                    eprintln!("join token {} for {whom}, good once, until {}:", made.id, made.expires);
                    output::line(made.token.as_deref().unwrap_or_default())
                }
            }
        }
        TokenCommand::List => {
            let tokens = connection.client.token_list().await?;
            output::list(connection.output, &tokens, &["id", "for", "expires", "used by"], |token| {
                vec![
                    token.id.clone(),
                    token.host.as_ref().map_or_else(|| "any one host".to_owned(), ToString::to_string),
                    token.expires.clone(),
                    output::or_dash(token.used_by.as_ref()),
                ]
            })
        }
        TokenCommand::Delete { id } => {
            connection.client.token_delete(&id).await?;
            output::line(&format!("the join token {id} is deleted; a host that has used it stays"))
        }
    }
}
