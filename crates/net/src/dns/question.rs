//! Reading a question, as far as an answer from the zone needs it.

/// Bytes of a message's header.
pub(super) const HEADER: usize = 12;
/// Most bytes of an answer by UDP to somebody who has not said that more are welcome (RFC 1035).
const PLAIN_LIMIT: usize = 512;
/// Most bytes of an answer by UDP to anybody: what passes networks without being cut into pieces.
const UDP_LIMIT: usize = 1232;

/// The types that the zone knows.
pub(super) mod kind {
    pub(crate) const A: u16 = 1;
    pub(crate) const NS: u16 = 2;
    pub(crate) const SOA: u16 = 6;
    pub(crate) const PTR: u16 = 12;
    pub(crate) const AAAA: u16 = 28;
    pub(crate) const SRV: u16 = 33;
    pub(crate) const OPT: u16 = 41;
    pub(crate) const ANY: u16 = 255;
}

/// The response codes that are used.
pub(super) mod code {
    pub(crate) const FORMAT_ERROR: u8 = 1;
    pub(crate) const SERVER_FAILURE: u8 = 2;
    pub(crate) const NO_SUCH_NAME: u8 = 3;
    pub(crate) const NOT_IMPLEMENTED: u8 = 4;
    pub(crate) const REFUSED: u8 = 5;
    /// The asker's version of EDNS is not known here; its upper bits go into the OPT record.
    pub(crate) const BAD_VERSION: u16 = 16;
}

/// What can be made of a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reading<'a> {
    /// Nothing that could be answered, such as an answer.
    Nothing,
    /// Something that gets an error: its code.
    Wrong(u8),
    /// A question.
    Question(Question<'a>),
}

/// A question.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Question<'a> {
    /// Name, type and class, as they were written.
    pub bytes: &'a [u8],
    /// The name as labels, in lower case, with the root's zero at the end.
    pub name: Vec<u8>,
    /// What is asked for.
    pub kind: u16,
    /// Whether it is about the Internet, the only class there is.
    pub internet: bool,
    /// What the asker said of itself, if it speaks EDNS.
    pub edns: Option<Edns>,
}

/// What an asker says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Edns {
    /// Most bytes that it takes by UDP.
    pub size: u16,
    /// Its version; only 0 is known.
    pub version: u8,
}

impl Question<'_> {
    /// Most bytes of an answer by UDP.
    pub(super) fn udp_limit(&self) -> usize {
        self.edns.map_or(PLAIN_LIMIT, |edns| usize::from(edns.size).clamp(PLAIN_LIMIT, UDP_LIMIT))
    }
}

/// Reads a message.
pub(super) fn read(message: &[u8]) -> Reading<'_> {
    let Some(header) = message.first_chunk::<HEADER>() else { return Reading::Nothing };
    let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    if header[2] & 0x80 != 0 {
        return Reading::Nothing;
    }
    if header[2] & 0x78 != 0 {
        return Reading::Wrong(code::NOT_IMPLEMENTED);
    }
    let (questions, others, additional) = (word(4), (word(6), word(8)), word(10));
    if questions != 1 || others != (0, 0) || additional > 4 {
        return Reading::Wrong(code::FORMAT_ERROR);
    }
    let Some((name, end)) = read_name(message, HEADER) else { return Reading::Wrong(code::FORMAT_ERROR) };
    let Some(rest) = message[end..].first_chunk::<4>() else { return Reading::Wrong(code::FORMAT_ERROR) };
    let kind = u16::from_be_bytes([rest[0], rest[1]]);
    let internet = rest[2..] == [0, 1];
    let Some(edns) = read_edns(&message[end + 4..], additional) else { return Reading::Wrong(code::FORMAT_ERROR) };
    Reading::Question(Question { bytes: &message[HEADER..end + 4], name, kind, internet, edns })
}

/// The name at `at`, and where it ends. A question is the first thing in its message, so it has nothing to point to.
fn read_name(message: &[u8], mut at: usize) -> Option<(Vec<u8>, usize)> {
    let mut name = Vec::with_capacity(64);
    loop {
        let length = *message.get(at)?;
        let label = message.get(at + 1..at + 1 + usize::from(length))?;
        if length > 63 || name.len() + label.len() + 1 > 255 {
            return None;
        }
        name.push(length);
        name.extend(label.iter().map(u8::to_ascii_lowercase));
        at += 1 + label.len();
        if length == 0 {
            return Some((name, at));
        }
    }
}

/// The OPT record among the additional ones, if there is one; nothing if they cannot be read.
fn read_edns(mut bytes: &[u8], count: u16) -> Option<Option<Edns>> {
    let mut edns = None;
    for _ in 0..count {
        // An OPT record's name is the root; others that may come with a question (TSIG) are not understood here.
        let (&0, rest) = bytes.split_first()? else { return None };
        let fixed = rest.first_chunk::<10>()?;
        let length = usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
        bytes = rest.get(10 + length..)?;
        if u16::from_be_bytes([fixed[0], fixed[1]]) == kind::OPT {
            let size = u16::from_be_bytes([fixed[2], fixed[3]]);
            if edns.replace(Edns { size, version: fixed[5] }).is_some() {
                return None;
            }
        }
    }
    Some(edns)
}

/// A name as text, without a dot at the end. Bytes that are not printable, and dots within labels, become question marks.
pub(super) fn text(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    let mut at = 0;
    while let Some(length) = name.get(at).map(|length| usize::from(*length)).filter(|length| *length > 0) {
        if !text.is_empty() {
            text.push('.');
        }
        let label = name.get(at + 1..at + 1 + length).unwrap_or_default();
        text.extend(
            label.iter().map(|byte| if byte.is_ascii_graphic() && *byte != b'.' { char::from(*byte) } else { '?' }),
        );
        at += 1 + length;
    }
    text
}

/// A name's labels from text, in lower case; nothing if it is no name.
pub(super) fn labels(text: &str) -> Option<Vec<u8>> {
    let mut name = Vec::with_capacity(text.len() + 2);
    for label in text.trim_end_matches('.').split('.').filter(|_| !text.is_empty()) {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?;
        name.push(length);
        name.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
    }
    name.push(0);
    (name.len() <= 255).then_some(name)
}

/// The name that a message asks for, if it is a question.
pub(super) fn asked_name(message: &[u8]) -> Option<String> {
    match read(message) {
        Reading::Question(question) => Some(text(&question.name)),
        Reading::Nothing | Reading::Wrong(_) => None,
    }
}
