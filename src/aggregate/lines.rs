//! Reading of a segment's file without aggregation: checksums, line counts, single lines.

use std::io;

use crc32fast::Hasher;
use memchr::memchr_iter;

use super::scan::{STORED_LINE_BYTES_MAX, file_start, is_empty, read_range};
use crate::data_dir::disk::DiskFile;

const BLOCK: u64 = 256 << 10;

/// Calls `each` with the blocks of `[from, to)`, in order.
fn blocks(file: &dyn DiskFile, from: u64, to: u64, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = Vec::new();
    let mut at = from;
    while at < to {
        let end = to.min(at + BLOCK);
        read_range(file, at, end, &mut buffer)?;
        each(&buffer);
        at = end;
    }
    Ok(())
}

/// The CRC-32 of the first `length` bytes.
pub(crate) fn checksum(file: &dyn DiskFile, length: u64) -> io::Result<u32> {
    let mut hasher = Hasher::new();
    blocks(file, 0, length, |block| hasher.update(block))?;
    Ok(hasher.finalize())
}

/// The CRC-32 of the first `length` bytes. The prefix that `known` already covers is not read.
pub(crate) fn checksum_from(file: &dyn DiskFile, known: &Hasher, length: u64) -> io::Result<u32> {
    let mut hasher = known.clone();
    blocks(file, known.total_len(), length, |block| {
        hasher.update(block);
    })?;
    Ok(hasher.finalize())
}

/// The number of lines that start in `[from, to)`, without empty lines; `from` must be a line start.
pub(crate) fn count(file: &dyn DiskFile, from: u64, to: u64) -> io::Result<u64> {
    count_and(file, from, to, |_| {})
}

/// [`count`], which also calls `each` with every block that it reads, in order.
pub(crate) fn count_and(
    file: &dyn DiskFile,
    from: u64,
    to: u64,
    mut each: impl FnMut(&[u8]),
) -> io::Result<u64> {
    let mut lines = 0;
    // Whether the unfinished line at the end of the last block is not empty so far.
    let mut open = false;
    let mut at = from;
    blocks(file, from, to, |block| {
        each(block);
        let mut start = block.len() - file_start(block, at).len();
        at += block.len() as u64;
        for end in memchr_iter(b'\n', block) {
            lines += u64::from(open || !is_empty(&block[start..end]));
            open = false;
            start = end + 1;
        }
        open |= !is_empty(&block[start..]);
    })?;
    Ok(lines + u64::from(open))
}

/// Calls `each` with the offset and the bytes of every line in `[from, to)`, without its `\n`. A line
/// longer than an event may be is truncated to one byte more than [`STORED_LINE_BYTES_MAX`].
pub(crate) fn each(
    file: &dyn DiskFile,
    from: u64,
    to: u64,
    mut each: impl FnMut(u64, &[u8]),
) -> io::Result<()> {
    let mut line: Vec<u8> = Vec::new();
    let mut line_start = from;
    let mut at = from;
    blocks(file, from, to, |block| {
        let mut start = 0;
        for end in memchr_iter(b'\n', block) {
            extend(&mut line, &block[start..end]);
            each(line_start, file_start(&line, line_start));
            line.clear();
            start = end + 1;
            line_start = at + start as u64;
        }
        extend(&mut line, &block[start..]);
        at += block.len() as u64;
    })?;
    if !line.is_empty() {
        each(line_start, file_start(&line, line_start));
    }
    Ok(())
}

fn extend(line: &mut Vec<u8>, bytes: &[u8]) {
    let room = (STORED_LINE_BYTES_MAX + 1).saturating_sub(line.len());
    line.extend_from_slice(&bytes[..bytes.len().min(room)]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_across_blocks_and_empty_ones_are_not() -> io::Result<()> {
        let file = tempfile::tempfile()?;
        let long = "x".repeat(usize::try_from(BLOCK).unwrap_or(0) - 3);
        let text = format!(
            "{long}\n\r\n \t\n\nab\n  {long}\n{}\nend",
            " ".repeat(long.len() * 2)
        );
        file.write_all_at(text.as_bytes(), 0)?;
        let size = file.size()?;
        assert_eq!(count(&file, 0, size)?, 4);
        assert_eq!(checksum(&file, size)?, crc32fast::hash(text.as_bytes()));
        Ok(())
    }
}
