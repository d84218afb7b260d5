//! vhost-user-blk, driven by a small front end, beside a qcow2 overlay inside QEMU's own block layer.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, ensure};
use mayfly_disk::Transport;

use crate::front::FrontEnd;
use crate::peers::{self, Cores, Mayfly};
use crate::report::{Comparison, Report};

/// Mebibytes of the disk.
const DISK: u64 = 512;

/// Write or read, bytes, depth, requests.
const LOADS: [(bool, u64, u16, u64); 6] = [
    (false, 4096, 1, 60_000),
    (false, 4096, 32, 200_000),
    (true, 4096, 1, 40_000),
    (true, 4096, 32, 120_000),
    (false, 128 << 10, 4, 12_000),
    (true, 128 << 10, 4, 8_000),
];

pub fn measure(report: &mut Report, folder: &Path, mayfly: &Path, pairs: usize) -> anyhow::Result<()> {
    let base = peers::base(folder, DISK)?;
    let qemu = "qcow2 inside QEMU (`qemu-img bench`)";
    for (cores, where_) in [(Cores::One, "all on one processor"), (Cores::All, "as the system schedules them")] {
        report.table(&format!("I/O over vhost-user-blk, {where_}"), qemu);
        for (write, bytes, depth, count) in LOADS {
            let (mut ours, mut peer) = (Vec::new(), Vec::new());
            for _ in 0..pairs {
                ours.push(by_us(folder, mayfly, &base, cores, (write, bytes, depth, count))?);
                peer.push(by_qemu(folder, &base, cores, (write, bytes, depth, count))?);
            }
            let what = format!("{} {} KiB depth {depth}", if write { "write" } else { "read" }, bytes >> 10);
            report.compare(&Comparison {
                what: &what,
                ours: &ours,
                peer: &peer,
                is_time: false,
                unit: "/s",
                goal: 1.0,
            });
        }
        report.end();
    }
    std::fs::remove_file(base)?;
    Ok(())
}

type Load = (bool, u64, u16, u64);

/// Both walk through the disk in strides of ten times a request, as `qemu-img bench -S` does.
fn stride(bytes: u64) -> u64 {
    bytes * 10
}

fn by_qemu(folder: &Path, base: &Path, cores: Cores, (write, bytes, depth, count): Load) -> anyhow::Result<f64> {
    let overlay = folder.join("bench.qcow2");
    let (base, path) = (base.to_string_lossy(), overlay.to_string_lossy());
    peers::run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", &base, "-F", "vpc", &path])?;
    let half = format!("write 0 {}M", DISK / 2);
    peers::run("qemu-io", &["-f", "qcow2", "-c", &half, &path])?;
    let mut command = peers::command(cores, Path::new("qemu-img"));
    command.args(["bench", "-f", "qcow2"]);
    command.args(["-c", &count.to_string(), "-d", &depth.to_string(), "-s", &bytes.to_string()]);
    command.args(["-S", &stride(bytes).to_string()]);
    if write {
        command.arg("-w");
    }
    let output = command.arg(&overlay).output().context("cannot run qemu-img")?;
    ensure!(output.status.success(), "qemu-img bench: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let seconds = text.lines().find_map(|line| line.strip_prefix("Run completed in ")?.split(' ').next()?.parse().ok());
    std::fs::remove_file(&overlay)?;
    Ok(count as f64 / seconds.unwrap_or(f64::NAN))
}

fn by_us(folder: &Path, mayfly: &Path, base: &Path, cores: Cores, load: Load) -> anyhow::Result<f64> {
    let folder = folder.join("vhost");
    if cores == Cores::One {
        let mut one = nix::sched::CpuSet::new();
        one.set(0)?;
        nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &one)?;
    }
    let server = Mayfly::start(mayfly, &folder, cores)?;
    let socket = server.export("bench", base, Transport::VhostUser)?;
    let mut front = FrontEnd::connect(&socket)?;
    for at in (0..DISK << 19).step_by(128 << 10) {
        front.submit(0, true, at, 128 << 10)?;
        front.finish(1)?;
    }
    let (write, bytes, depth, count) = load;
    let figure = run(&mut front, write, bytes, depth, count)?;
    drop((front, server));
    if cores == Cores::One {
        let mut all = nix::sched::CpuSet::new();
        (0..std::thread::available_parallelism().map_or(1, usize::from).max(2)).try_for_each(|one| all.set(one))?;
        nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &all)?;
    }
    std::fs::remove_dir_all(&folder)?;
    Ok(figure)
}

/// Requests a second.
fn run(front: &mut FrontEnd, write: bool, bytes: u64, depth: u16, count: u64) -> anyhow::Result<f64> {
    let began = Instant::now();
    let (mut at, mut submitted, mut done) = (0, 0, 0);
    let mut free: Vec<u16> = (0..depth).collect();
    while done < count {
        while submitted < count
            && let Some(slot) = free.pop()
        {
            front.submit(slot, write, at, bytes)?;
            at = (at + stride(bytes)) % ((DISK << 20) - bytes + 1) / 512 * 512;
            submitted += 1;
        }
        let slots = front.finish(1)?;
        done += slots.len() as u64;
        free.extend(slots);
    }
    Ok(count as f64 / began.elapsed().as_secs_f64())
}
