//! The data plane's parts against the real kernel, each in a network namespace of its own. They need root.

mod adversary;
mod borrowed;
mod direct;
mod dual;
mod encrypted;
mod flows;
mod frames;
mod killed;
#[expect(dead_code, reason = "the benchmarks use what the tests do not")]
mod lab;
mod membership;
mod narrowed;
mod traced;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::time::Duration;

use mayfly_model::{
    AccessRule, Backend, Distribution, EndpointGoal, HostName, Ipv6Prefix, NetworkGoal, PeerGoal, RoleName, RouteGoal,
    Transit, VipGoal, VmId,
};
use mayfly_net::address::{OVERLAY_DEVICE, UNDERLAY_DEVICE};
use mayfly_net::plan::ruleset::Ruleset;
use mayfly_net::plan::{Inputs, LocalGuest, NextHop, Plan, plan};
use mayfly_net::{Links, Nft, create_tap, delete_tap, prepare_ipv6};
use nix::sched::{CloneFlags, unshare};

/// Runs a test in a new network namespace, which ends with its thread.
fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: this needs root");
        return;
    }
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test());
    });
    thread.join().unwrap();
}

#[test]
fn rules_are_accepted_and_leases_end_by_themselves() {
    in_namespace(|| async {
        let mut nft = Nft::load().unwrap();
        for _ in 0..2 {
            nft.apply(include_str!("../rules.golden")).unwrap();
        }
        nft.try_handing_on().unwrap();
        assert!(!nft.run("list tables").unwrap().contains("netdev"), "a trial leaves nothing");
        make_devices(&Links::open().unwrap()).await;
        for _ in 0..2 {
            nft.apply(include_str!("../ingress.golden")).unwrap();
        }
        nft.lease(&[Ipv4Addr::new(10, 80, 0, 11).into()], &BTreeSet::new(), 5000).unwrap();
        nft.apply(include_str!("../rules.golden")).unwrap();
        nft.apply("get element inet mayfly leased { 10.80.0.11 }").expect("a new rule set must not end a lease");
        nft.lease(&[Ipv4Addr::new(10, 80, 0, 11).into()], &BTreeSet::new(), 200).unwrap();
        tokio::time::sleep(Duration::from_millis(600)).await;
        nft.apply("get element inet mayfly leased { 10.80.0.11 }").expect_err("the lease is over");
        let error = nft.apply("add rule inet mayfly nonsense").unwrap_err().to_string();
        assert!(error.contains("nonsense") || error.contains("syntax"), "{error}");
    });
}

#[test]
fn routes_follow_the_plan() {
    in_namespace(|| async {
        let links = Links::open().unwrap();
        create_tap("mft1").unwrap();
        create_tap("mft1").unwrap();
        links.up("mft1").await.unwrap();
        let dip = Ipv4Addr::new(10, 80, 0, 2);
        links.pin_neighbour("mft1", dip, [2, 0, 10, 80, 0, 2]).await.unwrap();
        let routes = BTreeMap::from([
            (dip.into(), NextHop::Tap("mft1".to_owned())),
            (Ipv4Addr::new(10, 80, 0, 3).into(), NextHop::Tap("mft9".to_owned())),
        ]);
        for changed in [1, 0] {
            assert_eq!(links.set_routes(&routes).await.unwrap(), changed);
        }
        let text = std::fs::read_to_string("/proc/thread-self/net/route").unwrap();
        assert_eq!(text.lines().count(), 2, "one route, and none through the tap that is not there: {text}");
        links.set_routes(&BTreeMap::new()).await.unwrap();
        assert_eq!(std::fs::read_to_string("/proc/thread-self/net/route").unwrap().lines().count(), 1);
        delete_tap("mft1").unwrap();
        delete_tap("mft1").unwrap();
        assert_eq!(links.names().await.unwrap(), ["lo"]);
    });
}

#[test]
fn overlay_and_public_addresses_can_be_set_again_and_again() {
    in_namespace(|| async {
        let links = Links::open().unwrap();
        // A tap stands in for the host's card.
        create_tap("eth0").unwrap();
        links.up("eth0").await.unwrap();
        let underlay = Ipv4Addr::new(10, 77, 0, 1);
        links.add_address("eth0", underlay, 24).await.unwrap();
        let dip = Ipv4Addr::new(10, 80, 0, 7);
        for changed in [(2, 1), (0, 0)] {
            links
                .create_overlay(Ipv4Addr::new(100, 64, 0, 1), [2, 0x6d, 0x66, 0, 0, 1], (underlay, Transit::Vxlan))
                .await
                .unwrap();
            let peer = (Ipv4Addr::new(100, 64, 0, 2), [2, 0x6d, 0x66, 0, 0, 2], Ipv4Addr::new(10, 77, 0, 2));
            let peers = links.set_peers(&BTreeSet::from([peer]), None).await.unwrap();
            let way = BTreeMap::from([(dip.into(), NextHop::Overlay(peer.0.into()))]);
            let routes = links.set_routes(&way).await.unwrap();
            assert_eq!((peers, routes), changed);
        }
        // A host that joins and one that leaves change their own entries only; one that moved changes where it is.
        let name = host;
        let host = |number: u8, below: u8| {
            let mac = [2, 0x6d, 0x66, 0, 0, number];
            (Ipv4Addr::new(100, 64, 0, number), mac, Ipv4Addr::new(10, 77, 0, below))
        };
        for (peers, changed) in [
            (vec![host(2, 2), host(3, 3)], 2),
            (vec![host(2, 2), host(3, 3), host(4, 4)], 2),
            (vec![host(2, 2), host(4, 9)], 4),
            (vec![host(2, 2), host(4, 9)], 0),
            (vec![], 4),
        ] {
            let peers: BTreeSet<_> = peers.into_iter().collect();
            assert_eq!(links.set_peers(&peers, None).await.unwrap(), changed, "{peers:?}");
        }
        // The same over IPv6, where the host has addresses of its own that are nobody else's business.
        let prefix: Ipv6Prefix = "fd6d:6179:666c:79::/96".parse().unwrap();
        let own = PeerGoal {
            host: name(1),
            address: underlay,
            overlay: Ipv4Addr::new(100, 64, 0, 1),
            mac: [2, 0x6d, 0x66, 0, 0, 1],
            voter: true,
            tunnel_key: None,
        };
        for _ in 0..2 {
            prepare_ipv6(&links, prefix, &own, (Transit::Vxlan, 24)).await.unwrap();
        }
        let peers = BTreeSet::from([host(2, 2)]);
        for (ipv6, changed) in [(Some(prefix), 3), (Some(prefix), 0), (None, 1)] {
            assert_eq!(links.set_peers(&peers, ipv6).await.unwrap(), changed, "{ipv6:?}");
        }
        links.add_address("eth0", Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1), 128).await.unwrap();
        let way = BTreeMap::from([
            (prefix.embed(dip).into(), NextHop::Overlay(prefix.embed(Ipv4Addr::new(100, 64, 0, 2)).into())),
            (dip.into(), NextHop::Overlay(Ipv4Addr::new(100, 64, 0, 2).into())),
        ]);
        for changed in [1, 0] {
            assert_eq!(links.set_routes(&way).await.unwrap(), changed);
        }
        assert_eq!(links.set_routes(&BTreeMap::new()).await.unwrap(), 2);
        public_addresses_come_and_go(&links, prefix, underlay).await;
    });
}

async fn public_addresses_come_and_go(links: &Links, prefix: Ipv6Prefix, underlay: Ipv4Addr) {
    let vip = Ipv4Addr::new(10, 78, 0, 2);
    let vips = BTreeSet::from([vip.into(), Ipv4Addr::new(10, 78, 0, 3).into(), prefix.embed(vip).into()]);
    // The host's own address may be alone in its network too.
    let alone = Ipv4Addr::new(10, 77, 9, 9);
    links.add_address("eth0", alone, 32).await.unwrap();
    let is_public = |address| match address {
        IpAddr::V4(address) => address != alone,
        IpAddr::V6(address) => prefix.embedded(address).is_some(),
    };
    for new in [3, 0] {
        assert_eq!(links.set_vips(&vips, is_public).await.unwrap().len(), new);
    }
    links.set_vips(&BTreeSet::new(), is_public).await.unwrap();
    let left = std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
    assert!(left.contains("fd000000000000000000000000000001") && !left.contains("0a4e0002"), "{left}");
    assert_eq!(links.addresses("eth0").await.unwrap(), [(underlay, 24), (alone, 32)]);
    let index = links.index("eth0").await.unwrap();
    for address in [underlay.into(), prefix.embed(vip).into()] {
        mayfly_net::announce(index, links.mac("eth0").await.unwrap(), address).unwrap();
    }
}

/// A row of pseudo-random numbers (SplitMix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

fn host(number: u64) -> HostName {
    HostName::new(format!("host-{number}")).unwrap()
}

/// Up to eight guests of three deployments on two hosts: where they are, those of the first host, and as backends.
fn any_members(dice: &mut Dice) -> (Vec<RouteGoal>, Vec<LocalGuest>, Vec<Backend>) {
    let policies = [
        "allow",
        "deny",
        "198.51.100.0/24:443, *.example.org:80-90/tcp, 0.0.0.0/0:53/udp, [2001:db8::/32]:443",
        "example.net",
    ];
    let (mut routes, mut guests, mut backends) = (Vec::new(), Vec::new(), Vec::new());
    for last in (1..=8).filter(|_| dice.below(4) > 0).collect::<Vec<u8>>() {
        let (dip, on) = (Ipv4Addr::new(10, 80, 0, 10 + last), 1 + dice.below(2));
        let deployment_id = format!("{:032x}", last % 3);
        let role = RoleName::new(["web", "db"][dice.below(2) as usize]).unwrap();
        routes.push(RouteGoal {
            dip,
            host: host(on),
            deployment_id: deployment_id.clone(),
            role,
            index: 0,
            update_domain: 0,
            ipv6: dice.below(2) == 0,
            vm: None,
            leaving: false,
        });
        backends.push(Backend {
            vm: VmId(u64::from(last)),
            dip,
            host: host(on),
            probe: None,
            always: dice.below(2) == 0,
        });
        if on == 1 {
            let egress = policies[dice.below(4) as usize].parse().unwrap();
            guests.push(LocalGuest {
                tap: format!("mft{last}"),
                dip,
                ipv6: dice.below(2) == 0,
                mac: [2, 0, 10, 80, 0, last],
                deployment_id,
                egress,
            });
        }
    }
    (routes, guests, backends)
}

/// A location of two hosts with up to eight guests of three deployments, as the dice say.
fn any_plan(dice: &mut Dice) -> Plan {
    let peer = |number: u8| PeerGoal {
        host: host(u64::from(number)),
        address: Ipv4Addr::new(10, 77, 0, number),
        overlay: Ipv4Addr::new(100, 64, 0, number),
        mac: [2, 0, 0, 0, 0, number],
        voter: true,
        tunnel_key: None,
    };
    let (routes, guests, backends) = any_members(dice);
    let endpoint = |dice: &mut Dice, port: u16| EndpointGoal {
        name: format!("web/{port}"),
        udp: dice.below(2) == 0,
        port,
        local_port: 8000 + dice.below(3) as u16,
        backends: backends.iter().filter(|_| dice.below(3) > 0).cloned().collect(),
        instances: 0,
        access: (0..dice.below(3))
            .map(|rule| AccessRule {
                permit: rule == 0,
                network: [Ipv4Addr::new(10, 1, rule as u8, 0).into(), "2001:db8::".parse().unwrap()]
                    [dice.below(2) as usize],
                prefix: 24,
            })
            .collect(),
        distribution: [Distribution::Connection, Distribution::SourceIp, Distribution::SourceIpProtocol]
            [dice.below(3) as usize],
    };
    let vips = (2..2 + dice.below(3) as u8).map(|last| VipGoal {
        vip: Ipv4Addr::new(10, 78, 0, last),
        endpoints: (0..dice.below(4) as u16).map(|port| endpoint(dice, 80 + port)).collect(),
        owners: vec![host(1), host(2)],
        ipv6: dice.below(2) == 0,
    });
    let vips = vips.collect();
    let peers = vec![peer(1), peer(2)];
    let ipv6 = (dice.below(2) == 0).then(|| "fd6d:6179:666c:79::/96".parse().unwrap());
    let goal = NetworkGoal { zone: "z".to_owned(), ipv6, peers, routes, vips, ..NetworkGoal::default() };
    let health = (1..=8).filter(|_| dice.below(3) > 0).map(|vm| (VmId(vm), None)).collect();
    let underlay = (dice.below(2) == 0).then_some("10.77.0.0/24");
    let live = BTreeSet::from([host(1), host(2)]);
    plan(&Inputs {
        host: &host(1),
        goal: &goal,
        guests: &guests,
        health: &health,
        live: &live,
        underlay,
        underlay6: underlay.map(|_| "fd00:77::/64"),
        closed: &["192.0.2.0/24".parse().unwrap(), "2001:db8:1::/48".parse().unwrap()],
        transit: if dice.below(2) == 0 { Transit::Vxlan } else { Transit::Routed },
        direct_return: dice.below(8) > 0,
    })
}

fn set(nft: &mut Nft, before: Option<&Plan>, wanted: &Plan) {
    let script = nft.script(before, wanted).unwrap();
    nft.apply(&script).unwrap_or_else(|error| panic!("{error}\n{script}"));
}

/// The devices that rules name by their numbers.
async fn make_devices(links: &Links) {
    for (device, last) in [(UNDERLAY_DEVICE, 1), (OVERLAY_DEVICE, 2)] {
        links.create_bridge(device, [2, 0, 0, 0, 0, last], "mayfly test").await.unwrap();
    }
}

/// What the kernel holds, without the order of its parts and of elements, which has no meaning.
fn listing(nft: &mut Nft) -> BTreeSet<String> {
    let mut parts: Vec<String> = Vec::new();
    let mut table = String::new();
    for line in nft.run("list ruleset").unwrap().lines() {
        match (line.strip_prefix('\t'), parts.last_mut()) {
            (None, _) => table = line.to_owned(),
            (Some(line), Some(part)) if line.starts_with(['\t', '}', ' ']) => *part += &format!(" {}", line.trim()),
            (Some(line), _) => parts.push(format!("{table} {line}")),
        }
    }
    let sort = |part: &str| match part.split_once("elements = {") {
        Some((before, elements)) => {
            let elements: BTreeSet<&str> = elements.split(',').map(|one| one.trim_matches([' ', '}'])).collect();
            format!("{before}{elements:?}")
        }
        None => part.to_owned(),
    };
    parts.iter().map(|part| sort(part)).collect()
}

#[test]
fn any_row_of_changes_leads_to_the_table_that_is_wanted() {
    in_namespace(|| async {
        let mut nft = Nft::load().unwrap();
        let mut dice = Dice(7);
        make_devices(&Links::open().unwrap()).await;
        let mut before = any_plan(&mut dice);
        set(&mut nft, None, &before);
        for round in 0..400 {
            let rules = any_plan(&mut dice);
            set(&mut nft, Some(&before), &rules);
            before = rules;
            if round % 20 == 0 {
                let changed = listing(&mut nft);
                // The whole is set over whatever is there.
                set(&mut nft, None, &any_plan(&mut dice));
                set(&mut nft, None, &before);
                let whole = listing(&mut nft);
                let differences: Vec<_> = changed.symmetric_difference(&whole).collect();
                assert!(differences.is_empty(), "round {round}: {differences:#?}");
            }
        }
        let [rules, spread] = [before.rules.table, before.spread.table].map(Ruleset::new);
        set(&mut nft, None, &Plan { rules, spread, ..before });
        assert_eq!(nft.run("list ruleset").unwrap(), "");
    });
}

/// Moves a device into the network namespace of another thread of this process.
async fn give(handle: &rtnetlink::Handle, device: &str, thread: nix::unistd::Pid) {
    let namespace = std::fs::File::open(format!("/proc/self/task/{thread}/ns/net")).unwrap();
    let moved = rtnetlink::LinkUnspec::new_with_name(device).setns_by_fd(namespace.as_raw_fd()).build();
    handle.link().set(moved).execute().await.unwrap();
}

/// How long it takes to receive so many bytes from `address`, which sends them to whoever connects.
fn fetch(address: (Ipv4Addr, u16), bytes: usize) -> Duration {
    let start = std::time::Instant::now();
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    let mut buffer = vec![0; bytes];
    std::io::Read::read_exact(&mut stream, &mut buffer).unwrap();
    start.elapsed()
}

fn serve(address: (Ipv4Addr, u16), bytes: usize) {
    let listener = std::net::TcpListener::bind(address).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // Who only looks whether somebody is there hangs up at once.
            let _ = std::io::Write::write_all(&mut stream.unwrap(), &vec![7; bytes]);
        }
    });
}

#[test]
fn guests_send_and_receive_no_faster_than_their_size_allows() {
    const BYTES: usize = 1_000_000;
    let (host, guest) = (Ipv4Addr::new(10, 9, 0, 1), Ipv4Addr::new(10, 9, 0, 2));
    in_namespace(move || async move {
        let (tell, told) = std::sync::mpsc::channel();
        let (ready, go) = std::sync::mpsc::channel();
        // The other end of the wire is in a namespace, and so a thread, of its own.
        let far = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            tell.send(nix::unistd::gettid()).unwrap();
            go.recv().unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let links = Links::open().unwrap();
                links.add_address("far", guest, 24).await.unwrap();
                links.up("far").await.unwrap();
            });
            serve((guest, 9000), BYTES);
            go.recv().unwrap();
            fetch((host, 9000), BYTES)
        });
        let links = Links::open().unwrap();
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        tokio::spawn(connection);
        let wire = rtnetlink::LinkVeth::new("mft1", "far").build();
        handle.link().add(wire).execute().await.unwrap();
        give(&handle, "far", told.recv().unwrap()).await;
        links.add_address("mft1", host, 24).await.unwrap();
        links.up_with_mtu("mft1", 1450).await.unwrap();
        for _ in 0..2 {
            links.limit_rate("mft1", 5_000_000).await.unwrap();
        }
        ready.send(()).unwrap();
        serve((host, 9000), BYTES);
        while std::net::TcpStream::connect_timeout(&(guest, 9000).into(), Duration::from_secs(1)).is_err() {}
        // A million bytes are 1.6 seconds of that rate; faster is impossible, however the machine is doing.
        let sent = fetch((guest, 9000), BYTES);
        assert!(sent > Duration::from_millis(1200), "the guest sent a million bytes in {sent:?}");
        ready.send(()).unwrap();
        let received = far.join().unwrap();
        assert!(received > Duration::from_millis(1200), "the guest received a million bytes in {received:?}");
        links.delete("mft1").await.unwrap();
        links.forget_rate("mft1").await.unwrap();
        assert_eq!(links.names().await.unwrap(), ["lo"]);
    });
}

#[test]
fn a_limit_that_is_lifted_leaves_nothing() {
    in_namespace(|| async {
        let links = Links::open().unwrap();
        create_tap("mft1").unwrap();
        links.up("mft1").await.unwrap();
        let buckets = || {
            let tc = std::process::Command::new("tc").args(["qdisc", "show"]).output().unwrap();
            let text = String::from_utf8(tc.stdout).unwrap();
            (text.matches("tbf").count(), text.matches("ingress").count())
        };
        links.lift_rate("mft1").await.unwrap();
        links.limit_rate("mft1", 5_000_000).await.unwrap();
        assert_eq!(buckets(), (2, 1));
        for _ in 0..2 {
            links.lift_rate("mft1").await.unwrap();
            assert_eq!((buckets(), links.names().await.unwrap()), ((0, 0), vec!["lo".to_owned(), "mft1".to_owned()]));
        }
        links.limit_rate("mft1", 5_000_000).await.unwrap();
        assert_eq!(buckets(), (2, 1));
    });
}

#[test]
fn public_addresses_are_announced_by_bgp_as_the_example_says() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: this needs root");
        return;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/bgp/check.sh");
    let output = std::process::Command::new("sh").arg(script).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
}
