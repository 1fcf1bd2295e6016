//! Parsing of events: a line of JSON becomes an [`Event`], or an [`EventError`] that says why not.
//!
//! The module has no I/O, no state and no thread. Amounts are converted exactly from the digits of the
//! literal to integer **micros** (10^-6 units), without floating point. [`Event::parse_full`] defines
//! the meaning of a line. The fast path accepts a subset of the lines and must return the same result.

mod amount;
mod fast;
mod fields;
mod input_format;

use std::borrow::Cow;

pub use self::amount::{AMOUNT_MICROS_MAX, MICROS_PER_UNIT, Micros};
pub(crate) use self::fast::Plain;
pub(crate) use self::input_format::{HEAD_BYTES, InputFormat, Unsupported};

use self::fields::{Fields, FieldsVisitor, NOT_OBJECT};
use serde::de::{Deserializer as _, IgnoredAny};

/// The longest user id, in bytes.
pub const USER_ID_BYTES_MAX: usize = 256;
/// The longest event id, in bytes.
pub const ID_BYTES_MAX: usize = 128;
/// The longest line, in bytes, its newline not counted.
pub const LINE_BYTES_MAX: usize = 8 << 20;
/// The UTF-8 byte order mark, which text editors and exports may write at the start of a file.
pub(crate) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Removes a byte order mark from the start of a file or request body, if there is one.
#[must_use]
pub fn without_bom(start: &[u8]) -> &[u8] {
    start.strip_prefix(BYTE_ORDER_MARK).unwrap_or(start)
}

/// Whether an event adds to or subtracts from the revenue of its user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `add_revenue`
    Add,
    /// `subtract_revenue`
    Subtract,
}

impl Kind {
    /// The value of the JSON field `name`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Add => "add_revenue",
            Self::Subtract => "subtract_revenue",
        }
    }
}

/// One revenue event. Its strings are borrowed from the line unless they contain escapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// The user: 1 to [`USER_ID_BYTES_MAX`] bytes, no control characters.
    pub user_id: Cow<'a, str>,
    /// Whether the amount is added or subtracted.
    pub kind: Kind,
    /// The amount in micros, 0 to [`AMOUNT_MICROS_MAX`].
    pub amount_micros: u64,
    /// The event id for deduplication, if the event has one: 1 to [`ID_BYTES_MAX`] bytes, no control
    /// characters.
    pub id: Option<Cow<'a, str>>,
}

/// Why a line is not a valid event. `code` is stable and meant for programs; `detail` is readable text
/// and may change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{detail}", if .pointer.is_empty() { String::new() } else { format!("{}: ", .pointer) })]
pub struct EventError {
    /// JSON pointer to the invalid field, such as `/value`; empty if the whole line is invalid.
    pub pointer: Cow<'static, str>,
    /// Machine-readable reason, such as `negative`.
    pub code: &'static str,
    /// The value that was found and what is expected.
    pub detail: String,
}

impl EventError {
    /// The code of a line that is not JSON. With every other code, the line is JSON but not an event.
    pub const NOT_JSON: &'static str = "not_json";

    /// Whether the text is not JSON (HTTP 400), as opposed to JSON that is not an event (422).
    pub fn is_syntax(&self) -> bool {
        self.code == Self::NOT_JSON
    }

    /// The error for a line of `length` bytes, more than [`LINE_BYTES_MAX`].
    pub(crate) fn line_too_long(length: usize) -> Self {
        let detail = format!("the line has {length} bytes; at most {LINE_BYTES_MAX} are allowed");
        Self::line("line_too_long", detail)
    }

    fn field(pointer: &'static str, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            pointer: Cow::Borrowed(pointer),
            code,
            detail: detail.into(),
        }
    }

    fn line(code: &'static str, detail: impl Into<String>) -> Self {
        Self::field("", code, detail)
    }
}

/// A JSON string, borrowed from the text unless it contains escapes.
#[derive(serde::Deserialize)]
#[serde(transparent)]
pub(crate) struct JsonString<'a>(#[serde(borrow)] pub(crate) Cow<'a, str>);

impl<'a> Event<'a> {
    /// Parses one line, or any JSON text of one object; surrounding white space is ignored. Plain lines
    /// take a fast path with the same result.
    #[inline]
    pub fn parse(line: &'a [u8]) -> Result<Self, EventError> {
        match fast::parse(line).and_then(Plain::event) {
            Some(event) => Ok(event),
            None => Self::parse_full(line),
        }
    }

    /// The fast path alone: the event if the line is plain, with its strings as bytes; otherwise `None`.
    #[inline]
    pub(crate) fn plain(line: &'a [u8]) -> Option<Plain<'a>> {
        fast::parse(line)
    }

    /// The same for the first of several lines, with the text after its `\n`.
    #[inline]
    pub(crate) fn plain_first(lines: &'a [u8]) -> Option<(Plain<'a>, &'a [u8])> {
        fast::parse_first(lines)
    }

    /// [`Event::parse`] without the fast path. This function defines the meaning of a line.
    pub fn parse_full(line: &'a [u8]) -> Result<Self, EventError> {
        // White space at the end is not counted: the first line of a file ends in a label.
        if line.len() > LINE_BYTES_MAX && line.trim_ascii_end().len() > LINE_BYTES_MAX {
            return Err(EventError::line_too_long(line.len()));
        }
        let text = std::str::from_utf8(line).map_err(|error| {
            let detail = format!("not UTF-8 at byte {}", error.valid_up_to() + 1);
            EventError::line(EventError::NOT_JSON, detail)
        })?;
        let mut json = serde_json::Deserializer::from_str(text);
        let mut fields = Fields::default();
        match json
            .deserialize_any(FieldsVisitor(&mut fields))
            .and_then(|()| json.end())
        {
            Ok(()) => fields.into_event(),
            // "Not JSON" takes precedence over an error in a field.
            Err(_) => Err(match serde_json::from_str::<IgnoredAny>(text) {
                Err(error) => EventError::line(EventError::NOT_JSON, format!("not JSON: {error}")),
                Ok(_) => fields
                    .failure
                    .take()
                    .unwrap_or_else(|| EventError::line("not_object", NOT_OBJECT)),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(line: &str) -> (String, &'static str) {
        let error = Event::parse(line.as_bytes()).expect_err(line);
        (error.pointer.into_owned(), error.code)
    }

    #[test]
    fn a_plain_line_is_parsed() {
        let event =
            Event::parse(br#"{"userId": "user1", "name": "subtract_revenue", "value": 50}"#)
                .expect("an event");
        assert_eq!(event.user_id, "user1");
        assert_eq!(
            (event.kind, event.amount_micros, event.id),
            (Kind::Subtract, 50_000_000, None)
        );
    }

    #[test]
    fn key_order_is_free_and_other_fields_are_ignored() {
        let line = r#" {"x":{"userId":[1,{"userId":2}]},"id":"a\"b","value":1e3,"name":"add_revenue","userId":"caf\u00e9"} "#;
        let event = Event::parse(line.as_bytes()).expect("an event");
        assert_eq!(event.user_id, "café");
        assert_eq!(event.id.as_deref(), Some("a\"b"));
        assert_eq!(event.amount_micros, 1_000_000_000);
    }

    #[test]
    fn each_error_names_its_field() {
        let with = |field: &str, value: &str| {
            let mut fields = [
                ("userId", "\"u\""),
                ("name", "\"add_revenue\""),
                ("value", "1"),
            ];
            if let Some(slot) = fields.iter_mut().find(|slot| slot.0 == field) {
                slot.1 = value;
            }
            let fields: Vec<_> = fields.iter().map(|(k, v)| format!("\"{k}\":{v}")).collect();
            format!("{{{}}}", fields.join(","))
        };
        for (line, pointer, code) in [
            (with("value", "-5"), "/value", "negative"),
            (with("value", "\"100\""), "/value", "not_number"),
            (with("value", "null"), "/value", "not_number"),
            (with("value", "0.0000001"), "/value", "too_many_digits"),
            (with("value", "1e13"), "/value", "too_large"),
            (with("value", "NaN"), "", "not_json"),
            (with("value", "01"), "", "not_json"),
            (with("name", "\"steal\""), "/name", "unknown_name"),
            (with("name", "7"), "/name", "not_string"),
            (with("userId", "\"\""), "/userId", "empty"),
            (
                with("userId", &format!("\"{}\"", "x".repeat(257))),
                "/userId",
                "too_long",
            ),
            (
                with("userId", "\"a\\u0085\""),
                "/userId",
                "control_character",
            ),
            (with("userId", "\"\\ud800\""), "", "not_json"),
            (
                r#"{"userId":"u","name":"add_revenue"}"#.into(),
                "/value",
                "missing",
            ),
            (
                r#"{"userId":"u","userId":"v","name":"add_revenue","value":1}"#.into(),
                "/userId",
                "duplicate_key",
            ),
            (
                r#"{"userId":"u","name":"add_revenue","value":1,"a/b":1,"a\u002fb":2}"#.into(),
                "/a~1b",
                "duplicate_key",
            ),
            (r#"{"userId":"u","userId":"v","name"#.into(), "", "not_json"),
            ("[]".into(), "", "not_object"),
            ("7".into(), "", "not_object"),
            ("{} x".into(), "", "not_json"),
            (String::new(), "", "not_json"),
        ] {
            assert_eq!(error(&line), (pointer.to_owned(), code), "{line}");
        }
        let longest = with("userId", &format!("\"{}\"", "é".repeat(128)));
        assert!(Event::parse(longest.as_bytes()).is_ok());
        assert!(
            Event::parse(b"{\"userId\":\"\xff\",\"name\":\"add_revenue\",\"value\":1}")
                .is_err_and(|e| e.is_syntax())
        );
    }
}
