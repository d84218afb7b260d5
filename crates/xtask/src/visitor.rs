//! A visitor of the demo service: asks twenty times a second, each time anew, and remembers what came of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::Value;

/// How long one request may take.
pub const PATIENCE: Duration = Duration::from_secs(1);
const INTERVAL: Duration = Duration::from_millis(50);

/// One request.
#[derive(Clone, Debug)]
pub struct Visit {
    /// When it was sent.
    pub at: Instant,
    /// The page, or why there was none.
    pub page: Result<Value, String>,
}

/// A visitor at work.
pub struct Visitor {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<Visit>>>,
}

impl Visitor {
    /// Starts to visit a public address.
    pub fn start(vip: &str) -> Visitor {
        let stop = Arc::new(AtomicBool::new(false));
        let (url, asked_to_stop) = (format!("http://{vip}/json"), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut visits = Vec::new();
            while !asked_to_stop.load(Ordering::Relaxed) {
                // Each visitor waits for an answer alone; the next one comes in time whatever happens.
                let (at, url) = (Instant::now(), url.clone());
                visits.push((at, std::thread::spawn(move || get(&url).map_err(|error| format!("{error:#}")))));
                std::thread::sleep(INTERVAL.saturating_sub(at.elapsed()));
            }
            let page = |thread: JoinHandle<_>| thread.join().unwrap_or_else(|_| Err("panicked".to_owned()));
            visits.into_iter().map(|(at, thread)| Visit { at, page: page(thread) }).collect()
        });
        Visitor { stop, thread: Some(thread) }
    }

    /// Ends the visits and tells of them.
    pub fn finish(mut self) -> anyhow::Result<Vec<Visit>> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("the visitor has ended already")?;
        thread.join().map_err(|_| anyhow::anyhow!("the visitor panicked"))
    }
}

impl Drop for Visitor {
    /// Ends the visits of a story that broke off: without the fabric, its addresses are somebody else's.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Nobody is left who could be told.
            let _ = thread.join();
        }
    }
}

fn agent() -> ureq::Agent {
    // A connection for each request, as of twenty different visitors.
    ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).max_idle_connections(0).build().into()
}

/// Gets a JSON page.
pub fn get(url: &str) -> anyhow::Result<Value> {
    let text = agent().get(url).call()?.body_mut().read_to_string()?;
    serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
}

/// Sends a text.
pub fn post(url: &str, text: &str) -> anyhow::Result<()> {
    agent().post(url).send(text)?;
    Ok(())
}
