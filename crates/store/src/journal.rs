//! A transaction as bytes. Both engines write a transaction as one entry of a journal, which is folded into the records
//! now and then: one row for a thousand records is what makes a large transaction as quick as a small one.
//!
//! Little-endian: the number of writes, then for each a tag (0 put, 1 delete), the key's length and bytes, and for a put
//! the value's.

use std::collections::BTreeMap;

use crate::Write;

/// An entry that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("an entry of the journal is damaged at byte {0}")]
pub struct Damaged(usize);

/// Writes a transaction as bytes.
pub fn encode(writes: &[Write]) -> Vec<u8> {
    let size = |write: &Write| match write {
        Write::Put(key, value) => 9 + key.len() + value.len(),
        Write::Delete(key) => 5 + key.len(),
    };
    let mut bytes = Vec::with_capacity(4 + writes.iter().map(size).sum::<usize>());
    bytes.extend((writes.len() as u32).to_le_bytes());
    for write in writes {
        match write {
            Write::Put(key, value) => {
                bytes.push(0);
                extend(&mut bytes, key.as_bytes());
                extend(&mut bytes, value);
            }
            Write::Delete(key) => {
                bytes.push(1);
                extend(&mut bytes, key.as_bytes());
            }
        }
    }
    bytes
}

fn extend(bytes: &mut Vec<u8>, part: &[u8]) {
    bytes.extend((part.len() as u32).to_le_bytes());
    bytes.extend(part);
}

/// Reads a transaction.
///
/// # Errors
/// [`Damaged`] where it is not one.
pub fn decode(bytes: &[u8]) -> Result<Vec<Write>, Damaged> {
    let mut reader = Reader { bytes, at: 0 };
    let count = reader.number()?;
    let mut writes = Vec::new();
    for _ in 0..count {
        let tag = reader.take(1)?[0];
        let key = reader.part()?;
        let key = String::from_utf8(key.to_vec()).map_err(|_| Damaged(reader.at))?;
        writes.push(match tag {
            0 => Write::Put(key, reader.part()?.to_vec()),
            1 => Write::Delete(key),
            _ => return Err(Damaged(reader.at)),
        });
    }
    if reader.at == bytes.len() { Ok(writes) } else { Err(Damaged(reader.at)) }
}

/// Lets a transaction act on records in memory; a deleted record is remembered as such.
pub fn fold(records: &mut BTreeMap<String, Option<Vec<u8>>>, writes: Vec<Write>) {
    for write in writes {
        match write {
            Write::Put(key, value) => drop(records.insert(key, Some(value))),
            Write::Delete(key) => drop(records.insert(key, None)),
        }
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Damaged> {
        let end = self.at.checked_add(count).ok_or(Damaged(self.at))?;
        let part = self.bytes.get(self.at..end).ok_or(Damaged(self.at))?;
        self.at = end;
        Ok(part)
    }

    fn number(&mut self) -> Result<usize, Damaged> {
        let bytes = self.take(4)?;
        Ok(bytes.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }

    fn part(&mut self) -> Result<&'a [u8], Damaged> {
        let length = self.number()?;
        self.take(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_reads_back_and_no_other_bytes_do() {
        let writes =
            [Write::Put("a/b".into(), vec![1, 2, 3]), Write::Delete("c".into()), Write::Put("d".into(), vec![])];
        let bytes = encode(&writes);
        assert_eq!(decode(&bytes).unwrap(), writes);
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length]).is_err(), "{length}");
        }
        assert!(decode(&[&bytes[..], &[0]].concat()).is_err());
    }
}
