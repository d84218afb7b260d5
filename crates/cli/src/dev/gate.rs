//! The dev fabric of somebody who is not root: everything runs in a user and a network namespace of its own, where the same
//! code may do what root may do outside. The gate is the process that keeps those namespaces, and leads connections into them:
//! the controllers' API at its usual address, public addresses at 127.78.N.x.
//!
//! A socket belongs to the network namespace of the thread that made it, wherever it is used. So one thread stays outside and
//! only makes listeners; all else happens inside.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use mayfly_api::Client;
use mayfly_net::Links;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::Signal;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::layout::{Fabric, Layout, read_json, write_json};
use super::process::Process;
use crate::arguments::DevCommand;

/// How long the gate may take to open.
const OPEN: Duration = Duration::from_secs(10);
/// Between two looks at what there is to lead to.
const LOOK: Duration = Duration::from_secs(1);
/// Ports that an ordinary user may not listen on are this many higher outside.
const PRIVILEGED_SHIFT: u16 = 8000;

/// What is led where: addresses outside, by the addresses that they lead to.
pub(super) type Ways = BTreeMap<SocketAddrV4, SocketAddrV4>;

/// Enters the namespaces that the fabric in `layout` lives in, if it is not root's; `up` makes them. Has to come before there
/// is any thread.
pub(super) fn enter(layout: &Layout, command: &DevCommand) -> anyhow::Result<()> {
    let own = nix::unistd::geteuid();
    if let Ok(about) = fs::metadata(layout.fabric())
        && about.uid() != own.as_raw()
    {
        bail!(
            "{} belongs to another user; give this fabric a folder of its own with --state",
            layout.state().display()
        );
    }
    if own.is_root() {
        return Ok(());
    }
    let gate = match (find(layout)?, command) {
        (Some(gate), _) => gate,
        (None, DevCommand::Up { .. }) => {
            // What runs without its gate is in namespaces that nobody can find any more.
            if let Some(fabric) = layout.read_fabric()? {
                super::fabric::end_all(layout, &fabric)?;
            }
            open(layout)?
        }
        // Nothing of it runs; what is left are files.
        (None, _) => return Ok(()),
    };
    let pid = gate.pid();
    for (name, kind) in [("user", CloneFlags::CLONE_NEWUSER), ("net", CloneFlags::CLONE_NEWNET)] {
        let path = format!("/proc/{pid}/ns/{name}");
        let namespace = File::open(&path).with_context(|| format!("cannot open {path}"))?;
        setns(namespace, kind).with_context(|| format!("cannot enter the {name} namespace of the dev fabric"))?;
    }
    Ok(())
}

/// The gate, if it stands.
pub(super) fn find(layout: &Layout) -> anyhow::Result<Option<Process>> {
    Process::read(&layout.gate("json"))
}

/// Ends the gate, and with it, when nothing else is left in them, the namespaces.
pub(super) fn close(layout: &Layout) -> anyhow::Result<()> {
    match find(layout)? {
        Some(gate) => gate.end(Signal::SIGTERM),
        None => Ok(()),
    }
}

/// Closes the gate if it leads nowhere: the fabric was never made, or is gone.
pub(super) fn tidy(layout: &Layout) {
    if layout.fabric().exists() || !layout.gate("json").exists() {
        return;
    }
    // Somebody else may be about to make the fabric.
    let Ok(_lock) = layout.lock() else { return };
    // A command that failed has said why; that is what matters.
    if let Err(error) = close(layout) {
        tracing::warn!(error = format!("{error:#}"), "the gate is still there");
    }
    forget(layout);
}

/// Removes the files about the gate, and the folder if nothing else is in it.
fn forget(layout: &Layout) {
    for what in ["json", "ways", "log", "number"] {
        let _ = fs::remove_file(layout.gate(what));
    }
    let _ = fs::remove_file(layout.state().join("lock"));
    let _ = fs::remove_dir(layout.state());
}

/// What is led where, if the fabric has a gate.
pub(super) fn ways(layout: &Layout) -> Vec<(SocketAddrV4, SocketAddrV4)> {
    let gate = find(layout).ok().flatten();
    let ways = gate.and_then(|_| read_json::<Vec<_>>(&layout.gate("ways")).ok().flatten());
    ways.unwrap_or_default()
}

fn open(layout: &Layout) -> anyhow::Result<Process> {
    // It is given back before `up` takes it for itself; whoever comes in between finds the gate, and enters.
    let _lock = layout.lock()?;
    if let Some(gate) = find(layout)? {
        return Ok(gate);
    }
    let (ready, log) = (layout.gate("ways"), layout.gate("log"));
    let _ = fs::remove_file(&ready);
    let file = File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
    let arguments = ["internal".as_ref(), "dev-gate".as_ref(), layout.state().as_os_str()];
    let gate = Process::start(arguments, file, &layout.gate("json")).context("cannot start the gate")?;
    let deadline = Instant::now() + OPEN;
    while !ready.exists() {
        if !gate.is_alive() || Instant::now() > deadline {
            let words = fs::read_to_string(&log).unwrap_or_default();
            let _ = gate.end(Signal::SIGKILL);
            forget(layout);
            let last = words.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it gave no reason");
            bail!("{}\nor start the dev fabric as root (sudo mayfly dev up)", last.trim_start_matches("error: "));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(gate)
}

/// Takes the address at which users find the fabric of that number: a new fabric gets the first number that is free on this
/// machine, where `up` cannot look any more.
fn take_number(layout: &Layout) -> anyhow::Result<(u8, TcpListener)> {
    if let Some(fabric) = layout.read_fabric()? {
        return Ok((fabric.number, Fabric::listen_for_users(fabric.number)?));
    }
    Fabric::take_number(0, |number| Path::new(&format!("/sys/class/net/mayfly{number}")).exists())
}

/// Keeps the gate, until it is ended.
pub fn keep(state: &Path) -> anyhow::Result<()> {
    let layout = Layout::new(state);
    let (number, users) = take_number(&layout)?;
    become_root()?;
    let (ask, asked) = mpsc::channel::<(SocketAddrV4, mpsc::Sender<std::io::Result<TcpListener>>)>();
    // Made before the network namespace is left.
    std::thread::Builder::new().name("outside".to_owned()).spawn(move || {
        for (address, reply) in asked {
            // Whoever asked has gone.
            let _ = reply.send(TcpListener::bind(address));
        }
    })?;
    unshare(CloneFlags::CLONE_NEWNET)
        .map_err(|error| refused(error, "a network namespace", "user.max_net_namespaces"))?;
    let held = std::cell::Cell::new(Some(users));
    let listen = move |address: SocketAddrV4| -> anyhow::Result<TcpListener> {
        if let Some(users) = held.take() {
            if users.local_addr()? == SocketAddr::V4(address) {
                users.set_nonblocking(true)?;
                return Ok(users);
            }
            held.set(Some(users));
        }
        let (reply, answer) = mpsc::channel();
        ask.send((address, reply)).ok().context("the thread outside has ended")?;
        let listener = answer.recv().context("the thread outside has ended")?;
        let listener = listener.with_context(|| format!("cannot listen on {address}"))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        Links::open()?.up("lo").await?;
        if layout.read_fabric()?.is_none() {
            write_json(&layout.gate("number"), &number)?;
        }
        write_json(&layout.gate("ways"), &Vec::<(SocketAddrV4, SocketAddrV4)>::new())?;
        lead(&layout, listen).await
    })
}

/// Leads connections in, for ever, to what there is at the moment.
async fn lead(layout: &Layout, listen: impl Fn(SocketAddrV4) -> anyhow::Result<TcpListener>) -> anyhow::Result<()> {
    let mut open: BTreeMap<SocketAddrV4, (SocketAddrV4, JoinHandle<()>)> = BTreeMap::new();
    let (mut known, mut complained) = (Ways::new(), BTreeSet::new());
    loop {
        if let Some(fabric) = layout.read_fabric()? {
            let client = Client::new(&fabric.controller_url(), &fabric.user_token);
            let controllers = (0..fabric.controllers).filter_map(|index| v4(fabric.controller(index)[0]));
            let mut wanted: Ways = controllers.map(|address| (address, address)).collect();
            match public(&client, fabric.number).await {
                Some(ways) => known = ways,
                // Without a controller, guests go on, and so do the ways to them.
                None => tracing::debug!("no controller answers"),
            }
            wanted.extend(&known);
            open.retain(|outside, (inside, task)| {
                let stays = wanted.get(outside) == Some(inside);
                if !stays {
                    task.abort();
                }
                stays
            });
            for (outside, inside) in wanted {
                if open.contains_key(&outside) {
                    continue;
                }
                match listen(outside).and_then(|listener| Ok(tokio::net::TcpListener::from_std(listener)?)) {
                    Ok(listener) => drop(open.insert(outside, (inside, tokio::spawn(pass(listener, inside))))),
                    Err(error) if complained.insert(outside) => {
                        tracing::warn!(error = format!("{error:#}"), "a way cannot be opened; is somebody else there?");
                    }
                    Err(_) => {}
                }
            }
            let ways: Vec<(SocketAddrV4, SocketAddrV4)> =
                open.iter().map(|(outside, (inside, _))| (*outside, *inside)).collect();
            write_json(&layout.gate("ways"), &ways)?;
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn v4(address: SocketAddr) -> Option<SocketAddrV4> {
    match address {
        SocketAddr::V4(address) => Some(address),
        SocketAddr::V6(_) => None,
    }
}

/// The ways to public addresses, if a controller says which there are. Only TCP is led in.
async fn public(client: &Client, number: u8) -> Option<Ways> {
    let services = client.service_list().await.ok()?;
    let mut ways = Ways::new();
    for deployment in services.iter().flat_map(|service| &service.deployments) {
        let endpoints = deployment.roles.iter().flat_map(|role| &role.endpoints).filter(|one| one.protocol != "udp");
        for port in endpoints.flat_map(|one| one.port..=one.last_port.unwrap_or(one.port)) {
            let [_, _, _, last] = deployment.vip.octets();
            let address = Ipv4Addr::new(127, 78, number, last);
            let (exact, shifted) = (port >= 1024, port.saturating_add(PRIVILEGED_SHIFT));
            let outside = SocketAddrV4::new(address, if exact { port } else { shifted });
            let inside = SocketAddrV4::new(deployment.vip, port);
            // A port that is the service's own goes before one that is shifted there.
            if exact {
                ways.insert(outside, inside);
            } else {
                ways.entry(outside).or_insert(inside);
            }
        }
    }
    Some(ways)
}

/// Passes connections on.
async fn pass(listener: tokio::net::TcpListener, inside: SocketAddrV4) {
    loop {
        let Ok((mut near, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        tokio::spawn(async move {
            let Ok(mut far) = TcpStream::connect(inside).await else { return };
            // Either side may break off at any time.
            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
        });
    }
}

/// Makes a user namespace in which this user is root.
fn become_root() -> anyhow::Result<()> {
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    unshare(CloneFlags::CLONE_NEWUSER)
        .map_err(|error| refused(error, "a user namespace", "user.max_user_namespaces"))?;
    let map = |file: &str, text: &str| {
        fs::write(format!("/proc/self/{file}"), text).with_context(|| {
            format!(
                "cannot write /proc/self/{file}: this system does not let ordinary users be root in a user namespace \
                 (kernel.apparmor_restrict_unprivileged_userns on Ubuntu)"
            )
        })
    };
    map("setgroups", "deny")?;
    map("uid_map", &format!("0 {uid} 1"))?;
    map("gid_map", &format!("0 {gid} 1"))
}

fn refused(error: Errno, what: &str, limit: &str) -> anyhow::Error {
    let why = match error {
        Errno::ENOSPC => format!("sysctl {limit} allows no more of them"),
        Errno::EPERM => {
            "this system, or the container that this runs in, does not allow it to ordinary users".to_owned()
        }
        Errno::EINVAL => "this kernel has none".to_owned(),
        other => other.desc().to_owned(),
    };
    anyhow::anyhow!("cannot make {what}, which the dev fabric needs without root: {why}")
}
