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

mod header;
mod id;
mod members;

use std::borrow::Cow;

use serde_json::value::RawValue;

use self::header::{decoded, media_type};
use self::id::Id;
use self::members::{Members, raw};
use crate::event::{Event, EventError};

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

fn error(pointer: &'static str, code: &'static str, detail: impl Into<String>) -> EventError {
    EventError {
        pointer: Cow::Borrowed(pointer),
        code,
        detail: detail.into(),
    }
}

#[cfg(test)]
mod tests;
