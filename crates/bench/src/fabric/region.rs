//! A region without machines: the real core over the real store, with hosts that are only records.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use anyhow::Context;
use mayfly_controller::committer::{Committer, Decision};
use mayfly_fabric::address::AddressRange;
use mayfly_fabric::{Change, Command, Config, Core, HealingPolicy, Input, Overcommit, Record, Rejected};
use mayfly_model::{
    DeploymentKey, Digest, Host, HostCondition, Image, LeaseTimings, Resources, RoleConfiguration, RoleDefinition,
    RoleKind, ServiceConfiguration, ServiceDefinition, Slot, Time, Version, VmSize,
};
use mayfly_store::{EmbeddedStore, Store, StoreError};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

type Done = Result<(), Arc<StoreError>>;

/// Hosts in a rack, which is a fault domain.
pub const RACK: usize = 40;
/// What each host has: 64 cores, 256 GB.
pub const CAPACITY: Resources = Resources { cpu_milli: 64_000, memory_mib: 256_000 };

/// The core, its store, and what has been asked of them.
pub struct Region {
    pub core: Core,
    committer: Committer,
    /// What has been handed to the committer, and what of it is durable.
    handed: usize,
    durable: (Sender<Done>, Receiver<Done>),
    pub now: u64,
    rng: ChaCha8Rng,
    services: u32,
    changes: Vec<Change>,
}

pub fn config() -> Config {
    let range = |a, prefix| AddressRange { network: Ipv4Addr::new(a, 0, 0, 0), prefix };
    Config {
        zone: "bench.test".to_owned(),
        dips: range(10, 8),
        vips: range(20, 8),
        ipv6: None,
        timings: LeaseTimings::default(),
        overcommit: Overcommit::default(),
        healing: HealingPolicy::default(),
    }
}

pub fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> anyhow::Result<T> {
    text.parse().map_err(|error| anyhow::anyhow!("{error:?}"))
}

fn host(number: usize) -> anyhow::Result<Host> {
    Ok(Host {
        name: name(&format!("host-{number}"))?,
        number: number as u32 + 1,
        fault_domain: format!("rack-{}", number / RACK),
        address: Ipv4Addr::from(0x0b00_0000 + number as u32),
        capacity: CAPACITY,
        labels: BTreeMap::new(),
        features: BTreeSet::new(),
        transit: None,
        tunnel_key: None,
        images: BTreeSet::new(),
        condition: HostCondition::Up,
        admission: mayfly_model::Admission::Open,
        registered: Time(0),
        boot_id: 1,
        voter: true,
        voted: true,
        last_incident: 0,
    })
}

impl Region {
    /// `hosts` empty hosts, and a store in a new file.
    pub fn new(hosts: usize, file: &Path) -> anyhow::Result<Region> {
        let image = Image {
            name: name("hello")?,
            digest: Digest::of(b"hello"),
            data_bytes: 1024,
            vhd_id: [0; 16],
            disk_bytes: 512,
            created: Time(0),
        };
        let hosts: Vec<Record> =
            (0..hosts).map(|number| Ok(Record::Host(Arc::new(host(number)?)))).collect::<anyhow::Result<_>>()?;
        let records = hosts.into_iter().chain([Record::Image(Arc::new(image))]);
        let records: Vec<Record> = records.collect();
        let mut changes: Vec<Change> = records.iter().cloned().map(Change::Put).collect();
        let mut store = EmbeddedStore::open(file)?;
        let (core, first) = Core::start(records, store.take_over(0)?, config(), Time(1000));
        changes.extend(first);
        let mut region = Region {
            core,
            committer: Committer::start(Box::new(store))?,
            handed: 0,
            durable: channel(),
            now: 1000,
            rng: ChaCha8Rng::seed_from_u64(1),
            services: 0,
            changes,
        };
        region.commit()?;
        region.settle()?;
        Ok(region)
    }

    /// Lets the core step on a command.
    pub fn step(&mut self, input: Input) -> Result<(), Rejected> {
        let outcome = self.core.step(Time(self.now), self.rng.random(), input)?;
        self.changes.extend(outcome.changes);
        Ok(())
    }

    /// Has made durable what has been decided, as the controller's driver does.
    pub fn commit(&mut self) -> anyhow::Result<()> {
        let (changes, epoch) = (std::mem::take(&mut self.changes), self.core.state().meta().epoch);
        let durable = self.durable.0.clone();
        // Who has gone does not want to know.
        let then = Box::new(move |done| drop(durable.send(done)));
        self.handed += 1;
        self.committer.commit(Decision { changes, epoch, then });
        Ok(())
    }

    /// Waits until all that was committed is durable.
    pub fn settle(&mut self) -> anyhow::Result<()> {
        while self.handed > 0 {
            self.durable.1.recv()?.context("the store cannot commit")?;
            self.handed -= 1;
        }
        Ok(())
    }

    /// Deploys a service of one role of 2 to 20 instances, and returns how many.
    pub fn deploy(&mut self) -> Result<u32, Rejected> {
        let sizes = [VmSize::ExtraSmall, VmSize::Small, VmSize::Medium, VmSize::Large, VmSize::ExtraLarge];
        let (count, size) = (self.rng.random_range(2..=20), sizes[self.rng.random_range(0..5)]);
        self.deploy_of(count, size).map(|()| count)
    }

    /// Deploys a service of one role.
    pub fn deploy_of(&mut self, count: u32, size: VmSize) -> Result<(), Rejected> {
        let service = format!("s{}", self.services);
        self.services += 1;
        let invalid = |error: anyhow::Error| Rejected::Conflict(error.to_string());
        let service: mayfly_model::ServiceName = name(&service).map_err(invalid)?;
        let version = version(count, size).map_err(invalid)?;
        self.step(Input::Command(Command::CreateService(service.clone())))?;
        let key = DeploymentKey { service, slot: Slot::Production };
        self.step(Input::Command(Command::Deploy { key, version }))
    }
}

fn version(count: u32, size: VmSize) -> anyhow::Result<Version> {
    let role = RoleDefinition {
        name: name("web")?,
        kind: RoleKind::VirtualMachine,
        size,
        settings: vec![],
        endpoints: vec![],
        local_storage: vec![],
        certificates: vec![],
        imports: vec![],
    };
    let configured = RoleConfiguration {
        name: name("web")?,
        instances: count,
        image: Some(name("hello")?),
        settings: vec![],
        certificates: vec![],
    };
    let definition = ServiceDefinition {
        name: "bench".to_owned(),
        update_domain_count: 5,
        probes: vec![],
        roles: vec![role],
        traffic_rules: vec![],
    };
    let configuration = ServiceConfiguration {
        service_name: "bench".to_owned(),
        roles: vec![configured],
        endpoint_acls: vec![],
        reserved_address: None,
    };
    Ok(Version { definition, configuration })
}
