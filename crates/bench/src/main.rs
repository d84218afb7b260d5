//! Benchmarks: each measures Mayfly and a named peer in turns, in the same run, and gives ratios of medians.

mod boot;
mod create;
mod fio;
#[path = "../../disk/tests/disk/front.rs"]
#[expect(dead_code, reason = "the tests use what the benchmarks do not")]
mod front;
mod memory;
mod peers;
mod report;
mod vhost;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use report::Report;

/// Measures Mayfly beside its peers.
#[derive(Parser)]
#[command(name = "mayfly-bench")]
enum Bench {
    /// The disk engine, beside qemu-img, qemu-storage-daemon, qemu-nbd, nbdkit, and qcow2 inside QEMU
    Disk {
        /// The program to measure
        #[arg(long)]
        mayfly: PathBuf,
        /// The file whose section is written anew
        #[arg(long)]
        write: Option<PathBuf>,
        /// Pairs of measurements
        #[arg(long, default_value_t = 5)]
        pairs: usize,
        /// Seconds of each measurement of throughput
        #[arg(long, default_value_t = 2)]
        seconds: u32,
        /// Where files are made; memory (/dev/shm) for what the engine costs, a disk for what the disk does
        #[arg(long, default_value = "/dev/shm")]
        folder: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(Bench::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(bench: Bench) -> anyhow::Result<()> {
    let Bench::Disk { mayfly, write, pairs, seconds, folder } = bench;
    let work = tempfile::Builder::new().prefix("mayfly-bench-").tempdir_in(&folder)?;
    let mut report = Report::new("disk");
    create::measure(&mut report, pairs)?;
    fio::measure(&mut report, work.path(), &mayfly, pairs, seconds)?;
    vhost::measure(&mut report, work.path(), &mayfly, pairs)?;
    memory::measure(&mut report, work.path(), &mayfly)?;
    boot::measure(&mut report, &mayfly)?;
    if let Some(path) = write {
        report.write(&path)?;
    }
    println!("\n{}", report.verdict());
    Ok(())
}
