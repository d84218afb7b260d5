//! Tables of results, for the terminal and for `docs/benchmarks.md`.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use anyhow::Context;

/// The results of one bench.
pub struct Report {
    bench: &'static str,
    text: String,
    missed: Vec<String>,
    met: usize,
}

/// What is compared with what.
pub struct Comparison<'a> {
    pub what: &'a str,
    pub ours: &'a [f64],
    pub peer: &'a [f64],
    /// Whether less is better.
    pub is_time: bool,
    pub unit: &'a str,
    /// How many times as good as the peer we want to be.
    pub goal: f64,
}

/// The middle of some figures.
pub fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Report {
    pub fn new(bench: &'static str) -> Report {
        Report { bench, text: String::new(), missed: Vec::new(), met: 0 }
    }

    /// A paragraph.
    pub fn say(&mut self, text: &str) {
        println!("{text}");
        let _ = writeln!(self.text, "{text}\n");
    }

    /// A heading and the head of a table of comparisons.
    pub fn table(&mut self, title: &str, peer: &str) {
        println!("\n{title}");
        let _ = write!(
            self.text,
            "### {title}\n\n| what | Mayfly: median (range) | {peer}: median (range) | ratio of medians | goal | |\n|---|---|---|---|---|---|\n"
        );
    }

    /// A line of it.
    pub fn compare(&mut self, one: &Comparison) {
        let (ours, peer) = (median(one.ours), median(one.peer));
        let ratio = if one.is_time { peer / ours } else { ours / peer };
        let met = ratio >= one.goal;
        if met {
            self.met += 1;
        } else {
            self.missed.push(format!("{}: {ratio:.2} instead of {:.2}", one.what, one.goal));
        }
        let show = |figures: &[f64]| {
            let (low, high) = figures.iter().fold((f64::MAX, 0f64), |(low, high), one| (low.min(*one), high.max(*one)));
            format!("{} {} ({} – {})", figure(median(figures)), one.unit, figure(low), figure(high))
        };
        let (ours, peer) = (show(one.ours), show(one.peer));
        let verdict = if met { "met" } else { "missed" };
        println!("  {:44} {ours:38} {peer:38} {ratio:7.2}  goal {:.2}  {verdict}", one.what, one.goal);
        let _ = writeln!(self.text, "| {} | {ours} | {peer} | {ratio:.2} | {:.2} | {verdict} |", one.what, one.goal);
    }

    /// Ends a table.
    pub fn end(&mut self) {
        self.text.push('\n');
    }

    /// A figure with an upper bound, without a peer.
    pub fn bound(&mut self, what: &str, value: f64, unit: &str, most: f64) {
        let met = value <= most;
        if met {
            self.met += 1;
        } else {
            self.missed.push(format!("{what}: {} {unit} instead of {} {unit}", figure(value), figure(most)));
        }
        let verdict = if met { "met" } else { "missed" };
        self.say(&format!("- {what}: {} {unit} (goal: at most {} {unit}; {verdict})", figure(value), figure(most)));
    }

    /// A figure with a lower bound, without a peer.
    pub fn at_least(&mut self, what: &str, value: f64, unit: &str, least: f64) {
        let met = value >= least;
        if met {
            self.met += 1;
        } else {
            self.missed.push(format!("{what}: {} {unit} instead of {} {unit}", figure(value), figure(least)));
        }
        let verdict = if met { "met" } else { "missed" };
        self.say(&format!("- {what}: {} {unit} (goal: at least {} {unit}; {verdict})", figure(value), figure(least)));
    }

    pub fn verdict(&self) -> String {
        if self.missed.is_empty() {
            return format!("all {} goals are met", self.met);
        }
        format!("{} goals are met, {} missed:\n  {}", self.met, self.missed.len(), self.missed.join("\n  "))
    }

    /// Writes this bench's section of the file.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let (begin, end) = (format!("<!-- begin {} -->", self.bench), format!("<!-- end {} -->", self.bench));
        let before = std::fs::read_to_string(path).unwrap_or_default();
        let section = format!(
            "{begin}\n## {}\n\n`cargo xtask bench {}`, {}, {}.\n\n{}{}\n{end}",
            self.bench,
            self.bench,
            jiff::Zoned::now().date(),
            machine(),
            self.text,
            self.verdict()
        );
        let text = match (before.find(&begin), before.find(&end)) {
            (Some(start), Some(stop)) => format!("{}{section}{}", &before[..start], &before[stop + end.len()..]),
            _ => format!("{}\n{section}\n", before.trim_end()),
        };
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

fn figure(value: f64) -> String {
    match value.abs() {
        large if large >= 1000.0 => format!("{:.1}k", value / 1000.0),
        middle if middle >= 10.0 => format!("{value:.0}"),
        _ => format!("{value:.2}"),
    }
}

/// The machine and the versions of the peers.
fn machine() -> String {
    let first = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).lines().next()?.to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let mut parts = vec![format!("{cores} cores"), format!("Linux {}", first("uname", &["-r"]).unwrap_or_default())];
    parts.extend(first("qemu-img", &["--version"]));
    parts.extend(first("nbdkit", &["--version"]));
    parts.extend(first("fio", &["--version"]));
    parts.join(", ")
}
