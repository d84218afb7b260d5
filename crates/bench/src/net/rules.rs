//! What changes of the rule set cost, and what its size costs.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use mayfly_model::{
    Backend, Distribution, Egress, EndpointGoal, HostName, NetworkGoal, PeerGoal, RoleName, RouteGoal, Transit,
    VipGoal, VmId,
};
use mayfly_net::address::{OVERLAY_DEVICE, UNDERLAY_DEVICE};
use mayfly_net::plan::{Health, Inputs, LocalGuest, Plan, plan};

use super::lab::{Lab, Namespace, PORT, VIP, dip};
use crate::report::{Report, median};

const VIPS: u32 = 1000;
const BACKENDS: u32 = 10;
const ROUNDS: usize = 15;
/// Before a client says a second time that it wants to connect, which counts as failed.
const WITHOUT_REPEATING: Duration = Duration::from_millis(900);

pub fn measure(report: &mut Report) -> anyhow::Result<()> {
    report.say("### Changes of the rules");
    changes(report);
    drained(report)?;
    report.say("### The whole rule set of a host");
    for guests in [1, 100, 1000] {
        whole(report, guests)?;
    }
    Ok(())
}

fn host(number: u32) -> HostName {
    HostName::new(format!("host-{number}")).unwrap_or_else(|error| panic!("{error}"))
}

fn role() -> RoleName {
    RoleName::new("web").unwrap_or_else(|error| panic!("{error}"))
}

fn peer(number: u32) -> PeerGoal {
    PeerGoal {
        host: host(number),
        address: Ipv4Addr::new(10, 77, 0, 10 + number as u8),
        overlay: Ipv4Addr::new(100, 64, 0, 1 + number as u8),
        mac: [2, 0, 0, 0, 1, number as u8],
        voter: true,
        tunnel_key: None,
    }
}

/// A thousand public addresses with ten backends each, on ten hosts.
fn large() -> NetworkGoal {
    let backend = |vip: u32, number: u32| Backend {
        vm: VmId(u64::from(vip * BACKENDS + number)),
        dip: Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 80, 1, 0)) + vip * BACKENDS + number),
        host: host(number),
        probe: None,
        always: false,
    };
    let endpoint = |vip| EndpointGoal {
        name: "web/http".to_owned(),
        udp: false,
        port: 80,
        local_port: 8080,
        backends: (0..BACKENDS).map(|number| backend(vip, number)).collect(),
        instances: 0,
        access: vec![],
        distribution: Distribution::Connection,
    };
    let vip = |vip: u32| VipGoal {
        vip: Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 78, 0, 0)) + vip),
        endpoints: vec![endpoint(vip)],
        owners: vec![host(0)],
        ipv6: false,
    };
    let route = |(vip, number): (u32, u32)| RouteGoal {
        dip: backend(vip, number).dip,
        host: host(number),
        deployment_id: format!("{vip:032x}"),
        role: role(),
        index: number,
        update_domain: 0,
        ipv6: false,
        vm: None,
        leaving: false,
    };
    let all = (0..VIPS).flat_map(|vip| (0..BACKENDS).map(move |number| (vip, number)));
    NetworkGoal {
        zone: "z".to_owned(),
        peers: (0..BACKENDS).map(peer).collect(),
        routes: all.map(route).collect(),
        vips: (0..VIPS).map(vip).collect(),
        ..NetworkGoal::default()
    }
}

/// From the decision, which is that somebody is not well any more, to the table in force.
fn changes(report: &mut Report) {
    let goal = large();
    let everybody: Health = (0..u64::from(VIPS * BACKENDS)).map(|vm| (VmId(vm), None)).collect();
    let hosts: BTreeSet<HostName> = (0..BACKENDS).map(host).collect();
    let make = |health: &Health, live: &BTreeSet<HostName>| {
        plan(&Inputs {
            host: &host(0),
            goal: &goal,
            guests: &[],
            health,
            live,
            underlay: None,
            underlay6: None,
            closed: &[],
            transit: Transit::Vxlan,
            direct_return: true,
        })
    };
    let namespace = Namespace::new();
    // Rules name them by their numbers.
    namespace.run(|kit| {
        for (device, last) in [(UNDERLAY_DEVICE, 1), (OVERLAY_DEVICE, 2)] {
            let bridge = kit.links.create_bridge(device, [2, 0, 0, 0, 0, last], "mayfly lab");
            kit.runtime.block_on(bridge).unwrap_or_else(|error| panic!("{error}"));
        }
    });
    let set = |before: Option<Arc<Plan>>, wanted: Arc<Plan>| {
        namespace.run(move |kit| {
            let script = kit.nft.script(before.as_deref(), &wanted);
            script.and_then(|script| kit.nft.apply(&script)).unwrap_or_else(|error| panic!("{error}"));
        });
    };
    let mut before = Arc::new(make(&everybody, &hosts));
    let began = Instant::now();
    set(None, Arc::clone(&before));
    let whole = began.elapsed();
    let mut timed = |health: &Health, live: &BTreeSet<HostName>| {
        let began = Instant::now();
        let wanted = Arc::new(make(health, live));
        set(Some(std::mem::replace(&mut before, Arc::clone(&wanted))), wanted);
        began.elapsed().as_secs_f64() * 1000.0
    };
    let (mut one, mut host_gone) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let mut health = everybody.clone();
        health.remove(&(VmId(round as u64 * 7), None));
        one.push(timed(&health, &hosts));
        one.push(timed(&everybody, &hosts));
        let live = hosts.iter().filter(|name| **name != host(1 + round as u32 % 9)).cloned().collect();
        host_gone.push(timed(&everybody, &live));
        timed(&everybody, &hosts);
    }
    let size = format!("{VIPS} public addresses with {BACKENDS} backends each");
    report.bound(&format!("{size}: one backend leaves, decision to table in force"), median(&one), "ms", 100.0);
    report.bound(
        &format!("{size}: a host dies, and with it a backend of each, decision to table in force"),
        median(&host_gone),
        "ms",
        100.0,
    );
    report.say(&format!("- {size}: the whole table set anew: {:.0} ms", whole.as_secs_f64() * 1000.0));
}

fn serve(backend: &Namespace) {
    backend.run(|_| {
        let listener = TcpListener::bind(("0.0.0.0", PORT)).unwrap_or_else(|error| panic!("{error}"));
        std::thread::spawn(move || listener.incoming().for_each(drop));
    });
}

/// New connections, one after the other, while a backend leaves and comes back.
fn drained(report: &mut Report) -> anyhow::Result<()> {
    let mut lab = Lab::new(3, 1, Transit::Vxlan);
    lab.backends.iter().for_each(serve);
    let all = lab.all();
    let client = lab.clients.remove(0);
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let visitor = std::thread::spawn(move || {
        client.run(move |_| {
            let (mut failed, mut done) = (0u32, 0u32);
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                let connected = TcpStream::connect_timeout(&SocketAddr::from((VIP, PORT)), WITHOUT_REPEATING);
                failed += u32::from(connected.is_err());
                done += 1;
            }
            (failed, done)
        })
    });
    for round in 0..200 {
        let without = all.iter().copied().filter(|vm| *vm != 1 + round % 3).collect();
        lab.follow(&without);
        std::thread::sleep(Duration::from_millis(5));
        lab.follow(&all);
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(stop);
    let (failed, done) = visitor.join().map_err(|_| anyhow::anyhow!("the visitor panicked"))?;
    let what = format!("connections that failed of {done} while a backend left 200 times");
    report.bound(&what, f64::from(failed), "", 0.0);
    Ok(())
}

/// The rules for so many guests of one host, and the time of a connection's first packets through them.
fn whole(report: &mut Report, guests: u32) -> anyhow::Result<()> {
    let mut lab = Lab::new(1, 1, Transit::Vxlan);
    serve(&lab.backends[0]);
    let name = lab.hosts[0].name.clone();
    // The first guest is there; the others are so in name only.
    for number in 2..=guests as usize {
        let [a, b, c, d] = dip(number).octets();
        let deployment_id = format!("{:032x}", number / 10);
        lab.hosts[0].guests.push(LocalGuest {
            tap: format!("mft{number}"),
            dip: dip(number),
            ipv6: false,
            mac: [2, 0, a, b, c, d],
            deployment_id: deployment_id.clone(),
            egress: Egress::Only(vec![]),
        });
        lab.goal.routes.push(RouteGoal {
            dip: dip(number),
            host: name.clone(),
            deployment_id,
            role: role(),
            index: 0,
            update_domain: 0,
            ipv6: false,
            vm: None,
            leaving: false,
        });
    }
    let live = BTreeSet::from([name.clone()]);
    let health: Health = lab.all().into_iter().map(|vm| (VmId(vm), None)).collect();
    let inputs = Inputs {
        host: &name,
        goal: &lab.goal,
        guests: &lab.hosts[0].guests,
        health: &health,
        live: &live,
        underlay: None,
        underlay6: None,
        closed: &[],
        transit: Transit::Vxlan,
        direct_return: true,
    };
    let began = Instant::now();
    let wanted: Plan = plan(&inputs);
    let planned = began.elapsed();
    let times = lab.hosts[0].namespace.run(move |kit| {
        (0..5)
            .map(|_| {
                let began = Instant::now();
                let script = kit.nft.script(None, &wanted);
                script.and_then(|script| kit.nft.apply(&script)).unwrap_or_else(|error| panic!("{error}"));
                began.elapsed().as_secs_f64() * 1000.0
            })
            .collect::<Vec<_>>()
    });
    let connects = lab.clients[0].run(|_| {
        let connect = |_| {
            let began = Instant::now();
            TcpStream::connect(SocketAddr::from((VIP, PORT))).ok()?;
            Some(began.elapsed().as_secs_f64() * 1e6)
        };
        (0..200).map(connect).collect::<Option<Vec<f64>>>()
    });
    let connects = connects.context("the public address does not answer")?;
    ensure!(!times.is_empty());
    report.say(&format!(
        "- {guests} instances: planned in {:.1} ms, table set in {:.1} ms, a connection through it in {:.0} µs",
        planned.as_secs_f64() * 1000.0,
        median(&times),
        median(&connects)
    ));
    Ok(())
}
