//! Files in the data directory that look like events and do not have the name of a segment. They are not
//! applied; the log names each of them once.

use std::collections::BTreeSet;
use std::path::Path;

use super::import::imported_name;
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

/// The names that were reported.
#[derive(Debug, Default)]
pub(super) struct OtherNames(BTreeSet<String>);

impl OtherNames {
    /// Logs a warning for a file whose name is not that of a segment, if it looks like events.
    pub(super) fn report(&mut self, data_dir: &Path, name: &str) {
        if looks_like_events(name) && self.0.len() < NAMES_MAX && self.0.insert(name.to_owned()) {
            tracing::warn!(
                "{} is not applied, because its name is not that of a segment; move it to another directory and run `tallyline process` or `tallyline send` with it there, or rename it to {} if it is JSON Lines",
                data_dir.join(name).display(),
                imported_name(name)
            );
        }
    }
}

/// Whether a file has the ending of JSON or JSON Lines, also after a rotation or compressed.
fn looks_like_events(name: &str) -> bool {
    if OWN.contains(&name) {
        return false;
    }
    let name = name.to_ascii_lowercase();
    let compressed = [".gz", ".bz2", ".xz", ".zst"];
    let name = compressed
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
