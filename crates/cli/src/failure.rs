//! Telling people what went wrong: once, with all causes, and the user's own lines where the error is in a file.

use mayfly_api::{ApiError, ClientError};

/// Prints an error on standard error.
pub fn print(error: &anyhow::Error) {
    let refused = error.chain().find_map(|cause| match cause.downcast_ref::<ClientError>() {
        Some(ClientError::Refused(refused)) => Some(refused),
        _ => cause.downcast_ref::<ApiError>(),
    });
    for diagnostic in refused.into_iter().flat_map(|refused| &refused.diagnostics) {
        eprintln!("{}\n", diagnostic.rendered);
    }
    if let Some(diagnostics) = error.downcast_ref::<mayfly_service_model::Diagnostics>() {
        eprintln!("{diagnostics}\n");
        let count = diagnostics.0.len();
        eprintln!("error: {count} error{} in the files; nothing was changed", if count == 1 { "" } else { "s" });
        return;
    }
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        // Some libraries repeat their source in their own words.
        if !text.contains(&cause) {
            text = if text.is_empty() { cause } else { format!("{text}: {cause}") };
        }
    }
    eprintln!("error: {text}");
    if matches!(error.downcast_ref::<ClientError>(), Some(ClientError::Unreachable { .. })) {
        eprintln!("help: `mayfly dev status` shows whether the dev fabric runs; `mayfly dev up` starts it");
    }
}
