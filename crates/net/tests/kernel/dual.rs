//! Guests, endpoints and isolation over IPv6.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use mayfly_model::{Ipv6Prefix, Transit};
use mayfly_net::{DhcpLease, announce, serve_guest};

use crate::lab::{Lab, Namespace, PORT, VIP, dip};

pub fn prefix() -> Ipv6Prefix {
    "fd6d:6179:666c:79::/96".parse().unwrap()
}

/// Answers whoever connects, over either version, with the number of the backend and the asker's address.
pub fn serve(backend: &Namespace, number: usize) {
    backend.run(move |_| {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let from = stream.peer_addr().unwrap().ip();
                // Who only looks whether somebody is there hangs up at once.
                let _ = write!(stream, "{number} {from}");
            }
        });
    });
}

/// What somebody is told at an address: the number of the backend, and the address it sees. Nothing if nobody answers.
pub fn ask(who: &Namespace, address: impl Into<IpAddr>) -> Option<(usize, IpAddr)> {
    let door = SocketAddr::new(address.into(), PORT);
    who.run(move |_| {
        let mut stream = TcpStream::connect_timeout(&door, Duration::from_millis(700)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut told = String::new();
        stream.read_to_string(&mut told).ok()?;
        let (number, from) = told.split_once(' ')?;
        Some((number.parse().unwrap(), from.parse::<IpAddr>().unwrap().to_canonical()))
    })
}

fn lab(transit: Transit) -> Lab {
    let lab = Lab::with(3, 1, transit, Some(prefix()));
    for (number, backend) in (1..).zip(&lab.backends) {
        serve(backend, number);
    }
    lab
}

/// What a named counter of a host has counted.
fn counted(lab: &Lab, host: usize, counter: &'static str) -> u64 {
    lab.hosts[host - 1].namespace.run(move |kit| kit.nft.counters().unwrap()[counter].0)
}

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("skipped: this needs root");
    }
    root
}

#[test]
fn guests_reach_each_other_and_the_public_address_over_ipv6() {
    if !is_root() {
        return;
    }
    for transit in [Transit::Vxlan, Transit::Routed] {
        let lab = lab(transit);
        let six = |number| prefix().embed(dip(number));
        // Each other, on other hosts, as themselves.
        assert_eq!(ask(&lab.backends[0], six(2)), Some((2, six(1).into())), "{transit:?}");
        assert_eq!(ask(&lab.backends[2], six(1)), Some((1, six(3).into())));
        // Through the public address, from outside and from within.
        let public = prefix().embed(VIP);
        for who in [&lab.clients[0], &lab.backends[1]] {
            let told: BTreeSet<usize> = (0..40).filter_map(|_| Some(ask(who, public)?.0)).collect();
            assert_eq!(told, BTreeSet::from([1, 2, 3]), "{transit:?}: all have their turn");
        }
        // The older version goes on beside it.
        assert!(ask(&lab.clients[0], VIP).is_some() && ask(&lab.backends[0], dip(2)).is_some());
        assert_eq!(ask(&lab.clients[0], six(1)), None, "instances are reached through public addresses only");
    }
}

#[test]
fn strangers_liars_and_whoever_has_lost_its_lease_stay_out_over_ipv6() {
    if !is_root() {
        return;
    }
    let mut lab = lab(Transit::Vxlan);
    let all = lab.all();
    let six = |number| prefix().embed(dip(number));
    // The second guest becomes another deployment's.
    lab.hosts[1].guests[0].deployment_id = "other".to_owned();
    lab.goal.routes[1].deployment_id = "other".to_owned();
    lab.follow(&all);
    assert_eq!(ask(&lab.backends[0], six(2)), None);
    assert_eq!(ask(&lab.backends[1], six(1)), None);
    assert!(ask(&lab.backends[0], six(3)).is_some());
    assert!(ask(&lab.backends[1], prefix().embed(VIP)).is_some(), "the public address is everybody's");
    // One that says that it is another.
    let before = counted(&lab, 1, "spoofed");
    lab.backends[0].run(move |kit| {
        let lie = kit.links.add_address("eth0", prefix().embed(dip(77)), 128);
        kit.runtime.block_on(lie).unwrap();
        let socket = std::net::UdpSocket::bind((prefix().embed(dip(77)), 0)).unwrap();
        socket.send_to(b"lie", (prefix().embed(dip(3)), PORT)).unwrap();
    });
    assert!(counted(&lab, 1, "spoofed") > before);
    // One that claims to be a router, or the owner of the public address.
    let before = counted(&lab, 3, "spoofed");
    lab.backends[2].run(move |kit| {
        let (index, mac) = kit
            .runtime
            .block_on(async { (kit.links.index("eth0").await.unwrap(), kit.links.mac("eth0").await.unwrap()) });
        announce(index, mac, prefix().embed(VIP).into()).unwrap();
    });
    assert!(counted(&lab, 3, "spoofed") > before);
    assert!(ask(&lab.backends[2], prefix().embed(VIP)).is_some());
    // A policy holds for both versions.
    lab.hosts[0].guests[0].egress = "deny".parse().unwrap();
    lab.follow(&all);
    assert!(ask(&lab.backends[0], prefix().embed(VIP)).is_none() && ask(&lab.backends[0], six(3)).is_some());
    // Without IPv6 for its role, a guest that has given itself the address is not there.
    lab.goal.routes[2].ipv6 = false;
    lab.hosts[2].guests[0].ipv6 = false;
    lab.follow(&all);
    assert!(ask(&lab.backends[0], six(3)).is_none() && ask(&lab.backends[0], dip(3)).is_some());
    let told: BTreeSet<usize> = (0..40).filter_map(|_| Some(ask(&lab.clients[0], prefix().embed(VIP))?.0)).collect();
    assert_eq!(told, BTreeSet::from([1, 2]), "it is behind no endpoint over IPv6 either");
    // A host without a lease takes both off the network.
    lab.hosts[0].namespace.run(|kit| kit.nft.revoke(true).unwrap());
    assert!(ask(&lab.backends[0], dip(3)).is_none());
    let told: BTreeSet<_> = (0..16).map(|_| ask(&lab.clients[0], prefix().embed(VIP)).map(|told| told.0)).collect();
    assert_eq!(told, BTreeSet::from([None, Some(2)]));
}

#[test]
fn a_guest_learns_of_its_router() {
    if !is_root() {
        return;
    }
    let lab = Lab::with(1, 0, Transit::Vxlan, Some(prefix()));
    lab.backends[0].run(|kit| {
        // As a kernel does by itself that has just been started.
        let routes = std::process::Command::new("ip").args(["-6", "route", "flush", "default"]).status().unwrap();
        assert!(routes.success());
        for (name, value) in [("disable_ipv6", "1"), ("accept_ra", "2"), ("disable_ipv6", "0")] {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/eth0/{name}"), value).unwrap();
        }
        let _ = kit;
    });
    let guest = lab.hosts[0].guests[0].clone();
    lab.hosts[0].namespace.run(move |kit| {
        let lease = DhcpLease {
            address: guest.dip,
            ipv6: Some(prefix().embed(guest.dip)),
            host_name: "one".to_owned(),
            domain: "d".to_owned(),
            mtu: 1400,
        };
        let serving = serve_guest(&kit.links, &guest.tap, lease);
        kit.runtime.block_on(async { drop(tokio::time::timeout(Duration::from_secs(6), serving).await) });
    });
    let (routes, mtu) = lab.backends[0].run(|_| {
        let routes = std::process::Command::new("ip").args(["-6", "route", "show", "default"]).output().unwrap();
        let mtu = std::fs::read_to_string("/proc/sys/net/ipv6/conf/eth0/mtu").unwrap();
        (String::from_utf8(routes.stdout).unwrap(), mtu)
    });
    assert!(routes.contains("via fe80::1 dev eth0 proto ra"), "{routes}");
    assert_eq!(mtu.trim(), "1400");
}

#[test]
fn a_guest_takes_little_room_in_its_hosts_table_of_neighbours() {
    if !is_root() {
        return;
    }
    let lab = Lab::with(1, 0, Transit::Vxlan, Some(prefix()));
    let before = counted(&lab, 1, "spoofed");
    let speak = |kit: &mut crate::lab::Kit| {
        let device = kit.runtime.block_on(kit.links.index("eth0")).unwrap();
        for last in 100..120 {
            let own = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, last);
            kit.runtime.block_on(kit.links.add_address("eth0", own, 64)).unwrap();
            let socket = std::net::UdpSocket::bind(std::net::SocketAddrV6::new(own, 0, 0, device)).unwrap();
            let to = std::net::SocketAddrV6::new(mayfly_net::address::TAP_GATEWAY, 547, 0, device);
            socket.send_to(b"here I am", to).unwrap();
        }
    };
    let known = || lab.hosts[0].namespace.run(|kit| kit.nft.run("list set inet mayfly l_mft1").unwrap());
    // Packets wait, and are lost, until the host has said where it is.
    for _ in 0..100 {
        lab.backends[0].run(speak);
        std::thread::sleep(Duration::from_millis(100));
        if known().matches("fe80::").count() >= 8 && counted(&lab, 1, "spoofed") > before {
            break;
        }
    }
    lab.backends[0].run(speak);
    assert_eq!(known().matches("fe80::").count(), 8, "{}", known());
    assert!(counted(&lab, 1, "spoofed") > before);
}
