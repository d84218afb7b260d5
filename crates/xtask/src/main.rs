//! The project's chores, as `cargo xtask`.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Parser;
use mayfly_xtask::fabric::{DevFabric, wait_until};
use mayfly_xtask::{bench, fuzz, image, setup, story, workspace};
use nix::sys::signal::{SigSet, Signal};

#[derive(Parser)]
enum Chore {
    /// Install what is missing on this machine
    Setup,
    /// Build a guest image and print where it is
    Image {
        /// hello: the small guest of the demo; debian: Debian with cloud-init and the Azure agent
        #[arg(value_parser = ["hello", "debian"], default_value = "hello")]
        name: String,
    },
    /// Install what is missing, build everything, and watch a service of VMs survive the death of its host
    Demo {
        /// Leave the fabric running at the end
        #[arg(long)]
        keep: bool,
    },
    /// Install what is missing and run all checks and tests
    Test,
    /// Measure beside named peers, and write docs/benchmarks.md
    Bench {
        /// What to measure
        #[arg(value_parser = ["disk", "fabric", "net", "guest"])]
        name: String,
        /// More for the benchmark itself, for example --pairs 3
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Install what is missing and run fuzz targets
    Fuzz {
        /// Which [default: all]
        #[arg(value_parser = mayfly_xtask::fuzz::TARGETS)]
        targets: Vec<String>,
        /// Seconds for each
        #[arg(long, default_value_t = 300)]
        seconds: u64,
    },
}

fn main() -> ExitCode {
    let root = workspace();
    let done = match Chore::parse() {
        Chore::Setup => setup::install(),
        Chore::Image { name } => {
            let build = if name == "debian" { image::build_debian } else { image::build };
            setup::install().and_then(|()| build(&root)).map(|path| println!("{}", path.display()))
        }
        Chore::Demo { keep } => demo(&root, keep),
        Chore::Test => test(&root),
        Chore::Bench { name, arguments } => bench::bench(&root, &name, &arguments),
        Chore::Fuzz { targets, seconds } => {
            let all = || fuzz::TARGETS.map(str::to_owned).to_vec();
            let targets = if targets.is_empty() { all() } else { targets };
            setup::install().and_then(|()| fuzz::fuzz(&root, &targets, seconds))
        }
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
    println!("the fabric's folder is {}", state.display());
    let fabric = Arc::new(fabric);
    let reach = || {
        println!("  {} --state {} instance list", binary(root).display(), state.display());
        println!("  {} --state {} dev down --purge", binary(root).display(), state.display());
    };
    match tell_unless_interrupted(&fabric, image)? {
        Some(Ok(summary)) => {
            println!("\n{summary}");
            if keep {
                println!("the fabric runs on: curl http://{}/", fabric.vip("shop")?);
                reach();
            }
            Ok(())
        }
        Some(Err(error)) if keep => {
            println!("the fabric is left for a look:");
            reach();
            Err(error)
        }
        Some(Err(error)) => {
            // The story's thread may still hold the fabric, and this process ends first.
            fabric.try_run(&["dev", "down", "--purge"])?;
            Err(error.context("the fabric is stopped and purged (`--keep` leaves it for a look)"))
        }
        None => {
            println!("interrupted: stopping the fabric");
            // A command of the story may still be at work on it.
            wait_until("the fabric is stopped", Duration::from_secs(30), || {
                Ok(!state.exists() || fabric.try_run(&["dev", "down", "--purge"])?.success)
            })?;
            std::process::exit(130)
        }
    }
}

/// The story's end, or nothing if the user wants no more of it.
fn tell_unless_interrupted(
    fabric: &Arc<DevFabric>,
    image: PathBuf,
) -> anyhow::Result<Option<anyhow::Result<story::Summary>>> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    // Before there are other threads, which would be interrupted instead. Programs that are run start without this.
    signals.thread_block().context("cannot block signals")?;
    let (sender, ended) = mpsc::channel();
    let (fabric, story_sender) = (Arc::clone(fabric), sender.clone());
    // Whoever is told first ends the wait; the other's word is not missed.
    std::thread::spawn(move || drop(story_sender.send(Some(story::tell(&fabric, &image)))));
    std::thread::spawn(move || drop(signals.wait().map(|_| sender.send(None))));
    ended.recv().context("the story broke off")
}

fn binary(root: &Path) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    // A relative folder counts from the workspace, where cargo is run.
    root.join(target).join("debug/mayfly")
}

fn test(root: &Path) -> anyhow::Result<()> {
    setup::install()?;
    cargo(root, &["fmt", "--all", "--check"]).context("the code is not formatted; `cargo fmt` does it")?;
    cargo(root, &["clippy", "--quiet", "--locked", "--workspace", "--all-targets", "--", "--deny", "warnings"])?;
    image::build(root)?;
    image::build_debian(root)?;
    cargo(root, &["test", "--locked", "--workspace"])
}

fn cargo(root: &Path, arguments: &[&str]) -> anyhow::Result<()> {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(program).args(arguments).current_dir(root).status().context("cannot run cargo")?;
    ensure!(status.success(), "cargo {} failed", arguments[0]);
    Ok(())
}
