//! One block: its bits, hashes and runs. The layout is described in the module above.

mod bytes;

#[cfg(feature = "postgres")]
pub(in crate::store) use self::bytes::BlockError;
use super::NUMBERS;

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
}
