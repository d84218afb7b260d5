//! Real guests with IPv6: their addresses, names, endpoints, and a host's death.

use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::Duration;

use mayfly_xtask::fabric::wait_until;
use mayfly_xtask::visitor::get;

use crate::Stage;

const ON: &str = "<Setting name=\"Mayfly.IPv6\" value=\"on\"/>";

/// Whether the dev fabric of this number says that a name has an address.
fn is_told(number: u8, name: &str, address: Ipv6Addr) -> bool {
    // A question for AAAA records (28) of the Internet (1).
    let mut question = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(label.len() as u8);
        question.extend(label.bytes());
    }
    question.extend([0, 0, 28, 0, 1]);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket.send_to(&question, (Ipv4Addr::new(127, 77, number, 1), 5300)).unwrap();
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).unwrap();
    assert_eq!((answer[1], answer[3] & 15), (7, 0), "an answer without an error");
    answer[..length].windows(16).any(|bytes| bytes == address.octets())
}

#[test]
fn guests_and_public_addresses_are_there_over_ipv6() {
    let stage = Stage::up();
    let fabric = &stage.fabric;
    let roles = [("web", 2)];
    let definition = stage.definition(&roles);
    fabric.run(&["service", "create", "dual"]).unwrap();
    let deploy = |verb: &str, settings: &str| {
        let configuration = stage.configuration(&roles, "hello", settings);
        let files = ["--definition", &definition, "--configuration", &configuration, "--wait", "--timeout", "300s"];
        fabric.run(&[&["service", verb, "dual"], &files[..]].concat()).unwrap();
    };
    deploy("deploy", ON);
    let shown = fabric.json(&["service", "show", "dual"]).unwrap();
    let vip: Ipv6Addr = shown["deployments"][0]["ipv6"].as_str().expect("a public address").parse().unwrap();
    let address = |name: &str| fabric.instance("dual", name).unwrap()["ipv6"].as_str().map(str::to_owned);
    let own = [address("web_IN_0").unwrap(), address("web_IN_1").unwrap()];
    // Each takes its address by DHCPv6, once its router has spoken.
    let page = || get(&format!("http://[{vip}]:80/json"));
    wait_until("both answer over IPv6, and know their addresses", Duration::from_secs(60), || {
        let pages = (0..8).map(|_| page()).collect::<anyhow::Result<Vec<_>>>();
        let known = |one: &String| pages.as_ref().is_ok_and(|pages| pages.iter().any(|page| page["ipv6"] == **one));
        Ok(own.iter().all(known))
    })
    .unwrap();
    // Names, from within and from without.
    let number = fabric.bridge().unwrap().trim_start_matches("mayfly").parse().unwrap();
    assert!(is_told(number, "dual.mayfly.test", vip));
    let trace = |to: &str| fabric.run(&["net", "trace", "dual/web_IN_0", to]).unwrap();
    assert!(
        trace(&format!("[{}]:80", own[1])).contains("reach each other where no traffic rule says otherwise: passes")
    );
    assert!(trace(&format!("[{vip}]:80")).contains(&format!("[{}]:80 on host-", own[1])));
    // The owner of the public address dies: it is elsewhere within moments, over IPv6 too.
    let host = fabric.instance("dual", "web_IN_0").unwrap()["host"].as_str().unwrap().to_owned();
    fabric.run(&["dev", "kill", &host]).unwrap();
    wait_until("the other one answers", Duration::from_secs(15), || {
        Ok((0..4).all(|_| page().is_ok_and(|page| page["ipv6"] == own[1])))
    })
    .unwrap();
    fabric.run(&["dev", "start", &host]).unwrap();
    wait_until("two answer again", Duration::from_secs(90), || {
        let pages: Vec<_> = (0..8).filter_map(|_| page().ok()).collect();
        let mut seen: Vec<_> = pages.iter().filter_map(|page| page["ipv6"].as_str()).collect();
        seen.sort_unstable();
        seen.dedup();
        Ok(seen.len() == 2)
    })
    .unwrap();
    // Who asks for it no more has it no more.
    deploy("upgrade", "");
    wait_until("nobody answers over IPv6", Duration::from_secs(10), || Ok(page().is_err())).unwrap();
    assert_eq!(address("web_IN_0"), None);
    assert!(!is_told(number, "dual.mayfly.test", vip));
    get(&format!("http://{}/json", fabric.vip("dual").unwrap())).unwrap();
}
