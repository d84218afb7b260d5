//! The thread of one queue.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use super::request::{self, Patience};
use crate::disk::ServedDisk;

/// A guest that has lately come back within this time is waited for without sleeping, as in NBD's input.
const SPIN: Duration = Duration::from_micros(50);

/// The guest's memory, which the hypervisor may replace.
pub(super) type Memory = Arc<RwLock<GuestMemoryMmap>>;

/// A queue that is being served.
pub(super) struct RunningQueue {
    stop: Arc<EventFd>,
    thread: JoinHandle<Queue>,
}

impl RunningQueue {
    pub(super) fn start(
        disk: Arc<ServedDisk>,
        memory: Memory,
        queue: Queue,
        kick: File,
        call: Option<File>,
    ) -> io::Result<RunningQueue> {
        let stop = Arc::new(EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
        let server = Server { disk, memory, queue, kick, call, stop: Arc::clone(&stop), buffer: Vec::new() };
        let thread = std::thread::Builder::new().name("vhost-queue".to_owned()).spawn(move || server.run())?;
        Ok(RunningQueue { stop, thread })
    }

    /// Ends the thread after the request that is under way; returns the queue as it stands.
    pub(super) fn stop(self) -> Option<Queue> {
        let _ = self.stop.write(1);
        self.thread.join().ok()
    }
}

struct Server {
    disk: Arc<ServedDisk>,
    memory: Memory,
    queue: Queue,
    kick: File,
    call: Option<File>,
    stop: Arc<EventFd>,
    buffer: Vec<u8>,
}

impl Server {
    fn run(mut self) -> Queue {
        if let Err(error) = self.serve() {
            tracing::warn!(error, "a queue of a guest is not served any more");
        }
        self.queue
    }

    fn serve(&mut self) -> Result<(), String> {
        let text = |error: virtio_queue::Error| error.to_string();
        // Requests that the last process has done may not have been told of.
        notify(self.call.as_ref());
        let mut quick = false;
        while !is_set(&self.stop) {
            let memory = self.memory.read().unwrap_or_else(PoisonError::into_inner).clone();
            self.queue.disable_notification(&memory).map_err(text)?;
            if self.drain(&memory)? {
                let began = Instant::now();
                while quick && began.elapsed() < SPIN && !self.drain(&memory)? {
                    std::thread::yield_now();
                }
            }
            if self.queue.enable_notification(&memory).map_err(text)? {
                continue;
            }
            let began = Instant::now();
            if !self.wait().map_err(|error| error.to_string())? {
                return Ok(());
            }
            quick = began.elapsed() < SPIN;
        }
        Ok(())
    }

    /// Carries out the requests that are there; returns whether there were any.
    fn drain(&mut self, memory: &GuestMemoryMmap) -> Result<bool, String> {
        let text = |error: virtio_queue::Error| error.to_string();
        let mut any = false;
        // As many as the ring holds; then it is time to look whether to stop.
        for _ in 0..self.queue.size() {
            // The ring's indexes are the guest's, so they may be nonsense.
            let Some(chain) = self.queue.iter(memory).map_err(text)?.next() else { break };
            let head = chain.head_index();
            let (stop, call) = (&self.stop, &self.call);
            let patience = Patience { stopping: &|| is_set(stop), waiting: &|| notify(call.as_ref()) };
            let Some(written) = request::carry_out(&self.disk, memory, chain, &mut self.buffer, &patience) else {
                // The next to serve this queue finds it where it is.
                self.queue.go_to_previous_position();
                break;
            };
            self.queue.add_used(memory, head, written).map_err(text)?;
            any = true;
        }
        if any && self.queue.needs_notification(memory).map_err(text)? {
            notify(self.call.as_ref());
        }
        if self.buffer.capacity() > 1 << 20 {
            self.buffer = Vec::new();
        }
        Ok(any)
    }

    /// Waits until there may be requests. Returns false when the queue is to be stopped.
    fn wait(&self) -> io::Result<bool> {
        let mut events =
            [PollFd::new(self.kick.as_fd(), PollFlags::POLLIN), PollFd::new(self.stop.as_fd(), PollFlags::POLLIN)];
        match poll(&mut events, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => return Ok(true),
            other => other?,
        };
        if events[1].any() == Some(true) {
            return Ok(false);
        }
        (&self.kick).read_exact(&mut [0; 8]).map(|()| true)
    }
}

/// Tells the guest that requests are done.
fn notify(call: Option<&File>) {
    if let Some(mut call) = call {
        // A full counter is a notification already.
        let _ = call.write(&1u64.to_ne_bytes());
    }
}

/// Whether a queue was told to stop.
fn is_set(stop: &EventFd) -> bool {
    let mut events = [PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
    poll(&mut events, PollTimeout::ZERO).is_ok() && events[0].any() == Some(true)
}
