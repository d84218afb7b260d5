//! Listings: a table for people, JSON for programs.

use std::io::{IsTerminal, Write};

use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::arguments::Output;

/// Prints a listing.
pub fn list<T: Serialize>(
    output: Output,
    items: &[T],
    header: &[&str],
    row: impl Fn(&T) -> Vec<String>,
) -> anyhow::Result<()> {
    match output {
        Output::Json => line(&serde_json::to_string_pretty(items)?),
        Output::Table => {
            let mut table = Table::new();
            table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
            table.set_header(header.iter().map(|title| title.to_uppercase()));
            for item in items {
                table.add_row(row(item));
            }
            line(&table.trim_fmt())
        }
    }
}

/// Prints one thing, a property a line.
pub fn show<T: Serialize>(output: Output, item: &T, properties: &[(&str, String)]) -> anyhow::Result<()> {
    match output {
        Output::Json => line(&serde_json::to_string_pretty(item)?),
        Output::Table => {
            let width = properties.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
            properties.iter().try_for_each(|(name, value)| line(format!("{name:width$}  {value}").trim_end()))
        }
    }
}

/// Prints a line; a reader who has left is no error.
pub fn line(text: &str) -> anyhow::Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => Ok(other?),
    }
}

/// A text, or a dash for nothing.
pub fn or_dash<T: ToString>(value: Option<&T>) -> String {
    value.map_or_else(|| "-".to_owned(), ToString::to_string)
}

/// Bytes for people.
pub fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Progress of something whose end is not known: a spinner on a terminal, a line for each new message elsewhere.
pub struct Progress {
    spinner: Option<ProgressBar>,
    last: String,
}

impl Progress {
    /// Starts to show progress.
    pub fn start() -> Progress {
        let spinner = std::io::stderr().is_terminal().then(|| {
            let spinner = ProgressBar::new_spinner();
            spinner.enable_steady_tick(std::time::Duration::from_millis(100));
            if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
                spinner.set_style(style);
            }
            spinner
        });
        Progress { spinner, last: String::new() }
    }

    /// Shows what is going on.
    pub fn show(&mut self, message: String) {
        if message == self.last {
            return;
        }
        match &self.spinner {
            Some(spinner) => spinner.set_message(message.clone()),
            None => eprintln!("{message}"),
        }
        self.last = message;
    }

    /// Ends it.
    pub fn finish(self) {
        if let Some(spinner) = self.spinner {
            spinner.finish_and_clear();
        }
    }
}
