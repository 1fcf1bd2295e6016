//! Parts of native segments that are imported, and the names of their files.
//!
//! A native segment is identified by the label in its first line, under any file name. If two copies of a
//! data directory both continue to be used, they have one segment with two different ends; a copy of a
//! directory in use has a shorter segment. Therefore only the lines after the known ones are imported. Their
//! file is named after the segment, not after the source: [`Part`].

use std::fmt;
use std::io;

use crc32fast::Hasher;
use memchr::memchr_iter;

use crate::aggregate::lines;
use crate::aggregate::scan::read_range;
use crate::data_dir::disk::DiskFile;
use crate::data_dir::segment::{Label, label_in_name};

const BLOCK: u64 = 256 << 10;
const PREFIX: &str = "events_segment-";

/// The length and checksum of the beginning of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::processor) struct Prefix {
    pub(super) length: u64,
    /// CRC-32 of these bytes.
    pub(super) checksum: u32,
}

impl Prefix {
    /// Reads the first `length` bytes of a file.
    pub(super) fn of(file: &dyn DiskFile, length: u64) -> io::Result<Self> {
        Ok(Self {
            length,
            checksum: lines::checksum(file, length)?,
        })
    }

    /// Whether a file of `size` bytes begins with this prefix.
    pub(super) fn begins(self, file: &dyn DiskFile, size: u64) -> io::Result<bool> {
        Ok(self.length <= size && Self::of(file, self.length)? == self)
    }
}

/// The length of the longest of these prefixes of a file of `size` bytes; 0 if there is none. Reads the file
/// once.
pub(super) fn longest_prefix(
    file: &dyn DiskFile,
    size: u64,
    mut prefixes: Vec<Prefix>,
) -> io::Result<u64> {
    prefixes.retain(|prefix| prefix.length <= size);
    prefixes.sort_unstable_by_key(|prefix| prefix.length);
    let (mut longest, mut read) = (0, Hasher::new());
    for prefix in prefixes {
        let checksum = lines::checksum_from(file, &read, prefix.length)?;
        if checksum == prefix.checksum {
            longest = prefix.length;
        }
        read = Hasher::new_with_initial_len(checksum, prefix.length);
    }
    Ok(longest)
}

/// A part of a native segment in an imported file: the lines after one prefix of the segment, up to the end of
/// a longer one. The file name has the label and the length and checksum of both:
/// `events_segment-000002-5e3fa1c29b77d0e4_from-1834-9ae0daaf_to-2310-1c291ca3.jsonl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::processor) struct Part {
    pub(in crate::processor) label: Label,
    pub(super) from: Prefix,
    pub(super) to: Prefix,
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:08x}", self.length, self.checksum)
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Label { number, tag } = self.label;
        let (from, to) = (self.from, self.to);
        write!(f, "{PREFIX}{number:06}-{tag}_from-{from}_to-{to}.jsonl")
    }
}

impl Part {
    /// Parses a file name; `None` if it is not the name of a part.
    pub(in crate::processor) fn of_name(name: &str) -> Option<Self> {
        let rest = name.strip_prefix(PREFIX)?.strip_suffix(".jsonl")?;
        let (label, rest) = rest.split_once("_from-")?;
        let (from, to) = rest.split_once("_to-")?;
        let (number, tag) = label.split_once('-')?;
        let prefix = |text: &str| {
            let (length, checksum) = text.split_once('-')?;
            Some(Prefix {
                length: length.parse().ok()?,
                checksum: u32::from_str_radix(checksum, 16).ok()?,
            })
        };
        let label = Label {
            number: number.parse().ok()?,
            tag: tag.parse().ok()?,
        };
        let part = Self {
            label,
            from: prefix(from)?,
            to: prefix(to)?,
        };
        // Only the canonical spelling is accepted.
        (part.to_string() == name).then_some(part)
    }

    /// For the name of an imported file with a native segment or a part of one: its label, and the prefix of
    /// the segment that is not in the file.
    pub(super) fn imported(name: &str) -> Option<(Label, Prefix)> {
        if let Some(part) = Self::of_name(name) {
            return Some((part.label, part.from));
        }
        let nothing = Prefix {
            length: 0,
            checksum: 0,
        };
        label_in_name(name).map(|label| (label, nothing))
    }
}

/// Length of the common prefix of `file` from `start` and `other` from 0, in bytes.
pub(super) fn in_common(file: &dyn DiskFile, start: u64, other: &dyn DiskFile) -> io::Result<u64> {
    let length = file.size()?.saturating_sub(start).min(other.size()?);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < length {
        let end = length.min(at + BLOCK);
        read_range(file, start + at, start + end, &mut ours)?;
        read_range(other, at, end, &mut theirs)?;
        let same = ours.iter().zip(&theirs).take_while(|(a, b)| a == b).count();
        at += same as u64;
        if same < ours.len() {
            break;
        }
    }
    Ok(at)
}

/// Searches the lines after the first, up to `end`, for a label. Returns the end of its line and the label.
pub(super) fn further_label(file: &dyn DiskFile, end: u64) -> io::Result<Option<(u64, Label)>> {
    // The end of the previous block, for a label that begins there.
    let mut bytes: Vec<u8> = Vec::new();
    let mut block = Vec::new();
    let (mut at, mut first) = (0, true);
    while at < end {
        let to = end.min(at + BLOCK);
        read_range(file, at, to, &mut block)?;
        let kept = bytes.len();
        bytes.extend_from_slice(&block);
        for newline in memchr_iter(b'\n', &bytes[kept..]).map(|newline| kept + newline) {
            let line = &bytes[..newline];
            let is_first = std::mem::replace(&mut first, false);
            if matches!(line.last(), Some(b' ' | b'\t'))
                && !is_first
                && let Some(label) = Label::of_line(line)
            {
                return Ok(Some((at + (newline - kept) as u64, label)));
            }
        }
        let excess = bytes.len().saturating_sub(Label::BYTES);
        bytes.drain(..excess);
        at = to;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data_dir::segment::Tag;

    fn label(number: u64) -> Label {
        let tag = Tag {
            directory: 0x5e3f_a1c2,
            token: 0x9b77_d0e4,
        };
        Label { number, tag }
    }

    #[test]
    fn only_the_canonical_name_of_a_part_is_parsed() {
        let part = Part {
            label: label(2),
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

    #[test]
    fn labels_are_found_across_blocks() -> io::Result<()> {
        let first = [b"{}", &label(1).encode()[..], b"\n"].concat();
        let second = [b"{}", &label(2).encode()[..], b"\n"].concat();
        for gap in [0, 1, 50, 95, 96, 97, 98, 99] {
            let file = tempfile::tempfile()?;
            let before = usize::try_from(BLOCK).unwrap_or(0) - first.len() - gap;
            let filler = [&vec![b'x'; before - 1][..], b"\n"].concat();
            file.write_all_at(&[&first[..], &filler, &second].concat(), 0)?;
            let size = file.size()?;
            assert_eq!(
                further_label(&file, size)?,
                Some((size - 1, label(2))),
                "{gap}"
            );
            assert_eq!(further_label(&file, size - 1)?, None);
        }
        Ok(())
    }

    #[test]
    fn bytes_in_common_are_counted_across_blocks() -> io::Result<()> {
        let (file, other) = (tempfile::tempfile()?, tempfile::tempfile()?);
        let long = vec![b'x'; usize::try_from(BLOCK).unwrap_or(0) + 7];
        file.write_all_at(&[b"ab", &long[..], b"y"].concat(), 0)?;
        other.write_all_at(&[&long[..], b"z"].concat(), 0)?;
        assert_eq!(in_common(&file, 2, &other)?, long.len() as u64);
        assert_eq!(in_common(&file, 0, &other)?, 0);
        other.set_len(5)?;
        assert_eq!(in_common(&file, 2, &other)?, 5);
        Ok(())
    }
}
