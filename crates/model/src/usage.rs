//! Usage: what each service has used, by day and size. The bill is made of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::name::ServiceName;
use crate::report::Traffic;
use crate::size::VmSize;

/// Milliseconds of a day.
pub const DAY: u64 = 86_400_000;

/// What a service's VMs have used on one day. A VM counts from its placement until nothing of it is left on its host,
/// and is written down when it ends; what still runs is added when the ledger is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// The service.
    pub service: ServiceName,
    /// Days since 1970-01-01, UTC.
    pub day: u64,
    /// Milliseconds that instances of each size existed.
    pub millis: BTreeMap<VmSize, u64>,
    /// What they sent and received. It is written down once an hour, and when a VM ends.
    #[serde(default)]
    pub traffic: Traffic,
}

impl Usage {
    /// Nothing yet.
    pub fn none(service: ServiceName, day: u64) -> Usage {
        Usage { service, day, millis: BTreeMap::new(), traffic: Traffic::default() }
    }
}

/// Divides the time from `from` to `to`, in milliseconds since the epoch, into days.
pub fn days(from: u64, to: u64) -> impl Iterator<Item = (u64, u64)> {
    let mut at = from;
    std::iter::from_fn(move || {
        (at < to).then(|| {
            let day = at / DAY;
            let end = to.min((day + 1) * DAY);
            (day, end - std::mem::replace(&mut at, end))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_divided_at_midnight() {
        assert_eq!(days(DAY - 10, 2 * DAY + 5).collect::<Vec<_>>(), [(0, 10), (1, DAY), (2, 5)]);
        assert_eq!(days(7, 7).count(), 0);
    }
}
