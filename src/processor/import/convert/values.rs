//! Reads JSON arrays, or objects over several lines, and writes each element or object as a line.

use std::io::BufRead;

use serde::de::IgnoredAny;

use super::{ConvertError, Writing};
use crate::event::{LINE_BYTES_MAX, without_bom};

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
pub(super) fn values(
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
