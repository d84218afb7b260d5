//! Hosts that claim what is another's, or do otherwise than the others.

use mayfly_model::{Transit, TunnelKey};

use super::*;

/// A report of a host that encrypts.
fn report_with(host: &str, key: u8, boot: u64) -> HostReport {
    let mut report = report(&name(host), boot * 1000, 0, Incarnation(0), vec![]);
    (report.boot_id, report.facts.tunnel_key) = (boot, Some(TunnelKey([key; 32])));
    report
}

#[test]
fn a_key_or_an_address_is_one_hosts_only() {
    let mut fabric = Fabric::new(0);
    let key = |fabric: &Fabric, host: &str| fabric.core.state().hosts()[&name::<HostName>(host)].tunnel_key;
    fabric.step(Input::Report(report_with("host-1", 1, 1))).unwrap();
    fabric.step(Input::Report(report_with("host-2", 1, 1))).unwrap();
    assert_eq!((key(&fabric, "host-1"), key(&fabric, "host-2")), (Some(TunnelKey([1; 32])), None), "the first has it");
    assert!(fabric.told("has the address or the tunnel key of host-1"));
    let mut stolen = report_with("host-3", 3, 1);
    stolen.facts.address = report_with("host-1", 1, 1).facts.address;
    fabric.step(Input::Report(stolen)).unwrap();
    assert_eq!(key(&fabric, "host-3"), None);
    // With a key of its own it is like any other.
    fabric.step(Input::Report(report_with("host-2", 2, 2))).unwrap();
    assert_eq!(key(&fabric, "host-2"), Some(TunnelKey([2; 32])));
}

#[test]
fn a_host_that_carries_packets_in_another_way_is_told_of_once() {
    let mut fabric = Fabric::new(2);
    let told = |fabric: &Fabric| {
        let events = fabric.core.state().events().values();
        events.filter(|event| event.message.contains("do not reach each other")).count()
    };
    let with = |transit: Transit, sequence: u64| {
        let mut report = report(&name("host-2"), sequence, 0, Incarnation(0), vec![]);
        report.facts.transit = transit;
        Input::Report(report)
    };
    assert_eq!(told(&fabric), 0);
    for sequence in [1_000_000, 1_000_001] {
        fabric.step(with(Transit::Routed, sequence)).unwrap();
        assert_eq!(told(&fabric), 1);
    }
    assert!(fabric.told(r#"its configuration says "transit": "routed", that of host-1 "vxlan""#));
    fabric.step(with(Transit::Vxlan, 1_000_002)).unwrap();
    assert_eq!(told(&fabric), 1, "all do the same again");
}
