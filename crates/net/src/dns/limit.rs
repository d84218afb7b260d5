//! How often one asker may ask: a bucket for each that fills at a steady rate.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

/// Askers that are remembered; beyond that, those that have been quiet are forgotten.
const REMEMBERED: usize = 16_384;

/// Questions that one asker may put.
#[derive(Debug)]
pub struct Limit {
    per_second: f64,
    burst: f64,
    buckets: HashMap<IpAddr, (f64, Instant)>,
}

impl Limit {
    /// So many a second in the long run, and at most `burst` at once.
    pub fn new(per_second: u32, burst: u32) -> Limit {
        Limit { per_second: f64::from(per_second), burst: f64::from(burst), buckets: HashMap::new() }
    }

    /// Whether this asker may ask now.
    pub fn admits(&mut self, asker: IpAddr, now: Instant) -> bool {
        if self.buckets.len() >= REMEMBERED && !self.buckets.contains_key(&asker) {
            let (rate, burst) = (self.per_second, self.burst);
            self.buckets.retain(|_, (left, at)| *left + now.duration_since(*at).as_secs_f64() * rate < burst);
            if self.buckets.len() >= REMEMBERED {
                return false;
            }
        }
        let (left, at) = self.buckets.entry(asker).or_insert((self.burst, now));
        *left = (*left + now.saturating_duration_since(*at).as_secs_f64() * self.per_second).min(self.burst);
        *at = now;
        let admits = *left >= 1.0;
        if admits {
            *left -= 1.0;
        }
        admits
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_asker_has_its_own_share() {
        let (one, other) = (IpAddr::from(Ipv4Addr::new(10, 80, 0, 2)), IpAddr::from(Ipv4Addr::new(10, 80, 0, 3)));
        let mut limit = Limit::new(10, 5);
        let start = Instant::now();
        let asked = |limit: &mut Limit, asker, at| (0..20).filter(|_| limit.admits(asker, at)).count();
        assert_eq!(asked(&mut limit, one, start), 5);
        assert_eq!(asked(&mut limit, other, start), 5);
        assert_eq!(asked(&mut limit, one, start + Duration::from_millis(310)), 3);
        assert_eq!(asked(&mut limit, one, start + Duration::from_secs(60)), 5);
    }
}
