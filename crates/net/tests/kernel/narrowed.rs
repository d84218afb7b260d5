//! A guest whose policy changes while it has connections open: they live or end by the new one.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::TcpStream;
use std::time::Duration;

use mayfly_model::{Egress, Target, Transit};
use mayfly_net::plan::learned_set;

use crate::lab::{Lab, VIP};
use crate::membership::{ask, echo, open};

/// The second guest asks the first one through the public address.
struct Stage {
    lab: Lab,
}

impl Stage {
    fn allow(&mut self, egress: &str) {
        self.lab.hosts[1].guests[0].egress = egress.parse::<Egress>().unwrap();
        self.lab.follow(&BTreeSet::from([1]));
    }

    fn learn(&self, name: &str, seconds: u32) {
        let set = learned_set("d", &Target::Name(name.to_owned()));
        self.lab.hosts[1].namespace.run(move |kit| kit.nft.learn(&set, &[VIP.into()], seconds).unwrap());
    }

    fn connect(&self) -> std::io::Result<TcpStream> {
        self.lab.backends[1].run(|_| open())
    }
}

fn is_cut(stream: &mut TcpStream) -> bool {
    ask(stream).is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
}

#[test]
fn open_connections_are_judged_by_a_new_policy() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: this needs root");
        return;
    }
    let mut stage = Stage { lab: Lab::new(2, 1, Transit::Vxlan) };
    for (number, backend) in (1..).zip(&stage.lab.backends) {
        backend.run(move |_| echo(number));
    }
    stage.allow("allow");
    let mut stream = stage.connect().unwrap();
    assert_eq!(ask(&mut stream).unwrap(), 1);
    for still_open in ["10.78.0.0/24:80/tcp", "192.0.2.0/24, 10.78.0.2:80", "allow", "10.78.0.0/16"] {
        stage.allow(still_open);
        assert_eq!(ask(&mut stream).unwrap(), 1, "{still_open}");
    }
    stage.allow("192.0.2.0/24, 10.78.0.0/24:81");
    assert!(is_cut(&mut stream) && stage.connect().is_err());

    // What a name led to stays known, and an open connection outlives it.
    stage.allow("example.org:80");
    assert!(stage.connect().is_err(), "nobody has said yet what it leads to");
    stage.learn("example.org", 2);
    let mut stream = stage.connect().unwrap();
    stage.allow("192.0.2.0/24, example.org:80");
    assert_eq!(ask(&mut stream).unwrap(), 1);
    std::thread::sleep(Duration::from_millis(2500));
    assert!(stage.connect().is_err(), "the name's time is over");
    assert_eq!(ask(&mut stream).unwrap(), 1);
    stage.allow("example.org:80, example.com");
    assert_eq!(ask(&mut stream).unwrap(), 1, "the list has grown");
    stage.allow("deny");
    assert!(is_cut(&mut stream));

    // Whoever asks it is answered all the same.
    stage.lab.follow(&BTreeSet::from([2]));
    let mut asked = stage.lab.clients[0].run(|_| open()).unwrap();
    assert_eq!(ask(&mut asked).unwrap(), 2);
    stage.lab.hosts[1].guests[0].egress = "192.0.2.0/24".parse().unwrap();
    stage.lab.follow(&BTreeSet::from([2]));
    assert_eq!(ask(&mut asked).unwrap(), 2);
}
