//! Converts the body of a request to event lines.
//!
//! A body is one JSON object, a JSON array of objects, or NDJSON. The result is the lines as they are
//! appended to the file, and the errors of invalid ones. No I/O. A clean NDJSON body (no carriage
//! return, no blank line, a newline at its end, every line a valid event) is checked in place and used
//! without a copy.
//!
//! Line ends inside an object (pretty-printed JSON) are removed from its line: JSON allows them only
//! between tokens, where white space has no meaning.

#[cfg(test)]
mod tests;

use std::fmt;

use serde::de::{Deserializer as _, Error as _, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::event::{BYTE_ORDER_MARK, Event, EventError, HEAD_BYTES, InputFormat, Unsupported};

/// The maximum number of errors in [`Intake::errors`]; further ones are counted only.
pub const ERRORS_MAX: usize = 100;

/// What to do with a body that has invalid lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalid {
    /// Store nothing, and name the invalid lines.
    Refuse,
    /// Store the valid lines.
    Skip,
}

/// An invalid line of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineError {
    /// The line number from 1, blank lines included; in an array the index from 1.
    pub line: u64,
    /// Why the line is invalid.
    pub error: EventError,
}

/// The events of a body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Intake {
    /// The valid events, each as one line that ends with `\n`.
    pub lines: Vec<u8>,
    /// The number of valid events.
    pub accepted: u32,
    /// The number of invalid events.
    pub refused: u64,
    /// The errors of the first [`ERRORS_MAX`] invalid events.
    pub errors: Vec<LineError>,
    /// At least one invalid event is not JSON.
    pub syntax: bool,
    /// The format of a body without events, if it is a known one.
    pub(crate) format: Option<Unsupported>,
}

/// Why a body has no events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IntakeError {
    /// The body is empty or white space.
    Empty,
    /// The body is `[]`.
    EmptyArray,
    /// The body starts as an array and is not JSON.
    NotJson(String),
}

/// Removes a byte order mark at the start of the body; at any other place it is an error.
pub fn without_byte_order_mark(mut body: Vec<u8>) -> Vec<u8> {
    if body.starts_with(BYTE_ORDER_MARK) {
        body.drain(..BYTE_ORDER_MARK.len());
    }
    body
}

/// Reads a body without a byte order mark.
pub fn read(body: Vec<u8>) -> Result<Intake, IntakeError> {
    match body.iter().find(|byte| !is_space(**byte)) {
        None => Err(IntakeError::Empty),
        Some(b'[') => read_array(&body),
        Some(_) => Ok(read_lines(body)),
    }
}

/// Collects events that were read separately, each one as its line or its error.
pub fn of_events(events: Vec<Result<Vec<u8>, EventError>>) -> Result<Intake, IntakeError> {
    if events.is_empty() {
        return Err(IntakeError::EmptyArray);
    }
    let mut intake = Intake::default();
    for (number, event) in (1..).zip(events) {
        match event {
            Ok(line) => intake.accept(&line),
            Err(error) => intake.refuse(number, error),
        }
    }
    Ok(intake)
}

/// Checks whether a line is a valid event. All formats of bodies use this check, or for the first of several lines
/// [`after_clean_line`], which accepts the same lines.
fn check(line: &[u8]) -> Result<(), EventError> {
    // The strings of a plain line are not needed as text.
    if Event::plain(line).is_some() {
        return Ok(());
    }
    Event::parse_full(line).map(drop)
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

/// Removes the white space around a line. Only the white space of JSON is removed; any other makes the
/// line invalid.
fn trim(text: &[u8]) -> &[u8] {
    let is_text = |byte: &u8| !is_space(*byte);
    let start = text.iter().position(is_text).unwrap_or(text.len());
    let end = text
        .iter()
        .rposition(is_text)
        .map_or(start, |last| last + 1);
    &text[start..end]
}

impl Intake {
    fn refuse(&mut self, line: u64, error: EventError) {
        self.refused += 1;
        self.syntax |= error.is_syntax();
        if self.errors.len() < ERRORS_MAX {
            self.errors.push(LineError { line, error });
        }
    }

    /// Appends the text of an event as one line.
    fn accept(&mut self, text: &[u8]) {
        let mut rest = text;
        while let Some(end) = memchr::memchr2(b'\n', b'\r', rest) {
            self.lines.extend_from_slice(&rest[..end]);
            rest = &rest[end + 1..];
        }
        self.lines.extend_from_slice(rest);
        self.lines.push(b'\n');
        self.accepted += 1;
    }
}

/// Reads NDJSON, or one object over several lines. If no line is an event, the format of the body is
/// determined.
fn read_lines(body: Vec<u8>) -> Intake {
    let clean = clean_prefix(&body);
    if clean.bytes == body.len() {
        return Intake {
            lines: body,
            accepted: clean.lines,
            ..Intake::default()
        };
    }
    if clean.bytes == 0 && check(trim(&body)).is_ok() {
        return one_object(body);
    }
    let format = if clean.bytes == 0 {
        format_of(&body)
    } else {
        None
    };
    if let Some(format) = &format
        && let Some(error) = error_of_wrapper(format, &body)
    {
        // Over several lines. Some of them may be events, so they are not read one by one.
        let mut intake = Intake {
            format: Some(format.clone()),
            ..Intake::default()
        };
        intake.refuse(1, error);
        return intake;
    }
    read_each_line(&body, &clean, format)
}

/// Reads the lines after the `clean` ones one by one. `format` is what the body is if no line is an event.
fn read_each_line(body: &[u8], clean: &Clean, format: Option<Unsupported>) -> Intake {
    let mut intake = Intake {
        lines: Vec::with_capacity(body.len() + 1),
        accepted: clean.lines,
        ..Intake::default()
    };
    intake.lines.extend_from_slice(&body[..clean.bytes]);
    let mut first_error = None;
    let mut line_number = u64::from(clean.lines);
    for line in body[clean.bytes..].split(|byte| *byte == b'\n') {
        line_number += 1;
        let text = trim(line);
        if text.is_empty() {
            continue;
        }
        match check(text) {
            Ok(()) => intake.accept(text),
            Err(error) => {
                first_error.get_or_insert((line_number, error.is_syntax()));
                intake.refuse(line_number, error);
            }
        }
    }
    if intake.accepted == 0 {
        intake.format = format;
        if first_error.is_some_and(|(_, syntax)| syntax) {
            whole_object(body, &mut intake);
        }
    }
    intake
}

/// The error in the first line of a wrapper, an object with events in an array, that is spread over several
/// lines.
fn error_of_wrapper(format: &Unsupported, body: &[u8]) -> Option<EventError> {
    let first = trim(body).split(|byte| *byte == b'\n').next()?;
    let error = check(trim(first)).err()?;
    (format.is_wrapper() && error.is_syntax()).then_some(error)
}

/// A body that is one valid event, as its line. If only the line end is missing, the text is not copied.
fn one_object(mut body: Vec<u8>) -> Intake {
    let text = trim(&body);
    if text.len() < body.len() || memchr::memchr2(b'\n', b'\r', text).is_some() {
        let mut intake = Intake::default();
        intake.accept(text);
        return intake;
    }
    body.push(b'\n');
    Intake {
        lines: body,
        accepted: 1,
        ..Intake::default()
    }
}

/// The format of a body that is not JSON Lines, from its first bytes.
fn format_of(body: &[u8]) -> Option<Unsupported> {
    match InputFormat::of(&body[..body.len().min(HEAD_BYTES)]) {
        InputFormat::Unsupported(unsupported) => Some(unsupported),
        InputFormat::Objects => Some(Unsupported::OBJECTS),
        InputFormat::Joined => Some(Unsupported::JOINED),
        InputFormat::Gzip => Some(Unsupported::GZIP_BODY),
        InputFormat::Lines | InputFormat::Array => None,
    }
}

/// Handles a body without a valid line whose first line is not JSON. If the body as a whole is JSON, it
/// is one invalid event over several lines, and its lines are not reported separately.
fn whole_object(body: &[u8], intake: &mut Intake) {
    if let Err(error) = check(trim(body))
        && !error.is_syntax()
    {
        *intake = Intake::default();
        intake.refuse(1, error);
    }
}

/// The part of a body that needs no change.
struct Clean {
    bytes: usize,
    lines: u32,
}

/// The longest prefix of the body whose lines are complete, valid and need no change.
fn clean_prefix(body: &[u8]) -> Clean {
    let mut lines = 0;
    let mut rest = body;
    while let Some(after) = after_clean_line(rest) {
        rest = after;
        lines += 1;
    }
    Clean {
        bytes: body.len() - rest.len(),
        lines,
    }
}

/// The text after the first line, if that line is complete, valid and needs no change.
fn after_clean_line(lines: &[u8]) -> Option<&[u8]> {
    // The strings of a plain line are not needed as text.
    if let Some((_, after)) = Event::plain_first(lines) {
        return Some(after);
    }
    let (line, after) = lines.split_at_checked(memchr::memchr(b'\n', lines)? + 1)?;
    // A carriage return can be removed only by copying the lines.
    (memchr::memchr(b'\r', line).is_none() && Event::parse_full(line).is_ok()).then_some(after)
}

fn read_array(body: &[u8]) -> Result<Intake, IntakeError> {
    let not_json = |detail: String| IntakeError::NotJson(detail);
    let text = std::str::from_utf8(body)
        .map_err(|error| not_json(format!("not UTF-8 at byte {}", error.valid_up_to() + 1)))?;
    let mut intake = Intake::default();
    let mut json = serde_json::Deserializer::from_str(text);
    json.deserialize_seq(Elements(&mut intake))
        .map_err(|error| not_json(format!("not JSON: {error}")))?;
    json.end().map_err(|_| {
        not_json(
            "not JSON: there is more after the end of the array; send one array in a request, or the output of `jq -c '.[]' FILE`".to_owned(),
        )
    })?;
    if intake.accepted == 0 && intake.refused == 0 {
        return Err(IntakeError::EmptyArray);
    }
    Ok(intake)
}

/// Reads the elements of an array one by one, so that a long array needs no list of them.
struct Elements<'i>(&'i mut Intake);

impl<'de> Visitor<'de> for Elements<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of events")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        let mut number = 0;
        while let Some(element) = elements.next_element::<&RawValue>()? {
            number += 1;
            let text = element.get().as_bytes();
            match check(text) {
                Ok(()) => self.0.accept(text),
                Err(error) => self.0.refuse(number, error),
            }
            if self.0.accepted == u32::MAX {
                return Err(A::Error::custom("too many events"));
            }
        }
        Ok(())
    }
}
