//! Plans of three hosts.

use mayfly_model::{
    AccessRule, Backend, Distribution, EndpointGoal, EndpointProtocol, GuardGoal, Pass, PeerGoal, PortRange, RoleName,
    RouteGoal, Target, VipGoal,
};

use super::*;
use crate::plan::ruleset::Present;

fn host(number: u8) -> HostName {
    HostName::new(format!("host-{number}")).unwrap()
}

fn dip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 80, 0, last)
}

/// Three hosts with one instance each of a deployment `d`, and a stranger on host 1.
fn goal() -> NetworkGoal {
    let peers = (1..=3).map(|number| PeerGoal {
        host: host(number),
        address: Ipv4Addr::new(10, 77, 0, number),
        overlay: Ipv4Addr::new(100, 64, 0, number),
        mac: [2, 0, 0, 0, 0, number],
        voter: true,
        tunnel_key: None,
    });
    let route = |last, on, deployment: &str| RouteGoal {
        dip: dip(last),
        host: host(on),
        deployment_id: deployment.to_owned(),
        role: RoleName::new(if last == 13 { "db" } else { "web" }).unwrap(),
        index: 0,
        update_domain: 0,
        ipv6: last != 12,
        vm: None,
        leaving: false,
    };
    let backends = (1..=3).map(|number| Backend {
        vm: VmId(u64::from(number)),
        dip: dip(10 + number),
        host: host(number),
        probe: None,
        always: false,
    });
    let endpoint = EndpointGoal {
        name: "web/http".to_owned(),
        udp: false,
        port: 80,
        local_port: 8080,
        backends: backends.collect(),
        instances: 0,
        access: vec![],
        distribution: Distribution::Connection,
    };
    NetworkGoal {
        zone: "z".to_owned(),
        ipv6: None,
        peers: peers.collect(),
        routes: vec![route(11, 1, "d"), route(12, 2, "d"), route(13, 3, "d"), route(20, 1, "other")],
        vips: vec![VipGoal {
            vip: Ipv4Addr::new(10, 78, 0, 2),
            endpoints: vec![endpoint],
            owners: vec![host(2), host(1), host(3)],
            ipv6: true,
        }],
        guards: vec![],
        dns: vec![],
        services: vec![],
        voters: 4,
    }
}

fn plan_of(live: &[u8], healthy: &[u64]) -> Plan {
    plan_with(&goal(), live, healthy)
}

fn plan_with(goal: &NetworkGoal, live: &[u8], healthy: &[u64]) -> Plan {
    plan_for(goal, live, healthy, "allow")
}

fn plan_for(goal: &NetworkGoal, live: &[u8], healthy: &[u64], egress: &str) -> Plan {
    let guest = |last: u8, deployment: &str| LocalGuest {
        tap: format!("mft{last}"),
        dip: dip(last),
        ipv6: true,
        mac: [2, 0, 10, 80, 0, last],
        deployment_id: deployment.to_owned(),
        egress: egress.parse().unwrap(),
    };
    plan(&Inputs {
        host: &host(1),
        goal,
        guests: &[guest(11, "d"), guest(20, "other")],
        health: &healthy.iter().map(|vm| (VmId(*vm), None)).collect(),
        live: &live.iter().map(|number| host(*number)).collect(),
        underlay: Some("10.77.0.0/24"),
        underlay6: None,
        closed: &[],
        transit: Transit::Vxlan,
        direct_return: true,
    })
}

const DOOR: &str = "e_10.78.0.2_tcp_80";

const KEY: &str = "10.78.0.2 . tcp . 80";

/// Whom the rules send a client to that is hashed to these slots, one after the other.
fn chosen(rules: &Ruleset, slots: &[usize]) -> Option<String> {
    let row = rules.rows["slots"].1.get(KEY)?;
    let is_up = |mark: &&u32| rules.sets["up"].elements.contains_key(&format!("{KEY} . {mark:#x}"));
    let hashed = slots.iter().filter_map(|slot| row.get(*slot)).find(is_up);
    let mark = hashed.map(|mark| format!("{mark:#x}")).or_else(|| rules.sets["last"].elements.get(KEY).cloned())?;
    rules.sets["dips"].elements.get(&mark).cloned()
}

/// The same of many clients.
fn all_chosen(rules: &Ruleset) -> Vec<String> {
    let clients = (0..60).map(|client| (0..6).map(|number| (client * 7 + number * 23) % 60).collect::<Vec<_>>());
    clients.map(|slots| chosen(rules, &slots).unwrap()).collect()
}

#[test]
fn only_healthy_backends_on_live_hosts_are_in_rotation() {
    let rules = plan_of(&[1, 2, 3], &[1, 2]).rules;
    let sent = format!("meta l4proto tcp counter name \"{DOOR}\" dnat ip to meta mark map @dips:8080\n");
    let anybody = "meta l4proto tcp dnat ip to 10.80.0.11:8080\n";
    assert_eq!(rules.chains[DOOR], format!("jump pick_connection_60\n{sent}{anybody}"));
    assert_eq!(rules.sets["doors"].elements[KEY], format!("goto {DOOR}"));
    let backends = |rules: &Ruleset| all_chosen(rules).into_iter().collect::<BTreeSet<_>>();
    assert_eq!(backends(&rules), ["10.80.0.11", "10.80.0.12"].map(str::to_owned).into());
    let rules = plan_of(&[1, 3], &[1, 2, 3]).rules;
    assert_eq!(backends(&rules), ["10.80.0.11", "10.80.0.13"].map(str::to_owned).into());
    assert!(plan_of(&[1, 2, 3], &[]).rules.sets["doors"].elements.is_empty(), "nobody is behind it");
}

#[test]
fn clients_keep_their_backend_when_others_come_and_go() {
    let among = |healthy: &[u64]| {
        let mut goal = goal();
        goal.vips[0].endpoints[0].distribution = Distribution::SourceIp;
        let rules = plan_with(&goal, &[1, 2, 3], healthy).rules;
        assert!(rules.chains["pick_client_60"].contains("jhash ip saddr . ip daddr mod 60 seed 0x"), "{rules:?}");
        all_chosen(&rules)
    };
    let (three, two, one) = (among(&[1, 2, 3]), among(&[1, 3]), among(&[3]));
    for ((before, after), last) in three.iter().zip(&two).zip(&one) {
        assert!(before == after || before == "10.80.0.12", "{before} became {after}");
        assert_eq!(last, "10.80.0.13");
    }
    for last in [11, 12, 13] {
        assert_eq!(three.iter().filter(|one| **one == dip(last).to_string()).count(), 20, "of 60 slots");
    }
}

#[test]
fn packets_for_other_hosts_are_handed_on_as_they_come_in() {
    let plan = plan_of(&[1, 2, 3], &[1, 2, 3]);
    let spread = &plan.spread;
    assert_eq!(spread.sets["hops"].elements["0xa50000c"], "100.64.0.2");
    assert_eq!(spread.sets["here"].elements.keys().collect::<Vec<_>>(), ["0xa50000b", "0xa500014"]);
    assert_eq!(spread.rows, plan.rules.rows, "both tables choose the same");
    // A backend that is being drained keeps its connections: behind no endpoint any more, it still has its way.
    let mut drained = goal();
    drained.vips[0].endpoints[0].backends.retain(|backend| backend.dip != dip(12));
    drained.routes[1].leaving = true;
    let after = plan_with(&drained, &[1, 2, 3], &[1, 2, 3]).spread;
    assert_eq!(after.sets["hops"], spread.sets["hops"]);
    assert_eq!(after.sets["leaving"].elements.keys().collect::<Vec<_>>(), ["0xa50000c"]);
    // So does the last one.
    drained.vips[0].endpoints[0].backends.clear();
    let after = plan_with(&drained, &[1, 2, 3], &[1, 2, 3]).spread;
    assert_eq!(after.sets["doors"], spread.sets["doors"]);
    // A host that does not belong to them yet knows no way.
    let mut stranger = goal();
    stranger.peers.retain(|peer| peer.host != host(1));
    assert_eq!(plan_with(&stranger, &[1, 2, 3], &[1, 2, 3]).spread, Ruleset::new(INGRESS_TABLE));
}

#[test]
fn the_first_live_owner_has_the_vip() {
    assert!(plan_of(&[1, 2, 3], &[]).vips.is_empty());
    assert_eq!(plan_of(&[1, 3], &[]).vips.len(), 1);
    assert!(plan_of(&[3], &[]).vips.is_empty());
}

#[test]
fn deployments_talk_only_among_themselves() {
    let rules = plan_of(&[1, 2, 3], &[]).rules;
    let members = |set: &str| rules.sets[set].elements.keys().cloned().collect::<Vec<_>>();
    assert_eq!(rules.sets["homes"].elements["10.80.0.11"], "jump t_d");
    assert_eq!(rules.chains["t_d"], "ip saddr @d_d accept\n");
    assert_eq!(members("d_d"), ["10.80.0.11", "10.80.0.12", "10.80.0.13"]);
    assert_eq!(members("d_other"), ["10.80.0.20"]);
}

#[test]
fn the_first_rule_that_fits_decides_who_comes_in() {
    let rule = |permit, last, prefix| AccessRule { permit, network: Ipv4Addr::new(10, 1, 0, last).into(), prefix };
    let let_in = |who: &str| {
        let sent = format!("meta l4proto tcp counter name \"{DOOR}\" dnat ip to meta mark map @dips:8080");
        let anybody = "meta l4proto tcp dnat ip to 10.80.0.11:8080";
        vec![format!("{who}jump pick_connection_60"), format!("{who}{sent}"), format!("{who}{anybody}")]
    };
    let line = |text: &str| vec![text.to_owned()];
    for (access, expected) in [
        (vec![], vec![let_in("")]),
        (
            vec![rule(false, 7, 32), rule(true, 0, 24)],
            // Where some are let in, others are not.
            vec![line("ip saddr 10.1.0.7/32 drop"), let_in("ip saddr 10.1.0.0/24 "), line("drop")],
        ),
        (vec![rule(false, 7, 32)], vec![line("ip saddr 10.1.0.7/32 drop"), let_in("")]),
        (vec![rule(true, 0, 0)], vec![let_in(""), line("drop")]),
    ] {
        let mut goal = goal();
        goal.vips[0].endpoints[0].access = access;
        let rules = plan_with(&goal, &[1, 2, 3], &[1]).rules;
        assert_eq!(rules.chains[DOOR].lines().collect::<Vec<_>>(), expected.concat());
    }
}

#[test]
fn a_guarded_role_is_reached_as_the_rules_say_and_not_otherwise() {
    let role = |name: &str| RoleName::new(name).unwrap();
    let pass = Pass {
        from_roles: vec![role("db")],
        protocol: EndpointProtocol::Tcp,
        ports: Some(PortRange { min: 1000, max: 1010 }),
    };
    let guard = GuardGoal { deployment_id: "d".to_owned(), role: role("web"), passes: vec![pass] };
    let rules = plan_with(&NetworkGoal { guards: vec![guard], ..goal() }, &[1, 2, 3], &[]).rules;
    assert_eq!(rules.sets["homes"].elements["10.80.0.11"], "jump t_d_1");
    assert_eq!(rules.chains["t_d_1"], "ip saddr @r_d_0 tcp dport 1000-1010 accept\n");
    assert_eq!(rules.sets["r_d_0"].elements.keys().collect::<Vec<_>>(), ["10.80.0.13"]);
    assert_eq!(rules.sets["homes"].elements["10.80.0.20"], "jump t_other", "others as before");
}

#[test]
fn a_role_without_instances_lets_nobody_in_in_its_place() {
    let role = |name: &str| RoleName::new(name).unwrap();
    let pass = |from: &str, port| Pass {
        from_roles: vec![role(from)],
        protocol: EndpointProtocol::Tcp,
        ports: Some(PortRange { min: port, max: port }),
    };
    let passes = vec![pass("ghost", 2), pass("db", 1)];
    let guard = GuardGoal { deployment_id: "d".to_owned(), role: role("web"), passes };
    let rules = plan_with(&NetworkGoal { guards: vec![guard], ..goal() }, &[1, 2, 3], &[]).rules;
    // In the order of their names: db, ghost, web.
    let lets_in = "ip saddr @r_d_1 tcp dport 2-2 accept\nip saddr @r_d_0 tcp dport 1-1 accept\n";
    assert_eq!(rules.chains["t_d_2"], lets_in);
    assert!(rules.sets["r_d_1"].elements.is_empty());
    assert_eq!(rules.sets["r_d_0"].elements.len(), 1);
}

#[test]
fn guests_go_only_where_they_may() {
    let rules = |egress: &str| plan_for(&goal(), &[1, 2, 3], &[1], egress).rules;
    assert!(rules("allow").sets["exits"].elements.is_empty());
    let closed = rules("deny");
    let chain = closed.sets["exits"].elements["10.80.0.11"].strip_prefix("jump ").unwrap();
    let refusals = [
        "ct state established meta l4proto tcp counter name denied reject with tcp reset",
        "counter name denied reject with icmpx type admin-prohibited",
    ];
    let lines: Vec<_> = closed.chains[chain].lines().collect();
    assert_eq!(lines, [&["ct original ip daddr @d_d return"], &refusals[..]].concat());
    let some = rules("198.51.100.0/24:443, example.org:80/tcp, 0.0.0.0/0:53/udp");
    let chain = some.sets["exits"].elements["10.80.0.20"].strip_prefix("jump ").unwrap();
    let learned = learned_set("other", &Target::Name("example.org".to_owned()));
    let text = &some.chains[chain];
    let marks: Vec<&str> = text.split_whitespace().filter(|word| word.starts_with("0x")).collect();
    let [a, b, c] = marks[marks.len() - 3..] else { panic!("{marks:?}") };
    let known = text.lines().next().unwrap();
    assert!(known.starts_with("ct mark { 0x") && [a, b, c].iter().all(|mark| known.contains(mark)), "{known}");
    let unmarked = text.replace(a, "MARK").replace(b, "MARK").replace(c, "MARK");
    assert_eq!(
        unmarked.lines().skip(1).collect::<Vec<_>>(),
        [
            "ct original ip daddr @d_other return",
            "ct original ip daddr 198.51.100.0/24 meta l4proto { tcp, udp } ct original proto-dst 443-443 ct mark set MARK return",
            &format!(
                "ct original ip daddr @{learned} meta l4proto tcp ct original proto-dst 80-80 ct mark set MARK return"
            ),
            "meta l4proto udp ct original proto-dst 53-53 ct mark set MARK return",
            refusals[0],
            refusals[1],
        ]
    );
    assert!(some.kept.contains_key(&learned));
}

#[test]
fn routes_lead_to_taps_and_hosts() {
    let routes = plan_of(&[1], &[]).routes;
    assert_eq!(routes[&IpAddr::V4(dip(11))], NextHop::Tap("mft11".to_owned()));
    assert_eq!(routes[&IpAddr::V4(dip(13))], NextHop::Overlay(Ipv4Addr::new(100, 64, 0, 3).into()));
    assert_eq!(routes.len(), 4);
}

#[test]
fn the_rules_are_what_they_were() {
    let plan = plan_of(&[1, 2, 3], &[1, 2, 3]);
    let rules = plan.arp.clone() + &plan.rules.whole(&Present::default());
    let ingress = plan.spread.whole(&Present::default());
    for (name, rules, expected) in [
        ("rules", rules, include_str!("../../tests/rules.golden")),
        ("ingress", ingress, include_str!("../../tests/ingress.golden")),
    ] {
        assert!(rules == expected, "if this is meant, write it to crates/net/tests/{name}.golden:\n{rules}");
    }
}

#[test]
fn a_change_costs_what_changes() {
    let (before, after) = (plan_of(&[1, 2, 3], &[1, 2, 3]).rules, plan_of(&[1, 2, 3], &[1, 3]).rules);
    let script = after.change(&before);
    assert_eq!(script, "delete element inet mayfly up { 10.78.0.2 . tcp . 80 . 0xa50000c }\n");
    assert_eq!(after.change(&after), "");
}

#[test]
fn who_has_no_key_gets_nothing_through_encrypted_tunnels() {
    let mut goal = goal();
    goal.peers[1].tunnel_key = Some(TunnelKey([1; 32]));
    let (name, guests, live) = (host(1), [], BTreeSet::new());
    let health = Health::new();
    let made = |transit| {
        plan(&Inputs {
            host: &name,
            goal: &goal,
            guests: &guests,
            health: &health,
            live: &live,
            underlay: None,
            underlay6: None,
            closed: &[],
            transit,
            direct_return: true,
        })
    };
    let encrypted = made(Transit::Wireguard);
    assert_eq!(encrypted.tunnels, BTreeMap::from([(goal.peers[1].address, TunnelKey([1; 32]))]));
    assert_eq!(encrypted.peers.iter().map(|peer| peer.2).collect::<Vec<_>>(), [goal.peers[1].address]);
    let clear = made(Transit::Vxlan);
    assert_eq!((clear.tunnels.len(), clear.peers.len()), (0, 2));
    assert!(super::clear(Transit::Wireguard).contains("oifname \"eth0\" udp dport { 4789, 7471 } drop"));
    assert!(!super::clear(Transit::Vxlan).contains("drop"));
}
