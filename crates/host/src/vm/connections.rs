//! Whether anybody is being served by a guest, by the kernel's own table of connections.

use std::net::IpAddr;
use std::time::Duration;

/// Where the kernel tells of connections (with `CONFIG_NF_CONNTRACK_PROCFS`).
const TABLE: &str = "/proc/net/nf_conntrack";

/// For how many seconds the kernel remembers an open connection on which nothing is sent.
const IDLE: &str = "established";
/// The same for one on which something was sent that has not been acknowledged yet, or again and again, or which the other
/// side holds up: such a one is in use.
const BUSY: [&str; 2] = ["unacknowledged", "max_retrans"];

/// A time-out of the kernel's table, in seconds.
fn timeout(of: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_{of}")).ok()?;
    text.trim().parse().ok()
}

/// Whether the guest with these addresses, which was started so long ago, has a TCP connection that is open, or being closed.
/// Where the kernel does not tell, it is taken to have none: the pause before this was called has to do.
pub(super) fn are_open(guest: &[IpAddr], age: Duration) -> bool {
    let busy = BUSY.into_iter().filter_map(timeout).max().unwrap_or(0);
    let patience = timeout(IDLE).map(|idle| Patience { idle, busy });
    let is_open = |table: &str| guest.iter().any(|one| count(table, *one, patience, age.as_secs()) > 0);
    std::fs::read_to_string(TABLE).is_ok_and(|table| is_open(&table))
}

/// For how many seconds the kernel remembers an open connection.
#[derive(Clone, Copy)]
struct Patience {
    /// When nothing is under way on it.
    idle: u64,
    /// When something is.
    busy: u64,
}

/// Connections to the guest in the table: it is where the packets of the asking side go to, or, behind a VIP of this host,
/// where the answers come from. Of an open one, the table has for how many more seconds it is remembered: one that nobody
/// has used in the guest's `age` was that of the guest before, which was killed.
fn count(table: &str, guest: IpAddr, patience: Option<Patience>, age: u64) -> usize {
    let guest = match guest {
        IpAddr::V4(address) => address.to_string(),
        // The kernel leaves nothing out.
        IpAddr::V6(address) => address.segments().map(|part| format!("{part:04x}")).join(":"),
    };
    let (to, from) = (format!("dst={guest}"), format!("src={guest}"));
    let concerns = |line: &&str| {
        let mut fields = line.split_whitespace();
        let first = fields.find(|field| field.starts_with("src="));
        // The guest asks others too; that is nobody's request to it.
        first != Some(from.as_str()) && fields.any(|field| field == to || field == from)
    };
    let is_used = |line: &&str| {
        let remembered = line.split_whitespace().nth(4).and_then(|seconds| seconds.parse::<u64>().ok());
        let (Some(remembered), Some(patience)) = (remembered, patience) else { return true };
        let unused_for = patience.idle.saturating_sub(remembered);
        !line.contains("ESTABLISHED") || remembered <= patience.busy || unused_for <= age.saturating_add(1)
    };
    let open = ["SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK"];
    table.lines().filter(|line| open.iter().any(|state| line.contains(state))).filter(concerns).filter(is_used).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_to_a_guest_count_and_its_own_do_not() {
        // As Linux 6.1 writes them: to a guest from the overlay, behind a VIP of this host, its own, and one that is over.
        let table = "\
ipv4 2 tcp 6 431999 ESTABLISHED src=100.64.0.1 dst=10.80.0.2 sport=40000 dport=80 src=10.80.0.2 dst=100.64.0.1 sport=80 dport=40000 [ASSURED] mark=0 use=1
ipv4 2 tcp 6 431999 ESTABLISHED src=10.77.0.1 dst=10.78.0.2 sport=50000 dport=80 src=10.80.0.3 dst=10.77.0.1 sport=80 dport=50000 [ASSURED] mark=0 use=1
ipv4 2 tcp 6 431999 ESTABLISHED src=10.80.0.2 dst=168.63.129.16 sport=50000 dport=80 src=168.63.129.16 dst=10.80.0.2 sport=80 dport=50000 [ASSURED] use=1
ipv4 2 tcp 6 100 TIME_WAIT src=100.64.0.1 dst=10.80.0.2 sport=40001 dport=80 src=10.80.0.2 dst=100.64.0.1 sport=80 dport=40001 [ASSURED] use=1
ipv4 2 udp 17 30 src=10.80.0.2 dst=168.63.129.16 sport=68 dport=67 src=168.63.129.16 dst=10.80.0.2 sport=67 dport=68 use=1
";
        let patience = |idle: u64| Some(Patience { idle, busy: 300 });
        let of = |last: u8, idle: u64, age: u64| count(table, IpAddr::from([10, 80, 0, last]), patience(idle), age);
        assert_eq!([2, 3, 4].map(|last| of(last, 432_000, 60)), [1, 1, 0]);
        let untold = count(table, IpAddr::from([10, 80, 0, 2]), None, 60);
        assert_eq!(untold, 1, "the kernel does not tell how long it remembers them");
        // Nothing was sent for 101 seconds, and the guest is younger, or older.
        assert_eq!((of(2, 432_100, 60), of(2, 432_100, 100)), (0, 1));
        // A download: what was sent last is not acknowledged yet.
        let busy = table.replace("431999", "299");
        assert_eq!(count(&busy, IpAddr::from([10, 80, 0, 2]), patience(432_000), 60), 1);
        let newer = "ipv6 10 tcp 6 431999 ESTABLISHED src=fd6d:0000:0000:0000:0000:0000:6440:0001 \
            dst=fd6d:0000:0000:0000:0000:0000:0a50:0002 sport=1 dport=80";
        let six = IpAddr::from([0xfd6d, 0, 0, 0, 0, 0, 0x0a50, 2]);
        assert_eq!(count(newer, six, patience(432_000), 60), 1);
        assert_eq!(count("", IpAddr::from([10, 80, 0, 2]), patience(432_000), 60), 0);
    }
}
