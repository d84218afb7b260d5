//! A guest that sends whatever it likes, and what of it arrives anywhere: captured on the other side.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::time::Duration;

use mayfly_model::Transit;
use mayfly_net::address::{GATEWAY, METADATA, WIRE_SERVER};

use crate::frames::{Tap, Way, arp_reply, ethernet, fragment, syn, tcp_of, udp};
use crate::lab::{Lab, Namespace, VIP, dip, underlay};

/// What the guest puts into everything it sends.
const MARK: &[u8] = b"from the adversary";
const QUIET: Duration = Duration::from_millis(100);
const IP: u16 = 0x0800;

/// Three hosts: the adversary on the first, one of its own deployment on the second, a stranger on the third.
fn lab(transit: Transit) -> Lab {
    let mut lab = Lab::new(3, 1, transit);
    lab.goal.routes[2].deployment_id = "other".to_owned();
    lab.hosts[2].guests[0].deployment_id = "other".to_owned();
    lab.follow(&lab.all());
    lab
}

fn mac(number: usize) -> [u8; 6] {
    let [a, b, c, d] = dip(number).octets();
    [2, 0, a, b, c, d]
}

/// The hardware address of the adversary's tap on its host.
fn gateway_mac(lab: &Lab) -> [u8; 6] {
    lab.hosts[0].namespace.run(|kit| kit.runtime.block_on(kit.links.mac("mft1")).unwrap())
}

/// Everything that is wrong, as frames.
fn wicked(gateway: [u8; 6]) -> Vec<(&'static str, Vec<u8>)> {
    let (own, friend, stranger) = (dip(1), dip(2), dip(3));
    let way = |from: Ipv4Addr, to: Ipv4Addr| Way { from: (from, 4000), to: (to, 7471) };
    let send = |packet: &[u8]| ethernet(gateway, mac(1), IP, packet);
    let inner = ethernet([0xff; 6], mac(2), IP, &udp(way(friend, stranger), MARK));
    let tunnel = [&[8, 0, 0, 0, 0, 0x1b, 0x9e, 0][..], &inner].concat();
    let through = |host: usize| Way { from: (own, 4000), to: (underlay(host), 4789) };
    let tagged = [&[0, 5, 8, 0][..], &udp(way(own, stranger), MARK)].concat();
    let offer = Way { from: (own, 67), to: (Ipv4Addr::BROADCAST, 68) };
    let localhost = Ipv4Addr::LOCALHOST;
    vec![
        ("another's hardware address", ethernet(gateway, mac(2), IP, &udp(way(own, friend), MARK))),
        ("another's address", send(&udp(way(friend, friend), MARK))),
        ("the stranger's own address", send(&udp(way(stranger, stranger), MARK))),
        ("an address of nobody", send(&udp(way(Ipv4Addr::new(10, 80, 9, 9), friend), MARK))),
        ("loopback's address", send(&udp(way(localhost, friend), MARK))),
        ("no address", send(&udp(way(Ipv4Addr::UNSPECIFIED, friend), MARK))),
        ("to the stranger", send(&udp(way(own, stranger), MARK))),
        ("a piece of a packet to the stranger", send(&fragment(way(own, stranger), MARK))),
        ("to its own host", send(&udp(way(own, underlay(1)), MARK))),
        ("to another host", send(&udp(way(own, underlay(2)), MARK))),
        ("to its host inside the tunnel", send(&udp(way(own, Ipv4Addr::new(100, 64, 0, 1)), MARK))),
        ("to another host inside the tunnel", send(&udp(way(own, Ipv4Addr::new(100, 64, 0, 2)), MARK))),
        ("to its host's loopback", send(&udp(way(own, localhost), MARK))),
        ("a tunnel's packet to its own host", send(&udp(through(1), &tunnel))),
        ("a tunnel's packet to another host", send(&udp(through(3), &tunnel))),
        ("to the client's network", send(&udp(way(own, Ipv4Addr::new(10, 77, 0, 201)), MARK))),
        ("to everybody", ethernet([0xff; 6], mac(1), IP, &udp(way(own, Ipv4Addr::BROADCAST), MARK))),
        (
            "to all of the network",
            ethernet([0xff; 6], mac(1), IP, &udp(way(own, Ipv4Addr::new(10, 80, 255, 255)), MARK)),
        ),
        ("to a group", ethernet([1, 0, 0x5e, 0, 0, 1], mac(1), IP, &udp(way(own, Ipv4Addr::new(224, 0, 0, 1)), MARK))),
        ("as a DHCP server", ethernet([0xff; 6], mac(1), IP, &udp(offer, MARK))),
        ("with a VLAN's tag", ethernet(gateway, mac(1), 0x8100, &tagged)),
        (
            "by IPv6",
            ethernet(
                [0x33, 0x33, 0, 0, 0, 1],
                mac(1),
                0x86dd,
                &[&[0x60, 0, 0, 0, 0, 18, 59, 255][..], &[0xfe; 32], MARK].concat(),
            ),
        ),
        ("by a protocol of its own", ethernet([0xff; 6], mac(1), 0x88b5, MARK)),
        ("ARP: it is the gateway", ethernet([0xff; 6], mac(1), 0x0806, &arp_reply(mac(1), GATEWAY, friend))),
        ("ARP: it is its friend", ethernet([0xff; 6], mac(1), 0x0806, &arp_reply(mac(1), friend, GATEWAY))),
        ("ARP: its friend is elsewhere", ethernet(gateway, mac(1), 0x0806, &arp_reply(mac(9), friend, GATEWAY))),
    ]
}

fn send_from(namespace: &Namespace, frames: Vec<Vec<u8>>) {
    namespace.run(move |_| {
        let tap = Tap::open("eth0");
        frames.iter().for_each(|frame| tap.send(frame));
    });
}

/// Watches a device in a namespace while something happens: the frames that bear the mark.
struct Watch<'l> {
    whose: &'static str,
    namespace: &'l Namespace,
    tap: Option<Tap>,
}

impl<'l> Watch<'l> {
    fn start(whose: &'static str, namespace: &'l Namespace, device: &'static str) -> Watch<'l> {
        Watch { whose, namespace, tap: Some(namespace.run(move |_| Tap::open(device))) }
    }

    fn marked(&mut self) -> usize {
        let tap = self.tap.take().unwrap();
        let (marked, tap) = self.namespace.run(move |_| {
            let frames = tap.seen(QUIET);
            let marked = frames.iter().filter(|frame| frame.windows(MARK.len()).any(|part| part == MARK)).count();
            (marked, tap)
        });
        self.tap = Some(tap);
        marked
    }
}

#[test]
fn what_an_adversary_sends_arrives_nowhere() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: this needs root");
        return;
    }
    attack(&lab(Transit::Vxlan));
    attack(&lab(Transit::Routed));
    // Where guests may leave the fabric, hosts of another network are as far away, and so is what is closed.
    let mut open = lab(Transit::Vxlan);
    for host in &mut open.hosts {
        (host.egress, host.closed) = (Some("10.99.0.0/24"), vec!["10.77.0.201".parse().unwrap()]);
    }
    open.follow(&open.all());
    attack(&open);
}

fn attack(lab: &Lab) {
    let gateway = gateway_mac(lab);
    // Something listens on the hosts that it would like to reach.
    let listening: Vec<UdpSocket> = lab
        .hosts
        .iter()
        .map(|host| {
            host.namespace.run(|_| {
                let socket = UdpSocket::bind(("0.0.0.0", 7471)).unwrap();
                socket.set_nonblocking(true).unwrap();
                socket
            })
        })
        .collect();
    let mut watches = [
        Watch::start("its friend", &lab.backends[1], "eth0"),
        Watch::start("the stranger", &lab.backends[2], "eth0"),
        Watch::start("the wire of another host", &lab.hosts[1].namespace, "eth0"),
        Watch::start("the wire of a third host", &lab.hosts[2].namespace, "eth0"),
        Watch::start("a client", &lab.clients[0], "eth0"),
    ];
    // What it may send does arrive, or this would prove nothing.
    let good = Way { from: (dip(1), 4000), to: (dip(2), 7471) };
    send_from(&lab.backends[0], vec![ethernet(gateway, mac(1), IP, &udp(good, MARK))]);
    let seen: Vec<usize> = watches.iter_mut().map(Watch::marked).collect();
    // Through the tunnel it is seen on the wire of the host that it goes to, as is the answer that there is nobody at that
    // port, which quotes it.
    let arrived: Vec<bool> = seen.iter().map(|count| *count > 0).collect();
    assert_eq!(arrived, [true, false, true, false, false], "{seen:?}");

    for (what, frame) in wicked(gateway) {
        send_from(&lab.backends[0], vec![frame; 3]);
        for watch in &mut watches {
            assert_eq!(watch.marked(), 0, "{:?}: {what}: it reached {}", lab.transit, watch.whose);
        }
        for (host, socket) in (1..).zip(&listening) {
            assert!(socket.recv(&mut [0; 64]).is_err(), "{what}: host {host} has heard it");
        }
    }
    // A flood of it does not keep others from talking.
    let flood: Vec<Vec<u8>> = wicked(gateway).into_iter().map(|(_, frame)| frame).collect();
    send_from(&lab.backends[0], flood.iter().cycle().take(100_000).cloned().collect());
    lab.backends[1].run(|_| {
        let listener = TcpListener::bind("0.0.0.0:80").unwrap();
        std::thread::spawn(move || listener.incoming().for_each(drop));
    });
    lab.clients[0].run(|_| {
        // Only one of three listens.
        let connect = |_| std::net::TcpStream::connect_timeout(&(VIP, 80).into(), Duration::from_secs(5)).err();
        let refused: Vec<_> = (0..100).map_while(connect).collect();
        assert!(refused.len() < 100, "the public address does not answer any more: {:?}", refused.last());
    });
    for watch in &mut watches[1..] {
        assert_eq!(watch.marked(), 0, "the flood reached {}", watch.whose);
    }
}

#[test]
fn a_scan_of_all_ports_finds_the_guests_servers_and_no_others() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: this needs root");
        return;
    }
    let lab = lab(Transit::Vxlan);
    let gateway = gateway_mac(&lab);
    // Hosts have servers of their own, and the stranger has some.
    let serve = |namespace: &Namespace| {
        namespace.run(|_| {
            let ports = [22, 53, 80, 443, 4789, 7070, 7471, 7473];
            let listeners = ports.map(|port| TcpListener::bind(("0.0.0.0", port)).unwrap());
            std::mem::forget(listeners);
        });
    };
    lab.hosts.iter().for_each(|host| serve(&host.namespace));
    serve(&lab.backends[2]);
    let scan = |target: Ipv4Addr| -> (BTreeSet<u16>, BTreeSet<u16>) {
        lab.backends[0].run(move |_| {
            let tap = Tap::open("eth0");
            let (mut open, mut closed) = (BTreeSet::new(), BTreeSet::new());
            for chunk in (1..=u16::MAX).collect::<Vec<u16>>().chunks(512) {
                for port in chunk {
                    let way = Way { from: (dip(1), 40_000), to: (target, *port) };
                    tap.send(&ethernet(gateway, mac(1), IP, &syn(way)));
                }
                for (port, flags) in tap.seen(Duration::from_millis(4)).iter().filter_map(|frame| tcp_of(frame)) {
                    match flags & 0x17 {
                        0x12 => drop(open.insert(port)),
                        0x14 => drop(closed.insert(port)),
                        _ => {}
                    }
                }
            }
            (open, closed)
        })
    };
    let nothing = BTreeSet::new();
    // The plug-in's port is let through, and nobody serves there in the lab.
    assert_eq!(scan(WIRE_SERVER), (BTreeSet::from([53, 80]), BTreeSet::from([32526])));
    assert_eq!(scan(METADATA), (BTreeSet::from([80]), nothing.clone()));
    let third_overlay = Ipv4Addr::new(100, 64, 0, 3);
    for target in [GATEWAY, underlay(1), underlay(3), third_overlay, dip(3), Ipv4Addr::new(10, 77, 0, 201)] {
        assert_eq!(scan(target), (nothing.clone(), nothing.clone()), "{target}");
    }
}
