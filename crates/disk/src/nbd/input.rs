//! What comes from a client: as much as there is with each call, so that many small requests cost one.

use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

/// Bytes that are received at most at once. Longer writes are carried out in pieces.
const CAPACITY: usize = 256 << 10;
/// A client that has lately come back within this time is waited for without sleeping: waking up costs more than that,
/// and the client, which sleeps meanwhile, loses nothing. A guest that computes between its requests is not waited for.
const SPIN: Duration = Duration::from_micros(50);
/// After so long without a request, buffers are given back: most guests are idle most of the time.
const IDLE: Duration = Duration::from_secs(2);

pub(super) struct Input {
    stream: Arc<UnixStream>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Whether the client has lately come back soon.
    quick: bool,
}

impl Input {
    pub(super) fn new(stream: Arc<UnixStream>) -> Input {
        Input { stream, buffer: Vec::new(), start: 0, end: 0, quick: false }
    }

    /// What has come and was not taken yet.
    pub(super) fn available(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Takes the first bytes away.
    pub(super) fn take(&mut self, bytes: usize) {
        self.start += bytes;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Waits until at least `bytes`, no more than the buffer holds, have come. Returns whether they have: a client may
    /// go between two requests.
    pub(super) fn wait(&mut self, bytes: usize) -> io::Result<bool> {
        while self.end - self.start < bytes {
            if self.buffer.is_empty() {
                // Pages of it that are never filled cost nothing.
                self.buffer = vec![0; CAPACITY];
                self.stream.set_read_timeout(Some(IDLE))?;
            }
            if self.buffer.len() - self.start < bytes {
                self.buffer.copy_within(self.start..self.end, 0);
                (self.start, self.end) = (0, self.end - self.start);
            }
            match self.receive() {
                Ok(0) if self.end == self.start => return Ok(false),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.end += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.rest()?,
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Receives what there is; waits for it first without, then with sleeping.
    fn receive(&mut self) -> io::Result<usize> {
        let began = Instant::now();
        let limit = if self.quick { SPIN } else { Duration::ZERO };
        loop {
            let buffer = &mut self.buffer[self.end..];
            match recv(self.stream.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
                Err(Errno::EAGAIN) if began.elapsed() < limit => std::thread::yield_now(),
                Err(Errno::EAGAIN) => break,
                other => return Ok(other?),
            }
        }
        let count = (&*self.stream).read(&mut self.buffer[self.end..]);
        self.quick = began.elapsed() < SPIN;
        count
    }

    /// Waits for the next byte without a buffer.
    fn rest(&mut self) -> io::Result<()> {
        if self.start != self.end {
            return Ok(());
        }
        self.buffer = Vec::new();
        self.stream.set_read_timeout(None)?;
        let mut first = [0];
        let count = (&*self.stream).read(&mut first)?;
        self.buffer = vec![0; CAPACITY];
        self.stream.set_read_timeout(Some(IDLE))?;
        if count == 0 {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        self.buffer[0] = first[0];
        (self.start, self.end) = (0, 1);
        Ok(())
    }
}
