//! Service definitions (.csdef) and service configurations (.cscfg): real files in, the model out, and every error at
//! once, each with file, line, column and the offending text.
//!
//! The schema is that of the original platform, versions 2010 to 2015. Elements that the platform knows and Mayfly
//! does not use are read over; elements that nobody knows are errors, as they are mostly typing mistakes.

mod check;
mod configuration;
mod definition;
mod diagnostic;
mod element;
mod nearest;
mod setting;

pub use check::{FILE_SETTINGS, PackageFiles, check, resolve_files};
pub use configuration::parse_configuration;
pub use definition::parse_definition;
pub use diagnostic::{Diagnostic, Diagnostics, Source};

#[cfg(test)]
mod tests;
