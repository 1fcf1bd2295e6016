//! Moves fully applied files to `applied/YYYY-MM/`. This only keeps the data directory small; a file is found
//! in either place.
//!
//! First the directory of the month is made durable. A file is then moved only if it has the length and
//! checksum that were applied, which are compared unless this process has just read and applied all of it;
//! the rename never replaces a file. Then both directories are synced. Files that were applied together are
//! renamed one after the other, and each directory is synced once. After a crash every file is in one place
//! or the other.
//!
//! Nothing is decided by the place of a file, and nothing is removed, so the commit that marks the file as
//! fully applied need not be durable before the move. If the commit is lost, the file is applied again from
//! the archive.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

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

/// A fully applied file, to be moved to the archive.
pub(super) struct Leaving<'a> {
    pub(super) segment: &'a SegmentFile,
    pub(super) row: &'a SegmentRow,
    /// Whether this process has read and applied all of it, so that the checksum need not be verified.
    pub(super) has_read: bool,
}

/// Moves fully applied files to the archive and syncs each directory once. Returns the result for each
/// file; if a directory could not be synced, that error for the files that were moved.
pub(super) fn archive(
    disk: &dyn Disk,
    data_dir: &Path,
    files: &[Leaving<'_>],
) -> Vec<Result<Archived, ProcessError>> {
    let mut months = BTreeSet::new();
    let mut moved: Vec<_> = files
        .iter()
        .map(|file| move_away(disk, data_dir, file, &mut months))
        .collect();
    if !moved.iter().any(|file| matches!(file, Ok(Archived::Moved))) {
        return moved;
    }
    for dir in months.into_iter().chain([data_dir.to_owned()]) {
        let Err(error) = disk.sync_dir(&dir) else {
            continue;
        };
        for file in &mut moved {
            if matches!(file, Ok(Archived::Moved)) {
                let again = io::Error::new(error.kind(), error.to_string());
                *file = Err(ProcessError::io("sync", &dir)(again));
            }
        }
    }
    moved
}

/// Moves one file; its directory joins `months`, the directories that are there and durable.
fn move_away(
    disk: &dyn Disk,
    data_dir: &Path,
    file: &Leaving<'_>,
    months: &mut BTreeSet<PathBuf>,
) -> Result<Archived, ProcessError> {
    let Leaving {
        segment,
        row,
        has_read,
    } = *file;
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
    let made = if months.contains(&month) {
        Ok(())
    } else {
        make_dir(disk, data_dir, &applied).and_then(|()| make_dir(disk, &applied, &month))
    };
    match made.and_then(|()| disk.rename_new(path, &target)) {
        Ok(()) => {
            months.insert(month);
            Ok(Archived::Moved)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Archived::NameTaken),
        Err(cause) => Err(ProcessError::NotArchived {
            path: path.clone(),
            archive: month,
            cause,
        }),
    }
}

/// Makes a directory and its entry durable before a file moves into it. An existing directory is synced
/// too, because the sync after its creation may have failed.
fn make_dir(disk: &dyn Disk, parent: &Path, dir: &Path) -> io::Result<()> {
    if disk.identity(dir)?.is_none() {
        disk.create_dir(dir)?;
    }
    disk.sync_dir(parent)
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
