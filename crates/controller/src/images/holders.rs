//! Which hosts use an image now, so that they can give its chunks to each other. Known only here and only for a while:
//! hosts say it again every few seconds, so nothing is lost with it.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use mayfly_model::Digest;

/// How long a host's word counts.
const FRESH: Duration = Duration::from_secs(5);

/// The hosts that use each image.
#[derive(Debug, Default)]
pub struct Holders(Mutex<HashMap<Digest, HashMap<Ipv4Addr, Instant>>>);

impl Holders {
    /// Takes a host's word that it uses an image, and lists all that do.
    pub fn announce(&self, digest: Digest, host: Ipv4Addr) -> Vec<Ipv4Addr> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, hosts| {
            hosts.retain(|_, since| since.elapsed() < FRESH);
            !hosts.is_empty()
        });
        let hosts = all.entry(digest).or_default();
        hosts.insert(host, Instant::now());
        let mut list: Vec<Ipv4Addr> = hosts.keys().copied().collect();
        list.sort_unstable();
        list
    }
}
