//! Recipes of guest images: bootable VHDs made of Debian's packages, without loop devices or mounts, the same to the byte
//! each time.

mod debian;
mod hello;
mod parts;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

/// The demo image, by its old and short name.
pub use hello::build;

/// The Debian image, built anew if anything of its recipe is newer.
pub use debian::build as build_debian;

/// The date of everything in an image, in seconds since 1970: with another, the same packages would make other bytes.
const DATE: &str = "1700000000";

fn is_newer(image: &Path, sources: &[PathBuf]) -> anyhow::Result<bool> {
    let Ok(made) = image.metadata().and_then(|data| data.modified()) else { return Ok(false) };
    for source in sources {
        if source.metadata().with_context(|| source.display().to_string())?.modified()? > made {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A command that knows no other place and no other time than everybody else's.
fn pinned(program: &str) -> Command {
    let mut command = Command::new(program);
    for name in ["SOURCE_DATE_EPOCH", "E2FSPROGS_FAKE_TIME", "E2FSCK_TIME"] {
        command.env(name, DATE);
    }
    command.env("LC_ALL", "C").env("TZ", "UTC");
    command
}

/// All files below a folder, in order.
fn files_below(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        match path.is_dir() {
            true => found.extend(files_below(&path)?),
            false => found.push(path),
        }
    }
    found.sort();
    Ok(found)
}
