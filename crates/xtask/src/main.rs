//! The project's chores, as `cargo xtask`.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, ensure};
use clap::Parser;
use mayfly_xtask::fabric::DevFabric;
use mayfly_xtask::{image, setup, story, workspace};

#[derive(Parser)]
enum Chore {
    /// Install what is missing on this machine
    Setup,
    /// Build the demo image and print where it is
    Image,
    /// Install what is missing, build everything, and watch a service of VMs survive the death of its host
    Demo {
        /// Leave the fabric running at the end
        #[arg(long)]
        keep: bool,
    },
    /// Install what is missing and run all checks and tests
    Test,
}

fn main() -> ExitCode {
    let root = workspace();
    let done = match Chore::parse() {
        Chore::Setup => setup::install(),
        Chore::Image => setup::install().and_then(|()| image::build(&root)).map(|path| println!("{}", path.display())),
        Chore::Demo { keep } => demo(&root, keep),
        Chore::Test => test(&root),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(root: &Path, keep: bool) -> anyhow::Result<()> {
    setup::install()?;
    println!("building mayfly and the demo image");
    cargo(root, &["build", "--quiet", "--locked", "--package", "mayfly-cli"])?;
    let image = image::build(root)?;
    let state = std::env::temp_dir().join(format!("mayfly-demo-{}", std::process::id()));
    let mut fabric = DevFabric::new(&binary(root), &state);
    fabric.keep = keep;
    let summary = story::tell(&fabric, &image).inspect_err(|_| {
        if !keep {
            println!("the fabric is stopped and purged; `cargo xtask demo --keep` leaves it for a look");
        }
    })?;
    println!("\n{summary}");
    if keep {
        let (binary, state) = (binary(root), state.display().to_string());
        println!("the fabric runs on: curl http://{}/", fabric.vip("shop")?);
        println!("  {} --state {state} instance list", binary.display());
        println!("  {} --state {state} dev down --purge", binary.display());
    }
    Ok(())
}

fn binary(root: &Path) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    target.join("debug/mayfly")
}

fn test(root: &Path) -> anyhow::Result<()> {
    setup::install()?;
    cargo(root, &["fmt", "--all", "--check"]).context("the code is not formatted; `cargo fmt` does it")?;
    cargo(root, &["clippy", "--quiet", "--locked", "--workspace", "--all-targets", "--", "--deny", "warnings"])?;
    image::build(root)?;
    cargo(root, &["test", "--locked", "--workspace"])
}

fn cargo(root: &Path, arguments: &[&str]) -> anyhow::Result<()> {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(program).args(arguments).current_dir(root).status().context("cannot run cargo")?;
    ensure!(status.success(), "cargo {} failed", arguments[0]);
    Ok(())
}
