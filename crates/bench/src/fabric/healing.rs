//! From a host's death to its replacement, in simulated time; and a rack's loss, in real time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Instant;

use mayfly_fabric::{Config, Core, Input};
use mayfly_model::{
    HostCondition, HostFacts, HostName, HostReport, Incarnation, LeaseTimings, Resources, Time, Transit, VmSize,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::region::{RACK, Region, config, name};
use crate::report::Report;

/// A lease of two seconds.
const TIMINGS: LeaseTimings = LeaseTimings { renew: 200, ttl: 2000, drift: 200, fresh: 1300, mesh_timeout: 700 };
const HOSTS: usize = 24;
const DEATHS: usize = 2000;

pub fn measure(report: &mut Report, work: &Path) -> anyhow::Result<()> {
    let mut times = deaths()?;
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    report.say(&format!(
        "### Healing\n\nSimulated, lease 2 s, report each 0.2 s: {} host deaths, from the death to the decision to place anew.",
        times.len()
    ));
    report.bound("host death to replacement ordered, median", at(0.5), "s", 2.3);
    report.bound("host death to replacement ordered, 99 of 100", at(0.99), "s", 3.5);
    let (instances, millis) = rack_loss(work)?;
    report.bound(&format!("loss of a rack with {instances} instances, decided and durable"), millis, "ms", 20.0);
    Ok(())
}

fn report_of(host: &HostName, number: usize, now: u64, ack: u64, revision: Incarnation) -> HostReport {
    HostReport {
        host: host.clone(),
        facts: HostFacts {
            fault_domain: format!("rack-{}", number % 4),
            address: Ipv4Addr::from(0x0b00_0000 + number as u32),
            capacity: Resources { cpu_milli: 64_000, memory_mib: 256_000 },
            labels: BTreeMap::new(),
            features: BTreeSet::new(),
            images: BTreeSet::new(),
            transit: Transit::default(),
            tunnel_key: None,
        },
        boot_id: 1,
        sequence: now,
        lease_ack: ack,
        applied: revision,
        vms: Vec::new(),
        incidents: Vec::new(),

        counters: Default::default(),
    }
}

/// Seconds from each death to the moment when the host is given up, which is when its instances are placed.
fn deaths() -> anyhow::Result<Vec<f64>> {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let hosts: Vec<HostName> = (0..HOSTS).map(|number| name(&format!("host-{number}"))).collect::<Result<_, _>>()?;
    let (mut core, _) = Core::start([], 1, Config { timings: TIMINGS, ..config() }, Time(0));
    let mut acks = [0; HOSTS];
    let phases: Vec<u64> = (0..HOSTS).map(|_| rng.random_range(0..TIMINGS.renew)).collect();
    let (mut times, mut victim, mut next) = (Vec::new(), None::<(usize, u64)>, 10_000);
    for now in 1.. {
        for number in 0..HOSTS {
            // A report takes 1 to 20 ms, and one in two hundred is lost.
            let due = (now + phases[number]).is_multiple_of(TIMINGS.renew);
            let dead = victim.is_some_and(|(dead, since)| dead == number && since <= now);
            if due && !dead && !rng.random_ratio(1, 200) {
                let arrival = now + rng.random_range(1..20);
                let revision = core.state().meta().revision;
                let report = report_of(&hosts[number], number, now, acks[number], revision);
                if let Ok(outcome) = core.step(Time(arrival), rng.random(), Input::Report(report)) {
                    acks[number] = outcome.grant.map_or(0, |grant| grant.number);
                }
            }
        }
        if now.is_multiple_of(100) {
            core.step(Time(now + 20), rng.random(), Input::Tick)?;
        }
        match victim {
            None if now >= next => victim = Some((rng.random_range(0..HOSTS), now)),
            Some((dead, since)) => {
                let host = core.state().hosts().get(&hosts[dead]);
                if host.is_some_and(|host| matches!(host.condition, HostCondition::Lost { .. })) {
                    times.push((now - since) as f64 / 1000.0);
                    (victim, next) = (None, now + 6000 + rng.random_range(0..1000));
                }
            }
            None => {}
        }
        if times.len() == DEATHS {
            break;
        }
    }
    Ok(times)
}

/// Instances of a rack, and the milliseconds of real time from the tick that gives its hosts up until all their
/// replacements are decided and durable.
fn rack_loss(work: &Path) -> anyhow::Result<(usize, f64)> {
    let folder = tempfile::tempdir_in(work)?;
    let mut region = Region::new(1000, &folder.path().join("records.redb"))?;
    while region.core.state().instances().len() < 17_500 {
        region.deploy_of(20, VmSize::Medium)?;
    }
    region.commit()?;
    region.settle()?;
    let hosts: Vec<HostName> = region.core.state().hosts().keys().cloned().collect();
    let rack: BTreeSet<HostName> = (0..RACK).map(|number| name(&format!("host-{number}"))).collect::<Result<_, _>>()?;
    let lost = rack.iter().map(|host| region.core.state().instances_on(host).count()).sum();
    let mut acks: BTreeMap<&HostName, u64> = BTreeMap::new();
    let mut time = 0.0;
    for round in 0..30u64 {
        region.now += 500;
        let now = region.now;
        for (number, host) in hosts.iter().enumerate() {
            if round > 15 && rack.contains(host) {
                continue;
            }
            let mut report = report_of(host, number, now, acks.get(host).copied().unwrap_or(0), Incarnation(u64::MAX));
            let known = &region.core.state().hosts()[host];
            (report.facts.fault_domain, report.facts.address) = (known.fault_domain.clone(), known.address);
            let outcome = region.core.step(Time(now), round, Input::Report(report))?;
            acks.insert(host, outcome.grant.map_or(0, |grant| grant.number));
        }
        let before = region.core.state().meta().next_vm;
        let began = Instant::now();
        region.step(Input::Tick)?;
        region.commit()?;
        region.settle()?;
        if region.core.state().meta().next_vm > before {
            time = began.elapsed().as_secs_f64() * 1000.0;
            break;
        }
    }
    Ok((lost, time))
}
