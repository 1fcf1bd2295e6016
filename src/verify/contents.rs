//! Which of several files with one segment id is the segment.
//!
//! The names are compared first. If files have one number and different tags, the tag in the database
//! decides; without a row in the database, no file is used. Files with the same tag are read: equal copies
//! are accepted, but a directory that was cloned while a server wrote to it can have two files that
//! continue one segment differently.

use std::io;
use std::path::Path;

use crate::aggregate::lines;
use crate::data_dir::disk::{Disk, DiskFile};
use crate::data_dir::segment::{DirectoryTag, Label, Part, Prefix, SegmentId};
use crate::data_dir::{self, Claims, DataDirError, Found, Place, SegmentFile};
use crate::store::{SegmentRow, SegmentState};

/// Sorts the files with one id into the segment, its copies, and its rivals. If there are several, they are
/// read. A file that cannot be read is a rival.
pub(crate) fn compare_claims<'c>(
    disk: &dyn Disk,
    found: &'c [Found],
    row: Option<&SegmentRow>,
) -> Claims<'c> {
    let mut claims = Claims::of(found, row.map(|row| row.tag));
    let Some(usable) = claims.usable.filter(|_| !claims.copies.is_empty()) else {
        return claims;
    };
    let files: Vec<&Found> = [usable]
        .into_iter()
        .chain(claims.copies.drain(..))
        .collect();
    let read: Vec<(&Found, Option<(u64, u32)>)> = files
        .into_iter()
        .filter_map(|file| match content(disk, file) {
            // Moved since the directory was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            read => Some((file, read.ok())),
        })
        .collect();
    let applied = row.filter(|row| row.state == SegmentState::Applied);
    let expected = if let Some(row) = applied {
        Some((row.applied_bytes, row.checksum))
    } else {
        let first = read.first().and_then(|(_, content)| *content);
        first.filter(|_| read.iter().all(|(_, content)| *content == first))
    };
    claims.usable = None;
    for (file, content) in read {
        if content.is_none() || content != expected {
            claims.rivals.push(file);
        } else if claims.usable.is_none() {
            claims.usable = Some(file);
        } else {
            claims.copies.push(file);
        }
    }
    claims
}

/// Describes why the rivals of a segment are not applied, and what to do.
pub(crate) fn describe_rivals(
    disk: &dyn Disk,
    id: &SegmentId,
    rivals: &[&Found],
    row: Option<&SegmentRow>,
) -> String {
    if id.number().is_some() {
        return data_dir::describe_rivals(id, rivals);
    }
    let each = rivals.iter().map(|rival| {
        let path = rival.path.display();
        let reason = row.and_then(|row| {
            let file = disk.open_read(&rival.path).ok()?;
            other_content(&*file, Some(&rival.path), row).ok()
        });
        reason.map_or_else(
            || path.to_string(),
            |reason| format!("{path}: {reason}. Then move it away"),
        )
    });
    let each: Vec<String> = each.collect();
    match row {
        Some(_) => each.join("; "),
        None => format!(
            "{} have the same name but different contents, so neither is applied. Keep one of them; if the other one has events that it lacks, put only those into a file with another name",
            each.join(" and ")
        ),
    }
}

/// Whether a segment with these files is present, that is, not missing.
///
/// A file outside the quarantine makes it present. In the quarantine, only a file by which the operator
/// accepts that its events do not count does so: an empty one, or the file of a segment that is already
/// marked as corrupt. A file with events that was moved there before they were applied leaves the segment
/// missing.
pub(crate) fn accounts_for(disk: &dyn Disk, found: &[Found], row: Option<&SegmentRow>) -> bool {
    let given_up = row.is_some_and(|row| row.state == SegmentState::Corrupt);
    found.iter().any(|file| {
        file.place != Place::Quarantine
            || given_up
            || disk.size_at(&file.path).is_ok_and(|size| size == 0)
    })
}

/// Length and CRC-32 of a file.
fn content(disk: &dyn Disk, found: &Found) -> io::Result<(u64, u32)> {
    let file = disk.open_read(&found.path)?;
    let size = file.size()?;
    Ok((size, lines::checksum(&*file, size)?))
}

/// Describes why a file is not applied that has the name of an applied segment but another content, and how
/// to count its new events without counting the others again. `path` is the file with the lines; `None` if
/// they were converted from another format.
pub(crate) fn other_content(
    file: &dyn DiskFile,
    path: Option<&Path>,
    row: &SegmentRow,
) -> io::Result<String> {
    let (name, applied) = (&row.file_name, row.applied_bytes);
    let has_grown = file.size()? > applied && lines::checksum(file, applied)? == row.checksum;
    let is_labelled = data_dir::read_label(file)?.is_some();
    let advice = "put only the events that were not applied into a file with another name, and run `tallyline process` with that file";
    Ok(match path {
        Some(_) if has_grown && is_labelled => format!(
            "{name} was applied when it had {applied} bytes, and has grown since; the bytes after them are not applied. To count them, move the file out of the data directory and run `tallyline process FILE` with it, which imports the rest"
        ),
        Some(path) if has_grown => {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            let rest = format!("{stem}-from-{applied}.jsonl");
            format!(
                "{name} was applied when it had {applied} bytes, and has grown since; the bytes after them are not applied. To count them, put them into another file, `tail -c +{} '{}' > '{rest}'`, and run `tallyline process` with that file",
                applied + 1,
                path.display()
            )
        }
        _ if has_grown => format!(
            "{name} was applied when it had fewer events; those that were added are not applied. To count them, {advice}"
        ),
        _ => format!(
            "a file named {name} was applied before with another content ({applied} bytes); this one is not applied. To count the new events in it, {advice}"
        ),
    })
}

/// What to do with a file that is not the segment in its name.
pub(crate) const OTHER_SEGMENT_CURE: &str = "To count its events, move it out of the data directory and run `tallyline process FILE` with it, which imports the events that are not counted yet; otherwise move it to quarantine/";

/// Describes why a file with the name of a native segment is not applied: its first line has another label or
/// none.
pub(crate) fn describe_other_label(id: &SegmentId, path: &Path) -> String {
    format!(
        "segment {id}: the first line of {} is not the label of this segment, so it was renamed, edited or emptied and is not applied. {OTHER_SEGMENT_CURE}",
        path.display()
    )
}

/// Describes why a file with the name of an imported one is not applied: its first line has the label of a
/// segment of this data directory.
fn describe_other_name(path: &Path, label: Label) -> String {
    format!(
        "{}: according to its first line it is segment {} of this data directory under another name, so it is not applied. {OTHER_SEGMENT_CURE}",
        path.display(),
        label.number
    )
}

/// Whether a file of `size` bytes begins with this prefix.
pub(crate) fn begins_with(file: &dyn DiskFile, size: u64, prefix: Prefix) -> io::Result<bool> {
    Ok(prefix.length <= size && lines::checksum(file, prefix.length)? == prefix.checksum)
}

/// Whether two imported files with the label of the same segment have lines in common: both begin with the
/// segment, or one is a part of it that the other one has. `file` has `size` bytes and this name; what is
/// applied of the other one is `other_applied`, if that is known.
///
/// Two copies of a data directory that both continued to be used have one segment with two ends. Parts with
/// different ends may therefore have no line in common.
fn have_common_lines(
    (file, size, name): (&dyn DiskFile, u64, &str),
    other: &str,
    other_applied: Option<Prefix>,
) -> io::Result<bool> {
    let is_rest = |part: &Part| part.from.length > 0;
    let part = Part::of_name(name).filter(is_rest);
    let other_part = Part::of_name(other);
    match (part, other_part.filter(is_rest)) {
        (None, None) => Ok(true),
        (None, Some(other)) => begins_with(file, size, other.to),
        (Some(part), _) => {
            let other_end = other_part.map(|other| other.to).or(other_applied);
            Ok(other_end == Some(part.to))
        }
    }
}

/// The label of an imported file, from the name of a part or from its first line; `None` if it is not a native
/// segment. The error describes why the file is not applied: it is a segment of this data directory under another
/// name.
pub(crate) fn label_of_import(
    path: &Path,
    name: &str,
    first_line: Option<Label>,
    directory: DirectoryTag,
) -> Result<Option<Label>, String> {
    let part = Part::of_name(name).map(|part| part.label);
    let ours = first_line.filter(|label| label.tag.directory == directory);
    match ours.filter(|ours| part.is_none_or(|part| part != *ours)) {
        Some(ours) => Err(describe_other_name(path, ours)),
        None => Ok(part.or(first_line)),
    }
}

/// Describes why a file with this label is not applied: one of `others`, which have the same label, has lines of the
/// same segment. Each comes with what is applied of it, if that is known. `None` if no other one has.
pub(crate) fn same_segment(
    (file, size, name): (&dyn DiskFile, u64, &str),
    (path, label): (&Path, Label),
    others: impl IntoIterator<Item = (String, Option<Prefix>)>,
) -> io::Result<Option<String>> {
    for (other, applied) in others {
        if other != name && have_common_lines((file, size, name), &other, applied)? {
            return Ok(Some(describe_same_segment(path, label, &other)));
        }
    }
    Ok(None)
}

pub(crate) fn describe_same_segment(path: &Path, label: Label, other: &str) -> String {
    format!(
        "{}: it has lines of segment {} of the data directory {:08x}, and so does {other}, so it is not applied. {OTHER_SEGMENT_CURE}",
        path.display(),
        label.number,
        label.tag.directory
    )
}

/// Describes an imported file that has the content of another one.
pub(crate) fn describe_same_content(name: &str, other: &str, bytes: u64) -> String {
    format!(
        "{name} has the same length ({bytes} bytes) and checksum as {other}, and the events of both are counted. If one is a copy of the other, move one of them out of the data directory and run `tallyline process --rebuild`"
    )
}

/// Whether the file has the length and checksum of its row, that is, the bytes that were applied.
pub(crate) fn is_what_was_applied(
    segment: &SegmentFile,
    row: &SegmentRow,
) -> Result<bool, DataDirError> {
    let size = segment
        .file
        .size()
        .map_err(DataDirError::io("inspect", &segment.path))?;
    if size != row.applied_bytes {
        return Ok(false);
    }
    let checksum =
        lines::checksum(&*segment.file, size).map_err(DataDirError::io("read", &segment.path))?;
    Ok(checksum == row.checksum)
}
