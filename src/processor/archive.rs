//! Moves fully applied files to `applied/YYYY-MM/`. This only keeps the data directory small; a file is found
//! in either place.
//!
//! A file is moved only if it has the length and checksum that were applied. The rename never replaces a file,
//! and both directories are synced after it. After a crash the file is in one place or the other.

use std::io;
use std::path::Path;

use super::ProcessError;
use crate::data_dir::APPLIED_DIR;
use crate::data_dir::SegmentFile;
use crate::data_dir::disk::{self, Disk};
use crate::store::SegmentRow;
use crate::timestamp::{self, now_ms};
use crate::verify::contents::{is_what_was_applied, other_content};

/// The result of archiving a fully applied file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Archived {
    /// It was moved to the archive.
    Moved,
    /// Not moved: the archive has a file of that name.
    NameTaken,
    /// Not moved: it is a symbolic link with a relative target, which would be wrong in the archive.
    RelativeLink,
    /// Not moved: it has another content than was applied. The text says so and what to do.
    OtherContent(String),
}

impl Archived {
    /// Why the file was not moved, for readiness.
    pub(super) fn refusal(&self) -> Option<&str> {
        match self {
            Self::Moved | Self::RelativeLink => None,
            Self::NameTaken => {
                Some("it is applied, but a file of that name is in the archive already")
            }
            Self::OtherContent(words) => Some(words),
        }
    }
}

/// Moves a fully applied file to the archive. If `has_read`, this process has read and applied all of it, so
/// that the checksum need not be verified.
pub(super) fn archive(
    disk: &dyn Disk,
    data_dir: &Path,
    segment: &SegmentFile,
    row: &SegmentRow,
    has_read: bool,
) -> Result<Archived, ProcessError> {
    if !has_read && !is_what_was_applied(segment, row)? {
        let words = other_content(&*segment.file, Some(&segment.path), row)
            .map_err(ProcessError::io("read", &segment.path))?;
        return Ok(Archived::OtherContent(words));
    }
    let path = &segment.path;
    if disk::is_relative_link(path) {
        return Ok(Archived::RelativeLink);
    }
    let applied = data_dir.join(APPLIED_DIR);
    let month = applied.join(month(row.completed_at_ms.unwrap_or_else(now_ms)));
    let target = month.join(path.file_name().unwrap_or_default());
    let moved = make_dir(disk, data_dir, &applied)
        .and_then(|()| make_dir(disk, &applied, &month))
        .and_then(|()| disk.rename_new(path, &target));
    match moved {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Ok(Archived::NameTaken);
        }
        Err(cause) => {
            return Err(ProcessError::NotArchived {
                path: path.clone(),
                archive: month,
                cause,
            });
        }
    }
    // The entry of the month is synced too: `make_dir` does not repeat a sync that has failed.
    for dir in [&month, &applied, data_dir] {
        disk.sync_dir(dir).map_err(ProcessError::io("sync", dir))?;
    }
    Ok(Archived::Moved)
}

fn make_dir(disk: &dyn Disk, parent: &Path, dir: &Path) -> io::Result<()> {
    if disk.identity(dir)?.is_none() {
        disk.create_dir(dir)?;
        disk.sync_dir(parent)?;
    }
    Ok(())
}

/// The month of a time in UTC, such as `2026-11`.
fn month(at_ms: i64) -> String {
    let mut text = timestamp::rfc3339_seconds(timestamp::of_ms(at_ms));
    text.truncate("2026-11".len());
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_month_is_year_and_month() {
        assert_eq!(super::month(1_795_329_660_123), "2026-11");
        assert_eq!(super::month(i64::MIN), "1970-01");
        assert_eq!(super::month(i64::MAX), "9999-12");
    }
}
