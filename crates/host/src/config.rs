//! What a host agent is started with, as a JSON file.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use mayfly_model::{HostName, LeaseTimings, Resources, Subnet, Transit};
use mayfly_net::address::{GATEWAY, METADATA, WIRE_SERVER};
use mayfly_qemu::Accelerator;
use serde::{Deserialize, Serialize};

/// A host's configuration.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostConfig {
    /// The host's name.
    pub name: HostName,
    /// Its fault domain.
    pub fault_domain: String,
    /// Its address in the data centre's network.
    pub address: Ipv4Addr,
    /// Bits of that network's part.
    pub prefix: u8,
    /// The way to addresses outside that network, if there is one.
    pub gateway: Option<Ipv4Addr>,
    /// Whether guests may reach what lies beyond the gateway.
    pub guest_egress: bool,
    /// Networks that guests do not reach all the same: of controllers, of other machines that are nobody's business. Hosts' IPv4
    /// addresses and the host's own networks are closed to them anyway.
    #[serde(default)]
    pub closed_networks: Vec<Subnet>,
    /// The hosts' own IPv6 network, which guests must not reach; only where it is named may they leave the fabric over IPv6.
    #[serde(default)]
    pub underlay6: Option<(Ipv6Addr, u8)>,
    /// Name servers that know what is outside the zone; those of `/etc/resolv.conf` unless this says otherwise. Nobody is
    /// asked where guests may not leave the fabric.
    #[serde(default)]
    pub dns_forwarders: Option<Vec<SocketAddr>>,
    /// How packets get to other hosts' guests; the same on all hosts.
    #[serde(default)]
    pub transit: Transit,
    /// Whether this host, where it has a public address, leaves it to the hosts of its backends to answer clients. A network that
    /// drops packets that do not come from their sender's own address needs `false`.
    #[serde(default = "on")]
    pub direct_return: bool,
    /// Whether guests send and receive only as fast as the table of sizes says.
    #[serde(default = "on")]
    pub limit_rates: bool,
    /// What it may carry.
    pub capacity: Resources,
    /// What roles may ask for, such as `disk` = `ssd`.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What it can do beyond what it finds out itself (`kvm`).
    #[serde(default)]
    pub features: BTreeSet<String>,
    /// Where the controllers are for hosts (`https://…`), separated by commas.
    pub controller: String,
    /// The token with which the host joins; it is used once, and need not be there any more afterwards.
    #[serde(default)]
    pub join: Option<String>,
    /// Where images, disks and ledgers are kept.
    pub folder: PathBuf,
    /// How guests' instructions are executed.
    pub accelerator: Accelerator,
    /// The location's name, as guests see it.
    pub location: String,
    /// Bytes of free disk below which no new VM is made.
    pub reserve_bytes: u64,
    /// Bytes a second at which image data is fetched that no guest has asked for yet.
    #[serde(default = "background_rate")]
    pub background_rate: u64,
    /// Most bytes of base images that are kept when nobody uses them.
    #[serde(default = "image_cache_bytes")]
    pub image_cache_bytes: u64,
    /// How the host is rebooted when the controller asks for it.
    #[serde(default)]
    pub reboot: RebootBy,
    /// What becomes of a guest that writes when the host's disk is full.
    #[serde(default)]
    pub disk_full: DiskFull,
    /// The leases' times; the controller has the same.
    #[serde(default)]
    pub timings: LeaseTimings,
}

/// What becomes of a guest that writes when the host's disk is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskFull {
    /// It is paused, and goes on when there is room.
    #[default]
    Pause,
    /// Its write fails, as on a full disk.
    Report,
}

/// How a host is rebooted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RebootBy {
    /// By the kernel, once everything is on disk.
    #[default]
    Kernel,
    /// By the process that keeps the agent running: the agent ends with [`REBOOT_STATUS`](crate::REBOOT_STATUS).
    Supervisor,
}

fn on() -> bool {
    true
}

fn background_rate() -> u64 {
    16 << 20
}

fn image_cache_bytes() -> u64 {
    64 << 30
}

impl HostConfig {
    /// Who knows names outside the zone, if guests may ask.
    pub(crate) fn name_servers(&self) -> Option<Vec<SocketAddr>> {
        let servers = match &self.dns_forwarders {
            Some(servers) => servers.clone(),
            None => of_resolver(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default()),
        };
        Some(servers).filter(|servers| self.guest_egress && !servers.is_empty())
    }

    /// The hosts' own IPv6 network, as `ADDRESS/PREFIX`, if guests may leave the fabric.
    pub(crate) fn underlay6(&self) -> Option<String> {
        let (address, prefix) = self.underlay6.filter(|_| self.guest_egress)?;
        Some(format!("{address}/{prefix}"))
    }

    /// The hosts' own network, as `ADDRESS/PREFIX`.
    pub(crate) fn underlay(&self) -> String {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
        format!("{}/{}", Ipv4Addr::from(u32::from(self.address) & mask), self.prefix)
    }
}

/// The name servers in a file of the form of `resolv.conf`.
fn of_resolver(text: &str) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    let addresses = servers.filter_map(|server| server.trim().parse::<IpAddr>().ok());
    // On a host that is itself a guest of the original platform, its name server's address is now this host's own.
    let others = addresses.filter(|address| ![WIRE_SERVER, METADATA, GATEWAY].map(IpAddr::V4).contains(address));
    others.map(|server| SocketAddr::new(server, 53)).collect()
}

/// The disk server's control socket.
pub(crate) fn disk_control(folder: &Path) -> PathBuf {
    folder.join("disk.sock")
}
