//! The id that is added to an event without one: the run's name and the line's number.
//!
//! It is inserted into the line's JSON text right after the `{`, so that the rest of the line is
//! unchanged. Numbers are padded with zeros to 12 digits: the database stores 128 consecutive ones in
//! one row (`store::id_blocks`).

use std::fmt;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::Write as _;

use serde::de::{Deserializer as _, IgnoredAny, MapAccess, Visitor};

use uuid::Uuid;

use crate::event::JsonString;
use crate::timestamp;

use crate::cli::config::Ids;

/// Makes the ids of one run.
#[derive(Clone, Debug)]
pub(super) struct IdMaker {
    /// The name as JSON text without its closing quote. If empty, no ids are made.
    opened: String,
}

impl IdMaker {
    /// A maker of ids that begin with `name`. If `name` is empty, no ids are made.
    pub(super) fn new(name: &str) -> Self {
        let mut opened = String::new();
        if !name.is_empty() {
            opened = serde_json::Value::from(name).to_string();
            opened.pop();
        }
        Self { opened }
    }

    /// Appends `line` to `out`, with an id if it is an object that has none.
    pub(super) fn write(&self, line: &[u8], shape: Shape, number: u64, out: &mut Vec<u8>) {
        let make = matches!(shape, Shape::Object { id: false, .. }) && !self.opened.is_empty();
        let inner = if make { line.strip_prefix(b"{") } else { None };
        let Some(inner) = inner else {
            out.extend_from_slice(line);
            return;
        };
        let comma = if shape
            == (Shape::Object {
                id: false,
                empty: true,
            }) {
            ""
        } else {
            ","
        };
        let _memory = write!(out, "{{\"id\":{}-{number:012}\"{comma}", self.opened);
        out.extend_from_slice(inner);
    }

    /// Whether an event of that shape is counted once if it is sent twice.
    pub(super) fn counts_once(&self, shape: Shape) -> bool {
        match shape {
            Shape::Object { id, .. } => id || !self.opened.is_empty(),
            Shape::Other => true, // always refused
        }
    }
}

/// The name of a run: that of `--source`, or a new UUID. The UUID begins with the time (version 7), so
/// that the ids of later runs sort after those of earlier ones.
pub(super) fn run_name(ids: &Ids) -> String {
    match ids {
        Ids::Off => String::new(),
        Ids::Source(name) => name.clone(),
        Ids::Run => Uuid::new_v7(now()).to_string(),
    }
}

/// 64 random bits, from the seed of the standard library's hash maps.
pub(super) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// What kind of text a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Object {
        /// Whether it has the key `id`, with any value.
        id: bool,
        /// Whether it has no keys.
        empty: bool,
    },
    /// Anything else. It is not an event.
    Other,
}

impl Shape {
    /// The shape of a line without white space around it.
    pub(super) fn of(line: &[u8]) -> Self {
        let mut json = serde_json::Deserializer::from_slice(line);
        let mut keys = Keys {
            id: false,
            empty: true,
        };
        match json.deserialize_map(&mut keys).and_then(|()| json.end()) {
            Ok(()) => Self::Object {
                id: keys.id,
                empty: keys.empty,
            },
            Err(_) => Self::Other,
        }
    }
}

struct Keys {
    id: bool,
    empty: bool,
}

impl<'de> Visitor<'de> for &mut Keys {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<JsonString<'de>>()? {
            self.empty = false;
            self.id |= key.0 == "id";
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }
}

/// The current time, for the name of a run. A clock before 1970 counts as 1970.
fn now() -> uuid::Timestamp {
    let ms = timestamp::now_ms().unsigned_abs();
    let nanos = u32::try_from(ms % 1000 * 1_000_000).unwrap_or_default();
    uuid::Timestamp::from_unix(uuid::NoContext, ms / 1000, nanos)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;

    fn with_id(line: &str) -> String {
        let mut out = Vec::new();
        IdMaker::new("a \"b\"").write(line.as_bytes(), Shape::of(line.as_bytes()), 7, &mut out);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn an_object_without_an_id_gets_one_and_keeps_its_text() {
        let line = r#"{"userId": "u", "name": "add_revenue", "value": 1.50, "x": {"id": 1}}"#;
        let sent = with_id(line);
        assert!(sent.ends_with(&line[1..]), "{sent}");
        let event = Event::parse(sent.as_bytes()).expect("an event");
        assert_eq!(event.id.as_deref(), Some("a \"b\"-000000000007"));
        assert_eq!(with_id("{}"), "{\"id\":\"a \\\"b\\\"-000000000007\"}");
        assert_eq!(with_id("{ }"), "{\"id\":\"a \\\"b\\\"-000000000007\" }");
    }

    #[test]
    fn what_has_one_or_is_no_object_is_left_alone() {
        for line in [
            r#"{"userId": "u", "id": "mine"}"#,
            r#"{"\u0069d": null}"#,
            r#"[{"userId": "u"}]"#,
            r#"{"userId": "u""#,
            r"{} {}",
            "text",
        ] {
            assert_eq!(with_id(line), line);
        }
    }

    #[test]
    fn run_names_differ_and_ids_sort_as_sent() {
        let name = run_name(&Ids::Run);
        assert_ne!(name, run_name(&Ids::Run));
        let parsed: Uuid = name.parse().expect("a UUID");
        assert_eq!((parsed.get_version_num(), name.len()), (7, 36));
        let id = |number| {
            let mut out = Vec::new();
            IdMaker::new(&name).write(b"{}", Shape::of(b"{}"), number, &mut out);
            out
        };
        assert!(id(9) < id(10) && id(999_999) < id(1_000_000));
    }

    #[test]
    fn without_ids_only_what_has_its_own_counts_once() {
        let off = IdMaker::new("");
        assert!(!off.counts_once(Shape::of(b"{}")));
        assert!(off.counts_once(Shape::of(br#"{"id": "a"}"#)));
        assert!(IdMaker::new("r").counts_once(Shape::of(b"{}")));
    }
}
