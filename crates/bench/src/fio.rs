//! Throughput and latency over NBD, by fio.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, ensure};
use mayfly_disk::Transport;

use crate::peers::{self, Cores, Mayfly};
use crate::report::{Comparison, Report};

/// Mebibytes of the disk; half of it is written to before reads are measured.
const DISK: u64 = 512;

/// What fio does: its word for it, bytes, requests at a time.
const LOADS: [(&str, &str, u32); 6] = [
    ("randread", "4k", 1),
    ("randread", "4k", 32),
    ("randwrite", "4k", 1),
    ("randwrite", "4k", 32),
    ("read", "128k", 4),
    ("write", "128k", 4),
];

pub fn measure(report: &mut Report, folder: &Path, mayfly: &Path, pairs: usize, seconds: u32) -> anyhow::Result<()> {
    let base = peers::base(folder, DISK)?;
    let both = "both sides on one processor";
    for (cores, where_) in [(Cores::One, both), (Cores::All, "as the system schedules them")] {
        report.table(&format!("I/O over NBD by fio, {where_}"), "qemu-nbd, qcow2 over the same base");
        let mut cached = Vec::new();
        for load in LOADS {
            let mut figures = [Vec::new(), Vec::new(), Vec::new()];
            for _ in 0..pairs {
                figures[0].push(ours(folder, mayfly, &base, load, cores, seconds)?);
                figures[1].push(qemu_nbd(folder, &base, load, cores, seconds)?);
                if load.0.contains("read") {
                    figures[2].push(nbdkit(folder, load, cores, seconds)?);
                }
            }
            let what = format!("{} {} depth {}", load.0, load.1, load.2);
            let line =
                Comparison { what: &what, ours: &figures[0], peer: &figures[1], is_time: false, unit: "/s", goal: 2.0 };
            report.compare(&line);
            if load.0.contains("read") {
                cached.push((what, figures));
            }
        }
        report.end();
        report.table(&format!("Cached reads, {where_}"), "nbdkit memory");
        for (what, figures) in &cached {
            report.compare(&Comparison {
                what,
                ours: &figures[0],
                peer: &figures[2],
                is_time: false,
                unit: "/s",
                goal: 0.8,
            });
        }
        report.end();
    }
    std::fs::remove_file(base)?;
    Ok(())
}

type Load = (&'static str, &'static str, u32);

fn ours(folder: &Path, mayfly: &Path, base: &Path, load: Load, cores: Cores, seconds: u32) -> anyhow::Result<f64> {
    let folder = folder.join("mayfly");
    let server = Mayfly::start(mayfly, &folder, cores)?;
    let socket = server.export("bench", base, Transport::Nbd)?;
    let figure = prepare_and_run(&socket, load, cores, seconds);
    drop(server);
    std::fs::remove_dir_all(&folder)?;
    figure
}

fn qemu_nbd(folder: &Path, base: &Path, load: Load, cores: Cores, seconds: u32) -> anyhow::Result<f64> {
    let (overlay, socket) = (folder.join("overlay.qcow2"), folder.join("qemu.sock"));
    let (base, path) = (base.to_string_lossy(), overlay.to_string_lossy());
    peers::run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", &base, "-F", "vpc", &path])?;
    let mut command = peers::command(cores, Path::new("qemu-nbd"));
    command.args(["-t", "-e", "4", "-f", "qcow2", "-k"]).arg(&socket).arg(&overlay);
    let server = peers::start(command, &socket)?;
    let figure = prepare_and_run(&socket, load, cores, seconds);
    drop(server);
    std::fs::remove_file(&overlay)?;
    figure
}

fn nbdkit(folder: &Path, load: Load, cores: Cores, seconds: u32) -> anyhow::Result<f64> {
    let socket = folder.join("nbdkit.sock");
    let mut command = peers::command(cores, Path::new("nbdkit"));
    command.args(["-f", "-U"]).arg(&socket).args(["memory", &format!("{DISK}M")]);
    let server = peers::start(command, &socket)?;
    fill(&socket, DISK)?;
    let figure = fio(&socket, load, cores, seconds);
    drop(server);
    figure
}

/// Before reads, half of the disk is written to, so that half of the data is in the base; writes find a fresh disk.
fn prepare_and_run(socket: &Path, load: Load, cores: Cores, seconds: u32) -> anyhow::Result<f64> {
    if load.0.contains("read") {
        fill(socket, DISK / 2)?;
    }
    fio(socket, load, cores, seconds)
}

fn fill(socket: &Path, mebibytes: u64) -> anyhow::Result<()> {
    let uri = format!("--uri=nbd+unix:///?socket={}", socket.display());
    let size = format!("--size={mebibytes}M");
    let fixed = ["--name=fill", "--ioengine=nbd", "--rw=write", "--bs=1M", "--iodepth=2"];
    peers::run("fio", &[&fixed[..], &[&uri, &size]].concat()).map(drop)
}

/// Requests a second.
fn fio(socket: &Path, (rw, bs, depth): Load, cores: Cores, seconds: u32) -> anyhow::Result<f64> {
    let mut command = peers::command(cores, &PathBuf::from("fio"));
    command.args(["--name=bench", "--ioengine=nbd", "--time_based", "--output-format=json"]);
    command.arg(format!("--uri=nbd+unix:///?socket={}", socket.display()));
    command.args([format!("--rw={rw}"), format!("--bs={bs}"), format!("--iodepth={depth}")]);
    command.args([format!("--runtime={seconds}"), format!("--size={DISK}M")]);
    let output = command.stdin(Stdio::null()).output().context("cannot run fio")?;
    ensure!(output.status.success(), "fio: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let json = text.find('{').map(|start| &text[start..]).context("fio said nothing")?;
    let result: serde_json::Value = serde_json::from_str(json)?;
    let side = if rw.contains("read") { "read" } else { "write" };
    result["jobs"][0][side]["iops"].as_f64().context("fio gave no figure")
}
