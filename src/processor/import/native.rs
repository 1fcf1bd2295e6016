//! The import of a native segment: which lines of it are not counted yet, and where they go.
//!
//! Known are the lines that it has in common with our own file of that segment, if it is one of this
//! data directory, and with what was imported of it before. Where our own file is gone, the applied
//! bytes are known by their checksum.

use std::io;
use std::path::Path;
use std::time::SystemTime;

use super::super::{ProcessError, retention};
use super::part::{Part, Prefix, in_common, longest_prefix};
use super::{Brought, Content, Importer};
use crate::aggregate::scan::{file_start, read_range};
use crate::data_dir::disk::{self, DiskFile};
use crate::data_dir::segment::{ACTIVE_FILE, Label, SegmentId, label_in_name, sealed_file_name};
use crate::data_dir::{Found, Place};
use crate::event::Event;
use crate::store::{SegmentRow, SegmentState, Writer};
use crate::verify::contents::settle;

/// What a data directory has of one of its own segments.
enum Own {
    /// What becomes of the file is decided.
    Decided(Brought),
    /// No file and no row: the file is that segment, and comes in under this name.
    Native(String),
    /// So many bytes of the file are in our own, or in the totals; `found` is our own file, if it is
    /// not applied yet.
    Known { bytes: u64, found: Option<Found> },
    /// Another segment has the number.
    Unknown,
}

impl Importer<'_> {
    /// A native segment, of this data directory or of another.
    pub(super) fn labelled(
        &self,
        writer: &Writer,
        content: &Content,
        label: Label,
    ) -> Result<Brought, ProcessError> {
        let io = || ProcessError::io("read", &content.path);
        let file = &*content.file;
        // A line without its end was never acknowledged, or the copy was taken in the middle of it.
        let end = disk::last_line_end(file, content.size).map_err(io())?;
        if end < content.size {
            tracing::warn!(
                "{}: its last line has no end, so it is left out",
                content.path.display()
            );
        }
        let (mut known, mut parted) = (0, false);
        let mut own = None;
        if label.tag.directory == self.config.directory_tag() {
            match self.own(writer, content, label)? {
                Own::Decided(brought) => return Ok(brought),
                Own::Native(name) => {
                    let id = SegmentId::Native(label.number);
                    let named = content.named(name);
                    return self.copy_in(&named, (0, end), id, Some(label.tag));
                }
                // What it has beyond our own file came to it after the two parted.
                Own::Known { bytes, found } => (known, parted, own) = (bytes, true, found),
                Own::Unknown => {}
            }
        }
        let before = self.imported_before(writer, content, label)?;
        if before.0 > known {
            (known, parted) = before;
        }
        let start = disk::last_line_end(file, known).map_err(io())?;
        if start >= end {
            return Ok(own.map_or_else(|| Brought::Before(content.file_name()), Brought::In));
        }
        let part = Part {
            label,
            from: Prefix::of(file, start).map_err(io())?,
            to: Prefix::of(file, end).map_err(io())?,
        };
        if start > 0 {
            tracing::info!(
                "{}: its first {start} bytes are those of segment {} that are counted already; only the rest is imported",
                content.path.display(),
                label.number
            );
        }
        if parted && start > 0 && !self.has_id(file, start).map_err(io())? {
            tracing::warn!(
                "{}: it is a copy of segment {} that went on by itself after at most {start} bytes. Events without an id that are the same in both files up to there are counted once; of those that each file got for itself after the copy was made, too few may be counted. If there are such, put these lines into a file of another name, and run `tallyline process` with that",
                content.path.display(),
                label.number
            );
        }
        let id = SegmentId::Imported(part.to_string());
        self.copy_in(&content.named(part.to_string()), (start, end), id, None)
    }

    /// Whether the line that ends at `end` has an id, by which it counts once wherever it lies.
    #[expect(
        clippy::unused_self,
        reason = "a step of the import, beside the others"
    )]
    fn has_id(&self, file: &dyn DiskFile, end: u64) -> io::Result<bool> {
        let start = disk::last_line_end(file, end - 1)?;
        let mut line = Vec::new();
        read_range(file, start, end, &mut line)?;
        let event = Event::parse(file_start(&line, start).trim_ascii());
        Ok(event.is_ok_and(|event| event.id.is_some()))
    }

    /// What this data directory has of a segment of its own.
    fn own(&self, writer: &Writer, content: &Content, label: Label) -> Result<Own, ProcessError> {
        let io = || ProcessError::io("read", &content.path);
        let refused = |words| Own::Decided(Brought::Refused(words));
        let file = &*content.file;
        let id = SegmentId::Native(label.number);
        let row = writer.segment(&id)?;
        let pruned = writer.pruned()?.number;
        if row.is_none() && label.number <= pruned {
            return Ok(refused(retention::was_pruned(&content.path, pruned)));
        }
        let sealed = self.catalog.sealed.get(&id).map_or(&[][..], Vec::as_slice);
        let usable = settle(self.disk, sealed, row.as_ref())
            .usable
            .filter(|found| found.tag == Some(label.tag));
        let is_active = self
            .directory
            .is_some_and(|directory| directory.label() == label);
        let path = match usable {
            Some(found) => Some(found.path.clone()),
            None => is_active.then(|| self.config.data_dir.join(ACTIVE_FILE)),
        };
        let kept = match path.as_deref().map(|path| self.disk.open_read(path)) {
            Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => None,
            Some(opened) => Some(opened.map_err(io())?),
            None => None,
        };
        let is_free = row.is_none() && self.is_free(label, sealed);
        let row = row.filter(|row| row.tag == Some(label.tag));
        let applied = row.as_ref().map(|row| Prefix {
            length: row.applied_bytes,
            checksum: row.checksum,
        });
        let whole = row
            .as_ref()
            .is_some_and(|row| row.state == SegmentState::Applied);
        let waits = usable.filter(|_| !whole).cloned();
        if let Some(kept) = kept {
            let stat = kept.stat().map_err(io())?;
            if stat.identity == content.stat.identity {
                return Ok(Own::Decided(waits.map_or_else(
                    || Brought::Before(content.file_name()),
                    Brought::In,
                )));
            }
            // What is in our file counts, or will, only where that is still what was applied.
            if applied.is_none_or(|applied| applied.begins(&*kept, stat.size).unwrap_or(false)) {
                let bytes = in_common(file, 0, &*kept).map_err(io())?;
                return Ok(Own::Known {
                    bytes,
                    found: waits,
                });
            }
        }
        match (applied, row) {
            (Some(applied), Some(_))
                if whole && applied.begins(file, content.size).map_err(io())? =>
            {
                Ok(Own::Known {
                    bytes: applied.length,
                    found: None,
                })
            }
            (_, Some(row)) => Ok(refused(self.not_to_compare(&row, label))),
            (_, None) if is_free => Ok(Own::Native(native_name(&content.path, label))),
            (_, None) => Ok(Own::Unknown),
        }
    }

    /// Whether the segment's number was given out here and no file or row has it: then the file can
    /// only be that segment.
    fn is_free(&self, label: Label, sealed: &[Found]) -> bool {
        sealed.is_empty()
            && !self.catalog.missing.contains(&label.number)
            && self
                .directory
                .is_some_and(|directory| label.number < directory.number)
    }

    fn not_to_compare(&self, row: &SegmentRow, label: Label) -> String {
        let name = match label_in_name(&row.file_name) {
            Some(_) => row.file_name.clone(),
            None => sealed_file_name(label, SystemTime::now()),
        };
        format!(
            "it says that it is segment {} of this data directory, of which {} bytes were applied, but that segment's own file {} is not there, or is not what was applied, to compare it with; nothing was stored. If it is that file, put it at {} and run `tallyline process`; else restore that file from a backup first",
            row.id,
            row.applied_bytes,
            row.file_name,
            self.config.data_dir.join(name).display()
        )
    }

    /// How many bytes of the file were imported before, under whatever name the file had then, and
    /// whether what was imported went on differently.
    fn imported_before(
        &self,
        writer: &Writer,
        content: &Content,
        label: Label,
    ) -> Result<(u64, bool), ProcessError> {
        let io = || ProcessError::io("read", &content.path);
        let file = &*content.file;
        let mut known = (0, false);
        // Whole files under whatever name: a row has the length and the checksum of what was applied,
        // whether or not the file is still there, and no two segments begin with the same label.
        let mut prefixes = Vec::new();
        for name in writer.applied_imports()? {
            match Part::of_name(&name) {
                Some(part) if part.label == label => prefixes.push(part.to),
                Some(_) => {}
                None => {
                    let row = writer.segment(&SegmentId::Imported(name))?;
                    prefixes.extend(row.map(|row| Prefix {
                        length: row.applied_bytes,
                        checksum: row.checksum,
                    }));
                }
            }
        }
        let longest = longest_prefix(file, content.size, prefixes).map_err(io())?;
        known = known.max((longest, false));
        for (id, found) in &self.catalog.sealed {
            let SegmentId::Imported(name) = id else {
                continue;
            };
            let Some((_, from)) = Part::imported(name).filter(|part| part.0 == label) else {
                continue;
            };
            let kept = found.iter().find(|found| found.place != Place::Quarantine);
            if let Some(kept) = kept
                && from.begins(file, content.size).map_err(io())?
            {
                let kept = self
                    .disk
                    .open_read(&kept.path)
                    .map_err(ProcessError::io("open", &kept.path))?;
                let common = in_common(file, from.length, &*kept).map_err(io())?;
                let size = kept.size().map_err(io())?;
                let parted = common < size && from.length + common < content.size;
                known = known.max((from.length + common, parted));
            }
        }
        Ok(known)
    }
}

/// The name of a native segment that comes back: the file's own, if it is one.
fn native_name(path: &Path, label: Label) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if label_in_name(&name) == Some(label) {
        name.into_owned()
    } else {
        sealed_file_name(label, SystemTime::now())
    }
}
