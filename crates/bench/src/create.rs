//! Making a differencing disk over a large base.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, bail};
use mayfly_vhd::{Access, CreateOptions, Vhd, create_differencing, create_fixed};

use crate::peers::{self, Cores};
use crate::report::{Comparison, Report, median};

const SMALL: u64 = 2 << 30;
const LARGE: u64 = 40 << 30;

/// On a real disk: there durability costs something.
pub fn measure(report: &mut Report, pairs: usize) -> anyhow::Result<()> {
    let work = tempfile::Builder::new().prefix("mayfly-bench-").tempdir()?;
    let folder = work.path();
    let mut bases = Vec::new();
    for bytes in [SMALL, LARGE] {
        let path = folder.join(format!("base-{}.vhd", bytes >> 30));
        create_fixed(&path, bytes, &options(false))?;
        bases.push(Vhd::open(&path, Access::ReadOnly, None)?);
    }
    let (small, large) = (&bases[0], &bases[1]);
    let daemon = Daemon::start(folder)?;
    let (mut quick, mut durable, mut durable_small) = (Vec::new(), Vec::new(), Vec::new());
    let (mut qemu_img, mut qsd) = (Vec::new(), Vec::new());
    for pair in 0..pairs {
        quick.push(ours(folder, large, pair, false)?);
        qemu_img.push(by_qemu_img(folder, large.path(), pair)?);
        durable.push(ours(folder, large, pair, true)?);
        qsd.push(daemon.create(folder, large, pair)?);
        durable_small.push(ours(folder, small, pair, true)?);
    }
    report.table("Create a differencing disk over a 40 GiB base", "peer");
    let line = |report: &mut Report, what: &str, ours: &[f64], peer: &[f64], goal: f64| {
        report.compare(&Comparison { what, ours, peer, is_time: true, unit: "µs", goal });
    };
    line(report, "against `qemu-img create -b` (neither durable)", &quick, &qemu_img, 100.0);
    line(report, "against a warm qemu-storage-daemon (neither durable)", &quick, &qsd, 10.0);
    line(report, "2 GiB base durable, against 40 GiB base durable (flat: 1)", &durable, &durable_small, 0.8);
    report.end();
    report.bound("durable, over 40 GiB", median(&durable), "µs", 600.0);
    Ok(())
}

fn options(durable: bool) -> CreateOptions {
    CreateOptions { unique_id: rand::random(), timestamp: 1, durable }
}

/// Microseconds for one disk, the median of many.
fn ours(folder: &Path, parent: &Vhd, pair: usize, durable: bool) -> anyhow::Result<f64> {
    let mut times = Vec::new();
    for number in 0..100 {
        let path = folder.join(format!("child-{pair}-{number}.vhd"));
        let options = options(durable);
        let began = Instant::now();
        create_differencing(&path, parent, &options)?;
        times.push(began.elapsed().as_secs_f64() * 1e6);
        std::fs::remove_file(&path)?;
    }
    Ok(median(&times))
}

fn by_qemu_img(folder: &Path, base: &Path, pair: usize) -> anyhow::Result<f64> {
    let (path, base) = (folder.join(format!("overlay-{pair}.qcow2")), base.to_string_lossy().into_owned());
    let mut times = Vec::new();
    for _ in 0..5 {
        let overlay = path.to_string_lossy().into_owned();
        let began = Instant::now();
        peers::run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", &base, "-F", "vpc", &overlay])?;
        times.push(began.elapsed().as_secs_f64() * 1e6);
        std::fs::remove_file(&path)?;
    }
    Ok(median(&times))
}

/// A qemu-storage-daemon that is running already.
struct Daemon {
    _process: peers::Running,
    stream: UnixStream,
    answers: std::cell::RefCell<BufReader<UnixStream>>,
}

impl Daemon {
    fn start(folder: &Path) -> anyhow::Result<Daemon> {
        let socket = folder.join("qmp.sock");
        let mut command = peers::command(Cores::All, Path::new("qemu-storage-daemon"));
        command.arg("--chardev").arg(format!("socket,id=q,path={},server=on,wait=off", socket.display()));
        command.args(["--monitor", "chardev=q"]);
        let process = peers::start(command, &socket)?;
        let stream = UnixStream::connect(&socket)?;
        let answers = std::cell::RefCell::new(BufReader::new(stream.try_clone()?));
        let daemon = Daemon { _process: process, stream, answers };
        daemon.answer()?;
        daemon.ask(serde_json::json!({"execute": "qmp_capabilities"}))?;
        Ok(daemon)
    }

    fn answer(&self) -> anyhow::Result<serde_json::Value> {
        let mut line = String::new();
        self.answers.borrow_mut().read_line(&mut line)?;
        serde_json::from_str(&line).context("the daemon went")
    }

    fn ask(&self, question: serde_json::Value) -> anyhow::Result<()> {
        (&self.stream).write_all(format!("{question}\n").as_bytes())?;
        loop {
            let answer = self.answer()?;
            if let Some(error) = answer.get("error") {
                bail!("qemu-storage-daemon: {error}");
            }
            if answer.get("return").is_some() {
                return Ok(());
            }
        }
    }

    /// Runs a job to its end.
    fn job(&self, id: &str, options: serde_json::Value) -> anyhow::Result<()> {
        let arguments = serde_json::json!({"job-id": id, "options": options});
        (&self.stream).write_all(
            format!("{}\n", serde_json::json!({"execute": "blockdev-create", "arguments": arguments})).as_bytes(),
        )?;
        loop {
            let answer = self.answer()?;
            if let Some(error) = answer.get("error") {
                bail!("qemu-storage-daemon: {error}");
            }
            if answer["event"] == "JOB_STATUS_CHANGE" && answer["data"]["status"] == "concluded" {
                break;
            }
        }
        self.ask(serde_json::json!({"execute": "job-dismiss", "arguments": {"id": id}}))
    }

    fn create(&self, folder: &Path, base: &Vhd, pair: usize) -> anyhow::Result<f64> {
        let mut times = Vec::new();
        for number in 0..10 {
            let path = folder.join(format!("daemon-{pair}-{number}.qcow2"));
            let began = Instant::now();
            self.job("file", serde_json::json!({"driver": "file", "filename": path, "size": 0}))?;
            let add = serde_json::json!({"driver": "file", "filename": path, "node-name": "new"});
            self.ask(serde_json::json!({"execute": "blockdev-add", "arguments": add}))?;
            self.job(
                "image",
                serde_json::json!({
                    "driver": "qcow2", "file": "new", "size": base.disk_bytes(),
                    "backing-file": base.path(), "backing-fmt": "vpc"
                }),
            )?;
            times.push(began.elapsed().as_secs_f64() * 1e6);
            self.ask(serde_json::json!({"execute": "blockdev-del", "arguments": {"node-name": "new"}}))?;
            std::fs::remove_file(&path)?;
        }
        Ok(median(&times))
    }
}
