//! Benchmarks: each measures Mayfly and a named peer in turns, in the same run, and gives ratios of medians.

mod boot;
mod create;
mod fabric;
mod fio;
#[path = "../../disk/tests/disk/front.rs"]
#[expect(dead_code, reason = "the tests use what the benchmarks do not")]
mod front;
mod guest;
mod memory;
mod net;
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
    /// The fabric core, its store and its controller, beside etcd and kube-scheduler
    Fabric {
        /// The program to measure
        #[arg(long)]
        mayfly: PathBuf,
        /// The file whose section is written anew
        #[arg(long)]
        write: Option<PathBuf>,
        /// Pairs of measurements
        #[arg(long, default_value_t = 5)]
        pairs: usize,
        /// Seconds of each measurement of writes
        #[arg(long, default_value_t = 3)]
        seconds: u32,
        /// kube-scheduler's own benchmark, as `cargo xtask bench fabric` builds it [default: its published figure]
        #[arg(long)]
        scheduler: Option<PathBuf>,
        /// Where records are kept; what is durable is so only on a disk
        #[arg(long, default_value = "/var/tmp")]
        folder: PathBuf,
        /// Measures one part, and writes nothing
        #[arg(long)]
        only: Option<fabric::Part>,
    },
    /// The data plane, beside HAProxy, dnsmasq and Knot
    Net {
        /// The program to measure
        #[arg(long)]
        mayfly: PathBuf,
        /// The file whose section is written anew
        #[arg(long)]
        write: Option<PathBuf>,
        /// Rounds of measurements
        #[arg(long, default_value_t = 5)]
        pairs: usize,
        /// Seconds of each measurement of throughput
        #[arg(long, default_value_t = 3)]
        seconds: u32,
        /// Where files are made
        #[arg(long, default_value = "/var/tmp")]
        folder: PathBuf,
    },
    /// Guests, cold and from templates, beside libvirt
    Guest {
        /// The program to measure
        #[arg(long)]
        mayfly: PathBuf,
        /// The file whose section is written anew
        #[arg(long)]
        write: Option<PathBuf>,
        /// Rounds of measurements
        #[arg(long, default_value_t = 5)]
        pairs: usize,
        /// Where files are made
        #[arg(long, default_value = "/var/tmp")]
        folder: PathBuf,
    },
    /// Serves the names of the bench, until it is killed
    #[command(hide = true)]
    Dns,
    /// Loads a store, and prints seconds and MiB
    #[command(hide = true)]
    Load { file: PathBuf },
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
    let work = |folder: &PathBuf| tempfile::Builder::new().prefix("mayfly-bench-").tempdir_in(folder);
    let (report, write) = match bench {
        Bench::Load { file } => return fabric::load(&file),
        Bench::Dns => return net::serve(),
        Bench::Disk { mayfly, write, pairs, seconds, folder } => {
            let work = work(&folder)?;
            let mut report = Report::new("disk");
            create::measure(&mut report, pairs)?;
            fio::measure(&mut report, work.path(), &mayfly, pairs, seconds)?;
            vhost::measure(&mut report, work.path(), &mayfly, pairs)?;
            memory::measure(&mut report, work.path(), &mayfly)?;
            boot::measure(&mut report, &mayfly)?;
            (report, write)
        }
        Bench::Fabric { mayfly, write, pairs, seconds, scheduler, folder, only } => {
            let work = work(&folder)?;
            let mut report = Report::new("fabric");
            let scheduler = scheduler.as_deref();
            let plan = fabric::Plan { work: work.path(), scheduler, mayfly: &mayfly, pairs, seconds, only };
            fabric::measure(&mut report, &plan)?;
            (report, write.filter(|_| only.is_none()))
        }
        Bench::Net { mayfly, write, pairs, seconds, folder } => {
            let work = work(&folder)?;
            let mut report = Report::new("net");
            net::measure(&mut report, work.path(), &mayfly, pairs, seconds)?;
            (report, write)
        }
        Bench::Guest { mayfly, write, pairs, folder } => {
            let work = work(&folder)?;
            let mut report = Report::new("guest");
            guest::measure(&mut report, work.path(), &mayfly, pairs)?;
            (report, write)
        }
    };
    if let Some(path) = write {
        report.write(&path)?;
    }
    println!("\n{}", report.verdict());
    Ok(())
}
