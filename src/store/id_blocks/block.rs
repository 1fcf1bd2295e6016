//! One block: its bits, hashes and runs, and their bytes. The layout is described in the module above.

use super::NUMBERS;

/// The last run may go on.
const OPEN: u8 = 1;
/// There is more than one number.
const MANY: u8 = 2;
const BITMAP_BYTES: usize = 16;
const HASH_BYTES: usize = 4;

/// Whether an event of an id counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum NumberStatus {
    /// No event of that id was counted.
    New,
    /// One of the same payload was.
    Duplicate,
    /// One of another payload was.
    Conflict,
}

/// Counted numbers that rise by 1 with no other line of the block between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct Run {
    /// The lowest number, modulo 128.
    pub(in crate::store) first: u8,
    /// How many, 1 to 128.
    pub(in crate::store) count: u8,
    /// `segment.key` of the segment in which they were counted.
    pub(in crate::store) segment: i64,
    /// Where the line of the first number starts, in bytes from the start of the file.
    pub(in crate::store) first_offset: u64,
    /// Where the line of the last number starts.
    pub(in crate::store) last_offset: u64,
}

impl Run {
    fn contains(&self, number: u8) -> bool {
        (self.first..self.first + self.count).contains(&number)
    }

    fn bits(&self) -> u128 {
        (u128::MAX >> (NUMBERS - self.count)) << self.first
    }

    /// Whether the line at this place, if it has the id of a number of the run, is the one that
    /// counted.
    pub(in crate::store) fn is_at(&self, segment: i64, offset: u64) -> bool {
        self.segment == segment && (self.first_offset..=self.last_offset).contains(&offset)
    }
}

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

/// 128 neighbouring numbers of one prefix and width.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::store) struct Block {
    /// Bit n: number n was counted.
    bits: u128,
    /// Of each set bit, in the order of the numbers.
    hashes: Vec<u32>,
    /// In the order in which they were begun.
    runs: Vec<Run>,
    /// The last run may go on.
    open: bool,
}

impl Block {
    /// Makes it empty, keeping its memory.
    pub(in crate::store) fn clear(&mut self) {
        self.bits = 0;
        self.hashes.clear();
        self.runs.clear();
        self.open = false;
    }

    pub(in crate::store) fn is_empty(&self) -> bool {
        self.bits == 0
    }

    pub(in crate::store) fn runs(&self) -> &[Run] {
        &self.runs
    }

    fn has(&self, number: u8) -> bool {
        self.bits >> number & 1 == 1
    }

    /// How many of the counted numbers are lower.
    fn rank(&self, number: u8) -> usize {
        (self.bits & !(u128::MAX << number)).count_ones() as usize
    }

    /// What an event of that number and payload hash is.
    #[inline]
    pub(in crate::store) fn status(&self, number: u8, hash: u32) -> NumberStatus {
        if !self.has(number) {
            NumberStatus::New
        } else if self.hashes.get(self.rank(number)) == Some(&hash) {
            NumberStatus::Duplicate
        } else {
            NumberStatus::Conflict
        }
    }

    /// The run in which a counted number was counted.
    pub(in crate::store) fn run_of(&self, number: u8) -> Option<&Run> {
        self.runs.iter().find(|run| run.contains(number))
    }

    /// Counts a number whose bit is clear. Lines come in the order of their offsets.
    #[inline]
    pub(in crate::store) fn count(&mut self, number: u8, hash: u32, segment: i64, offset: u64) {
        self.hashes.insert(self.rank(number), hash);
        self.bits |= 1 << number;
        if let Some(last) = self.runs.last_mut().filter(|last| {
            self.open
                && last.segment == segment
                && last.first + last.count == number
                && last.last_offset < offset
        }) {
            last.count += 1;
            last.last_offset = offset;
            return;
        }
        self.runs.push(Run {
            first: number,
            count: 1,
            segment,
            first_offset: offset,
            last_offset: offset,
        });
        self.open = true;
    }

    /// Notes a line of the block that is not counted: it closes a run of its segment. Whether that
    /// changed anything.
    #[inline]
    pub(in crate::store) fn pass(&mut self, segment: i64) -> bool {
        let closes = self.open && self.runs.last().is_some_and(|run| run.segment == segment);
        self.open &= !closes;
        closes
    }

    /// Keeps the numbers of these runs only, and closes the last one.
    pub(in crate::store) fn retain(&mut self, mut keep: impl FnMut(&Run) -> bool) {
        let before = std::mem::take(self);
        for run in before.runs.into_iter().filter(|run| keep(run)) {
            self.bits |= run.bits();
            self.runs.push(run);
        }
        let mut hashes = before.hashes.into_iter();
        for number in 0..NUMBERS {
            if before.bits >> number & 1 == 1
                && let Some(hash) = hashes.next()
                && self.has(number)
            {
                self.hashes.push(hash);
            }
        }
    }

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
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn bytes_of(block: &Block) -> Vec<u8> {
        let mut bytes = Vec::new();
        block.encode(&mut bytes);
        bytes
    }

    fn decoded(bytes: &[u8]) -> Result<Block, BlockError> {
        let mut block = Block::default();
        block.decode(bytes).map(|()| block)
    }

    /// What happens to a line of the block.
    #[derive(Clone, Copy, Debug)]
    struct Line {
        number: u8,
        payload: u32,
        /// The event is refused although its id is new, as when its total would overflow.
        refused: bool,
        segment: usize,
        step: u64,
    }

    /// Lines as senders make them: mostly the next number, sometimes an earlier or a later one.
    fn lines() -> impl Strategy<Value = Vec<Line>> {
        let jump = prop_oneof![6 => Just(None), 1 => (0u8..128).prop_map(Some)];
        let line = (jump, 0u32..12, 0u8..20, 0usize..12, 1u64..400);
        prop::collection::vec(line, 0..200).prop_map(|lines| {
            let mut next = 0;
            let line =
                |(jump, payload, refused, segment, step): (Option<u8>, u32, u8, usize, u64)| {
                    let number = jump.unwrap_or(next);
                    next = (number + 1) % 128;
                    Line {
                        number,
                        payload: u32::from(payload == 0),
                        refused: refused == 0,
                        segment: segment.saturating_sub(9),
                        step,
                    }
                };
            lines.into_iter().map(line).collect()
        })
    }

    const SEGMENTS: [i64; 3] = [7, -1, i64::MAX];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        /// R5, R6, R7, R8, R9 and the bytes: against a map of ids, line by line, encoded and decoded in
        /// between as ranges do.
        #[test]
        fn a_block_is_a_map_of_its_ids(lines in lines(), every in 1usize..40) {
            let mut block = Block::default();
            let mut map = HashMap::<u8, (u32, i64, u64)>::new();
            let mut ends = [0u64; SEGMENTS.len()];
            let mut all = Vec::new();
            for (at, line) in lines.iter().enumerate() {
                if at % every == 0 && !block.is_empty() {
                    let same = decoded(&bytes_of(&block));
                    prop_assert_eq!(same.as_ref(), Ok(&block));
                    block = same.expect("just compared");
                }
                let (segment, end) = (SEGMENTS[line.segment], &mut ends[line.segment]);
                let offset = *end;
                *end += line.step;
                all.push((line.number, segment, offset));
                let expected = match map.get(&line.number) {
                    None => NumberStatus::New,
                    Some(&(payload, ..)) if payload == line.payload => NumberStatus::Duplicate,
                    Some(_) => NumberStatus::Conflict,
                };
                prop_assert_eq!(block.status(line.number, line.payload), expected);
                if expected == NumberStatus::New && !line.refused {
                    map.insert(line.number, (line.payload, segment, offset));
                    block.count(line.number, line.payload, segment, offset);
                } else {
                    block.pass(segment);
                }
            }
            prop_assert_eq!(block.is_empty(), map.is_empty());
            let counts: usize = block.runs().iter().map(|run| usize::from(run.count)).sum();
            prop_assert_eq!(counts, map.len());
            // The inverse: of all lines of an id only the one that counted lies in the number's run.
            for (number, segment, offset) in all {
                let counted = map.get(&number).is_some_and(|at| (at.1, at.2) == (segment, offset));
                let is_at = block.run_of(number).is_some_and(|run| run.is_at(segment, offset));
                prop_assert_eq!(is_at, counted, "{} at {}:{} of {:?}", number, segment, offset, block.runs());
            }
        }

        /// R11: what is kept of a block is what a map without the other segments' ids holds.
        #[test]
        fn a_part_of_a_block_is_a_block(lines in lines(), kept in 0usize..SEGMENTS.len()) {
            let mut block = Block::default();
            let mut part = HashMap::<u8, u32>::new();
            let segment_kept = SEGMENTS[kept];
            for (at, line) in lines.iter().enumerate() {
                let segment = SEGMENTS[line.segment];
                if block.status(line.number, line.payload) == NumberStatus::New {
                    block.count(line.number, line.payload, segment, at as u64);
                    if segment == segment_kept {
                        part.insert(line.number, line.payload);
                    }
                } else {
                    block.pass(segment);
                }
            }
            block.retain(|run| run.segment == segment_kept);
            prop_assert!(block.is_empty() || decoded(&bytes_of(&block)) == Ok(block.clone()));
            for number in 0..NUMBERS {
                let expected = match part.get(&number) {
                    None => NumberStatus::New,
                    Some(0) => NumberStatus::Duplicate,
                    Some(_) => NumberStatus::Conflict,
                };
                prop_assert_eq!(block.status(number, 0), expected);
            }
            prop_assert!(!block.pass(segment_kept), "closed");
        }

        #[test]
        fn bytes_that_are_no_block_are_refused_and_others_mean_one_thing(
            lines in lines(),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut block = Block::default();
            for (at, line) in lines.iter().enumerate() {
                if block.status(line.number, 0) == NumberStatus::New {
                    block.count(line.number, line.payload, 3, at as u64);
                }
            }
            prop_assume!(!block.is_empty());
            let bytes = bytes_of(&block);
            prop_assert!(decoded(&bytes[..cut.index(bytes.len())]).is_err());
            let mut changed = bytes.clone();
            changed[at.index(bytes.len())] = byte;
            if let Ok(other) = decoded(&changed) {
                let bits = other.runs.iter().fold(0, |bits, run| bits | run.bits());
                prop_assert_eq!(bits, other.bits);
                prop_assert_eq!(other.bits.count_ones() as usize, other.hashes.len());
            }
        }
    }

    #[test]
    fn a_full_block_fits_its_page_and_one_number_a_few_bytes() {
        let mut block = Block::default();
        block.count(127, u32::MAX, -1, 1 << 27);
        assert_eq!(bytes_of(&block).len(), 1 + 1 + 4 + 1 + 4);
        let mut block = Block::default();
        for number in 0..NUMBERS {
            block.count(number, 7, 1 << 20, u64::from(number) * 200 + (1 << 27));
        }
        assert_eq!(block.runs().len(), 1);
        assert_eq!(bytes_of(&block).len(), 1 + 16 + 512 + 2 + 4 + 4 + 3);
        // The longest key and the rest of the row, beyond which SQLite would use another page.
        assert!(bytes_of(&block).len() + 128 + 1 + 6 + 8 + 8 <= 1002);
    }

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
