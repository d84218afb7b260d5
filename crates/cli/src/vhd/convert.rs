//! Converting and merging. What is being written has no name until it is whole.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use mayfly_vhd::{Access, DiskType, Progress, Source, Target, VhdError, open_chain};
use tempfile::NamedTempFile;

use super::{existing, options};
use crate::output::{self, mebibytes};

pub fn convert(input: &Path, output: &Path, from: Option<String>, to: Option<String>) -> anyhow::Result<()> {
    existing(input)?;
    let to = to.unwrap_or_else(|| by_name(output).to_owned());
    let target = match to.as_str() {
        "fixed" | "vhd" => Some(Target::Fixed),
        "dynamic" => Some(Target::Dynamic),
        "raw" => Some(Target::Raw),
        _ => None,
    };
    let source = Input::open(input, from.as_deref())?;
    match target {
        Some(target) => write(&source.source, target, output),
        None => with_qemu(&source.source, &to, output),
    }
}

pub fn merge(child: &Path, output: &Path, dynamic: bool) -> anyhow::Result<()> {
    existing(child)?;
    let disk = open_chain(child, Access::ReadOnly)?;
    ensure!(
        disk.disk_type() == DiskType::Differencing,
        "{} has no parent to be merged with; `mayfly vhd convert` copies it",
        child.display()
    );
    write(&Source::Vhd(disk), if dynamic { Target::Dynamic } else { Target::Fixed }, output)
}

fn by_name(output: &Path) -> &'static str {
    match output.extension().and_then(|extension| extension.to_str()) {
        Some("qcow2") => "qcow2",
        Some("vhdx") => "vhdx",
        Some("vmdk") => "vmdk",
        Some("vhd") => "fixed",
        _ => "raw",
    }
}

/// A disk to read, and the file that qemu-img made of it where it had to.
struct Input {
    source: Source,
    _made: Option<NamedTempFile>,
}

impl Input {
    fn open(path: &Path, from: Option<&str>) -> anyhow::Result<Input> {
        let plain = |source| Ok(Input { source, _made: None });
        match from {
            None | Some("vhd" | "vpc" | "fixed" | "dynamic" | "differencing") => {
                match open_chain(path, Access::ReadOnly) {
                    Ok(disk) => return plain(Source::Vhd(disk)),
                    Err(VhdError::NotVhd { .. }) if from.is_none() => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Some("raw") => return plain(raw(path)?),
            Some(_) => {}
        }
        let format = match from {
            Some(format) => format.to_owned(),
            None => match probe(path)? {
                Some(format) if format != "raw" => format,
                _ => return plain(raw(path)?),
            },
        };
        let made = beside(path)?;
        qemu_img(&["convert", "-f", &format, "-O", "raw"], path, made.path())?;
        Ok(Input { source: raw(made.path())?, _made: Some(made) })
    }
}

fn raw(path: &Path) -> anyhow::Result<Source> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let length = file.metadata()?.len();
    ensure!(length > 0, "{} is empty", path.display());
    Ok(Source::Raw(file, length))
}

/// What qemu-img takes a file for; nothing where there is no qemu-img.
fn probe(path: &Path) -> anyhow::Result<Option<String>> {
    let Ok(found) = Command::new("qemu-img").args(["info", "--output=json"]).arg(path).output() else {
        return Ok(None);
    };
    ensure!(found.status.success(), "qemu-img: {}", String::from_utf8_lossy(&found.stderr).trim());
    let info: serde_json::Value = serde_json::from_slice(&found.stdout)?;
    Ok(info["format"].as_str().map(str::to_owned))
}

fn qemu_img(arguments: &[&str], input: &Path, output: &Path) -> anyhow::Result<()> {
    let run = Command::new("qemu-img").args(arguments).arg(input).arg(output).output();
    let run = run.context("this format needs qemu-img, which is not installed (Debian: apt install qemu-utils)")?;
    ensure!(run.status.success(), "qemu-img: {}", String::from_utf8_lossy(&run.stderr).trim());
    Ok(())
}

/// A file without a name that anybody looks for, in the same file system.
fn beside(path: &Path) -> anyhow::Result<NamedTempFile> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let made = tempfile::Builder::new().prefix(".mayfly-").suffix(".partial").tempfile_in(folder);
    made.with_context(|| format!("cannot write to {}", folder.display()))
}

fn with_qemu(source: &Source, format: &str, output: &Path) -> anyhow::Result<()> {
    let (disk, made) = (beside(output)?, beside(output)?);
    copy(source, Target::Raw, disk.as_file(), output)?;
    qemu_img(&["convert", "-f", "raw", "-O", format], disk.path(), made.path())?;
    keep(made, output)
}

fn write(source: &Source, target: Target, output: &Path) -> anyhow::Result<()> {
    if output.exists() {
        bail!("{} exists already", output.display());
    }
    let made = beside(output)?;
    copy(source, target, made.as_file(), output)?;
    keep(made, output)
}

fn keep(made: NamedTempFile, output: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    made.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
    let kept = made.persist_noclobber(output);
    kept.map(drop).map_err(|error| error.error).with_context(|| format!("cannot name {}", output.display()))
}

fn copy(source: &Source, target: Target, file: &File, name: &Path) -> anyhow::Result<()> {
    use std::io::IsTerminal;
    let bar =
        if std::io::stderr().is_terminal() { ProgressBar::new(source.disk_bytes()) } else { ProgressBar::hidden() };
    bar.set_style(ProgressStyle::with_template("{wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left")?);
    let interrupted = interruptions()?;
    let mut written = 0;
    let done = mayfly_vhd::convert(source, target, file, name, &options(), &mut |progress: Progress| {
        bar.set_position(progress.done);
        written = progress.written;
        !interrupted.load(std::sync::atomic::Ordering::Relaxed)
    });
    bar.finish_and_clear();
    match done {
        Err(VhdError::Io { source, .. }) if source.kind() == std::io::ErrorKind::Interrupted => {
            bail!("interrupted; nothing was left behind")
        }
        other => other?,
    }
    if target != Target::Raw || name.extension().is_none_or(|extension| extension != "qcow2") {
        let disk = mebibytes(source.disk_bytes());
        output::line(&format!("{}: a disk of {disk}, of which {} is data", name.display(), mebibytes(written)))?;
    }
    Ok(())
}

/// A flag that Ctrl-C and a request to end set, so that the unfinished file goes.
fn interruptions() -> anyhow::Result<Arc<std::sync::atomic::AtomicBool>> {
    use nix::sys::signal::{SigSet, Signal};
    let flag = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block().context("cannot block signals")?;
    let set = Arc::clone(&flag);
    std::thread::spawn(move || {
        if signals.wait().is_ok() {
            set.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    });
    Ok(flag)
}
