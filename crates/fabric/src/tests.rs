//! The core, driven by hand: hosts that do at once what their goal state says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use mayfly_model::{
    AccessRule, DeploymentKey, Digest, Endpoint, EndpointProtocol, HostFacts, HostName, HostReport, Image, Incarnation,
    Instance, InstanceKey, InstanceState, InstanceStatus, Ipv6Prefix, LeaseTimings, Observed, Readiness, Resources,
    RoleConfiguration, RoleDefinition, RoleKind, ServiceConfiguration, ServiceDefinition, Slot, Time, Traffic, Transit,
    UpgradeMode, Version, VmGoal, VmId, VmReport, VmSize,
};

use crate::address::AddressRange;
use crate::check::{check, check_quiet};
use crate::{Change, Command, Config, Core, HealingPolicy, Input, Overcommit, Record, Rejected, goal};

mod changes;
mod doubles;

struct Fabric {
    core: Core,
    now: Time,
    acknowledged: BTreeMap<HostName, u64>,
    dead: Vec<HostName>,
    /// What hosts see of guests other than that they are ready.
    sick: BTreeMap<InstanceKey, Observed>,
    cpu: u64,
    /// The VMs that each host has.
    has: BTreeMap<HostName, BTreeSet<VmId>>,
    committed: BTreeMap<String, Record>,
}

fn config() -> Config {
    let range = |a, b, c, d, prefix| AddressRange { network: Ipv4Addr::new(a, b, c, d), prefix };
    Config {
        zone: "mayfly.test".to_owned(),
        dips: range(10, 80, 0, 0, 16),
        vips: range(10, 78, 0, 0, 24),
        ipv6: None,
        timings: LeaseTimings::default(),
        overcommit: Overcommit::default(),
        healing: HealingPolicy::default(),
    }
}

fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

fn production(service: &str) -> DeploymentKey {
    DeploymentKey { service: name(service), slot: Slot::Production }
}

fn role(role: &str, size: VmSize) -> RoleDefinition {
    let endpoint = Endpoint::Input {
        name: "http".to_owned(),
        protocol: EndpointProtocol::Tcp,
        port: 80,
        local_port: 8080,
        probe: None,
        ignore_role_instance_status: false,
        distribution: mayfly_model::Distribution::Connection,
    };
    RoleDefinition {
        name: name(role),
        kind: RoleKind::VirtualMachine,
        size,
        settings: vec![],
        endpoints: vec![endpoint],
        local_storage: vec![],
        certificates: vec![],
        imports: vec![],
    }
}

fn report(host: &HostName, sequence: u64, lease_ack: u64, applied: Incarnation, vms: Vec<VmReport>) -> HostReport {
    let number = host.as_str().trim_start_matches("host-").parse::<u8>().unwrap();
    HostReport {
        host: host.clone(),
        facts: HostFacts {
            fault_domain: format!("fd-{number}"),
            address: Ipv4Addr::new(10, 77, 0, 10 + number),
            capacity: Resources { cpu_milli: 4000, memory_mib: 8192 },
            labels: BTreeMap::new(),
            features: BTreeSet::from(["ipv6".to_owned()]),
            images: BTreeSet::new(),
            transit: Transit::default(),
            tunnel_key: None,
        },
        boot_id: 1,
        sequence,
        lease_ack,
        applied,
        vms,
        incidents: Vec::new(),

        counters: Default::default(),
    }
}

/// A version of these roles, with these settings.
fn version(roles: &[(&str, u32, VmSize)], settings: &[(&str, &str)]) -> Version {
    let definition = ServiceDefinition {
        name: "Shop".to_owned(),
        update_domain_count: 5,
        probes: vec![],
        roles: roles.iter().map(|(name, _, size)| role(name, *size)).collect(),
        traffic_rules: vec![],
    };
    let settings: Vec<_> = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let configured = roles.iter().map(|(role, instances, _)| RoleConfiguration {
        name: name(role),
        instances: *instances,
        image: Some(name("hello")),
        settings: settings.clone(),
        certificates: vec![],
    });
    let configuration = ServiceConfiguration {
        service_name: "Shop".to_owned(),
        roles: configured.collect(),
        endpoint_acls: vec![],
        reserved_address: None,
    };
    Version { definition, configuration }
}

impl Fabric {
    /// A fabric with `hosts` hosts, each in a fault domain of its own, an image `hello` and a service `shop`.
    fn new(hosts: usize) -> Fabric {
        let (core, changes) = Core::start([], 1, config(), Time(1000));
        let mut fabric = Fabric {
            core,
            now: Time(1000),
            acknowledged: BTreeMap::new(),
            dead: vec![],
            sick: BTreeMap::new(),
            cpu: 0,
            has: BTreeMap::new(),
            committed: BTreeMap::new(),
        };
        fabric.commit(changes);
        fabric.acknowledged = (1..=hosts).map(|number| (name(&format!("host-{number}")), 0)).collect();
        fabric.run(1000);
        let digest = Digest::new("0".repeat(64)).unwrap();
        let image =
            Image { name: name("hello"), digest, data_bytes: 1024, vhd_id: [0; 16], disk_bytes: 512, created: Time(0) };
        fabric.command(Command::CommitImage(image)).unwrap();
        fabric.command(Command::CreateService(name("shop"))).unwrap();
        fabric
    }

    fn commit(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Put(record) => {
                    assert_eq!(Record::decode(&record.encode().unwrap()).unwrap(), record);
                    assert_eq!(Record::decode(&serde_json::to_vec(&record).unwrap()).unwrap(), record);
                    self.committed.insert(record.key(), record);
                }
                Change::Delete(id) => drop(self.committed.remove(&id.to_string())),
            }
        }
        assert_eq!(check(self.core.state()), []);
        let reloaded = crate::State::load(self.committed.values().cloned());
        assert!(reloaded == *self.core.state(), "the changes make up the whole state");
    }

    fn step(&mut self, input: Input) -> Result<u64, Rejected> {
        // Never the same twice, as in two steps at one time two VMs would have the same name.
        let drawn = (self.now.0 * 7919) ^ (self.core.state().meta().revision.0 << 32);
        let outcome = self.core.step(self.now, drawn, input)?;
        self.commit(outcome.changes);
        Ok(outcome.grant.map_or(0, |grant| grant.number))
    }

    fn command(&mut self, command: Command) -> Result<(), Rejected> {
        self.step(Input::Command(command)).map(drop)
    }

    fn observed(&self, vm: &VmGoal) -> Observed {
        match self.sick.get(&vm.instance) {
            _ if !vm.on => Observed::Off,
            Some(observed) => observed.clone(),
            None => Observed::Running(Readiness::Ready),
        }
    }

    fn report(&mut self, host: &HostName) {
        let goal = goal::goal_state(&self.core, host);
        let has = self.has.remove(host).unwrap_or_default();
        let made = goal.vms.iter().filter(|vm| !goal.restored || has.contains(&vm.vm));
        self.has.insert(host.clone(), made.clone().map(|vm| vm.vm).collect());
        let vms = made.map(|vm| VmReport {
            vm: vm.vm,
            reboots: vm.reboots,
            restarts: 0,
            observed: self.observed(vm),
            disk_bytes: 0,
            image_bytes: 0,
            cpu_milli: self.cpu,
            traffic: Traffic { sent: self.now.0, received: 1 },
            steps: Vec::new(),
        });
        let report = report(host, self.now.0, self.acknowledged[host], goal.incarnation, vms.collect());
        let grant = self.step(Input::Report(report)).unwrap();
        self.acknowledged.insert(host.clone(), grant);
    }

    /// Lets time pass, with all live hosts reporting each 500 ms.
    fn run(&mut self, millis: u64) {
        for _ in 0..millis / 100 {
            self.now = self.now.plus(100);
            self.step(Input::Tick).unwrap();
            if self.now.0.is_multiple_of(500) {
                let hosts: Vec<_> =
                    self.acknowledged.keys().filter(|host| !self.dead.contains(host)).cloned().collect();
                for host in hosts {
                    self.report(&host);
                }
            }
        }
    }

    fn deploy(&mut self, roles: &[(&str, u32, VmSize)]) -> Result<(), Rejected> {
        self.command(Command::Deploy { key: production("shop"), version: version(roles, &[]) })
    }

    fn scale(&mut self, role: &str, count: u32) -> Result<(), Rejected> {
        self.command(Command::Scale { key: production("shop"), counts: BTreeMap::from([(name(role), count)]) })
    }

    fn instance(&self, text: &str) -> Instance {
        Instance::clone(&self.core.state().instances()[&name::<InstanceKey>(text)])
    }
    fn hosts_of(&self, role: &str) -> Vec<String> {
        let members = self.core.state().instances().values().filter(|one| one.key.role.as_str() == role);
        members.map(|one| one.wanted_vm().map_or("none".to_owned(), |vm| vm.host.to_string())).collect()
    }
}

#[test]
fn instances_are_spread_over_fault_domains() {
    let mut fabric = Fabric::new(3);
    fabric.deploy(&[("web", 2, VmSize::Small), ("db", 3, VmSize::ExtraSmall)]).unwrap();
    fabric.run(1000);
    assert_eq!(check_quiet(fabric.core.state()), []);
    let hosts = fabric.hosts_of("web");
    assert_ne!(hosts[0], hosts[1]);
    assert!(fabric.core.state().instances().values().all(|one| one.is_ready()));
}

#[test]
fn what_does_not_fit_is_refused_whole() {
    let mut fabric = Fabric::new(3);
    let before = fabric.core.state().clone();
    let error = fabric.deploy(&[("web", 13, VmSize::Small)]).unwrap_err();
    assert!(error.to_string().contains("only 12 of 13"), "{error}");
    assert_eq!(*fabric.core.state(), before);
    fabric.deploy(&[("web", 2, VmSize::Small)]).unwrap();
    fabric.run(1000);
    let before = fabric.core.state().clone();
    fabric.scale("web", 13).unwrap_err();
    let error = fabric.scale("wev", 1).unwrap_err();
    assert!(error.to_string().contains("its roles are `web`"), "{error}");
    assert_eq!(*fabric.core.state(), before);
}

#[test]
fn two_instances_need_two_fault_domains() {
    let mut fabric = Fabric::new(1);
    let error = fabric.deploy(&[("web", 2, VmSize::Small)]).unwrap_err();
    assert!(error.to_string().contains("two fault domains"), "{error}");
    fabric.deploy(&[("web", 1, VmSize::Small)]).unwrap();
}

#[test]
fn a_lost_host_is_healed_within_seconds_and_comes_back_clean() {
    let mut fabric = Fabric::new(3);
    fabric.deploy(&[("web", 2, VmSize::Small)]).unwrap();
    fabric.run(5000);
    let before = fabric.instance("shop/web_IN_0");
    let victim = before.vm().unwrap().host.clone();
    fabric.dead.push(victim.clone());
    fabric.run(3000);
    assert_eq!(fabric.instance("shop/web_IN_0").vm(), before.vm(), "the lease is not over yet");
    fabric.run(1500);
    let after = fabric.instance("shop/web_IN_0");
    let (old, new) = (before.vm().unwrap(), after.vm().unwrap());
    assert!(old.host != new.host && old.computer_name != new.computer_name && old.dip != new.dip && old.id != new.id);
    assert_eq!(after.generation, before.generation + 1);
    fabric.dead.clear();
    fabric.run(1000);
    assert_eq!(goal::vms(&fabric.core, &victim), [], "nothing of before is wanted there");
    fabric.scale("web", 3).unwrap();
    assert!(fabric.hosts_of("web").contains(&victim.to_string()), "it takes new work");
}

#[test]
fn without_a_majority_nothing_is_placed_anew() {
    let mut fabric = Fabric::new(3);
    fabric.deploy(&[("web", 3, VmSize::Small)]).unwrap();
    fabric.run(5000);
    let before = fabric.hosts_of("web");
    fabric.dead.extend([name("host-1"), name("host-2")]);
    fabric.run(60_000);
    assert_eq!(fabric.hosts_of("web"), before);
    fabric.dead.remove(0);
    fabric.run(10_000);
    assert!(!fabric.hosts_of("web").contains(&"host-2".to_owned()), "a majority is back: host-2 is given up");
}

#[test]
fn a_controller_that_starts_waits_a_whole_lease() {
    let mut fabric = Fabric::new(3);
    fabric.deploy(&[("web", 3, VmSize::Small)]).unwrap();
    fabric.run(5000);
    fabric.dead.push(name("host-1"));
    fabric.run(3000);
    let (core, changes) = Core::start(fabric.committed.values().cloned().collect::<Vec<_>>(), 2, config(), fabric.now);
    fabric.core = core;
    fabric.commit(changes);
    fabric.run(3000);
    assert!(fabric.hosts_of("web").contains(&"host-1".to_owned()));
    fabric.run(3000);
    assert!(!fabric.hosts_of("web").contains(&"host-1".to_owned()));
}

#[test]
fn a_reimage_waits_for_the_old_vm_to_go() {
    let mut fabric = Fabric::new(2);
    fabric.deploy(&[("web", 2, VmSize::Small)]).unwrap();
    fabric.run(5000);
    let before = fabric.instance("shop/web_IN_1");
    fabric.command(Command::Reimage(name("shop/web_IN_1"))).unwrap();
    let retiring = fabric.instance("shop/web_IN_1");
    assert!(matches!(retiring.state, InstanceState::Retiring { .. }));
    fabric.command(Command::Reimage(name("shop/web_IN_1"))).unwrap_err();
    fabric.run(1000);
    let after = fabric.instance("shop/web_IN_1");
    assert_eq!(after.vm().unwrap().host, before.vm().unwrap().host, "the same host, as it has room");
    assert_ne!(after.vm().unwrap().computer_name, before.vm().unwrap().computer_name);
    assert_eq!(after.generation, before.generation + 1);
}

#[test]
fn local_disks_stay_with_a_host_and_go_with_it() {
    let mut fabric = Fabric::new(2);
    fabric.deploy(&[("web", 1, VmSize::Small)]).unwrap();
    fabric.run(1000);
    let instance = |fabric: &Fabric| fabric.instance("shop/web_IN_0");
    let first = instance(&fabric);
    assert_eq!(first.local_generation, 1);
    let host = first.vm().unwrap().host.clone();
    fabric.command(Command::Reimage(name("shop/web_IN_0"))).unwrap();
    let kept = goal::goal_state(&fabric.core, &host).kept;
    assert_eq!(kept.len(), 1, "its host keeps them for the next VM");
    fabric.run(1000);
    assert_eq!((instance(&fabric).generation, instance(&fabric).local_generation), (2, 1));
    assert!(goal::goal_state(&fabric.core, &host).kept.is_empty());
    fabric.command(Command::Rebuild(name("shop/web_IN_0"))).unwrap();
    assert!(goal::goal_state(&fabric.core, &host).kept.is_empty(), "nothing of them is wanted");
    fabric.run(1000);
    assert_eq!((instance(&fabric).generation, instance(&fabric).local_generation), (3, 3));
    fabric.command(Command::Drain { host: host.clone(), reboot: false }).unwrap();
    fabric.run(5000);
    assert_ne!(instance(&fabric).vm().unwrap().host, host);
    assert_eq!(instance(&fabric).local_generation, instance(&fabric).generation, "another host has others");
}

#[test]
fn a_stopped_instance_keeps_its_place_and_is_left_alone() {
    let mut fabric = Fabric::new(2);
    fabric.deploy(&[("web", 2, VmSize::Small)]).unwrap();
    fabric.run(5000);
    let before = fabric.instance("shop/web_IN_0");
    fabric.command(Command::StopInstance(name("shop/web_IN_0"))).unwrap();
    fabric.command(Command::StopInstance(name("shop/web_IN_0"))).unwrap_err();
    fabric.run(5000);
    let stopped = fabric.instance("shop/web_IN_0");
    assert_eq!(stopped.state.status(), InstanceStatus::StoppedVM);
    assert_eq!(stopped.vm().unwrap().id, before.vm().unwrap().id, "its disks and its place are kept");
    fabric.run(700_000);
    assert_eq!(fabric.instance("shop/web_IN_0").vm().unwrap().id, before.vm().unwrap().id, "however long");
    // The other one has to serve in its stead, so it is not taken down by plan.
    let other = fabric.instance("shop/web_IN_1").vm().unwrap().host.clone();
    fabric.command(Command::Drain { host: other.clone(), reboot: false }).unwrap();
    fabric.run(5000);
    assert_eq!(fabric.instance("shop/web_IN_1").vm().unwrap().host, other);
    fabric.command(Command::StartInstance(name("shop/web_IN_0"))).unwrap();
    fabric.run(5000);
    assert_eq!(fabric.instance("shop/web_IN_0").state.status(), InstanceStatus::ReadyRole);
}

#[test]
fn a_host_that_has_not_applied_the_goal_keeps_its_vm() {
    let mut fabric = Fabric::new(2);
    fabric.deploy(&[("web", 1, VmSize::Small)]).unwrap();
    fabric.run(1000);
    let host = fabric.instance("shop/web_IN_0").vm().unwrap().host.clone();
    fabric.command(Command::Reimage(name("shop/web_IN_0"))).unwrap();
    let report = report(&host, u64::MAX, 0, Incarnation(1), vec![]);
    fabric.step(Input::Report(report)).unwrap();
    let state = fabric.instance("shop/web_IN_0").state;
    assert!(matches!(state, InstanceState::Retiring { .. }), "an old report proves nothing: {state:?}");
}

#[test]
fn a_reboot_keeps_everything_but_the_count() {
    let mut fabric = Fabric::new(2);
    fabric.deploy(&[("web", 2, VmSize::Small)]).unwrap();
    fabric.run(1000);
    let before = fabric.instance("shop/web_IN_0");
    fabric.command(Command::Reboot(name("shop/web_IN_0"))).unwrap();
    assert_eq!(fabric.instance("shop/web_IN_0").state.status(), InstanceStatus::RestartingRole);
    fabric.run(1000);
    let after = fabric.instance("shop/web_IN_0");
    assert!(after.is_ready());
    assert_eq!(after.vm().unwrap().reboots, 1);
    assert_eq!((after.generation, after.vm().unwrap().id), (before.generation, before.vm().unwrap().id));
}

#[test]
fn scaling_in_and_deleting_leave_nothing() {
    let mut fabric = Fabric::new(3);
    fabric.deploy(&[("web", 6, VmSize::ExtraSmall)]).unwrap();
    fabric.run(1000);
    fabric.scale("web", 4).unwrap();
    fabric.scale("web", 5).unwrap();
    fabric.run(2000);
    assert_eq!(fabric.hosts_of("web").len(), 5);
    assert_eq!(check_quiet(fabric.core.state()), []);
    fabric.command(Command::DeleteImage(name("hello"))).unwrap_err();
    fabric.command(Command::DeleteService(name("shop"))).unwrap();
    fabric.run(1000);
    assert!(fabric.core.state().instances().is_empty() && fabric.core.state().services().is_empty());
    fabric.command(Command::DeleteImage(name("hello"))).unwrap();
    fabric.command(Command::CreateService(name("shop"))).unwrap();
}

#[test]
fn a_slot_keeps_its_public_address() {
    let mut fabric = Fabric::new(3);
    let deploy = |service: &str| Command::Deploy {
        key: production(service),
        version: version(&[("web", 2, VmSize::ExtraSmall)], &[]),
    };
    let vip = |fabric: &Fabric, service: &str| fabric.core.state().deployments()[&production(service)].vip;
    fabric.deploy(&[("web", 2, VmSize::ExtraSmall)]).unwrap();
    fabric.run(1000);
    let before = vip(&fabric, "shop");
    fabric.command(Command::DeleteDeployment(production("shop"))).unwrap();
    fabric.run(2000);
    assert!(fabric.core.state().deployments().is_empty());
    fabric.command(Command::CreateService(name("bank"))).unwrap();
    fabric.command(deploy("bank")).unwrap();
    assert_ne!(vip(&fabric, "bank"), before, "addresses are handed out in turn");
    fabric.run(1000);
    fabric.command(deploy("shop")).unwrap();
    assert_eq!(vip(&fabric, "shop"), before);
}

#[test]
fn a_role_is_spread_again_when_a_fault_domain_is_back() {
    let mut fabric = Fabric::new(3);
    fabric.deploy(&[("web", 6, VmSize::ExtraSmall)]).unwrap();
    fabric.run(5000);
    fabric.dead.push(name("host-3"));
    fabric.run(5000);
    assert!(!fabric.hosts_of("web").contains(&"host-3".to_owned()));
    fabric.dead.clear();
    fabric.run(60_000);
    assert_eq!(check_quiet(fabric.core.state()), []);
}

#[test]
fn who_asks_for_ipv6_has_the_addresses_that_go_with_the_others() {
    let asking = version(&[("web", 1, VmSize::Small), ("db", 1, VmSize::Small)], &[("Mayfly.IPv6", "on")]);
    let mut fabric = Fabric::new(2);
    let deploy = |version: &Version| Command::Deploy { key: production("shop"), version: version.clone() };
    let error = fabric.command(deploy(&asking)).unwrap_err();
    assert!(error.to_string().contains("this location has none"), "{error}");
    let prefix: Ipv6Prefix = "fd6d:6179:666c:79::/96".parse().unwrap();
    let (core, changes) =
        Core::start(fabric.committed.values().cloned(), 2, Config { ipv6: Some(prefix), ..config() }, fabric.now);
    fabric.core = core;
    fabric.commit(changes);
    fabric.command(deploy(&asking)).unwrap();
    fabric.run(1000);
    let network = goal::network(&fabric.core);
    assert!(network.ipv6 == Some(prefix) && network.vips[0].ipv6 && network.routes.iter().all(|route| route.ipv6));
    for (name, four) in [
        ("shop.mayfly.test", network.vips[0].vip),
        ("web-in-0.shop.internal.mayfly.test", fabric.instance("shop/web_IN_0").vm().unwrap().dip),
    ] {
        let found: Vec<_> = network.dns.iter().filter(|record| record.name == name).map(|one| one.address).collect();
        assert_eq!(found, [four.into(), IpAddr::V6(prefix.embed(four))], "{name}");
    }
    let host = fabric.instance("shop/db_IN_0").vm().unwrap().host.clone();
    let wanted = goal::vms(&fabric.core, &host);
    assert!(wanted.iter().all(|vm| vm.ipv6 == Some(prefix.embed(vm.dip))));
    // Whoever asks no more has none.
    let plain = version(&[("web", 1, VmSize::Small), ("db", 1, VmSize::Small)], &[]);
    let mode = UpgradeMode::Simultaneous;
    fabric.command(Command::Upgrade { key: production("shop"), version: plain, mode }).unwrap();
    fabric.run(20_000);
    let network = goal::network(&fabric.core);
    assert!(!network.vips[0].ipv6 && network.routes.iter().all(|route| !route.ipv6));
    assert!(network.dns.iter().all(|record| record.address.is_ipv4()));
}

#[test]
fn names_lead_to_the_addresses_of_today() {
    let mut fabric = Fabric::new(2);
    fabric.deploy(&[("web", 1, VmSize::Small)]).unwrap();
    let instance = fabric.instance("shop/web_IN_0");
    let vm = instance.vm().unwrap();
    let records = crate::names::addresses(&fabric.core);
    let find = |name: &str| records.iter().find(|record| record.name == name).map(|record| record.address);
    assert_eq!(find("shop.mayfly.test"), Some(Ipv4Addr::new(10, 78, 0, 2).into()));
    assert_eq!(find("web-in-0.shop.internal.mayfly.test"), Some(vm.dip.into()));
    assert_eq!(find(&format!("{}.shop.internal.mayfly.test", vm.computer_name)), Some(vm.dip.into()));
    assert_eq!(records.len(), 3);
    let network = goal::network(&fabric.core);
    assert_eq!(network.vips[0].endpoints[0].backends[0].dip, vm.dip);
    assert_eq!(network.vips[0].owners.len(), 2);
}

#[test]
fn a_host_is_never_recorded_without_its_number() {
    let fabric = Fabric::new(3);
    let mut numbers: Vec<u32> = fabric.core.state().hosts().values().map(|host| host.number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2, 3]);
}

#[test]
fn access_controls_of_earlier_records_are_read_and_those_of_both_versions_written() {
    /// What stood in records before there was IPv6.
    #[derive(serde::Serialize)]
    struct Earlier {
        permit: bool,
        network: Ipv4Addr,
        prefix: u8,
    }
    let earlier = Earlier { permit: true, network: Ipv4Addr::new(10, 1, 0, 0), prefix: 16 };
    let read = |bytes: &[u8]| rmp_serde::from_slice::<AccessRule>(bytes).unwrap();
    let rule = read(&rmp_serde::to_vec_named(&earlier).unwrap());
    assert_eq!(rule.subnet().to_string(), "10.1.0.0/16");
    assert_eq!(serde_json::from_value::<AccessRule>(serde_json::to_value(&earlier).unwrap()).unwrap(), rule);
    let newer = AccessRule { network: "2001:db8::".parse().unwrap(), prefix: 32, ..rule };
    assert_eq!(read(&rmp_serde::to_vec_named(&newer).unwrap()), newer);
    assert_eq!(serde_json::from_str::<AccessRule>(&serde_json::to_string(&newer).unwrap()).unwrap(), newer);
}
