//! Where the dev fabric keeps what, and what it remembers of itself.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use mayfly_controller::StoreConfig;
use mayfly_model::{Ipv6Prefix, Transit};
use mayfly_store::EtcdConfig;
use nix::fcntl::{Flock, FlockArg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The controller's port.
const PORT: u16 = 7070;
/// The port at which a dev fabric's controllers answer DNS.
const DNS_PORT: u16 = 5300;

/// The folders and files of a dev fabric.
#[derive(Clone, Debug)]
pub struct Layout {
    state: PathBuf,
}

/// What a dev fabric remembers of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fabric {
    /// Tells dev fabrics on one machine apart, in names and addresses.
    pub number: u8,
    /// What users show to the controller.
    pub user_token: String,
    /// The hosts' names.
    pub hosts: Vec<String>,
    /// How many controllers there are.
    #[serde(default = "one")]
    pub controllers: u8,
    /// Whether the records are in etcd.
    #[serde(default)]
    pub etcd: bool,
    /// How hosts carry packets to each other's guests.
    #[serde(default)]
    pub transit: Transit,
}

fn one() -> u8 {
    1
}

/// Members of the dev fabric's etcd.
pub const ETCD_MEMBERS: u8 = 3;

impl Fabric {
    /// The bridge that plays the data centre.
    pub fn bridge(&self) -> String {
        format!("mayfly{}", self.number)
    }

    /// The near end of a host's cable.
    pub fn leg(&self, index: usize) -> String {
        format!("mf{}h{}", self.number, index + 1)
    }

    /// The machine's own address in the data centre.
    pub fn machine(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.number, 1)
    }

    /// A host's address.
    pub fn host(&self, index: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.number, 11 + index as u8)
    }

    /// The network of VIPs; the machine has its first address.
    pub fn vips(&self) -> (Ipv4Addr, u8) {
        (Ipv4Addr::new(10, 78, self.number, 0), 24)
    }

    /// What IPv6 addresses begin with, where the machine has IPv6.
    pub fn ipv6() -> Option<Ipv6Prefix> {
        let prefix = "fd6d:6179:666c:79::/96".parse().ok();
        prefix.filter(|_| mayfly_net::has_ipv6())
    }

    /// Where a controller of the fabric of that number listens for users.
    pub fn users_address(number: u8, index: u8) -> SocketAddr {
        SocketAddr::from(([127, 77, number, 1 + index], PORT))
    }

    /// The first number from `first` on that no fabric has, and its users' address.
    pub fn take_number(first: u8, has_bridge: impl Fn(&u8) -> bool) -> anyhow::Result<(u8, TcpListener)> {
        let mut free = (first..=250).filter(|number| !has_bridge(number));
        let lowest = free.next().context("250 dev fabrics run on this machine already")?;
        let taken = match Fabric::listen_for_users(lowest) {
            Ok(listener) => return Ok((lowest, listener)),
            Err(taken) => taken,
        };
        // An ordinary user's fabric has no bridge that could be seen here.
        free.find_map(|number| Some((number, Fabric::listen_for_users(number).ok()?))).ok_or(taken)
    }

    /// Takes the address at which users find the fabric of that number.
    pub fn listen_for_users(number: u8) -> anyhow::Result<TcpListener> {
        let address = Fabric::users_address(number, 0);
        TcpListener::bind(address).with_context(|| {
            format!("{address} is in use by another program; `ss -ltnp` shows which, stop that one first")
        })
    }

    /// Where a controller listens: for users on the loopback, for hosts in the data centre.
    pub fn controller(&self, index: u8) -> [SocketAddr; 2] {
        [Fabric::users_address(self.number, index), SocketAddr::from((self.machine(), PORT + u16::from(index)))]
    }

    /// Where a controller answers DNS. Port 53 may belong to the machine's own resolver, on all its addresses.
    pub fn names(&self, index: u8) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::new(127, 77, self.number, 1 + index), DNS_PORT)
    }

    /// A controller's name on the command line.
    pub fn controller_name(&self, index: u8) -> String {
        if self.controllers == 1 { "controller".to_owned() } else { format!("controller-{}", index + 1) }
    }

    /// The controllers' URLs for users, separated by commas.
    pub fn controller_url(&self) -> String {
        self.urls("http", 0)
    }

    /// The controllers' URLs for hosts, separated by commas.
    pub fn host_url(&self) -> String {
        self.urls("https", 1)
    }

    fn urls(&self, scheme: &str, side: usize) -> String {
        let urls = (0..self.controllers).map(|index| format!("{scheme}://{}", self.controller(index)[side]));
        urls.collect::<Vec<_>>().join(",")
    }

    /// A member of etcd: where clients find it, and where the other members do.
    pub fn etcd(&self, member: u8) -> [SocketAddr; 2] {
        [2379, 2380].map(|port| SocketAddr::from(([127, 77, self.number, 100 + member], port)))
    }

    /// The store's settings for the controllers.
    pub fn store(&self) -> StoreConfig {
        if !self.etcd {
            return StoreConfig::Embedded;
        }
        StoreConfig::Etcd(self.etcd_config())
    }

    /// How etcd is spoken to.
    pub fn etcd_config(&self) -> EtcdConfig {
        let endpoints = (0..ETCD_MEMBERS).map(|member| format!("http://{}", self.etcd(member)[0])).collect();
        EtcdConfig { endpoints, prefix: "mayfly".to_owned(), ca_file: None, identity_file: None }
    }
}

impl Layout {
    /// The layout under `state`.
    pub fn new(state: &Path) -> Layout {
        Layout { state: std::path::absolute(state).unwrap_or_else(|_| state.to_owned()) }
    }

    /// The whole folder.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// A controller's folder. The first has the images of all.
    pub fn controller(&self, index: u8) -> PathBuf {
        match index {
            0 => self.state.join("controller"),
            index => self.state.join(format!("controller-{}", index + 1)),
        }
    }

    /// The folder of the authority, which all controllers share.
    pub fn authority(&self) -> PathBuf {
        self.state.join("authority")
    }

    /// Etcd's folder.
    pub fn etcd(&self) -> PathBuf {
        self.state.join("etcd")
    }

    /// A host's folder.
    pub fn host(&self, name: &str) -> PathBuf {
        self.state.join("hosts").join(name)
    }

    /// One of the files about the gate, by its ending.
    pub fn gate(&self, what: &str) -> PathBuf {
        self.state.join(format!("gate.{what}"))
    }

    /// What the fabric remembers.
    pub fn fabric(&self) -> PathBuf {
        self.state.join("fabric.json")
    }

    /// What the fabric remembers, if there is one.
    pub fn read_fabric(&self) -> anyhow::Result<Option<Fabric>> {
        read_json(&self.fabric())
    }

    /// Writes down what the fabric has to remember; others must not read its tokens.
    pub fn write_fabric(&self, fabric: &Fabric) -> anyhow::Result<()> {
        write_json(&self.fabric(), fabric)
    }

    /// Removes what a fabric has put into its folder, and the folder if nothing else is in it.
    pub fn purge(&self) -> anyhow::Result<()> {
        for name in ["controller", "controller-2", "controller-3", "authority", "etcd", "hosts"] {
            match fs::remove_dir_all(self.state.join(name)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove {}", self.state.join(name).display()));
                }
                _ => {}
            }
        }
        for name in ["gate.json", "gate.ways", "gate.log", "gate.number", "fabric.json", "lock"] {
            match fs::remove_file(self.state.join(name)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove {}", self.state.join(name).display()));
                }
                _ => {}
            }
        }
        // Other people's files stay, and so does what they lie in.
        let _ = fs::remove_dir(&self.state);
        Ok(())
    }

    /// Keeps other commands from starting or stopping the same fabric meanwhile.
    pub fn lock(&self) -> anyhow::Result<Flock<File>> {
        if !self.state.exists() {
            fs::create_dir_all(&self.state).with_context(|| format!("cannot create {}", self.state.display()))?;
            fs::set_permissions(&self.state, fs::Permissions::from_mode(0o700))?;
        }
        let path = self.state.join("lock");
        let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| {
            anyhow::anyhow!("another `mayfly dev` command is at work on {}; wait for it", self.state.display())
        })
    }
}

/// Reads a file that may be missing.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> anyhow::Result<Option<T>> {
    match fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        Ok(bytes) => {
            Ok(Some(serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))?))
        }
    }
}

/// Replaces a file that only its owner may read.
pub fn write_json(path: &Path, value: &impl Serialize) -> anyhow::Result<()> {
    // Several files with one stem may be written at the same time, by several processes.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!("{name}.new.{}", std::process::id()));
    let bytes = serde_json::to_vec_pretty(value)?;
    let create = || File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary);
    create()
        .and_then(|mut file| std::io::Write::write_all(&mut file, &bytes))
        .and_then(|()| fs::rename(&temporary, path))
        .with_context(|| format!("cannot write {}", path.display()))
}
