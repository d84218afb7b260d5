//! What hosts say to each other through encrypted tunnels, and that nothing of it is said in the clear.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use mayfly_model::{Transit, TunnelKey};
use mayfly_net::address::{IMAGE_PORT, TUNNEL_DEVICE, TUNNEL_PORT, UNDERLAY_DEVICE, VXLAN_PORT};
use mayfly_net::mesh;

use crate::borrowed;
use crate::dual::{ask, prefix, serve};
use crate::frames::{Tap, Way, ethernet, udp};
use crate::lab::{Lab, VIP, dip, underlay};

/// What is looked for on the wire.
const SECRET: &[u8] = b"nobody on the way may read this";
const QUIET: Duration = Duration::from_millis(500);

#[test]
fn hosts_say_nothing_to_each_other_in_the_clear() {
    if !borrowed::is_inside("encrypted::hosts_say_nothing_to_each_other_in_the_clear", &[]) {
        return;
    }
    let lab = Lab::with(3, 1, Transit::Wireguard, Some(prefix()));
    for (number, backend) in (1..).zip(&lab.backends) {
        serve(backend, number);
    }
    everybody_is_reached(&lab);
    the_wire_shows_nothing(&lab);
    words_and_chunks_go_through(&lab);
    forgeries_are_dropped(&lab);
    keys_come_and_go(&lab);
    without_the_tunnel_nothing_goes(&lab);
    the_tunnel_is_made_again(&lab);
}

fn everybody_is_reached(lab: &Lab) {
    let six = |number| prefix().embed(dip(number));
    assert_eq!(ask(&lab.backends[0], dip(2)), Some((2, dip(1).into())));
    assert_eq!(ask(&lab.backends[2], six(1)), Some((1, six(3).into())));
    for who in [&lab.clients[0], &lab.backends[1]] {
        let told: BTreeSet<usize> = (0..40).filter_map(|_| Some(ask(who, VIP)?.0)).collect();
        assert_eq!(told, BTreeSet::from([1, 2, 3]));
    }
}

/// Frames on a host's card while something is done, elsewhere.
fn seen_while(lab: &Lab, host: usize, act: impl FnOnce()) -> Vec<Vec<u8>> {
    let (tell, told) = std::sync::mpsc::channel();
    let namespace = &lab.hosts[host - 1].namespace;
    std::thread::scope(|scope| {
        let watch = scope.spawn(move || {
            namespace.run(move |_| {
                let tap = Tap::open(UNDERLAY_DEVICE);
                tell.send(()).unwrap();
                tap.seen(QUIET)
            })
        });
        told.recv().unwrap();
        act();
        watch.join().unwrap()
    })
}

/// The ports of a frame with UDP or TCP over IPv4.
fn ports(frame: &[u8]) -> Option<(u8, u16, u16)> {
    let is_ip = frame.get(12..14) == Some(&[8, 0]);
    let word = |at: usize| Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
    Some((*frame.get(23).filter(|_| is_ip)?, word(34)?, word(36)?))
}

fn the_wire_shows_nothing(lab: &Lab) {
    let backend = &lab.backends[1];
    let arrived = backend.run(|_| {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 9000)).unwrap();
        std::thread::spawn(move || {
            let mut told = Vec::new();
            listener.accept().unwrap().0.read_to_end(&mut told).unwrap();
            told.len()
        })
    });
    let frames = seen_while(lab, 1, || {
        lab.backends[0].run(|_| {
            let mut stream = TcpStream::connect((dip(2), 9000)).unwrap();
            stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
            stream.write_all(&SECRET.repeat(4000)).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(stream.read(&mut [0]).unwrap(), 0, "all has been read");
        });
    });
    assert_eq!(arrived.join().unwrap(), 4000 * SECRET.len(), "more than fits into one packet arrives whole");
    let through = frames.iter().filter(|frame| ports(frame).is_some_and(|(_, _, to)| to == TUNNEL_PORT)).count();
    assert!(through > 50, "{through} of {} frames", frames.len());
    for frame in &frames {
        assert!(!frame.windows(SECRET.len()).any(|bytes| bytes == SECRET), "{frame:02x?}");
        assert_ne!(ports(frame).map(|(_, _, to)| to), Some(VXLAN_PORT));
    }
}

fn words_and_chunks_go_through(lab: &Lab) {
    lab.hosts[1].namespace.run(|_| {
        let words = UdpSocket::bind((underlay(2), mesh::PORT)).unwrap();
        let chunks = TcpListener::bind((underlay(2), IMAGE_PORT)).unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            let (length, from) = words.recv_from(&mut buffer).unwrap();
            words.send_to(&buffer[..length], from).unwrap();
            let (mut stream, from) = chunks.accept().unwrap();
            assert_eq!(from.ip(), underlay(1), "hosts know each other by their own addresses");
            stream.write_all(SECRET).unwrap();
        });
    });
    let frames = seen_while(lab, 2, || {
        lab.hosts[0].namespace.run(|_| {
            let words = UdpSocket::bind((underlay(1), mesh::PORT)).unwrap();
            words.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            words.send_to(SECRET, (underlay(2), mesh::PORT)).unwrap();
            let mut buffer = [0; 64];
            let (length, from) = words.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..length], from), (SECRET, SocketAddr::from((underlay(2), mesh::PORT))));
            let mut stream = TcpStream::connect((underlay(2), IMAGE_PORT)).unwrap();
            let mut told = Vec::new();
            stream.read_to_end(&mut told).unwrap();
            assert_eq!(told, SECRET);
        });
    });
    for frame in &frames {
        assert!(!frame.windows(SECRET.len()).any(|bytes| bytes == SECRET), "{frame:02x?}");
    }
    assert!(frames.iter().any(|frame| ports(frame).is_some_and(|(_, from, _)| from == TUNNEL_PORT)));
}

/// Packets in the clear that look as if another host had sent them.
fn forgeries_are_dropped(lab: &Lab) {
    let heard = lab.hosts[1].namespace.run(|kit| {
        let words = UdpSocket::bind((underlay(2), mesh::PORT)).unwrap();
        words.set_read_timeout(Some(QUIET)).unwrap();
        (words, kit.runtime.block_on(kit.links.mac(UNDERLAY_DEVICE)).unwrap())
    });
    let (words, mac) = heard;
    let guest = lab.backends[1].run(|_| Tap::open(UNDERLAY_DEVICE));
    lab.clients[0].run(move |_| {
        let tap = Tap::open(UNDERLAY_DEVICE);
        let word = udp(Way { from: (underlay(1), mesh::PORT), to: (underlay(2), mesh::PORT) }, b"forged");
        tap.send(&ethernet(mac, [2, 0, 0, 0, 0, 9], 0x0800, &word));
        // A guest's packet, as VXLAN carries it (RFC 7348).
        let inner = udp(Way { from: (dip(1), 7), to: (dip(2), 9) }, b"forged");
        let inner = ethernet([2, 0x6d, 0x66, 0, 0, 2], [2, 0x6d, 0x66, 0, 0, 1], 0x0800, &inner);
        let [_, high, middle, low] = 7070_u32.to_be_bytes();
        let carried = [&[8, 0, 0, 0, high, middle, low, 0][..], &inner].concat();
        let carried = udp(Way { from: (underlay(1), 50_000), to: (underlay(2), VXLAN_PORT) }, &carried);
        tap.send(&ethernet(mac, [2, 0, 0, 0, 0, 9], 0x0800, &carried));
    });
    assert!(words.recv(&mut [0; 64]).is_err(), "a word in the clear is not heard");
    let reached = guest.seen(QUIET);
    assert!(!reached.iter().any(|frame| frame.windows(6).any(|bytes| bytes == b"forged")), "{reached:02x?}");
}

fn keys_come_and_go(lab: &Lab) {
    let wanted = lab.hosts[0].applied.as_ref().unwrap().tunnels.clone();
    assert_eq!(wanted.len(), 2);
    let mut fewer = wanted.clone();
    fewer.remove(&underlay(3));
    let mut other = fewer.clone();
    other.insert(underlay(2), TunnelKey([7; 32]));
    lab.hosts[0].namespace.run(move |kit| {
        let tunnel = kit.tunnel.clone().unwrap();
        // So many that the kernel tells of them in several messages.
        let address = |number: u32| Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 99, 0, 0)) + number);
        let key = |number: u32| TunnelKey([[0x10; 28].as_slice(), &number.to_be_bytes()].concat().try_into().unwrap());
        let many: BTreeMap<_, _> = (0..700).map(|number| (address(number), key(number))).collect();
        for (peers, changed) in [(&many, 4 + 1400), (&many, 0), (&wanted, 4 + 1400)] {
            assert_eq!(kit.runtime.block_on(tunnel.lead_to(peers)).unwrap(), changed);
        }
        // Each end is a key and a way.
        for (peers, changed) in
            [(&wanted, 0), (&fewer, 2), (&other, 2), (&fewer, 2), (&BTreeMap::new(), 2), (&wanted, 4), (&wanted, 0)]
        {
            assert_eq!(kit.runtime.block_on(tunnel.lead_to(peers)).unwrap(), changed, "{peers:?}");
        }
    });
    assert_eq!(ask(&lab.backends[0], dip(2)), Some((2, dip(1).into())), "it goes on with the right keys");
}

fn without_the_tunnel_nothing_goes(lab: &Lab) {
    lab.hosts[0].namespace.run(|kit| kit.runtime.block_on(kit.links.delete(TUNNEL_DEVICE)).unwrap());
    let frames = seen_while(lab, 2, || {
        lab.hosts[0].namespace.run(|_| {
            // What is led nowhere by the table would go by the usual way.
            let words = UdpSocket::bind((underlay(1), mesh::PORT)).unwrap();
            let _ = words.send_to(SECRET, (underlay(2), mesh::PORT));
            let address = SocketAddr::from((underlay(2), IMAGE_PORT));
            assert!(TcpStream::connect_timeout(&address, Duration::from_millis(300)).is_err());
        });
    });
    assert_eq!(ask(&lab.backends[0], dip(2)), None);
    let clear = [VXLAN_PORT, mesh::PORT, IMAGE_PORT];
    assert!(!frames.iter().any(|frame| ports(frame).is_some_and(|(_, _, to)| clear.contains(&to))), "{frames:02x?}");
}

/// Does what the agent does when something was not as planned.
fn the_tunnel_is_made_again(lab: &Lab) {
    let mut wanted = lab.hosts[0].applied.clone().unwrap();
    wanted.routes.retain(|address, _| address.is_ipv4());
    lab.hosts[0].namespace.run(move |kit| {
        let (tunnel, links) = (kit.tunnel.clone().unwrap(), kit.links.clone());
        let way = (underlay(1), Transit::Wireguard);
        kit.runtime.block_on(async {
            tunnel.lead_to(&wanted.tunnels).await.unwrap();
            links.create_overlay(Ipv4Addr::new(100, 64, 0, 1), [2, 0x6d, 0x66, 0, 0, 1], way).await.unwrap();
            links.set_peers(&wanted.peers, None).await.unwrap();
            links.set_routes(&wanted.routes).await.unwrap();
            // Another transit makes the device anew, the same one does not.
            for (transit, changed) in [(Transit::Wireguard, 0), (Transit::Vxlan, 4), (Transit::Wireguard, 4)] {
                links
                    .create_overlay(Ipv4Addr::new(100, 64, 0, 1), [2, 0x6d, 0x66, 0, 0, 1], (underlay(1), transit))
                    .await
                    .unwrap();
                assert_eq!(links.set_peers(&wanted.peers, None).await.unwrap(), changed, "{transit}");
            }
            links.set_routes(&wanted.routes).await.unwrap();
        });
    });
    assert_eq!(ask(&lab.backends[0], dip(2)), Some((2, dip(1).into())));
}
