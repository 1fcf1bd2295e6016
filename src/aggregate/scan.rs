//! Aggregation of the lines of a chunk of a file. The only I/O is reading the file.
//!
//! A range is divided into chunks by size, without a search for line ends: a line belongs to the chunk
//! that contains its first byte. The partial aggregates and checksums of neighbouring chunks join
//! without a gap, so the totals do not depend on the chunk size. A read error ends the scan of the
//! chunk; nothing of it is applied.

use std::io;
use std::sync::Arc;

use crc32fast::Hasher;
use memchr::{memchr, memrchr};

use super::REJECTED_LINES_MAX;
use super::delta::{IdEvents, REJECTED_LINE_BYTES_MAX, Rejected, signed};
use super::sharded_totals::{ShardBuffer, ShardedTotals};
use crate::data_dir::disk::{self, DiskFile};
use crate::data_dir::segment::Label;
use crate::event::{Event, Kind, LINE_BYTES_MAX, Plain, without_bom};

/// Bytes per read: a block stays in a core's cache until it is parsed.
const BLOCK_LENGTH: usize = 256 << 10;
const BLOCK: u64 = BLOCK_LENGTH as u64;
/// Bytes of the first read, and of each further read, for a line that continues past its chunk.
const LINE_END_BLOCK: u64 = 1 << 10;
const LONG_LINE_BLOCK: u64 = 64 << 10;

/// A part of a range, aggregated by one thread.
#[derive(Clone)]
pub(crate) struct Chunk {
    pub(crate) file: Arc<dyn DiskFile>,
    /// The start of the range, which is a line start.
    pub(crate) range_start: u64,
    /// The end of the range: a line end, or the end of the file.
    pub(crate) range_end: u64,
    /// The chunk consists of the lines that start in `[start, end)`.
    pub(crate) start: u64,
    /// See `start`.
    pub(crate) end: u64,
}

impl Chunk {
    /// The range `[from, to)` as one chunk.
    pub(super) fn whole(file: &Arc<dyn DiskFile>, from: u64, to: u64) -> Self {
        Self {
            file: Arc::clone(file),
            range_start: from,
            range_end: to,
            start: from,
            end: to,
        }
    }
}

/// The aggregate of a chunk's lines, except for the sums per user.
#[derive(Default)]
pub(crate) struct PartialAggregate {
    /// The CRC-32 and total length of the chunk's lines.
    pub(crate) checksum: Hasher,
    pub(crate) lines: u64,
    /// The first [`REJECTED_LINES_MAX`] invalid lines.
    pub(crate) rejected: Vec<Rejected>,
    pub(crate) rejected_count: u64,
    /// The sum of the signed micros of all events, modulo 2^64.
    pub(crate) net_check: i64,
    /// Events with an id; the sums per user have them, too.
    pub(crate) with_id: IdEvents,
}

impl PartialAggregate {
    /// The total length of the chunk's lines in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.checksum.total_len()
    }

    /// The maximum memory in bytes until it is applied.
    pub(crate) fn memory_bytes(&self) -> usize {
        let rejected =
            |line: &Rejected| size_of::<Rejected>() + line.reason.len() + line.line.len();
        self.with_id.memory_bytes() + self.rejected.iter().map(rejected).sum::<usize>()
    }

    /// Adds the partial aggregate that directly follows.
    pub(crate) fn append(&mut self, next: Self) {
        self.checksum.combine(&next.checksum);
        self.lines += next.lines;
        self.rejected_count += next.rejected_count;
        self.net_check = self.net_check.wrapping_add(next.net_check);
        let room = rejected_max().saturating_sub(self.rejected.len());
        self.rejected.extend(next.rejected.into_iter().take(room));
        if self.with_id.is_empty() {
            self.with_id = next.with_id;
        } else {
            self.with_id.append(&next.with_id);
        }
    }

    #[inline]
    fn count(&mut self, kind: Kind, amount_micros: u64) {
        self.lines += 1;
        self.net_check = self.net_check.wrapping_add(signed(kind, amount_micros));
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

/// The buffer of one scanning thread, reused for each chunk.
pub(crate) struct ChunkScanner {
    buffer: Vec<u8>,
}

impl ChunkScanner {
    /// The maximum memory in bytes that it keeps between chunks.
    pub(crate) const MEMORY_BYTES: usize = 2 * BLOCK_LENGTH;

    pub(crate) fn new() -> Self {
        Self { buffer: Vec::new() }
    }

    /// Aggregates the lines of a chunk; the events of users are added to `users`, or to a buffer of it.
    /// After an error, some of them may be there.
    pub(crate) fn scan(
        &mut self,
        chunk: &Chunk,
        users: &ShardedTotals,
    ) -> io::Result<PartialAggregate> {
        let mut partial = PartialAggregate::default();
        let mut shards = users.buffer();
        let mut sink = Sink {
            partial: &mut partial,
            users,
            shards: &mut shards,
        };
        let buffer = &mut self.buffer;
        // The byte before the chunk shows whether a line starts at its start.
        let mut at = chunk.start - u64::from(chunk.start > chunk.range_start);
        let mut in_line_before = at < chunk.start;
        // The number of bytes at the start of the buffer that belong to an unfinished line.
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
        users.keep_buffer(shards);
        Ok(partial)
    }
}

/// Reads `[from, to)` of the file into the buffer, after the first `keep` bytes.
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
    disk::read_exactly(file, from, &mut buffer[keep..length])
}

/// The destination of the lines of a chunk.
struct Sink<'s> {
    partial: &'s mut PartialAggregate,
    users: &'s ShardedTotals,
    shards: &'s mut ShardBuffer,
}

impl Sink<'_> {
    /// Adds complete lines, each of which ends in `\n`.
    fn lines(&mut self, mut bytes: &[u8], offset: u64) {
        let end = offset + bytes.len() as u64;
        while !bytes.is_empty() {
            let offset = end - bytes.len() as u64;
            match Event::plain_first(bytes) {
                Some((plain, after)) if self.plain(plain, offset) => bytes = after,
                _ => {
                    let newline = memchr(b'\n', bytes).unwrap_or(bytes.len());
                    self.line(&bytes[..newline], offset);
                    bytes = bytes.get(newline + 1..).unwrap_or_default();
                }
            }
        }
    }

    /// Adds a plain event. Returns false if its strings are not text, and adds nothing; printable ASCII always
    /// is.
    #[inline]
    fn plain(&mut self, plain: Plain<'_>, offset: u64) -> bool {
        match plain {
            Plain {
                user_id,
                kind,
                amount_micros,
                id: None,
            } => {
                self.partial.count(kind, amount_micros);
                self.shards.count(self.users, user_id, kind, amount_micros);
                true
            }
            _ => plain
                .event()
                .map(|event| self.event(&event, offset))
                .is_some(),
        }
    }

    #[inline]
    fn event(&mut self, event: &Event<'_>, offset: u64) {
        self.partial.count(event.kind, event.amount_micros);
        self.shards.count(
            self.users,
            event.user_id.as_bytes(),
            event.kind,
            event.amount_micros,
        );
        if let Some(id) = &event.id {
            self.partial.with_id.push(offset, id, event);
        }
    }

    /// Adds one line, without its `\n`. It is seldom plain: [`Self::lines`] has tried.
    fn line(&mut self, line: &[u8], offset: u64) {
        let line = file_start(line, offset);
        match Event::parse_full(line) {
            Ok(event) => self.event(&event, offset),
            Err(_) if is_empty(line) => {}
            Err(error) => {
                self.partial.lines += 1;
                self.partial
                    .reject(offset, error.code, error.to_string(), line);
            }
        }
    }

    /// Adds the line that starts in the chunk and continues past it; `line` is the part read so far.
    /// At most [`STORED_LINE_BYTES_MAX`] and one byte of it are kept in memory.
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

/// The maximum length of a line that is parsed: the longest event and a label, in bytes.
pub(crate) const STORED_LINE_BYTES_MAX: usize = LINE_BYTES_MAX + Label::BYTES;

/// The line at `offset`; at the start of the file, without a byte order mark.
pub(crate) fn file_start(line: &[u8], offset: u64) -> &[u8] {
    if offset == 0 { without_bom(line) } else { line }
}

/// Whether a line has only white space. Such lines are ignored.
pub(crate) fn is_empty(line: &[u8]) -> bool {
    line.iter().all(|byte| matches!(byte, b' ' | b'\t' | b'\r'))
}

/// Reads exactly `[from, to)` into `buffer` and sets its length.
pub(crate) fn read_range(
    file: &dyn DiskFile,
    from: u64,
    to: u64,
    buffer: &mut Vec<u8>,
) -> io::Result<()> {
    buffer.resize(usize::try_from(to - from).map_err(io::Error::other)?, 0);
    disk::read_exactly(file, from, buffer)
}

/// The first [`REJECTED_LINE_BYTES_MAX`] bytes of the line at `offset`.
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
