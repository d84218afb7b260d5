//! A dev fabric, driven through the binary as a user would.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;

/// A dev fabric of its own. Dropped, it is stopped and purged.
pub struct DevFabric {
    binary: PathBuf,
    state: PathBuf,
    /// Leave it running.
    pub keep: bool,
}

/// What a command of `mayfly` said.
#[derive(Debug)]
pub struct Said {
    /// Whether it succeeded.
    pub success: bool,
    /// Its standard output.
    pub output: String,
    /// Its standard error.
    pub errors: String,
}

impl DevFabric {
    /// A fabric in the folder `state`, driven by `binary`. Nothing is started yet.
    pub fn new(binary: &Path, state: &Path) -> DevFabric {
        DevFabric { binary: binary.to_owned(), state: state.to_owned(), keep: false }
    }

    /// Its folder.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// A command of `mayfly` for this fabric.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--state").arg(&self.state).args(arguments);
        command
    }

    /// Runs a command of `mayfly`, whatever comes of it.
    pub fn try_run(&self, arguments: &[&str]) -> anyhow::Result<Said> {
        let output = self.command(arguments).output().context("cannot run mayfly")?;
        Ok(Said {
            success: output.status.success(),
            output: String::from_utf8_lossy(&output.stdout).into_owned(),
            errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs a command of `mayfly` that has to succeed.
    pub fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let said = self.try_run(arguments)?;
        if said.success {
            return Ok(said.output);
        }
        bail!("mayfly {} failed:\n{}{}", arguments.join(" "), said.output, said.errors)
    }

    /// Runs a listing and reads its JSON.
    pub fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let text = self.run(&[arguments, &["--output", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
    }

    /// The instances of a service.
    pub fn instances(&self, service: &str) -> anyhow::Result<Vec<Value>> {
        Ok(self.json(&["instance", "list", service])?.as_array().cloned().unwrap_or_default())
    }

    /// One instance of a service.
    pub fn instance(&self, service: &str, name: &str) -> anyhow::Result<Value> {
        let found = self.instances(service)?.into_iter().find(|one| one["name"] == name);
        found.with_context(|| format!("there is no {service}/{name}"))
    }

    /// The public address of a service.
    pub fn vip(&self, service: &str) -> anyhow::Result<String> {
        let view = self.json(&["service", "show", service])?;
        view["deployments"][0]["vip"].as_str().map(str::to_owned).context("no public address")
    }

    /// What the controller counts.
    pub fn metrics(&self, token: &str) -> anyhow::Result<String> {
        let status = self.json(&["dev", "status"])?;
        let url = status["controller"]["url"].as_str().context("no controller")?.to_owned();
        let answer = ureq::get(format!("{url}/metrics")).header("authorization", format!("Bearer {token}")).call();
        Ok(answer?.body_mut().read_to_string()?)
    }

    /// A host's folder.
    pub fn host_folder(&self, host: &str) -> PathBuf {
        self.state.join("hosts").join(host)
    }

    /// The process ids of this fabric's processes whose command line holds `part`.
    pub fn processes(&self, part: &str) -> Vec<i32> {
        let own = self.state.to_string_lossy().into_owned();
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let text = String::from_utf8_lossy(&command).replace('\0', " ");
            // Inside a host the folder has another name, so the process is known by what it has for /run/mayfly.
            text.contains(part) && (text.contains(&own) || belongs_to(*pid, &own))
        })
        .collect()
    }

    /// Everything that a stopped fabric must not leave behind, as far as it can be seen from outside.
    pub fn leftovers(&self, bridge: &str) -> Vec<String> {
        let mut left: Vec<String> =
            self.processes("mayfly internal").into_iter().map(|pid| format!("process {pid}")).collect();
        let links = std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
        let leg = bridge.replace("mayfly", "mf") + "h";
        let names = links.map(|entry| entry.file_name().to_string_lossy().into_owned());
        left.extend(names.filter(|name| name == bridge || name.starts_with(&leg)).map(|name| format!("device {name}")));
        if self.state.exists() {
            left.push(format!("folder {}", self.state.display()));
        }
        left
    }

    /// The bridge of this fabric.
    pub fn bridge(&self) -> anyhow::Result<String> {
        let text = std::fs::read_to_string(self.state.join("fabric.json"))?;
        let fabric: Value = serde_json::from_str(&text)?;
        Ok(format!("mayfly{}", fabric["number"]))
    }
}

/// Whether a process sees a folder of this fabric, and of no other, as its host's folder.
fn belongs_to(pid: i32, state: &str) -> bool {
    let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    mounts.lines().any(|line| {
        // Fields of proc(5): id, parent, device, root within the file system, mount point.
        let mut fields = line.split(' ').skip(3);
        let (Some(root), Some("/run/mayfly")) = (fields.next(), fields.next()) else { return false };
        is_host_of(root, state)
    })
}

/// Whether `root` is a host's folder of the fabric in `state`. On a file system of its own, as /tmp may be, the front of
/// the path is missing; what is left has to be long enough to tell fabrics apart.
fn is_host_of(root: &str, state: &str) -> bool {
    let Some((_, host)) = root.rsplit_once("/hosts/") else { return false };
    format!("{state}/hosts/{host}").ends_with(root) && root.matches('/').count() >= 3
}

impl Drop for DevFabric {
    fn drop(&mut self) {
        if self.keep || !self.state.exists() {
            return;
        }
        if std::thread::panicking() {
            self.keep_logs();
        }
        // A test that fails has said why already.
        let _ = self.try_run(&["dev", "down", "--purge"]);
    }
}

impl DevFabric {
    /// Prints what the fabric has written, for whoever has to find out what went wrong.
    fn keep_logs(&self) {
        for pattern in ["controller/controller.log", "hosts/host-1", "hosts/host-2", "hosts/host-3"] {
            let path = self.state.join(pattern);
            let files =
                if path.is_dir() { vec![path.join("host-agent.log"), path.join("init.log")] } else { vec![path] };
            for file in files {
                let text = std::fs::read_to_string(&file).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                eprintln!("--- {} (the last lines)", file.display());
                for line in &lines[lines.len().saturating_sub(30)..] {
                    eprintln!("{line}");
                }
            }
        }
        if let Ok(said) = self.try_run(&["event", "list"]) {
            eprintln!("--- events\n{}", said.output);
        }
    }
}

/// Waits until `look` is true.
pub fn wait_until(what: &str, limit: Duration, mut look: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        if look()? {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("not within {} s: {what}", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_belongs_to_its_own_fabric_only() {
        assert!(is_host_of("/tmp/a/state/hosts/host-1", "/tmp/a/state"));
        assert!(is_host_of("/a/state/hosts/host-1", "/tmp/a/state"), "/tmp is a file system of its own");
        assert!(
            !is_host_of("/tmp/b/state/hosts/host-1", "/tmp/a/state"),
            "another fabric, in a folder of the same name"
        );
        assert!(!is_host_of("/hosts/host-1", "/tmp/a/state"), "that could be anybody's");
    }
}
