//! Direct return: hosts answer the clients of their guests themselves, whatever host has the public address.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use mayfly_model::Transit;
use mayfly_net::address::{OVERLAY_DEVICE, UNDERLAY_DEVICE};
use mayfly_net::plan::ruleset::{INGRESS_TABLE, Present};
use mayfly_net::{Flows, announce, forget_strays};
use socket2::{Domain, Socket, Type};

use crate::lab::{Lab, Namespace, PORT, VIP, dip, reach_public, underlay};

const BACKENDS: usize = 3;
const HELD: usize = 30;
/// Bytes of an answer that its sender has to be told of in between.
const ANSWER: usize = 4 << 20;
/// Bytes of a datagram that has to be cut for every network here.
const LARGE: usize = 4000;

/// Says who the client is, whenever a byte comes.
fn tell(backend: &Namespace) {
    backend.run(|_| {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, mut byte) = (stream.unwrap(), [0]);
                let SocketAddr::V4(client) = stream.peer_addr().unwrap() else { continue };
                std::thread::spawn(move || {
                    while stream.read_exact(&mut byte).is_ok() && stream.write_all(&client.ip().octets()).is_ok() {}
                });
            }
        });
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap();
        std::thread::spawn(move || {
            let mut bytes = [0; LARGE];
            while let Ok((length, from)) = socket.recv_from(&mut bytes) {
                let _ = socket.send_to(&bytes[..length], from);
            }
        });
    });
}

fn ask(stream: &mut TcpStream) -> std::io::Result<Ipv4Addr> {
    let mut address = [0; 4];
    stream.write_all(&[0])?;
    stream.read_exact(&mut address)?;
    Ok(address.into())
}

fn open() -> TcpStream {
    let stream = TcpStream::connect_timeout(&SocketAddr::from((VIP, PORT)), Duration::from_secs(5)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream
}

/// Connects from a port of the client's choice; at its end, that is free for another connection at once.
fn open_from(port: u16) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_linger(Some(Duration::ZERO))?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
    socket.connect_timeout(&SocketAddr::from((VIP, PORT)).into(), Duration::from_secs(5))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(socket.into())
}

/// Connects many times, and says who the backends say it is.
fn known_as(client: &Namespace) -> BTreeSet<Ipv4Addr> {
    client.run(|_| (0..HELD).map(|_| ask(&mut open()).unwrap()).collect())
}

#[test]
fn a_host_that_says_nothing_for_long_does_not_answer_for_its_public_addresses() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: this needs root");
        return;
    }
    let lab = Lab::new(1, 2, Transit::Vxlan);
    lab.backends.iter().for_each(tell);
    assert_eq!(known_as(&lab.clients[0]).len(), 1);
    let speaks = |millis: u64| {
        let host = &lab.hosts[0].namespace;
        host.run(move |kit| kit.nft.lease(&[], &BTreeSet::from([VIP.into()]), millis)).unwrap();
    };
    speaks(300);
    std::thread::sleep(Duration::from_millis(600));
    let connect = |client: &Namespace| {
        let connected =
            client.run(|_| TcpStream::connect_timeout(&SocketAddr::from((VIP, PORT)), Duration::from_secs(9)));
        connected.map(drop).map_err(|error| error.kind())
    };
    assert_eq!(connect(&lab.clients[1]), Err(ErrorKind::HostUnreachable), "nobody answers for the address");
    speaks(60_000);
    assert_eq!(connect(&lab.clients[1]), Ok(()), "once it speaks again, it does");
}

/// Gives the public address to the second host, whose clients do not know of it at once.
fn move_address(lab: &mut Lab) {
    lab.goal.vips[0].owners.swap(0, 1);
    lab.follow(&lab.all());
    std::thread::sleep(Duration::from_millis(200));
    for (host, owns) in lab.hosts.iter().zip([false, true]) {
        host.namespace.run(move |kit| {
            let vips = owns.then_some(IpAddr::V4(VIP)).into_iter().collect();
            kit.runtime.block_on(kit.links.set_vips(&vips, |address| address == VIP)).unwrap();
            if owns {
                let index = kit.runtime.block_on(kit.links.index(UNDERLAY_DEVICE)).unwrap();
                let mac = kit.runtime.block_on(kit.links.mac(UNDERLAY_DEVICE)).unwrap();
                announce(index, mac, VIP.into()).unwrap();
            }
        });
    }
}

#[test]
fn hosts_answer_the_clients_of_their_guests_themselves() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: this needs root");
        return;
    }
    let client = Ipv4Addr::new(10, 77, 0, 201);
    for transit in [Transit::Vxlan, Transit::Routed] {
        let mut lab = Lab::new(BACKENDS, 1, transit);
        lab.backends.iter().for_each(tell);
        assert_eq!(known_as(&lab.clients[0]), BTreeSet::from([client]), "{transit}: guests see who their clients are");
        // A host that is a client itself is answered too, also by its own guest.
        let other = &lab.hosts[1].namespace;
        other.run(|kit| kit.runtime.block_on(reach_public(&kit.links, &kit.handle)));
        assert!(!known_as(other).is_empty());
        // Open connections live on when the address moves: the new host leads them where they were led before.
        let mut held: Vec<TcpStream> = lab.clients[0].run(|_| (0..HELD).map(|_| open()).collect());
        held.iter_mut().for_each(|stream| assert_eq!(ask(stream).unwrap(), client));
        let talk = std::thread::spawn(move || {
            let began = Instant::now();
            while began.elapsed() < Duration::from_millis(600) {
                for (number, stream) in held.iter_mut().enumerate() {
                    let answer = ask(stream).unwrap_or_else(|error| panic!("{transit}: connection {number}: {error}"));
                    assert_eq!(answer, client);
                }
            }
        });
        move_address(&mut lab);
        talk.join().unwrap();
        assert_eq!(known_as(&lab.clients[0]), BTreeSet::from([client]), "{transit}: at the new host");
        // One that does not hand on takes what is handed on to it.
        lab.hosts[2].direct_return = false;
        lab.follow(&lab.all());
        assert_eq!(known_as(&lab.clients[0]), BTreeSet::from([client]), "{transit}: with one that does not hand on");
        // Where the network does not carry that, answers come back the same way.
        lab.hosts[1].direct_return = false;
        lab.follow(&lab.all());
        let known = known_as(&lab.clients[0]);
        let through = match transit {
            Transit::Routed => underlay(2),
            _ => Ipv4Addr::new(100, 64, 0, 2),
        };
        assert_eq!(known, BTreeSet::from([client, through]), "{transit}: answers through the host with the address");
    }
}

#[test]
fn clients_of_an_instance_that_is_gone_are_told_and_find_another() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: this needs root");
        return;
    }
    let ways = [(Transit::Vxlan, true), (Transit::Routed, true), (Transit::Vxlan, false)];
    for (transit, direct_return) in ways {
        let mut lab = Lab::new(BACKENDS, 1, transit);
        lab.hosts.iter_mut().for_each(|host| host.direct_return = direct_return);
        lab.follow(&lab.all());
        lab.backends.iter().for_each(tell);
        let which = format!("{transit}, direct return: {direct_return}");
        // From the same ports again and again.
        let ask_all = |lab: &Lab| -> Vec<TcpStream> {
            let which = which.clone();
            lab.clients[0].run(move |_| {
                let ask = |port| {
                    let mut stream = open_from(port)?;
                    ask(&mut stream)?;
                    Ok::<_, std::io::Error>(stream)
                };
                let ports = 20_000..20_000 + HELD as u16;
                ports.map(|port| ask(port).unwrap_or_else(|error| panic!("{which}: from {port}: {error}"))).collect()
            })
        };
        drop(ask_all(&lab));
        let mut held: Vec<TcpStream> = lab.clients[0].run(|_| (0..HELD).map(|_| open()).collect());
        // One of another host, then one of the host that has the public address.
        for gone in [2, 1] {
            lab.goal.vips[0].endpoints[0].backends.retain(|backend| backend.dip != dip(gone));
            lab.goal.routes.iter_mut().for_each(|route| route.leaving |= route.dip == dip(gone));
            lab.follow(&lab.all());
            // Nobody new is sent to one that is being drained, so its end is nothing to them.
            let mut late = ask_all(&lab);
            lab.goal.routes.retain(|route| route.dip != dip(gone));
            lab.hosts[gone - 1].guests.clear();
            lab.follow(&lab.all());
            for (number, stream) in late.iter_mut().enumerate() {
                ask(stream).unwrap_or_else(|error| panic!("{which}: connection {number} since {gone} left: {error}"));
            }
            drop(late);
            drop(ask_all(&lab));
            // Connections that were open with it are told; the others live on.
            let before = held.len();
            held.retain_mut(|stream| match ask(stream) {
                Ok(_) => true,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => false,
                Err(error) => panic!("{which}: an open connection: {error}"),
            });
            assert!(held.len() < before, "{which}: none was open with {gone}");
        }
        assert!(!held.is_empty(), "{which}: all were cut");
    }
}

#[test]
fn connections_outlive_a_host_that_forgets_them() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: this needs root");
        return;
    }
    for transit in [Transit::Vxlan, Transit::Routed] {
        let lab = Lab::new(BACKENDS, 1, transit);
        lab.backends.iter().for_each(tell);
        let mut held: Vec<TcpStream> = lab.clients[0].run(|_| (0..HELD).map(|_| open()).collect());
        for host in &lab.hosts {
            let forgotten = host.namespace.run(|kit| {
                // To somebody who knows of no guests, all are gone.
                kit.runtime.block_on(forget_strays(&Flows::default(), None)).unwrap()
            });
            assert!(forgotten > 0, "{transit}: {} had connections", host.name);
        }
        for (number, stream) in held.iter_mut().enumerate() {
            ask(stream).unwrap_or_else(|error| panic!("{transit}: connection {number}: {error}"));
        }
    }
}

#[test]
fn connections_outlive_an_overlay_that_is_made_anew() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: this needs root");
        return;
    }
    let mut lab = Lab::new(BACKENDS, 1, Transit::Vxlan);
    lab.backends.iter().for_each(tell);
    let mut held: Vec<TcpStream> = lab.clients[0].run(|_| (0..HELD).map(|_| open()).collect());
    lab.hosts[0].namespace.run(|kit| kit.runtime.block_on(kit.links.delete(OVERLAY_DEVICE)).unwrap());
    // Nothing is known of what the kernel holds, as the agent does.
    lab.hosts[0].applied = None;
    lab.follow(&lab.all());
    for (number, stream) in held.iter_mut().enumerate() {
        ask(stream).unwrap_or_else(|error| panic!("connection {number}: {error}"));
    }
    assert_eq!(known_as(&lab.clients[0]).len(), 1, "still answered directly");
}

#[test]
fn who_is_not_remembered_is_led_by_hash() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: this needs root");
        return;
    }
    let mut lab = Lab::new(BACKENDS, 1, Transit::Vxlan);
    lab.backends.iter().for_each(tell);
    // As after a flood, there is no room for more.
    let spread = lab.hosts[0].applied.as_ref().unwrap().spread.whole(&Present::default());
    let (room, little) = (format!("size {};", 1 << 20), "size 2;");
    assert!(spread.contains(&room), "{spread}");
    let script = format!("delete table {INGRESS_TABLE}\n{}", spread.replace(&room, little));
    lab.hosts[0].namespace.run(move |kit| kit.nft.apply(&script).unwrap());
    let mut held: Vec<TcpStream> = lab.clients[0].run(|_| (0..HELD).map(|_| open()).collect());
    let mut ask_all = || held.iter_mut().map(|stream| ask(stream).unwrap()).count();
    assert_eq!(ask_all(), HELD);
    // A change that leaves the number of backends leaves the hash.
    let all = lab.all();
    lab.follow(&BTreeSet::from([1, 2]));
    lab.follow(&all);
    assert_eq!(ask_all(), HELD);
}

#[test]
fn clients_are_told_what_fits_into_the_tunnel() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: this needs root");
        return;
    }
    let lab = Lab::new(BACKENDS, 1, Transit::Vxlan);
    lab.backends.iter().for_each(tell);
    // The backends' own devices say 1500.
    let segments: BTreeSet<u32> = lab.clients[0].run(|_| {
        let segment = |_| nix::sys::socket::getsockopt(&open(), nix::sys::socket::sockopt::TcpMaxSeg).unwrap();
        (0..HELD).map(segment).collect()
    });
    // 1450 bytes without the headers of IP and TCP, and the latter's time stamps.
    assert_eq!(segments, BTreeSet::from([1398]));
}

#[test]
fn a_client_that_has_said_everything_still_hears_the_answer() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: this needs root");
        return;
    }
    let mut lab = Lab::new(BACKENDS, 1, Transit::Vxlan);
    for backend in &lab.backends {
        backend.run(|_| {
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap();
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let mut stream = stream.unwrap();
                    // Every answer waits for an end, and is longer than what goes out without being acknowledged.
                    std::thread::spawn(move || {
                        let _ = stream.read_to_end(&mut Vec::new());
                        std::thread::sleep(Duration::from_millis(300));
                        stream.write_all(&vec![1; ANSWER])
                    });
                }
            });
        });
    }
    let waiting: Vec<TcpStream> = lab.clients[0].run(|_| {
        let open = |_| {
            let stream = open();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            stream
        };
        (0..HELD).map(open).collect()
    });
    // Nobody new is sent to two of them.
    lab.follow(&BTreeSet::from([1]));
    for mut stream in waiting {
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).unwrap();
        assert_eq!(heard.len(), ANSWER);
    }
}

#[test]
fn datagrams_in_pieces_arrive_and_are_answered() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: this needs root");
        return;
    }
    let mut lab = Lab::new(BACKENDS, 1, Transit::Vxlan);
    lab.backends.iter().for_each(tell);
    lab.goal.vips[0].endpoints[0].udp = true;
    lab.follow(&lab.all());
    lab.clients[0].run(|_| {
        for client in 0..12 {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            for length in [100, LARGE, 100] {
                socket.send_to(&vec![7; length], (VIP, PORT)).unwrap();
                let answered = socket.recv(&mut [0; LARGE]);
                assert_eq!(answered.ok(), Some(length), "client {client}");
            }
        }
    });
}
