//! The bytes of a block, as they are stored.

use super::{Block, Run};
use crate::store::id_blocks::NUMBERS;

/// The last run may go on.
const OPEN: u8 = 1;
/// There is more than one number.
const MANY: u8 = 2;
const BITMAP_BYTES: usize = 16;
const HASH_BYTES: usize = 4;

/// Why bytes are not those of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::store) enum BlockError {
    #[error("the bytes of the block end too early, or go on after its end")]
    Length,
    #[error("a run of the block goes past number 127, or ends before it begins")]
    Range,
    #[error("the bitmap of the block and its runs do not name the same numbers")]
    Bits,
}

impl Block {
    /// Appends the bytes of a block that is not empty.
    pub(in crate::store) fn encode(&self, out: &mut Vec<u8>) {
        let form = u8::from(self.open) * OPEN;
        if let ([run], [hash]) = (&*self.runs, &*self.hashes) {
            out.extend_from_slice(&[form, run.first]);
            out.extend_from_slice(&hash.to_le_bytes());
            put(out, zigzag(run.segment));
            put(out, run.first_offset);
            return;
        }
        out.push(form | MANY);
        out.extend_from_slice(&self.bits.to_le_bytes());
        for hash in &self.hashes {
            out.extend_from_slice(&hash.to_le_bytes());
        }
        for run in &self.runs {
            out.extend_from_slice(&[run.first, run.count - 1]);
            put(out, zigzag(run.segment));
            put(out, run.first_offset);
            put(out, run.last_offset - run.first_offset);
        }
    }

    /// Reads the bytes of a block in place of what it was.
    pub(in crate::store) fn decode(&mut self, bytes: &[u8]) -> Result<(), BlockError> {
        self.clear();
        let mut bytes = Bytes(bytes);
        let form = bytes.one()?;
        if form > OPEN | MANY {
            return Err(BlockError::Range);
        }
        self.open = form & OPEN != 0;
        if form & MANY == 0 {
            let first = bytes.one()?;
            if first >= NUMBERS {
                return Err(BlockError::Range);
            }
            self.bits = 1 << first;
            self.hashes.push(u32::from_le_bytes(bytes.some()?));
            let (segment, offset) = (unzigzag(bytes.integer()?), bytes.integer()?);
            self.runs.push(Run {
                first,
                count: 1,
                segment,
                first_offset: offset,
                last_offset: offset,
            });
            return bytes.end();
        }
        self.bits = u128::from_le_bytes(bytes.some::<BITMAP_BYTES>()?);
        for _ in 0..self.bits.count_ones() {
            self.hashes
                .push(u32::from_le_bytes(bytes.some::<HASH_BYTES>()?));
        }
        let mut seen = 0;
        while !bytes.0.is_empty() {
            let (first, more) = (bytes.one()?, bytes.one()?);
            if first >= NUMBERS || more >= NUMBERS - first {
                return Err(BlockError::Range);
            }
            let segment = unzigzag(bytes.integer()?);
            let first_offset = bytes.integer()?;
            let last_offset = first_offset
                .checked_add(bytes.integer()?)
                .ok_or(BlockError::Range)?;
            let run = Run {
                first,
                count: more + 1,
                segment,
                first_offset,
                last_offset,
            };
            if seen & run.bits() != 0 {
                return Err(BlockError::Bits);
            }
            seen |= run.bits();
            self.runs.push(run);
        }
        if seen != self.bits || seen.count_ones() < 2 {
            return Err(BlockError::Bits);
        }
        Ok(())
    }
}

/// Bytes that are still to be read.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn one(&mut self) -> Result<u8, BlockError> {
        self.some::<1>().map(|[byte]| byte)
    }

    fn some<const COUNT: usize>(&mut self) -> Result<[u8; COUNT], BlockError> {
        let (some, rest) = self.0.split_first_chunk().ok_or(BlockError::Length)?;
        self.0 = rest;
        Ok(*some)
    }

    fn integer(&mut self) -> Result<u64, BlockError> {
        let mut value = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.one()?;
            let bits = u64::from(byte & 0x7F);
            if bits << shift >> shift != bits {
                return Err(BlockError::Range);
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(BlockError::Range)
    }

    fn end(&self) -> Result<(), BlockError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(BlockError::Length)
        }
    }
}

fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

/// Small numbers of either sign become small numbers.
fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_come_back() {
        for value in [0, 1, -1, 63, -64, 64, i64::MAX, i64::MIN] {
            assert_eq!(unzigzag(zigzag(value)), value);
            let mut bytes = Vec::new();
            put(&mut bytes, zigzag(value));
            assert_eq!(Bytes(&bytes).integer(), Ok(zigzag(value)));
        }
        assert_eq!(Bytes(&[0x80; 10]).integer(), Err(BlockError::Range));
        let too_large = [0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x02];
        assert_eq!(Bytes(&too_large).integer(), Err(BlockError::Range));
    }
}
