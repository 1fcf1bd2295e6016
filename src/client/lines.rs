//! Splits an input into batches of lines, each with its number in the file.
//!
//! Owned by the thread that reads. Each element of a JSON array is a line, and its number is its
//! position in the array. Empty lines are counted, so that the numbers match the file, but not sent.
//! Memory is bounded: a batch ends at its maximum of lines or at [`BATCH_BYTES`], and of a line longer
//! than the longest event only the beginning is kept. Time is, too: an input without line ends, such as
//! `/dev/zero`, is an error after [`ENDLESS_BYTES`].

use std::ops::Range;

use super::array::{Cut, Cutter};
use super::error::SendError;
use super::format::{BYTE_ORDER_MARK, Format};
use super::input::InputSource;
use super::reading::Filled;
use crate::event::LINE_BYTES_MAX;

/// A batch ends when it exceeds this size, well below the server's default limit for a body.
const BATCH_BYTES: usize = 1 << 20;
/// A line that has not ended after this many bytes ends the reading. Shorter ones are refused one by one.
const ENDLESS_BYTES: u64 = 256 << 20;
/// Number of bytes kept of a line that is too long.
const TOO_LONG_KEPT_BYTES: usize = 1 << 10;

/// A position between two lines of the input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// Number of lines before it.
    pub(super) lines: u64,
    /// Number of inflated bytes before it.
    pub(super) bytes: u64,
    /// CRC-32 of those bytes; 0 if no checksum is kept.
    pub(super) crc32: u32,
    /// Number of raw bytes read so far, for the progress bar.
    pub(super) raw_bytes: u64,
    /// Length of the line before it if that has no line end and may still grow; else 0.
    pub(super) open_bytes: u64,
    /// Whether it is inside a JSON array.
    pub(super) in_array: bool,
}

/// One line of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// Range of the line in the batch's text, without white space around it.
    pub(super) range: Range<usize>,
    /// Number of the line in the file, from 1.
    pub(super) number: u64,
    /// Why the line is not sent; `None` if it is.
    pub(super) fault: Option<Fault>,
}

/// What is wrong with a line that is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It is too long: its length in bytes. Only its beginning was kept.
    TooLong(u64),
    /// A comma of an array has no element before or after it.
    NoElement,
    /// The array has no closing bracket.
    Unclosed,
}

/// Lines that are sent together. A batch of empty lines only has no lines.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Number of the batch in the run, from 0.
    pub(super) sequence: u64,
    /// Text of the lines.
    pub(super) text: Vec<u8>,
    /// The lines, in order.
    pub(super) lines: Vec<Line>,
    /// The position after the last line.
    pub(super) end: Place,
}

/// Whether a checksum of everything that was read is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Checksum {
    /// A checksum is kept, as for stdin.
    Kept,
    /// None is kept, because the file's bytes are covered by [`Cover`](super::cover::Cover).
    Apart,
}

pub(super) struct Batches {
    source: InputSource,
    lines_max: usize,
    /// Bytes that were read and not yet removed.
    rest: Vec<u8>,
    /// How much of `rest` was split, and how much was scanned for a line end.
    cut: usize,
    looked_at: usize,
    /// Number of bytes discarded of a line that is too long, and its beginning.
    dropped: u64,
    head: Vec<u8>,
    at: Place,
    /// Splits an input of arrays; `None` for an input of lines.
    cutter: Option<Cutter>,
    checksum: Option<crc32fast::Hasher>,
    sequence: u64,
}

impl Batches {
    /// Begins at `start`, to which `source` has been advanced.
    pub(super) fn new(
        source: InputSource,
        lines_max: u32,
        start: Place,
        checksum: Checksum,
    ) -> Self {
        Self {
            source,
            lines_max: lines_max as usize,
            rest: Vec::new(),
            cut: 0,
            looked_at: 0,
            dropped: 0,
            head: Vec::new(),
            at: start,
            cutter: None,
            checksum: match checksum {
                Checksum::Kept => Some(crc32fast::Hasher::new_with_initial_len(
                    start.crc32,
                    start.bytes,
                )),
                Checksum::Apart => None,
            },
            sequence: 0,
        }
    }

    /// The next batch; `None` at the end of the input or on a stop.
    pub(super) fn next(&mut self) -> Result<Option<Batch>, SendError> {
        let mut batch = Batch::default();
        let from = self.at.lines;
        loop {
            while self.take_next(&mut batch) {
                if batch.lines.len() >= self.lines_max || batch.text.len() >= BATCH_BYTES {
                    return Ok(Some(self.finished(batch)));
                }
            }
            self.make_room();
            if self.dropped > ENDLESS_BYTES {
                return Err(SendError::EndlessLine {
                    path: self.source.path().to_owned(),
                    line: self.at.lines + 1,
                    bytes: self.dropped,
                });
            }
            match self.source.fill(&mut self.rest)? {
                Filled::Some => {}
                Filled::Idle if self.at.lines == from => {}
                Filled::Idle => return Ok(Some(self.finished(batch))),
                Filled::End => {
                    self.take_last(&mut batch);
                    return Ok((self.at.lines > from).then(|| self.finished(batch)));
                }
            }
        }
    }

    pub(super) fn source(&self) -> &InputSource {
        &self.source
    }

    /// Takes the next complete line or element; false if more bytes are needed.
    fn take_next(&mut self, batch: &mut Batch) -> bool {
        if self.cutter.is_none()
            && !self.rest.is_empty()
            && self.source.format() == Some(Format::Arrays)
        {
            self.cutter = Some(Cutter::new(self.at.in_array));
            if self.at.bytes == 0 && self.rest.starts_with(BYTE_ORDER_MARK) {
                self.looked_at = BYTE_ORDER_MARK.len();
            }
        }
        let Some(cutter) = &mut self.cutter else {
            let Some(end) = self.line_end() else {
                return false;
            };
            self.take_line(self.cut, end, end + 1, batch);
            return true;
        };
        let cut = cutter.next(&self.rest, &mut self.looked_at);
        self.at.in_array = cutter.in_array();
        match cut {
            Cut::Element { start, end } => self.take_line(start, end, end, batch),
            Cut::Empty(at) => {
                self.take_line(at, at, at, batch);
                self.faulty(Fault::NoElement, batch);
            }
            Cut::More => return false,
        }
        true
    }

    /// Takes the last line, which has no line end.
    fn take_last(&mut self, batch: &mut Batch) {
        let whole = self.rest.len();
        let Some(cutter) = &mut self.cutter else {
            if whole > self.cut || self.dropped > 0 {
                let open_bytes = self.dropped + (whole - self.cut) as u64;
                self.take_line(self.cut, whole, whole, batch);
                self.at.open_bytes = open_bytes;
            }
            return;
        };
        let left = cutter.finish();
        if let Some(start) = left.start {
            self.take_line(start, whole, whole, batch);
        }
        if left.unclosed {
            self.at.lines += 1;
            self.faulty(Fault::Unclosed, batch);
        }
        self.at.in_array = false;
    }

    /// Adds a line that is not sent.
    fn faulty(&self, fault: Fault, batch: &mut Batch) {
        let end = batch.text.len();
        batch.lines.push(Line {
            range: end..end,
            number: self.at.lines,
            fault: Some(fault),
        });
    }

    fn line_end(&mut self) -> Option<usize> {
        let found = memchr::memchr(b'\n', &self.rest[self.looked_at..]);
        let end = found.map(|at| self.looked_at + at);
        self.looked_at = end.map_or(self.rest.len(), |end| end + 1);
        end
    }

    /// Takes the line from `start` to `end` of `rest`; the next one begins at `next`.
    fn take_line(&mut self, start: usize, end: usize, next: usize, batch: &mut Batch) {
        let line = &self.rest[start..end];
        let length = self.dropped + line.len() as u64;
        self.at.lines += 1;
        self.at.bytes += self.dropped + (next - self.cut) as u64;
        self.at.open_bytes = 0;
        if let Some(checksum) = &mut self.checksum {
            checksum.update(&self.rest[self.cut..next]);
        }
        // Of a line that is too long, the beginning.
        let mut kept = match self.dropped {
            0 => line.trim_ascii(),
            _ => self.head.trim_ascii_start(),
        };
        if self.at.lines == 1 {
            kept = kept
                .strip_prefix(BYTE_ORDER_MARK)
                .unwrap_or(kept)
                .trim_ascii();
        }
        let fault = (length > LINE_BYTES_MAX as u64).then_some(Fault::TooLong(length));
        if fault.is_some() {
            kept = &kept[..kept.len().min(TOO_LONG_KEPT_BYTES)];
        }
        if !kept.is_empty() || fault.is_some() {
            let start = batch.text.len();
            batch.text.extend_from_slice(kept);
            batch.lines.push(Line {
                range: start..batch.text.len(),
                number: self.at.lines,
                fault,
            });
            if self.cutter.is_some() {
                one_line(&mut batch.text[start..]);
            }
        }
        self.cut = next;
        self.dropped = 0;
    }

    /// Removes what was split, and all but the beginning of a line that is too long.
    fn make_room(&mut self) {
        self.rest.drain(..self.cut);
        if let Some(cutter) = &mut self.cutter {
            cutter.moved(self.cut);
        }
        self.cut = 0;
        if self.rest.len() > LINE_BYTES_MAX {
            if let Some(checksum) = &mut self.checksum {
                checksum.update(&self.rest);
            }
            if self.dropped == 0 {
                self.head.clear();
                self.head.extend(&self.rest[..TOO_LONG_KEPT_BYTES]);
            }
            self.dropped += self.rest.len() as u64;
            if let Some(cutter) = &mut self.cutter {
                cutter.moved(self.rest.len());
            }
            self.rest.clear();
        }
        self.looked_at = self.rest.len();
    }

    fn finished(&mut self, mut batch: Batch) -> Batch {
        if let Some(checksum) = &self.checksum {
            self.at.crc32 = checksum.clone().finalize();
        }
        self.at.raw_bytes = match self.source.open_file() {
            // Inflated bytes do not show how much of the file is done.
            Some((_, true)) => self.source.raw_bytes(),
            _ => self.at.bytes,
        };
        batch.end = self.at;
        batch.sequence = self.sequence;
        self.sequence += 1;
        batch
    }
}

/// Replaces the line ends in an element by tabs. Between tokens both are white space; in a string
/// neither is valid JSON.
fn one_line(text: &mut [u8]) {
    for byte in text {
        if matches!(byte, b'\n' | b'\r') {
            *byte = b'\t';
        }
    }
}

#[cfg(test)]
mod tests;
