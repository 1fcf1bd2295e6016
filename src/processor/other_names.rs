//! Files in the data directory that look like events and do not have the name of a segment. They are not
//! applied; the log names each of them once.

use std::collections::BTreeSet;
use std::path::Path;

use crate::data_dir::DIRECTORY_FILE;
use crate::data_dir::segment::ACTIVE_FILE;

/// The most names that are reported, so that a large directory neither fills the log nor the memory.
const NAMES_MAX: usize = 100;

/// Files of the data directory, of a backup and of a demo with the ending of a file of events.
const OWN: [&str; 6] = [
    ACTIVE_FILE,
    DIRECTORY_FILE,
    "manifest.json",
    "node.json",
    "restore.json",
    "sample.jsonl",
];

const COMPRESSED: [&str; 4] = [".gz", ".bz2", ".xz", ".zst"];

/// The names that were reported.
#[derive(Debug, Default)]
pub(super) struct OtherNames(BTreeSet<String>);

impl OtherNames {
    /// Logs a warning for a file whose name is not that of a segment, if it looks like events.
    pub(super) fn report(&mut self, data_dir: &Path, name: &str) {
        if looks_like_events(name) && self.0.len() < NAMES_MAX && self.0.insert(name.to_owned()) {
            tracing::warn!(
                "{} is not applied, because its name is not that of a segment; {}",
                data_dir.join(name).display(),
                advice(name)
            );
        }
    }
}

/// What to do with a file of the data directory whose name is not that of a segment.
pub(super) fn advice(name: &str) -> String {
    let elsewhere = "move it to another directory and run `tallyline process` or `tallyline send` with it there";
    if COMPRESSED.iter().any(|ending| name.ends_with(ending)) {
        return elsewhere.to_owned();
    }
    let rest = name
        .replace(".jsonl", "")
        .replace(".ndjson", "")
        .replace(".json", "");
    let rest = rest.strip_prefix("events").unwrap_or(&rest);
    let rest = rest.trim_start_matches(['_', '-', '.']);
    let rest = if rest.is_empty() { "1" } else { rest };
    format!("{elsewhere}, or rename it to events_{rest}.jsonl if it is JSON Lines")
}

/// Whether a file has the ending of JSON or JSON Lines, also after a rotation or compressed.
fn looks_like_events(name: &str) -> bool {
    if OWN.contains(&name) {
        return false;
    }
    let name = name.to_ascii_lowercase();
    let name = COMPRESSED
        .iter()
        .find_map(|ending| name.strip_suffix(ending))
        .unwrap_or(&name);
    let rotated = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let name = if rotated.len() < name.len() {
        rotated.strip_suffix(['.', '-']).unwrap_or(name)
    } else {
        name
    };
    [".jsonl", ".ndjson", ".json"]
        .iter()
        .any(|ending| name.ends_with(ending))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_advice_is_a_name_of_a_segment() {
        for (name, expected) in [
            ("today.jsonl", Some("events_today.jsonl")),
            ("events.json", Some("events_1.jsonl")),
            ("events_7.json", Some("events_7.jsonl")),
            ("events.jsonl.1", Some("events_1.jsonl")),
            ("a.jsonl.gz", None),
        ] {
            let advice = advice(name);
            match expected {
                Some(new) => assert!(advice.contains(&format!("rename it to {new} ")), "{advice}"),
                None => assert!(!advice.contains("rename"), "{advice}"),
            }
        }
    }

    #[test]
    fn names_of_events_are_recognised_and_our_own_are_not() {
        for name in [
            "today.jsonl",
            "events.json",
            "Events.NDJSON",
            "events.jsonl.1",
            "events.jsonl-20261126.gz",
            "a.jsonl.gz",
        ] {
            assert!(looks_like_events(name), "{name}");
        }
        for name in [
            "events.jsonl",
            "directory.json",
            "manifest.json",
            "revenue.db",
            "tallyline.toml",
            "a.jsonl.part",
            "a.jsonl.tallyline-state",
            "tokens",
            "port1",
        ] {
            assert!(!looks_like_events(name), "{name}");
        }
    }
}
