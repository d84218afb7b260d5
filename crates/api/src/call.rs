//! Calls: what a user wants of one VM that only its host has, such as its console. A host listens for nobody, so it is told
//! of a call with the answer to its question for news, and answers by opening a connection to the controller, which joins the
//! two.
//!
//! The first line that the host sends is a [`CallAnswer`] as JSON; what follows is the thing itself.

use mayfly_model::VmId;
use serde::{Deserialize, Serialize};

/// The protocol that connections of calls are upgraded to.
pub const CALL_PROTOCOL: &str = "mayfly-call";

/// A call to a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// Its name, random: who knows it may answer it.
    pub id: String,
    /// Which VM it is about.
    pub vm: VmId,
    /// What is wanted.
    pub what: CallKind,
}

/// What is wanted of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CallKind {
    /// Its serial console, both ways, after the end of what it said before.
    Console,
    /// What its serial console has said.
    ConsoleLog {
        /// Of which boot: 0 is the present one, 1 the one before it.
        boots_ago: u8,
        /// Whether to go on with what it says from now on.
        follow: bool,
    },
    /// What became of its post-boot script, as JSON.
    Script,
    /// A picture of its screen, as PNG.
    Screenshot,
    /// Its differencing disk, of a guest that is stopped.
    Disk,
}

/// How a host answers a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CallAnswer {
    /// What was wanted follows.
    Follows,
    /// It cannot be had; the text says why.
    Refused(String),
}

/// One run of a post-boot script, as users see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScriptRunView {
    /// Which try it was, from 1; 0 if there was nothing to run.
    pub attempt: u32,
    /// Its exit status; none when its time was over.
    pub status: Option<i32>,
    /// The end of what it printed.
    pub output: String,
}

/// What a host is told when it asks for news.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostNews {
    /// Calls that wait for it.
    pub calls: Vec<Call>,
}
