//! Serving a disk over NBD.

mod handshake;
mod input;
mod protocol;
mod transmission;

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use crate::disk::ServedDisk;

/// Serves `disk` to one client until it disconnects.
///
/// # Errors
/// Those of the connection, and [`io::ErrorKind::InvalidData`] when the client breaks the protocol.
pub(crate) fn serve(stream: &Arc<UnixStream>, disk: &Arc<ServedDisk>) -> io::Result<()> {
    match handshake::handshake(&mut &**stream, disk.disk_bytes())? {
        Some(agreed) => transmission::transmit(stream, disk, agreed),
        None => Ok(()),
    }
}
