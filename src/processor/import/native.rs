//! The import of a native segment: determines which of its lines are not counted yet.
//!
//! A segment of this data directory is compared with its own file here, and the lines in common are skipped.
//! If its own file is missing, it is compared with the checksum of the applied bytes. Lines of the segment
//! that were imported before, under any file name, are skipped too.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use super::super::Refused;
use super::super::{ProcessError, retention};
use super::part::{in_common, longest_prefix, prefix_of};
use super::{Content, ImportOutcome, Importer};
use crate::aggregate::scan::{file_start, read_range};
use crate::data_dir::disk::{self, DiskFile};
use crate::data_dir::segment::{
    ACTIVE_FILE, Label, Part, Prefix, SegmentId, label_in_name, sealed_file_name,
};
use crate::data_dir::{Found, Place};
use crate::event::Event;
use crate::store::{SegmentRow, SegmentState, Writer};
use crate::verify::contents::{begins_with, compare_claims};

/// What this data directory has of one of its own segments.
enum Own {
    /// The result of the import is known.
    Decided(ImportOutcome),
    /// It has neither a file nor a row, so the file is imported as that segment, under this name.
    Native(String),
    /// The first `bytes` bytes of the file are in its own file or in the totals. `found` is its own file, if
    /// that is not fully applied.
    Known { bytes: u64, found: Option<Found> },
    /// Another segment has its number.
    Unknown,
}

impl Importer<'_> {
    /// Imports a native segment, of this data directory or of another one.
    pub(super) fn labelled(
        &mut self,
        writer: &Writer,
        content: &Content,
        label: Label,
    ) -> Result<ImportOutcome, ProcessError> {
        let io = || ProcessError::io("read", &content.path);
        let file = &*content.file;
        // A line without a line end was not acknowledged, or the copy was made while it was written.
        let end = disk::last_line_end(file, content.size).map_err(io())?;
        if end < content.size {
            tracing::warn!(
                "{}: its last line is incomplete and is skipped",
                content.path.display()
            );
        }
        let (mut known, mut diverged) = (0, false);
        let mut own = None;
        if label.tag.directory == self.config.directory_tag() {
            match self.own(writer, content, label)? {
                Own::Decided(brought) => return Ok(brought),
                Own::Native(name) => {
                    let id = SegmentId::Native(label.number);
                    let named = content.named(name);
                    return self.copy_in(&named, (0, end), id, Some(label.tag));
                }
                // Its further bytes were appended after the copy was made.
                Own::Known { bytes, found } => (known, diverged, own) = (bytes, true, found),
                Own::Unknown => {}
            }
        }
        let before = self.imported_before(writer, content, label)?;
        if before.0 > known {
            (known, diverged) = before;
        }
        let start = disk::last_line_end(file, known).map_err(io())?;
        if start >= end {
            return Ok(own.map_or_else(
                || ImportOutcome::Known(content.file_name()),
                ImportOutcome::New,
            ));
        }
        let part = Part {
            label,
            from: prefix_of(file, start).map_err(io())?,
            to: prefix_of(file, end).map_err(io())?,
        };
        if start > 0 {
            tracing::info!(
                "{}: its first {start} bytes are the lines of segment {} that are already counted; only the rest is imported",
                content.path.display(),
                label.number
            );
        }
        if diverged && start > 0 && !has_id(file, start).map_err(io())? {
            self.forks.push(fork(content, label, start));
        }
        let id = SegmentId::Imported(part.to_string());
        self.copy_in(&content.named(part.to_string()), (start, end), id, None)
    }

    /// Compares the file with a segment of this data directory.
    fn own(&self, writer: &Writer, content: &Content, label: Label) -> Result<Own, ProcessError> {
        let io = || ProcessError::io("read", &content.path);
        let refused = |reason| Own::Decided(ImportOutcome::Refused(reason));
        let file = &*content.file;
        let id = SegmentId::Native(label.number);
        let row = writer.segment(&id)?;
        let pruned = writer.pruned()?.number;
        if row.is_none() && label.number <= pruned {
            return Ok(refused(retention::was_pruned(&content.path, pruned)));
        }
        let sealed = self.catalog.sealed.get(&id).map_or(&[][..], Vec::as_slice);
        let usable = compare_claims(self.disk, sealed, row.as_ref())
            .usable
            .filter(|found| found.tag == Some(label.tag));
        let kept = self.open_own(usable, label).map_err(io())?;
        let is_free = row.is_none() && self.is_free(label, sealed);
        let row = row.filter(|row| row.tag == Some(label.tag));
        let applied = row.as_ref().map(SegmentRow::applied_prefix);
        let is_applied = row
            .as_ref()
            .is_some_and(|row| row.state == SegmentState::Applied);
        let pending = usable.filter(|_| !is_applied).cloned();
        if let Some(kept) = kept {
            let stat = kept.stat().map_err(io())?;
            if stat.identity == content.stat.identity {
                return Ok(Own::Decided(pending.map_or_else(
                    || ImportOutcome::Known(content.file_name()),
                    ImportOutcome::New,
                )));
            }
            // The lines in its own file are or will be counted only if the applied prefix is unchanged.
            if applied
                .is_none_or(|applied| begins_with(&*kept, stat.size, applied).unwrap_or(false))
            {
                let bytes = in_common(file, 0, &*kept).map_err(io())?;
                return Ok(Own::Known {
                    bytes,
                    found: pending,
                });
            }
        }
        match (applied, row) {
            (Some(applied), Some(_))
                if is_applied && begins_with(file, content.size, applied).map_err(io())? =>
            {
                Ok(Own::Known {
                    bytes: applied.length,
                    found: None,
                })
            }
            (_, Some(row)) => Ok(refused(self.not_comparable(&row, label))),
            (_, None) if is_free => Ok(Own::Native(native_name(&content.path, label))),
            (_, None) => Ok(Own::Unknown),
        }
    }

    /// Opens the segment's own file: the `usable` one, or the active file. `None` if there is neither.
    fn open_own(
        &self,
        usable: Option<&Found>,
        label: Label,
    ) -> io::Result<Option<Arc<dyn DiskFile>>> {
        let is_active = self
            .directory
            .is_some_and(|directory| directory.label() == label);
        let path = match usable {
            Some(found) => found.path.clone(),
            None if is_active => self.config.data_dir.join(ACTIVE_FILE),
            None => return Ok(None),
        };
        match self.disk.open_read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => opened.map(Some),
        }
    }

    /// Whether the number was used by this data directory, and no file has it; then the file must be that
    /// segment.
    fn is_free(&self, label: Label, sealed: &[Found]) -> bool {
        sealed.is_empty()
            && !self.catalog.missing.contains(&label.number)
            && self
                .directory
                .is_some_and(|directory| label.number < directory.number)
    }

    /// Describes why the file cannot be compared, and what to do.
    fn not_comparable(&self, row: &SegmentRow, label: Label) -> String {
        let name = match label_in_name(&row.file_name) {
            Some(_) => row.file_name.clone(),
            None => sealed_file_name(label, SystemTime::now()),
        };
        format!(
            "according to its first line it is segment {} of this data directory, of which {} bytes were applied, but the segment's own file {} is missing or changed, so there is nothing to compare it with; nothing was stored. If it is that file, move it to {} and run `tallyline process`; otherwise restore that file from a backup first",
            row.id,
            row.applied_bytes,
            row.file_name,
            self.config.data_dir.join(name).display()
        )
    }

    /// The number of bytes of the file that were imported before, under any file name, and whether the
    /// imported file continues differently after them.
    fn imported_before(
        &self,
        writer: &Writer,
        content: &Content,
        label: Label,
    ) -> Result<(u64, bool), ProcessError> {
        let io = || ProcessError::io("read", &content.path);
        let file = &*content.file;
        let mut known = (0, false);
        // Fully applied imports, by the length and checksum in their rows; their files may be missing. Since
        // no two segments start with the same label, an equal prefix is the same segment.
        let mut prefixes = Vec::new();
        for name in writer.applied_imports()? {
            match Part::of_name(&name) {
                Some(part) if part.label == label => prefixes.push(part.to),
                Some(_) => {}
                None => {
                    let row = writer.segment(&SegmentId::Imported(name))?;
                    prefixes.extend(row.map(|row| row.applied_prefix()));
                }
            }
        }
        let longest = longest_prefix(file, content.size, prefixes).map_err(io())?;
        known = known.max((longest, false));
        let labelled = writer.imports_of(label)?;
        for (id, found) in &self.catalog.sealed {
            let SegmentId::Imported(name) = id else {
                continue;
            };
            let from = match Part::of_import(name) {
                Some((of, from)) if of == label => from,
                None if labelled.iter().any(|(of, _)| of == name) => Prefix::EMPTY,
                _ => continue,
            };
            let kept = found.iter().find(|found| found.place != Place::Quarantine);
            if let Some(kept) = kept
                && begins_with(file, content.size, from).map_err(io())?
            {
                let kept = self
                    .disk
                    .open_read(&kept.path)
                    .map_err(ProcessError::io("open", &kept.path))?;
                let common = in_common(file, from.length, &*kept).map_err(io())?;
                let size = kept.size().map_err(io())?;
                let diverged = common < size && from.length + common < content.size;
                known = known.max((from.length + common, diverged));
            }
        }
        Ok(known)
    }
}

/// Whether the line that ends at `end` has an id, so that it is counted once in any file.
fn has_id(file: &dyn DiskFile, end: u64) -> io::Result<bool> {
    let start = disk::last_line_end(file, end - 1)?;
    let mut line = Vec::new();
    read_range(file, start, end, &mut line)?;
    let event = Event::parse(file_start(&line, start).trim_ascii());
    Ok(event.is_ok_and(|event| event.id.is_some()))
}

/// The warning about a copy that went on with events of its own after `start` bytes.
fn fork(content: &Content, label: Label, start: u64) -> Refused {
    Refused {
        path: content.path.clone(),
        reason: format!(
            "it is a copy of segment {} that received its own events after at most {start} bytes. The first {start} bytes of both files are equal and are counted once; if both files received the same events without an id after the copy was made, too few may be counted. In that case, put these lines into a file with another name, and run `tallyline process` with that file",
            label.number
        ),
    }
}

/// The name for a native segment that is imported again: its file name if that is valid, or else a new one.
fn native_name(path: &Path, label: Label) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if label_in_name(&name) == Some(label) {
        name.into_owned()
    } else {
        sealed_file_name(label, SystemTime::now())
    }
}
