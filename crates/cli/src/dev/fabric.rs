//! Starting and stopping the whole dev fabric.

use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use mayfly_api::Client;
use mayfly_controller::backup::{self, Place};
use mayfly_model::ipv6::PREFIX_BITS;
use mayfly_model::{Resources, Transit};
use mayfly_net::{Links, Tunnel, enable_ipv6};
use mayfly_qemu::{Accelerator, PROGRAM};
use serde_json::json;

use super::layout::{Fabric, Layout, read_json};
use super::process::Process;
use super::{controller, etcd, gate, hosts};
use crate::arguments::Output;
use crate::output::{Progress, line};

const HOSTS: usize = 3;
/// How long the fabric may take to be ready.
const READY: Duration = Duration::from_secs(60);

/// What `dev up` is asked for.
pub(super) struct Wanted {
    pub(super) cores: u64,
    pub(super) memory: Option<u64>,
    pub(super) controllers: Option<u8>,
    pub(super) etcd: Option<bool>,
    pub(super) transit: Option<Transit>,
}

impl Wanted {
    /// How many controllers there are to be, and whether etcd keeps their records.
    fn shape(&self) -> anyhow::Result<(u8, bool)> {
        let controllers = self.controllers.unwrap_or(1);
        let etcd = self.etcd.unwrap_or(controllers > 1);
        if controllers > 1 && !etcd {
            bail!("several controllers need a store that they can share: add `--store etcd`");
        }
        Ok((controllers, etcd))
    }

    /// The fabric in the shape that is asked for: as it is, where nothing is said.
    fn reshape(&self, fabric: &Fabric) -> anyhow::Result<Fabric> {
        let wanted = Wanted {
            controllers: self.controllers.or(Some(fabric.controllers)),
            etcd: self.etcd.or(Some(fabric.etcd)),
            ..*self
        };
        let (controllers, etcd) = wanted.shape()?;
        Ok(Fabric { controllers, etcd, transit: self.transit.unwrap_or(fabric.transit), ..fabric.clone() })
    }
}

/// Moves a fabric that is down to another store, or to another number of controllers.
async fn reshape(layout: &Layout, fabric: &Fabric, wanted: &Fabric) -> anyhow::Result<()> {
    if fabric.etcd != wanted.etcd {
        let embedded = Place::File(layout.controller(0).join("records.redb"));
        let members = fabric.etcd_config();
        etcd::stop(layout)?;
        etcd::start(layout, fabric)?;
        let (from, into) =
            if wanted.etcd { (embedded, Place::Etcd(members)) } else { (Place::Etcd(members), embedded) };
        let moved = tokio::task::spawn_blocking(move || backup::migrate(&from, &into, true)).await?;
        // A fabric that was never used has nothing to move.
        let result = moved.context("cannot move the records to the other store");
        etcd::stop(layout)?;
        line(&format!("{} records have moved to the other store", result?))?;
    }
    layout.write_fabric(wanted)
}

/// Brings a fabric that is down into the shape that is asked for; one that runs has to be stopped first.
async fn change_shape(layout: &Layout, wanted: &Wanted) -> anyhow::Result<()> {
    let Some(fabric) = layout.read_fabric()? else { return Ok(()) };
    let other = wanted.reshape(&fabric)?;
    if (other.controllers, other.etcd, other.transit) == (fabric.controllers, fabric.etcd, fabric.transit) {
        return Ok(());
    }
    if controllers_run(layout, &fabric)? || hosts_run(layout, &fabric) {
        let (count, store) = (fabric.controllers, if fabric.etcd { "etcd" } else { "embedded" });
        bail!(
            "this dev fabric runs with {count} controllers, the store {store} and the transit {}; stop it with \
             `mayfly dev down`, and the next `mayfly dev up` takes its records and guests over",
            fabric.transit
        );
    }
    reshape(layout, &fabric, &other).await
}

pub(super) async fn up(layout: &Layout, wanted: Wanted) -> anyhow::Result<()> {
    check_machine()?;
    let _lock = layout.lock()?;
    let known = layout.read_fabric()?.map(|fabric| fabric.transit);
    if wanted.transit.or(known).is_some_and(Transit::encrypts) {
        Tunnel::probe(&Links::open()?).await?;
    }
    change_shape(layout, &wanted).await?;
    if let Some(fabric) = layout.read_fabric()?
        && controllers_run(layout, &fabric)?
    {
        line(&format!("the dev fabric in {} runs already: {}", layout.state().display(), fabric.controller_url()))?;
        let dead: Vec<&String> =
            fabric.hosts.iter().filter(|name| matches!(hosts::find(layout, name), Ok(None))).collect();
        for name in dead {
            line(&format!("{name} is off; `mayfly dev start {name}` starts it"))?;
        }
        return Ok(());
    }
    let links = Links::open()?;
    if let Some(fabric) = layout.read_fabric()?
        && hosts_run(layout, &fabric)
    {
        // Its guests run on without a controller; they are not to be thrown away for it.
        stop_controllers(layout, &fabric)?;
        start_controllers(layout, &fabric)?;
        wait_until_ready(layout, &fabric, 1).await?;
        return line(&format!("the controller is back at {}; the hosts ran on", fabric.controller_url()));
    }
    let fabric = match layout.read_fabric()? {
        Some(fabric) => {
            // What a crash left behind would be in the way.
            clear(layout, &fabric, &links).await?;
            claim(layout, &fabric, &links).await?;
            fabric
        }
        None => {
            let shape = wanted.shape()?;
            if shape.1 {
                etcd::check_installed()?;
            }
            found(layout, &links, shape, wanted.transit.unwrap_or_default()).await?
        }
    };
    let memory_mib = wanted.memory.map_or_else(quarter_of_memory, Ok)?;
    let capacity = Resources { cpu_milli: wanted.cores * 1000, memory_mib };
    let verdict = mayfly_host::probe_accelerator(&std::env::current_exe()?, &["internal", "probe-kvm"]);
    let started = start_all(layout, &fabric, &links, capacity, verdict.accelerator).await;
    if let Err(error) = started {
        // Nothing half done is left; the records stay.
        clear(layout, &fabric, &links).await?;
        return Err(error);
    }
    let how = match verdict.accelerator {
        Accelerator::Kvm => "KVM",
        Accelerator::Tcg => "QEMU's TCG (slower than KVM)",
    };
    let controllers = if fabric.controllers == 1 { "controller" } else { "controllers" };
    line(&format!("ready: {controllers} at {}, {HOSTS} hosts in {HOSTS} fault domains", fabric.controller_url()))?;
    line(&format!("guests run under {how}: {}", verdict.reason))?;
    if gate::find(layout)?.is_some() {
        let number = fabric.number;
        line(&format!(
            "without root, the fabric's network is a namespace of its own: port P of a public address 10.78.{number}.x is led to from \
             127.78.{number}.x, port P, or P + 8000 below 1024; `mayfly dev exec` runs a command inside"
        ))?;
    }
    Ok(())
}

async fn start_all(
    layout: &Layout,
    fabric: &Fabric,
    links: &Links,
    capacity: Resources,
    accelerator: Accelerator,
) -> anyhow::Result<()> {
    for address in (0..fabric.controllers).flat_map(|index| fabric.controller(index)) {
        TcpListener::bind(address).map_err(|error| match error.kind() {
            ErrorKind::AddrInUse => {
                anyhow!("{address} is in use by another program; `ss -ltnp` shows which, stop that one first")
            }
            ErrorKind::AddrNotAvailable => {
                anyhow!("this machine has no {}: its loopback is off (ip link set lo up)", address.ip())
            }
            _ => anyhow!(error).context(format!("cannot listen at {address}")),
        })?;
    }
    start_controllers(layout, fabric)?;
    wait_until_ready(layout, fabric, 0).await?;
    for index in 0..fabric.hosts.len() {
        hosts::configure(layout, fabric, index, capacity, accelerator)?;
        hosts::invite(layout, fabric, index).await?;
        hosts::start(layout, fabric, index, links).await?;
    }
    wait_until_ready(layout, fabric, fabric.hosts.len()).await
}

/// Whether any host runs.
fn hosts_run(layout: &Layout, fabric: &Fabric) -> bool {
    fabric.hosts.iter().any(|name| matches!(hosts::find(layout, name), Ok(Some(_))))
}

/// Whether any controller runs.
fn controllers_run(layout: &Layout, fabric: &Fabric) -> anyhow::Result<bool> {
    for index in 0..fabric.controllers {
        if controller::find(layout, index)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn start_controllers(layout: &Layout, fabric: &Fabric) -> anyhow::Result<()> {
    if fabric.etcd {
        etcd::stop(layout)?;
        etcd::start(layout, fabric)?;
    }
    (0..fabric.controllers).try_for_each(|index| controller::start(layout, fabric, index))
}

fn stop_controllers(layout: &Layout, fabric: &Fabric) -> anyhow::Result<()> {
    (0..fabric.controllers).try_for_each(|index| controller::stop(layout, index))?;
    etcd::stop(layout)
}

fn check_machine() -> anyhow::Result<()> {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(PROGRAM).exists()));
    if !found {
        bail!("`{PROGRAM}` is not installed (Debian: apt install qemu-system-x86)");
    }
    let tun = std::path::Path::new("/dev/net/tun");
    if !tun.exists() {
        bail!("/dev/net/tun is missing, so guests cannot have network cards (modprobe tun)");
    }
    fs::File::options().read(true).write(true).open(tun).context(
        "guests cannot have network cards: /dev/net/tun cannot be opened (most systems let everybody; sudo chmod 666 /dev/net/tun)",
    )?;
    Ok(())
}

/// Founds a new fabric: the first number whose bridge is not there.
async fn found(
    layout: &Layout,
    links: &Links,
    (controllers, etcd): (u8, bool),
    transit: Transit,
) -> anyhow::Result<Fabric> {
    let names = links.names().await?;
    let token = || format!("{:016x}{:016x}", rand::random::<u64>(), rand::random::<u64>());
    // Without root, the namespace is new and all numbers are free in it; the gate knows which is free outside.
    let first =
        read_json::<u8>(&layout.gate("number"))?.filter(|_| gate::find(layout).is_ok_and(|gate| gate.is_some()));
    let has_bridge = |number: &u8| names.contains(&format!("mayfly{number}"));
    let (number, _) = Fabric::take_number(first.unwrap_or(0), has_bridge)?;
    let hosts = (1..=HOSTS).map(|number| format!("host-{number}")).collect();
    let fabric = Fabric { number, user_token: token(), hosts, controllers, etcd, transit };
    // Written first, so that whatever comes of it, `down` knows what to remove.
    layout.write_fabric(&fabric)?;
    claim(layout, &fabric, links).await?;
    Ok(fabric)
}

/// Makes the bridge, with the machine's own addresses on it.
async fn claim(layout: &Layout, fabric: &Fabric, links: &Links) -> anyhow::Result<()> {
    let bridge = fabric.bridge();
    if links.names().await?.contains(&bridge) {
        bail!("the bridge {bridge} of this dev fabric is in use by another one; stop that first, or purge this one");
    }
    links.create_bridge(&bridge, [0x02, 0x6d, 0x66, 0xff, 0x00, fabric.number], &owner(layout)).await?;
    links.add_address(&bridge, fabric.machine(), 24).await?;
    let (vips, prefix) = fabric.vips();
    let first = std::net::Ipv4Addr::from(u32::from(vips) + 1);
    links.add_address(&bridge, first, prefix).await?;
    if let Some(newer) = Fabric::ipv6() {
        enable_ipv6(&bridge)?;
        links.add_address(&bridge, newer.embed(fabric.machine()), PREFIX_BITS + 24).await?;
    }
    links.up(&bridge).await?;
    if let Some(newer) = Fabric::ipv6() {
        // Hosts know the way back to the machine's own address, and to no other.
        links.add_on_link(&bridge, newer.embed(vips), PREFIX_BITS + prefix).await?;
    }
    Ok(())
}

async fn wait_until_ready(layout: &Layout, fabric: &Fabric, wanted: usize) -> anyhow::Result<()> {
    let client = Client::new(&fabric.controller_url(), &fabric.user_token);
    let deadline = Instant::now() + READY;
    let mut progress = Progress::start();
    loop {
        let state = match client.host_list().await {
            Ok(hosts) => {
                let up = hosts.iter().filter(|host| host.state == "Up").count();
                if up >= wanted {
                    progress.finish();
                    return Ok(());
                }
                format!("{up} of {wanted} hosts are up")
            }
            Err(_) => "the controller is starting".to_owned(),
        };
        if Instant::now() > deadline {
            progress.finish();
            let words = controller::last_words(layout);
            let of_host = hosts::last_words(layout, &fabric.hosts[0]);
            let own = if wanted > 0 { format!("\nthose of {}:\n{of_host}", fabric.hosts[0]) } else { String::new() };
            bail!("not ready within {} s: {state}\nthe controller's last words:\n{words}{own}", READY.as_secs());
        }
        progress.show(state);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn quarter_of_memory() -> anyhow::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let total =
        text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    let total: u64 = total.context("/proc/meminfo does not say how much memory there is")?;
    Ok(total / 1024 / 4)
}

pub(super) async fn down(layout: &Layout, purge: bool) -> anyhow::Result<()> {
    if layout.read_fabric()?.is_none() {
        return line(&format!("there is no dev fabric in {}", layout.state().display()));
    }
    {
        let _lock = layout.lock()?;
        if let Some(fabric) = layout.read_fabric()? {
            clear(layout, &fabric, &Links::open()?).await?;
        }
        gate::close(layout)?;
        if purge {
            layout.purge()?;
        }
    }
    line(if purge { "stopped, and nothing is left" } else { "stopped; `mayfly dev up` goes on where it was" })
}

/// Ends all processes and removes all devices of a fabric, whatever state it is in.
async fn clear(layout: &Layout, fabric: &Fabric, links: &Links) -> anyhow::Result<()> {
    // Another fabric may have taken the number while this one was down; its devices are not ours.
    // A bridge without an owner is one that nobody came to finish.
    let ours = links.owner(&fabric.bridge()).await?.is_none_or(|other| other == owner(layout));
    for index in 0..fabric.hosts.len() {
        hosts::unplug(layout, fabric, index)?;
        if ours {
            links.delete(&fabric.leg(index)).await?;
        }
    }
    stop_controllers(layout, fabric)?;
    if ours {
        links.delete(&fabric.bridge()).await?;
    }
    Ok(())
}

/// Ends all processes of a fabric.
pub(super) fn end_all(layout: &Layout, fabric: &Fabric) -> anyhow::Result<()> {
    (0..fabric.hosts.len()).try_for_each(|index| hosts::unplug(layout, fabric, index))?;
    stop_controllers(layout, fabric)
}

/// What a fabric's bridge bears as its alias.
fn owner(layout: &Layout) -> String {
    format!("mayfly dev {}", layout.state().display()).chars().take(255).collect()
}

pub(super) async fn kill(layout: &Layout, name: &str) -> anyhow::Result<()> {
    let fabric = existing(layout)?;
    let _lock = layout.lock()?;
    if let Some(index) = controller_of(&fabric, name) {
        if controller::find(layout, index)?.is_none() {
            bail!("the {name} is off already; `mayfly dev start {name}` starts it");
        }
        controller::kill(layout, index)?;
        return line(&format!("the {name} is dead; guests run on. `mayfly dev start {name}` starts it"));
    }
    let index = index_of(&fabric, name)?;
    if hosts::find(layout, name)?.is_none() {
        running(layout, &fabric).await?;
        bail!("{name} is off already; `mayfly dev start {name}` starts it");
    }
    hosts::unplug(layout, &fabric, index)?;
    // The cable goes with the namespace, a moment later; nobody should have to wait for that.
    Links::open()?.delete(&fabric.leg(index)).await?;
    line(&format!("{name} is dead, with everything in it"))
}

pub(super) async fn start(layout: &Layout, name: &str) -> anyhow::Result<()> {
    let fabric = existing(layout)?;
    let _lock = layout.lock()?;
    running(layout, &fabric).await?;
    if let Some(index) = controller_of(&fabric, name) {
        if controller::find(layout, index)?.is_some() {
            bail!("the {name} runs already");
        }
        controller::stop(layout, index)?;
        controller::start(layout, &fabric, index)?;
        return line(&format!("the {name} is starting"));
    }
    let index = index_of(&fabric, name)?;
    if hosts::find(layout, name)?.is_some() {
        bail!("{name} runs already");
    }
    hosts::invite(layout, &fabric, index).await?;
    hosts::start(layout, &fabric, index, &Links::open()?).await?;
    line(&format!("{name} is starting"))
}

/// An error unless the fabric has been started: without its bridge nothing in it can be.
async fn running(layout: &Layout, fabric: &Fabric) -> anyhow::Result<()> {
    let bridge = Links::open()?.owner(&fabric.bridge()).await?;
    if bridge.as_deref() == Some(&owner(layout)) {
        return Ok(());
    }
    bail!("the dev fabric in {} does not run; start it with `mayfly dev up`", layout.state().display())
}

pub(super) async fn status(layout: &Layout, output: Output) -> anyhow::Result<()> {
    let fabric = existing(layout)?;
    let answers = running(layout, &fabric).await.is_ok()
        && Client::new(&fabric.controller_url(), &fabric.user_token).host_list().await.is_ok();
    let controller = match (controllers_run(layout, &fabric)?, answers) {
        (_, true) => "runs",
        (true, false) => "does not answer",
        (false, false) => "off",
    };
    let mut hosts = Vec::new();
    for (index, name) in fabric.hosts.iter().enumerate() {
        let pid = hosts::find(layout, name)?.map(Process::pid);
        hosts.push(json!({
            "name": name,
            "state": if pid.is_some() { "runs" } else { "off" },
            "address": fabric.host(index),
            "first_process": pid,
        }));
    }
    let (state, url) = (layout.state().display().to_string(), fabric.controller_url());
    if output == Output::Json {
        let ways = gate::ways(layout);
        let view = json!({
            "state": state, "controller": { "state": controller, "url": url }, "hosts": hosts, "ways": ways,
        });
        line(&serde_json::to_string_pretty(&view)?)?;
    } else {
        line(&format!("state:       {state}\ncontroller:  {controller} at {url}"))?;
        for host in &hosts {
            let field = |name: &str| host[name].as_str().unwrap_or_default().to_owned();
            let pid = host["first_process"].as_i64().map_or_else(String::new, |pid| format!(", first process {pid}"));
            line(&format!("{}:      {} at {}{pid}", field("name"), field("state"), field("address")))?;
        }
        for (outside, inside) in gate::ways(layout).into_iter().filter(|(outside, inside)| outside != inside) {
            line(&format!("leads in:    {outside} to {inside}"))?;
        }
    }
    running(layout, &fabric).await
}

fn existing(layout: &Layout) -> anyhow::Result<Fabric> {
    let missing = || format!("there is no dev fabric in {}; start one with `mayfly dev up`", layout.state().display());
    layout.read_fabric()?.with_context(missing)
}

fn index_of(fabric: &Fabric, name: &str) -> anyhow::Result<usize> {
    let index = fabric.hosts.iter().position(|host| host == name);
    let controllers: Vec<String> = (0..fabric.controllers).map(|index| fabric.controller_name(index)).collect();
    let (hosts, controllers) = (fabric.hosts.join(", "), controllers.join(", "));
    index.with_context(|| format!("there is no `{name}`; there are {hosts} and {controllers}"))
}

fn controller_of(fabric: &Fabric, name: &str) -> Option<u8> {
    (0..fabric.controllers).find(|index| fabric.controller_name(*index) == name)
}
