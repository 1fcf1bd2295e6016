//! Examines text that begins with an object: one event, several without line ends, or a wrapper.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// What the first object of a text is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum First {
    /// An object on one line, or text that is not JSON or incomplete.
    Line,
    /// An object over several lines.
    Lines,
    /// An object that is followed by another one; both are on the only line.
    Joined,
    /// An object without `userId` that has an array of objects with `userId`, under this key.
    Wrapper(String),
}

/// Examines the text, of which the end may be missing.
pub(super) fn first(text: &[u8]) -> First {
    if let Some(key) = wrapper(text) {
        return First::Wrapper(key);
    }
    let mut values = serde_json::Deserializer::from_slice(text).into_iter::<IgnoredAny>();
    if !matches!(values.next(), Some(Ok(_))) {
        return First::Line;
    }
    let (object, rest) = text.split_at(values.byte_offset());
    if object.contains(&b'\n') {
        return First::Lines;
    }
    let rest = rest.trim_ascii_end();
    if rest.trim_ascii_start().starts_with(b"{") && !rest.contains(&b'\n') {
        return First::Joined;
    }
    First::Line
}

/// The key of the array with the events, if the object is a wrapper.
fn wrapper(text: &[u8]) -> Option<String> {
    let mut found = Found::default();
    let mut json = serde_json::Deserializer::from_slice(text);
    // An error is usually the end of an incomplete text; what was found before counts.
    let _incomplete = Outer(&mut found).deserialize(&mut json);
    found.array.filter(|_| !found.is_event)
}

#[derive(Default)]
struct Found {
    /// The key of the first array whose first element is an object with `userId`.
    array: Option<String>,
    /// The outer object has `userId` itself.
    is_event: bool,
}

/// Reads the members of the outer object.
struct Outer<'f>(&'f mut Found);

impl<'de> DeserializeSeed<'de> for Outer<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Outer<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        while let Some(key) = members.next_key::<String>()? {
            self.0.is_event |= key == "userId";
            let mut has_events = false;
            let read = members.next_value_seed(Array(&mut has_events));
            if has_events && self.0.array.is_none() {
                self.0.array = Some(key);
            }
            read?;
        }
        Ok(())
    }
}

/// Reads a value; sets the flag if it is an array whose first element is an object with `userId`.
struct Array<'f>(&'f mut bool);

impl<'de> DeserializeSeed<'de> for Array<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

macro_rules! ignored {
    ($($visit:ident: $type:ty),*) => {
        $(fn $visit<E: serde::de::Error>(self, _value: $type) -> Result<(), E> {
            Ok(())
        })*
    };
}

impl<'de> Visitor<'de> for Array<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    ignored!(visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64, visit_str: &str);

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        while members.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        elements.next_element_seed(Element(self.0))?;
        while elements.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

/// Reads the first element of an array; sets the flag if it is an object with `userId`.
struct Element<'f>(&'f mut bool);

impl<'de> DeserializeSeed<'de> for Element<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Element<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        while let Some(key) = members.next_key::<String>()? {
            *self.0 |= key == "userId";
            members.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const E: &str = r#"{"userId":"u","name":"add_revenue","value":1}"#;

    #[test]
    fn the_first_object_is_recognised_also_if_the_text_is_incomplete() {
        let wrapper = || First::Wrapper("events".to_owned());
        for (text, expected) in [
            (E.to_owned(), First::Line),
            (format!("{E}\n"), First::Line),
            (format!("{E}\n{E}\n"), First::Line),
            (format!("{E} \r\n {E}"), First::Line),
            (E.replace(',', ",\n"), First::Lines),
            (format!("{E}{E}"), First::Joined),
            (format!("{E} {E}\n\n"), First::Joined),
            (format!("{E}{}", &E[..20]), First::Joined),
            // A line that was damaged by two writers, in a file of lines.
            (format!("{E}{E}\n{E}\n"), First::Line),
            (format!("{{\"events\":[{E}]}}"), wrapper()),
            (
                format!("{{\"events\":[{E}]}}\n{{\"events\":[{E}]}}"),
                wrapper(),
            ),
            (
                format!(
                    "{{\n\"source\": {{\"a\": [1]}},\n\"events\": [\n{E},\n{}",
                    &E[..9]
                ),
                wrapper(),
            ),
            // Other arrays in an event.
            (format!("{{\"items\":[{E}],{}", &E[1..]), First::Line),
            (
                format!("{{\"items\":[{{\"sku\":1}}],{}", &E[1..]),
                First::Line,
            ),
            ("{\"events\":[]}".to_owned(), First::Line),
            ("{\"events\":[7]}".to_owned(), First::Line),
            ("{\"userId\":\"u\",\"na\n{}".to_owned(), First::Line),
            ("{".to_owned(), First::Line),
        ] {
            assert_eq!(first(text.as_bytes()), expected, "{text}");
        }
    }
}
