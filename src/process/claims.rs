//! Which of the files that bear one identity is the segment.
//!
//! Names decide first: of two tags under one number, the one that the database knows is right, and
//! without a database neither is. Files of one tag are read: copies of one another are fine, but a
//! directory that was cloned while it was written to has two different ends of one segment.

use std::io;

use super::{archive, lines};
use crate::fs::Disk;
use crate::journal::{self, Claims, Found, Place};
use crate::segment::SegmentId;
use crate::store::{SegmentRow, SegmentState};

/// Tells the files of one identity apart, reading them where there are several. One that cannot be
/// read is no copy of the segment, as far as is known.
pub(super) fn settle<'c>(
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
    let whole = row.filter(|row| row.state == SegmentState::Whole);
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
pub(super) fn rivals_in_words(
    disk: &dyn Disk,
    id: &SegmentId,
    rivals: &[&Found],
    row: Option<&SegmentRow>,
) -> String {
    if id.number().is_some() {
        return journal::rivals_in_words(id, rivals);
    }
    let each = rivals.iter().map(|rival| {
        let path = rival.path.display();
        let words = row.and_then(|row| {
            let file = disk.open_read(&rival.path).ok()?;
            archive::other_content(&*file, Some(&rival.path), row).ok()
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
pub(super) fn stand_for(disk: &dyn Disk, found: &[Found], row: Option<&SegmentRow>) -> bool {
    let given_up = row.is_some_and(|row| row.state == SegmentState::Untrusted);
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
