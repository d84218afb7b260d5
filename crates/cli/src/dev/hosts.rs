//! Dev hosts: namespaces, the first process in them, and the cable to the bridge.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use mayfly_api::{Client, TokenRequest};
use mayfly_host::HostConfig;
use mayfly_host::supervise::{Ended, Keep, keep_running};
use mayfly_model::Resources;
use mayfly_net::Links;
use mayfly_net::address::UNDERLAY_DEVICE;
use mayfly_qemu::Accelerator;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;

use super::controller::end_of;
use super::layout::{Fabric, Layout, read_json, write_json};
use super::process::Process;

/// Where a host finds its folder inside its mount namespace: short, as the paths of Unix sockets have to be.
const INSIDE: &str = "/run/mayfly";
/// How long a new host waits for its cable.
const CABLE: Duration = Duration::from_secs(10);

fn init_file(folder: &Path) -> PathBuf {
    folder.join("init.json")
}

fn config_file(folder: &Path) -> PathBuf {
    folder.join("config.json")
}

/// The host's first process, if it runs.
pub(super) fn find(layout: &Layout, name: &str) -> anyhow::Result<Option<Process>> {
    Process::read(&init_file(&layout.host(name)))
}

/// Gives a host a join token, unless it has joined and is still known.
pub(super) async fn invite(layout: &Layout, fabric: &Fabric, index: usize) -> anyhow::Result<()> {
    let name = &fabric.hosts[index];
    let folder = layout.host(name);
    let (keys, file) = (folder.join("identity.pem"), config_file(&folder));
    let client = Client::new(&fabric.controller_url(), &fabric.user_token);
    if keys.exists() {
        // With no controller to ask, it goes on as who it was.
        let Ok(hosts) = client.host_list().await else { return Ok(()) };
        if hosts.iter().any(|host| host.name == *name) {
            return Ok(());
        }
        fs::remove_file(&keys).with_context(|| format!("cannot remove {}", keys.display()))?;
    }
    let request = TokenRequest { host: Some(name.parse()?), minutes: 60 };
    let join = client.token_create(&request).await.context("cannot get a join token")?.token;
    let config: HostConfig = read_json(&file)?.with_context(|| format!("{} is missing", file.display()))?;
    write_json(&file, &HostConfig { join, ..config })
}

/// Writes a host's configuration.
pub(super) fn configure(
    layout: &Layout,
    fabric: &Fabric,
    index: usize,
    capacity: Resources,
    accelerator: Accelerator,
) -> anyhow::Result<()> {
    let name = &fabric.hosts[index];
    let folder = layout.host(name);
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let config = HostConfig {
        name: name.parse()?,
        fault_domain: format!("fd-{}", index + 1),
        address: fabric.host(index),
        prefix: 24,
        gateway: Some(fabric.machine()),
        guest_egress: false,
        closed_networks: Vec::new(),
        underlay6: None,
        dns_forwarders: None,
        limit_rates: true,
        transit: fabric.transit,
        direct_return: true,
        capacity,
        controller: fabric.host_url(),
        join: None,
        folder: PathBuf::from(INSIDE),
        accelerator,
        location: "dev".to_owned(),
        reserve_bytes: 64 << 20,
        background_rate: 64 << 20,
        image_cache_bytes: 8 << 30,
        labels: Default::default(),
        features: Default::default(),
        reboot: mayfly_host::RebootBy::Supervisor,
        disk_full: mayfly_host::DiskFull::Pause,
        timings: mayfly_model::LeaseTimings::default(),
    };
    write_json(&config_file(&folder), &config)
}

/// Starts a host and plugs it in.
pub(super) async fn start(layout: &Layout, fabric: &Fabric, index: usize, links: &Links) -> anyhow::Result<()> {
    let name = &fabric.hosts[index];
    let folder = layout.host(name);
    let log = File::options().create(true).append(true).open(folder.join("init.log"))?;
    let status = Command::new(std::env::current_exe()?)
        .args(["internal", "host-boot"])
        .arg(&folder)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .status()
        .with_context(|| format!("cannot start {name}"))?;
    if !status.success() {
        let words = fs::read_to_string(folder.join("init.log")).unwrap_or_default();
        bail!("{name} did not start: {}", words.lines().last().unwrap_or("no reason given"));
    }
    let init = find(layout, name)?.with_context(|| format!("{name} ended at once"))?;
    links.create_leg(&fabric.leg(index), &fabric.bridge(), init.pid() as u32).await?;
    Ok(())
}

/// Pulls a host's plug. Everything in its process namespace dies with the first process.
pub(super) fn unplug(layout: &Layout, fabric: &Fabric, index: usize) -> anyhow::Result<()> {
    match find(layout, &fabric.hosts[index])? {
        Some(init) => init.end(Signal::SIGKILL),
        None => Ok(()),
    }
}

/// Makes the namespaces and starts the host's first process in them. Runs in a process of its own.
pub fn boot_host(folder: &Path) -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWPID).context("cannot make namespaces (this needs root)")?;
    let log = File::options().create(true).append(true).open(folder.join("init.log"))?;
    let child = Command::new(std::env::current_exe()?)
        .args(["internal", "host-init"])
        .arg(folder)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()
        .context("cannot start the host's first process")?;
    let process = Process::of(child.id() as i32).context("the host's first process ended at once")?;
    process.write(&init_file(folder))
}

/// The last lines of a host's agent's log, for an error message.
pub(super) fn last_words(layout: &Layout, name: &str) -> String {
    end_of(&layout.host(name).join("host-agent.log"))
}

/// The host's first process: arranges what it sees, waits for its cable, and keeps agent and disk server running.
pub fn init_host(folder: &Path) -> anyhow::Result<()> {
    arrange(folder)?;
    wait_for_cable()?;
    let program = std::env::current_exe()?.to_string_lossy().into_owned();
    let inside = Path::new(INSIDE);
    let keep = |name: &str, arguments: &[String]| Keep {
        name: name.to_owned(),
        command: [&[program.clone(), "internal".to_owned(), name.to_owned()], arguments].concat(),
        log: inside.join(format!("{name}.log")),
        pid_file: inside.join(format!("{name}.pid")),
    };
    let config = config_file(inside).to_string_lossy().into_owned();
    loop {
        let boot_id: u64 = rand::random();
        let agent = keep("host-agent", &[config.clone(), boot_id.to_string()]);
        if keep_running(&[keep("disk-server", &[INSIDE.to_owned()]), agent])? == Ended::Told {
            return Ok(());
        }
        // A reboot: all processes but this first one are gone, and nothing counts that they knew.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(-1), Signal::SIGKILL);
    }
}

fn arrange(folder: &Path) -> anyhow::Result<()> {
    let nothing = None::<&str>;
    // Not in `boot_host`, which still has to see the machine's own /proc.
    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
    // What is mounted in here stays in here.
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)
        .context("cannot make mounts private")?;
    // Found before /run is hidden, as it may lie there.
    let home = File::open(folder).with_context(|| format!("cannot open {}", folder.display()))?;
    let program = std::env::current_exe()?;
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), nothing).context("cannot mount /proc")?;
    // The kernel's own settings of this network namespace.
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::MS_RDONLY, nothing).context("cannot mount /sys")?;
    if folder.starts_with("/run") || program.starts_with("/run") {
        fs::create_dir_all(INSIDE)?;
    } else {
        mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), nothing).context("cannot mount /run")?;
        fs::create_dir_all(INSIDE)?;
    }
    let source = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&home));
    mount(Some(source.as_str()), INSIDE, nothing, MsFlags::MS_BIND, nothing).context("cannot mount the host's folder")
}

fn wait_for_cable() -> anyhow::Result<()> {
    let deadline = Instant::now() + CABLE;
    while nix::net::if_::if_nametoindex(UNDERLAY_DEVICE).is_err() {
        if Instant::now() > deadline {
            bail!("no cable was plugged in within {} s", CABLE.as_secs());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
