//! Bad input and faults: a clear message, the right exit status, and a fabric that is as it was.

use std::net::TcpListener;
use std::process::Command;

use crate::{Stage, image, refused};

#[test]
fn what_is_wrong_is_refused_and_changes_nothing() {
    let stage = Stage::up();
    images_that_are_none(&stage);
    stage.fabric.run(&["service", "create", "bank"]).unwrap();
    let taken = stage.refused(&["service", "create", "bank"]);
    assert!(taken.contains("there is a service `bank` already"), "{taken}");
    assert!(stage.refused(&["service", "create", "Bank_1"]).contains("lower-case letters"));
    files_that_are_wrong(&stage);
    more_than_fits(&stage);
    a_guest_that_never_gets_ready(&stage);
}

fn images_that_are_none(stage: &Stage) {
    let good = std::fs::read(image()).unwrap();
    let mut flipped = good.clone();
    let at = flipped.len() - 100;
    flipped[at] ^= 1;
    let push = |name: &str, bytes: &[u8]| {
        let file = stage.file(name, bytes);
        stage.refused(&["image", "push", &file, "--name", "bad"])
    };
    assert!(push("raw.img", &good[..1 << 20]).contains("not a VHD"));
    assert!(push("truncated.vhd", &good[..good.len() - 4096]).contains("truncated"));
    assert!(push("cut.vhd", &good[1 << 20..]).contains("current size"));
    assert!(push("flipped.vhd", &flipped).contains("checksum of the footer"));
    assert!(push("empty.vhd", b"").contains("fewer than the 512"));
    assert!(stage.refused(&["image", "push", "/nowhere.vhd", "--name", "bad"]).contains("/nowhere.vhd"));
    let taken = stage.refused(&["image", "push", image().to_str().unwrap(), "--name", "hello"]);
    assert!(taken.contains("there is an image `hello` already"), "{taken}");
    assert_eq!(stage.fabric.json(&["image", "list"]).unwrap().as_array().unwrap().len(), 1);
}

fn files_that_are_wrong(stage: &Stage) {
    let roles = [("web", 2)];
    let (definition, configuration) = (stage.definition(&roles), stage.configuration(&roles, "hello", ""));
    let deploy = |definition: &str, configuration: &str| {
        let files = ["--definition", definition, "--configuration", configuration];
        stage.refused(&[&["service", "deploy", "bank"], &files[..]].concat())
    };
    let malformed = stage.file("malformed.csdef", std::fs::read_to_string(&definition).unwrap().replace("/>", ">"));
    let error = deploy(&malformed, &configuration);
    assert!(error.contains("malformed.csdef:") && error.contains("not well-formed"), "{error}");
    let text = std::fs::read_to_string(&configuration).unwrap();
    let contradiction = stage.file("other.cscfg", text.replace("\"web\"", "\"wev\""));
    let error = deploy(&definition, &contradiction);
    assert!(error.contains("other.cscfg:2:13") && error.contains("no role `wev`") && error.contains("^^^"), "{error}");
    let error = deploy(&definition, &stage.configuration(&roles, "hallo", ""));
    assert!(error.contains("there is no image `hallo`"), "{error}");
    let text = std::fs::read_to_string(&definition).unwrap();
    let worker = stage.file("worker.csdef", text.replace("VirtualMachineRole", "WorkerRole"));
    let text = std::fs::read_to_string(stage.configuration(&roles, "hello", "")).unwrap();
    let plain = stage.file("worker.cscfg", text.replace("<OsImage href=\"hello\"/>", ""));
    let error = deploy(&worker, &plain);
    assert!(error.contains("WorkerRole, which cannot be deployed yet"), "{error}");
    let missing = stage.configuration(&roles, "hello", "<Setting name=\"Mayfly.UserData\" value=\"@none.sh\"/>");
    assert!(deploy(&definition, &missing).contains("the file `none.sh` was not given"));
    assert!(deploy("/nowhere.csdef", &configuration).contains("cannot read /nowhere.csdef"));
    assert!(stage.fabric.instances("bank").unwrap().is_empty());
}

fn more_than_fits(stage: &Stage) {
    let fabric = &stage.fabric;
    let (definition, configuration) =
        (stage.definition(&[("web", 200)]), stage.configuration(&[("web", 200)], "hello", ""));
    let files = ["--definition", &definition, "--configuration", &configuration];
    let error = stage.refused(&[&["service", "deploy", "bank"], &files[..]].concat());
    assert!(error.contains("of 200 new instances find a place (each needs"), "{error}");
    let fits = error.split("none is made; web=").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or_default();
    let fits: u32 = fits.parse().unwrap_or_else(|_| panic!("{error}"));
    let plan = |count: u32| {
        let (definition, configuration) =
            (stage.definition(&[("web", count)]), stage.configuration(&[("web", count)], "hello", ""));
        let files = ["--definition", &definition, "--configuration", &configuration, "--dry-run"];
        fabric.run(&[&["service", "deploy", "bank"], &files[..]].concat())
    };
    let plan_that_fits = plan(fits).unwrap();
    assert!(plan_that_fits.contains("fault domain"), "{plan_that_fits}");
    assert!(plan(fits + 1).is_err());
    let view = fabric.json(&["service", "show", "bank"]).unwrap();
    assert!(view["deployments"].as_array().unwrap().is_empty(), "{view}");
    assert!(stage.refused(&["service", "scale", "bank", "web=1"]).contains("there is no deployment"));
}

/// A disk without a system on it, beside a role that is well.
fn a_guest_that_never_gets_ready(stage: &Stage) {
    let fabric = &stage.fabric;
    let (raw, blank) = (stage.file("blank.raw", vec![0; 1 << 20]), stage.folder.path().join("blank.vhd"));
    let options = ["convert", "-f", "raw", "-O", "vpc", "-o", "subformat=dynamic,force_size=on", &raw];
    assert!(Command::new("qemu-img").args(options).arg(&blank).status().unwrap().success());
    fabric.run(&["image", "push", blank.to_str().unwrap(), "--name", "blank"]).unwrap();
    let roles = [("good", 1), ("bad", 1)];
    let definition = stage.definition(&roles);
    let timeout = "<Setting name=\"Mayfly.StartTimeoutSeconds\" value=\"20\"/>";
    let text = std::fs::read_to_string(stage.configuration(&roles, "hello", "")).unwrap();
    let bad = format!("<OsImage href=\"blank\"/><Instances count=\"1\"/><ConfigurationSettings>{timeout}");
    let old = "<OsImage href=\"hello\"/><Instances count=\"1\"/><ConfigurationSettings>";
    let (head, tail) = text.rsplit_once(old).unwrap();
    let configuration = stage.file("blank.cscfg", format!("{head}{bad}{tail}"));
    let files = ["--definition", &definition, "--configuration", &configuration, "--wait", "--timeout", "120s"];
    let error = stage.refused(&[&["service", "deploy", "bank"], &files[..]].concat());
    assert!(error.contains("bad_IN_0 is FailedStartingRole: not ready within 20 s"), "{error}");
    assert_eq!(fabric.instance("bank", "good_IN_0").unwrap()["state"], "ReadyRole");
    let unknown = stage.refused(&["service", "scale", "bank", "ugly=2"]);
    assert!(unknown.contains("there is no role `ugly` in `bank`; its roles are `good`, `bad`"), "{unknown}");
    assert!(stage.refused(&["instance", "reboot", "bank/good_IN_7"]).contains("there is no instance"));
    assert!(stage.refused(&["image", "delete", "blank"]).contains("in use by bank"));
}

#[test]
fn a_machine_that_is_not_fit_is_told_why() {
    let stage = Stage::empty();
    let output = stage.fabric.command(&["dev", "up"]).env("PATH", "/nowhere").output().unwrap();
    assert!(!output.status.success());
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(errors.contains("qemu-system-x86_64` is not installed"), "{errors}");
    // All loopback addresses, so whatever number the fabric gets.
    let _listener = TcpListener::bind("0.0.0.0:7070").unwrap();
    let errors = stage.refused(&["dev", "up"]);
    assert!(errors.contains("7070") && errors.contains("in use"), "{errors}");
    drop(_listener);
    stage.fabric.run(&["dev", "up"]).unwrap();
}

#[test]
fn a_full_disk_loses_nothing() {
    let stage = Stage::empty();
    let state = stage.fabric.state().to_owned();
    std::fs::create_dir_all(&state).unwrap();
    let small = SmallDisk::mount(&state, 75);
    let fabric = &stage.fabric;
    fabric.run(&["dev", "up"]).unwrap();
    fabric.run(&["image", "push", image().to_str().unwrap(), "--name", "hello"]).unwrap();
    let roles = [("web", 3)];
    let (definition, configuration) = (stage.definition(&roles), stage.configuration(&roles, "hello", ""));
    fabric.run(&["service", "create", "bank"]).unwrap();
    let files = ["--definition", &definition, "--configuration", &configuration, "--wait", "--timeout", "90s"];
    let error = stage.refused(&[&["service", "deploy", "bank"], &files[..]].concat());
    assert!(error.contains("FailedStartingVM: the host's disk is full"), "{error}");
    let fill = state.join("fill");
    let _ = Command::new("dd").args(["if=/dev/zero", "bs=64k"]).arg(format!("of={}", fill.display())).output().unwrap();
    let error = stage.refused(&["image", "push", image().to_str().unwrap(), "--name", "second"]);
    assert!(error.contains("disk is full"), "{error}");
    std::fs::remove_file(&fill).unwrap();
    // With room again, everything goes on by itself.
    small.grow(400);
    fabric.run(&["service", "scale", "bank", "web=3", "--wait", "--timeout", "180s"]).unwrap();
    fabric.run(&["dev", "down"]).unwrap();
}

/// A tmpfs of a few MiB.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(path: &std::path::Path, mib: u32) -> SmallDisk {
        let options = format!("size={mib}m");
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(path).status().unwrap();
        assert!(status.success());
        SmallDisk(path.to_owned())
    }

    fn grow(&self, mib: u32) {
        let options = format!("remount,size={mib}m");
        assert!(Command::new("mount").args(["-o", &options]).arg(&self.0).status().unwrap().success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The fabric has to let go of it first.
        let binary = env!("CARGO_BIN_EXE_mayfly");
        let _ = Command::new(binary).arg("--state").arg(&self.0).args(["dev", "down"]).output();
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_wrong_command_line_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    let fabric = crate::fabric_in(&folder.path().join("none"));
    for (arguments, expected) in [
        (&["service", "scale", "shop", "web"][..], "write ROLE=COUNT"),
        (&["instance", "reboot", "web_IN_0"], "write SERVICE/ROLE_IN_NUMBER"),
        (&["service", "deploy", "shop"], "--definition <FILE>"),
        (&["service", "delete", "shop", "--wait", "--timeout", "soon"], "write a number and s, m or h"),
    ] {
        let errors = refused(fabric.try_run(arguments).unwrap(), arguments);
        assert!(errors.contains(expected), "{errors}");
    }
}
