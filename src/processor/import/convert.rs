//! Conversion to JSON Lines: decompresses gzip, and writes each object of JSON arrays, or of JSON text over
//! several lines, to a line of its own. In one pass and in bounded memory: a buffer and one value.
//!
//! The conversion is deterministic. A source that is named again, even after a rebuild, is recognised by
//! comparing the result with the file that was imported. It must therefore not change between versions.
//!
//! An error leaves an incomplete output file, which the caller removes.

mod values;

use std::io::{self, BufRead, BufReader, Read};

use crc32fast::Hasher;
use flate2::bufread::MultiGzDecoder;

use self::values::values;
use crate::data_dir::disk::DiskFile;
use crate::event::{HEAD_BYTES, InputFormat};

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::LINE_BYTES_MAX;
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
