//! Who reaches whom, as definition and configuration say: a public port for each instance, access controls, traffic rules.

use std::time::Duration;

use mayfly_xtask::fabric::wait_until;
use mayfly_xtask::visitor::get;
use serde_json::Value;

use crate::Stage;

const NAMES: &str = "xmlns=\"http://schemas.microsoft.com/ServiceHosting/2008/10/";

/// Asks for the store by its name until it answers, or for fifteen tries.
const SCRIPT: &str = "#!/bin/sh
for second in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
  nc -w 1 db-in-0.mob.internal.mayfly.test 80 </dev/null >/dev/null 2>&1 && echo reached && exit 0
  sleep 1
done
echo no
";

/// Tries one open and one closed port of a name; the door is open once the name has been asked for.
const CAGED: &str = "#!/bin/sh
try() { if nc -w 3 $1 $2 </dev/null >/dev/null 2>&1; then echo \"$2: reached\"; else echo \"$2: no\"; fi; }
# Who is asked serves when its own script has ended.
for second in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
  nc -w 3 mob.mayfly.test 8000 </dev/null >/dev/null 2>&1 && break
  sleep 1
done
try mob.mayfly.test 8000
try mob.mayfly.test 8010
try 10.77.0.1 7070
nslookup www.example.org 168.63.129.16 >/dev/null 2>&1 && echo resolved || echo refused
";

fn definition() -> String {
    let role = |name: &str, from: u16, endpoints: &str| {
        format!(
            "<VirtualMachineRole name=\"{name}\" vmsize=\"ExtraSmall\"><Endpoints>{endpoints}\
             <InstanceInputEndpoint name=\"own\" protocol=\"tcp\" localPort=\"80\"><AllocatePublicPortFrom>\
             <FixedPortRange min=\"{from}\" max=\"{}\"/></AllocatePublicPortFrom></InstanceInputEndpoint>\
             </Endpoints></VirtualMachineRole>",
            from + 1
        )
    };
    format!(
        "<ServiceDefinition name=\"Test\" {NAMES}ServiceDefinition\">{}{}{}<NetworkTrafficRules><OnlyAllowTrafficTo>\
         <Destinations><RoleEndpoint roleName=\"db\" endpointName=\"sql\"/></Destinations>\
         <WhenSource matches=\"AnyRule\"><FromRole roleName=\"web\"/></WhenSource>\
         </OnlyAllowTrafficTo></NetworkTrafficRules></ServiceDefinition>",
        role("web", 8000, "<InputEndpoint name=\"http\" protocol=\"tcp\" port=\"80\"/>"),
        role("db", 8010, "<InternalEndpoint name=\"sql\" protocol=\"tcp\" port=\"80\"/>"),
        role("spy", 8020, "") + &role("caged", 8030, ""),
    )
}

fn configuration(keeps_out: &str) -> String {
    let role = |name: &str, count: u32| {
        // A guest serves when its script has ended, so the one that is asked has none.
        let script = match name {
            "db" => "",
            "caged" => {
                "<Setting name=\"Mayfly.UserData\" value=\"@caged.sh\"/>\
                 <Setting name=\"Mayfly.Egress\" value=\"mob.mayfly.test:8000\"/>"
            }
            _ => "<Setting name=\"Mayfly.UserData\" value=\"@ask.sh\"/>",
        };
        format!(
            "<Role name=\"{name}\"><OsImage href=\"hello\"/><Instances count=\"{count}\"/>\
             <ConfigurationSettings>{script}</ConfigurationSettings></Role>"
        )
    };
    format!(
        "<ServiceConfiguration serviceName=\"Test\" {NAMES}ServiceConfiguration\">{}{}{}<NetworkConfiguration>\
         <AccessControls><AccessControl name=\"door\"><Rule order=\"1\" action=\"deny\" remoteSubnet=\"{keeps_out}\"/>\
         </AccessControl></AccessControls><EndpointAcls>\
         <EndpointAcl role=\"web\" endpoint=\"http\" accessControl=\"door\"/></EndpointAcls></NetworkConfiguration>\
         </ServiceConfiguration>",
        role("web", 2),
        role("db", 1),
        role("spy", 1) + &role("caged", 1),
    )
}

#[test]
fn definition_and_configuration_say_who_reaches_whom() {
    let stage = Stage::up();
    let fabric = &stage.fabric;
    stage.file("ask.sh", SCRIPT);
    stage.file("caged.sh", CAGED);
    let definition = stage.file("test.csdef", definition());
    let files = |configuration: &str| {
        ["--definition".to_owned(), definition.clone(), "--configuration".to_owned(), configuration.to_owned()]
    };
    fabric.run(&["service", "create", "mob"]).unwrap();
    // What the visitor comes from is in this network, whatever the fabric's number.
    let closed = files(&stage.file("closed.cscfg", configuration("10.0.0.0/8")));
    let arguments = |first: &[&'static str], files: &[String; 4], last: &[&'static str]| -> Vec<String> {
        let own = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        [own(first), files.to_vec(), own(last)].concat()
    };
    let run = |words: Vec<String>| fabric.run(&words.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    run(arguments(&["service", "deploy", "mob"], &closed, &["--wait", "--timeout", "300s"]));
    let vip = fabric.vip("mob").unwrap();
    let page = |port: u16| get(&format!("http://{vip}:{port}/json"));
    for (port, instance) in [(8000, "web_IN_0"), (8001, "web_IN_1"), (8010, "db_IN_0"), (8020, "spy_IN_0")] {
        assert_eq!(page(port).unwrap()["instance"], instance, "port {port}");
    }
    assert!(page(8011).is_err(), "nobody has this port");
    let heard = |port: u16| page(port).map(|page: Value| page["script_output"].as_str().unwrap_or_default().to_owned());
    wait_until("all scripts have ended", Duration::from_secs(60), || {
        Ok([8000, 8001, 8020, 8030].into_iter().all(|port| heard(port).is_ok_and(|said| !said.is_empty())))
    })
    .unwrap();
    assert_eq!((heard(8000).unwrap().trim(), heard(8001).unwrap().trim()), ("reached", "reached"));
    assert_eq!(heard(8020).unwrap().trim(), "no", "only `web` may talk to `db`");
    assert_eq!(heard(8030).unwrap().trim(), "8000: reached\n8010: no\n7070: no\nrefused");

    assert!(page(80).is_err(), "the access control keeps everybody out");
    let open = files(&stage.file("open.cscfg", configuration("192.0.2.0/24")));
    run(arguments(&["service", "upgrade", "mob"], &open, &["--wait", "--timeout", "300s"]));
    wait_until("the door is open", Duration::from_secs(10), || Ok(page(80).is_ok())).unwrap();
    let trace = |from: &str, to: &str| fabric.run(&["net", "trace", from, to]).unwrap();
    let db = fabric.instance("mob", "db_IN_0").unwrap()["dip"].as_str().unwrap().to_owned();
    for (from, to, expected) in [
        ("mob/web_IN_0", format!("{db}:80"), "a traffic rule lets it reach role db: passes"),
        ("mob/spy_IN_0", format!("{db}:80"), "role db is reached only as its traffic rules say: stops here"),
        ("mob/caged_IN_0", "mob.mayfly.test:8000".to_owned(), "`mob.mayfly.test:8000` is open: passes"),
        ("mob/caged_IN_0", "mob.mayfly.test:8010".to_owned(), "only mob.mayfly.test:8000: stops here"),
        ("203.0.113.9", format!("{vip}:80"), "endpoint web/http: sent to"),
        ("203.0.113.9", format!("{vip}:81"), "no endpoint of"),
    ] {
        let said = trace(from, &to);
        assert!(said.contains(expected), "{from} to {to}: {said}");
        assert_eq!(
            said.contains(": passes\n") && !said.contains("does not pass"),
            !expected.contains("stops") && !expected.contains("no ")
        );
    }
    let shown = fabric.instance("mob", "web_IN_0").unwrap();
    wait_until("what was sent is counted", Duration::from_secs(30), || {
        let now = fabric.instance("mob", "web_IN_0")?;
        Ok(now["sent_bytes"].as_u64() > shown["sent_bytes"].as_u64() || shown["sent_bytes"].as_u64() > Some(1000))
    })
    .unwrap();
    let token: Value = serde_json::from_slice(&std::fs::read(fabric.state().join("fabric.json")).unwrap()).unwrap();
    let metrics = || fabric.metrics(token["user_token"].as_str().unwrap()).unwrap();
    wait_until("connections are counted", Duration::from_secs(30), || {
        let text = metrics();
        let line = text.lines().find(|line| line.contains("endpoint=\"web/own\"") && !line.ends_with(" 0"));
        Ok(line.is_some() && text.contains("mayfly_instances{deployment=\"mob\",state=\"ReadyRole\"} 5"))
    })
    .unwrap_or_else(|error| panic!("{error}: {}", metrics()));
    for invariant in [1, 2, 4, 8] {
        let line = format!("mayfly_invariant_violations{{invariant=\"{invariant}\"}} 0");
        assert!(metrics().contains(&line), "{}", metrics());
    }
    let refused = stage.refused(&["service", "scale", "mob", "web=3"]);
    assert!(refused.contains("`own` has 2 public ports"), "{refused}");
}
