//! Moving a wholly applied file to `applied/YYYY-MM/`: for people; nothing depends on it.
//!
//! Rename, never replacing, only if the file is what was applied; then fsync of both directories. A
//! crash between leaves a file in one place or the other, and either is found.

use std::io;
use std::path::Path;

use super::applier::SegmentFile;
use super::{ProcessError, lines};
use crate::fs::{self, Disk, DiskFile};
use crate::journal::APPLIED_DIR;
use crate::store::SegmentRow;
use crate::timestamp::{self, now_ms};

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

/// Why nothing is applied of a file whose name is that of a segment with another content, and how
/// the rest of it is counted without counting again what was. `path` is where the lines lie;
/// `None` if they were converted from something else.
pub(super) fn other_content(
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
pub(super) fn is_what_was_applied(
    segment: &SegmentFile,
    row: &SegmentRow,
) -> Result<bool, ProcessError> {
    let size = segment
        .file
        .size()
        .map_err(ProcessError::io("look at", &segment.path))?;
    if size != row.applied_bytes {
        return Ok(false);
    }
    let checksum =
        lines::checksum(&*segment.file, size).map_err(ProcessError::io("read", &segment.path))?;
    Ok(checksum == row.checksum)
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
    if fs::is_relative_link(path) {
        return Ok(Archived::RelativeLink);
    }
    let applied = data_dir.join(APPLIED_DIR);
    let month = applied.join(month(row.whole_at_ms.unwrap_or_else(now_ms)));
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
