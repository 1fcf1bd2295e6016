//! Parts of native segments that were imported, and the names of their files.

use std::fmt;

use crc32fast::Hasher;

use super::{Label, label_in_name};

/// The beginning of such a name.
const NAME: &str = "events_segment-";

/// The length and checksum of the beginning of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// In bytes.
    pub length: u64,
    /// CRC-32 of these bytes.
    pub checksum: u32,
}

impl Prefix {
    /// The one of length 0.
    pub const EMPTY: Self = Self {
        length: 0,
        checksum: 0,
    };

    /// The prefix that ends where bytes of this length and checksum end, which follow this one.
    #[must_use]
    pub fn followed_by(self, bytes: Self) -> Self {
        let mut all = Hasher::new_with_initial_len(self.checksum, self.length);
        all.combine(&Hasher::new_with_initial_len(bytes.checksum, bytes.length));
        Self {
            length: self.length + bytes.length,
            checksum: all.finalize(),
        }
    }
}

/// A part of a native segment in an imported file: the lines after one prefix of the segment, up to the end of
/// a longer one. The file name has the label and the length and checksum of both:
/// `events_segment-000002-5e3fa1c29b77d0e4_from-1834-9ae0daaf_to-2310-1c291ca3.jsonl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The label of the segment.
    pub label: Label,
    /// The beginning of the segment that is not in the file; empty if the file begins with the segment.
    pub from: Prefix,
    /// The beginning of the segment up to the end of the file.
    pub to: Prefix,
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:08x}", self.length, self.checksum)
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { label, from, to } = self;
        write!(f, "{NAME}{label}_from-{from}_to-{to}.jsonl")
    }
}

impl Part {
    /// Parses a file name; `None` if it is not the name of a part.
    pub fn of_name(name: &str) -> Option<Self> {
        let rest = name.strip_prefix(NAME)?.strip_suffix(".jsonl")?;
        let (label, rest) = rest.split_once("_from-")?;
        let (from, to) = rest.split_once("_to-")?;
        let prefix = |text: &str| {
            let (length, checksum) = text.split_once('-')?;
            Some(Prefix {
                length: length.parse().ok()?,
                checksum: u32::from_str_radix(checksum, 16).ok()?,
            })
        };
        let part = Self {
            label: label.parse().ok()?,
            from: prefix(from)?,
            to: prefix(to)?,
        };
        // Only the canonical spelling is accepted.
        (part.to_string() == name).then_some(part)
    }

    /// For the name of an imported file with a native segment or a part of one: its label, and the prefix of
    /// the segment that is not in the file.
    pub fn of_import(name: &str) -> Option<(Label, Prefix)> {
        if let Some(part) = Self::of_name(name) {
            return Some((part.label, part.from));
        }
        label_in_name(name).map(|label| (label, Prefix::EMPTY))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_canonical_name_of_a_part_is_parsed() {
        let part = Part {
            label: super::super::tests::label(2),
            from: Prefix {
                length: 1834,
                checksum: 0x9ae0_daaf,
            },
            to: Prefix {
                length: 2310,
                checksum: 0x1c,
            },
        };
        let name =
            "events_segment-000002-5e3fa1c29b77d0e4_from-1834-9ae0daaf_to-2310-0000001c.jsonl";
        assert_eq!(part.to_string(), name);
        assert_eq!(Part::of_name(name), Some(part));
        for other in [
            name.replace("000002", "2"),
            name.replace("0000001c", "1c"),
            name.replace("1834", "+1834"),
            name.replace("_to", ""),
            "events_march.jsonl".to_owned(),
        ] {
            assert_eq!(Part::of_name(&other), None, "{other}");
        }
    }
}
