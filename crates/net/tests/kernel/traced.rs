//! What a trace says is what the kernel does.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use mayfly_model::{AccessRule, EndpointProtocol, GuardGoal, Pass, PortRange, RoleName, Subnet, Transit, Transport};
use mayfly_net::address::{GATEWAY, METADATA, WIRE_SERVER};
use mayfly_net::plan::trace::{Receiver, Sender, trace};

use crate::dual::prefix;
use crate::lab::{Lab, VIP, dip, underlay};

/// How long the answer may take of somebody who answers.
const PATIENCE: Duration = Duration::from_millis(500);
const PORTS: [u16; 3] = [80, 81, 1000];

/// Three instances of one deployment, one of them guarded, and a stranger; endpoints with and without access controls.
fn lab(transit: Transit) -> Lab {
    let mut lab = Lab::with(4, 1, transit, Some(prefix()));
    let role = |name: &str| RoleName::new(name).unwrap();
    for (number, name) in [(0, "web"), (1, "db"), (2, "batch")] {
        lab.goal.routes[number].role = role(name);
    }
    lab.goal.routes[3].deployment_id = "other".to_owned();
    lab.hosts[3].guests[0].deployment_id = "other".to_owned();
    let pass = Pass {
        from_roles: vec![role("web")],
        protocol: EndpointProtocol::Tcp,
        ports: Some(PortRange { min: 1000, max: 1010 }),
    };
    lab.goal.guards = vec![GuardGoal { deployment_id: "d".to_owned(), role: role("db"), passes: vec![pass] }];
    // The balanced ones are the first and the stranger; the second door is closed to its own instances.
    let mut closed = lab.goal.vips[0].endpoints[0].clone();
    closed.port = 81;
    let denied = |text: &str| {
        let subnet: Subnet = text.parse().unwrap();
        AccessRule { permit: false, network: subnet.address, prefix: subnet.prefix }
    };
    closed.access = vec![denied("2001:db8::/32"), denied("10.80.0.0/16")];
    lab.goal.vips[0].endpoints.push(closed);
    let networks = |text: &str| text.parse().unwrap();
    lab.hosts[2].guests[0].egress = networks("10.78.0.0/24:80/tcp, example.org, [fd6d:6179:666c:79::a4e:0/120]:81");
    lab.hosts[3].guests[0].egress = networks("deny");
    let all = lab.all();
    lab.follow(&all);
    lab
}

#[test]
fn a_trace_says_what_the_kernel_does() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: this needs root");
        return;
    }
    compare(&lab(Transit::Vxlan));
    compare(&lab(Transit::Routed));
}

fn compare(lab: &Lab) {
    let serve = |_: &mut crate::lab::Kit| {
        for port in PORTS {
            let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap();
            std::thread::spawn(move || listener.incoming().for_each(drop));
        }
    };
    lab.backends.iter().for_each(|backend| backend.run(serve));
    lab.hosts.iter().for_each(|host| host.namespace.run(serve));
    let targets =
        [VIP, dip(1), dip(2), dip(3), dip(4), dip(9), GATEWAY, WIRE_SERVER, METADATA, underlay(1), underlay(2)];
    let both = |address: Ipv4Addr| [IpAddr::V4(address), prefix().embed(address).into()];
    let (mut passed, mut stopped) = (0, 0);
    for from in 0..=lab.backends.len() {
        let namespace = if from == 0 { &lab.clients[0] } else { &lab.backends[from - 1] };
        // To itself nothing passes the network, and the hosts' own network is the client's.
        let is_told = |address: Ipv4Addr| if from == 0 { address == VIP } else { address != dip(from) };
        let told = targets.into_iter().filter(|address| is_told(*address));
        let doors: Vec<SocketAddr> =
            told.flat_map(both).flat_map(|address| PORTS.map(|port| SocketAddr::new(address, port))).collect();
        let reached = namespace.run({
            let doors = doors.clone();
            move |_| {
                let reach = |door| std::thread::spawn(move || TcpStream::connect_timeout(&door, PATIENCE).is_ok());
                let tries: Vec<_> = doors.into_iter().map(reach).collect();
                tries.into_iter().map(|one| one.join().unwrap()).collect::<Vec<bool>>()
            }
        });
        for (door, reached) in doors.into_iter().zip(reached) {
            let receiver = Receiver { name: None, address: door.ip(), protocol: Transport::Tcp, port: door.port() };
            let steps = lab.inputs(from.max(1), |inputs| {
                let sender = match from {
                    0 if door.is_ipv6() => Sender::Outside("fd00:77::c9".parse().unwrap()),
                    0 => Sender::Outside(Ipv4Addr::new(10, 77, 0, 201).into()),
                    _ => Sender::Guest(&inputs.guests[0]),
                };
                trace(inputs, sender, &receiver)
            });
            assert_eq!(reached, steps.last().unwrap().passes, "{:?}: from {from} to {door}: {steps:?}", lab.transit);
            if reached { passed += 1 } else { stopped += 1 }
        }
    }
    assert!(passed > 20 && stopped > 100, "{passed} passed, {stopped} were stopped");
}
