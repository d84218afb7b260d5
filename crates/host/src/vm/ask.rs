//! What is asked of a VM's task, as it alone holds the guest's monitor.

use std::path::PathBuf;

use mayfly_qemu::{Machine, QmpError};
use tokio::sync::oneshot;

/// A question, and where its answer goes.
pub(crate) enum Ask {
    /// A picture of the guest's screen, as PNG, into this file.
    Screenshot(PathBuf, oneshot::Sender<Result<(), QmpError>>),
}

impl Ask {
    pub(super) async fn answer(self, machine: &Machine) {
        match self {
            // Whoever asked may have gone.
            Ask::Screenshot(path, answer) => drop(answer.send(machine.screenshot(&path).await)),
        }
    }
}
