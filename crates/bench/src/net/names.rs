//! DNS: questions a second beside dnsmasq and Knot, a processor each, and how soon a change is answered.

use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use mayfly_model::DnsRecord;
use mayfly_net::{DnsServer, Zone};
use tokio::sync::watch;

use crate::peers::Running;
use crate::report::{Comparison, Report, median};

const ZONE: &str = "mayfly.test";
const NAMES: u32 = 1000;
const CHANGES: u32 = 1000;
const OURS: u16 = 5391;
const DNSMASQ: u16 = 5392;
const KNOT: u16 = 5393;

/// The processor time that a process has used.
fn processor_seconds(process: &Running) -> anyhow::Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{}/stat", process.id()))?;
    let after = text.rsplit_once(')').context("not a process's line")?.1;
    let ticks: u64 = after.split_whitespace().skip(11).take(2).filter_map(|word| word.parse::<u64>().ok()).sum();
    Ok(ticks as f64 / 100.0)
}

fn name(number: u32) -> String {
    format!("web-in-{number}.shop.internal.{ZONE}")
}

fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 80, 0, 2)) + number)
}

fn records(shift: u32) -> Vec<DnsRecord> {
    let record = |number| DnsRecord { name: name(number), address: address(number + shift).into(), canonical: true };
    (0..NAMES).map(record).collect()
}

/// Serves the names, for the bench in another process.
///
/// # Errors
/// When the port cannot be had.
pub fn serve() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let _zone = start(OURS).await?;
        std::future::pending::<()>().await;
        Ok(())
    })
}

async fn start(port: u16) -> anyhow::Result<watch::Sender<Arc<Zone>>> {
    let zone = watch::Sender::new(Arc::new(Zone::new(ZONE, &records(0), &[])));
    let server = DnsServer { zone: zone.subscribe(), forwarder: None, limit: None, observer: None };
    server.start(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port), 1, Arc::new(AtomicBool::new(false))).await?;
    Ok(zone)
}

pub fn measure(report: &mut Report, work: &Path, pairs: usize, seconds: u32) -> anyhow::Result<()> {
    let questions = work.join("questions");
    std::fs::write(&questions, (0..NAMES).fold(String::new(), |text, number| text + &name(number) + " A\n"))?;
    let own = std::env::current_exe()?;
    let own = own.to_string_lossy().into_owned();
    let ours_process = pinned(&own, &["dns".to_owned()])?;
    let dnsmasq_process = pinned("/usr/sbin/dnsmasq", &dnsmasq(work)?)?;
    let knot_process = pinned("/usr/sbin/knotd", &knot(work)?)?;
    let mut figures = [Vec::new(), Vec::new(), Vec::new()];
    let mut costs = [Vec::new(), Vec::new(), Vec::new()];
    for port in [OURS, DNSMASQ, KNOT] {
        wait_for(port)?;
    }
    for _ in 0..pairs {
        let servers = [(OURS, &ours_process), (DNSMASQ, &dnsmasq_process), (KNOT, &knot_process)];
        for ((port, server), (figures, costs)) in servers.into_iter().zip(figures.iter_mut().zip(&mut costs)) {
            let before = processor_seconds(server)?;
            let rate = rate(port, &questions, seconds)?;
            figures.push(rate);
            costs.push((processor_seconds(server)? - before) * 1e6 / (rate * f64::from(seconds)));
        }
    }
    let [ours, dnsmasq, knot] = &figures;
    let what = "questions a second, 1,000 names, one processor for the server and one for dnsperf";
    let [our_cost, dnsmasq_cost, knot_cost] = &costs;
    let cost = "the server's processor time for a question";
    let peers = [("dnsmasq", dnsmasq, dnsmasq_cost, 2.0), ("Knot", knot, knot_cost, 1.0)];
    for (peer, theirs, their_cost, goal) in peers {
        report.table(&format!("DNS beside {peer}"), peer);
        report.compare(&Comparison { what, ours, peer: theirs, is_time: false, unit: "/s", goal });
        report.compare(&Comparison { what: cost, ours: our_cost, peer: their_cost, is_time: true, unit: "µs", goal });
        report.end();
    }
    changes(report)
}

/// A server on the first processor.
fn pinned(program: &str, arguments: &[String]) -> anyhow::Result<Running> {
    let mut command = Command::new("taskset");
    command.args(["-c", "0", program]).args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(Running::new(command.spawn().with_context(|| format!("cannot run {program}; `cargo xtask bench` installs it"))?))
}

fn dnsmasq(work: &Path) -> anyhow::Result<Vec<String>> {
    let hosts = work.join("hosts");
    std::fs::write(
        &hosts,
        (0..NAMES).fold(String::new(), |text, number| text + &format!("{} {}\n", address(number), name(number))),
    )?;
    let words = format!(
        "-k -u root -p {DNSMASQ} --listen-address=127.0.0.1 --bind-interfaces --no-resolv --no-hosts -C /dev/null \
         --local=/{ZONE}/ --local-ttl=1 --pid-file={} --addn-hosts={}",
        work.join("dnsmasq.pid").display(),
        hosts.display()
    );
    Ok(words.split_whitespace().map(str::to_owned).collect())
}

fn knot(work: &Path) -> anyhow::Result<Vec<String>> {
    let mut zone = format!("$ORIGIN {ZONE}.\n$TTL 1\n@ SOA ns hostmaster 1 60 10 3600 1\n@ NS ns\nns A 127.0.0.1\n");
    for number in 0..NAMES {
        writeln!(zone, "{}. A {}", name(number), address(number))?;
    }
    std::fs::write(work.join("zone"), zone)?;
    let folder = work.display();
    let configuration = format!(
        "server:\n  rundir: {folder}\n  listen: 127.0.0.1@{KNOT}\n  udp-workers: 1\n  tcp-workers: 1\n  background-workers: 1\n\
         database:\n  storage: {folder}/knot\nzone:\n  - domain: {ZONE}\n    storage: {folder}\n    file: zone\n"
    );
    let file = work.join("knot.conf");
    std::fs::write(&file, configuration)?;
    Ok(vec!["-c".to_owned(), file.display().to_string()])
}

/// A question for the address of `name`, by hand: what is measured is the server.
fn question(name: &str) -> Vec<u8> {
    let mut message = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

/// The address in an answer that holds one, which stands at its end.
fn ask(socket: &UdpSocket, port: u16, name: &str) -> Option<Ipv4Addr> {
    socket.send_to(&question(name), (Ipv4Addr::LOCALHOST, port)).ok()?;
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer).ok().filter(|_| buffer[7] == 1)?;
    let last: [u8; 4] = buffer[length - 4..length].try_into().ok()?;
    Some(Ipv4Addr::from(last))
}

fn asker() -> anyhow::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    Ok(socket)
}

fn wait_for(port: u16) -> anyhow::Result<()> {
    let socket = asker()?;
    let deadline = Instant::now() + Duration::from_secs(20);
    while ask(&socket, port, &name(7)) != Some(address(7)) {
        ensure!(Instant::now() < deadline, "nobody answers DNS at port {port}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn rate(port: u16, questions: &Path, seconds: u32) -> anyhow::Result<f64> {
    let mut command = Command::new("taskset");
    command.args(["-c", "1", "dnsperf", "-s", "127.0.0.1", "-c", "8", "-T", "1", "-q", "400"]);
    command.args(["-p", &port.to_string(), "-l", &seconds.to_string(), "-d"]).arg(questions);
    let output = command.output().context("cannot run dnsperf")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find_map(|line| line.trim().strip_prefix("Queries per second:"));
    let Some(rate) = line.and_then(|rate| rate.trim().parse().ok()) else { bail!("dnsperf said: {text}") };
    Ok(rate)
}

/// From the decision that names lead elsewhere to the first answer that says so; and whether any says otherwise later.
fn changes(report: &mut Report) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let zone = runtime.block_on(start(OURS + 3))?;
    let socket = asker()?;
    let (mut times, mut stale) = (Vec::new(), 0);
    for change in 1..=CHANGES {
        let asked = change % NAMES;
        let is_stale = || ask(&socket, OURS + 3, &name(asked)) != Some(address(asked + change));
        let began = Instant::now();
        zone.send_replace(Arc::new(Zone::new(ZONE, &records(change), &[])));
        stale += usize::from(is_stale());
        times.push(began.elapsed().as_secs_f64() * 1000.0);
        stale += (0..3).filter(|_| is_stale()).count();
    }
    let slowest = times.iter().copied().fold(0.0, f64::max);
    report.bound("from a change of 1,000 names to the new answer, median", median(&times), "ms", 50.0);
    report.bound("the slowest of a thousand changes", slowest, "ms", 50.0);
    report.bound("answers of before, among 4,000 after a thousand changes", stale as f64, "", 0.0);
    Ok(())
}
