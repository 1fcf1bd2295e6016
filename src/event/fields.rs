//! The fields of a JSON object, checked one by one.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::amount::{amount, shown};
use super::{Event, EventError, ID_BYTES_MAX, JsonString, Kind, USER_ID_BYTES_MAX};

pub(super) const NOT_OBJECT: &str = "an event is a JSON object, such as {\"userId\": \"user1\", \"name\": \"add_revenue\", \"value\": 100}";

/// The raw fields of a line.
#[derive(Default)]
pub(super) struct Fields<'a> {
    user_id: Option<&'a RawValue>,
    name: Option<&'a RawValue>,
    value: Option<&'a RawValue>,
    id: Option<&'a RawValue>,
    /// Names of ignored fields, to detect duplicate keys.
    others: std::collections::HashSet<String>,
    pub(super) failure: Option<EventError>,
}

pub(super) struct FieldsVisitor<'f, 'a>(pub(super) &'f mut Fields<'a>);

impl<'a> Visitor<'a> for FieldsVisitor<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        let fields = self.0;
        while let Some(key) = map.next_key::<JsonString<'a>>()? {
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

impl<'a> Fields<'a> {
    pub(super) fn into_event(self) -> Result<Event<'a>, EventError> {
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
    serde_json::from_str::<JsonString<'a>>(text)
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
