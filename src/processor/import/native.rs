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
        let (mut known, mut own) = (0, None);
        if label.tag.directory == self.config.directory_tag() {
            match self.own(writer, content, label)? {
                Own::Decided(brought) => return Ok(brought),
                Own::Native(name) => {
                    let id = SegmentId::Native(label.number);
                    let named = content.named(name);
                    return self.copy_in(&named, (0, end), id, Some(label.tag));
                }
                // Its further bytes were appended after the copy was made.
                Own::Known { bytes, found } => (known, own) = (bytes, found),
                Own::Unknown => {}
            }
        }
        if let Some(found) = self.pending(writer, content, label)? {
            return Ok(ImportOutcome::New(found));
        }
        let before = self.imported_before(writer, content, label, known)?;
        let start = end_of_known(file, before.known, content.size).map_err(io())?;
        let end = before.next.map_or(end, |next| end.min(next));
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
        if let Some(next) = before.next {
            tracing::warn!(
                "{}: the lines from byte {next} on are counted already, so only those before are imported; name the file once more to import further ones",
                content.path.display()
            );
        }
        if before.diverged && start > 0 && !has_id(file, start).map_err(io())? {
            self.forks.push(fork(content, label, start));
        }
        let id = SegmentId::Imported(part.to_string());
        let found = self.catalog.sealed.get(&id).into_iter().flatten();
        let mut copied = found.filter(|found| found.place != Place::Quarantine);
        if let Some(found) = copied.next() {
            // An import was interrupted after the copy.
            return Ok(ImportOutcome::New(found.clone()));
        }
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

    /// Which lines of the file were imported before, under any file name. Only what is or will be applied
    /// counts: another file that lies there may be refused. `known` bytes of its beginning are counted in the segment's own file.
    fn imported_before(
        &self,
        writer: &Writer,
        content: &Content,
        label: Label,
        known: u64,
    ) -> Result<Before, ProcessError> {
        let io = || ProcessError::io("read", &content.path);
        let (file, size) = (&*content.file, content.size);
        let mut before = Before {
            known,
            diverged: known > 0,
            next: None,
        };
        let whole = unlabelled_prefixes(writer)?;
        let longest = longest_prefix(file, size, whole).map_err(io())?;
        before.extend(longest, false);
        let mut imports: Vec<(Prefix, String, Prefix)> = Vec::new();
        for (name, applied) in writer.imports_of(label)? {
            let from = Part::of_name(&name).map_or(Prefix::EMPTY, |part| part.from);
            imports.push((from, name, applied));
        }
        for name in &self.brought {
            if let Some((of, from)) = Part::of_import(name)
                && of == label
            {
                imports.push((from, name.clone(), Prefix::EMPTY));
            }
        }
        imports.sort_by_key(|(from, ..)| from.length);
        for (from, name, applied) in imports {
            if !begins_with(file, size, from).map_err(io())? {
                continue;
            }
            let (common, diverged) = self.common(content, from, &name, applied)?;
            if common == 0 {
                continue;
            }
            if from.length > before.known {
                before.next = Some(from.length);
                break;
            }
            before.extend(from.length + common, diverged);
        }
        Ok(before)
    }

    /// How many bytes after the prefix `from` the file has in common with an imported file of which `applied` is
    /// applied, and whether both continue differently after them.
    fn common(
        &self,
        content: &Content,
        from: Prefix,
        name: &str,
        applied: Prefix,
    ) -> Result<(u64, bool), ProcessError> {
        let io = || ProcessError::io("read", &content.path);
        let (file, size) = (&*content.file, content.size);
        if applied.length > 0 && begins_with(file, size, from.followed_by(applied)).map_err(io())? {
            return Ok((applied.length, false));
        }
        let id = SegmentId::Imported(name.to_owned());
        let found = self.catalog.sealed.get(&id).into_iter().flatten();
        let mut kept = found.filter(|found| found.place != Place::Quarantine);
        let Some(kept) = kept.next() else {
            return Ok((0, false));
        };
        let kept = self
            .disk
            .open_read(&kept.path)
            .map_err(ProcessError::io("open", &kept.path))?;
        let common = in_common(file, from.length, &*kept).map_err(io())?;
        let kept_size = kept.size().map_err(io())?;
        let diverged = common < kept_size && from.length + common < size;
        Ok((common, diverged))
    }

    /// A file that lies in the data directory, is not applied yet, and has exactly these lines.
    fn pending(
        &self,
        writer: &Writer,
        content: &Content,
        label: Label,
    ) -> Result<Option<Found>, ProcessError> {
        let io = || ProcessError::io("read", &content.path);
        for (id, found) in &self.catalog.sealed {
            let SegmentId::Imported(name) = id else {
                continue;
            };
            let is_same = |(of, from): (Label, Prefix)| of == label && from == Prefix::EMPTY;
            if !Part::of_import(name).is_some_and(is_same) || writer.segment(id)?.is_some() {
                continue;
            }
            let Some(found) = found.iter().find(|found| found.place == Place::Incoming) else {
                continue;
            };
            let opened = self.disk.open_read(&found.path);
            let lying = opened.map_err(ProcessError::io("open", &found.path))?;
            if lying.size().map_err(io())? == content.size
                && in_common(&*content.file, 0, &*lying).map_err(io())? == content.size
            {
                return Ok(Some(found.clone()));
            }
        }
        Ok(None)
    }
}

/// Which lines of a file are counted already.
struct Before {
    /// The first so many bytes.
    known: u64,
    /// Whether the file that has them continues differently.
    diverged: bool,
    /// Where further lines begin that are counted, after some that are not.
    next: Option<u64>,
}

impl Before {
    fn extend(&mut self, known: u64, diverged: bool) {
        if known > self.known {
            (self.known, self.diverged) = (known, diverged);
        }
    }
}

/// What is applied of the imported files whose label is unknown, because an earlier version applied them. Since
/// no two segments start with the same label, an equal prefix is the same segment.
fn unlabelled_prefixes(writer: &Writer) -> Result<Vec<Prefix>, ProcessError> {
    let mut prefixes = Vec::new();
    for name in writer.applied_imports()? {
        if Part::of_import(&name).is_none() {
            let row = writer.segment(&SegmentId::Imported(name))?;
            prefixes.extend(row.map(|row| row.applied_prefix()));
        }
    }
    Ok(prefixes)
}

/// The end of the last line that is in the first `known` bytes of the file. The last line of a file that was
/// counted may lack its line end.
fn end_of_known(file: &dyn DiskFile, known: u64, size: u64) -> io::Result<u64> {
    let start = disk::last_line_end(file, known)?;
    if start < known && known < size {
        let mut next = Vec::new();
        read_range(file, known, known + 1, &mut next)?;
        if next == b"\n" {
            return Ok(known + 1);
        }
    }
    Ok(start)
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
