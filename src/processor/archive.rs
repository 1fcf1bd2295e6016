//! Moving a wholly applied file to `applied/YYYY-MM/`: for people; nothing depends on it.
//!
//! Rename, never replacing, only if the file is what was applied; then fsync of both directories. A
//! crash between leaves a file in one place or the other, and either is found.

use std::io;
use std::path::Path;

use super::ProcessError;
use crate::data_dir::APPLIED_DIR;
use crate::data_dir::SegmentFile;
use crate::data_dir::disk::{self, Disk};
use crate::store::SegmentRow;
use crate::timestamp::{self, now_ms};
use crate::verify::contents::{is_what_was_applied, other_content};

/// What became of a whole file that lies in the data directory itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Archived {
    /// It is in the archive now.
    Moved,
    /// A file of its name is there already; it stays where it is.
    NameTaken,
    /// It is a symbolic link with a relative target, which would lead elsewhere from the archive; it
    /// stays where it is.
    RelativeLink,
    /// It is not what was applied under its name; it stays where it is. Why, and what to do.
    OtherContent(String),
}

impl Archived {
    /// Why the file stays where it is.
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

/// Moves a whole file to the archive. `has_read`: this process has just read all of it.
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
    // The month's own entry too: a sync of it that failed once is not tried again where it is made.
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

/// `2026-11`, UTC.
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
