//! The user's script: run once in each VM's life, its output kept.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::disk;
use crate::fabric::Seed;

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
