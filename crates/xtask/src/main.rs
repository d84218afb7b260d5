//! The project's chores, as `cargo xtask`.

mod image;
mod run;
mod setup;

use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;

#[derive(Parser)]
enum Chore {
    /// Install what is missing on this machine
    Setup,
    /// Build the demo image and print where it is
    Image,
}

fn main() -> anyhow::Result<()> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let root = root.ancestors().nth(2).context("the workspace's folder")?;
    match Chore::parse() {
        Chore::Setup => setup::install(),
        Chore::Image => {
            setup::install()?;
            println!("{}", image::build(root)?.display());
            Ok(())
        }
    }
}
