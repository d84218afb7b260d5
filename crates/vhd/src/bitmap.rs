//! A block's sector bitmap: one bit a sector, the first sector in the highest bit of the first byte.

use std::ops::Range;

/// The bits of one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bitmap(Box<[u8]>);

impl Bitmap {
    /// All bits clear.
    pub(crate) fn clear(bytes: u64) -> Bitmap {
        Bitmap(vec![0; bytes as usize].into_boxed_slice())
    }

    /// As it stands in a file.
    pub(crate) fn from_bytes(bytes: Vec<u8>) -> Bitmap {
        Bitmap(bytes.into_boxed_slice())
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn bit(&self, sector: u64) -> bool {
        self.0[(sector / 8) as usize] & (0x80 >> (sector % 8)) != 0
    }

    /// The state of sector `first`, and how many sectors from there, at most `limit`, share it.
    pub(crate) fn run(&self, first: u64, limit: u64) -> (bool, u64) {
        let state = self.bit(first);
        let uniform = if state { 0xff } else { 0 };
        let end = first + limit;
        let mut at = first + 1;
        while at < end {
            if at.is_multiple_of(8) && self.0[(at / 8) as usize] == uniform {
                at += 8;
            } else if self.bit(at) == state {
                at += 1;
            } else {
                break;
            }
        }
        (state, at.min(end) - first)
    }

    /// Sets `count` bits from `first`; returns the bytes that hold them.
    pub(crate) fn set(&mut self, first: u64, count: u64) -> Range<usize> {
        for sector in first..first + count {
            self.0[(sector / 8) as usize] |= 0x80 >> (sector % 8);
        }
        (first / 8) as usize..((first + count - 1) / 8 + 1) as usize
    }

    /// How many bits are set.
    pub(crate) fn count(&self) -> u64 {
        self.0.iter().map(|byte| u64::from(byte.count_ones())).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_what_bit_by_bit_says() {
        let mut bitmap = Bitmap::clear(64);
        for (first, count) in [(3, 1), (8, 24), (37, 100), (500, 12)] {
            bitmap.set(first, count);
        }
        for first in 0..512 {
            for limit in [1, 2, 7, 8, 9, 100, 512 - first] {
                let limit = limit.min(512 - first);
                let (state, length) = bitmap.run(first, limit);
                let slow = (first..first + limit).take_while(|at| bitmap.bit(*at) == bitmap.bit(first)).count();
                assert_eq!((state, length), (bitmap.bit(first), slow as u64), "{first} {limit}");
            }
        }
        assert_eq!(bitmap.count(), 137);
    }
}
