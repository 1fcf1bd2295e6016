//! From a request's body to whole, checked lines.
//!
//! A body is one JSON object, a JSON array of them, or NDJSON. Pure, no I/O: bytes in, the lines
//! as they go to the file and the errors of those that can't, out. A clean NDJSON body (no
//! carriage return, no blank line, a newline at its end, every line an event) *is* its lines: it
//! is checked where it lies and handed on without a copy.
//!
//! Raw line ends inside an object (pretty-printed JSON) are left out of its line: JSON has them
//! only between tokens, where white space never matters.

use std::fmt;

use serde::de::{Deserializer as _, Error as _, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::event::BYTE_ORDER_MARK;
use crate::event::{Event, EventError};

/// How many refused lines are described one by one; the rest is counted.
pub const ERRORS_MAX: usize = 100;

/// What becomes of a body in which some lines are no events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalid {
    /// Nothing of it is taken.
    Refuse,
    /// The good lines are taken.
    Skip,
}

/// One line that is no event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineError {
    /// Which line, from 1, blank ones counted; in an array the place.
    pub line: u64,
    /// What is wrong with it.
    pub error: EventError,
}

/// A body, read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Intake {
    /// The lines that are events, each ended by `\n`.
    pub lines: Vec<u8>,
    /// How many.
    pub accepted: u32,
    /// How many are not.
    pub refused: u64,
    /// The first [`ERRORS_MAX`] of those.
    pub errors: Vec<LineError>,
    /// At least one line, or the body as a whole, is not even JSON.
    pub syntax: bool,
}

/// Why a body holds no lines at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IntakeError {
    /// Nothing, or white space only.
    Empty,
    /// `[]`
    EmptyArray,
    /// It begins as an array and is not JSON.
    NotJson(String),
}

/// The body without a byte order mark at its very start; anywhere else it is a fault.
pub fn without_byte_order_mark(mut body: Vec<u8>) -> Vec<u8> {
    if body.starts_with(BYTE_ORDER_MARK) {
        body.drain(..BYTE_ORDER_MARK.len());
    }
    body
}

/// Reads a body, in which there is no byte order mark.
pub fn read(body: Vec<u8>) -> Result<Intake, IntakeError> {
    match body.iter().find(|byte| !is_space(**byte)) {
        None => Err(IntakeError::Empty),
        Some(b'[') => read_array(&body),
        Some(_) => Ok(read_lines(body)),
    }
}

/// Takes events that were read one by one, each as its line or as what is wrong with it.
pub fn of_events(events: Vec<Result<Vec<u8>, EventError>>) -> Result<Intake, IntakeError> {
    if events.is_empty() {
        return Err(IntakeError::EmptyArray);
    }
    let mut intake = Intake::default();
    for (place, event) in (1..).zip(events) {
        match event {
            Ok(line) => intake.take(&line),
            Err(error) => intake.refuse(place, error),
        }
    }
    Ok(intake)
}

/// Whether a line is an event: the one place that decides what is taken.
fn check(line: &[u8]) -> Result<(), EventError> {
    Event::parse(line).map(drop)
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

/// Without the white space around it; what JSON does not call so is a fault of the line.
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

    /// Appends one event's text as one line.
    fn take(&mut self, text: &[u8]) {
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

/// NDJSON, or one object over several lines.
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
        let mut intake = Intake::default();
        intake.take(trim(&body));
        return intake;
    }
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
            Ok(()) => intake.take(text),
            Err(error) => {
                first_error.get_or_insert((line_number, error.is_syntax()));
                intake.refuse(line_number, error);
            }
        }
    }
    if intake.accepted == 0 && first_error.is_some_and(|(_, syntax)| syntax) {
        whole_object(&body, &mut intake);
    }
    intake
}

/// Of a body none of whose lines is an event and whose first line is not JSON: if it is one
/// object over several lines, it is that one object that is no event, not each of its lines.
fn whole_object(body: &[u8], intake: &mut Intake) {
    if let Err(error) = check(trim(body))
        && !error.is_syntax()
    {
        *intake = Intake::default();
        intake.refuse(1, error);
    }
}

/// How much of a body is taken as it is.
struct Clean {
    bytes: usize,
    lines: u32,
}

/// The longest run of whole lines at the body's start that are events and need no change.
fn clean_prefix(body: &[u8]) -> Clean {
    let mut clean = Clean { bytes: 0, lines: 0 };
    // A carriage return may only be left out by copying.
    let until = memchr::memchr(b'\r', body).unwrap_or(body.len());
    for end in memchr::memchr_iter(b'\n', &body[..until]) {
        if check(&body[clean.bytes..end]).is_err() {
            break;
        }
        clean.bytes = end + 1;
        clean.lines += 1;
    }
    clean
}

fn read_array(body: &[u8]) -> Result<Intake, IntakeError> {
    let not_json = |detail: String| IntakeError::NotJson(detail);
    let text = std::str::from_utf8(body)
        .map_err(|error| not_json(format!("not UTF-8 at byte {}", error.valid_up_to() + 1)))?;
    let mut intake = Intake::default();
    let mut json = serde_json::Deserializer::from_str(text);
    json.deserialize_seq(Elements(&mut intake))
        .and_then(|()| json.end())
        .map_err(|error| not_json(format!("not JSON: {error}")))?;
    if intake.accepted == 0 && intake.refused == 0 {
        return Err(IntakeError::EmptyArray);
    }
    Ok(intake)
}

/// Takes an array's elements as they come, so that a long one costs no list of them.
struct Elements<'i>(&'i mut Intake);

impl<'de> Visitor<'de> for Elements<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of events")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        let mut place = 0;
        while let Some(element) = elements.next_element::<&RawValue>()? {
            place += 1;
            let text = element.get().as_bytes();
            match check(text) {
                Ok(()) => self.0.take(text),
                Err(error) => self.0.refuse(place, error),
            }
            if self.0.accepted == u32::MAX {
                return Err(A::Error::custom("too many events"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = r#"{"userId":"u","name":"add_revenue","value":1}"#;
    const BAD: &str = r#"{"userId":"u","name":"add_revenue","value":-1}"#;

    fn lines(body: &str) -> (String, u32, Vec<(u64, &'static str)>) {
        let intake = read(body.as_bytes().to_vec()).expect(body);
        let errors = intake
            .errors
            .iter()
            .map(|e| (e.line, e.error.code))
            .collect();
        let lines = String::from_utf8(intake.lines).expect("text");
        (lines, intake.accepted, errors)
    }

    #[test]
    fn a_clean_body_is_its_lines_and_is_not_copied() {
        let body = format!("{ONE}\n{ONE}\n").into_bytes();
        let at = body.as_ptr();
        let intake = read(body).expect("lines");
        assert_eq!(intake.lines.as_ptr(), at);
        assert_eq!((intake.accepted, intake.refused), (2, 0));
    }

    #[test]
    fn what_is_not_clean_becomes_clean() {
        let two = format!("{ONE}\n{ONE}\n");
        for body in [
            format!("{ONE}\n{ONE}"),
            format!("{ONE}\r\n{ONE}\r\n"),
            format!("\n\n{ONE}\n \t\r\n{ONE}\n\n"),
            format!("[{ONE},{ONE}]"),
            format!(" \r\n[\n {ONE} ,\r\n{ONE}\n]\n"),
        ] {
            assert_eq!(lines(&body), (two.clone(), 2, vec![]), "{body:?}");
        }
        assert_eq!(lines(ONE), (format!("{ONE}\n"), 1, vec![]));
    }

    #[test]
    fn an_object_over_several_lines_is_one_line() {
        let pretty = "{\r\n  \"userId\": \"u\",\n  \"name\": \"add_revenue\",\n  \"value\": 1\n}\n";
        let one = "{  \"userId\": \"u\",  \"name\": \"add_revenue\",  \"value\": 1}\n";
        assert_eq!(lines(pretty), (one.into(), 1, vec![]));
        let array = format!("[{pretty},{ONE}]");
        assert_eq!(lines(&array), (format!("{one}{ONE}\n"), 2, vec![]));
        let bad = pretty.replace("1\n}", "-1\n}");
        assert_eq!(lines(&bad), (String::new(), 0, vec![(1, "negative")]));
    }

    #[test]
    fn a_line_that_is_no_event_is_named_by_its_number() {
        let (kept, accepted, errors) = lines(&format!("{ONE}\n\n{BAD}\n{ONE}\nnonsense\n"));
        assert_eq!((kept, accepted), (format!("{ONE}\n{ONE}\n"), 2));
        assert_eq!(errors, [(3, "negative"), (5, "not_json")]);
        let (_, _, errors) = lines(&format!("[{ONE},{BAD},7]"));
        assert_eq!(errors, [(2, "negative"), (3, "not_object")]);
        let (_, _, errors) = lines("{\n{\n");
        assert_eq!(errors, [(1, "not_json"), (2, "not_json")]);
        let (_, _, errors) = lines("7");
        assert_eq!(errors, [(1, "not_object")]);
    }

    #[test]
    fn a_form_feed_is_no_empty_line() {
        // Red if a body that holds something is neither taken nor refused.
        for body in ["\u{c}", "\n\u{c}\n["] {
            let intake = read(body.into()).expect("lines");
            assert_eq!(intake.accepted, 0);
            assert!(intake.refused > 0, "{body:?}");
        }
    }

    #[test]
    fn whole_bodies_that_are_nothing() {
        for body in ["", " \r\n\t"] {
            assert_eq!(read(body.into()), Err(IntakeError::Empty));
        }
        assert_eq!(read("[ ]".into()), Err(IntakeError::EmptyArray));
        for body in ["[", "[1,", "[1]]", "[\"\n\"]"] {
            let read = read(body.into());
            assert!(matches!(read, Err(IntakeError::NotJson(_))), "{body}");
        }
    }

    #[test]
    fn errors_are_listed_up_to_a_bound_and_counted_beyond() {
        let intake = read(format!("{BAD}\n").repeat(1000).into()).expect("lines");
        assert_eq!((intake.accepted, intake.refused), (0, 1000));
        assert_eq!(intake.errors.len(), ERRORS_MAX);
        assert!(!intake.syntax);
    }

    proptest::proptest! {
        /// Whatever the body, what is taken is whole lines, each an event, as many as counted.
        #[test]
        fn every_line_taken_is_an_event(parts in proptest::collection::vec(0..8_usize, 0..30), array: bool) {
            let pieces = [ONE, BAD, "\n", "\r\n", " ", "{", "}", "\n\n"];
            let mut body: String = parts.iter().map(|&part| pieces[part]).collect();
            if array {
                body = format!("[{}]", parts.iter().map(|&p| pieces[p]).collect::<Vec<_>>().join(","));
            }
            if let Ok(intake) = read(body.into_bytes()) {
                let lines: Vec<_> = intake.lines.split_inclusive(|b| *b == b'\n').collect();
                proptest::prop_assert_eq!(lines.len(), intake.accepted as usize);
                for line in lines {
                    proptest::prop_assert!(line.ends_with(b"\n"));
                    proptest::prop_assert!(Event::parse(&line[..line.len() - 1]).is_ok());
                }
            }
        }
    }
}
