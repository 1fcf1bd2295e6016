//! Names and positions: which file a line is in, and where.
//!
//! Pure, no I/O. A segment of ours is its **number**, never an inode, a content or a time: the
//! time in a sealed file's name is for people, so clocks may jump. A file from elsewhere is known
//! by its file name. A [`Position`] is a number and a byte offset; it carries the acknowledgement,
//! exactly-once, resume after a crash, freshness and read-your-writes.

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use crate::timestamp;

/// The file the server appends to; it is the segment after the highest sealed one.
pub const ACTIVE_FILE: &str = "events.jsonl";

/// A place in our segments: `offset` bytes of segment `segment` lie before it. Written `42-1834`.
///
/// Positions are ordered as events were taken: by segment, then by offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The segment's number, from 1.
    pub segment: u64,
    /// Bytes from the start of the segment; always a line end.
    pub offset: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.segment, self.offset)
    }
}

/// A position that is not `number-offset`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a position is SEGMENT-OFFSET, two whole numbers such as 42-1834")]
pub struct PositionError;

impl FromStr for Position {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Self, PositionError> {
        let (segment, offset) = text.split_once('-').ok_or(PositionError)?;
        let segment = digits(segment).ok_or(PositionError)?;
        let offset = digits(offset).ok_or(PositionError)?;
        if segment == 0 {
            return Err(PositionError);
        }
        Ok(Self { segment, offset })
    }
}

/// Digits only: `u64::from_str` would take a `+` as well.
fn digits(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// What a segment is known by, whatever its file is called today.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SegmentId {
    /// One of ours, by its number.
    Ours(u64),
    /// A file from elsewhere, by its file name.
    Elsewhere(String),
}

impl SegmentId {
    /// The number, for one of ours.
    pub fn number(&self) -> Option<u64> {
        match self {
            Self::Ours(number) => Some(*number),
            Self::Elsewhere(_) => None,
        }
    }

    /// Reads a sealed file's name: ours, one from elsewhere (`events_*.jsonl`, `events-*.jsonl`),
    /// or `None` for anything else, the active file included.
    pub fn of_file(name: &str) -> Option<Self> {
        let stem = name.strip_suffix(".jsonl")?;
        let rest = stem.strip_prefix("events")?;
        if let Some(number) = rest.strip_prefix('-').and_then(sealed_number) {
            return Some(Self::Ours(number));
        }
        (rest.len() > 1 && rest.starts_with(['-', '_'])).then(|| Self::Elsewhere(name.to_owned()))
    }
}

/// The identity as the database keeps it in `segment.name`: `events-000042` or the file name.
impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ours(number) => write!(f, "events-{number:06}"),
            Self::Elsewhere(name) => f.write_str(name),
        }
    }
}

const TIME_SHAPE: &[u8] = b"dddd-dd-ddTdd-dd-dd.dddZ";

/// When a file of ours was sealed, as its name says it: `2026-11-22T06:41:00.123Z`.
pub fn sealed_at(file_name: &str) -> Option<String> {
    let rest = file_name.strip_suffix(".jsonl")?.strip_prefix("events-")?;
    sealed_number(rest)?;
    let (date, time) = rest.get(..TIME_SHAPE.len())?.split_once('T')?;
    Some(format!("{date}T{}", time.replace('-', ":")))
}

/// The number in `2026-11-22T06-41-00.123Z-000042`.
fn sealed_number(rest: &str) -> Option<u64> {
    let (time, number) = rest.rsplit_once('-')?;
    let shaped = time.len() == TIME_SHAPE.len()
        && time
            .bytes()
            .zip(TIME_SHAPE)
            .all(|(byte, shape)| match shape {
                b'd' => byte.is_ascii_digit(),
                fixed => byte == *fixed,
            });
    if !shaped || number.len() < 6 {
        return None;
    }
    // One number has one spelling, so that two files can't claim it by padding alone.
    digits(number).filter(|&n| n > 0 && format!("{n:06}") == number)
}

/// The name a segment of ours gets when it is sealed: `events-<UTC time>-<number>.jsonl`.
pub fn sealed_file_name(number: u64, sealed_at: SystemTime) -> String {
    let time = timestamp::rfc3339_millis(sealed_at).replace(':', "-");
    format!("events-{time}-{number:06}.jsonl")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn a_sealed_name_is_read_back_as_its_number() {
        let at = UNIX_EPOCH + Duration::from_millis(1_795_329_660_123);
        let name = sealed_file_name(42, at);
        assert_eq!(name, "events-2026-11-22T06-41-00.123Z-000042.jsonl");
        let time = sealed_at(&name);
        assert_eq!(time.as_deref(), Some("2026-11-22T06:41:00.123Z"));
        assert_eq!(sealed_at("events_1700000000000.jsonl"), None);
        assert_eq!(sealed_at(ACTIVE_FILE), None);
        assert_eq!(SegmentId::of_file(&name), Some(SegmentId::Ours(42)));
        let big = sealed_file_name(12_345_678, at);
        assert_eq!(SegmentId::of_file(&big), Some(SegmentId::Ours(12_345_678)));
    }

    #[test]
    fn names_that_are_nearly_ours_are_from_elsewhere() {
        for name in [
            "events_1700000000000.jsonl",
            "events-2026.jsonl",
            "events-2026-11-22T06-41-00.123Z-42.jsonl",
            "events-2026-11-22T06-41-00.123Z-000000.jsonl",
            "events-2026-11-22T06-41-00.123Z-0000042.jsonl",
            "events-2026-11-22T06-41-00Z-000042.jsonl",
        ] {
            assert_eq!(
                SegmentId::of_file(name),
                Some(SegmentId::Elsewhere(name.to_owned())),
                "{name}"
            );
        }
        for name in [
            "events.jsonl",
            "events-.jsonl",
            "events_.jsonl",
            "other.jsonl",
            "events_1.json",
            "sample.jsonl",
        ] {
            assert_eq!(SegmentId::of_file(name), None, "{name}");
        }
    }

    #[test]
    fn positions_are_digits_dash_digits() {
        let position = Position {
            segment: 42,
            offset: 1834,
        };
        assert_eq!(position.to_string(), "42-1834");
        assert_eq!("42-1834".parse(), Ok(position));
        for bad in [
            "",
            "42",
            "-1",
            "42-",
            "+42-1",
            "42-+1",
            "0-5",
            "42-1834-",
            "99999999999999999999-1",
            " 42-1",
        ] {
            assert_eq!(bad.parse::<Position>(), Err(PositionError), "{bad}");
        }
        assert!(
            Position {
                segment: 2,
                offset: 0
            } > Position {
                segment: 1,
                offset: 99
            }
        );
    }
}
