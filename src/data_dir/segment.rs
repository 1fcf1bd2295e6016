//! Names, labels and positions: the identity of a segment, and the place of a line in it. No I/O.
//!
//! A native segment is identified by its **number** and its [`Tag`]. The tag contains the data
//! directory in which the segment was created, and a random token that distinguishes it from any other
//! segment of that number. Both are assigned when the segment is created. They are stored in the
//! [`Label`] at the end of the file's first line, in the name of the sealed file, and in the segment's
//! row in the database. The name of the sealed file also contains its length and checksum ([`Seal`]).
//! Inodes, contents and times are not part of the identity. The time in a sealed file's name is
//! informative only, so the clock may jump. An imported file is identified by its file name; so is a
//! native segment of another data directory.
//!
//! A [`Position`] is a segment number and a byte offset. Acknowledgements, exactly-once application,
//! resumption after a crash, lag, and read-your-writes are all expressed in positions.

mod names;
mod numbers;
mod part;
mod position;

use std::fmt;
use std::str::FromStr;

pub use self::names::{
    label_in_name, seal_in_name, sealed_at, sealed_file_name, sealed_file_name_with,
};
pub use self::numbers::Numbers;
pub use self::part::{Part, Prefix};
pub use self::position::Position;

/// The name of the active segment's file, to which the server appends.
pub const ACTIVE_FILE: &str = "events.jsonl";

/// The highest number of a native segment: a label has 32 bits for it.
pub const SEGMENT_NUMBER_MAX: u64 = u32::MAX as u64;

/// The first 32 bits of a data directory's UUID, as used in segment names and labels.
pub type DirectoryTag = u32;

/// Distinguishes a native segment from every other segment of the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag {
    /// The data directory in which the segment was created.
    pub directory: DirectoryTag,
    /// Drawn at random when the segment was created.
    pub token: u32,
}

/// 16 lower-case hex digits, those of the directory first, as in file names and in the database.
impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}{:08x}", self.directory, self.token)
    }
}

/// A tag that is not 16 lower-case hex digits.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a segment's tag is 16 lower-case hex digits")]
pub struct TagError;

impl FromStr for Tag {
    type Err = TagError;

    fn from_str(text: &str) -> Result<Self, TagError> {
        let lower_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() != 16 || !text.bytes().all(lower_hex) {
            return Err(TagError);
        }
        let half = |hex: &str| u32::from_str_radix(hex, 16).map_err(|_| TagError);
        Ok(Self {
            directory: half(&text[..8])?,
            token: half(&text[8..])?,
        })
    }
}

/// The identity of a native segment, as stored in the file itself.
///
/// The first line of the file ends in 96 blanks before its `\n`. A space is a 0 and a tab is a 1, the
/// highest bit first: 32 bits each for the directory, the number and the token. JSON ignores white
/// space after a value, so the label does not change the lines for any reader of JSON Lines. A copy of
/// the file keeps the label, whatever the name of the copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Label {
    /// The segment's number, from 1 to 2^32 - 1.
    pub number: u64,
    /// Distinguishes it from others of that number.
    pub tag: Tag,
}

/// Number and tag, as in file names and in the database: `000042-5e3fa1c29b77d0e4`.
impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:06}-{}", self.number, self.tag)
    }
}

/// A text that is not a label.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a label is a segment's number and its tag, such as 000042-5e3fa1c29b77d0e4")]
pub struct LabelError;

impl FromStr for Label {
    type Err = LabelError;

    /// Each label has one spelling, so that no two names differ only in padding.
    fn from_str(text: &str) -> Result<Self, LabelError> {
        let read = || {
            let (number, tag) = text.split_once('-')?;
            let number = digits(number).filter(|n| (1..=SEGMENT_NUMBER_MAX).contains(n))?;
            let tag = tag.parse().ok()?;
            Some(Self { number, tag }).filter(|label| label.to_string() == text)
        };
        read().ok_or(LabelError)
    }
}

impl Label {
    /// Bytes that a label adds to the first line.
    pub const BYTES: usize = 96;

    /// The blanks to write before the first `\n` of the file.
    pub fn encode(self) -> [u8; Self::BYTES] {
        let number = u128::from(u32::try_from(self.number).unwrap_or(u32::MAX));
        let bits = u128::from(self.tag.directory) << 64 | number << 32 | u128::from(self.tag.token);
        std::array::from_fn(|at| match bits >> (Self::BYTES - 1 - at) & 1 {
            0 => b' ',
            _ => b'\t',
        })
    }

    /// Reads the label at the end of a first line, which is given without its `\n`. `None` if the line
    /// does not end in a label.
    pub fn of_line(line: &[u8]) -> Option<Self> {
        let blanks = line.last_chunk::<{ Self::BYTES }>()?;
        let mut bits = 0u128;
        for blank in blanks {
            bits = bits << 1
                | match blank {
                    b' ' => 0,
                    b'\t' => 1,
                    _ => return None,
                };
        }
        let part = |shift: u32| {
            (bits >> shift & u128::from(u32::MAX))
                .try_into()
                .unwrap_or(0u32)
        };
        let number = u64::from(part(32));
        let tag = Tag {
            directory: part(64),
            token: part(0),
        };
        (number > 0).then_some(Self { number, tag })
    }
}

/// The length and checksum of a segment's acknowledged bytes when it was sealed. They are part of the
/// sealed file's name, so the rename that seals the file makes them durable, and every copy of the file
/// that keeps its name has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// The number of acknowledged bytes.
    pub bytes: u64,
    /// CRC-32 of those bytes.
    pub checksum: u32,
}

impl fmt::Display for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:08x}", self.bytes, self.checksum)
    }
}

/// Parses digits only: `u64::from_str` would accept a leading `+`.
fn digits(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// The identity of a segment, independent of where its file lies.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SegmentId {
    /// A native segment of this data directory, by its number. If several files have the number,
    /// their tags are compared.
    Native(u64),
    /// An imported file, by its file name.
    Imported(String),
}

impl SegmentId {
    /// The number of a native segment; `None` for an imported file.
    pub fn number(&self) -> Option<u64> {
        match self {
            Self::Native(number) => Some(*number),
            Self::Imported(_) => None,
        }
    }

    /// Parses the name of a sealed file in the data directory `directory`. The result is a native
    /// segment with its tag, or an imported file (`events_*.jsonl`, `events-*.jsonl`, native segments
    /// of other data directories). `None` for any other name, including that of the active file.
    pub fn of_file(name: &str, directory: DirectoryTag) -> Option<(Self, Option<Tag>)> {
        if let Some(label) = label_in_name(name)
            && label.tag.directory == directory
        {
            return Some((Self::Native(label.number), Some(label.tag)));
        }
        let rest = name.strip_suffix(".jsonl")?.strip_prefix("events")?;
        (rest.len() > 1 && rest.starts_with(['-', '_']))
            .then(|| (Self::Imported(name.to_owned()), None))
    }
}

/// The value of `segment.name` in the database: `events-000042`, or the file name of an imported file.
impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Native(number) => write!(f, "events-{number:06}"),
            Self::Imported(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(super) const HERE: DirectoryTag = 0x5e3f_a1c2;

    pub(super) fn label(number: u64) -> Label {
        let tag = Tag {
            directory: HERE,
            token: 0x9b77_d0e4,
        };
        Label { number, tag }
    }

    #[test]
    fn a_line_without_96_blanks_has_no_label() {
        let mut line = label(7).encode().to_vec();
        assert_eq!(Label::of_line(&line[1..]), None, "one is missing");
        line[50] = b'\r';
        assert_eq!(Label::of_line(&line), None, "another blank");
        assert_eq!(Label::of_line(&[b' '; Label::BYTES]), None, "number 0");
        assert_eq!(Label::of_line(b"{}"), None);
    }

    proptest! {
        #[test]
        fn a_label_is_read_back_from_any_line(
            directory: u32, number in 1..=u64::from(u32::MAX), token: u32, line: Vec<u8>
        ) {
            let label = Label { number, tag: Tag { directory, token } };
            let mut labelled = line;
            labelled.extend(label.encode());
            prop_assert_eq!(Label::of_line(&labelled), Some(label));
            prop_assert_eq!(label.tag.to_string().parse(), Ok(label.tag));
        }
    }
}
