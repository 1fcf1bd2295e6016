//! Which of the files that bear one identity is the segment.
//!
//! Names decide first: of two tags under one number, the one that the database knows is right, and
//! without a database neither is. Files of one tag are read: copies of one another are fine, but a
//! directory that was cloned while it was written to has two different ends of one segment.

use std::io;
use std::path::Path;

use crate::aggregate::lines;
use crate::data_dir::disk::{Disk, DiskFile};
use crate::data_dir::segment::SegmentId;
use crate::data_dir::{self, Claims, Found, Place};
use crate::data_dir::{DataDirError, SegmentFile};
use crate::store::{SegmentRow, SegmentState};

/// Tells the files of one identity apart, reading them where there are several. One that cannot be
/// read is no copy of the segment, as far as is known.
pub(crate) fn settle<'c>(
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
            // It has moved since the listing.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            read => Some((file, read.ok())),
        })
        .collect();
    let whole = row.filter(|row| row.state == SegmentState::Applied);
    let expected = if let Some(row) = whole {
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

/// Why the files that contradict a segment are not applied, and what to do.
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
        let words = row.and_then(|row| {
            let file = disk.open_read(&rival.path).ok()?;
            other_content(&*file, Some(&rival.path), row).ok()
        });
        words.map_or_else(
            || path.to_string(),
            |words| format!("{path}: {words}. Then move it away"),
        )
    });
    let each: Vec<String> = each.collect();
    match row {
        Some(_) => each.join("; "),
        None => format!(
            "{} have one name and different contents, so neither is applied. Keep the one that counts; if the other has events that are not in it, put only those into a file of another name",
            each.join(" and ")
        ),
    }
}

/// Whether the files of one identity stand for its events: one that can be applied, or was, or one in
/// the quarantine by which somebody says that the events are not to count: an empty one, or that of a
/// segment already known as changed. A file with events that was moved there before they were applied
/// is missing.
pub(crate) fn stand_for(disk: &dyn Disk, found: &[Found], row: Option<&SegmentRow>) -> bool {
    let given_up = row.is_some_and(|row| row.state == SegmentState::Corrupt);
    found.iter().any(|file| {
        file.place != Place::Quarantine
            || given_up
            || disk.size_at(&file.path).is_ok_and(|size| size == 0)
    })
}

/// Length and CRC-32.
fn content(disk: &dyn Disk, found: &Found) -> io::Result<(u64, u32)> {
    let file = disk.open_read(&found.path)?;
    let size = file.size()?;
    Ok((size, lines::checksum(&*file, size)?))
}

/// Why nothing is applied of a file whose name is that of a segment with another content, and how
/// the rest of it is counted without counting again what was. `path` is where the lines lie;
/// `None` if they were converted from something else.
pub(crate) fn other_content(
    file: &dyn DiskFile,
    path: Option<&Path>,
    row: &SegmentRow,
) -> io::Result<String> {
    let (name, applied) = (&row.file_name, row.applied_bytes);
    let has_grown = file.size()? > applied && lines::checksum(file, applied)? == row.checksum;
    let others = "put only the events that were not applied into a file of another name, and run `tallyline process` with that";
    Ok(match path {
        Some(path) if has_grown => {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            let rest = format!("{stem}-from-{applied}.jsonl");
            format!(
                "{name} was applied when it had {applied} bytes, and has grown since; what came after them is not applied. To count it, put it into a file of its own, `tail -c +{} '{}' > '{rest}'`, and run `tallyline process` with that",
                applied + 1,
                path.display()
            )
        }
        _ if has_grown => format!(
            "{name} was applied when there was less in it; what came after that is not applied. To count it, {others}"
        ),
        _ => format!(
            "a file named {name} was applied before with another content ({applied} bytes); nothing of this one is applied. To count what is new in it, {others}"
        ),
    })
}

/// Whether the file is byte for byte (by length and checksum) what was applied.
pub(crate) fn is_what_was_applied(
    segment: &SegmentFile,
    row: &SegmentRow,
) -> Result<bool, DataDirError> {
    let size = segment
        .file
        .size()
        .map_err(DataDirError::io("look at", &segment.path))?;
    if size != row.applied_bytes {
        return Ok(false);
    }
    let checksum =
        lines::checksum(&*segment.file, size).map_err(DataDirError::io("read", &segment.path))?;
    Ok(checksum == row.checksum)
}
