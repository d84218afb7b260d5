//! Probes: asking an instance whether it is well.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use mayfly_model::ProbeGoal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Asks once. A TCP probe wants a connection, an HTTP probe status 200, within `limit`.
pub async fn ask(address: Ipv4Addr, probe: &ProbeGoal, limit: Duration) -> bool {
    let question = async {
        let mut stream = TcpStream::connect(SocketAddr::from((address, probe.port))).await.ok()?;
        let Some(path) = &probe.path else { return Some(()) };
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: Load Balancer Agent\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.ok()?;
        (answer.starts_with(b"HTTP/1.") && answer[8..] == *b" 200").then_some(())
    };
    matches!(tokio::time::timeout(limit, question).await, Ok(Some(())))
}

/// Falls within [`MEMORY`] from which on a backend is held back.
const FALLS: usize = 3;
/// How long a fall is remembered, in milliseconds.
const MEMORY: u64 = 60_000;
/// How long a backend has to be well again after the third fall, in milliseconds; twice as long after each further one.
const HOLD: u64 = 2_000;
/// The longest that it is held back.
const HOLD_MAX: u64 = 60_000;

/// Whether a backend that answers may be in rotation: one that keeps falling is held back, longer each time, so that
/// clients do not keep running into it.
#[derive(Clone, Debug, Default)]
pub struct Steadiness {
    well_since: Option<u64>,
    falls: VecDeque<u64>,
}

impl Steadiness {
    /// Notes how it is doing at `now` (milliseconds of the caller's clock), and says whether it may be in rotation.
    pub fn note(&mut self, now: u64, well: bool) -> bool {
        self.falls.retain(|fall| now.saturating_sub(*fall) < MEMORY);
        match (well, self.well_since) {
            (true, None) => self.well_since = Some(now),
            (false, Some(_)) => {
                self.well_since = None;
                self.falls.push_back(now);
            }
            _ => {}
        }
        let doublings = self.falls.len().checked_sub(FALLS);
        let hold = doublings.map_or(0, |doublings| (HOLD << doublings.min(16)).min(HOLD_MAX));
        self.well_since.is_some_and(|since| now.saturating_sub(since) >= hold)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answer(text: &'static str, path: Option<&str>) -> bool {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 256];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(text.as_bytes()).await;
        });
        let probe = ProbeGoal { port, path: path.map(str::to_owned), interval_millis: 5000, timeout_millis: 11_000 };
        ask(Ipv4Addr::LOCALHOST, &probe, Duration::from_millis(500)).await
    }

    #[test]
    fn who_keeps_falling_is_held_back() {
        let mut steadiness = Steadiness::default();
        assert!(steadiness.note(0, true), "the first time at once");
        for fall in 1..=2 {
            assert!(!steadiness.note(fall * 1000, false));
            assert!(steadiness.note(fall * 1000 + 100, true), "fall {fall}");
        }
        assert!(!steadiness.note(3000, false));
        assert!(!steadiness.note(3100, true) && !steadiness.note(5000, true) && steadiness.note(5100, true));
        assert!(!steadiness.note(6000, false));
        assert!(!steadiness.note(6100, true) && !steadiness.note(10_000, true) && steadiness.note(10_100, true));
        // What was long ago is forgotten.
        assert!(!steadiness.note(200_000, false) && steadiness.note(200_100, true));
    }

    #[tokio::test]
    async fn only_200_is_well() {
        assert!(answer("HTTP/1.1 200 OK\r\n\r\n", Some("/")).await);
        assert!(!answer("HTTP/1.1 503 Busy\r\n\r\n", Some("/")).await);
        assert!(!answer("nonsense", Some("/")).await);
        assert!(answer("", None).await, "a connection is enough for a tcp probe");
        let closed = ProbeGoal { port: 1, path: None, interval_millis: 5000, timeout_millis: 11_000 };
        assert!(!ask(Ipv4Addr::LOCALHOST, &closed, Duration::from_millis(500)).await);
    }
}
