//! NBD's transmission phase. One thread a connection carries out what comes, in order; only reads that have to wait for
//! another machine go to threads of their own, so that they hold nobody up. Replies to requests that came together
//! leave together.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use mayfly_vhd::{Holder, Segment, VhdError};
use nix::errno::Errno;
use nix::sys::sendfile::sendfile;

use super::handshake::Agreed;
use super::input::Input;
use super::protocol::*;
use crate::disk::{DiskError, ServedDisk};

/// Replies are sent when so many bytes have gathered.
const OUTPUT_BYTES: usize = 128 << 10;
/// Data of at least so many bytes goes from the file to the socket without a copy.
const ZERO_COPY_BYTES: u64 = 32 << 10;
/// Pieces of a write are multiples of this.
const PIECE_BYTES: usize = 4096;
/// A read in more pieces than this is put together before it is sent.
const PIECES_MAX: usize = 16;
/// Most descriptors in an answer to block status.
const EXTENTS_MAX: usize = 1024;
/// Most reads of a connection that wait for other machines at a time.
const WAITING_MAX: usize = 32;

/// Carries out requests until the client goes.
pub(super) fn transmit(stream: &Arc<UnixStream>, disk: &Arc<ServedDisk>, agreed: Agreed) -> io::Result<()> {
    let shared = Shared {
        disk: Arc::clone(disk),
        agreed,
        stream: Arc::clone(stream),
        sending: Mutex::new(()),
        waiting: AtomicUsize::new(0),
    };
    let mut connection =
        Connection { shared: Arc::new(shared), input: Input::new(Arc::clone(stream)), output: Vec::new() };
    while connection.turn()? {}
    connection.send()
}

struct Connection {
    shared: Arc<Shared>,
    input: Input,
    output: Vec<u8>,
}

/// What the threads of a connection share.
struct Shared {
    disk: Arc<ServedDisk>,
    agreed: Agreed,
    stream: Arc<UnixStream>,
    /// Held while a reply is sent.
    sending: Mutex<()>,
    waiting: AtomicUsize,
}

impl Connection {
    /// One request. Returns whether more may come.
    fn turn(&mut self) -> io::Result<bool> {
        if self.input.available().len() < REQUEST_BYTES {
            // Nothing more to do at once, so the replies must not wait.
            self.send()?;
            if !self.input.wait(REQUEST_BYTES)? {
                return Ok(false);
            }
        }
        let Some(header) = self.input.available().first_chunk::<REQUEST_BYTES>() else { return Ok(false) };
        let request = Request::decode(header)?;
        self.input.take(REQUEST_BYTES);
        match request.command {
            Command::Disconnect => return Ok(false),
            Command::Read => self.read(request)?,
            Command::Write => {
                let result = self.write(request)?;
                self.finish(request, result);
            }
            Command::BlockStatus if self.shared.agreed.block_status => self.block_status(request),
            _ => {
                let result = self.shared.carry_out(request);
                self.finish(request, result);
            }
        }
        if self.output.len() >= OUTPUT_BYTES {
            self.send()?;
        }
        Ok(true)
    }

    fn send(&mut self) -> io::Result<()> {
        if self.output.is_empty() {
            return Ok(());
        }
        let _turn = self.shared.turn();
        (&*self.shared.stream).write_all(&self.output)?;
        self.output.clear();
        if self.output.capacity() > 2 * OUTPUT_BYTES {
            self.output = Vec::new();
        }
        Ok(())
    }

    /// Appends the reply to a request that brings no data.
    fn finish(&mut self, request: Request, result: Result<(), u32>) {
        self.shared.finish(&mut self.output, request, result);
    }

    /// Writes what comes, in pieces when it is long.
    fn write(&mut self, request: Request) -> io::Result<Result<(), u32>> {
        let (mut left, mut at) = (request.length as usize, request.offset);
        let disk = &self.shared.disk;
        let within = request.offset.checked_add(u64::from(request.length)).is_some_and(|end| end <= disk.disk_bytes());
        // What is refused has to be read all the same. A write past the end must not be done in part.
        let mut result = if within { Ok(()) } else { Err(EINVAL) };
        while left > 0 {
            let least = left.min(PIECE_BYTES);
            if self.input.available().len() < least && !self.input.wait(least)? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            // What is there is written while the client still sends the rest.
            let there = self.input.available().len();
            let piece = if there >= left { left } else { there / PIECE_BYTES * PIECE_BYTES };
            if result.is_ok() {
                result = disk.write(&self.input.available()[..piece], at).map_err(|error| error_code(&error));
            }
            self.input.take(piece);
            (left, at) = (left - piece, at + piece as u64);
        }
        Ok(result.and_then(|()| self.shared.flush_if(request.flags & FLAG_FUA != 0)))
    }

    fn read(&mut self, request: Request) -> io::Result<()> {
        let disk = Arc::clone(&self.shared.disk);
        let mut segments = Vec::with_capacity(4);
        if let Err(error) = disk.vhd.resolve(request.offset, u64::from(request.length), &mut segments) {
            self.finish(request, Err(error_code(&error.into())));
            return Ok(());
        }
        let resident = |segment: &Segment| match segment {
            Segment::Zero(_) => true,
            Segment::Data { storage, at, bytes } => storage.is_resident(*at, *bytes),
        };
        // All of them are asked, so that the order of a boot's reads is known.
        if request.length == 0 {
            self.finish(request, Ok(()));
            return Ok(());
        }
        if segments.iter().filter(|segment| !resident(segment)).count() == 0 {
            return self.shared.reply_with(&mut self.output, request, &segments);
        }
        let shared = Arc::clone(&self.shared);
        if shared.waiting.fetch_add(1, Ordering::Relaxed) >= WAITING_MAX {
            shared.waiting.fetch_sub(1, Ordering::Relaxed);
            self.send()?;
            return shared.read_later(request);
        }
        let waiting = Arc::clone(&shared);
        let spawned = std::thread::Builder::new().name("disk-fetch".to_owned()).spawn(move || {
            if let Err(error) = waiting.read_later(request) {
                tracing::info!(%error, "a reply cannot be sent");
                let _ = waiting.stream.shutdown(std::net::Shutdown::Both);
            }
            waiting.waiting.fetch_sub(1, Ordering::Relaxed);
        });
        if spawned.is_ok() {
            return Ok(());
        }
        // No more threads: slower, but it works.
        shared.waiting.fetch_sub(1, Ordering::Relaxed);
        self.send()?;
        shared.read_later(request)
    }

    fn block_status(&mut self, request: Request) {
        let (disk, end) = (&self.shared.disk, request.offset.checked_add(u64::from(request.length)));
        let Some(end) = end.filter(|end| *end <= disk.disk_bytes() && request.length > 0) else {
            return self.finish(request, Err(EINVAL));
        };
        let most = if request.flags & FLAG_ONE_EXTENT != 0 { 1 } else { EXTENTS_MAX };
        let mut extents: Vec<(u32, u32)> = Vec::new();
        let mut at = request.offset;
        while at < end {
            let (holder, bytes) = disk.vhd.extent(at, end - at);
            let flags = if holder == Holder::Nobody { STATE_HOLE_ZERO } else { 0 };
            if extents.last().is_none_or(|(_, before)| *before != flags) {
                if extents.len() == most {
                    break;
                }
                extents.push((0, flags));
            }
            if let Some((length, _)) = extents.last_mut() {
                *length += bytes as u32;
            }
            at += bytes;
        }
        chunk(&mut self.output, request.cookie, true, Chunk::BlockStatus(&extents));
    }
}

impl Shared {
    fn turn(&self) -> std::sync::MutexGuard<'_, ()> {
        self.sending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flush_if(&self, wanted: bool) -> Result<(), u32> {
        if wanted { self.disk.vhd.flush().map_err(|error| error_code(&error.into())) } else { Ok(()) }
    }

    /// What needs neither data nor a long answer.
    fn carry_out(&self, request: Request) -> Result<(), u32> {
        let (bytes, offset, vhd) = (u64::from(request.length), request.offset, &self.disk.vhd);
        let done = match request.command {
            Command::Flush => vhd.flush(),
            Command::Trim => vhd.trim(bytes, offset),
            Command::WriteZeroes => vhd.write_zeros(bytes, offset),
            Command::Cache => self.disk.prepare(bytes, offset),
            // Also resizing: a disk is as long as its base.
            _ => return Err(ENOTSUP),
        };
        done.map_err(|error| error_code(&error.into()))?;
        let writes = matches!(request.command, Command::Trim | Command::WriteZeroes);
        self.flush_if(writes && request.flags & FLAG_FUA != 0)
    }

    fn finish(&self, output: &mut Vec<u8>, request: Request, result: Result<(), u32>) {
        let structured = self.agreed.structured && matches!(request.command, Command::Read | Command::BlockStatus);
        match result {
            Err(error) if structured => chunk(output, request.cookie, true, Chunk::Error(error)),
            Ok(()) if structured => chunk(output, request.cookie, true, Chunk::None),
            result => simple(output, request.cookie, result.err().unwrap_or(0)),
        }
    }

    /// A read that has to wait.
    fn read_later(&self, request: Request) -> io::Result<()> {
        let mut output = Vec::new();
        let (bytes, disk) = (u64::from(request.length), &self.disk);
        let mut segments = Vec::new();
        let prepared = disk.prepare(bytes, request.offset);
        match prepared.and_then(|()| disk.vhd.resolve(request.offset, bytes, &mut segments)) {
            Ok(()) => self.reply_with(&mut output, request, &segments)?,
            Err(error) => self.finish(&mut output, request, Err(error_code(&error.into()))),
        }
        let _turn = self.turn();
        (&*self.stream).write_all(&output)
    }

    /// Appends the reply to a read, or sends it where that saves copies.
    fn reply_with(&self, output: &mut Vec<u8>, request: Request, segments: &[Segment]) -> io::Result<()> {
        let fragments = segments.len() <= PIECES_MAX
            && self.agreed.structured
            && (segments.len() == 1 || request.flags & FLAG_DONT_FRAGMENT == 0);
        if fragments && request.length > 0 {
            return self.reply_in_chunks(output, request, segments);
        }
        let start = output.len();
        match self.agreed.structured {
            true => {
                let data = Chunk::Data { offset: request.offset, bytes: request.length };
                chunk(output, request.cookie, true, data);
            }
            false => simple(output, request.cookie, 0),
        }
        for segment in segments {
            if let Err(error) = append(output, segment) {
                output.truncate(start);
                self.finish(output, request, Err(io_code(&error)));
                break;
            }
        }
        Ok(())
    }

    fn reply_in_chunks(&self, output: &mut Vec<u8>, request: Request, segments: &[Segment]) -> io::Result<()> {
        let mut offset = request.offset;
        for (index, segment) in segments.iter().enumerate() {
            let (last, bytes) = (index + 1 == segments.len(), segment.bytes() as u32);
            let start = output.len();
            let data = Chunk::Data { offset, bytes };
            match segment {
                // A client that must not get fragments gets its one piece as data.
                Segment::Zero(_) if request.flags & FLAG_DONT_FRAGMENT == 0 => {
                    chunk(output, request.cookie, last, Chunk::Hole { offset, bytes });
                }
                Segment::Data { storage, at, bytes } if *bytes >= ZERO_COPY_BYTES && storage.file().is_some() => {
                    if let Err(error) = storage.prepare(*at, *bytes) {
                        self.finish(output, request, Err(io_code(&error)));
                        return Ok(());
                    }
                    chunk(output, request.cookie, last, data);
                    self.send_file(output, storage.file(), *at, *bytes)?;
                }
                other => {
                    chunk(output, request.cookie, last, data);
                    if let Err(error) = append(output, other) {
                        output.truncate(start);
                        self.finish(output, request, Err(io_code(&error)));
                        return Ok(());
                    }
                }
            }
            offset += segment.bytes();
        }
        Ok(())
    }

    /// Sends what has gathered, then so much of the file. An error ends the connection, for the client waits for data.
    fn send_file(&self, output: &mut Vec<u8>, file: Option<&std::fs::File>, at: u64, bytes: u64) -> io::Result<()> {
        let Some(file) = file else { return Err(io::ErrorKind::Unsupported.into()) };
        let _turn = self.turn();
        (&*self.stream).write_all(output)?;
        output.clear();
        let (mut offset, mut left) = (at.cast_signed(), bytes as usize);
        while left > 0 {
            match sendfile(self.stream.as_fd(), file.as_fd(), Some(&mut offset), left) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => left -= count,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Appends a segment's bytes.
fn append(output: &mut Vec<u8>, segment: &Segment) -> io::Result<()> {
    let start = output.len();
    output.resize(start + segment.bytes() as usize, 0);
    match segment {
        Segment::Zero(_) => Ok(()),
        Segment::Data { storage, at, .. } => storage.read_exact_at(&mut output[start..], *at),
    }
}

fn error_code(error: &DiskError) -> u32 {
    tracing::warn!(%error, cause = ?std::error::Error::source(error), "a guest's request failed");
    match error {
        DiskError::Vhd(VhdError::OutOfRange { .. }) => EINVAL,
        DiskError::Vhd(VhdError::ReadOnly { .. }) => EPERM,
        DiskError::Vhd(error) if error.os_error() == Some(ENOSPC as i32) => ENOSPC,
        // Not ENOSPC: a guest that waits for room which its own quota keeps from it would wait for ever.
        DiskError::Vhd(_) | DiskError::Quota(_) => EIO,
    }
}

fn io_code(error: &io::Error) -> u32 {
    tracing::warn!(%error, "a guest's read failed");
    if error.raw_os_error() == Some(ENOSPC as i32) { ENOSPC } else { EIO }
}
