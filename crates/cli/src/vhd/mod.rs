//! `mayfly vhd`: VHD files, without a fabric.

mod convert;
mod info;

use std::path::Path;

use anyhow::{Context, bail, ensure};
use mayfly_vhd::{
    Access, CreateOptions, create_differencing, create_dynamic, create_fixed, open_chain, seconds_since_2000,
};

use crate::arguments::{Output, VhdCommand};
use crate::output::{self, mebibytes};

pub fn run(output: Output, command: VhdCommand) -> anyhow::Result<()> {
    match command {
        VhdCommand::Info { file } => info::info(output, &file),
        VhdCommand::Map { file } => info::map(output, &file),
        VhdCommand::Create { file, size, fixed, parent } => create(&file, size, fixed, parent.as_deref()),
        VhdCommand::Convert { input, target, from, to } => convert::convert(&input, &target, from, to),
        VhdCommand::Merge { child, target, dynamic } => convert::merge(&child, &target, dynamic),
        VhdCommand::Check { file, repair } => check(output, &file, repair),
    }
}

/// Options of a disk that is made now.
fn options() -> CreateOptions {
    CreateOptions { unique_id: rand::random(), timestamp: seconds_since_2000(), durable: true }
}

fn create(file: &Path, size: Option<u64>, fixed: bool, parent: Option<&Path>) -> anyhow::Result<()> {
    let what = match (parent, size) {
        (Some(parent), _) => {
            ensure!(!file.exists(), "{} exists already", file.display());
            let parent = open_chain(parent, Access::ReadOnly)?;
            create_differencing(file, &parent, &options())?;
            format!("a differencing disk of {}", mebibytes(parent.disk_bytes()))
        }
        (None, Some(size)) if fixed => {
            create_fixed(file, size, &options())?;
            format!("a fixed disk of {}", mebibytes(size))
        }
        (None, Some(size)) => {
            create_dynamic(file, size, &options())?;
            format!("a dynamic disk of {}", mebibytes(size))
        }
        (None, None) => bail!("give --size or --parent"),
    };
    output::line(&format!("{}: {what}", file.display()))
}

fn check(output: Output, file: &Path, repair: bool) -> anyhow::Result<()> {
    if repair {
        for finding in mayfly_vhd::repair(file)? {
            output::line(&format!("mended: at byte {}: {}", finding.offset, finding.message))?;
        }
    }
    let findings = mayfly_vhd::check(file)?;
    if output == Output::Json {
        let list: Vec<_> = findings
            .iter()
            .map(|one| {
                serde_json::json!({
                    "error": one.is_error, "canRepair": one.can_repair, "offset": one.offset, "message": one.message
                })
            })
            .collect();
        output::line(&serde_json::to_string_pretty(&list)?)?;
    } else {
        for finding in &findings {
            let word = if finding.is_error { "error" } else { "note" };
            let repair = if finding.can_repair { " (--repair mends it)" } else { "" };
            output::line(&format!("{word}: at byte {}: {}{repair}", finding.offset, finding.message))?;
        }
        if findings.is_empty() {
            output::line(&format!("{}: no damage", file.display()))?;
        }
    }
    let errors = findings.iter().filter(|finding| finding.is_error).count();
    ensure!(errors == 0, "{} is damaged: {errors} error(s)", file.display());
    Ok(())
}

/// Reads a number of bytes, with K, M, G or T for powers of 1024.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().trim_end_matches("IB").trim_end_matches('B') {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        other => return Err(format!("`{other}` is none of K, M, G and T")),
    };
    let number: u64 = digits.parse().map_err(|error| format!("`{digits}`: {error}"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text} is too much"))
}

/// Adds the command to what went wrong, where that is a missing file.
fn existing(file: &Path) -> anyhow::Result<()> {
    std::fs::metadata(file).map(drop).with_context(|| format!("cannot read {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("512"), Ok(512));
        assert_eq!(parse_size("40G"), Ok(40 << 30));
        assert_eq!(parse_size("2TiB"), Ok(2 << 40));
        assert!(parse_size("4X").is_err() && parse_size("").is_err() && parse_size("99999999T").is_err());
    }
}
