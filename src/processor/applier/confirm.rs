//! Whether a file is the segment in its name, and still begins with the bytes that were applied.

use std::path::{Path, PathBuf};

use crc32fast::Hasher;

use super::Applier;
use crate::aggregate::lines;
use crate::data_dir::disk::{FileStat, Identity};
use crate::data_dir::segment::{Label, Part, Prefix, SegmentId};
use crate::data_dir::{SegmentFile, read_label};
use crate::event::{InputFormat, Unsupported};
use crate::processor::ProcessError;
use crate::processor::import::{self, further_label};
use crate::store::{Mark, SegmentRow, SegmentState, StoreError};
use crate::verify::contents::{
    OTHER_SEGMENT_CURE, describe_other_label, label_of_import, same_segment,
};
use crate::verify::seal;

/// The applied prefix of a segment, which was verified in a file.
pub(super) struct Follow {
    /// CRC-32 of the applied bytes, with their number as its length.
    pub(super) applied: Hasher,
    /// The file in which the prefix was verified.
    confirmed: Identity,
    /// The label of an imported file that is a native segment or a part of one.
    pub(super) label: Option<Label>,
    /// The path of the sealed file that was compared with the seal in its name; `None` if it has none.
    sealed: Option<PathBuf>,
}

/// Whether more of a file can be applied.
pub(in crate::processor) enum Confirmed {
    /// Yes: this many bytes are applied, and the file begins with them.
    At(u64),
    /// The segment is fully applied.
    Applied(SegmentRow),
    /// Nothing of the file is applied: another segment with its number was applied, its label does not match
    /// its name, or it is not JSON Lines. The reason and what to do.
    Rival(String),
    /// The file has changed since it was applied or sealed.
    Corrupt(Corrupt),
    /// It was marked corrupt, and matches the applied prefix again.
    Restored(SegmentRow),
}

/// Which segment a file is.
enum Identified {
    /// The one in its name. An imported file may have a label: it is then a native segment or a part of one.
    Segment(Option<Label>),
    /// Another one, so it is not applied. The reason and what to do.
    Rival(String),
}

/// A file that has changed since it was applied or sealed.
pub(in crate::processor) struct Corrupt {
    pub(in crate::processor) applied_bytes: u64,
    pub(in crate::processor) size: u64,
    pub(in crate::processor) reason: String,
    /// Whether it is already marked as corrupt in the database.
    pub(in crate::processor) known: bool,
}

impl Applier<'_> {
    /// Verifies by checksum that the file begins with its applied prefix, and that a sealed file matches its
    /// seal. A file is verified once, and again after an error.
    pub(in crate::processor) fn confirm(
        &mut self,
        segment: &SegmentFile,
    ) -> Result<Confirmed, ProcessError> {
        let stat = segment
            .file
            .stat()
            .map_err(ProcessError::io("inspect", &segment.path))?;
        if let Some(follow) = self.follows.get_mut(&segment.id)
            && let Some(applied_bytes) = follow.recognise(segment, &stat)?
        {
            return Ok(Confirmed::At(applied_bytes));
        }
        let row = self.writer.segment(&segment.id)?;
        let label = match self.identify(segment, stat.size, row.as_ref())? {
            Identified::Segment(label) => label,
            Identified::Rival(reason) => return Ok(Confirmed::Rival(reason)),
        };
        let (applied_bytes, expected) = match &row {
            Some(row) if row.state == SegmentState::Applied => {
                return Ok(Confirmed::Applied(row.clone()));
            }
            Some(row) => (row.applied_bytes, row.checksum),
            None => (0, Hasher::new().finalize()),
        };
        let known = row
            .as_ref()
            .is_some_and(|row| row.state == SegmentState::Corrupt);
        let applied = Hasher::new_with_initial_len(expected, applied_bytes);
        if let Some(reason) = change(segment, stat.size, &applied)? {
            return Ok(Confirmed::Corrupt(Corrupt {
                applied_bytes,
                size: stat.size,
                reason,
                known,
            }));
        }
        if let Some(row) = row.filter(|_| known) {
            return Ok(Confirmed::Restored(row));
        }
        let follow = Follow {
            applied,
            confirmed: stat.identity,
            label,
            sealed: sealed_path(segment),
        };
        self.forget(&segment.id);
        self.follows.insert(segment.id.clone(), follow);
        if let Some(label) = label {
            let files = self.labelled.entry(label).or_default();
            files.push(segment.id.clone());
        }
        Ok(Confirmed::At(applied_bytes))
    }

    /// Whether a file of `size` bytes is the segment in its name, and the one in the database.
    fn identify(
        &self,
        segment: &SegmentFile,
        size: u64,
        row: Option<&SegmentRow>,
    ) -> Result<Identified, ProcessError> {
        let path = segment.path.display();
        if let Some(row) = row
            && row.tag != segment.tag
        {
            return Ok(Identified::Rival(format!(
                "segment {}: {path} is not the segment of that number that was applied ({}), so it is not applied. {OTHER_SEGMENT_CURE}",
                row.id, row.file_name
            )));
        }
        if row.is_some_and(|row| row.applied_bytes > 0) {
            return Ok(Identified::Segment(None)); // The checksum of the prefix identifies it.
        }
        let io = || ProcessError::io("read", &segment.path);
        let label = read_label(&*segment.file).map_err(io())?;
        let (Some(number), Some(tag)) = (segment.id.number(), segment.tag) else {
            let format = InputFormat::of(&import::head(&*segment.file).map_err(io())?);
            if let Some(refusal) = refusal(&format, &segment.path) {
                return Ok(Identified::Rival(format!("{path}: {refusal}")));
            }
            return self.identify_import(segment, size, label);
        };
        let own = Label { number, tag };
        if label != Some(own) {
            let reason = describe_other_label(&segment.id, &segment.path);
            return Ok(Identified::Rival(reason));
        }
        if self.has_own_parts()? {
            let others = self.writer.imports_of(own)?.into_iter();
            let others = others.map(|(other, applied)| (other, Some(applied)));
            let file = (&*segment.file, size, &*segment.name());
            if let Some(reason) = same_segment(file, (&segment.path, own), others).map_err(io())? {
                return Ok(Identified::Rival(reason));
            }
        }
        Ok(Identified::Segment(None))
    }

    /// Whether a part of a segment of this data directory was imported. Looked up once, so that native segments need
    /// no further query.
    fn has_own_parts(&self) -> Result<bool, StoreError> {
        if let Some(known) = self.own_parts.get() {
            return Ok(known);
        }
        let names = self.writer.applied_imports()?;
        let is_own = |name: &String| {
            Part::of_name(name).is_some_and(|part| part.label.tag.directory == self.directory)
        };
        let found = names.iter().any(is_own);
        self.own_parts.set(Some(found));
        Ok(found)
    }

    /// The same for an imported file of which nothing is applied, with the label in its first line.
    fn identify_import(
        &self,
        segment: &SegmentFile,
        size: u64,
        label: Option<Label>,
    ) -> Result<Identified, ProcessError> {
        let io = || ProcessError::io("read", &segment.path);
        let name = segment.name();
        let part = Part::of_name(&name);
        let label = match label_of_import(&segment.path, &name, label, self.directory) {
            Ok(label) => label,
            Err(reason) => return Ok(Identified::Rival(reason)),
        };
        if let Some(part) = part
            && let Some(reason) = not_the_part(segment, size, part)?
        {
            return Ok(Identified::Rival(reason));
        }
        let Some(label) = label else {
            return Ok(Identified::Segment(None));
        };
        if let Some((at, further)) = further_label(&*segment.file, size).map_err(io())? {
            return Ok(Identified::Rival(format!(
                "{}: the line that ends at byte {at} is the first of segment {}, so these are several segments in one file, and it is not applied. Move it out of the data directory and put the original files of the segments there",
                segment.path.display(),
                further.number
            )));
        }
        if label.tag.directory == self.directory {
            self.own_parts.set(Some(true));
        }
        let applied = self.writer.imports_of(label)?.into_iter();
        let applied = applied.map(|(name, prefix)| (name, Some(prefix)));
        let followed = self.labelled.get(&label).into_iter().flatten();
        let followed = followed.map(|id| (id.to_string(), None));
        let file = (&*segment.file, size, &*name);
        let others = applied.chain(followed);
        let same = same_segment(file, (&segment.path, label), others).map_err(io())?;
        if let Some(reason) = same {
            return Ok(Identified::Rival(reason));
        }
        Ok(Identified::Segment(Some(label)))
    }

    /// Whether this process has read and applied every byte of this file.
    pub(in crate::processor) fn has_read(
        &self,
        id: &SegmentId,
        identity: Identity,
        size: u64,
    ) -> bool {
        self.follows
            .get(id)
            .is_some_and(|f| f.confirmed == identity && f.applied.total_len() == size)
    }

    /// Discards the state of a segment.
    pub(in crate::processor) fn forget(&mut self, id: &SegmentId) {
        let forgotten = self.follows.remove(id);
        if let Some(label) = forgotten.and_then(|follow| follow.label)
            && let Some(files) = self.labelled.get_mut(&label)
        {
            files.retain(|file| file != id);
            if files.is_empty() {
                self.labelled.remove(&label);
            }
        }
    }

    /// Marks a file as corrupt in the database: no more of it is applied. Returns the number of lines that are
    /// not applied.
    pub(in crate::processor) fn mark_corrupt(
        &mut self,
        segment: &SegmentFile,
        corrupt: &Corrupt,
    ) -> Result<u64, ProcessError> {
        let from = corrupt.applied_bytes.min(corrupt.size);
        let corrupt_lines = lines::count(&*segment.file, from, corrupt.size)
            .map_err(ProcessError::io("read", &segment.path))?;
        self.forget(&segment.id);
        self.writer.mark(&Mark {
            segment: &segment.id,
            tag: segment.tag,
            file_name: &segment.name(),
            applied_bytes: corrupt.applied_bytes,
            state: SegmentState::Corrupt,
            reason: Some(&corrupt.reason),
            corrupt_bytes: corrupt.size - from,
            corrupt_lines,
            now_ms: self.clock.now_ms(),
        })?;
        Ok(corrupt_lines)
    }

    /// Records in the database that a segment's file is missing, or present again.
    pub(in crate::processor) fn note(
        &mut self,
        row: &SegmentRow,
        state: SegmentState,
        reason: Option<&str>,
    ) -> Result<(), StoreError> {
        self.writer.mark(&Mark {
            segment: &row.id,
            tag: row.tag,
            file_name: &row.file_name,
            applied_bytes: row.applied_bytes,
            state,
            reason,
            corrupt_bytes: 0,
            corrupt_lines: 0,
            now_ms: self.clock.now_ms(),
        })?;
        Ok(())
    }
}

impl Follow {
    /// The number of applied bytes if the prefix was verified in this very file and the file matches its seal;
    /// `None` if it must be verified from its start.
    ///
    /// When a segment is sealed that this process has applied from, only the bytes after the applied ones are
    /// read: the checksum of the applied ones is in memory. Their pages have left the page cache, and reading
    /// them from the disk would delay the appends to the next segment.
    fn recognise(
        &mut self,
        segment: &SegmentFile,
        stat: &FileStat,
    ) -> Result<Option<u64>, ProcessError> {
        let applied_bytes = self.applied.total_len();
        if self.confirmed != stat.identity || applied_bytes > stat.size {
            return Ok(None);
        }
        let sealed = sealed_path(segment);
        if sealed.is_none() || sealed == self.sealed {
            // Before its first line is applied, a file may have been too short to determine its format.
            let has_format = applied_bytes > 0 || segment.tag.is_some();
            return Ok(has_format.then_some(applied_bytes));
        }
        if applied_bytes == 0 {
            return Ok(None);
        }
        let broken = seal::contradiction(&*segment.file, &segment.path, &self.applied)
            .map_err(ProcessError::io("read", &segment.path))?;
        if broken.is_some() {
            return Ok(None);
        }
        self.sealed = sealed;
        Ok(Some(applied_bytes))
    }
}

/// Describes why a file of `size` bytes is not the part in its name; `None` if it is. A shorter one may still be
/// copied.
fn not_the_part(
    segment: &SegmentFile,
    size: u64,
    part: Part,
) -> Result<Option<String>, ProcessError> {
    let expected = part.to.length.saturating_sub(part.from.length);
    if size < expected {
        return Err(ProcessError::Incomplete {
            path: segment.path.clone(),
            size,
            expected,
        });
    }
    let bytes = Prefix {
        length: size,
        checksum: lines::checksum(&*segment.file, size)
            .map_err(ProcessError::io("read", &segment.path))?,
    };
    let is_whole = part.from.followed_by(bytes) == part.to;
    Ok((!is_whole).then(|| {
        format!(
            "{}: it is not the part of segment {} in its name, because it was changed, so it is not applied. Move it to quarantine/ and run `tallyline process FILE` with the original file, or restore this one from a backup",
            segment.path.display(),
            part.label.number
        )
    }))
}

/// The path of the file if its name has a seal.
fn sealed_path(segment: &SegmentFile) -> Option<PathBuf> {
    seal::of_path(&segment.path).map(|_| segment.path.clone())
}

/// Describes how a file of `size` bytes differs from its applied prefix or from its seal, and what to do;
/// `None` if it matches both. `applied` is the CRC-32 of the prefix, with its length.
fn change(
    segment: &SegmentFile,
    size: u64,
    applied: &Hasher,
) -> Result<Option<String>, ProcessError> {
    let name = format!("segment {} ({})", segment.id, segment.path.display());
    let applied_bytes = applied.total_len();
    if size < applied_bytes {
        return Ok(Some(format!(
            "{name}: {applied_bytes} bytes of it were applied, but it has only {size}; the applied events stay in the totals. Restore the file, or move it to quarantine/"
        )));
    }
    let found = lines::checksum(&*segment.file, applied_bytes)
        .map_err(ProcessError::io("read", &segment.path))?;
    if found != applied.clone().finalize() {
        return Ok(Some(format!(
            "{name}: {applied_bytes} bytes were applied with another content; the applied events stay in the totals, the other {} bytes are not applied. Restore the file, or move it to quarantine/",
            size - applied_bytes
        )));
    }
    let broken = seal::contradiction(&*segment.file, &segment.path, applied)
        .map_err(ProcessError::io("read", &segment.path))?;
    Ok(broken.map(|broken| format!("segment {}: {broken}", segment.id)))
}

/// Describes why a file with this format is not applied, and what to do; `None` for JSON Lines.
fn refusal(format: &InputFormat, path: &Path) -> Option<String> {
    let what = match format {
        InputFormat::Lines => return None,
        InputFormat::Unsupported(unsupported) => {
            return Some(format!(
                "it looks like {}, not JSON Lines, so it is not applied. Move it out of the data directory and {}",
                unsupported.what,
                unsupported.cure(path)
            ));
        }
        InputFormat::Gzip => "compressed with gzip",
        InputFormat::Array => "a JSON array",
        InputFormat::Objects => Unsupported::OBJECTS.what,
        InputFormat::Joined => Unsupported::JOINED.what,
    };
    Some(format!(
        "it looks like {what}, not JSON Lines, so it is not applied. Move it out of the data directory and run `tallyline process FILE` (while no server applies there) or `tallyline send FILE`, which convert it"
    ))
}
