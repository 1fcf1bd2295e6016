//! The id of the event that a CloudEvent becomes.

use std::borrow::Cow;
use std::fmt::Write as _;

use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use super::error;
use crate::event::{EventError, ID_BYTES_MAX, JsonString};

/// The identity of a CloudEvent.
pub(super) struct Id {
    attribute: String,
    /// `source`, a space and `id`, which together identify it.
    both: String,
    /// The id of the event.
    pub(super) of_event: String,
}

impl Id {
    pub(super) fn of(
        source: Option<Cow<'_, str>>,
        id: Option<Cow<'_, str>>,
    ) -> Result<Self, EventError> {
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
    pub(super) fn agree_with(&self, in_data: Option<&RawValue>) -> Result<(), EventError> {
        let Some(in_data) = in_data else {
            return Ok(());
        };
        let text = serde_json::from_str::<JsonString<'_>>(in_data.get());
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
