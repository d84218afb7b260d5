//! The data plane's parts against the real kernel, each in a network namespace of its own. They need root.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use mayfly_net::plan::NextHop;
use mayfly_net::{Links, Nft, create_tap, delete_tap};
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
            nft.apply(include_str!("rules.golden")).unwrap();
        }
        nft.lease(&[Ipv4Addr::new(10, 80, 0, 11)], 5000).unwrap();
        nft.apply(include_str!("rules.golden")).unwrap();
        nft.apply("get element inet mayfly leased { 10.80.0.11 }").expect("a new rule set must not end a lease");
        nft.lease(&[Ipv4Addr::new(10, 80, 0, 11)], 200).unwrap();
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
            (dip, NextHop::Tap("mft1".to_owned())),
            (Ipv4Addr::new(10, 80, 0, 3), NextHop::Tap("mft9".to_owned())),
        ]);
        for _ in 0..2 {
            links.set_routes(&routes).await.unwrap();
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
        for _ in 0..2 {
            links.create_overlay(Ipv4Addr::new(100, 64, 0, 1), [2, 0x6d, 0x66, 0, 0, 1], underlay).await.unwrap();
            let peer = (Ipv4Addr::new(100, 64, 0, 2), [2, 0x6d, 0x66, 0, 0, 2], Ipv4Addr::new(10, 77, 0, 2));
            links.set_peers(&BTreeSet::from([peer])).await.unwrap();
            let dip = Ipv4Addr::new(10, 80, 0, 7);
            links.set_routes(&BTreeMap::from([(dip, NextHop::Overlay(peer.0))])).await.unwrap();
        }
        let vips = BTreeSet::from([Ipv4Addr::new(10, 78, 0, 2), Ipv4Addr::new(10, 78, 0, 3)]);
        assert_eq!(links.set_vips(&vips).await.unwrap().len(), 2);
        assert_eq!(links.set_vips(&vips).await.unwrap().len(), 0);
        links.set_vips(&BTreeSet::new()).await.unwrap();
        assert_eq!(links.addresses("eth0").await.unwrap(), [(underlay, 24)]);
        let index = links.index("eth0").await.unwrap();
        mayfly_net::announce(index, links.mac("eth0").await.unwrap(), underlay).unwrap();
    });
}
