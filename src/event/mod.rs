//! Parsing of events: a line of JSON becomes an [`Event`], or an [`EventError`] that says why not.
//!
//! The module has no I/O, no state and no thread. Amounts are converted exactly from the digits of the
//! literal to integer **micros** (10^-6 units), without floating point. [`Event::parse_full`] defines
//! the meaning of a line. The fast path accepts a subset of the lines and must return the same result.

mod fast;
mod input_format;

use std::borrow::Cow;
use std::fmt;

pub(crate) use self::fast::Plain;
pub(crate) use self::input_format::{HEAD_BYTES, InputFormat, Unsupported};

use serde::de::{Deserializer as _, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

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

/// Micros in one unit.
pub const MICROS_PER_UNIT: u64 = 1_000_000;
/// The largest amount of one event: 10^12 units.
pub const AMOUNT_MICROS_MAX: u64 = 1_000_000_000_000 * MICROS_PER_UNIT;

/// A signed sum in millionths of a unit. Its text is the exact decimal without trailing zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Micros(pub i64);

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        WideMicros(self.0.into()).fmt(f)
    }
}

/// Like [`Micros`], but of any number of users, whose sum may exceed 64 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct WideMicros(pub i128);

impl fmt::Display for WideMicros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let per_unit = u128::from(MICROS_PER_UNIT);
        let units = self.0.unsigned_abs() / per_unit;
        let micros = self.0.unsigned_abs() % per_unit;
        if micros == 0 {
            return write!(f, "{sign}{units}");
        }
        let fraction = format!("{micros:06}");
        write!(f, "{sign}{units}.{}", fraction.trim_end_matches('0'))
    }
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

const NOT_OBJECT: &str = "an event is a JSON object, such as {\"userId\": \"user1\", \"name\": \"add_revenue\", \"value\": 100}";

/// The raw fields of a line.
#[derive(Default)]
struct Fields<'a> {
    user_id: Option<&'a RawValue>,
    name: Option<&'a RawValue>,
    value: Option<&'a RawValue>,
    id: Option<&'a RawValue>,
    /// Names of ignored fields, to detect duplicate keys.
    others: std::collections::HashSet<String>,
    failure: Option<EventError>,
}

struct FieldsVisitor<'f, 'a>(&'f mut Fields<'a>);

impl<'a> Visitor<'a> for FieldsVisitor<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        let fields = self.0;
        while let Some(key) = map.next_key::<Key<'a>>()? {
            let slot = match &*key.0 {
                "userId" => &mut fields.user_id,
                "name" => &mut fields.name,
                "value" => &mut fields.value,
                "id" => &mut fields.id,
                other => {
                    let new = fields.others.insert(other.to_owned());
                    map.next_value::<IgnoredAny>()?;
                    if !new {
                        fields.failure = Some(twice(other));
                        return Err(A::Error::custom("key given twice"));
                    }
                    continue;
                }
            };
            let value = map.next_value()?;
            if slot.replace(value).is_some() {
                fields.failure = Some(twice(&key.0));
                return Err(A::Error::custom("key given twice"));
            }
        }
        Ok(())
    }
}

fn twice(key: &str) -> EventError {
    // RFC 6901: `~` and `/` are escaped in a pointer.
    let pointer = format!("/{}", key.replace('~', "~0").replace('/', "~1"));
    let detail = format!("the key {key:?} is given twice; give it once");
    EventError {
        pointer: Cow::Owned(pointer),
        code: "duplicate_key",
        detail,
    }
}

/// A string of the line, borrowed unless it contains escapes.
#[derive(serde::Deserialize)]
#[serde(transparent)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'a> Fields<'a> {
    fn into_event(self) -> Result<Event<'a>, EventError> {
        let user_id = required(self.user_id, "/userId", "a string such as \"user1\"")?;
        let name = required(
            self.name,
            "/name",
            "\"add_revenue\" or \"subtract_revenue\"",
        )?;
        let value = required(self.value, "/value", "a number such as 100 or 10.5")?;
        Ok(Event {
            user_id: name_like(user_id, "/userId", USER_ID_BYTES_MAX)?,
            kind: kind(name)?,
            amount_micros: amount(value)?,
            id: self
                .id
                .map(|id| name_like(id, "/id", ID_BYTES_MAX))
                .transpose()?,
        })
    }
}

fn required<'a>(
    field: Option<&'a RawValue>,
    pointer: &'static str,
    expected: &str,
) -> Result<&'a RawValue, EventError> {
    field.ok_or_else(|| {
        EventError::field(pointer, "missing", format!("missing; expected {expected}"))
    })
}

fn string<'a>(raw: &'a RawValue, pointer: &'static str) -> Result<Cow<'a, str>, EventError> {
    let text = raw.get();
    if !text.starts_with('"') {
        return Err(EventError::field(
            pointer,
            "not_string",
            format!("expected a string, found {}", shown(text)),
        ));
    }
    // A lone surrogate (`"\ud800"`) is a valid raw value but not valid text.
    serde_json::from_str::<Key<'a>>(text)
        .map(|key| key.0)
        .map_err(|error| {
            EventError::line(
                EventError::NOT_JSON,
                format!("not JSON: {pointer}: {error}"),
            )
        })
}

fn name_like<'a>(
    raw: &'a RawValue,
    pointer: &'static str,
    bytes_max: usize,
) -> Result<Cow<'a, str>, EventError> {
    let text = string(raw, pointer)?;
    if text.is_empty() {
        return Err(EventError::field(
            pointer,
            "empty",
            format!("empty; expected 1 to {bytes_max} bytes"),
        ));
    }
    if text.len() > bytes_max {
        let detail = format!("{} bytes long; at most {bytes_max} are allowed", text.len());
        return Err(EventError::field(pointer, "too_long", detail));
    }
    if let Some(control) = text.chars().find(|c| c.is_control()) {
        let detail = format!(
            "contains the control character {}; remove it",
            control.escape_unicode()
        );
        return Err(EventError::field(pointer, "control_character", detail));
    }
    Ok(text)
}

fn kind(raw: &RawValue) -> Result<Kind, EventError> {
    let name = string(raw, "/name")?;
    match &*name {
        "add_revenue" => Ok(Kind::Add),
        "subtract_revenue" => Ok(Kind::Subtract),
        _ => {
            let detail = format!(
                "{} is unknown; expected \"add_revenue\" or \"subtract_revenue\"",
                shown(raw.get())
            );
            Err(EventError::field("/name", "unknown_name", detail))
        }
    }
}

fn amount(raw: &RawValue) -> Result<u64, EventError> {
    let literal = raw.get();
    let error = |code, detail: String| Err(EventError::field("/value", code, detail));
    if !literal.starts_with(|c: char| c == '-' || c.is_ascii_digit()) {
        return error(
            "not_number",
            format!("expected a number, found {}", shown(literal)),
        );
    }
    match micros_of_literal(literal) {
        Ok(micros) => Ok(micros),
        Err(AmountError::Negative) => error(
            "negative",
            format!(
                "{} is negative; to subtract, use \"subtract_revenue\"",
                shown(literal)
            ),
        ),
        Err(AmountError::TooManyDigits) => error(
            "too_many_digits",
            format!("{} has more than 6 digits after the point", shown(literal)),
        ),
        Err(AmountError::TooLarge) => error(
            "too_large",
            format!("{} is more than 10^12", shown(literal)),
        ),
    }
}

/// The first 64 characters of a text, for a message.
fn shown(text: &str) -> String {
    match text.char_indices().nth(64) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum AmountError {
    Negative,
    TooManyDigits,
    TooLarge,
}

/// The exact value of a JSON number literal in micros: its digits shifted by its exponent. Trailing
/// zeros of a fraction are not counted as digits. `literal` must be a valid JSON number.
fn micros_of_literal(literal: &str) -> Result<u64, AmountError> {
    let (negative, unsigned) = match literal.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, literal),
    };
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if whole.bytes().chain(fraction.bytes()).all(|b| b == b'0') {
        return Ok(0); // includes -0 and 0e999
    }
    if negative {
        return Err(AmountError::Negative);
    }
    // The value is (digits) * 10^shift micros. An exponent that does not fit in 64 bits is out of range.
    let exponent: i64 = match exponent.map(str::parse::<i64>) {
        None => 0,
        Some(Ok(exponent)) => exponent,
        Some(Err(_)) if exponent.is_some_and(|e| e.starts_with('-')) => {
            return Err(AmountError::TooManyDigits);
        }
        Some(Err(_)) => return Err(AmountError::TooLarge),
    };
    let all = || whole.bytes().chain(fraction.bytes());
    let zeros = all().rev().take_while(|&b| b == b'0').count();
    let length = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    let shift = exponent
        .saturating_sub(length(fraction.len()))
        .saturating_add(6)
        .saturating_add(length(zeros));
    if shift < 0 {
        return Err(AmountError::TooManyDigits);
    }
    let mut micros: u64 = 0;
    for digit in all().take(whole.len() + fraction.len() - zeros) {
        micros = shifted(micros, 1)?
            .checked_add(u64::from(digit - b'0'))
            .ok_or(AmountError::TooLarge)?;
    }
    let micros = shifted(micros, shift)?;
    if micros > AMOUNT_MICROS_MAX {
        Err(AmountError::TooLarge)
    } else {
        Ok(micros)
    }
}

/// `value * 10^power`, or [`AmountError::TooLarge`] if it overflows.
fn shifted(value: u64, power: i64) -> Result<u64, AmountError> {
    if value == 0 {
        return Ok(0);
    }
    u32::try_from(power)
        .ok()
        .and_then(|power| 10u64.checked_pow(power))
        .and_then(|factor| value.checked_mul(factor))
        .ok_or(AmountError::TooLarge)
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
    fn amounts_are_converted_exactly() {
        for (literal, micros) in [
            ("10.5", 10_500_000),
            ("100", 100_000_000),
            ("1e3", 1_000_000_000),
            ("1E+3", 1_000_000_000),
            ("0.000001", 1),
            ("10e-7", 1),
            ("1.5000000", 1_500_000),
            ("0", 0),
            ("-0.0", 0),
            ("0e99999999999999999999", 0),
            ("1000000000000", AMOUNT_MICROS_MAX),
            ("1e12", AMOUNT_MICROS_MAX),
            ("999999999999.999999", AMOUNT_MICROS_MAX - 1),
            ("9007199254740993e-6", 9_007_199_254_740_993), // 2^53 + 1: a float would lose it
        ] {
            assert_eq!(micros_of_literal(literal), Ok(micros), "{literal}");
        }
        for (literal, error) in [
            ("-5", AmountError::Negative),
            ("-1e-9", AmountError::Negative),
            ("0.0000001", AmountError::TooManyDigits),
            (
                "0.12345678901234567890123456789",
                AmountError::TooManyDigits,
            ),
            ("1e-99999999999999999999", AmountError::TooManyDigits),
            ("1000000000000.000001", AmountError::TooLarge),
            ("1e13", AmountError::TooLarge),
            ("1e99999999999999999999", AmountError::TooLarge),
            ("99999999999999999999999999", AmountError::TooLarge),
        ] {
            assert_eq!(micros_of_literal(literal), Err(error), "{literal}");
        }
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

    #[test]
    fn sums_are_shown_exactly() {
        for (micros, text) in [
            (0, "0"),
            (50_000_000, "50"),
            (-10_500_000, "-10.5"),
            (1, "0.000001"),
            (i64::MIN, "-9223372036854.775808"),
        ] {
            assert_eq!(Micros(micros).to_string(), text);
        }
        for (micros, text) in [
            (i128::from(i64::MAX) * 100, "922337203685477.5807"),
            (i128::from(i64::MIN) * 1_000_000, "-9223372036854775808"),
            (i128::from(i64::MAX) + 1, "9223372036854.775808"),
        ] {
            assert_eq!(WideMicros(micros).to_string(), text);
        }
    }
}
