//! A whole fabric with real guests: a backend dies, and the host that has the public address.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use mayfly_xtask::fabric::{DevFabric, wait_until};
use mayfly_xtask::{image, workspace};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::report::Report;

const NAMES: &str = "xmlns=\"http://schemas.microsoft.com/ServiceHosting/2008/10/";
/// Between two connections of the client.
const PACE: Duration = Duration::from_millis(5);

pub fn measure(report: &mut Report, work: &Path, mayfly: &Path) -> anyhow::Result<()> {
    let image = image::build(&workspace())?;
    let fabric = DevFabric::new(mayfly, &work.join("state"));
    fabric.run(&["dev", "up"])?;
    fabric.run(&["image", "push", &image.to_string_lossy(), "--name", "hello"])?;
    deploy(&fabric, work)?;
    let vip = fabric.vip("bench")?;
    let door: SocketAddr = format!("{vip}:80").parse()?;
    report.say("### A fabric with real guests");

    let victim = fabric.instance("bench", "web_IN_2")?;
    let vm = victim["vm"].as_str().context("no VM")?.to_owned();
    let guest = fabric.processes(&format!("-name {vm}")).into_iter().next().context("the guest has no process")?;
    let client = Client::start(door);
    std::thread::sleep(Duration::from_secs(1));
    let killed = Instant::now();
    kill(Pid::from_raw(guest), Signal::SIGKILL)?;
    std::thread::sleep(Duration::from_secs(3));
    let tries = client.finish()?;
    let last = tries
        .iter()
        .filter(|one| !one.good && one.at >= killed)
        .map(|one| (one.at - killed).as_secs_f64())
        .fold(0.0, f64::max);
    let failed = tries.iter().filter(|one| !one.good).count();
    report.say(&format!(
        "- a guest's process is killed: the last connection that was sent to it and failed came {:.0} ms later; {failed} of {} failed",
        last * 1000.0,
        tries.len()
    ));
    wait_until("all are ready again", Duration::from_secs(120), || {
        Ok(fabric.instances("bench")?.iter().all(|one| one["state"] == "ReadyRole"))
    })?;
    std::thread::sleep(Duration::from_secs(2));

    let owner = owner(&fabric, &vip)?;
    let client = Client::start(door);
    std::thread::sleep(Duration::from_secs(1));
    let killed = Instant::now();
    fabric.run(&["dev", "kill", &owner])?;
    std::thread::sleep(Duration::from_secs(5));
    let tries = client.finish()?;
    let good: Vec<Instant> = tries.iter().filter(|one| one.good).map(|one| one.done).collect();
    let gap = good.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).fold(0.0, f64::max);
    ensure!(good.iter().any(|at| *at > killed + Duration::from_secs(3)), "nobody answers at {vip} any more");
    report.bound("the host that has the public address is killed: longest gap seen by a client", gap, "s", 1.5);
    fabric.run(&["dev", "down", "--purge"]).map(drop)
}

fn deploy(fabric: &DevFabric, work: &Path) -> anyhow::Result<()> {
    let (definition, configuration) = (work.join("bench.csdef"), work.join("bench.cscfg"));
    std::fs::write(
        &definition,
        format!(
            "<ServiceDefinition name=\"Bench\" {NAMES}ServiceDefinition\"><LoadBalancerProbes><LoadBalancerProbe name=\"up\" \
             protocol=\"http\" path=\"/\"/></LoadBalancerProbes><VirtualMachineRole name=\"web\" vmsize=\"ExtraSmall\">\
             <Endpoints><InputEndpoint name=\"web\" protocol=\"tcp\" port=\"80\" loadBalancerProbe=\"up\"/></Endpoints></VirtualMachineRole></ServiceDefinition>"
        ),
    )?;
    std::fs::write(
        &configuration,
        format!(
            "<ServiceConfiguration serviceName=\"Bench\" {NAMES}ServiceConfiguration\"><Role name=\"web\"><OsImage href=\"hello\"/>\
             <Instances count=\"3\"/></Role></ServiceConfiguration>"
        ),
    )?;
    fabric.run(&["service", "create", "bench"])?;
    let (definition, configuration) = (definition.to_string_lossy(), configuration.to_string_lossy());
    let files = ["--definition", &definition, "--configuration", &configuration, "--wait", "--timeout", "300s"];
    fabric.run(&[&["service", "deploy", "bench"], &files[..]].concat()).map(drop)
}

/// The host that took the address last.
fn owner(fabric: &DevFabric, vip: &str) -> anyhow::Result<String> {
    let taken = |host: &String| {
        let log = std::fs::read_to_string(fabric.host_folder(host).join("host-agent.log")).unwrap_or_default();
        let mut lines = log.lines().filter(|line| line.contains("public addresses taken") && line.contains(vip));
        lines.next_back().map(|line| line.split(' ').next().unwrap_or_default().to_owned())
    };
    let hosts = (1..=3).map(|number| format!("host-{number}"));
    let last = hosts.filter_map(|host| Some((taken(&host)?, host))).max();
    last.map(|(_, host)| host).context("nobody has the public address")
}

/// One connection.
struct Try {
    at: Instant,
    done: Instant,
    good: bool,
}

/// A client that connects again and again, each time anew, and waits for an answer for a second at the most.
struct Client {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<Vec<Try>>>,
}

impl Client {
    fn start(door: SocketAddr) -> Client {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..8).map(|_| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                let mut tries = Vec::new();
                while !stop.load(Relaxed) {
                    let at = Instant::now();
                    let good = TcpStream::connect_timeout(&door, Duration::from_secs(1)).is_ok();
                    tries.push(Try { at, done: Instant::now(), good });
                    std::thread::sleep(PACE);
                }
                tries
            })
        });
        Client { threads: threads.collect(), stop }
    }

    fn finish(self) -> anyhow::Result<Vec<Try>> {
        self.stop.store(true, Relaxed);
        let mut all = Vec::new();
        for thread in self.threads {
            all.extend(thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))?);
        }
        all.sort_by_key(|one| one.done);
        Ok(all)
    }
}
