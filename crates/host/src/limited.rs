//! A listener that lets each guest have only so many connections, so that one that floods its host's servers takes nothing
//! from the others.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{KeepAlive, TcpKeepCount, TcpKeepIdle, TcpKeepInterval};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

use crate::agent::lock;

/// Connections that a guest may have open at a time to one server.
const EACH: usize = 48;
/// Seconds of silence after which a guest is asked whether it is still there.
const IDLE_SECONDS: u32 = 15;
/// Between two tries when the system is out of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

type Counts = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// A listener with a limit for each address.
pub(crate) struct Limited {
    listener: TcpListener,
    open: Counts,
}

/// One connection, counted as long as it is there.
pub(crate) struct Counted {
    stream: TcpStream,
    address: IpAddr,
    open: Counts,
}

impl Limited {
    /// Over a listener.
    pub(crate) fn new(listener: TcpListener) -> Limited {
        Limited { listener, open: Counts::default() }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut open = lock(&self.open);
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

impl Listener for Limited {
    type Io = Counted;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Counted, SocketAddr) {
        loop {
            let (stream, from) = match self.listener.accept().await {
                Ok(both) => both,
                Err(_) => {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let address = from.ip();
            // A guest that was killed says no farewell, and the next one at its address shall not find its connections counted.
            let watched = setsockopt(&stream, KeepAlive, &true)
                .and_then(|()| setsockopt(&stream, TcpKeepIdle, &IDLE_SECONDS))
                .and_then(|()| setsockopt(&stream, TcpKeepInterval, &(IDLE_SECONDS / 3)))
                .and_then(|()| setsockopt(&stream, TcpKeepCount, &3));
            if let Err(error) = watched {
                tracing::debug!(%error, "a guest's connection is not watched");
            }
            let admitted = {
                let mut open = lock(&self.open);
                let count = open.entry(address).or_default();
                let admitted = *count < EACH;
                *count += usize::from(admitted);
                admitted
            };
            if admitted {
                return (Counted { stream, address, open: Arc::clone(&self.open) }, from);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
