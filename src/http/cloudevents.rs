//! Converts CloudEvents 1.0 over HTTP to event lines.
//!
//! | CloudEvent | event |
//! |---|---|
//! | `source`, a space, `id` | `id`; if longer than 128 bytes, its SHA-256 in hex |
//! | `type` | `name` |
//! | `subject` | `userId` |
//! | `data.value` | `value`, with the same digits |
//!
//! The data may also be an event in our own format. Its `userId` must then be equal to `subject`, or stands
//! for it if there is none; its `name` must be equal to `type`; and its `id` to the CloudEvent's `id`, alone
//! or after `source` and a space. Otherwise the event is ambiguous, and it is refused.
//!
//! In a header, the bytes of a value as UTF-8 and percent-encoded mean the same. All other attributes are
//! discarded. A source with white space is invalid: it is not a URI reference,
//! and `a b` + `c` and `a` + `b c` would have the same id, so that one of the two events would be
//! treated as a duplicate.
//!
//! No I/O. Each line is checked by [`Event::parse`]. Its errors are reported for the attribute of the
//! CloudEvent (`/subject`, `/data/value`) and not for the field of the line.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt::{self, Write as _};

use percent_encoding::percent_decode_str;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use crate::event::{Event, EventError, ID_BYTES_MAX};

/// The content mode of a request, as in the HTTP protocol binding of CloudEvents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// One CloudEvent as JSON: `application/cloudevents+json`.
    Structured,
    /// A JSON array of CloudEvents: `application/cloudevents-batch+json`.
    Batch,
    /// One CloudEvent with its attributes in `ce-` headers and its data in the body.
    Binary,
}

/// Returns the first value of a header by its name in lower case.
pub type Headers<'h> = dyn Fn(&'static str) -> Option<&'h str> + 'h;

/// The `code` of a CloudEvent in a format other than JSON (HTTP 415).
pub const UNSUPPORTED_FORMAT: &str = "unsupported_format";

/// The mode of a request; `None` if it does not contain CloudEvents.
///
/// # Errors
/// [`UNSUPPORTED_FORMAT`] for `application/cloudevents+avro` and the like.
pub fn mode(headers: &Headers<'_>) -> Result<Option<Mode>, EventError> {
    let content_type = media_type(headers("content-type").unwrap_or_default());
    match content_type.as_str() {
        "application/cloudevents+json" => Ok(Some(Mode::Structured)),
        "application/cloudevents-batch+json" => Ok(Some(Mode::Batch)),
        other if other.starts_with("application/cloudevents") => Err(error(
            "",
            UNSUPPORTED_FORMAT,
            "unsupported format; send CloudEvents as application/cloudevents+json, \
             application/cloudevents-batch+json, or with ce- headers",
        )),
        _ => {
            let names = ["ce-specversion", "ce-id", "ce-source", "ce-type"];
            let any = names.iter().any(|name| headers(name).is_some());
            Ok(any.then_some(Mode::Binary))
        }
    }
}

/// The events of a request in their order, each one as its line without a newline, or as its error. The
/// result of an empty batch is empty.
///
/// # Errors
/// The body is not JSON, or the batch is not an array.
pub fn lines(
    mode: Mode,
    headers: &Headers<'_>,
    body: &[u8],
) -> Result<Vec<Result<Vec<u8>, EventError>>, EventError> {
    let text = std::str::from_utf8(body).map_err(|utf8| {
        let detail = format!("not UTF-8 at byte {}", utf8.valid_up_to() + 1);
        error("", EventError::NOT_JSON, detail)
    })?;
    match mode {
        Mode::Binary => Ok(vec![binary(headers, text)]),
        Mode::Structured => Ok(vec![structured(raw(text, "")?)]),
        Mode::Batch => {
            let array = raw(text, "")?.get();
            let events = serde_json::from_str::<Vec<&RawValue>>(array)
                .map_err(|_| error("", "not_array", "a batch is a JSON array of CloudEvents"))?;
            Ok(events.into_iter().map(structured).collect())
        }
    }
}

/// Converts a CloudEvent in JSON.
fn structured(event: &RawValue) -> Result<Vec<u8>, EventError> {
    let event = Members::read(event, "", "a CloudEvent is a JSON object")?;
    check_version(event.string("specversion")?.as_deref())?;
    let id = Id::of(event.string("source")?, event.string("id")?)?;
    check_data_type(event.string("datacontenttype")?.as_deref())?;
    if event.get("data_base64").is_some() {
        let detail = "base64 is not supported; send JSON in data";
        return Err(error("/data_base64", "data_not_json", detail));
    }
    line(
        event.get("subject").map(RawValue::get),
        event.get("type").map(RawValue::get),
        event.get("data"),
        &id,
    )
}

/// Converts a CloudEvent with its attributes in headers.
fn binary(headers: &Headers<'_>, body: &str) -> Result<Vec<u8>, EventError> {
    let attribute = |name: &'static str, pointer: &'static str| {
        headers(name)
            .map(|value| decoded(value, pointer))
            .transpose()
    };
    check_version(attribute("ce-specversion", "/specversion")?.as_deref())?;
    let id = Id::of(
        attribute("ce-source", "/source")?,
        attribute("ce-id", "/id")?,
    )?;
    check_data_type(headers("content-type"))?;
    let json = |value: Cow<'_, str>| serde_json::Value::from(value).to_string();
    let data = match body.trim_ascii() {
        "" => None,
        body => Some(raw(body, "/data")?),
    };
    line(
        attribute("ce-subject", "/subject")?.map(json).as_deref(),
        attribute("ce-type", "/type")?.map(json).as_deref(),
        data,
        &id,
    )
}

/// Builds the line of an event from the JSON texts of its fields, and checks it.
fn line(
    subject: Option<&str>,
    kind: Option<&str>,
    data: Option<&RawValue>,
    id: &Id,
) -> Result<Vec<u8>, EventError> {
    let data = data.ok_or_else(|| {
        let detail = "missing; expected an object with the amount, {\"value\": 100}";
        error("/data", "missing", detail)
    })?;
    let data = Members::read(data, "/data", "expected an object such as {\"value\": 100}")?;
    let user = data.get("userId").map(RawValue::get);
    agree("/data/userId", user, "subject", subject)?;
    let name = data.get("name").map(RawValue::get);
    if kind.is_some() {
        agree("/data/name", name, "type", kind)?;
    }
    id.agree_with(data.get("id"))?;
    let id = serde_json::Value::from(&*id.of_event).to_string();
    let fields = [
        ("userId", subject.or(user)),
        ("name", kind),
        ("value", data.get("value").map(RawValue::get)),
        ("id", Some(&id)),
    ];
    let fields: Vec<String> = fields
        .iter()
        .filter_map(|(key, json)| json.map(|json| format!("\"{key}\":{json}")))
        .collect();
    let line = format!("{{{}}}", fields.join(",")).into_bytes();
    match Event::parse(&line) {
        Ok(_) => Ok(line),
        Err(error) => {
            let user_is_in_data = subject.is_none() && user.is_some();
            Err(in_terms_of_the_cloud_event(error, user_is_in_data))
        }
    }
}

/// Fails if a field of the data and the attribute with the same meaning, both JSON texts, are different.
fn agree(
    pointer: &'static str,
    field: Option<&str>,
    attribute_name: &str,
    attribute: Option<&str>,
) -> Result<(), EventError> {
    let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
    match (field, attribute) {
        (Some(field), Some(attribute)) if value(field) != value(attribute) => {
            let detail = format!(
                "differs from the attribute {attribute_name}; make them equal, or leave it out of data"
            );
            Err(error(pointer, "disagrees", detail))
        }
        _ => Ok(()),
    }
}

fn in_terms_of_the_cloud_event(error: EventError, user_is_in_data: bool) -> EventError {
    let pointer = match &*error.pointer {
        "/userId" if user_is_in_data => "/data/userId",
        "/userId" => "/subject",
        "/name" => "/type",
        "/value" => "/data/value",
        _ => return error,
    };
    EventError {
        pointer: Cow::Borrowed(pointer),
        ..error
    }
}

/// The identity of a CloudEvent.
struct Id {
    /// Its attribute `id`.
    attribute: String,
    /// `source`, a space and `id`, which together identify it.
    both: String,
    /// The id of the event.
    of_event: String,
}

impl Id {
    fn of(source: Option<Cow<'_, str>>, id: Option<Cow<'_, str>>) -> Result<Self, EventError> {
        let source = required(source, "/source", "a URI reference such as /billing")?;
        let id = required(id, "/id", "a name for this event, unique within its source")?;
        if source.contains(char::is_whitespace) {
            let detail = "a source is a URI reference and contains no white space";
            return Err(error("/source", "white_space", detail));
        }
        let both = format!("{source} {id}");
        if let Some(control) = both.chars().find(|c| c.is_control()) {
            let pointer = if source.contains(control) {
                "/source"
            } else {
                "/id"
            };
            let control = control.escape_unicode();
            let detail = format!("contains the control character {control}, which is not allowed");
            return Err(error(pointer, "control_character", detail));
        }
        let of_event = if both.len() <= ID_BYTES_MAX {
            both.clone()
        } else {
            let mut hex = String::with_capacity(64);
            for byte in Sha256::digest(both.as_bytes()) {
                let _ = write!(hex, "{byte:02x}"); // writing to a String never fails
            }
            hex
        };
        Ok(Self {
            attribute: id.into_owned(),
            both,
            of_event,
        })
    }

    /// Fails if the `id` in the data is another one.
    fn agree_with(&self, in_data: Option<&RawValue>) -> Result<(), EventError> {
        let Some(in_data) = in_data else {
            return Ok(());
        };
        let text = serde_json::from_str::<Text<'_>>(in_data.get());
        let known = [&self.attribute, &self.both, &self.of_event];
        if text.is_ok_and(|text| known.iter().any(|known| **known == text.0)) {
            return Ok(());
        }
        let detail = "differs from the attribute id; make them equal, or leave it out of data";
        Err(error("/data/id", "disagrees", detail))
    }
}

fn required<'a>(
    value: Option<Cow<'a, str>>,
    pointer: &'static str,
    expected: &str,
) -> Result<Cow<'a, str>, EventError> {
    let code = match value {
        Some(value) if !value.is_empty() => return Ok(value),
        Some(_) => "empty",
        None => "missing",
    };
    Err(error(pointer, code, format!("{code}; expected {expected}")))
}

fn check_version(version: Option<&str>) -> Result<(), EventError> {
    match version {
        Some("1.0") => Ok(()),
        Some(_) => Err(error(
            "/specversion",
            "unsupported_version",
            "unsupported version; expected \"1.0\"",
        )),
        None => Err(error(
            "/specversion",
            "missing",
            "missing; expected \"1.0\"",
        )),
    }
}

/// Checks that the data is JSON. By the specification it is JSON if it has no type.
fn check_data_type(data_type: Option<&str>) -> Result<(), EventError> {
    let Some(data_type) = data_type else {
        return Ok(());
    };
    let kind = media_type(data_type);
    let (_, subtype) = kind.split_once('/').unwrap_or_default();
    if subtype == "json" || subtype.ends_with("+json") {
        return Ok(());
    }
    let detail = "the data must be JSON; expected application/json";
    Err(error("/datacontenttype", "data_not_json", detail))
}

/// The media type without parameters in lower case: `Application/JSON; charset=utf-8` becomes
/// `application/json`.
fn media_type(content_type: &str) -> String {
    let kind = content_type.split(';').next().unwrap_or_default();
    kind.trim().to_ascii_lowercase()
}

/// The value of an attribute in a header: quotes are removed, then it is percent-decoded once. It may also
/// have characters that are not encoded, as UTF-8. The engine replaces other bytes by U+FFFD, so a header
/// with that character is refused: the event could otherwise be counted for another user.
fn decoded<'h>(header: &'h str, pointer: &'static str) -> Result<Cow<'h, str>, EventError> {
    if header.contains(char::REPLACEMENT_CHARACTER) {
        let detail = "the header is not UTF-8 (U+FFFD itself must be percent-encoded)";
        return Err(error(pointer, "not_utf8", detail));
    }
    let quoted = header
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    let text = match quoted {
        None => percent_decode_str(header).decode_utf8(),
        Some(quoted) => percent_decode_str(&unescaped(quoted))
            .decode_utf8()
            .map(|text| Cow::Owned(text.into_owned())),
    };
    text.map_err(|_| {
        let detail = "the percent-decoded header is not UTF-8";
        error(pointer, "not_utf8", detail)
    })
}

/// Removes the backslashes of a quoted string: each one stands for the character after it.
fn unescaped(quoted: &str) -> String {
    let mut chars = quoted.chars();
    std::iter::from_fn(|| match chars.next() {
        Some('\\') => chars.next(),
        other => other,
    })
    .collect()
}

fn raw<'a>(text: &'a str, pointer: &'static str) -> Result<&'a RawValue, EventError> {
    serde_json::from_str(text)
        .map_err(|json| error(pointer, EventError::NOT_JSON, format!("not JSON: {json}")))
}

fn error(pointer: &'static str, code: &'static str, detail: impl Into<String>) -> EventError {
    EventError {
        pointer: Cow::Borrowed(pointer),
        code,
        detail: detail.into(),
    }
}

/// The members of a JSON object with raw values. Each name occurs once.
struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Members<'a> {
    fn read(
        object: &'a RawValue,
        pointer: &'static str,
        expected: &str,
    ) -> Result<Self, EventError> {
        let members: Self = serde_json::from_str(object.get())
            .map_err(|_| error(pointer, "not_object", expected))?;
        let mut seen = HashSet::new();
        if let Some((name, _)) = members.0.iter().find(|(name, _)| !seen.insert(name)) {
            // RFC 6901: `~` and `/` are escaped in a pointer.
            let escaped = name.replace('~', "~0").replace('/', "~1");
            return Err(EventError {
                pointer: Cow::Owned(format!("{pointer}/{escaped}")),
                code: "duplicate_key",
                detail: format!("the key {name:?} is given twice; give it once"),
            });
        }
        Ok(members)
    }

    /// The JSON text of a member. By the specification a null member counts as absent.
    fn get(&self, name: &str) -> Option<&'a RawValue> {
        let (_, value) = self.0.iter().find(|(known, _)| known == name)?;
        (value.get() != "null").then_some(*value)
    }

    fn string(&self, name: &'static str) -> Result<Option<Cow<'a, str>>, EventError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let text = serde_json::from_str::<Text<'a>>(value.get()).map_err(|_| EventError {
            pointer: Cow::Owned(format!("/{name}")),
            code: "not_string",
            detail: "expected a string".to_owned(),
        })?;
        Ok(Some(text.0))
    }
}

/// A string, borrowed if it has no escapes.
#[derive(serde::Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> serde::Deserialize<'de> for Members<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some((name, value)) = map.next_entry::<Text<'de>, _>()? {
                    members.push((name.0, value));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENT: &str = r#"{"specversion":"1.0","id":"7","source":"/billing","type":"add_revenue",
        "subject":"user1","time":"2026-11-22T06:41:00Z","data":{"value":10.50,"note":1}}"#;
    const LINE: &str = r#"{"userId":"user1","name":"add_revenue","value":10.50,"id":"/billing 7"}"#;

    type Outcome = Result<Vec<Result<Vec<u8>, EventError>>, EventError>;

    fn post(headers: &[(&str, &str)], body: &str) -> Outcome {
        let pairs: Vec<(String, &str)> = headers
            .iter()
            .map(|(k, v)| (k.to_ascii_lowercase(), *v))
            .collect();
        let find = |name: &str| pairs.iter().find(|(k, _)| k == name).map(|(_, v)| *v);
        let mode = mode(&find)?.expect("a CloudEvent");
        lines(mode, &find, body.as_bytes())
    }

    fn structured(body: &str) -> Outcome {
        post(
            &[(
                "content-type",
                "application/cloudevents+json; charset=UTF-8",
            )],
            body,
        )
    }

    fn batch(body: &str) -> Outcome {
        post(
            &[("content-type", "application/cloudevents-batch+json")],
            body,
        )
    }

    fn binary(changed: &[(&'static str, &'static str)], body: &str) -> Outcome {
        let mut headers = vec![
            ("ce-specversion", "1.0"),
            ("ce-id", "7"),
            ("ce-source", "/billing"),
            ("ce-type", "add_revenue"),
            ("ce-subject", "user1"),
            ("content-type", "application/json"),
        ];
        headers.retain(|(name, _)| changed.iter().all(|(other, _)| name != other));
        headers.extend(changed.iter().filter(|(_, value)| *value != "(none)"));
        post(&headers, body)
    }

    /// The line of the only event, or the pointer and the code of its error.
    fn one(outcome: Outcome) -> Result<String, (String, &'static str)> {
        let place_and_code = |e: EventError| (e.pointer.into_owned(), e.code);
        let mut events = outcome.map_err(place_and_code)?;
        assert_eq!(events.len(), 1);
        let line = events.remove(0).map_err(place_and_code)?;
        Ok(String::from_utf8(line).expect("UTF-8"))
    }

    fn fails(outcome: Outcome, pointer: &str, code: &'static str) {
        assert_eq!(one(outcome), Err((pointer.to_owned(), code)));
    }

    #[test]
    fn the_three_modes_make_the_same_line() {
        assert_eq!(one(structured(EVENT)).as_deref(), Ok(LINE));
        assert_eq!(one(batch(&format!("[{EVENT}]"))).as_deref(), Ok(LINE));
        assert_eq!(
            one(binary(&[], r#" {"value":10.50} "#)).as_deref(),
            Ok(LINE)
        );
    }

    #[test]
    fn an_event_of_our_own_as_data_must_agree_with_the_attributes() {
        let own = |data: &str| EVENT.replace(r#"{"value":10.50,"note":1}"#, data);
        for data in [
            r#"{"userId":"user1","name":"add_revenue","value":10.50}"#,
            r#"{"value":10.50,"userId":"\u0075ser1"}"#,
            r#"{"value":10.50,"name":"add_revenue","id":"7"}"#,
            r#"{"value":10.50,"id":"/billing 7"}"#,
            r#"{"value":10.50,"id":null,"userId":null}"#,
        ] {
            assert_eq!(one(structured(&own(data))).as_deref(), Ok(LINE), "{data}");
            assert_eq!(one(binary(&[], data)).as_deref(), Ok(LINE), "{data}");
            // The user of the data stands for a subject that is not there.
            if data.contains("ser1") {
                let without = own(data).replace(r#""subject":"user1","#, "");
                let line = one(structured(&without)).expect("an event");
                let user =
                    |line: &str| Event::parse(line.as_bytes()).map(|e| e.user_id.to_string());
                assert_eq!(user(&line).ok(), Some("user1".to_owned()));
                assert!(one(binary(&[("ce-subject", "(none)")], data)).is_ok());
            }
        }
        for (data, pointer) in [
            (r#"{"userId":"user2","value":1}"#, "/data/userId"),
            (r#"{"userId":1,"value":1}"#, "/data/userId"),
            (r#"{"name":"subtract_revenue","value":1}"#, "/data/name"),
            (r#"{"id":"8","value":1}"#, "/data/id"),
            (r#"{"id":7,"value":1}"#, "/data/id"),
        ] {
            fails(structured(&own(data)), pointer, "disagrees");
            fails(binary(&[], data), pointer, "disagrees");
        }
        let without = |data| own(data).replace(r#""subject":"user1","#, "");
        fails(
            structured(&without(r#"{"userId":"","value":1}"#)),
            "/data/userId",
            "empty",
        );
        fails(
            structured(&without(r#"{"value":1}"#)),
            "/subject",
            "missing",
        );
    }

    #[test]
    fn other_requests_have_no_mode() {
        for content_type in [None, Some("application/json"), Some("text/plain")] {
            let find = |name: &str| content_type.filter(|_| name == "content-type");
            assert_eq!(mode(&find), Ok(None));
        }
        fails(
            post(&[("content-type", "application/cloudevents+avro")], ""),
            "",
            UNSUPPORTED_FORMAT,
        );
    }

    #[test]
    fn digits_are_kept() {
        for value in [
            "9007199254740993e-6",
            "0.000001",
            "1E+3",
            "999999999999.999999",
        ] {
            let line = one(structured(&EVENT.replace("10.50", value))).expect(value);
            assert!(line.contains(&format!("\"value\":{value},")), "{line}");
        }
    }

    #[test]
    fn a_long_id_is_hashed() {
        let id = |zeros: usize| {
            let body = EVENT.replace("\"7\"", &format!("\"{}\"", "0".repeat(zeros)));
            one(structured(&body)).expect("an event")
        };
        assert!(id(119).contains(&format!("\"id\":\"/billing {}\"", "0".repeat(119))));
        assert!(
            id(120).ends_with(&format!("\"id\":\"{LONG_ID_SHA256}\"}}")),
            "{}",
            id(120)
        );
    }

    /// `printf '/billing %0120d' 0 | sha256sum`
    const LONG_ID_SHA256: &str = "319ca1648f0d466c651f75a086e96e2ef2532bcfe24183674c4194bb7fc0d25d";

    #[test]
    fn an_error_names_the_attribute_of_the_cloud_event() {
        for (from, to, pointer, code) in [
            (r#""specversion":"1.0","#, "", "/specversion", "missing"),
            (
                r#""1.0""#,
                r#""0.3""#,
                "/specversion",
                "unsupported_version",
            ),
            (r#""1.0""#, "1.0", "/specversion", "not_string"),
            (r#""id":"7","#, "", "/id", "missing"),
            (r#""id":"7","#, r#""id":null,"#, "/id", "missing"),
            (r#""7""#, r#""""#, "/id", "empty"),
            (r#""7""#, r#""\u0007""#, "/id", "control_character"),
            (r#""/billing""#, r#""""#, "/source", "empty"),
            (r#""/billing""#, r#""a b""#, "/source", "white_space"),
            (r#""subject":"user1","#, "", "/subject", "missing"),
            (r#""user1""#, "1", "/subject", "not_string"),
            (r#""type":"add_revenue","#, "", "/type", "missing"),
            ("add_revenue", "com.example.sale", "/type", "unknown_name"),
            ("10.50", "-1", "/data/value", "negative"),
            ("10.50", r#""10.50""#, "/data/value", "not_number"),
            (r#""value":10.50,"#, "", "/data/value", "missing"),
            (
                r#""note":1"#,
                r#""value":1"#,
                "/data/value",
                "duplicate_key",
            ),
            (r#"{"value":10.50,"note":1}"#, "[1]", "/data", "not_object"),
            (r#""data""#, r#""date""#, "/data", "missing"),
            (
                r#""data":{"#,
                r#""data_base64":"MQ==","data":{"#,
                "/data_base64",
                "data_not_json",
            ),
            (r#""time""#, r#""id""#, "/id", "duplicate_key"),
            (
                r#""time""#,
                r#""datacontenttype":"text/xml","t""#,
                "/datacontenttype",
                "data_not_json",
            ),
            ("}}", "}", "", EventError::NOT_JSON),
        ] {
            let body = EVENT.replace(from, to);
            assert_ne!(body, EVENT);
            fails(structured(&body), pointer, code);
        }
        fails(structured("[]"), "", "not_object");
        fails(batch(EVENT), "", "not_array");
    }

    #[test]
    fn each_event_of_a_batch_has_its_own_outcome() {
        assert_eq!(batch("[]"), Ok(vec![]));
        let bad = EVENT.replace("user1", "");
        let outcome = batch(&format!("[{EVENT}, {bad}, 7, {EVENT}]")).expect("an array");
        let found: Vec<_> = outcome
            .iter()
            .map(|e| e.as_ref().map_err(|e| &*e.pointer).map(|_| ()))
            .collect();
        assert_eq!(found, [Ok(()), Err("/subject"), Err(""), Ok(())]);
    }

    #[test]
    fn headers_are_decoded_and_checked() {
        let body = r#"{"value":1}"#;
        let user = |header| one(binary(&[("ce-subject", header)], body));
        for (header, user_id) in [
            ("caf%C3%A9%20%22x%22", r#""café \"x\"""#),
            (r#""a \"quoted\" one""#, r#""a \"quoted\" one""#),
            ("100%", r#""100%""#),
            // As UTF-8 and percent-encoded.
            ("café ☕", r#""café ☕""#),
            ("caf%C3%A9%20%E2%98%95", r#""café ☕""#),
            ("café%20☕", r#""café ☕""#),
            ("%EF%BF%BD", "\"\u{fffd}\""),
        ] {
            let line = user(header).expect(header);
            assert!(
                line.starts_with(&format!("{{\"userId\":{user_id},")),
                "{line}"
            );
        }
        for not_utf8 in ["%FF", "S\u{fffd}o"] {
            assert_eq!(user(not_utf8), Err(("/subject".to_owned(), "not_utf8")));
        }
        assert_eq!(
            user("%00"),
            Err(("/subject".to_owned(), "control_character"))
        );
        fails(
            binary(&[("ce-specversion", "(none)")], body),
            "/specversion",
            "missing",
        );
        fails(
            binary(&[("ce-specversion", "2.0")], body),
            "/specversion",
            "unsupported_version",
        );
        fails(
            binary(&[("content-type", "text/plain")], body),
            "/datacontenttype",
            "data_not_json",
        );
        fails(binary(&[], ""), "/data", "missing");
        fails(binary(&[], "{"), "/data", EventError::NOT_JSON);
        assert!(one(binary(&[("content-type", "(none)")], body)).is_ok());
    }
}
