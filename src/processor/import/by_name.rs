//! The import of a file without a label, which is identified by its name.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::part::in_common;
use super::{Content, ImportOutcome, Importer};
use crate::aggregate::scan;
use crate::data_dir::SegmentFile;
use crate::data_dir::disk::DiskFile;
use crate::data_dir::segment::{SegmentId, label_in_name};
use crate::event::{Event, EventError, without_bom};
use crate::processor::ProcessError;
use crate::store::{SegmentState, Writer};
use crate::verify::contents::{self, compare_claims};

/// A file is refused if none of this many lines at its beginning is an event.
const LINES_TRIED: u64 = 1_000;
/// The size of the beginning in which they are looked for.
const TRIED_BYTES: u64 = 1 << 20;

impl Importer<'_> {
    /// Imports the file, unless one of its name is there or was applied.
    pub(super) fn by_name(
        &self,
        writer: &Writer,
        content: &Content,
    ) -> Result<ImportOutcome, ProcessError> {
        let io = || ProcessError::io("read", &content.path);
        let id = SegmentId::Imported(content.name.clone());
        let row = writer.segment(&id)?;
        if let Some(row) = row
            .as_ref()
            .filter(|row| row.state == SegmentState::Applied)
        {
            let segment = SegmentFile {
                id: id.clone(),
                tag: None,
                path: content.path.clone(),
                file: Arc::clone(&content.file),
            };
            return Ok(if contents::is_what_was_applied(&segment, row)? {
                ImportOutcome::Known(content.name.clone())
            } else {
                let path = content.staged.is_none().then_some(&*content.path);
                let reason = contents::other_content(&*content.file, path, row).map_err(io())?;
                ImportOutcome::Refused(reason)
            });
        }
        let found = self.catalog.sealed.get(&id).map_or(&[][..], Vec::as_slice);
        if let Some(found) = compare_claims(self.disk, found, row.as_ref()).usable {
            let kept = self
                .disk
                .open_read(&found.path)
                .map_err(ProcessError::io("open", &found.path))?;
            let same = kept.size().map_err(io())? == content.size
                && in_common(&*content.file, 0, &*kept).map_err(io())? == content.size;
            return Ok(if same {
                ImportOutcome::New(found.clone())
            } else {
                ImportOutcome::Refused(format!(
                    "{} has the name that this file would get, has another content, and is not applied yet; nothing was stored. Rename this file only if none of its events is in that one",
                    found.path.display()
                ))
            });
        }
        if row.is_none()
            && let Some(error) = without_events(&*content.file, content.size).map_err(io())?
        {
            return Ok(ImportOutcome::Refused(format!(
                "none of its first {LINES_TRIED} lines is a valid event (line 1: {error}); nothing was stored. Correct the file, then name it again; or move it to {} to import it with its invalid lines",
                self.config.data_dir.join(&content.name).display()
            )));
        }
        self.copy_in(content, (0, content.size), id, None)
    }
}

/// The error of the first line, if the content begins with at least [`LINES_TRIED`] lines of which none is
/// an event.
fn without_events(file: &dyn DiskFile, size: u64) -> io::Result<Option<EventError>> {
    let mut head = Vec::new();
    scan::read_range(file, 0, size.min(TRIED_BYTES), &mut head)?;
    let mut first = None;
    let mut tried = 0;
    let complete = memchr::memrchr(b'\n', &head).unwrap_or(0);
    for line in without_bom(&head[..complete]).split(|byte| *byte == b'\n') {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        let Err(error) = Event::parse(line) else {
            return Ok(None);
        };
        first.get_or_insert(error);
        tried += 1;
        if tried == LINES_TRIED {
            return Ok(first);
        }
    }
    Ok(None)
}

/// The name in the data directory for a file that is not a native segment.
pub(super) fn imported_name(name: &str) -> String {
    // A file that has the name of a native segment but no label is not one, and gets another name.
    if label_in_name(name).is_none() && SegmentId::of_file(name, 0).is_some() {
        return name.to_owned();
    }
    let ending = if Path::new(name)
        .extension()
        .is_some_and(|ending| ending == "jsonl")
    {
        ""
    } else {
        ".jsonl"
    };
    format!("events_{name}{ending}")
}

#[cfg(test)]
mod tests {
    #[test]
    fn imported_names_are_never_native() {
        for (name, here) in [
            ("foo.jsonl", "events_foo.jsonl"),
            ("foo.json", "events_foo.json.jsonl"),
            ("events.jsonl", "events_events.jsonl"),
            ("events_1700000000000.jsonl", "events_1700000000000.jsonl"),
            (
                "events-2026-11-22T06-41-00.123Z-000042-5e3fa1c29b77d0e4.jsonl",
                "events_events-2026-11-22T06-41-00.123Z-000042-5e3fa1c29b77d0e4.jsonl",
            ),
        ] {
            assert_eq!(super::imported_name(name), here);
        }
    }
}
