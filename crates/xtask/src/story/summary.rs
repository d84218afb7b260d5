//! What the story promised and measured, as a table.

use std::fmt;

/// The table.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    rows: Vec<(String, String)>,
}

impl Summary {
    /// A promise that was kept.
    pub fn promise(&mut self, what: &str, how: &str) {
        self.rows.push((what.to_owned(), format!("kept: {}", how.replace('"', ""))));
    }

    /// A figure that was measured.
    pub fn figure(&mut self, what: &str, value: &str) {
        self.rows.push((what.to_owned(), value.to_owned()));
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.rows.iter().map(|(what, _)| what.chars().count()).max().unwrap_or(0);
        for (what, value) in &self.rows {
            writeln!(f, "  {what:width$}  {value}")?;
        }
        Ok(())
    }
}
