//! An etcd cluster for tests: three real members from the Debian package, on ports of loopback that were free.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// The program.
pub const PROGRAM: &str = "/usr/bin/etcd";
const PATIENCE: Duration = Duration::from_secs(30);

/// A cluster. Dropped, its members are killed.
pub struct Cluster {
    folder: PathBuf,
    /// Client and peer ports.
    ports: Vec<(u16, u16)>,
    /// Files for TLS between clients and members: authority, certificate, key.
    tls: Option<(PathBuf, PathBuf, PathBuf)>,
    members: Vec<Option<Child>>,
}

impl Cluster {
    /// Starts `size` members that keep their data in `folder`, and waits until they have a leader. With `tls`, clients
    /// need https and a certificate of that authority.
    ///
    /// # Errors
    /// When a member cannot be started or does not come up.
    pub fn start(folder: &Path, size: usize, tls: Option<(PathBuf, PathBuf, PathBuf)>) -> anyhow::Result<Cluster> {
        let free = || Ok::<u16, std::io::Error>(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port());
        let ports = (0..size).map(|_| Ok((free()?, free()?))).collect::<Result<Vec<_>, std::io::Error>>()?;
        let members = (0..size).map(|_| None).collect();
        let mut cluster = Cluster { folder: folder.to_owned(), ports, tls, members };
        for member in 0..size {
            cluster.revive(member)?;
        }
        cluster.wait()?;
        Ok(cluster)
    }

    /// Where clients find the members.
    pub fn endpoints(&self) -> Vec<String> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        self.ports.iter().map(|(client, _)| format!("{scheme}://127.0.0.1:{client}")).collect()
    }

    /// Kills a member.
    pub fn kill(&mut self, member: usize) {
        if let Some(mut child) = self.members[member].take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts a member again.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn revive(&mut self, member: usize) -> anyhow::Result<()> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let (client, peer) = self.ports[member];
        let (client, peer) = (format!("{scheme}://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        let peers: Vec<String> =
            self.ports.iter().enumerate().map(|(one, (_, peer))| format!("m{one}=http://127.0.0.1:{peer}")).collect();
        std::fs::create_dir_all(&self.folder)?;
        let log = File::create(self.folder.join(format!("m{member}.log")))?;
        let mut command = Command::new(PROGRAM);
        command
            .args(["--name", &format!("m{member}"), "--initial-cluster-state", "new"])
            .arg("--data-dir")
            .arg(self.folder.join(format!("m{member}")))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &peers.join(",")]);
        if let Some((authority, certificate, key)) = &self.tls {
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(authority);
            command.arg("--cert-file").arg(certificate).arg("--key-file").arg(key);
        }
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        self.members[member] = Some(child.with_context(|| format!("cannot start {PROGRAM}"))?);
        Ok(())
    }

    /// Waits until all members take clients.
    fn wait(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        for (member, _) in self.ports.iter().enumerate() {
            let log = self.folder.join(format!("m{member}.log"));
            while !std::fs::read_to_string(&log).is_ok_and(|text| text.contains("ready to serve client requests")) {
                if Instant::now() > deadline {
                    bail!("etcd member {member} does not come up; its log is {}", log.display());
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in 0..self.members.len() {
            self.kill(member);
        }
    }
}
