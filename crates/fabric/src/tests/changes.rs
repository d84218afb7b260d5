//! Updates, swaps, suspension, drains, the ladder and the breaker, driven by hand.

use mayfly_model::{DeploymentStatus, EventKind, Scope, ServiceCertificate, Thumbprint, UpgradeMode};

use super::*;
use crate::explain;

const WEB: &[(&str, u32, VmSize)] = &[("web", 4, VmSize::ExtraSmall)];

fn staging(service: &str) -> DeploymentKey {
    DeploymentKey { service: name(service), slot: Slot::Staging }
}

impl Fabric {
    fn running(hosts: usize) -> Fabric {
        let mut fabric = Fabric::new(hosts);
        fabric.deploy(WEB).unwrap();
        fabric.run(5000);
        fabric
    }

    fn upgrade(&mut self, settings: &[(&str, &str)], mode: UpgradeMode) -> Result<(), Rejected> {
        let version = version(WEB, settings);
        self.command(Command::Upgrade { key: production("shop"), version, mode })
    }

    fn deployment(&self) -> mayfly_model::Deployment {
        mayfly_model::Deployment::clone(&self.core.state().deployments()[&production("shop")])
    }

    fn versions(&self) -> Vec<u32> {
        self.core.state().instances().values().map(|one| one.version).collect()
    }

    fn status(&self) -> DeploymentStatus {
        self.deployment().status
    }

    pub(super) fn told(&self, text: &str) -> bool {
        self.core.state().events().values().any(|event| event.message.contains(text))
    }
}

#[test]
fn an_update_walks_one_domain_at_a_time() {
    let mut fabric = Fabric::running(3);
    let before: Vec<_> = fabric.core.state().instances().values().map(|one| one.vm().unwrap().id).collect();
    fabric.upgrade(&[("Mayfly.UserData", "echo 2")], UpgradeMode::Auto).unwrap();
    assert_eq!(fabric.status(), DeploymentStatus::RunningTransitioning);
    fabric.upgrade(&[], UpgradeMode::Auto).unwrap_err();
    fabric.scale("web", 5).unwrap_err();
    for _ in 0..100 {
        fabric.run(100);
        let instances = fabric.core.state().instances().values();
        let down: BTreeSet<u32> = instances.filter(|one| !one.is_ready()).map(|one| one.update_domain).collect();
        assert!(down.len() <= 1, "{down:?}");
    }
    assert_eq!(fabric.versions(), [2, 2, 2, 2]);
    assert_eq!(fabric.status(), DeploymentStatus::Running);
    let after: Vec<_> = fabric.core.state().instances().values().map(|one| one.vm().unwrap().id).collect();
    assert!(before.iter().all(|id| !after.contains(id)), "all VMs are new");
    assert_eq!(check_quiet(fabric.core.state()), []);
}

#[test]
fn changed_settings_reach_running_guests_or_reboot_them() {
    let mut fabric = Fabric::running(3);
    let before = fabric.instance("shop/web_IN_0");
    fabric.upgrade(&[("colour", "red")], UpgradeMode::Auto).unwrap();
    assert_eq!(fabric.versions(), [2, 2, 2, 2], "at once, as nobody goes down");
    assert_eq!(fabric.status(), DeploymentStatus::Running);
    let vm = fabric.instance("shop/web_IN_0");
    assert_eq!(vm.vm(), before.vm());
    let goal = goal::vms(&fabric.core, &vm.vm().unwrap().host);
    assert!(goal.iter().all(|vm| vm.settings["colour"] == "red"));
    fabric.upgrade(&[("colour", "blue"), ("Mayfly.ApplySettings", "reboot")], UpgradeMode::Auto).unwrap();
    fabric.run(10_000);
    let after = fabric.instance("shop/web_IN_0");
    assert_eq!((after.vm().unwrap().id, after.vm().unwrap().reboots), (before.vm().unwrap().id, 1));
}

#[test]
fn by_hand_each_domain_waits_for_its_word() {
    let mut fabric = Fabric::running(3);
    fabric.upgrade(&[("Mayfly.UserData", "echo 2")], UpgradeMode::Manual).unwrap();
    fabric.run(5000);
    assert_eq!(fabric.versions(), [1, 1, 1, 1]);
    fabric.command(Command::Walk { key: production("shop"), domain: Some(2) }).unwrap();
    fabric.run(5000);
    assert_eq!(fabric.versions(), [1, 1, 2, 1]);
    fabric.command(Command::Walk { key: production("shop"), domain: Some(2) }).unwrap_err();
    fabric.command(Command::Rollback { key: production("shop"), mode: UpgradeMode::Auto }).unwrap();
    fabric.run(10_000);
    assert_eq!(fabric.versions(), [1, 1, 1, 1]);
    assert_eq!(fabric.status(), DeploymentStatus::Running);
    fabric.command(Command::Rollback { key: production("shop"), mode: UpgradeMode::Auto }).unwrap_err();
}

#[test]
fn a_version_that_crashes_stops_the_walk_and_is_rolled_back() {
    let mut fabric = Fabric::running(3);
    fabric.sick.insert(name("shop/web_IN_0"), Observed::Failed("no such disk".to_owned()));
    fabric.upgrade(&[("Mayfly.UserData", "crash")], UpgradeMode::Auto).unwrap();
    fabric.run(10_000);
    let stuck = fabric.deployment().upgrade.unwrap().stuck.unwrap();
    assert!(stuck.contains("web_IN_0 is FailedStartingVM"), "{stuck}");
    assert_eq!(fabric.versions(), [2, 1, 1, 1], "the others are as before");
    fabric.sick.clear();
    fabric.command(Command::Rollback { key: production("shop"), mode: UpgradeMode::Auto }).unwrap();
    fabric.run(20_000);
    assert_eq!(fabric.versions(), [1, 1, 1, 1]);
    assert!(fabric.core.state().instances().values().all(|one| one.is_ready()));
}

#[test]
fn what_cannot_change_in_place_is_refused() {
    let mut fabric = Fabric::running(3);
    let mut other = version(WEB, &[]);
    other.definition.update_domain_count = 7;
    let command = Command::Upgrade { key: production("shop"), version: other, mode: UpgradeMode::Auto };
    let before = fabric.core.state().clone();
    let error = fabric.command(command).unwrap_err();
    assert!(error.to_string().contains("update domains cannot be changed"), "{error}");
    assert!(*fabric.core.state() == before);
    let more = version(&[("web", 4, VmSize::ExtraSmall), ("db", 2, VmSize::ExtraSmall)], &[]);
    fabric.command(Command::Upgrade { key: production("shop"), version: more, mode: UpgradeMode::Auto }).unwrap();
    fabric.run(5000);
    assert_eq!(fabric.hosts_of("db").len(), 2, "a role may be added");
    fabric.upgrade(&[], UpgradeMode::Auto).unwrap();
    fabric.run(5000);
    assert_eq!(fabric.hosts_of("db").len(), 0, "or removed");
}

#[test]
fn slots_are_swapped_without_touching_a_vm() {
    let mut fabric = Fabric::running(3);
    let two = version(&[("web", 2, VmSize::ExtraSmall)], &[("colour", "green")]);
    fabric.command(Command::Deploy { key: staging("shop"), version: two }).unwrap();
    fabric.run(3000);
    let (front, back) = (fabric.deployment(), fabric.core.state().deployments()[&staging("shop")].clone());
    let vms = |fabric: &Fabric, key: &DeploymentKey| -> Vec<_> {
        fabric.core.state().instances_of(key).map(|one| one.vm().unwrap().id).collect()
    };
    let (red, green) = (vms(&fabric, &production("shop")), vms(&fabric, &staging("shop")));
    fabric.command(Command::Swap(name("shop"))).unwrap();
    assert_eq!((vms(&fabric, &production("shop")), vms(&fabric, &staging("shop"))), (green, red));
    let now = fabric.deployment();
    assert_eq!((now.id.clone(), now.vip), (back.id.clone(), front.vip), "the address stays with the slot");
    let records = crate::names::addresses(&fabric.core);
    let shop = records.iter().find(|one| one.name == "shop.mayfly.test").unwrap();
    assert_eq!(shop.address, front.vip);
    fabric.run(2000);
    assert_eq!(check_quiet(fabric.core.state()), []);
}

#[test]
fn a_suspended_deployment_keeps_its_disks() {
    let mut fabric = Fabric::running(3);
    let before = fabric.instance("shop/web_IN_1");
    fabric.command(Command::Suspend(production("shop"))).unwrap();
    assert_eq!(fabric.status(), DeploymentStatus::Suspending);
    fabric.run(2000);
    assert_eq!(fabric.status(), DeploymentStatus::Suspended);
    let stopped = fabric.instance("shop/web_IN_1");
    assert_eq!(stopped.state.status(), InstanceStatus::StoppedVM);
    fabric.command(Command::Suspend(production("shop"))).unwrap_err();
    fabric.command(Command::Start(production("shop"))).unwrap();
    fabric.run(2000);
    assert_eq!(fabric.status(), DeploymentStatus::Running);
    let after = fabric.instance("shop/web_IN_1");
    assert!(after.is_ready());
    assert_eq!((after.generation, after.vm().unwrap().id), (before.generation, before.vm().unwrap().id));
}

#[test]
fn a_drained_host_is_emptied_domain_by_domain_and_takes_nothing() {
    let mut fabric = Fabric::running(3);
    fabric.command(Command::Drain { host: name("host-1"), reboot: false }).unwrap();
    for _ in 0..300 {
        fabric.run(100);
        let instances = fabric.core.state().instances().values();
        let down: BTreeSet<u32> = instances.filter(|one| !one.is_ready()).map(|one| one.update_domain).collect();
        assert!(down.len() <= 1, "{down:?}");
    }
    assert!(!fabric.hosts_of("web").contains(&"host-1".to_owned()), "{:?}", fabric.hosts_of("web"));
    fabric.scale("web", 6).unwrap();
    assert!(!fabric.hosts_of("web").contains(&"host-1".to_owned()));
    // With all hosts drained there is nowhere to go, and that is what one is told.
    for host in ["host-2", "host-3"] {
        fabric.command(Command::Drain { host: name(host), reboot: false }).unwrap();
    }
    let told = crate::explain::instance(&fabric.core, &name("shop/web_IN_0"), fabric.now).unwrap();
    let no_way =
        "it cannot move away: no host takes instances: 3 are draining (host-1, host-2, host-3); `mayfly host undrain";
    assert!(told[0].contains(no_way), "{told:?}");
    for host in ["host-1", "host-2", "host-3"] {
        fabric.command(Command::Undrain(name(host))).unwrap();
    }
    fabric.run(60_000);
    assert_eq!(check_quiet(fabric.core.state()), []);
    assert!(fabric.hosts_of("web").contains(&"host-1".to_owned()));
}

#[test]
fn a_sick_instance_climbs_the_ladder_and_the_package_is_blamed_at_its_end() {
    let mut fabric = Fabric::running(4);
    let sick = Observed::Running(Readiness::Silent);
    fabric.sick.insert(name("shop/web_IN_2"), sick);
    let first = fabric.instance("shop/web_IN_2");
    fabric.run(61_500);
    let rebooted = fabric.instance("shop/web_IN_2");
    assert_eq!(rebooted.vm().unwrap().reboots, 1, "{:?}", rebooted);
    fabric.run(200_000);
    assert!(fabric.told("try 2, reimage") && fabric.told("try 3, move"));
    assert_ne!(fabric.instance("shop/web_IN_2").vm().unwrap().host, first.vm().unwrap().host);
    fabric.run(3_000_000);
    let trips = &fabric.core.state().breaker().trips;
    let why = &trips.values().next().expect("the package is blamed").why;
    assert!(why.contains("web_IN_2 never became ready on host-"), "{why}");
    let tries = fabric.instance("shop/web_IN_2").health.unwrap().tries;
    fabric.run(1_000_000);
    assert_eq!(fabric.instance("shop/web_IN_2").health.unwrap().tries, tries, "nothing more is tried");
    fabric.sick.clear();
    fabric.command(Command::ResetBreaker("shop".parse().unwrap())).unwrap();
    fabric.run(2000);
    assert!(fabric.instance("shop/web_IN_2").is_ready());
}

#[test]
fn an_image_that_ends_its_hosts_is_stopped_where_two_hosts_take_turns() {
    let mut fabric = Fabric::new(2);
    fabric.sick.insert(name("shop/web_IN_0"), Observed::Starting);
    fabric.deploy(&[("web", 1, VmSize::Small)]).unwrap();
    fabric.run(1000);
    let mut ended = 0;
    while let Some(vm) = fabric.instance("shop/web_IN_0").vm() {
        // The one before is back.
        fabric.dead = vec![vm.host.clone()];
        ended += 1;
        fabric.run(6000);
        assert!(ended <= 3, "healing goes on and on");
    }
    let why = &fabric.core.state().breaker().trips[&"shop".parse().unwrap()].why;
    assert_eq!((ended, why.as_str()), (3, "web_IN_0 was lost with its host 3 times, one after the other"));
}

#[test]
fn hosts_that_are_switched_off_in_turn_are_nobodys_fault() {
    let mut fabric = Fabric::new(3);
    fabric.deploy(&[("web", 1, VmSize::Small)]).unwrap();
    fabric.run(1000);
    for _ in 0..6 {
        fabric.dead = vec![fabric.instance("shop/web_IN_0").vm().expect("healing goes on").host.clone()];
        fabric.run(20_000);
        assert!(fabric.instance("shop/web_IN_0").is_ready());
    }
}

#[test]
fn a_pattern_of_lost_hosts_stops_healing() {
    let mut fabric = Fabric::running(12);
    // Five of twelve may be lost within ten minutes, the sixth may not.
    for _ in 0..5 {
        assert!(fabric.core.state().breaker().trips.is_empty());
        let idle = fabric
            .acknowledged
            .keys()
            .find(|host| !fabric.dead.contains(host) && !fabric.hosts_of("web").contains(&host.to_string()));
        fabric.dead.push(idle.unwrap().clone());
        fabric.run(6000);
    }
    let victim = fabric.instance("shop/web_IN_0").vm().unwrap().host.clone();
    fabric.dead.push(victim.clone());
    fabric.run(6000);
    assert!(fabric.core.state().breaker().trips.contains_key(&Scope::Fleet));
    let waiting = fabric.instance("shop/web_IN_0");
    let why = waiting.state.detail().unwrap_or_default();
    assert!(why.contains("mayfly breaker reset fleet"), "{why}");
    fabric.command(Command::ResetBreaker(Scope::Fleet)).unwrap();
    fabric.run(1000);
    assert!(fabric.instance("shop/web_IN_0").vm().is_some());
}

#[test]
fn a_plan_changes_nothing_and_a_repeated_request_is_carried_out_once() {
    let mut fabric = Fabric::running(3);
    let before = fabric.core.state().clone();
    let counts = BTreeMap::from([(name("web"), 6)]);
    let plan = Input::Plan(Command::Scale { key: production("shop"), counts });
    let outcome = fabric.core.step(fabric.now, 1, plan).unwrap();
    assert!(*fabric.core.state() == before);
    let placed = outcome
        .changes
        .iter()
        .filter(|change| matches!(change, Change::Put(Record::Instance(one)) if one.vm().is_some()));
    assert_eq!(placed.count(), 2);
    // A plan says why.
    let reasons = outcome.changes.iter().filter_map(|change| match change {
        Change::Put(Record::Event(event)) if event.kind == EventKind::Placed => Some(event.message.clone()),
        _ => None,
    });
    assert_eq!(
        reasons.collect::<Vec<_>>(),
        [
            "fd-2 is one of 2 fault domains with the fewest of `web`, 1; host-2 is as good a host as any of 2",
            "fd-3 has the fewest of `web`, 1"
        ]
    );
    for _ in 0..3 {
        let reboot = Command::Reboot(name("shop/web_IN_0"));
        fabric.step(Input::Request("7f".to_owned(), reboot)).unwrap();
    }
    assert_eq!(fabric.instance("shop/web_IN_0").vm().unwrap().reboots, 1);
}

#[test]
fn requirements_and_reasons() {
    let mut fabric = Fabric::new(3);
    let gpu = version(&[("web", 2, VmSize::Small)], &[("Mayfly.Require", "gpu=yes")]);
    let error = fabric.command(Command::Deploy { key: production("shop"), version: gpu }).unwrap_err().to_string();
    assert!(error.contains("3 lack gpu=yes"), "{error}");
    fabric.deploy(&[("web", 3, VmSize::Medium)]).unwrap();
    fabric.run(1000);
    fabric.command(Command::Drain { host: name("host-2"), reboot: false }).unwrap();
    let soft = version(&[("db", 4, VmSize::Small)], &[("Mayfly.Spread", "soft")]);
    fabric.command(Command::CreateService(name("lab"))).unwrap();
    fabric.command(Command::Deploy { key: production("lab"), version: soft.clone() }).unwrap();
    fabric.command(Command::CreateService(name("big"))).unwrap();
    let error = fabric.command(Command::Deploy { key: production("big"), version: soft }).unwrap_err().to_string();
    assert!(error.contains("1 is draining") && error.contains("2 have fewer than 1 cores free"), "{error}");
    let lines = explain::instance(&fabric.core, &name("shop/web_IN_1"), fabric.now).unwrap();
    assert!(lines[0].contains("fault domain fd-2") && lines[0].contains("draining"), "{lines:?}");
    assert!(lines[1].contains("fd-1: 1, fd-2: 1 (takes none: host-2 is draining), fd-3: 1"), "{lines:?}");
    assert!(lines[1].ends_with("so none is moved; a new one goes where the fewest are"), "{lines:?}");
    let placed = lines.last().unwrap();
    assert!(placed.contains("s ago: vm") && placed.contains("fault domains with the fewest of `web`, 0"), "{lines:?}");
}

#[test]
fn load_scales_a_role() {
    let mut fabric = Fabric::new(3);
    let rules = [("Mayfly.Autoscale", "min=2; max=4; cooldown=60; cpu>70:+1; queue>10:+2")];
    let two = version(&[("web", 2, VmSize::ExtraSmall)], &rules);
    fabric.command(Command::Deploy { key: production("shop"), version: two }).unwrap();
    fabric.cpu = 200;
    fabric.run(59_000);
    assert_eq!(fabric.hosts_of("web").len(), 2);
    fabric.run(3000);
    assert_eq!(fabric.hosts_of("web").len(), 3);
    assert!(fabric.told("cpu is 80, above 70"));
    fabric.cpu = 10;
    fabric.run(100_000);
    assert_eq!(fabric.hosts_of("web").len(), 3);
    let push = Command::PushMetric { key: production("shop"), role: name("web"), name: "queue".into(), value: 11 };
    fabric.command(push).unwrap();
    fabric.run(3000);
    assert_eq!(fabric.hosts_of("web").len(), 4, "no more than the most");
}

#[test]
fn the_ledger_is_the_history() {
    let mut fabric = Fabric::running(3);
    let placed = fabric.instance("shop/web_IN_3").vm().unwrap().placed;
    fabric.run(7000);
    fabric.scale("web", 3).unwrap();
    fabric.run(2000);
    let ended = fabric.core.state().usage().values().map(|usage| usage.millis[&VmSize::ExtraSmall]).sum::<u64>();
    let lived = fabric.now.since(placed);
    assert!(ended > 12_000 && ended < lived, "{ended} of {lived}");
    let ledger = |fabric: &Fabric| crate::meter::ledger(fabric.core.state(), fabric.now);
    let total: u64 = ledger(&fabric).values().map(|one| one.millis[&VmSize::ExtraSmall]).sum();
    assert_eq!(total, ended + 3 * lived);
}

#[test]
fn the_ledger_has_what_was_sent_each_byte_once() {
    let mut fabric = Fabric::running(3);
    // Of each VM, as many bytes as milliseconds of time itself; the fourth ends with what was said of it last.
    let sent = |fabric: &Fabric| {
        let ledger = crate::meter::ledger(fabric.core.state(), fabric.now);
        ledger.values().map(|usage| usage.traffic.sent).sum::<u64>()
    };
    let written = |fabric: &Fabric| fabric.core.state().usage().values().map(|usage| usage.traffic.sent).sum::<u64>();
    assert_eq!((sent(&fabric), written(&fabric)), (4 * fabric.now.0 / 500 * 500, 0));
    let end = fabric.now.0;
    fabric.scale("web", 3).unwrap();
    fabric.run(2000);
    let fourth = written(&fabric);
    assert!((end..end + 1000).contains(&fourth), "{fourth}");
    assert_eq!(sent(&fabric), fourth + 3 * fabric.now.0);
    // An hour later it is written down, though all go on; a new controller does not write it down again.
    fabric.now = fabric.now.plus(3_600_000);
    let hosts: Vec<_> = fabric.acknowledged.keys().cloned().collect();
    hosts.iter().for_each(|host| fabric.report(host));
    assert_eq!(written(&fabric), fourth + 3 * fabric.now.0);
    let records: Vec<Record> = fabric.core.state().records().collect();
    let epoch = fabric.core.state().meta().epoch + 1;
    let (core, changes) = Core::start(records, epoch, config(), fabric.now);
    fabric.core = core;
    fabric.commit(changes);
    assert_eq!(sent(&fabric), fourth + 3 * fabric.now.0);
    hosts.iter().for_each(|host| fabric.report(host));
    assert_eq!(sent(&fabric), fourth + 3 * fabric.now.0);
}

#[test]
fn a_token_lets_one_host_in_once() {
    let mut fabric = Fabric::running(3);
    let expires = fabric.now.plus(60_000);
    let make = |id: &str, host: Option<&str>| Command::MakeToken { id: id.into(), host: host.map(name), expires };
    let enrol =
        |token: &str, host: &str, key: &str| Command::Enrol { token: token.into(), host: name(host), key: key.into() };
    let denied = |result: Result<(), Rejected>| assert!(matches!(result, Err(Rejected::Denied(_))), "{result:?}");
    fabric.command(make("any", None)).unwrap();
    denied(fabric.command(enrol("other", "host-9", "k")));
    fabric.command(enrol("any", "host-9", "k")).unwrap();
    let number = |fabric: &Fabric| fabric.core.state().enrolments()[&name("host-9")].number;
    let first = number(&fabric);
    // The answer was lost: the same key, the same joining. Another key is somebody else.
    fabric.command(enrol("any", "host-9", "k")).unwrap();
    assert_eq!(number(&fabric), first);
    denied(fabric.command(enrol("any", "host-9", "other")));
    denied(fabric.command(enrol("any", "host-8", "k")));
    // For one host only, not for one that is there, and not when it is too late or has been taken back.
    fabric.command(make("bound", Some("host-8"))).unwrap();
    denied(fabric.command(enrol("bound", "host-7", "k")));
    fabric.command(make("second", None)).unwrap();
    assert!(matches!(fabric.command(enrol("second", "host-1", "k")), Err(Rejected::Conflict(_))));
    fabric.command(Command::DeleteToken("second".into())).unwrap();
    denied(fabric.command(enrol("second", "host-6", "k")));
    fabric.now = expires;
    denied(fabric.command(enrol("bound", "host-8", "k")));
    // Expired tokens are swept away with the next.
    fabric.command(Command::MakeToken { id: "new".into(), host: None, expires: expires.plus(1) }).unwrap();
    assert_eq!(fabric.core.state().tokens().keys().collect::<Vec<_>>(), ["new"]);
}

#[test]
fn restored_records_place_nothing_until_hosts_follow_them() {
    let mut fabric = Fabric::running(3);
    let mut records: Vec<Record> = fabric.core.state().records().collect();
    let before = fabric.core.state().meta().clone();
    // Since the backup: another VM, which the records do not know of.
    fabric.command(Command::Scale { key: production("shop"), counts: [(name("web"), 4)].into() }).unwrap();
    // And one that the records have is another by now.
    let reimaged = fabric.instance("shop/web_IN_0").vm().unwrap().id;
    fabric.command(Command::Reimage("shop/web_IN_0".parse().unwrap())).unwrap();
    fabric.run(2000);
    let wall = |seconds: u64| Time((1_800_000_000 + seconds) * 1000);
    // The same backup was restored an hour ago.
    let mut once = records.clone();
    crate::restore::restored(&mut once, wall(0));
    crate::restore::restored(&mut records, wall(3600));
    let meta = |records: &[Record]| match &records[0] {
        Record::Meta(meta) => meta.clone(),
        other => panic!("{other:?}"),
    };
    let (once, again) = (meta(&once), meta(&records));
    assert!(once.revision.0 + 1_000_000_000 < again.revision.0 && once.next_vm + 900_000 < again.next_vm);
    assert!(once.least_generation + 3600 < again.least_generation && once.epoch + 3000 < again.epoch);
    assert!(again.epoch << 32 >> 32 == again.epoch, "the numbers of leases have room for it");
    let (core, changes) = Core::start(records, again.epoch + 1, config(), fabric.now);
    (fabric.core, fabric.acknowledged) = (core, fabric.acknowledged.keys().map(|host| (host.clone(), 0)).collect());
    fabric.committed = fabric.core.state().records().map(|record| (record.key(), record)).collect();
    assert!(!changes.is_empty());
    assert!(
        fabric.core.state().meta().revision > before.revision && fabric.core.state().meta().next_vm > before.next_vm
    );
    let more = Command::Scale { key: production("shop"), counts: [(name("web"), 5)].into() };
    let refused = fabric.command(more.clone());
    assert!(matches!(&refused, Err(Rejected::NoRoom(why)) if why.contains("restored from a backup")), "{refused:?}");
    fabric.run(8000);
    assert!(fabric.told("every host follows the restored records"));
    let again = fabric.instance("shop/web_IN_0");
    assert!(again.vm().is_some_and(|vm| vm.id != reimaged) && again.generation > 1_000_000, "{again:?}");
    fabric.command(more).unwrap();
    fabric.run(2000);
    assert_eq!(fabric.hosts_of("web").len(), 5);
}

#[test]
fn a_certificate_stays_as_long_as_somebody_needs_it() {
    let mut fabric = Fabric::new(3);
    let thumbprint = Thumbprint::of(&[7; 20]);
    let certificate = ServiceCertificate {
        service: name("shop"),
        thumbprint: thumbprint.clone(),
        subject: "CN=shop".to_owned(),
        not_after: Time(1),
        added: Time(0),
        certificate: String::new(),
        sealed: String::new(),
    };
    let mut wanted = version(&[("web", 1, VmSize::ExtraSmall)], &[]);
    wanted.configuration.roles[0].certificates = vec![("Site".to_owned(), thumbprint.clone())];
    let deploy = Command::Deploy { key: production("shop"), version: wanted };
    let refused = fabric.command(deploy.clone());
    assert!(matches!(&refused, Err(Rejected::Conflict(why)) if why.contains("mayfly certificate add")), "{refused:?}");
    let stranger = ServiceCertificate { service: name("bank"), ..certificate.clone() };
    assert!(matches!(fabric.command(Command::AddCertificate(stranger)), Err(Rejected::NotFound { .. })));
    fabric.command(Command::AddCertificate(certificate.clone())).unwrap();
    assert!(matches!(fabric.command(Command::AddCertificate(certificate)), Err(Rejected::AlreadyExists { .. })));
    fabric.command(deploy).unwrap();
    let delete = Command::DeleteCertificate(name("shop"), thumbprint);
    let refused = fabric.command(delete.clone());
    assert!(matches!(&refused, Err(Rejected::Conflict(why)) if why.contains("in use by shop")), "{refused:?}");
    fabric.command(Command::DeleteDeployment(production("shop"))).unwrap();
    fabric.run(3000);
    fabric.command(delete.clone()).unwrap();
    assert!(matches!(fabric.command(delete), Err(Rejected::NotFound { .. })));
}

#[test]
fn a_reserved_address_outlives_its_deployment_and_is_nobody_else_s() {
    let mut fabric = Fabric::new(3);
    let reserve = |name_: &str| Command::ReserveAddress(name(name_));
    let release = |name_: &str| Command::ReleaseAddress(name(name_));
    let wanted = |reserved: Option<&str>| {
        let mut version = version(&[("web", 1, VmSize::ExtraSmall)], &[]);
        version.configuration.reserved_address = reserved.map(name);
        version
    };
    let deploy = |key: DeploymentKey, reserved| Command::Deploy { key, version: wanted(reserved) };
    let vip = |fabric: &Fabric, key: &DeploymentKey| fabric.core.state().deployments()[key].vip;
    assert!(matches!(fabric.command(deploy(production("shop"), Some("front"))), Err(Rejected::NotFound { .. })));
    fabric.command(reserve("front")).unwrap();
    assert!(matches!(fabric.command(reserve("front")), Err(Rejected::AlreadyExists { .. })));
    let front = fabric.core.state().reservations()[&name("front")].address;
    fabric.command(deploy(production("shop"), Some("front"))).unwrap();
    assert_eq!(vip(&fabric, &production("shop")), front);
    assert!(matches!(fabric.command(release("front")), Err(Rejected::Conflict(_))));
    assert!(matches!(fabric.command(deploy(staging("shop"), Some("front"))), Err(Rejected::Conflict(_))));
    // Random names come of the time.
    fabric.run(1000);
    fabric.command(deploy(staging("shop"), None)).unwrap();
    assert_ne!(vip(&fabric, &staging("shop")), front);
    fabric.run(3000);
    let refused = fabric.command(Command::Swap(name("shop")));
    assert!(matches!(&refused, Err(Rejected::Conflict(why)) if why.contains("reserved")), "{refused:?}");
    fabric.command(Command::DeleteDeployment(staging("shop"))).unwrap();
    fabric.command(reserve("back")).unwrap();
    fabric.run(3000);
    fabric.command(deploy(staging("shop"), Some("back"))).unwrap();
    fabric.run(3000);
    fabric.command(Command::Swap(name("shop"))).unwrap();
    assert_eq!(vip(&fabric, &production("shop")), front);
    let named = |fabric: &Fabric| {
        let deployment = &fabric.core.state().deployments()[&production("shop")];
        deployment.version.configuration.reserved_address.clone()
    };
    assert_eq!(named(&fabric), Some(name("front")), "the name stays with the address");
    let without = Command::Upgrade { key: production("shop"), version: wanted(None), mode: UpgradeMode::Auto };
    assert!(matches!(fabric.command(without), Err(Rejected::Conflict(_))));
    // The address stays when its deployment goes, for whoever names it and nobody else.
    fabric.command(Command::DeleteService(name("shop"))).unwrap();
    fabric.run(5000);
    fabric.command(Command::CreateService(name("bank"))).unwrap();
    for round in 0..300 {
        fabric.command(deploy(production("bank"), None)).unwrap();
        assert_ne!(vip(&fabric, &production("bank")), front, "{round}");
        fabric.command(Command::DeleteService(name("bank"))).unwrap();
        fabric.run(1500);
        fabric.command(Command::CreateService(name("bank"))).unwrap();
    }
    fabric.command(deploy(production("bank"), Some("front"))).unwrap();
    assert_eq!(vip(&fabric, &production("bank")), front);
}

#[test]
fn an_identity_keeps_its_private_address() {
    let mut fabric = Fabric::running(3);
    let dip = |fabric: &Fabric| fabric.instance("shop/web_IN_0").vm().unwrap().dip;
    let before = dip(&fabric);
    fabric.command(Command::Reimage("shop/web_IN_0".parse().unwrap())).unwrap();
    fabric.run(2000);
    let host = fabric.instance("shop/web_IN_0").vm().unwrap().host.clone();
    assert_eq!(dip(&fabric), before, "over a reimage");
    fabric.dead.push(host.clone());
    fabric.run(10_000);
    assert_ne!(fabric.instance("shop/web_IN_0").vm().unwrap().host, host);
    assert_ne!(dip(&fabric), before, "what is left on a lost host may still answer at the old one");
}
