//! The thread of one queue.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;

use super::request;
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
        let mut quick = false;
        loop {
            let memory = self.memory.read().unwrap_or_else(PoisonError::into_inner).clone();
            self.queue.disable_notification(&memory).map_err(|error| error.to_string())?;
            if self.drain(&memory)? {
                let began = Instant::now();
                while quick && began.elapsed() < SPIN && !self.drain(&memory)? {
                    std::thread::yield_now();
                }
            }
            if self.queue.enable_notification(&memory).map_err(|error| error.to_string())? {
                continue;
            }
            let began = Instant::now();
            if !self.wait().map_err(|error| error.to_string())? {
                return Ok(());
            }
            quick = began.elapsed() < SPIN;
        }
    }

    /// Carries out all requests that are there; returns whether there were any.
    fn drain(&mut self, memory: &GuestMemoryMmap) -> Result<bool, String> {
        let mut any = false;
        while let Some(chain) = self.queue.pop_descriptor_chain(memory) {
            let head = chain.head_index();
            let stop = &self.stop;
            let stopping = || is_set(stop);
            let written = request::carry_out(&self.disk, memory, chain, &mut self.buffer, &stopping);
            self.queue.add_used(memory, head, written).map_err(|error| error.to_string())?;
            any = true;
        }
        if any && self.queue.needs_notification(memory).map_err(|error| error.to_string())? {
            self.notify();
        }
        if self.buffer.capacity() > 1 << 20 {
            self.buffer = Vec::new();
        }
        Ok(any)
    }

    fn notify(&self) {
        if let Some(mut call) = self.call.as_ref() {
            // A full counter is a notification already.
            let _ = call.write(&1u64.to_ne_bytes());
        }
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

/// Whether a queue was told to stop.
fn is_set(stop: &EventFd) -> bool {
    let mut events = [PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
    poll(&mut events, PollTimeout::ZERO).is_ok() && events[0].any() == Some(true)
}
