//! Fuzzing: installs what is missing, makes a seed corpus, runs the targets.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::run::{output, run};

/// All targets.
pub const TARGETS: [&str; 5] = ["open", "operations", "manifest", "guest", "secret"];

/// The crate beside which a target lies.
fn home(target: &str) -> &'static str {
    match target {
        "guest" | "secret" => "crates/wire",
        _ => "crates/vhd",
    }
}

/// Runs `targets` for so many seconds each.
pub fn fuzz(root: &Path, targets: &[String], seconds: u64) -> anyhow::Result<()> {
    let nightly = install()?;
    if targets.iter().any(|target| home(target) == "crates/vhd") {
        disk_seeds(&root.join("crates/vhd/fuzz"))?;
    }
    guest_seeds(&root.join("crates/wire/fuzz"))?;
    for target in targets {
        let folder = root.join(home(target));
        println!("fuzzing {target} for {seconds} s");
        let mut command = Command::new("cargo");
        match nightly {
            true => command.args(["+nightly", "fuzz", "run"]).env_remove("RUSTUP_TOOLCHAIN"),
            // The stable compiler can do it too, but for the sanitizer.
            false => command.args(["fuzz", "run", "--sanitizer", "none"]).env("RUSTC_BOOTSTRAP", "1"),
        };
        let status = command
            .args([target, "--", &format!("-max_total_time={seconds}")])
            .args(["-rss_limit_mb=2048", "-timeout=20", "-max_len=65536", "-print_final_stats=1"])
            .current_dir(&folder)
            .status()
            .context("cannot run cargo fuzz")?;
        let artifacts = folder.join("fuzz/artifacts").join(target);
        ensure!(status.success(), "fuzzing {target} has found something: see {}", artifacts.display());
    }
    Ok(())
}

/// Returns whether there is a nightly compiler, with which the address sanitizer watches too.
fn install() -> anyhow::Result<bool> {
    let mut nightly = output("cargo", &["+nightly", "--version"]).is_ok();
    if !nightly {
        println!("installing a nightly compiler, with which the address sanitizer watches too");
        nightly = run("rustup", &["toolchain", "install", "nightly", "--profile", "minimal"]).is_ok();
    }
    if !nightly {
        println!("there is none to be had; going on with this compiler, without the sanitizer");
    }
    if output("cargo", &["fuzz", "--version"]).is_err() {
        println!("installing cargo-fuzz");
        run("cargo", &["install", "cargo-fuzz", "--locked"])?;
    }
    Ok(nightly)
}

/// Requests as agents send them.
fn guest_seeds(folder: &Path) -> anyhow::Result<()> {
    let requests = [
        "\0GET /machine/?comp=goalstate\nx-ms-version: 2012-11-30\n\n",
        "\0GET /machine/01234567-89ab-8cde-8c00-000000000007/0123456789abcdef0123456789abcdef.web_IN_0?comp=certificates\
         &incarnation=1\nx-ms-guest-agent-public-x509-cert: MIIB\nx-ms-cipher-name: AES128_CBC\n\n",
        "\0POST /machine?comp=health\nUser-Agent: Cloud-Init/22.4.2\n\n<Health><Container><RoleInstanceList><Role>\
         <Health><State>NotReady</State><Details><SubStatus>Provisioning</SubStatus><Description>x</Description>\
         </Details></Health></Role></RoleInstanceList></Container></Health>",
        "\u{1}PUT /status\n\n{}",
        "\u{2}GET /metadata/instance?api-version=2021-02-01\nMetadata: true\n\n",
        "\u{2}POST /metadata/scheduledevents?api-version=2020-07-01\nMetadata: true\n\n\
         {\"StartRequests\":[{\"EventId\":\"x\"}]}",
        "\u{2}POST /mayfly/v1/script/report\nMetadata: true\n\n{\"attempt\":1,\"status\":0,\"last\":true,\"output\":\"\"}",
    ];
    let corpus = folder.join("corpus/guest");
    std::fs::create_dir_all(&corpus)?;
    for (index, request) in requests.iter().enumerate() {
        std::fs::write(corpus.join(format!("seed-{index}")), request)?;
    }
    secret_seeds(folder)
}

/// An archive, PEM, a certificate and an envelope, made by openssl(1).
fn secret_seeds(folder: &Path) -> anyhow::Result<()> {
    let (made, corpus) = (folder.join("target/seeds"), folder.join("corpus/secret"));
    std::fs::create_dir_all(&made)?;
    std::fs::create_dir_all(&corpus)?;
    let path = |name: &str| made.join(name).to_string_lossy().into_owned();
    let (key, certificate, der, pfx, sealed) = (path("key"), path("cert"), path("der"), path("pfx"), path("sealed"));
    let new = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=seed"];
    run("openssl", &[&new[..], &["-keyout", &key, "-out", &certificate]].concat())?;
    run("openssl", &["x509", "-in", &certificate, "-outform", "DER", "-out", &der])?;
    run("openssl", &["pkcs12", "-export", "-inkey", &key, "-in", &certificate, "-passout", "pass:", "-out", &pfx])?;
    let seal = ["cms", "-encrypt", "-binary", "-outform", "DER", "-aes128", "-in", &der, "-out", &sealed, &certificate];
    run("openssl", &seal)?;
    for (kind, files) in [(0, vec![&pfx]), (1, vec![&key, &certificate]), (2, vec![&der]), (3, vec![&sealed])] {
        let mut bytes = vec![kind];
        for file in files {
            bytes.extend(std::fs::read(file)?);
        }
        std::fs::write(corpus.join(format!("seed-{kind}")), bytes)?;
    }
    Ok(())
}

/// Small disks of every kind, made by qemu-img and by this library.
fn disk_seeds(folder: &Path) -> anyhow::Result<()> {
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
