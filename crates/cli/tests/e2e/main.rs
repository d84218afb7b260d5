//! End to end, with real guests in dev fabrics of their own. They need root and a machine set up by `cargo xtask`.
//!
//! Fabrics are started one after the other: the machine's cores are the guests'.

#[path = "../../../net/tests/kernel/borrowed.rs"]
mod borrowed;
mod changes;
mod disks;
mod encrypted;
mod faults;
mod guests;
mod help;
mod ipv6;
mod isolation;
mod kills;
mod lifecycle;
mod linear;
mod network;
mod records;
mod rootless;
mod story;
mod unmodified;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use mayfly_xtask::fabric::{DevFabric, Said};

static TURN: Mutex<()> = Mutex::new(());

/// A test's own fabric, in a folder that goes with it, and its turn to have one.
struct Stage {
    fabric: DevFabric,
    folder: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Stage {
    /// A fabric that is not started yet.
    fn empty() -> Stage {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::tempdir().unwrap();
        let fabric = fabric_in(&folder.path().join("state"));
        Stage { fabric, folder, _turn: turn }
    }

    /// A fabric that runs and has the demo image as `hello`.
    fn up() -> Stage {
        let stage = Stage::empty();
        stage.fabric.run(&["dev", "up"]).unwrap();
        stage.fabric.run(&["image", "push", image().to_str().unwrap(), "--name", "hello"]).unwrap();
        stage
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Deploys roles, each with a number of instances, and waits until they are ready.
    fn deploy(&self, service: &str, roles: &[(&str, u32)]) {
        let (definition, configuration) = (self.definition(roles), self.configuration(roles, "hello", ""));
        self.fabric.run(&["service", "create", service]).unwrap();
        let files = ["--definition", &definition, "--configuration", &configuration];
        self.fabric
            .run(&[&["service", "deploy", service, "--wait", "--timeout", "300s"], &files[..]].concat())
            .unwrap();
    }

    fn definition(&self, roles: &[(&str, u32)]) -> String {
        let roles: Vec<String> = roles
            .iter()
            .enumerate()
            .map(|(number, (name, _))| {
                format!(
                    "<VirtualMachineRole name=\"{name}\" vmsize=\"ExtraSmall\"><Endpoints>\
                     <InputEndpoint name=\"{name}\" protocol=\"tcp\" port=\"{}\" localPort=\"80\"/>\
                     </Endpoints></VirtualMachineRole>",
                    80 + number
                )
            })
            .collect();
        let namespace = "http://schemas.microsoft.com/ServiceHosting/2008/10/ServiceDefinition";
        let text = format!(
            "<ServiceDefinition name=\"Test\" xmlns=\"{namespace}\">\n{}\n</ServiceDefinition>",
            roles.join("\n")
        );
        self.file("test.csdef", text)
    }

    fn configuration(&self, roles: &[(&str, u32)], image: &str, settings: &str) -> String {
        let roles: Vec<String> = roles
            .iter()
            .map(|(name, count)| {
                format!(
                    "<Role name=\"{name}\"><OsImage href=\"{image}\"/><Instances count=\"{count}\"/>\
                     <ConfigurationSettings>{settings}</ConfigurationSettings></Role>"
                )
            })
            .collect();
        let namespace = "http://schemas.microsoft.com/ServiceHosting/2008/10/ServiceConfiguration";
        let text = format!(
            "<ServiceConfiguration serviceName=\"Test\" xmlns=\"{namespace}\">\n{}\n</ServiceConfiguration>",
            roles.join("\n")
        );
        self.file("test.cscfg", text)
    }

    /// A command that has to fail; returns what it said.
    fn refused(&self, arguments: &[&str]) -> String {
        refused(self.fabric.try_run(arguments).unwrap(), arguments)
    }
}

fn refused(said: Said, arguments: &[&str]) -> String {
    assert!(!said.success, "mayfly {} should have failed, and said: {}", arguments.join(" "), said.output);
    assert!(said.errors.contains("error"), "no word of an error: {}", said.errors);
    said.errors
}

fn fabric_in(state: &Path) -> DevFabric {
    DevFabric::new(Path::new(env!("CARGO_BIN_EXE_mayfly")), state)
}

/// The Debian image, likewise.
fn debian() -> PathBuf {
    mayfly_xtask::image::build_debian(&mayfly_xtask::workspace()).unwrap()
}

/// The demo image; `cargo xtask test` has built it, and otherwise it is built now.
fn image() -> PathBuf {
    mayfly_xtask::image::build(&mayfly_xtask::workspace()).unwrap()
}
