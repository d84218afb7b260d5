//! Guests: what outlives what, scripts, consoles and screens, captured disks, floods, and copies.

use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

use mayfly_xtask::fabric::{DevFabric, wait_until};
use mayfly_xtask::visitor::get;
use serde_json::Value;

use crate::Stage;

const DEFINITION: &str = "http://schemas.microsoft.com/ServiceHosting/2008/10/ServiceDefinition";
const CONFIGURATION: &str = "http://schemas.microsoft.com/ServiceHosting/2008/10/ServiceConfiguration";

/// A definition of roles, each a name and what stands in it.
pub(crate) fn definition(roles: &[(&str, &str)]) -> String {
    let roles: String = roles
        .iter()
        .map(|(name, inner)| {
            format!("<VirtualMachineRole name=\"{name}\" vmsize=\"ExtraSmall\">{inner}</VirtualMachineRole>\n")
        })
        .collect();
    format!("<ServiceDefinition name=\"Test\" xmlns=\"{DEFINITION}\">\n{roles}</ServiceDefinition>")
}

/// A role of a configuration: its name, its image, and settings.
pub(crate) type Configured<'s> = (&'s str, &'s str, &'s [(&'s str, &'s str)]);

/// A configuration of roles with one instance each.
pub(crate) fn configuration(roles: &[Configured<'_>]) -> String {
    let setting = |(name, value): &(&str, &str)| format!("<Setting name=\"{name}\" value=\"{value}\"/>");
    let roles: String = roles
        .iter()
        .map(|(name, image, settings)| {
            let settings: String = settings.iter().map(setting).collect();
            format!(
                "<Role name=\"{name}\"><OsImage href=\"{image}\"/><Instances count=\"1\"/>\
                 <ConfigurationSettings>{settings}</ConfigurationSettings></Role>\n"
            )
        })
        .collect();
    format!("<ServiceConfiguration serviceName=\"Test\" xmlns=\"{CONFIGURATION}\">\n{roles}</ServiceConfiguration>")
}

/// Deploys or upgrades `shop`, and waits.
pub(crate) fn put(stage: &Stage, verb: &str, definition: &str, configuration: &str) {
    let (definition, configuration) = (stage.file("s.csdef", definition), stage.file("s.cscfg", configuration));
    let files = ["--definition", &definition, "--configuration", &configuration, "--wait", "--timeout", "300s"];
    stage.fabric.run(&[&["service", verb, "shop"], &files[..]].concat()).unwrap();
}

pub(crate) const STORAGE: &str = "<LocalResources><LocalStorage name=\"keep\" sizeInMB=\"64\" cleanOnRoleRecycle=\"false\"/>\
    <LocalStorage name=\"scratch\" sizeInMB=\"32\" cleanOnRoleRecycle=\"true\"/></LocalResources>\
    <Endpoints><InputEndpoint name=\"http\" protocol=\"tcp\" port=\"80\"/></Endpoints>";

/// Sends `here` to a guest's page; one that dies at that does not answer.
fn post(vip: &str, path: &str) -> Result<(), ureq::Error> {
    let limits = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(3))).build();
    ureq::Agent::from(limits).post(format!("http://{vip}/{path}")).send(&b"here"[..]).map(drop)
}

/// Leaves marks on all three disks.
fn mark(vip: &str) {
    for path in ["mark", "mark/keep", "mark/scratch"] {
        post(vip, path).unwrap();
    }
}

/// Whether the marks are still there: of the system's disk, of the local disk that is kept, of the one that is cleaned.
fn marks(vip: &str) -> (bool, bool, bool) {
    let mut page = None;
    wait_until("the guest answers", Duration::from_secs(60), || {
        page = get(&format!("http://{vip}/json")).ok();
        Ok(page.is_some())
    })
    .unwrap();
    let page = page.unwrap_or_default();
    let local = |name: &str| page["local"][name] == "here";
    assert!(
        page["local"]["keep"].is_string() && page["local"]["scratch"].is_string(),
        "both appear, formatted: {page}"
    );
    (page["mark"] == "here", local("keep"), local("scratch"))
}

#[test]
fn disks_outlive_what_they_should_and_nothing_else() {
    let stage = Stage::up();
    let fabric = &stage.fabric;
    fabric.run(&["service", "create", "shop"]).unwrap();
    let settings = |script: &'static str| [("Mayfly.Script", script), ("Mayfly.DrainSeconds", "1")];
    let configured = |script| configuration(&[("web", "hello", &settings(script))]);
    put(&stage, "deploy", &definition(&[("web", STORAGE)]), &configured("#!/bin/sh&#10;echo one"));
    let vip = fabric.vip("shop").unwrap();
    let one = "shop/web_IN_0";
    let names = || fabric.instance("shop", "web_IN_0").unwrap();
    let act = |verb: &str| {
        mark(&vip);
        let before = names();
        fabric.run(&["instance", verb, one, "--wait", "--timeout", "120s"]).unwrap();
        (before["computer_name"] != names()["computer_name"], marks(&vip))
    };
    // (another computer name, system, local, local that is cleaned)
    assert_eq!(act("reboot"), (false, (true, true, true)));
    assert_eq!(act("reimage"), (true, (false, true, false)));
    assert_eq!(act("rebuild"), (true, (false, false, false)));
    // From within, and by a crash of its kernel.
    for (path, word) in [("reboot", None), ("crash", Some("its kernel panicked: sysrq triggered crash"))] {
        mark(&vip);
        let boots = get(&format!("http://{vip}/json")).unwrap()["boots"].as_u64().unwrap();
        // The guest dies before it answers.
        let _ = post(&vip, path);
        wait_until("the guest is back", Duration::from_secs(60), || {
            Ok(get(&format!("http://{vip}/json")).is_ok_and(|page| page["boots"].as_u64() == Some(boots + 1)))
        })
        .unwrap();
        assert_eq!(marks(&vip), (true, true, true), "{path}");
        let events = fabric.run(&["event", "list"]).unwrap();
        assert!(word.is_none_or(|word| events.contains(word)), "{events}");
    }
    // Its host reboots, and is back before its lease is over.
    mark(&vip);
    let (before, host) = (names()["computer_name"].clone(), names()["host"].as_str().unwrap().to_owned());
    fabric.run(&["dev", "kill", &host]).unwrap();
    fabric.run(&["dev", "start", &host]).unwrap();
    wait_until("the host is back", Duration::from_secs(20), || {
        Ok(fabric.run(&["event", "list"])?.contains("was started again within its lease"))
    })
    .unwrap();
    assert_eq!((marks(&vip), &names()["computer_name"]), ((true, true, true), &before), "its host's reboot");
    // Stopped and started.
    mark(&vip);
    let said = fabric.run(&["instance", "stop", one, "--wait"]).unwrap();
    assert!(said.contains("its disks are kept"), "{said}");
    assert_eq!(names()["state"], "StoppedVM");
    assert!(stage.refused(&["instance", "stop", one]).contains("is stopped already"));
    assert!(stage.refused(&["instance", "screenshot", one, "/dev/null"]).contains("does not run"));
    // Its disk becomes an image meanwhile.
    let said = fabric.run(&["image", "capture", one, "--name", "gold"]).unwrap();
    assert!(said.contains("gold is committed"), "{said}");
    fabric.run(&["instance", "start", one, "--wait"]).unwrap();
    assert_eq!(marks(&vip), (true, true, true));
    assert!(stage.refused(&["image", "capture", one, "--name", "silver"]).contains("stop it first"));
    // An upgrade that needs a new VM, from the captured disk.
    mark(&vip);
    let captured = configuration(&[("web", "gold", &settings("#!/bin/sh&#10;echo two"))]);
    put(&stage, "upgrade", &definition(&[("web", STORAGE)]), &captured);
    assert_eq!(marks(&vip), (true, true, false), "the image has the mark that was captured");
    assert!(fabric.run(&["instance", "log", one]).unwrap().contains("two"));
    // Healed onto another host.
    let host = names()["host"].as_str().unwrap().to_owned();
    fabric.run(&["dev", "kill", &host]).unwrap();
    wait_until("it is ready elsewhere", Duration::from_secs(90), || {
        let now = names();
        Ok(now["state"] == "ReadyRole" && now["host"] != host.as_str())
    })
    .unwrap();
    assert_eq!(marks(&vip), (true, false, false), "what was local died with its host");
    fabric.run(&["dev", "start", &host]).unwrap();
    fabric.run(&["service", "delete", "shop", "--wait", "--timeout", "60s"]).unwrap();
    no_local_disk_is_left(fabric);
}

/// What no instance will use again is thrown away.
fn no_local_disk_is_left(fabric: &DevFabric) {
    for host in ["host-1", "host-2", "host-3"] {
        let local = fabric.host_folder(host).join("local");
        let left = || -> Vec<_> {
            let entries = std::fs::read_dir(&local).into_iter().flatten().flatten();
            entries.filter(|entry| entry.file_name() != "formatted").map(|entry| entry.path()).collect()
        };
        wait_until(&format!("{host} has no local disks"), Duration::from_secs(20), || Ok(left().is_empty())).unwrap();
    }
}

#[test]
fn scripts_are_tried_told_and_waited_for_and_guests_agree_to_be_stopped() {
    let stage = Stage::up();
    let fabric = &stage.fabric;
    fabric.run(&["service", "create", "shop"]).unwrap();
    let endpoint = "<Endpoints><InputEndpoint name=\"http\" protocol=\"tcp\" port=\"80\"/></Endpoints>";
    // The first try fails, the second takes too long, the third agrees from then on to whatever is planned.
    let script = "#!/bin/sh\n\
        echo \"try on $(hostname)\"\n\
        [ -e /run/first ] || { touch /run/first; exit 7; }\n\
        [ -e /run/second ] || { touch /run/second; sleep 60; }\n\
        events=http://169.254.169.254/metadata/scheduledevents?api-version=2020-07-01\n\
        (while sleep 0.3; do\n\
          id=$(wget -q -O - --header 'Metadata: true' $events | sed -n 's/.*\"EventId\":\"\\([^\"]*\\)\".*/\\1/p')\n\
          [ -z \"$id\" ] || wget -q -O - --header 'Metadata: true' \\\n\
            --post-data \"{\\\"StartRequests\\\":[{\\\"EventId\\\":\\\"$id\\\"}]}\" $events\n\
        done) > /dev/null 2>&1 &\n";
    stage.file("role.sh", script);
    let settings = [
        ("Mayfly.Script", "@role.sh"),
        ("Mayfly.ScriptTries", "3"),
        ("Mayfly.ScriptTimeoutSeconds", "2"),
        ("Mayfly.DrainSeconds", "120"),
    ];
    put(&stage, "deploy", &definition(&[("web", endpoint)]), &configuration(&[("web", "hello", &settings)]));
    let runs = fabric.json(&["instance", "log", "shop/web_IN_0"]).unwrap();
    let ends: Vec<&Value> = runs.as_array().unwrap().iter().map(|run| &run["status"]).collect();
    assert_eq!(ends, [&Value::from(7), &Value::Null, &Value::from(0)], "{runs}");
    let name = fabric.instance("shop", "web_IN_0").unwrap()["computer_name"].as_str().unwrap().to_owned();
    assert!(runs[2]["output"].as_str().unwrap().contains(&format!("try on {name}")), "{runs}");
    let show = fabric.run(&["instance", "show", "shop/web_IN_0"]).unwrap();
    for step in ["QEMU runs", "the guest asks who it is", "its script has ended", "Ready"] {
        assert!(show.contains(step), "{step} is missing: {show}");
    }
    // It asks what is planned, so its answer is waited for; as it agrees, not for long.
    let began = Instant::now();
    fabric.run(&["instance", "reboot", "shop/web_IN_0", "--wait", "--timeout", "100s"]).unwrap();
    assert!(began.elapsed() < Duration::from_secs(100));
    // A script that fails keeps its instance from being Ready, and says why.
    let failing = [("Mayfly.Script", "#!/bin/sh&#10;echo it is broken; exit 3"), ("Mayfly.StartTimeoutSeconds", "8")];
    let (definition, configuration) = (
        stage.file("s.csdef", definition(&[("web", endpoint)])),
        stage.file("s.cscfg", configuration(&[("web", "hello", &failing)])),
    );
    let files = ["--definition", &definition, "--configuration", &configuration];
    fabric.run(&["service", "create", "bad"]).unwrap();
    let deploy = [&["service", "deploy", "bad", "--wait", "--timeout", "60s"], &files[..]].concat();
    let said = stage.refused(&deploy);
    assert!(said.contains("its script ended with status 3: it is broken"), "{said}");
    consoles_and_screens(&stage);
    one_that_floods_harms_nobody(&stage);
}

/// A guest on each host opens more connections than it may, keeps asking, sends bodies without end, noise and lies.
fn one_that_floods_harms_nobody(stage: &Stage) {
    let fabric = &stage.fabric;
    let script = "#!/bin/sh\n\
        wire=168.63.129.16\n\
        (for n in $(seq 60); do (sleep 600 | nc $wire 80) & done\n\
        for n in 1 2 3; do (while :; do wget -q -O - \"http://$wire/machine?comp=goalstate\"; done) & done\n\
        head='POST /machine?comp=health HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 99999999999\\r\\n\\r\\n'\n\
        (while :; do (printf \"$head\"; cat /dev/zero) | nc $wire 80; done) &\n\
        (while :; do head -c 60000 /dev/urandom | nc 169.254.169.254 80; done) &\n\
        lie='<Health><Container><RoleInstanceList><Role><InstanceId>0.web_IN_0</InstanceId><Health>\
        <State>NotReady</State></Health></Role></RoleInstanceList></Container></Health>'\n\
        (while sleep 0.2; do wget -q -O - --post-data \"$lie\" \"http://$wire/machine?comp=health\"; done) &\n\
        ) > /dev/null 2>&1 &\n";
    stage.file("flood.sh", script);
    let endpoint = "<Endpoints><InputEndpoint name=\"http\" protocol=\"tcp\" port=\"80\"/></Endpoints>";
    let three = configuration(&[("web", "hello", &[("Mayfly.Script", "@flood.sh")])]).replace("\"1\"", "\"3\"");
    fabric.run(&["service", "create", "flood"]).unwrap();
    let (definition, three) = (stage.file("s.csdef", definition(&[("web", endpoint)])), stage.file("s.cscfg", three));
    let files = ["--definition", &definition, "--configuration", &three, "--wait", "--timeout", "120s"];
    fabric.run(&[&["service", "deploy", "flood"], &files[..]].concat()).unwrap();
    // Its neighbour is stopped and boots anew on the same host, which takes all that the servers there are for.
    fabric.run(&["instance", "reboot", "shop/web_IN_0", "--wait", "--timeout", "120s"]).unwrap();
    let agents = fabric.processes("internal host-agent");
    assert_eq!(agents.len(), 3);
    for pid in agents {
        // The flood is one: the guest holds all the connections to port 80 that it may have.
        let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap();
        let open = table.lines().filter(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields.get(1).is_some_and(|local| local.ends_with(":0050")) && fields.get(3) == Some(&"01")
        });
        assert!(open.clone().count() >= 40, "{} connections are no flood", open.count());
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let kib: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(kib < 256 << 10, "an agent has taken {kib} KiB");
    }
    let hosts = fabric.json(&["host", "list"]).unwrap();
    assert!(hosts.as_array().unwrap().iter().all(|host| host["state"] == "Up"), "{hosts}");
    let vip = fabric.vip("shop").unwrap();
    assert!(get(&format!("http://{vip}/json")).is_ok());
    fabric.run(&["service", "delete", "flood", "--wait", "--timeout", "60s"]).unwrap();
}

/// The serial console is read and written, and the screen is a picture.
fn consoles_and_screens(stage: &Stage) {
    let fabric = &stage.fabric;
    let one = "shop/web_IN_0";
    let log = fabric.run(&["instance", "log", one, "--console"]).unwrap();
    assert!(log.contains("mayfly hello: ready"), "{log}");
    let earlier = fabric.run(&["instance", "log", one, "--console", "--boots-ago", "1"]).unwrap();
    assert!(earlier.contains("power button, switching off"), "it was rebooted: {earlier}");
    let said = stage.refused(&["instance", "log", one, "--console", "--boots-ago", "3"]);
    assert!(said.contains("there is no log of that boot"), "{said}");
    // The kernel echoes what is typed.
    let talked = talk(stage, one, &[(500, "good evening\n")]);
    assert!(talked.contains("good evening"), "{talked}");
    let picture = stage.folder.path().join("screen.png");
    fabric.run(&["instance", "screenshot", one, picture.to_str().unwrap()]).unwrap();
    let bytes = std::fs::read(&picture).unwrap();
    assert!(bytes.starts_with(b"\x89PNG\r\n") && bytes.len() > 500, "{} bytes", bytes.len());
    assert!(stage.refused(&["instance", "console", "shop/web_IN_7"]).contains("no instance"));
}

/// Types into a console: each text after so many milliseconds. Returns what it said.
pub(crate) fn talk(stage: &Stage, instance: &str, typed: &[(u64, &str)]) -> String {
    let mut command = stage.fabric.command(&["instance", "console", instance]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    for (millis, text) in typed {
        std::thread::sleep(Duration::from_millis(*millis));
        stdin.write_all(text.as_bytes()).unwrap();
    }
    std::thread::sleep(Duration::from_millis(500));
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// With which sequence number each of a hundred guests begins a connection: what a client has received so far, less one.
fn sequence_numbers(vip: &str) -> Vec<u32> {
    const LOOK: &str = "import socket, sys\n\
        for port in range(9000, 9100):\n\
        \x20   link = socket.create_connection((sys.argv[1], port), 10)\n\
        \x20   repair, queue, receive, sequence = 19, 20, 1, 21\n\
        \x20   link.setsockopt(socket.IPPROTO_TCP, repair, 1)\n\
        \x20   link.setsockopt(socket.IPPROTO_TCP, queue, receive)\n\
        \x20   print(link.getsockopt(socket.IPPROTO_TCP, sequence) % 2**32)\n";
    let output = std::process::Command::new("python3").args(["-c", LOOK, vip]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(|line| line.parse().unwrap()).collect()
}

#[test]
fn a_hundred_copies_of_a_template_are_a_hundred_machines() {
    let stage = Stage::empty();
    let fabric = &stage.fabric;
    fabric.run(&["dev", "up", "--host-cores", "32", "--host-memory", "60000"]).unwrap();
    fabric.run(&["image", "push", crate::image().to_str().unwrap(), "--name", "hello"]).unwrap();
    fabric.run(&["service", "create", "shop"]).unwrap();
    let endpoint = "<Endpoints><InstanceInputEndpoint name=\"own\" protocol=\"tcp\" localPort=\"80\">\
        <AllocatePublicPortFrom><FixedPortRange min=\"9000\" max=\"9099\"/></AllocatePublicPortFrom>\
        </InstanceInputEndpoint></Endpoints>";
    let settings = [("Mayfly.Template", "on"), ("Mayfly.DrainSeconds", "0")];
    put(&stage, "deploy", &definition(&[("web", endpoint)]), &configuration(&[("web", "hello", &settings)]));
    // One on each host, which makes a template there.
    fabric.run(&["service", "scale", "shop", "web=3", "--wait", "--timeout", "120s"]).unwrap();
    let ready = |host: &str| {
        let templates = std::fs::read_dir(fabric.host_folder(host).join("templates")).into_iter().flatten().flatten();
        templates.filter(|template| template.path().join("ready").exists()).count() == 1
    };
    wait_until("each host has a template", Duration::from_secs(120), || {
        Ok(["host-1", "host-2", "host-3"].iter().all(|host| ready(host)))
    })
    .unwrap();
    fabric.run(&["service", "scale", "shop", "web=100", "--wait", "--timeout", "300s"]).unwrap();
    let instances = fabric.instances("shop").unwrap();
    assert_eq!(instances.len(), 100);
    let copied = instances.iter().filter(|one| {
        let steps = one["steps"].as_array().map_or(&[][..], Vec::as_slice);
        steps.iter().any(|step| step["step"] == "it goes on from a template")
    });
    assert_eq!(copied.count(), 97, "all but the first on each host");
    let vip = fabric.vip("shop").unwrap();
    let mut seen: std::collections::BTreeMap<&str, std::collections::BTreeSet<String>> = Default::default();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    for index in 0..100 {
        let page = get(&format!("http://{vip}:{}/json", 9000 + index)).unwrap();
        assert_eq!(page["instance"], format!("web_IN_{index}"));
        for (name, value) in [
            ("computer name", &page["computer_name"]),
            ("address", &page["address"]),
            ("hardware address", &page["identity"]["mac"]),
            ("boot id", &page["identity"]["boot_id"]),
            ("random bytes", &page["identity"]["random"]),
            ("machine id", &page["identity"]["machine_id"]),
            ("host key", &page["identity"]["host_key"]),
        ] {
            let value = value.as_str().unwrap().to_owned();
            assert!(!value.is_empty(), "{name} of {index}");
            seen.entry(name).or_default().insert(value);
        }
        let time = page["identity"]["time"].as_u64().unwrap();
        assert!(time.abs_diff(now) < 60, "the clock of {index} is wrong: {time} at {now}");
    }
    for (name, values) in seen {
        assert_eq!(values.len(), 100, "{name}: {values:?}");
    }
    let mut numbers = sequence_numbers(&vip);
    numbers.sort_unstable();
    let apart = numbers.windows(2).map(|two| two[1] - two[0]).min().unwrap_or(0);
    assert!(numbers.len() == 100 && apart > 16, "no two begin their connections alike: {numbers:?}");
}
