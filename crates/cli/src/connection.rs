//! Finding the controller.

use std::path::Path;

use anyhow::bail;
use mayfly_api::Client;

use crate::arguments::Output;
use crate::dev::Layout;

/// A connection to the controller, and how to talk to the user.
pub struct Connection {
    /// The client.
    pub client: Client,
    /// How listings are printed.
    pub output: Output,
}

impl Connection {
    /// Finds the dev fabric in `state`.
    pub fn find(state: &Path, output: Output) -> anyhow::Result<Connection> {
        let layout = Layout::new(state);
        let Some(fabric) = layout.read_fabric()? else {
            bail!("there is no dev fabric in {}; start one with `mayfly dev up`", state.display());
        };
        let client = Client::new(&fabric.controller_url(), &fabric.user_token);
        Ok(Connection { client, output })
    }
}
