//! Errors as the API tells them.

use serde::{Deserialize, Serialize};

/// What kind of error it is; each has one HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The request is malformed (400).
    Invalid,
    /// The token is missing or wrong (401).
    Unauthorized,
    /// A host's certificate has ended; it has to be renewed (401).
    CertificateEnded,
    /// There is no such thing (404).
    NotFound,
    /// The name is taken (409).
    AlreadyExists,
    /// The thing's state does not allow it (409).
    Conflict,
    /// Mayfly does not do that (422).
    Unsupported,
    /// The hosts have no room for it (409).
    NoRoom,
    /// The controller has no room on its disk (507).
    DiskFull,
    /// Something broke that is not the caller's fault (500).
    Internal,
    /// The controller cannot answer now; try again (503).
    Unavailable,
    /// Another controller leads; ask that one (503).
    NotLeader,
}

impl ErrorCode {
    /// The HTTP status.
    pub fn status(self) -> u16 {
        match self {
            ErrorCode::Invalid => 400,
            ErrorCode::Unauthorized | ErrorCode::CertificateEnded => 401,
            ErrorCode::NotFound => 404,
            ErrorCode::AlreadyExists | ErrorCode::Conflict | ErrorCode::NoRoom => 409,
            ErrorCode::Unsupported => 422,
            ErrorCode::Internal => 500,
            ErrorCode::Unavailable | ErrorCode::NotLeader => 503,
            ErrorCode::DiskFull => 507,
        }
    }
}

/// An error in one of the user's files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiDiagnostic {
    /// The file, as the user named it.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The column, from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// The whole error as a compiler would print it.
    pub rendered: String,
}

/// The body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// What kind of error it is.
    pub code: ErrorCode,
    /// What happened, and what to do.
    pub message: String,
    /// Errors in the user's files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub diagnostics: Vec<ApiDiagnostic>,
}

impl ApiError {
    /// An error without diagnostics.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> ApiError {
        ApiError { code, message: message.into(), diagnostics: Vec::new() }
    }
}
