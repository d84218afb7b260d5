//! Questions to the kernel, by whichever netlink.

use std::fmt::Debug;
use std::io;
use std::time::Duration;

use futures_util::StreamExt;
use netlink_packet_core::{NetlinkDeserializable, NetlinkMessage, NetlinkPayload, NetlinkSerializable};
use netlink_proto::ConnectionHandle;
use netlink_proto::sys::SocketAddr;

/// How long the kernel may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Opens a connection for messages of one kind, in the calling thread's network namespace. Needs a Tokio runtime.
pub(crate) fn connect<T>(protocol: isize) -> io::Result<ConnectionHandle<T>>
where
    T: NetlinkSerializable + NetlinkDeserializable + Debug + Send + Unpin + 'static,
{
    let (connection, kernel, _) = netlink_proto::new_connection(protocol)?;
    tokio::spawn(connection);
    Ok(kernel)
}

/// Asks, and collects the answers.
pub(crate) async fn ask<T>(kernel: &ConnectionHandle<T>, message: T, flags: u16) -> io::Result<Vec<T>>
where
    T: NetlinkSerializable + NetlinkDeserializable + Debug + Into<NetlinkPayload<T>>,
{
    let mut message = NetlinkMessage::from(message);
    message.header.flags = flags;
    message.finalize();
    let answers = kernel.request(message, SocketAddr::new(0, 0)).map_err(io::Error::other)?;
    let collected = async {
        let mut answers = std::pin::pin!(answers);
        let mut parts = Vec::new();
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(part) => parts.push(part),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                _ => {}
            }
        }
        Ok(parts)
    };
    // An answer that the library cannot read is left out, be it the last.
    tokio::time::timeout(PATIENCE, collected).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}
