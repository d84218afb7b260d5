//! What the tests share.

use std::path::Path;
use std::process::Command;

/// Runs a program; its failure is the test's.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    text
}

/// Runs qemu-io's commands against a disk that is served over NBD.
pub fn qemu_io(socket: &Path, commands: &[&str]) -> String {
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let mut arguments = vec!["-f", "raw"];
    for command in commands {
        arguments.extend(["-c", command]);
    }
    arguments.push(&uri);
    run("qemu-io", &arguments)
}

/// Waits, at most half a minute, until something is true.
pub fn wait_until(what: &str, mut is_true: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if is_true() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("this did not happen: {what}");
}
