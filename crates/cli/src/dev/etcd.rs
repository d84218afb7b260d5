//! The dev fabric's etcd: three members on the loopback, under a supervisor.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use mayfly_host::supervise::{Keep, keep_running};
use nix::sys::signal::Signal;

use super::layout::{ETCD_MEMBERS, Fabric, Layout, read_json, write_json};
use super::process::Process;

const PROGRAM: &str = "etcd";

fn supervisor_file(folder: &Path) -> PathBuf {
    folder.join("supervisor.json")
}

/// An error where there is no etcd.
pub(super) fn check_installed() -> anyhow::Result<()> {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(PROGRAM).exists()));
    if !found {
        bail!("`{PROGRAM}` is not installed (Debian: apt install etcd-server); or use `--store embedded`");
    }
    Ok(())
}

/// Starts the members. Their data stays where it is.
pub(super) fn start(layout: &Layout, fabric: &Fabric) -> anyhow::Result<()> {
    check_installed()?;
    let folder = layout.etcd();
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let commands: Vec<Vec<String>> = (0..ETCD_MEMBERS).map(|member| command(&folder, fabric, member)).collect();
    write_json(&folder.join("members.json"), &commands)?;
    let log = File::options().create(true).append(true).open(folder.join("supervisor.log"))?;
    let arguments = ["internal".as_ref(), "etcd-supervisor".as_ref(), folder.as_os_str()];
    Process::start(arguments, log, &supervisor_file(&folder)).map(drop).context("cannot start etcd")
}

fn command(folder: &Path, fabric: &Fabric, member: u8) -> Vec<String> {
    let url = |member: u8, side: usize| format!("http://{}", fabric.etcd(member)[side]);
    let cluster: Vec<String> = (0..ETCD_MEMBERS).map(|one| format!("m{one}={}", url(one, 1))).collect();
    let options = [
        ("--name", format!("m{member}")),
        ("--data-dir", folder.join(format!("m{member}")).display().to_string()),
        ("--listen-client-urls", url(member, 0)),
        ("--advertise-client-urls", url(member, 0)),
        ("--listen-peer-urls", url(member, 1)),
        ("--initial-advertise-peer-urls", url(member, 1)),
        ("--initial-cluster", cluster.join(",")),
        ("--auto-compaction-mode", "revision".to_owned()),
        ("--auto-compaction-retention", "5000".to_owned()),
    ];
    let options = options.into_iter().flat_map(|(name, value)| [name.to_owned(), value]);
    std::iter::once(PROGRAM.to_owned()).chain(options).collect()
}

/// Stops the members, whoever started them; also those whose supervisor was killed.
pub(super) fn stop(layout: &Layout) -> anyhow::Result<()> {
    let folder = layout.etcd();
    if let Some(supervisor) = Process::read(&supervisor_file(&folder))? {
        supervisor.end(Signal::SIGTERM)?;
    }
    for member in 0..ETCD_MEMBERS {
        let pid = fs::read_to_string(folder.join(format!("m{member}.pid"))).ok();
        let process = pid.and_then(|text| text.trim().parse().ok()).and_then(Process::of);
        let data = folder.join(format!("m{member}"));
        if let Some(process) = process.filter(|process| process.has_argument(&data)) {
            process.end(Signal::SIGTERM)?;
        }
    }
    Ok(())
}

/// Keeps the members running until this process is told to end.
pub fn supervise(folder: &Path) -> anyhow::Result<()> {
    let commands: Vec<Vec<String>> = read_json(&folder.join("members.json"))?.context("there are no members")?;
    let keep = |(member, command): (usize, Vec<String>)| Keep {
        name: format!("etcd member {member}"),
        command,
        log: folder.join(format!("m{member}.log")),
        pid_file: folder.join(format!("m{member}.pid")),
    };
    let members: Vec<Keep> = commands.into_iter().enumerate().map(keep).collect();
    keep_running(&members).map(drop)
}
