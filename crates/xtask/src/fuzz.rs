//! Fuzzing: installs what is missing, makes a seed corpus, runs the targets.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::run::{output, run};

/// All targets.
pub const TARGETS: [&str; 3] = ["open", "operations", "manifest"];

/// Runs `targets` for so many seconds each.
pub fn fuzz(root: &Path, targets: &[String], seconds: u64) -> anyhow::Result<()> {
    install()?;
    let folder = root.join("crates/vhd/fuzz");
    seeds(&folder)?;
    for target in targets {
        println!("fuzzing {target} for {seconds} s");
        let status = Command::new("cargo")
            .args(["+nightly", "fuzz", "run", target, "--", &format!("-max_total_time={seconds}")])
            .args(["-rss_limit_mb=2048", "-timeout=20", "-max_len=65536", "-print_final_stats=1"])
            .current_dir(folder.parent().unwrap_or(&folder))
            .env_remove("RUSTUP_TOOLCHAIN")
            .status()
            .context("cannot run cargo fuzz")?;
        ensure!(status.success(), "fuzzing {target} has found something: see crates/vhd/fuzz/artifacts/{target}");
    }
    Ok(())
}

fn install() -> anyhow::Result<()> {
    if output("cargo", &["+nightly", "--version"]).is_err() {
        println!("installing a nightly compiler, which fuzzing needs");
        run("rustup", &["toolchain", "install", "nightly", "--profile", "minimal"])?;
    }
    if output("cargo", &["fuzz", "--version"]).is_err() {
        println!("installing cargo-fuzz");
        run("cargo", &["install", "cargo-fuzz", "--locked"])?;
    }
    Ok(())
}

/// Small disks of every kind, made by qemu-img and by this library.
fn seeds(folder: &Path) -> anyhow::Result<()> {
    let made = folder.join("target/seeds");
    std::fs::create_dir_all(&made)?;
    let path = |name: &str| made.join(name);
    let text = |path: &PathBuf| path.to_string_lossy().into_owned();
    let (fixed, dynamic) = (path("qemu-fixed.vhd"), path("qemu-dynamic.vhd"));
    for (file, subformat) in [(&fixed, "fixed"), (&dynamic, "dynamic")] {
        let options = format!("subformat={subformat},force_size=on");
        run("qemu-img", &["create", "-q", "-f", "vpc", "-o", &options, &text(file), "32K"])?;
    }
    let own = [path("own-fixed.vhd"), path("own-dynamic.vhd"), path("own-differencing.vhd")];
    for file in &own {
        let _ = std::fs::remove_file(file);
    }
    let mayfly = |arguments: &[&str]| {
        let words = ["run", "--quiet", "--package", "mayfly-cli", "--", "vhd"];
        run("cargo", &[&words[..], arguments].concat())
    };
    mayfly(&["create", &text(&own[0]), "--size", "16K", "--fixed"])?;
    mayfly(&["create", &text(&own[1]), "--size", "8M"])?;
    mayfly(&["create", &text(&own[2]), "--parent", &text(&own[1])])?;
    for target in ["open", "operations"] {
        let corpus = folder.join("corpus").join(target);
        std::fs::create_dir_all(&corpus)?;
        for (index, file) in [&fixed, &dynamic].into_iter().chain(&own).enumerate() {
            let mut bytes =
                if target == "operations" { (0..64u8).map(|byte| byte.wrapping_mul(37)).collect() } else { Vec::new() };
            bytes.extend(std::fs::read(file)?);
            std::fs::write(corpus.join(format!("seed-{index}")), bytes)?;
        }
    }
    let manifest = folder.join("corpus/manifest");
    std::fs::create_dir_all(&manifest)?;
    let zeros = "0".repeat(64);
    let seed =
        format!("mayfly-image 1\ndisk-bytes 1048576\nchunk-bytes 524288\nvhd-id {} 7\n0 {zeros}\n", &zeros[..32]);
    std::fs::write(manifest.join("seed"), seed)?;
    Ok(())
}
