//! What can be wrong with keys, certificates and tokens.

use std::path::{Path, PathBuf};

/// Why an identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read or written.
    #[error("cannot {action} {path}")]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A file, a message or a text is not what it should be.
    #[error("{what} cannot be used: {why}")]
    Unusable {
        /// What.
        what: String,
        /// Why not.
        why: String,
    },
}

impl IdentityError {
    /// That `what` cannot be used, and `why`.
    pub fn unusable(what: impl ToString, why: impl ToString) -> IdentityError {
        IdentityError::Unusable { what: what.to_string(), why: why.to_string() }
    }

    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> IdentityError {
        let path = path.to_owned();
        move |source| IdentityError::File { action, path, source }
    }
}
