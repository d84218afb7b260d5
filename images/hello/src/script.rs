//! The user's script, run once in each VM's life, its output kept; and the role's post-boot script, of which the fabric
//! wants to know what becomes of it.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::disk;
use crate::fabric::{RoleScript, Seed, report_script};

/// What became of the script.
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// Its exit status, if it ran.
    pub status: Option<i32>,
    /// What it printed.
    pub output: String,
}

/// Runs the user data if it is a script and has not run in this VM; else returns what is known of that run.
pub fn run_once(seed: &Seed) -> anyhow::Result<Script> {
    if seed.user_data.trim().is_empty() {
        return Ok(Script::default());
    }
    if disk::read("instance-id").as_deref() == Some(&seed.instance_id) {
        let status = disk::read("script-status").and_then(|text| text.parse().ok());
        return Ok(Script { status, output: disk::read("script-output").unwrap_or_default() });
    }
    let script = if seed.user_data.starts_with("#!") {
        fs::write("/run/user-data", &seed.user_data)?;
        fs::set_permissions("/run/user-data", fs::Permissions::from_mode(0o700))?;
        let output = Command::new("/run/user-data").env("PATH", "/bin").current_dir("/").output()?;
        let text = [output.stdout, output.stderr].concat();
        Script { status: output.status.code(), output: String::from_utf8_lossy(&text).into_owned() }
    } else {
        Script { status: None, output: "this guest runs only user data that starts with #!\n".to_owned() }
    };
    disk::write("script-output", script.output.as_bytes())?;
    disk::write("script-status", script.status.map_or_else(String::new, |status| status.to_string()).as_bytes())?;
    disk::write("instance-id", seed.instance_id.as_bytes())?;
    Ok(script)
}

/// Runs the role's post-boot script as often as it takes, and tells the fabric.
pub fn run_for_role(script: &RoleScript) -> anyhow::Result<()> {
    let Some(text) = &script.text else { return Ok(()) };
    let known = format!("role-script-{}", script.vm);
    if let Some(report) = disk::read(&known).filter(|_| !script.each_boot) {
        return report_script(&serde_json::from_str(&report)?);
    }
    fs::write("/run/role-script", text)?;
    fs::set_permissions("/run/role-script", fs::Permissions::from_mode(0o700))?;
    for attempt in 1..=script.tries {
        let (status, output) = run(Duration::from_secs(script.timeout_seconds))?;
        let last = status == Some(0) || attempt == script.tries;
        let report = json!({ "attempt": attempt, "status": status, "last": last, "output": output });
        report_script(&report)?;
        if last {
            return disk::write(&known, report.to_string().as_bytes());
        }
        std::thread::sleep(Duration::from_secs((1 << attempt.min(5)).min(30)));
    }
    Ok(())
}

/// One run: its exit status, or none if its time was over, and what it printed.
fn run(limit: Duration) -> anyhow::Result<(Option<i32>, String)> {
    let (mut reader, writer) = std::io::pipe()?;
    let mut command = Command::new("/run/role-script");
    command.env("PATH", "/bin").current_dir("/").stdin(Stdio::null());
    command.stdout(writer.try_clone()?).stderr(writer).process_group(0);
    let mut child = command.spawn()?;
    // It holds the other end of the pipe too.
    drop(command);
    let output = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = reader.read_to_end(&mut bytes);
        bytes
    });
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status.code();
        }
        if Instant::now() > deadline {
            let group = nix::unistd::Pid::from_raw(child.id() as i32);
            let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
            let _ = child.wait();
            break None;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let bytes = output.join().unwrap_or_default();
    Ok((status, String::from_utf8_lossy(&bytes).into_owned()))
}
