//! Conversion to JSON Lines: decompresses gzip, and writes each object of JSON arrays, or of JSON text over
//! several lines, to a line of its own. In one pass and in bounded memory: a buffer and one value.
//!
//! The conversion is deterministic. A source that is named again, even after a rebuild, is recognised by
//! comparing the result with the file that was imported. It must therefore not change between versions.
//!
//! An error leaves an incomplete output file, which the caller removes.

use std::io::{self, BufRead, BufReader, Read};

use crc32fast::Hasher;
use flate2::bufread::MultiGzDecoder;
use serde::de::IgnoredAny;

use crate::data_dir::disk::DiskFile;
use crate::event::{HEAD_BYTES, InputFormat, LINE_BYTES_MAX, without_bom};

const BUFFER_BYTES: usize = 256 << 10;

/// A file could not be converted.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConvertError {
    /// The source could not be read.
    #[error("cannot read the file: {0}")]
    Read(io::Error),
    /// The result could not be written.
    #[error("cannot write the converted file: {0}")]
    Write(io::Error),
    /// It cannot be decompressed.
    #[error(
        "it is compressed with gzip, but incomplete or damaged ({0}); nothing was stored. `gzip -t` checks it; get it again from its source"
    )]
    Damaged(io::Error),
    /// The content is invalid or has an unsupported format; the reason and what to do.
    #[error("{0}")]
    Content(String),
}

impl ConvertError {
    /// An error of the operating system is a failed read; any other comes from the decompressor.
    fn reading(error: io::Error) -> Self {
        if error.raw_os_error().is_some() {
            Self::Read(error)
        } else {
            Self::Damaged(error)
        }
    }
}

/// The first [`HEAD_BYTES`] bytes of a file, for [`InputFormat::of`].
pub(in crate::processor) fn head(file: &dyn DiskFile) -> io::Result<Vec<u8>> {
    let mut reading = Reading {
        file,
        at: 0,
        on_read: &mut |_| {},
    };
    let mut head = Vec::new();
    reading
        .by_ref()
        .take(HEAD_BYTES as u64)
        .read_to_end(&mut head)?;
    Ok(head)
}

/// Reads a file from its beginning; `on_read` is called with the number of bytes read so far.
struct Reading<'r> {
    file: &'r dyn DiskFile,
    at: u64,
    on_read: &'r mut dyn FnMut(u64),
}

impl Read for Reading<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.at)?;
        self.at += count as u64;
        (self.on_read)(self.at);
        Ok(count)
    }
}

/// Writes to a file from its beginning, buffered.
pub(super) struct Writing<'w> {
    file: &'w dyn DiskFile,
    at: u64,
    buffer: Vec<u8>,
    hasher: Hasher,
}

impl<'w> Writing<'w> {
    pub(super) fn to(file: &'w dyn DiskFile) -> Self {
        Self {
            file,
            at: 0,
            buffer: Vec::with_capacity(BUFFER_BYTES),
            hasher: Hasher::new(),
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        if self.buffer.len() + bytes.len() > BUFFER_BYTES {
            self.flush()?;
        }
        if bytes.len() >= BUFFER_BYTES {
            self.file.write_all_at(bytes, self.at)?;
            self.at += bytes.len() as u64;
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        Ok(())
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.buffer, self.at)?;
        self.at += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

/// Converts `from`, which has the format `looks`, to JSON Lines in `to`.
pub(super) fn convert(
    from: &dyn DiskFile,
    format: &InputFormat,
    to: &dyn DiskFile,
    on_read: &mut dyn FnMut(u64),
) -> Result<(), ConvertError> {
    let reading = Reading {
        file: from,
        at: 0,
        on_read,
    };
    let mut input = BufReader::with_capacity(BUFFER_BYTES, reading);
    let mut out = Writing::to(to);
    if *format == InputFormat::Gzip {
        let mut unpacked = MultiGzDecoder::new(input);
        let mut head = Vec::new();
        let mut first = unpacked.by_ref().take(HEAD_BYTES as u64);
        first
            .read_to_end(&mut head)
            .map_err(ConvertError::reading)?;
        let format = InputFormat::of(&head);
        let rest = io::Cursor::new(head).chain(unpacked);
        text(
            BufReader::with_capacity(BUFFER_BYTES, rest),
            &format,
            &mut out,
        )?;
    } else {
        text(&mut input, format, &mut out)?;
    }
    out.flush().map_err(ConvertError::Write)
}

/// Converts text that is already decompressed.
fn text(
    mut input: impl BufRead,
    format: &InputFormat,
    out: &mut Writing<'_>,
) -> Result<(), ConvertError> {
    match format {
        InputFormat::Lines => loop {
            let block = input.fill_buf().map_err(ConvertError::reading)?;
            let length = block.len();
            if length == 0 {
                return Ok(());
            }
            out.write(block).map_err(ConvertError::Write)?;
            input.consume(length);
        },
        InputFormat::Array | InputFormat::Objects | InputFormat::Joined => {
            values(input, *format == InputFormat::Array, out)
        }
        InputFormat::Gzip => Err(ConvertError::Content(
            "it is compressed with gzip twice; nothing was stored. Decompress it once".to_owned(),
        )),
        InputFormat::Unsupported(unsupported) => Err(ConvertError::Content(format!(
            "its decompressed content looks like {}, not JSON Lines; nothing was stored. Decompress it; {}",
            unsupported.what,
            unsupported.cure(std::path::Path::new("NEW.jsonl"))
        ))),
    }
}

/// The tokens that may follow between values.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    /// The `[` of an array, or an object outside of arrays.
    Start,
    /// The first value of an array, or its `]`.
    FirstOrEnd,
    /// A value of an array.
    Value,
    /// A comma, or the `]` of the array.
    CommaOrEnd,
}

/// Writes each element of the arrays, or each object, as a line.
fn values(
    mut input: impl BufRead,
    arrays: bool,
    out: &mut Writing<'_>,
) -> Result<(), ConvertError> {
    let mut values = Values {
        arrays,
        next: Next::Start,
        value: Value::default(),
        at: 0,
        count: 0,
    };
    loop {
        let block = input.fill_buf().map_err(ConvertError::reading)?;
        if block.is_empty() {
            return values.end();
        }
        let length = block.len();
        // Only the first block can begin with a byte order mark, and it has all of it.
        let bytes = if values.at == 0 {
            without_bom(block)
        } else {
            block
        };
        values.at += (length - bytes.len()) as u64;
        for &byte in bytes {
            values.push(byte, out)?;
        }
        input.consume(length);
    }
}

/// The state of reading arrays or objects.
struct Values {
    arrays: bool,
    next: Next,
    /// The value that is being read; its depth is 0 between values.
    value: Value,
    /// The number of bytes read.
    at: u64,
    /// The number of values read.
    count: u64,
}

impl Values {
    /// Reads a byte, and writes the value that ends with it.
    #[inline]
    fn push(&mut self, byte: u8, out: &mut Writing<'_>) -> Result<(), ConvertError> {
        self.at += 1;
        if self.value.depth == 0 {
            return self.between(byte);
        }
        let at = self.at;
        self.value
            .push(byte)
            .map_err(|reason| refused(self.count + 1, at, reason))?;
        if self.value.depth == 0 {
            self.count += 1;
            let count = self.count;
            let line = self
                .value
                .line()
                .map_err(|error| refused(count, at, &format!("is not JSON ({error})")))?;
            out.write(line).map_err(ConvertError::Write)?;
            self.next = if self.arrays {
                Next::CommaOrEnd
            } else {
                Next::Start
            };
        }
        Ok(())
    }

    /// Reads a byte between two values.
    fn between(&mut self, byte: u8) -> Result<(), ConvertError> {
        let invalid = |value, what| Err(refused(value, self.at, what));
        self.next = match (byte, self.next) {
            (b' ' | b'\t' | b'\r' | b'\n', next) => next,
            (b'[', Next::Start) if self.arrays => Next::FirstOrEnd,
            (b']', Next::FirstOrEnd | Next::CommaOrEnd) => Next::Start,
            (b',', Next::CommaOrEnd) => Next::Value,
            (b'{', next @ (Next::FirstOrEnd | Next::Value)) => self.value.begin(next),
            (b'{', Next::Start) if !self.arrays => self.value.begin(Next::Start),
            (_, Next::FirstOrEnd | Next::Value) => {
                return invalid(self.count + 1, "is not an object");
            }
            (_, Next::CommaOrEnd) => {
                return invalid(self.count, "is not followed by a comma or `]`");
            }
            (_, Next::Start) => return invalid(self.count, "is followed by something else"),
        };
        Ok(())
    }

    /// Checks that the input ends after a complete array or object.
    fn end(&self) -> Result<(), ConvertError> {
        if self.value.depth > 0 || self.next != Next::Start {
            return Err(refused(
                self.count,
                self.at,
                "is the last one: the file ends before the array or object does, so it is incomplete",
            ));
        }
        Ok(())
    }
}

/// The error for the value with this number, which ends at or before byte `at`.
fn refused(value: u64, at: u64, what: &str) -> ConvertError {
    ConvertError::Content(format!(
        "it looks like JSON values, but value {value} (at byte {at}) {what}; nothing was stored. Correct the file, then name it again"
    ))
}

/// An object that is being read. White space between tokens is reduced to one space.
#[derive(Default)]
struct Value {
    bytes: Vec<u8>,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Value {
    fn begin(&mut self, next: Next) -> Next {
        self.bytes.clear();
        self.bytes.push(b'{');
        self.depth = 1;
        next
    }

    fn push(&mut self, byte: u8) -> Result<(), &'static str> {
        if self.bytes.len() >= LINE_BYTES_MAX {
            return Err("is longer than a line may be (8 MiB)");
        }
        if self.in_string {
            if self.escaped {
                self.escaped = false;
            } else if byte == b'\\' {
                self.escaped = true;
            } else if byte == b'"' {
                self.in_string = false;
            } else if byte == b'\n' {
                return Err("has a line end within a string");
            }
        } else {
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => self.depth -= 1,
                b' ' | b'\t' | b'\r' | b'\n' => {
                    if self.bytes.last() != Some(&b' ') {
                        self.bytes.push(b' ');
                    }
                    return Ok(());
                }
                _ => {}
            }
        }
        self.bytes.push(byte);
        Ok(())
    }

    /// The complete object and `\n`; an error if it is not valid JSON.
    fn line(&mut self) -> Result<&[u8], serde_json::Error> {
        serde_json::from_slice::<IgnoredAny>(&self.bytes)?;
        self.bytes.push(b'\n');
        Ok(&self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn converted(source: &[u8]) -> Result<String, String> {
        let io = |error: io::Error| error.to_string();
        let mut from = tempfile::tempfile().map_err(io)?;
        from.write_all(source).map_err(io)?;
        let to = tempfile::tempfile().map_err(io)?;
        let format = InputFormat::of(&head(&from).map_err(io)?);
        convert(&from, &format, &to, &mut |_| {}).map_err(|error| error.to_string())?;
        String::from_utf8(head(&to).map_err(io)?).map_err(|error| error.to_string())
    }

    #[test]
    fn values_in_any_layout_become_lines() {
        for source in [
            r#"[{"a":1},{"b":"]},{\"\\"}]"#,
            "\u{feff} [\n{\"a\":1}\n, {\"b\":\"]},{\\\"\\\\\"}\n]\n",
            "[{\"a\":1}]\n[]\n[{\"b\":\"]},{\\\"\\\\\"}]",
        ] {
            let lines = converted(source.as_bytes());
            assert_eq!(
                lines.as_deref(),
                Ok("{\"a\":1}\n{\"b\":\"]},{\\\"\\\\\"}\n"),
                "{source}"
            );
        }
        let pretty = "{\n  \"a\": [\r\n    1,\t2 ]\n}\n{\n\"b\": 1}";
        assert_eq!(
            converted(pretty.as_bytes()).as_deref(),
            Ok("{ \"a\": [ 1, 2 ] }\n{ \"b\": 1}\n")
        );
        assert_eq!(converted(b"[]").as_deref(), Ok(""));
    }

    #[test]
    fn anything_but_complete_arrays_of_objects_is_rejected() {
        for (source, expected) in [
            (r#"[{"a":1},{"b":2}"#, "incomplete"),
            (r#"[{"a":1},"#, "incomplete"),
            (
                r#"[{"a":1} {"b":2}]"#,
                "value 1 (at byte 10) is not followed by",
            ),
            (r#"[{"a":1},]"#, "value 2 (at byte 10) is not an object"),
            (r#"[{"a":1},7]"#, "value 2 (at byte 10) is not an object"),
            (r#"[{"a":1 2}]"#, "value 1 (at byte 10) is not JSON"),
            (r#"[{"a":1]]"#, "value 1 (at byte 8) is not JSON"),
            (r#"[{"a":1}] x"#, "followed by something else"),
            ("[{\"a\":\"\n\"}]", "line end within a string"),
        ] {
            let refused = converted(source.as_bytes()).expect_err(source);
            assert!(refused.contains(expected), "{source}: {refused}");
        }
        let long = format!("[{{\"a\":\"{}\"}}]", "x".repeat(LINE_BYTES_MAX));
        let refused = converted(long.as_bytes()).expect_err("too long");
        assert!(refused.contains("longer than a line"), "{refused}");
    }
}
