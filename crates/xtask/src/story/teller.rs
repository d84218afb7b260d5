//! Telling the story as it happens: a spinner on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

/// Tells each step, with its time.
pub struct Teller {
    start: Instant,
}

impl Teller {
    /// A teller whose clock starts now.
    pub fn new() -> Teller {
        Teller { start: Instant::now() }
    }

    /// Does a step and tells what came of it.
    pub fn step(&self, title: &str, work: impl FnOnce() -> anyhow::Result<String>) -> anyhow::Result<()> {
        self.step_with(title, || work().map(|said| ((), said)))
    }

    /// Does a step that has a result.
    pub fn step_with<T>(&self, title: &str, work: impl FnOnce() -> anyhow::Result<(T, String)>) -> anyhow::Result<T> {
        let began = Instant::now();
        let spinner = std::io::stdout().is_terminal().then(|| {
            let spinner = ProgressBar::new_spinner().with_message(title.to_owned());
            if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed_precise} {msg}") {
                spinner.set_style(style);
            }
            spinner.enable_steady_tick(Duration::from_millis(100));
            spinner
        });
        let result = work();
        if let Some(spinner) = spinner {
            spinner.finish_and_clear();
        }
        let (at, took) = (self.start.elapsed().as_secs_f64(), began.elapsed().as_secs_f64());
        match &result {
            Ok((_, said)) => println!("{at:6.1} s  {title}: {took:.1} s\n          {said}"),
            Err(_) => println!("{at:6.1} s  {title}: FAILED after {took:.1} s"),
        }
        result.map(|(value, _)| value)
    }

    /// Shows instances.
    pub fn list(&self, instances: &[Value]) {
        for one in instances {
            let field = |name: &str| one[name].as_str().unwrap_or("-").to_owned();
            println!(
                "          {}  {}  {}  {}  {}  {}",
                field("name"),
                field("state"),
                field("host"),
                field("fault_domain"),
                field("computer_name"),
                field("dip")
            );
        }
    }
}
