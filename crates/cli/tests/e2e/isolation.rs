//! What a guest can reach, tried from inside one: its own deployment, the public addresses and its servers, and nothing
//! else.

use mayfly_xtask::visitor::get;

use crate::Stage;

/// Tries addresses one after the other, and prints what came of each.
const SCRIPT: &str = "#!/bin/sh
try() { if nc -w 3 \"$2\" \"$3\" </dev/null >/dev/null 2>&1; then echo \"$1: reached\"; else echo \"$1: no\"; fi; }
try stranger STRANGER 80
try controller MACHINE 7070
try host HOST 7471
try ssh-of-gateway 10.80.0.1 22
try public VIP 80
try wire-server 168.63.129.16 80
ip address add STRANGER/32 dev eth0
if ping -c 1 -W 2 -I STRANGER 10.80.0.1 >/dev/null 2>&1; then echo 'spoofed: reached'; else echo 'spoofed: no'; fi
ip address del STRANGER/32 dev eth0
if ping -c 1 -W 2 10.80.0.1 >/dev/null 2>&1; then echo 'gateway: reached'; else echo 'gateway: no'; fi
nslookup bank.mayfly.test 168.63.129.16 2>&1 | grep -q VIP && echo 'service name: found' || echo 'service name: no'
nslookup web-in-0.bank.internal.mayfly.test 168.63.129.16 2>&1 | grep -q STRANGER && echo 'instance name: found' || echo 'instance name: no'
";

#[test]
fn a_guest_reaches_what_is_its_own_and_no_more() {
    let stage = Stage::up();
    let fabric = &stage.fabric;
    stage.deploy("bank", &[("web", 1)]);
    let stranger = fabric.instance("bank", "web_IN_0").unwrap();
    let dip = stranger["dip"].as_str().unwrap();
    let number = fabric.bridge().unwrap().trim_start_matches("mayfly").to_owned();
    let script = SCRIPT
        .replace("STRANGER", dip)
        .replace("MACHINE", &format!("10.77.{number}.1"))
        .replace("HOST", &format!("10.77.{number}.11"))
        .replace("VIP", &fabric.vip("bank").unwrap());
    stage.file("try.sh", script);
    let definition = stage.definition(&[("web", 2)]);
    let settings = "<Setting name=\"Mayfly.UserData\" value=\"@try.sh\"/>";
    let configuration = stage.configuration(&[("web", 2)], "hello", settings);
    fabric.run(&["service", "create", "mob"]).unwrap();
    let files = ["--definition", &definition, "--configuration", &configuration, "--wait", "--timeout", "300s"];
    fabric.run(&[&["service", "deploy", "mob"], &files[..]].concat()).unwrap();
    let page = get(&format!("http://{}/json", fabric.vip("mob").unwrap())).unwrap();
    let expected = "stranger: no\ncontroller: no\nhost: no\nssh-of-gateway: no\npublic: reached\nwire-server: reached\n\
                    spoofed: no\ngateway: reached\nservice name: found\ninstance name: found\n";
    assert_eq!(page["script_output"].as_str().unwrap(), expected);
    assert_eq!(get(&format!("http://{}/json", fabric.vip("bank").unwrap())).unwrap()["instance"], "web_IN_0");
}
