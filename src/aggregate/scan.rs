//! The fold: lines of a file to what they add up to. Pure but for reading the file.
//!
//! A range is cut into chunks by bytes alone, so that nobody needs to look for line ends
//! beforehand: a line belongs to the chunk its first byte lies in. The pieces of neighbouring
//! chunks join without a gap, whatever the chunk size, and so do their checksums; that is why
//! totals do not depend on it.

use std::io;
use std::sync::Arc;

use crc32fast::Hasher;
use memchr::{memchr, memchr_iter, memrchr};

use super::REJECTED_LINES_MAX;
use super::delta::{IdEvents, REJECTED_LINE_BYTES_MAX, Rejected};
use super::sharded_totals::{ShardBuffer, ShardedTotals};
use crate::data_dir::disk::DiskFile;
use crate::data_dir::segment::Label;
use crate::event::{Event, LINE_BYTES_MAX, Plain, without_bom};

/// Bytes read at once: they stay in a core's cache until they are parsed.
const BLOCK_LENGTH: usize = 256 << 10;
const BLOCK: u64 = BLOCK_LENGTH as u64;
/// Bytes read first when a line goes on past its chunk, and after that.
const LINE_END_BLOCK: u64 = 1 << 10;
const LONG_LINE_BLOCK: u64 = 64 << 10;

/// A part of a range, to be aggregate by one thread.
#[derive(Clone)]
pub(crate) struct Chunk {
    pub(crate) file: Arc<dyn DiskFile>,
    /// Where the range starts: a line start.
    pub(crate) range_start: u64,
    /// Where the range ends: a line end, or the end of the file.
    pub(crate) range_end: u64,
    /// Lines that start from here on ...
    pub(crate) start: u64,
    /// ... up to here (exclusive) belong to the chunk.
    pub(crate) end: u64,
}

/// What the lines of a chunk come to, the sums per user apart.
#[derive(Default)]
pub(crate) struct PartialAggregate {
    /// The CRC-32 of the chunk's lines; its length is theirs.
    pub(crate) checksum: Hasher,
    pub(crate) lines: u64,
    /// The first lines that are no events.
    pub(crate) rejected: Vec<Rejected>,
    pub(crate) rejected_count: u64,
    /// Events with an id; the sums per user have them, too.
    pub(crate) with_id: IdEvents,
}

impl PartialAggregate {
    /// Bytes of the chunk's lines.
    pub(crate) fn bytes(&self) -> u64 {
        self.checksum.total_len()
    }

    /// The most bytes of memory that it needs until it is applied.
    pub(crate) fn memory_bytes(&self) -> usize {
        let rejected =
            |line: &Rejected| size_of::<Rejected>() + line.reason.len() + line.line.len();
        self.with_id.memory_bytes() + self.rejected.iter().map(rejected).sum::<usize>()
    }

    /// Joins the partial that comes right after.
    pub(crate) fn append(&mut self, next: Self) {
        self.checksum.combine(&next.checksum);
        self.lines += next.lines;
        self.rejected_count += next.rejected_count;
        let room = rejected_max().saturating_sub(self.rejected.len());
        self.rejected.extend(next.rejected.into_iter().take(room));
        if self.with_id.is_empty() {
            self.with_id = next.with_id;
        } else {
            self.with_id.append(&next.with_id);
        }
    }

    fn reject(&mut self, offset: u64, code: &'static str, reason: String, line: &[u8]) {
        self.rejected_count += 1;
        if self.rejected.len() < rejected_max() {
            self.rejected
                .push(Rejected::new(offset, code, reason, line));
        }
    }
}

fn rejected_max() -> usize {
    usize::try_from(REJECTED_LINES_MAX).unwrap_or(usize::MAX)
}

/// One thread's memory for folding, used again for each chunk.
pub(crate) struct ChunkScanner {
    buffer: Vec<u8>,
    router: ShardBuffer,
}

impl ChunkScanner {
    /// The most bytes of memory it holds from chunk to chunk.
    pub(crate) const MEMORY_BYTES: usize = 2 * BLOCK_LENGTH + ShardBuffer::MEMORY_BYTES;

    pub(crate) fn new() -> Self {
        Self {
            buffer: Vec::new(),
            router: ShardBuffer::new(),
        }
    }

    /// Folds the lines of a chunk; their sums go to `users`.
    pub(crate) fn scan(
        &mut self,
        chunk: &Chunk,
        users: &ShardedTotals,
    ) -> io::Result<PartialAggregate> {
        let mut partial = PartialAggregate::default();
        let mut sink = Sink {
            partial: &mut partial,
            users,
            router: &mut self.router,
        };
        let buffer = &mut self.buffer;
        // The byte before shows whether a line starts at the chunk's start.
        let mut at = chunk.start - u64::from(chunk.start > chunk.range_start);
        let mut in_line_before = at < chunk.start;
        // Bytes at the buffer's start, of a line whose end has not been read yet.
        let mut begun = 0;
        while at < chunk.end {
            let end = chunk.end.min(at + BLOCK);
            fill(&*chunk.file, at, end, buffer, begun)?;
            let mut filled = begun + usize::try_from(end - at).map_err(io::Error::other)?;
            at = end;
            if in_line_before {
                let Some(newline) = memchr(b'\n', &buffer[..filled]) else {
                    continue;
                };
                in_line_before = false;
                buffer.copy_within(newline + 1..filled, 0);
                filled -= newline + 1;
            }
            let bytes = &buffer[..filled];
            let whole = memrchr(b'\n', &bytes[begun.min(filled)..])
                .map_or(0, |newline| begun.min(filled) + newline + 1);
            sink.partial.checksum.update(&bytes[..whole]);
            sink.lines(&bytes[..whole], at - filled as u64);
            if whole > 0 {
                buffer.copy_within(whole..filled, 0);
            }
            begun = filled - whole;
        }
        if begun > 0 {
            sink.last_line(chunk, chunk.end - begun as u64, buffer[..begun].to_vec())?;
        }
        buffer.shrink_to(2 * BLOCK_LENGTH);
        self.router.flush(users);
        Ok(partial)
    }
}

/// `[from, to)` of the file into the buffer after the first `keep` bytes.
fn fill(
    file: &dyn DiskFile,
    from: u64,
    to: u64,
    buffer: &mut Vec<u8>,
    keep: usize,
) -> io::Result<()> {
    let length = keep + usize::try_from(to - from).map_err(io::Error::other)?;
    if buffer.len() < length {
        buffer.resize(length, 0);
    }
    read_exactly(file, from, &mut buffer[keep..length])
}

/// Where lines go.
struct Sink<'s> {
    partial: &'s mut PartialAggregate,
    users: &'s ShardedTotals,
    router: &'s mut ShardBuffer,
}

impl Sink<'_> {
    /// Whole lines, each ended by `\n`.
    fn lines(&mut self, bytes: &[u8], offset: u64) {
        let mut start = 0;
        for end in memchr_iter(b'\n', bytes) {
            self.line(&bytes[start..end], offset + start as u64);
            start = end + 1;
        }
    }

    #[inline]
    fn line(&mut self, line: &[u8], offset: u64) {
        match Event::plain(line) {
            Some(Plain {
                user_id,
                kind,
                amount_micros,
                id: None,
            }) => {
                self.partial.lines += 1;
                self.router.count(self.users, user_id, kind, amount_micros);
            }
            Some(plain) => match plain.event() {
                Some(event) => self.event(&event, offset),
                None => self.any_line(line, offset),
            },
            None => self.any_line(line, offset),
        }
    }

    #[inline]
    fn event(&mut self, event: &Event<'_>, offset: u64) {
        self.partial.lines += 1;
        self.router.count(
            self.users,
            event.user_id.as_bytes(),
            event.kind,
            event.amount_micros,
        );
        if let Some(id) = &event.id {
            self.partial.with_id.push(offset, id, event);
        }
    }

    fn any_line(&mut self, line: &[u8], offset: u64) {
        let line = file_start(line, offset);
        match Event::parse(line) {
            Ok(event) => self.event(&event, offset),
            Err(_) if is_empty(line) => {}
            Err(error) => {
                self.partial.lines += 1;
                self.partial
                    .reject(offset, error.code, error.to_string(), line);
            }
        }
    }

    /// The line that starts in the chunk and goes on past it; `line` is what was read of it.
    /// However long it is, no more of it is held than a line may have.
    fn last_line(&mut self, chunk: &Chunk, start: u64, mut line: Vec<u8>) -> io::Result<()> {
        self.partial.checksum.update(&line);
        let mut at = chunk.end;
        let mut length = line.len();
        let mut block = Vec::new();
        while at < chunk.range_end {
            let length_more = if at == chunk.end {
                LINE_END_BLOCK
            } else {
                LONG_LINE_BLOCK
            };
            let end = chunk.range_end.min(at + length_more);
            read_range(&*chunk.file, at, end, &mut block)?;
            at = end;
            let newline = memchr(b'\n', &block);
            let part = &block[..newline.unwrap_or(block.len())];
            length += part.len();
            line.extend_from_slice(
                &part[..part
                    .len()
                    .min((STORED_LINE_BYTES_MAX + 1).saturating_sub(line.len()))],
            );
            self.partial
                .checksum
                .update(&block[..newline.map_or(block.len(), |at| at + 1)]);
            if newline.is_some() {
                break;
            }
        }
        if length <= STORED_LINE_BYTES_MAX {
            self.line(&line, start);
        } else {
            let error = crate::event::EventError::line_too_long(length);
            self.partial.lines += 1;
            self.partial
                .reject(start, error.code, error.to_string(), &line);
        }
        Ok(())
    }
}

/// The longest line that is looked at: one of the longest event and a label.
pub(crate) const STORED_LINE_BYTES_MAX: usize = LINE_BYTES_MAX + Label::BYTES;

/// A line at `offset` of a file without the byte order mark that the file begins with.
pub(crate) fn file_start(line: &[u8], offset: u64) -> &[u8] {
    if offset == 0 { without_bom(line) } else { line }
}

/// Nothing but white space: not a line.
pub(crate) fn is_empty(line: &[u8]) -> bool {
    line.iter().all(|byte| matches!(byte, b' ' | b'\t' | b'\r'))
}

/// Exactly `[from, to)` into `buffer`, which is used again.
pub(crate) fn read_range(
    file: &dyn DiskFile,
    from: u64,
    to: u64,
    buffer: &mut Vec<u8>,
) -> io::Result<()> {
    buffer.resize(usize::try_from(to - from).map_err(io::Error::other)?, 0);
    read_exactly(file, from, buffer)
}

fn read_exactly(file: &dyn DiskFile, from: u64, buffer: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], from + filled as u64)? {
            0 => {
                let end = from + filled as u64;
                let words = format!("the file ends at {end}, in the middle of what was to be read");
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, words));
            }
            count => filled += count,
        }
    }
    Ok(())
}

/// The start of the line at `offset`, for the record of rejected lines.
pub(crate) fn line_start(file: &dyn DiskFile, offset: u64) -> io::Result<Vec<u8>> {
    let mut line = vec![0; REJECTED_LINE_BYTES_MAX];
    let mut filled = 0;
    while filled < line.len() {
        match file.read_at(&mut line[filled..], offset + filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    line.truncate(filled);
    line.truncate(memchr(b'\n', &line).unwrap_or(line.len()));
    Ok(file_start(&line, offset).to_vec())
}
