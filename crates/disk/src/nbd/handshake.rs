//! The NBD handshake: fixed newstyle, with structured replies and block status for those who ask.

use std::io::{self, Read, Write};

use super::protocol::*;

/// What client and server have agreed upon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Agreed {
    pub structured: bool,
    pub block_status: bool,
}

/// Returns what was agreed, or nothing when the client did not want to go on.
pub(super) fn handshake(stream: &mut (impl Read + Write), disk_bytes: u64) -> io::Result<Option<Agreed>> {
    let mut hello = Vec::with_capacity(18);
    hello.extend_from_slice(&MAGIC.to_be_bytes());
    hello.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    hello.extend_from_slice(&(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
    stream.write_all(&hello)?;
    let client_flags = u32::from_be_bytes(read(stream)?);
    let mut agreed = Agreed::default();
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
                let mut reply = [disk_bytes.to_be_bytes().as_slice(), &flags_for(agreed).to_be_bytes()].concat();
                if client_flags & u32::from(FLAG_NO_ZEROES) == 0 {
                    reply.resize(reply.len() + 124, 0);
                }
                stream.write_all(&reply)?;
                return Ok(Some(agreed));
            }
            OPTION_ABORT => {
                option_reply(stream, option, REPLY_ACK, &[])?;
                return Ok(None);
            }
            OPTION_LIST => {
                option_reply(stream, option, REPLY_SERVER, &0u32.to_be_bytes())?;
                option_reply(stream, option, REPLY_ACK, &[])?;
            }
            OPTION_STRUCTURED_REPLY => {
                agreed.structured = true;
                option_reply(stream, option, REPLY_ACK, &[])?;
            }
            OPTION_SET_META_CONTEXT if !agreed.structured => option_reply(stream, option, REPLY_INVALID, &[])?,
            OPTION_LIST_META_CONTEXT | OPTION_SET_META_CONTEXT => {
                let wanted = meta_context(stream, option, &data)?;
                if option == OPTION_SET_META_CONTEXT {
                    agreed.block_status = agreed.structured && wanted;
                }
            }
            OPTION_INFO | OPTION_GO if data.len() < 6 => option_reply(stream, option, REPLY_INVALID, &[])?,
            OPTION_INFO | OPTION_GO => {
                export_info(stream, option, disk_bytes, agreed)?;
                if option == OPTION_GO {
                    return Ok(Some(agreed));
                }
            }
            _ => option_reply(stream, option, REPLY_UNSUPPORTED, &[])?,
        }
    }
}

/// Not fragmenting is for those who could get fragments.
fn flags_for(agreed: Agreed) -> u16 {
    if agreed.structured { TRANSMISSION_FLAGS | FLAG_SEND_DF } else { TRANSMISSION_FLAGS }
}

fn export_info(stream: &mut impl Write, option: u32, disk_bytes: u64, agreed: Agreed) -> io::Result<()> {
    let flags = flags_for(agreed).to_be_bytes();
    let info = [&INFO_EXPORT.to_be_bytes()[..], &disk_bytes.to_be_bytes(), &flags].concat();
    option_reply(stream, option, REPLY_INFO, &info)?;
    let sizes = [512u32, 4096, REQUEST_BYTES_MAX].map(u32::to_be_bytes).concat();
    option_reply(stream, option, REPLY_INFO, &[&INFO_BLOCK_SIZE.to_be_bytes()[..], &sizes].concat())?;
    option_reply(stream, option, REPLY_ACK, &[])
}

/// Answers a question for metadata contexts; returns whether the one there is was among them.
fn meta_context(stream: &mut impl Write, option: u32, data: &[u8]) -> io::Result<bool> {
    let Some(queries) = meta_queries(data) else {
        option_reply(stream, option, REPLY_INVALID, &[])?;
        return Ok(false);
    };
    let all = option == OPTION_LIST_META_CONTEXT && queries.is_empty();
    let wanted = all || queries.iter().any(|query| *query == ALLOCATION.as_bytes() || *query == b"base:");
    if wanted {
        let reply = [&ALLOCATION_ID.to_be_bytes()[..], ALLOCATION.as_bytes()].concat();
        option_reply(stream, option, REPLY_META_CONTEXT, &reply)?;
    }
    option_reply(stream, option, REPLY_ACK, &[])?;
    Ok(wanted)
}

/// The queries in the option's data: the export's name, their number, and each with its length.
fn meta_queries(data: &[u8]) -> Option<Vec<&[u8]>> {
    fn word(data: &mut &[u8]) -> Option<usize> {
        let (bytes, rest) = data.split_first_chunk::<4>()?;
        *data = rest;
        usize::try_from(u32::from_be_bytes(*bytes)).ok()
    }
    fn text<'a>(data: &mut &'a [u8]) -> Option<&'a [u8]> {
        let length = word(data)?;
        let (text, rest) = data.split_at_checked(length)?;
        *data = rest;
        Some(text)
    }
    let mut data = data;
    text(&mut data)?;
    let count = word(&mut data)?;
    (0..count).map(|_| text(&mut data)).collect()
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

fn read<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}
