//! Clients of UDP that keep one port while backends go.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use mayfly_model::Transit;

use crate::lab::{Lab, Namespace, PORT, VIP};

/// Answers each datagram with the backend's number.
fn echo(backend: &Namespace, number: u8) {
    backend.run(move |_| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap();
        std::thread::spawn(move || {
            while let Ok((_, from)) = socket.recv_from(&mut [0; 16]) {
                let _ = socket.send_to(&[number], from);
            }
        });
    });
}

/// Which backend answers a client at its own port; nothing if none does.
fn ask(socket: &UdpSocket) -> Option<u8> {
    socket.send_to(b"?", (VIP, PORT)).unwrap();
    let mut answer = [0];
    socket.recv(&mut answer).ok().map(|_| answer[0])
}

#[test]
fn a_client_that_keeps_its_port_finds_another_backend() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: this needs root");
        return;
    }
    let mut lab = Lab::new(3, 1, Transit::Vxlan);
    for (number, backend) in (1..).zip(&lab.backends) {
        echo(backend, number);
    }
    lab.goal.vips[0].endpoints[0].udp = true;
    let all = lab.all();
    lab.follow(&all);
    let clients = lab.clients[0].run(|_| {
        let open = |_| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            socket
        };
        (0..40).map(open).collect::<Vec<_>>()
    });
    let told = |lab: &Lab| -> Vec<u8> {
        let clients: Vec<UdpSocket> = clients.iter().map(|socket| socket.try_clone().unwrap()).collect();
        lab.clients[0].run(move |_| clients.iter().map(|socket| ask(socket).expect("nobody answers")).collect())
    };
    let first = told(&lab);
    assert_eq!(told(&lab), first, "a client keeps its backend");
    assert!((1..=3).all(|number| first.contains(&number)), "{first:?}");
    // One that is not well loses its clients, the others keep theirs.
    lab.follow(&all.iter().copied().filter(|vm| *vm != 1).collect());
    let second = told(&lab);
    assert!(!second.contains(&1), "{second:?}");
    for (before, after) in first.iter().zip(&second).filter(|(before, _)| **before != 1) {
        assert_eq!(before, after);
    }
    lab.follow(&all);
    assert_eq!(told(&lab), second, "one that is well again takes nobody away");
    // One that is being drained is behind no endpoint any more, and there as long as it has a route.
    lab.goal.vips[0].endpoints[0].backends.retain(|backend| backend.vm.0 != 2);
    lab.goal.routes[1].leaving = true;
    lab.follow(&all);
    assert_eq!(told(&lab), second);
    // One that is there for something else has to go at once.
    lab.goal.routes[1].leaving = false;
    lab.follow(&all);
    let third = told(&lab);
    assert!(!third.contains(&2), "{third:?}");
    for (before, after) in second.iter().zip(&third).filter(|(before, _)| **before != 2) {
        assert_eq!(before, after);
    }
}
