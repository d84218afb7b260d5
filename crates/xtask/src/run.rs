//! Running other programs, with their words in the error when they fail.

use std::ffi::OsStr;
use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// Runs a program to its end.
pub fn run<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> anyhow::Result<()> {
    output(program, arguments).map(drop)
}

/// Runs a program and returns what it printed.
pub fn output<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> anyhow::Result<String> {
    finish(program, Command::new(program).args(arguments).stdin(Stdio::null()))
}

/// Runs a prepared command and returns what it printed.
pub fn finish(name: &str, command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("cannot run {name}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{name}: {}\n{text}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(text)
}

/// Runs a program with `input` on its standard input.
pub fn feed<S: AsRef<OsStr>>(program: &str, arguments: &[S], input: &str) -> anyhow::Result<()> {
    let mut command = Command::new(program);
    let mut child = command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{program}: {status}");
    }
    Ok(())
}
