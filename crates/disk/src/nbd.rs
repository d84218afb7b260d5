//! The NBD protocol, server side: fixed newstyle handshake and simple replies
//! (<https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>).

use std::io::{self, Read, Write};

use mayfly_vhd::{Access, Vhd, VhdError};

const MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

const FLAG_FIXED_NEWSTYLE: u16 = 1;
const FLAG_NO_ZEROES: u16 = 2;

const OPTION_EXPORT_NAME: u32 = 1;
const OPTION_ABORT: u32 = 2;
const OPTION_LIST: u32 = 3;
const OPTION_INFO: u32 = 6;
const OPTION_GO: u32 = 7;

const REPLY_ACK: u32 = 1;
const REPLY_SERVER: u32 = 2;
const REPLY_INFO: u32 = 3;
const REPLY_UNSUPPORTED: u32 = 0x8000_0001;
const REPLY_INVALID: u32 = 0x8000_0003;

const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

// Has flags, flush, FUA, write zeroes, several connections.
const TRANSMISSION_FLAGS: u16 = 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 8;
const FLAG_READ_ONLY: u16 = 1 << 1;

const COMMAND_READ: u16 = 0;
const COMMAND_WRITE: u16 = 1;
const COMMAND_DISCONNECT: u16 = 2;
const COMMAND_FLUSH: u16 = 3;
const COMMAND_WRITE_ZEROES: u16 = 6;
const COMMAND_FLAG_FUA: u16 = 1;

const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const EPERM: u32 = 1;

/// Most bytes of one request; larger ones end the connection, as the protocol allows.
const REQUEST_BYTES_MAX: u32 = 32 << 20;
/// Most bytes of an option's data.
const OPTION_BYTES_MAX: u32 = 64 << 10;

/// Serves `disk` to one client until it disconnects.
///
/// # Errors
/// Those of the connection, and [`io::ErrorKind::InvalidData`] when the client breaks the protocol.
pub(crate) fn serve(mut stream: impl Read + Write, disk: &Vhd, access: Access) -> io::Result<()> {
    if handshake(&mut stream, disk, access)? { transmit(&mut stream, disk) } else { Ok(()) }
}

/// Returns whether transmission follows.
fn handshake(stream: &mut (impl Read + Write), disk: &Vhd, access: Access) -> io::Result<bool> {
    let mut hello = Vec::with_capacity(18);
    hello.extend_from_slice(&MAGIC.to_be_bytes());
    hello.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    hello.extend_from_slice(&(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
    stream.write_all(&hello)?;
    let client_flags = u32::from_be_bytes(read(stream)?);
    let flags = match access {
        Access::ReadWrite => TRANSMISSION_FLAGS,
        Access::ReadOnly => TRANSMISSION_FLAGS | FLAG_READ_ONLY,
    };
    loop {
        if u64::from_be_bytes(read(stream)?) != OPTION_MAGIC {
            return Err(broken("wrong magic of an option"));
        }
        let (option, length) = (u32::from_be_bytes(read(stream)?), u32::from_be_bytes(read(stream)?));
        if length > OPTION_BYTES_MAX {
            return Err(broken("an option is too long"));
        }
        let mut data = vec![0; length as usize];
        stream.read_exact(&mut data)?;
        match option {
            OPTION_EXPORT_NAME => {
                let mut reply = [disk.disk_bytes().to_be_bytes().as_slice(), &flags.to_be_bytes()].concat();
                if client_flags & u32::from(FLAG_NO_ZEROES) == 0 {
                    reply.resize(reply.len() + 124, 0);
                }
                stream.write_all(&reply)?;
                return Ok(true);
            }
            OPTION_ABORT => {
                option_reply(stream, option, REPLY_ACK, &[])?;
                return Ok(false);
            }
            OPTION_LIST => {
                option_reply(stream, option, REPLY_SERVER, &0u32.to_be_bytes())?;
                option_reply(stream, option, REPLY_ACK, &[])?;
            }
            OPTION_INFO | OPTION_GO if data.len() < 6 => option_reply(stream, option, REPLY_INVALID, &[])?,
            OPTION_INFO | OPTION_GO => {
                let size = disk.disk_bytes().to_be_bytes();
                let info = [&INFO_EXPORT.to_be_bytes()[..], &size, &flags.to_be_bytes()].concat();
                option_reply(stream, option, REPLY_INFO, &info)?;
                let sizes = [512u32, 4096, REQUEST_BYTES_MAX].map(u32::to_be_bytes).concat();
                option_reply(stream, option, REPLY_INFO, &[&INFO_BLOCK_SIZE.to_be_bytes()[..], &sizes].concat())?;
                option_reply(stream, option, REPLY_ACK, &[])?;
                if option == OPTION_GO {
                    return Ok(true);
                }
            }
            _ => option_reply(stream, option, REPLY_UNSUPPORTED, &[])?,
        }
    }
}

fn option_reply(stream: &mut impl Write, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    let mut reply = Vec::with_capacity(20 + data.len());
    reply.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    reply.extend_from_slice(&option.to_be_bytes());
    reply.extend_from_slice(&kind.to_be_bytes());
    reply.extend_from_slice(&(data.len() as u32).to_be_bytes());
    reply.extend_from_slice(data);
    stream.write_all(&reply)
}

fn transmit(stream: &mut (impl Read + Write), disk: &Vhd) -> io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        let header: [u8; 28] = match read(stream) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        };
        let half = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let word = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        if word(0) != REQUEST_MAGIC {
            return Err(broken("wrong magic of a request"));
        }
        let (flags, command, length) = (half(4), half(6), word(24));
        let offset = u64::from(word(16)) << 32 | u64::from(word(20));
        let has_buffer = matches!(command, COMMAND_READ | COMMAND_WRITE);
        if has_buffer && length > REQUEST_BYTES_MAX {
            return Err(broken("a request is too long"));
        }
        // The reply's header stands in front of the data, so that both leave in one write.
        buffer.resize(16 + if has_buffer { length as usize } else { 0 }, 0);
        let result = match command {
            COMMAND_READ => disk.read_at(&mut buffer[16..], offset),
            COMMAND_WRITE => {
                stream.read_exact(&mut buffer[16..])?;
                disk.write_at(&buffer[16..], offset)
            }
            COMMAND_DISCONNECT => return Ok(()),
            COMMAND_FLUSH => disk.flush(),
            COMMAND_WRITE_ZEROES => write_zeroes(disk, offset, u64::from(length)),
            _ => {
                reply(stream, &mut buffer[..16], &header[8..16], EINVAL)?;
                continue;
            }
        };
        let writes = matches!(command, COMMAND_WRITE | COMMAND_WRITE_ZEROES);
        let result = result.and_then(|()| if writes && flags & COMMAND_FLAG_FUA != 0 { disk.flush() } else { Ok(()) });
        let code = result.err().map_or(0, |error| error_code(&error));
        let reply_bytes = if command == COMMAND_READ && code == 0 { buffer.len() } else { 16 };
        reply(stream, &mut buffer[..reply_bytes], &header[8..16], code)?;
    }
}

fn reply(stream: &mut impl Write, buffer: &mut [u8], cookie: &[u8], code: u32) -> io::Result<()> {
    buffer[..4].copy_from_slice(&REPLY_MAGIC.to_be_bytes());
    buffer[4..8].copy_from_slice(&code.to_be_bytes());
    buffer[8..16].copy_from_slice(cookie);
    stream.write_all(buffer)
}

fn write_zeroes(disk: &Vhd, mut offset: u64, mut length: u64) -> Result<(), VhdError> {
    let zeroes = vec![0; length.min(1 << 20) as usize];
    while length > 0 {
        let part = length.min(zeroes.len() as u64);
        disk.write_at(&zeroes[..part as usize], offset)?;
        (offset, length) = (offset + part, length - part);
    }
    Ok(())
}

fn error_code(error: &VhdError) -> u32 {
    tracing::warn!(error = %error, cause = ?error.os_error(), "a guest's request failed");
    match error {
        VhdError::OutOfRange { .. } => EINVAL,
        VhdError::ReadOnly { .. } => EPERM,
        _ if error.os_error() == Some(ENOSPC as i32) => ENOSPC,
        _ => EIO,
    }
}

fn read<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn broken(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
