//! Compares files of native segments that are imported.
//!
//! A native segment is identified by the label in its first line, under any file name. If two copies of a
//! data directory both continue to be used, they have one segment with two different ends; a copy of a
//! directory in use has a shorter segment. Therefore only the lines after the known ones are imported. Their
//! file is named after the segment, not after the source: [`Part`](crate::data_dir::segment::Part).

use std::io;

use crc32fast::Hasher;
use memchr::memchr_iter;

use crate::aggregate::lines;
use crate::aggregate::scan::read_range;
use crate::data_dir::disk::DiskFile;
use crate::data_dir::segment::{Label, Prefix};

const BLOCK: u64 = 256 << 10;

/// Reads the first `length` bytes of a file.
pub(super) fn prefix_of(file: &dyn DiskFile, length: u64) -> io::Result<Prefix> {
    Ok(Prefix {
        length,
        checksum: lines::checksum(file, length)?,
    })
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

/// Length of the common prefix of `file` from `start` and `other` from 0, in bytes.
pub(in crate::processor) fn in_common(
    file: &dyn DiskFile,
    start: u64,
    other: &dyn DiskFile,
) -> io::Result<u64> {
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
pub(in crate::processor) fn further_label(
    file: &dyn DiskFile,
    end: u64,
) -> io::Result<Option<(u64, Label)>> {
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
