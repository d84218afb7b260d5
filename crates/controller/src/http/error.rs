//! The one place where errors become HTTP.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use mayfly_api::{ApiDiagnostic, ApiError, ErrorCode};
use mayfly_fabric::Rejected;
use mayfly_model::NameError;
use mayfly_service_model::Diagnostics;

use crate::driver::DriverError;

/// An error on its way out.
pub(super) struct Failure(ApiError);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.0)).into_response()
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Failure {
        Failure(error)
    }
}

impl From<NameError> for Failure {
    fn from(error: NameError) -> Failure {
        Failure(ApiError::new(ErrorCode::Invalid, error.to_string()))
    }
}

impl From<Diagnostics> for Failure {
    fn from(diagnostics: Diagnostics) -> Failure {
        let count = diagnostics.0.len();
        let message =
            if count == 1 { "one error in the files".to_owned() } else { format!("{count} errors in the files") };
        let diagnostics = diagnostics.0.into_iter().map(|one| ApiDiagnostic {
            file: one.file,
            line: one.line,
            column: one.column,
            message: one.message,
            rendered: one.rendered,
        });
        Failure(ApiError { code: ErrorCode::Invalid, message, diagnostics: diagnostics.collect() })
    }
}

impl From<DriverError> for Failure {
    fn from(error: DriverError) -> Failure {
        let (code, message) = match error {
            DriverError::Rejected(rejected) => (code(&rejected), rejected.to_string()),
            DriverError::Store(error) => {
                let mut cause: Option<&dyn std::error::Error> = Some(&*error);
                let mut text = "it is not known whether this was done, as the controller could not store it; look before you repeat it".to_owned();
                while let Some(error) = cause {
                    text = format!("{text}: {error}");
                    cause = error.source();
                }
                (ErrorCode::Unavailable, text)
            }
            DriverError::Stopped => (ErrorCode::Unavailable, "the controller is ending; try again".to_owned()),
        };
        Failure(ApiError::new(code, message))
    }
}

fn code(rejected: &Rejected) -> ErrorCode {
    match rejected {
        Rejected::NotFound { .. } => ErrorCode::NotFound,
        Rejected::AlreadyExists { .. } => ErrorCode::AlreadyExists,
        Rejected::Conflict(_) => ErrorCode::Conflict,
        Rejected::Denied(_) => ErrorCode::Unauthorized,
        Rejected::Unsupported(_) => ErrorCode::Unsupported,
        Rejected::NoRoom(_) => ErrorCode::NoRoom,
        Rejected::Stale => ErrorCode::Conflict,
    }
}

pub(super) fn invalid(message: impl Into<String>) -> Failure {
    ApiError::new(ErrorCode::Invalid, message).into()
}
