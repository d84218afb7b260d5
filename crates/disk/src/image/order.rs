//! The order in which a boot reads an image's chunks, so that later boots find them fetched when they come to them.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long after its first read a guest counts as booting.
const BOOT: Duration = Duration::from_secs(60);

/// Notes chunks as they are first read.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    on: AtomicBool,
    record: Mutex<Record>,
}

#[derive(Debug, Default)]
struct Record {
    began: Option<Instant>,
    seen: HashSet<u32>,
    order: Vec<u32>,
}

impl Recorder {
    /// Begins, unless that has been done.
    pub(crate) fn start(&self) {
        if self.record().began.is_none() {
            self.on.store(true, Ordering::Relaxed);
        }
    }

    pub(crate) fn note(&self, first: u32, last: u32) {
        if !self.on.load(Ordering::Relaxed) {
            return;
        }
        let mut record = self.record();
        record.began.get_or_insert_with(Instant::now);
        for index in first..=last {
            if record.seen.insert(index) {
                record.order.push(index);
            }
        }
    }

    /// Ends recording, for good.
    pub(crate) fn stop(&self) {
        self.on.store(false, Ordering::Relaxed);
    }

    /// The order, once the boot is over.
    pub(crate) fn finished(&self) -> Option<String> {
        let record = self.record();
        if !self.on.load(Ordering::Relaxed) || record.began.is_none_or(|began| began.elapsed() < BOOT) {
            return None;
        }
        Some(record.order.iter().map(|index| format!("{index}\n")).collect())
    }

    fn record(&self) -> std::sync::MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads an order. What is no number is left out: it is only a hint.
pub(crate) fn parse(text: &str) -> Vec<u32> {
    text.lines().filter_map(|line| line.parse().ok()).collect()
}
