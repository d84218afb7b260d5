//! Probes: asking an instance whether it is well.

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
