//! JSON objects whose values keep their text, so that amounts keep their digits.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;

use super::error;
use crate::event::{EventError, JsonString};

pub(super) fn raw<'a>(text: &'a str, pointer: &'static str) -> Result<&'a RawValue, EventError> {
    serde_json::from_str(text)
        .map_err(|json| error(pointer, EventError::NOT_JSON, format!("not JSON: {json}")))
}

/// The members of a JSON object with raw values. Each name occurs once.
pub(super) struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Members<'a> {
    pub(super) fn read(
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
    pub(super) fn get(&self, name: &str) -> Option<&'a RawValue> {
        let (_, value) = self.0.iter().find(|(known, _)| known == name)?;
        (value.get() != "null").then_some(*value)
    }

    pub(super) fn string(&self, name: &'static str) -> Result<Option<Cow<'a, str>>, EventError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let text = serde_json::from_str::<JsonString<'a>>(value.get()).map_err(|_| EventError {
            pointer: Cow::Owned(format!("/{name}")),
            code: "not_string",
            detail: "expected a string".to_owned(),
        })?;
        Ok(Some(text.0))
    }
}

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
                while let Some((name, value)) = map.next_entry::<JsonString<'de>, _>()? {
                    members.push((name.0, value));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Reader)
    }
}
