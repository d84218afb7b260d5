//! What can be written on the command line.

mod address;
mod certificate;
mod controller;
mod instance;

use std::path::PathBuf;
use std::time::Duration;

pub use address::AddressCommand;
pub use certificate::CertificateCommand;
use clap::{Args, Parser, Subcommand, ValueEnum};
pub use controller::{ControllerCommand, StorePlace, Target};
pub use instance::InstanceCommand;
use mayfly_model::{HostName, ImageName, InstanceKey, RoleName, Scope, ServiceName, Slot, Transit, UpgradeMode};

/// A cloud fabric for transient virtual machines.
///
/// Upload one read-only base image (VHD), say in a service definition and configuration which roles you have and how
/// many instances, and the fabric keeps that many identical VMs running, spread over fault domains, each with a
/// throw-away differencing disk. A host dies: fresh instances boot elsewhere within seconds.
///
/// Try it on this machine: `mayfly dev up`, then `mayfly image push`, `mayfly service create`, `mayfly service deploy`.
#[derive(Parser)]
#[command(name = "mayfly", version, propagate_version = true)]
pub struct Arguments {
    /// The folder of the dev fabric; its processes, disks and records live there
    #[arg(long, global = true, value_name = "DIR", env = "MAYFLY_STATE", default_value_os_t = default_state())]
    pub state: PathBuf,

    /// How listings are printed
    #[arg(long, global = true, value_name = "FORMAT", default_value = "table")]
    pub output: Output,

    #[command(subcommand)]
    pub command: Command,
}

/// How listings are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    Table,
    /// For programs: the API's own objects
    Json,
}

/// How an update goes from one update domain to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// By itself, as soon as the one before is healthy
    Auto,
    /// When `service walk` says so
    Manual,
    /// All at once: nothing stays up meanwhile
    Simultaneous,
}

impl From<Mode> for UpgradeMode {
    fn from(mode: Mode) -> UpgradeMode {
        match mode {
            Mode::Auto => UpgradeMode::Auto,
            Mode::Manual => UpgradeMode::Manual,
            Mode::Simultaneous => UpgradeMode::Simultaneous,
        }
    }
}

/// Where controllers keep their records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StoreKind {
    /// A file beside the one controller
    Embedded,
    /// Three members of etcd, which several controllers can share
    Etcd,
}

/// How hosts carry packets to each other's guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TransitKind {
    /// In VXLAN
    Vxlan,
    /// As they are
    Routed,
    /// Encrypted: in VXLAN, and that in WireGuard
    Wireguard,
}

impl From<TransitKind> for Transit {
    fn from(kind: TransitKind) -> Transit {
        match kind {
            TransitKind::Vxlan => Transit::Vxlan,
            TransitKind::Routed => Transit::Routed,
            TransitKind::Wireguard => Transit::Wireguard,
        }
    }
}

fn default_state() -> PathBuf {
    if nix::unistd::geteuid().is_root() {
        return PathBuf::from("/var/lib/mayfly/dev");
    }
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("."), PathBuf::from);
    std::env::var_os("XDG_STATE_HOME").map_or_else(|| home.join(".local/state"), PathBuf::from).join("mayfly/dev")
}

#[derive(Subcommand)]
pub enum Command {
    /// A real fabric on this machine: one controller and three hosts in three fault domains
    #[command(subcommand)]
    Dev(DevCommand),
    /// Base images: read-only VHDs that instances boot from
    #[command(subcommand)]
    Image(ImageCommand),
    /// Hosted services and their deployments
    #[command(subcommand)]
    Service(ServiceCommand),
    /// Reserved public addresses, which stay the same whatever becomes of a deployment
    #[command(subcommand)]
    Address(AddressCommand),
    /// Certificates of services, which their guests get with the private keys
    #[command(subcommand)]
    Certificate(CertificateCommand),
    /// Role instances: the VMs
    #[command(subcommand)]
    Instance(InstanceCommand),
    /// The network: what would become of a packet
    #[command(subcommand)]
    Net(NetCommand),
    /// Hosts
    #[command(subcommand)]
    Host(HostCommand),
    /// The fabric's records: back them up, restore them, move them
    #[command(subcommand)]
    Controller(ControllerCommand),
    /// Join tokens: what lets a new host in, once
    #[command(subcommand)]
    Token(TokenCommand),
    /// The breaker: what healing has been stopped for
    #[command(subcommand)]
    Breaker(BreakerCommand),
    /// Events: what the fabric did, and why
    #[command(subcommand)]
    Event(EventCommand),
    /// VHD files: inspect, make, convert, check, merge
    #[command(subcommand)]
    Vhd(VhdCommand),
    /// Processes that the others start
    #[command(subcommand, hide = true)]
    Internal(InternalCommand),
}

#[derive(Subcommand)]
pub enum NetCommand {
    /// Say whether a packet would pass, and which rule decides
    Trace {
        /// Who sends: an instance, such as shop/web_IN_0, or an IPv4 address outside the fabric
        from: String,
        /// Where to: ADDRESS:PORT or NAME:PORT, with /udp at its end for UDP
        to: String,
    },
}

#[derive(Subcommand)]
pub enum DevCommand {
    /// Start the dev fabric, or go on where it was stopped; returns when it is ready
    Up {
        /// Cores that each host offers to instances (overcommitted: they share this machine's)
        #[arg(long, value_name = "CORES", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=1024))]
        host_cores: u64,
        /// Memory that each host offers to instances, in MiB [default: a quarter of this machine's]
        #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(768..=67_108_864))]
        host_memory: Option<u64>,
        /// Controllers, of which one leads and the others stand by [default: 1]
        #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u8).range(1..=3))]
        controllers: Option<u8>,
        /// Where the controllers keep their records [default: embedded with one controller, etcd with several]
        #[arg(long, value_name = "STORE")]
        store: Option<StoreKind>,
        /// How hosts carry packets to each other's guests [default: vxlan]
        #[arg(long, value_name = "TRANSIT")]
        transit: Option<TransitKind>,
    },
    /// Stop the dev fabric and remove all processes, namespaces and devices of it; also after a crash
    Down {
        /// Remove its records, images and disks too
        #[arg(long)]
        purge: bool,
    },
    /// Pull the plug of a host: everything in it dies at once (or kill a controller)
    Kill {
        /// host-1, host-2, host-3 or controller (controller-1, … where there are several)
        name: String,
    },
    /// Start a host (or a controller) that was killed
    Start {
        /// host-1, host-2, host-3 or controller (controller-1, … where there are several)
        name: String,
    },
    /// Show what runs, and where
    Status,
    /// Run a command where the fabric's network is: without root, that is a namespace of its own
    Exec {
        /// The command and its arguments
        #[arg(trailing_var_arg = true, required = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
}

#[derive(Subcommand)]
pub enum ImageCommand {
    /// Upload a fixed or dynamic VHD; it is read-only from then on
    Push {
        /// The VHD file
        file: PathBuf,
        /// The name that configurations refer to, as in <OsImage href="NAME"/>
        #[arg(long)]
        name: ImageName,
    },
    /// Make a new base image of the disk of an instance that is stopped
    Capture {
        /// For example shop/web_IN_0
        instance: InstanceKey,
        /// The name of the new image
        #[arg(long)]
        name: ImageName,
    },
    /// List the images
    List,
    /// Delete an image that nothing uses
    Delete {
        /// Its name
        name: ImageName,
    },
}

#[derive(Args)]
pub struct Wait {
    /// Wait until it is done, showing progress
    #[arg(long)]
    pub wait: bool,
    /// How long to wait, for example 90s, 10m or 1h
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
    pub timeout: Duration,
}

#[derive(Subcommand)]
pub enum ServiceCommand {
    /// Make an empty service
    Create {
        /// Its name; the first label of its DNS name
        name: ServiceName,
    },
    /// List the services
    List,
    /// Show a service: address, names, slots, roles
    Show {
        /// Its name
        name: ServiceName,
    },
    /// Put a deployment into an empty slot
    Deploy {
        /// The service
        name: ServiceName,
        /// The service definition (.csdef)
        #[arg(long, value_name = "FILE")]
        definition: PathBuf,
        /// The service configuration (.cscfg); `@file` in Mayfly.UserData counts from its folder
        #[arg(long, value_name = "FILE")]
        configuration: PathBuf,
        /// production or staging
        #[arg(long, default_value = "production", value_parser = slot)]
        slot: Slot,
        /// Only show what would happen: which instance would stand where, or why there is no room
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Change a deployment in place: definition, configuration, image; one update domain after the other
    Upgrade {
        /// The service
        name: ServiceName,
        /// The new service definition (.csdef)
        #[arg(long, value_name = "FILE")]
        definition: PathBuf,
        /// The new service configuration (.cscfg)
        #[arg(long, value_name = "FILE")]
        configuration: PathBuf,
        /// production or staging
        #[arg(long, default_value = "production", value_parser = slot)]
        slot: Slot,
        /// How it goes from one update domain to the next
        #[arg(long, value_name = "MODE", default_value = "auto")]
        mode: Mode,
        /// Only show what it would begin with
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Let an update that is done by hand go on with the next update domain
    Walk {
        /// The service
        name: ServiceName,
        /// This update domain instead of the lowest that is left
        #[arg(long)]
        domain: Option<u32>,
        /// production or staging
        #[arg(long, default_value = "production", value_parser = slot)]
        slot: Slot,
    },
    /// Take an update back, while some instance is still as before
    Rollback {
        /// The service
        name: ServiceName,
        /// production or staging
        #[arg(long, default_value = "production", value_parser = slot)]
        slot: Slot,
        /// How it goes from one update domain to the next
        #[arg(long, value_name = "MODE", default_value = "auto")]
        mode: Mode,
        #[command(flatten)]
        wait: Wait,
    },
    /// Exchange production and staging: each VIP then leads to what was in the other slot
    Swap {
        /// The service
        name: ServiceName,
    },
    /// Stop a deployment's guests and keep their disks
    Suspend {
        /// The service
        name: ServiceName,
        /// production or staging
        #[arg(long, default_value = "production", value_parser = slot)]
        slot: Slot,
    },
    /// Start the guests of a suspended deployment
    Start {
        /// The service
        name: ServiceName,
        /// production or staging
        #[arg(long, default_value = "production", value_parser = slot)]
        slot: Slot,
        #[command(flatten)]
        wait: Wait,
    },
    /// Say how much a role has to do, for its rules in Mayfly.Autoscale
    Metric {
        /// The service
        name: ServiceName,
        /// The role
        role: RoleName,
        /// The number's name and the number, for example queue=120
        #[arg(value_name = "NAME=NUMBER", value_parser = metric, allow_hyphen_values = true)]
        metric: (String, i64),
        /// production or staging
        #[arg(long, default_value = "production", value_parser = slot)]
        slot: Slot,
    },
    /// Set the number of instances of roles, all at once or not at all
    Scale {
        /// The service
        name: ServiceName,
        /// ROLE=COUNT, for example web=3
        #[arg(required = true, value_name = "ROLE=COUNT", value_parser = role_count)]
        roles: Vec<(String, u32)>,
        /// production or staging
        #[arg(long, default_value = "production", value_parser = slot)]
        slot: Slot,
        /// Only show what would happen
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Show what each service has used, by day, in hours of instances
    Usage,
    /// Delete a service with all its deployments, or one slot
    Delete {
        /// Its name
        name: ServiceName,
        /// Only empty this slot: production or staging
        #[arg(long, value_parser = slot)]
        slot: Option<Slot>,
        #[command(flatten)]
        wait: Wait,
    },
}

#[derive(Subcommand)]
pub enum VhdCommand {
    /// Show what a VHD is, and the chain of parents below it
    Info {
        /// The VHD
        file: PathBuf,
    },
    /// Make an empty VHD; its space is taken as it is written
    Create {
        /// The new file
        file: PathBuf,
        /// Bytes of the disk, for example 40G; a differencing disk has its parent's
        #[arg(long, value_parser = crate::vhd::parse_size, required_unless_present = "parent")]
        size: Option<u64>,
        /// Make a fixed disk instead of a dynamic one
        #[arg(long, conflicts_with = "parent")]
        fixed: bool,
        /// Make a differencing disk over this VHD
        #[arg(long, value_name = "VHD", conflicts_with = "size")]
        parent: Option<PathBuf>,
    },
    /// Convert a disk: VHD (with all its parents), raw, and, where qemu-img is installed, qcow2, VHDX and others
    Convert {
        /// The disk to read
        input: PathBuf,
        /// The new file
        #[arg(value_name = "OUTPUT")]
        target: PathBuf,
        /// What the input is [default: a VHD if it looks like one, else what qemu-img says, else raw]
        #[arg(long, value_name = "FORMAT")]
        from: Option<String>,
        /// What the output becomes: fixed, dynamic, raw, or a format of qemu-img's [default: by the file's name; fixed
        /// for .vhd]
        #[arg(long, value_name = "FORMAT")]
        to: Option<String>,
    },
    /// Look for damage; fails if there is any that loses data
    Check {
        /// The VHD
        file: PathBuf,
        /// Mend what can be mended without guessing
        #[arg(long)]
        repair: bool,
    },
    /// Merge a differencing VHD and all its parents into a new base
    Merge {
        /// The differencing VHD
        child: PathBuf,
        /// The new file
        #[arg(value_name = "OUTPUT")]
        target: PathBuf,
        /// Make it dynamic instead of fixed
        #[arg(long)]
        dynamic: bool,
    },
    /// List which ranges of the disk hold data, and in which file of the chain
    Map {
        /// The VHD
        file: PathBuf,
    },
}

#[derive(Subcommand)]
pub enum HostCommand {
    /// List the hosts
    List,
    /// Move a host's instances away, one update domain of each deployment at a time, and give it no new ones
    Drain {
        /// Its name
        name: HostName,
    },
    /// Give a host instances again that was drained or quarantined
    Undrain {
        /// Its name
        name: HostName,
    },
    /// Drain a host, reboot it when it is empty, and open it again
    Reboot {
        /// Its name
        name: HostName,
    },
    /// Forget a host that is lost and will not come back
    Forget {
        /// Its name
        name: HostName,
    },
}

#[derive(Subcommand)]
pub enum TokenCommand {
    /// Make a join token, and print it: write it under `join` in the new host's configuration
    Create {
        /// The only host that may use it [default: any one host]
        #[arg(long, value_name = "NAME")]
        host: Option<HostName>,
        /// How many minutes it is good for
        #[arg(long, value_name = "MINUTES", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=10_080))]
        minutes: u64,
    },
    /// List the join tokens that have not expired
    List,
    /// Take a join token back; a host that has used it stays
    Delete {
        /// Its id, as `token list` shows it
        id: String,
    },
}

#[derive(Subcommand)]
pub enum BreakerCommand {
    /// Show what healing has been stopped for, and why
    Show,
    /// Let healing go on
    Reset {
        /// fleet, or a service (shop, shop@staging)
        scope: Scope,
    },
}

#[derive(Subcommand)]
pub enum EventCommand {
    /// List events, oldest first
    List {
        /// Go on with new events as they come
        #[arg(long)]
        follow: bool,
    },
}

#[derive(Subcommand)]
pub enum InternalCommand {
    /// The fabric controller
    Controller { config: PathBuf },
    /// Keeps the dev fabric's controller running
    ControllerSupervisor { folder: PathBuf },
    /// Keeps the dev fabric's etcd running
    EtcdSupervisor { folder: PathBuf },
    /// Keeps the namespaces of a dev fabric that is not root's, and leads connections into them
    DevGate { state: PathBuf },
    /// Makes a dev host's namespaces and its first process
    HostBoot { folder: PathBuf },
    /// The first process of a dev host
    HostInit { folder: PathBuf },
    /// The host agent
    HostAgent { config: PathBuf, boot_id: u64 },
    /// The disk server
    DiskServer { folder: PathBuf },
    /// Whether KVM runs a guest here
    ProbeKvm,
}

fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err("write a number and s, m or h, for example 90s".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "write a number and s, m or h, for example 90s".to_owned())?;
    // A year is as good as for ever, and can be added to any point in time.
    Ok(Duration::from_secs(number.saturating_mul(factor).min(365 * 86_400)))
}

fn slot(text: &str) -> Result<Slot, String> {
    [Slot::Production, Slot::Staging]
        .into_iter()
        .find(|slot| slot.as_str() == text)
        .ok_or_else(|| "the slots are production and staging".to_owned())
}

fn role_count(text: &str) -> Result<(String, u32), String> {
    let (role, count) = text.split_once('=').ok_or("write ROLE=COUNT, for example web=3")?;
    let count = count.parse().map_err(|_| format!("`{count}` is not a number of instances"))?;
    Ok((role.to_owned(), count))
}

fn metric(text: &str) -> Result<(String, i64), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=NUMBER, for example queue=120")?;
    Ok((name.to_owned(), value.parse().map_err(|_| format!("`{value}` is not a whole number"))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }

    #[test]
    fn durations_and_counts() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert!(duration("soon").is_err() && duration("").is_err());
        assert_eq!(role_count("web=3"), Ok(("web".to_owned(), 3)));
        assert!(role_count("web").is_err() && role_count("web=-1").is_err());
    }
}
