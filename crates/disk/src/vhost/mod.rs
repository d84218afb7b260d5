//! Serving a disk over vhost-user-blk: guest memory is shared, so that data goes from the file to the guest without a
//! socket (<https://qemu-project.gitlab.io/qemu/interop/vhost-user.html>, virtio 1.2 section 5.2).
//!
//! Each queue has a thread that carries out one request after the other, in the ring's order, and marks it as used before
//! it takes the next. So what is in flight is exactly what the used ring, which stands in the guest's memory, does not
//! show: a new process starts there, loses nothing, and repeats at most the one request that was under way, whose buffers
//! the guest has not got back yet. No table of requests in flight has to be kept beside that.

mod config;
mod queue;
mod request;
mod session;

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use vhost::vhost_user::{BackendReqHandler, Error};

use crate::disk::ServedDisk;
use session::Session;

/// Serves `disk` to one hypervisor until it disconnects.
///
/// # Errors
/// Those of the connection, and [`io::ErrorKind::InvalidData`] when the hypervisor breaks the protocol.
pub(crate) fn serve(stream: &UnixStream, disk: &Arc<ServedDisk>) -> io::Result<()> {
    let session = Arc::new(Mutex::new(Session::new(Arc::clone(disk))));
    let mut handler = BackendReqHandler::from_stream(stream.try_clone()?, Arc::clone(&session));
    let ended = loop {
        match handler.handle_request() {
            Ok(()) => {}
            Err(Error::Disconnected | Error::PartialMessage | Error::SocketBroken(_)) => break Ok(()),
            // The hypervisor asked for what it was not offered, and was told so.
            Err(Error::ReqHandlerError(error)) => tracing::debug!(%error, "a vhost-user request was refused"),
            Err(error) => break Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        }
    };
    session.lock().unwrap_or_else(PoisonError::into_inner).stop();
    ended
}
