//! Errors that point into the user's file.

use std::fmt;
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use mayfly_model::limits::SOURCE_BYTES_MAX;
use serde::{Deserialize, Serialize};

/// Most errors that are told at once; the first ones usually explain the others.
const DIAGNOSTICS_MAX: usize = 20;

/// A file of the user's.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its name as the user gave it.
    pub name: String,
    /// Its text, without a byte-order mark.
    pub text: String,
}

impl Source {
    /// Decodes a file: UTF-8 with or without a byte-order mark.
    ///
    /// # Errors
    /// A diagnostic when the bytes are not UTF-8.
    pub fn new(name: &str, bytes: &[u8]) -> Result<Source, Diagnostics> {
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        if bytes.len() > SOURCE_BYTES_MAX {
            let source = Source { name: name.to_owned(), text: String::new() };
            let mut diagnostics = Diagnostics::default();
            let message = format!("this file has {} bytes, more than {SOURCE_BYTES_MAX}", bytes.len());
            diagnostics.push(&source, 0..0, &message, "too long", None);
            return Err(diagnostics);
        }
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Source { name: name.to_owned(), text: text.to_owned() }),
            Err(error) => {
                let good = String::from_utf8_lossy(&bytes[..error.valid_up_to()]).into_owned();
                let at = good.len();
                let source = Source { name: name.to_owned(), text: good };
                let mut diagnostics = Diagnostics::default();
                let help = "save the file as UTF-8 (Visual Studio: File, Advanced Save Options)";
                diagnostics.push(&source, at..at, "this file is not UTF-8", "the first byte that is not", Some(help));
                Err(diagnostics)
            }
        }
    }

    fn position(&self, at: usize) -> (usize, usize) {
        let before = &self.text[..at.min(self.text.len())];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
        (line, column)
    }
}

/// One error in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostic {
    /// The file, as the user named it.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The column, from 1, in characters.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// The whole error as a compiler would print it.
    pub rendered: String,
}

/// All errors in the files of one deployment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Diagnostics(pub Vec<Diagnostic>);

impl Diagnostics {
    /// Adds an error about `range` of `source`.
    pub fn push(&mut self, source: &Source, range: Range<usize>, message: &str, label: &str, help: Option<&str>) {
        if self.0.len() >= DIAGNOSTICS_MAX {
            return;
        }
        let (line, column) = source.position(range.start);
        let end = range.end.max(range.start).min(source.text.len());
        let start = range.start.min(end);
        let snippet = Snippet::source(&source.text)
            .path(&source.name)
            .annotation(AnnotationKind::Primary.span(start..end).label(label));
        let mut group = Level::ERROR.primary_title(message).element(snippet);
        if let Some(help) = help {
            group = group.element(Level::HELP.message(help));
        }
        let rendered = Renderer::plain().render(&[group]);
        self.0.push(Diagnostic {
            file: source.name.clone(),
            line,
            column,
            message: message.to_owned(),
            rendered: rendered.to_string(),
        });
    }

    /// Nothing, or these errors.
    ///
    /// # Errors
    /// These, if there are any.
    pub fn or<T>(self, value: T) -> Result<T, Diagnostics> {
        if self.0.is_empty() { Ok(value) } else { Err(self) }
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<&str> = self.0.iter().map(|diagnostic| diagnostic.rendered.as_str()).collect();
        f.write_str(&all.join("\n\n"))
    }
}

impl std::error::Error for Diagnostics {}
