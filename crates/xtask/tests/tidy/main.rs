//! House rules that no compiler checks. Each message says what to do.

mod dependencies;
mod documents;
mod sources;

use std::path::{Path, PathBuf};
use std::process::Command;

/// All files that git tracks or would track.
fn files() -> Vec<PathBuf> {
    let root = mayfly_xtask::workspace();
    let arguments = ["ls-files", "--cached", "--others", "--exclude-standard"];
    let output = Command::new("git").args(arguments).current_dir(&root).output().unwrap();
    assert!(output.status.success(), "these tests run in a checkout");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| root.join(line)).filter(|path| path.exists()).collect()
}

fn with_extension(extension: &str) -> Vec<(PathBuf, String)> {
    let matching = files().into_iter().filter(|path| path.extension().is_some_and(|found| found == extension));
    matching.map(|path| (path.clone(), std::fs::read_to_string(path).unwrap())).collect()
}

fn short(path: &Path) -> String {
    path.strip_prefix(mayfly_xtask::workspace()).unwrap_or(path).display().to_string()
}
