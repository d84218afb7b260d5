//! Benchmarks: installs the peers, builds everything optimised, and runs `mayfly-bench`.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

use crate::kubernetes;
use crate::run::{output, run};
use crate::setup;

/// What the benches compare Mayfly with.
fn peers(name: &str) -> &'static [(&'static str, &'static str)] {
    match name {
        "net" => &[
            ("/usr/bin/taskset", "util-linux"),
            ("/usr/sbin/nginx", "nginx-light"),
            ("/usr/sbin/haproxy", "haproxy"),
            ("/usr/bin/wrk", "wrk"),
            ("/usr/sbin/dnsmasq", "dnsmasq-base"),
            ("/usr/sbin/knotd", "knot"),
            ("/usr/bin/dnsperf", "dnsperf"),
        ],
        "guest" => &[("/usr/bin/virt-qemu-run", "libvirt-daemon-driver-qemu")],
        _ => &[("/usr/bin/fio", "fio"), ("/usr/bin/nbdkit", "nbdkit"), ("/usr/bin/taskset", "util-linux")],
    }
}

/// libvirt's driver does not start without the user that Debian makes with the whole of libvirt, daemons and all.
fn make_user(name: &str) -> anyhow::Result<()> {
    if output("id", &[name]).is_ok() {
        return Ok(());
    }
    let nologin = "/usr/sbin/nologin";
    run("useradd", &["--system", "--no-create-home", "--shell", nologin, "--user-group", name])
}

/// Runs a bench and writes its section of `docs/benchmarks.md`.
pub fn bench(root: &Path, name: &str, arguments: &[String]) -> anyhow::Result<()> {
    setup::install()?;
    setup::install_all(peers(name))?;
    if name == "guest" {
        make_user("libvirt-qemu")?;
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let build = ["build", "--release", "--quiet", "--locked", "-p", "mayfly-cli", "-p", "mayfly-bench"];
    println!("building mayfly and the benchmarks, optimised");
    let built = Command::new(cargo).args(build).current_dir(root).status().context("cannot run cargo")?;
    ensure!(built.success(), "cargo build failed");
    let scheduler = match name {
        "fabric" => kubernetes::scheduler_perf(&root.join("target/kubernetes"))
            .inspect_err(|error| {
                println!("kube-scheduler cannot be built here, so its published figure stands in: {error:#}")
            })
            .ok(),
        _ => None,
    };
    let release = root.join("target/release");
    let mut command = Command::new(release.join("mayfly-bench"));
    command.arg(name).arg("--mayfly").arg(release.join("mayfly"));
    command.arg("--write").arg(root.join("docs/benchmarks.md")).args(arguments);
    if let Some(scheduler) = scheduler {
        command.arg("--scheduler").arg(scheduler);
    }
    let status = command.status().context("cannot run the benchmarks")?;
    ensure!(status.success(), "the bench failed");
    Ok(())
}
