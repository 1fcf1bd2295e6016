//! Sequential ids: one row for 128 consecutive numbers instead of one row for each id.
//!
//! A sender that numbers its events (`NAME-000000000123`, as `tallyline send` does) would otherwise
//! need a row of about 70 bytes for each event. A block stores the same facts in about 5 bytes for each
//! event. Kafka's idempotent producer needs as little because it accepts numbers in order only; blocks
//! accept any order, gaps, interleaved producers and overlapping resends.
//!
//! # Which ids are sequential
//! An id is sequential if it ends in 6 to 18 ASCII digits after a prefix that is not empty; of a longer
//! run of digits the last 18 count, the rest belongs to the prefix ([`SequentialId::of`]). Nothing but
//! the bytes of the id decides, so one id has one possible place: the row of its block, or a row of
//! `event_id` of its own. There is no other way to find out whether an id was counted, and no
//! conversion between the two.
//!
//! The key of a block is (prefix, width, number / 128), compared byte by byte. The width, the count of
//! digits, keeps `a-000001` and `a-0000001` apart.
//!
//! # What a block holds
//! - **A bitmap** of 128 bits: which numbers were counted. A clear bit was never counted: there is no
//!   high-water mark, so nothing depends on the order of arrival.
//! - **A hash** of 32 bits of the payload (userId, name, amount) for each set bit, in the order of the
//!   numbers. A number that comes again with the same hash is a duplicate, with another hash a
//!   conflict. Two payloads may have the same hash (1 in 4 billion): then a conflict is called a
//!   duplicate. Neither is counted, so a total is never wrong.
//! - **Runs**: (first number, count, segment, first offset, last offset). The numbers of a run rise by
//!   exactly 1, were counted in one segment, and no other line of the block lies between them. Any
//!   other line of the block (a duplicate, a conflict, a line that was rejected for an overflow, a jump)
//!   closes the run; lines of other blocks do not. So number n was counted at the line of that id
//!   inside its run's segment and offsets, **and only there**: `verify` and rebuild depend on this
//!   inverse. A run may go on in the next range of its segment, for nothing of the segment is applied
//!   in between; only the last run of a block can go on, and a flag says whether it may.
//! - **The newest time of applying**, a column of its own: a block expires as a whole, when its newest
//!   number is old enough.
//!
//! Runs, bits and hashes are redundant. [`Block::decode`] rejects a block in which they contradict each
//! other, and `verify` reports it.
//!
//! # The bytes of a block (column `numbers`)
//! The first byte is the form: bit 0 says whether the last run may go on, bit 1 whether there is more
//! than one number. Integers of varying length are LEB128, segments in zigzag.
//! ```text
//! one number:   form, number (1 byte), hash (4 bytes), segment, offset
//! more numbers: form, bitmap (16 bytes), hash (4 bytes) for each set bit,
//!               for each run: first number (1 byte), count - 1 (1 byte), segment, first offset,
//!               last offset - first offset
//! ```
//! Fixed integers are little-endian. A full block that came in order has about 540 bytes; with its key
//! that is 4.6 bytes an event, and it stays below the 1,002 bytes beyond which SQLite moves a part of a
//! row to an overflow page. A block must therefore not hold more than 128 numbers. Sparse numbers (a
//! stride of 128, timestamps) give blocks of one number. Such a block is smaller than the row of
//! `event_id` that it replaces: the digits of the id become an integer, and the hash has 4 bytes
//! instead of 6.

mod block;
mod group;

use rusqlite::{Row, types::Type};

#[cfg(feature = "postgres")]
pub(super) use self::block::BlockError;
pub(super) use self::block::{Block, NumberStatus};
pub(super) use self::group::{Grouped, Span};

/// Inserts blocks that are not there; parameters: time of applying, then prefix, width, block and bytes.
pub(super) const INSERT_ID_BLOCK: &str = include_str!("../../sql/query/insert_id_block.sql");
/// Of one block: its bytes.
pub(super) const SELECT_ID_BLOCK: &str = include_str!("../../sql/query/select_id_block.sql");

/// How many numbers a block holds.
pub(super) const NUMBERS: u8 = 128;
/// The fewest digits at the end of a sequential id: the last 6 digits of a random UUID are decimal
/// ones in 6 of 100.
const DIGITS_MIN: usize = 6;
/// The most digits that are read as a number: they fit 63 bits.
const DIGITS_MAX: usize = 18;

/// The key of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct BlockKey<'a> {
    /// The id without its number; not empty.
    pub(super) prefix: &'a str,
    /// How many digits the number has: 6 to 18.
    pub(super) width: u8,
    /// The number / 128.
    pub(super) block: i64,
}

/// A sequential id, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SequentialId<'a> {
    pub(super) key: BlockKey<'a>,
    /// The number modulo 128.
    pub(super) number: u8,
}

impl<'a> SequentialId<'a> {
    /// `None` if the id is not sequential.
    #[inline]
    pub(super) fn of(id: &'a str) -> Option<Self> {
        let bytes = id.as_bytes();
        let mut number = 0;
        let mut place = 1;
        let mut width = 0;
        for byte in bytes.iter().rev().take(DIGITS_MAX) {
            let digit = byte.wrapping_sub(b'0');
            if digit > 9 {
                break;
            }
            number += i64::from(digit) * place;
            place *= 10;
            width += 1;
        }
        if width < DIGITS_MIN || width == bytes.len() {
            return None;
        }
        Some(Self {
            key: BlockKey {
                prefix: id.get(..bytes.len() - width)?,
                width: u8::try_from(width).ok()?,
                block: number / i64::from(NUMBERS),
            },
            number: u8::try_from(number % i64::from(NUMBERS)).ok()?,
        })
    }
}

/// The bytes of a block, which every statement about blocks selects first.
pub(super) fn bytes<'r>(row: &'r Row<'_>) -> rusqlite::Result<&'r [u8]> {
    row.get_ref(0)?
        .as_blob()
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, Type::Blob, Box::new(error)))
}

/// Reads a block in place of what it was.
pub(super) fn read(row: &Row<'_>, block: &mut Block) -> rusqlite::Result<()> {
    block
        .decode(bytes(row)?)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, Type::Blob, Box::new(error)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(of: &SequentialId<'_>) -> String {
        let SequentialId { key, number } = of;
        let number = key.block * 128 + i64::from(*number);
        let width = usize::from(key.width);
        format!("{}{number:0width$}", key.prefix)
    }

    #[test]
    fn a_sequential_id_ends_in_six_to_eighteen_digits_after_a_prefix() {
        let parts = |id| {
            SequentialId::of(id).map(|of| (of.key.prefix, of.key.width, of.key.block, of.number))
        };
        assert_eq!(parts("run-000000000300"), Some(("run-", 12, 2, 44)));
        assert_eq!(parts("a000127"), Some(("a", 6, 0, 127)));
        assert_eq!(parts("é000128"), Some(("é", 6, 1, 0)));
        let longest = "x999999999999999999";
        assert_eq!(parts(longest), Some(("x", 18, 7_812_499_999_999_999, 127)));
        // Of a longer run of digits the last 18; a prefix may be digits, too.
        assert_eq!(parts("x1234567890123456789"), parts("x1234567890123456789"));
        assert_eq!(
            parts("x1234567890123456789").map(|of| (of.0, of.1)),
            Some(("x1", 18))
        );
        assert_eq!(
            parts("1234567890123456789").map(|of| (of.0, of.1)),
            Some(("1", 18))
        );
        for row in [
            "",
            "a",
            "a12345",
            "123456",
            "123456789012345678",
            "a-١٢٣٤٥٦",
            "a123456b",
            "a000-123",
        ] {
            assert_eq!(parts(row), None, "{row}");
        }
        // The width keeps them apart.
        assert_ne!(parts("a-000001"), parts("a-0000001"));
        assert_ne!(parts("a-000001"), parts("a-0000000001"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn an_id_has_one_place_and_a_place_one_id(text in "[a0-9é-]{0,4}[0-9]{0,21}[a]{0,1}") {
            let digits = text.bytes().rev().take_while(u8::is_ascii_digit).count();
            match SequentialId::of(&text) {
                Some(of) => {
                    prop_assert_eq!(&id(&of), &text);
                    prop_assert!(of.number < NUMBERS && !of.key.prefix.is_empty());
                    prop_assert_eq!(usize::from(of.key.width), digits.min(18));
                }
                None => prop_assert!(digits < 6 || (digits <= 18 && digits == text.len())),
            }
        }
    }
}
