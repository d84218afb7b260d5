//! The NBD protocol's numbers and fixed layouts
//! (<https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>).

use std::io;

pub(super) const MAGIC: u64 = 0x4e42_444d_4147_4943;
pub(super) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
pub(super) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

pub(super) const FLAG_FIXED_NEWSTYLE: u16 = 1;
pub(super) const FLAG_NO_ZEROES: u16 = 2;

pub(super) const OPTION_EXPORT_NAME: u32 = 1;
pub(super) const OPTION_ABORT: u32 = 2;
pub(super) const OPTION_LIST: u32 = 3;
pub(super) const OPTION_INFO: u32 = 6;
pub(super) const OPTION_GO: u32 = 7;
pub(super) const OPTION_STRUCTURED_REPLY: u32 = 8;
pub(super) const OPTION_LIST_META_CONTEXT: u32 = 9;
pub(super) const OPTION_SET_META_CONTEXT: u32 = 10;

pub(super) const REPLY_ACK: u32 = 1;
pub(super) const REPLY_SERVER: u32 = 2;
pub(super) const REPLY_INFO: u32 = 3;
pub(super) const REPLY_META_CONTEXT: u32 = 4;
pub(super) const REPLY_UNSUPPORTED: u32 = 0x8000_0001;
pub(super) const REPLY_INVALID: u32 = 0x8000_0003;

pub(super) const INFO_EXPORT: u16 = 0;
pub(super) const INFO_BLOCK_SIZE: u16 = 3;

/// Has flags, flush, FUA, trim, write zeroes, several connections, cache.
pub(super) const TRANSMISSION_FLAGS: u16 = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 10;
/// Don't fragment.
pub(super) const FLAG_SEND_DF: u16 = 1 << 7;

pub(super) const FLAG_FUA: u16 = 1;
pub(super) const FLAG_DONT_FRAGMENT: u16 = 4;
pub(super) const FLAG_ONE_EXTENT: u16 = 8;

const CHUNK_DONE: u16 = 1;
const CHUNK_NONE: u16 = 0;
const CHUNK_DATA: u16 = 1;
const CHUNK_HOLE: u16 = 2;
const CHUNK_BLOCK_STATUS: u16 = 5;
const CHUNK_ERROR: u16 = 0x8001;

/// The only metadata context, and the number under which its descriptors are sent.
pub(super) const ALLOCATION: &str = "base:allocation";
pub(super) const ALLOCATION_ID: u32 = 1;
/// Flags of a descriptor of a range that holds nothing and reads as zeros.
pub(super) const STATE_HOLE_ZERO: u32 = 3;

pub(super) const EPERM: u32 = 1;
pub(super) const EIO: u32 = 5;
pub(super) const EINVAL: u32 = 22;
pub(super) const ENOSPC: u32 = 28;
pub(super) const ENOTSUP: u32 = 95;

/// Most bytes of one read or write; a longer one ends the connection, as the protocol allows.
pub(super) const REQUEST_BYTES_MAX: u32 = 32 << 20;
/// Most bytes of an option's data.
pub(super) const OPTION_BYTES_MAX: u32 = 64 << 10;
/// Bytes of a request without its data.
pub(super) const REQUEST_BYTES: usize = 28;

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Read,
    Write,
    Disconnect,
    Flush,
    Trim,
    Cache,
    WriteZeroes,
    BlockStatus,
    /// Resizing, which a disk with a base cannot take, and what the protocol may add.
    Unknown,
}

/// A request's header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub command: Command,
    pub flags: u16,
    pub cookie: [u8; 8],
    pub offset: u64,
    pub length: u32,
}

impl Request {
    pub(super) fn decode(bytes: &[u8; REQUEST_BYTES]) -> io::Result<Request> {
        let half = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if word(0) != REQUEST_MAGIC {
            return Err(broken("wrong magic of a request"));
        }
        let command = match half(6) {
            0 => Command::Read,
            1 => Command::Write,
            2 => Command::Disconnect,
            3 => Command::Flush,
            4 => Command::Trim,
            5 => Command::Cache,
            6 => Command::WriteZeroes,
            7 => Command::BlockStatus,
            _ => Command::Unknown,
        };
        let mut cookie = [0; 8];
        cookie.copy_from_slice(&bytes[8..16]);
        let offset = u64::from(word(16)) << 32 | u64::from(word(20));
        let request = Request { command, flags: half(4), cookie, offset, length: word(24) };
        if matches!(command, Command::Read | Command::Write) && request.length > REQUEST_BYTES_MAX {
            return Err(broken("a request is too long"));
        }
        Ok(request)
    }
}

/// Appends a simple reply's header.
pub(super) fn simple(output: &mut Vec<u8>, cookie: [u8; 8], error: u32) {
    output.extend_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    output.extend_from_slice(&error.to_be_bytes());
    output.extend_from_slice(&cookie);
}

/// A chunk of a structured reply; `Data` is followed by its bytes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Chunk<'a> {
    None,
    Data { offset: u64, bytes: u32 },
    Hole { offset: u64, bytes: u32 },
    BlockStatus(&'a [(u32, u32)]),
    Error(u32),
}

/// Appends a chunk; `last` ends the reply.
pub(super) fn chunk(output: &mut Vec<u8>, cookie: [u8; 8], last: bool, chunk: Chunk) {
    let (kind, length) = match chunk {
        Chunk::None => (CHUNK_NONE, 0),
        Chunk::Data { bytes, .. } => (CHUNK_DATA, 8 + bytes),
        Chunk::Hole { .. } => (CHUNK_HOLE, 12),
        Chunk::BlockStatus(extents) => (CHUNK_BLOCK_STATUS, 4 + 8 * extents.len() as u32),
        Chunk::Error(_) => (CHUNK_ERROR, 6),
    };
    output.extend_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
    output.extend_from_slice(&(if last { CHUNK_DONE } else { 0 }).to_be_bytes());
    output.extend_from_slice(&kind.to_be_bytes());
    output.extend_from_slice(&cookie);
    output.extend_from_slice(&length.to_be_bytes());
    match chunk {
        Chunk::None => {}
        Chunk::Data { offset, .. } => output.extend_from_slice(&offset.to_be_bytes()),
        Chunk::Hole { offset, bytes } => {
            output.extend_from_slice(&offset.to_be_bytes());
            output.extend_from_slice(&bytes.to_be_bytes());
        }
        Chunk::BlockStatus(extents) => {
            output.extend_from_slice(&ALLOCATION_ID.to_be_bytes());
            for (bytes, flags) in extents {
                output.extend_from_slice(&bytes.to_be_bytes());
                output.extend_from_slice(&flags.to_be_bytes());
            }
        }
        Chunk::Error(error) => {
            output.extend_from_slice(&error.to_be_bytes());
            output.extend_from_slice(&0u16.to_be_bytes());
        }
    }
}

pub(super) fn broken(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
