//! The database of a data directory, and the bytes of its files that are not applied.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context as _, bail};
use uuid::Uuid;

use crate::cli::output::counted;
use crate::data_dir::disk::RealDisk;
use crate::data_dir::segment::{ACTIVE_FILE, SegmentId};
use crate::data_dir::{Directory, directory_tag};
use crate::store::{Database, Readers, SegmentRow, SegmentState};

/// Opens the database of a data directory for reading. Fails if there is none.
pub(in crate::commands) fn open_database(
    data_dir: &Path,
    url: Option<&Database>,
) -> anyhow::Result<Totals> {
    let database = url.map_or_else(|| Database::in_dir(data_dir), Database::clone);
    let readers = Readers::of(&database, 1);
    let directory = match database.directory()? {
        Some(directory) => Some(directory),
        None => Directory::read(&RealDisk, data_dir)
            .ok()
            .flatten()
            .map(|directory| directory.id),
    };
    if let Some(directory) = directory {
        readers.belong_to(directory);
    }
    let totals = Totals { readers, directory };
    if let Some(path) = database.file()
        && !path.exists()
    {
        let pending = totals.unapplied(data_dir)?;
        if pending.bytes > 0 {
            bail!(
                "there is no database {}: {pending}; run `tallyline process` to apply them",
                path.display()
            );
        }
        bail!(
            "there is no database {}; start `tallyline serve`, run `tallyline process`, or name another data directory with --data-dir",
            path.display()
        );
    }
    totals.readers.check()?;
    Ok(totals)
}

/// The database, and the data directory whose segments are shown.
pub(in crate::commands) struct Totals {
    pub(in crate::commands) readers: Readers,
    directory: Option<Uuid>,
}

impl Totals {
    pub(super) fn unapplied(&self, data_dir: &Path) -> anyhow::Result<Unapplied> {
        Unapplied::of(data_dir, self.directory, &self.readers)
    }
}

/// Events in the files of the data directory that are not in the database yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Unapplied {
    files: u64,
    pub(super) bytes: u64,
}

impl Unapplied {
    /// Counts by file lengths; no file is opened. Archived segments are fully applied.
    fn of(data_dir: &Path, directory: Option<Uuid>, readers: &Readers) -> anyhow::Result<Self> {
        let cannot_list = || format!("cannot list {}", data_dir.display());
        let entries = match fs::read_dir(data_dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            entries => entries.with_context(cannot_list)?,
        };
        let unfinished = readers.unfinished_segments()?;
        let directory = directory.map_or(0, directory_tag);
        // The row of `events.jsonl` may belong to a segment that was sealed since.
        let mut active = unfinished.iter().find(|row| row.file_name == ACTIVE_FILE);
        let mut pending = Self::default();
        let mut active_bytes = None;
        for entry in entries {
            let entry = entry.with_context(cannot_list)?;
            let name = entry.file_name();
            // Renamed or removed meanwhile: it is applied, or listed under its new name.
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            let Some(name) = name.to_str().filter(|_| metadata.is_file()) else {
                continue;
            };
            if name == ACTIVE_FILE {
                active_bytes = Some(metadata.len());
            } else if let Some((id, _)) = SegmentId::of_file(name, directory) {
                active = active.filter(|row| row.id != id);
                let row = readers.segment(&id)?;
                pending.add(metadata.len(), row.as_ref());
            }
        }
        if let Some(bytes) = active_bytes {
            pending.add(bytes, active);
        }
        Ok(pending)
    }

    fn add(&mut self, file_bytes: u64, row: Option<&SegmentRow>) {
        let applied = row.map_or(0, |row| match row.state {
            SegmentState::Active | SegmentState::Sealed => row.applied_bytes,
            // The rest of these is never applied.
            SegmentState::Applied | SegmentState::Corrupt | SegmentState::Missing => file_bytes,
        });
        let bytes = file_bytes.saturating_sub(applied);
        self.bytes += bytes;
        self.files += u64::from(bytes > 0);
    }
}

impl fmt::Display for Unapplied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bytes, files) = (counted(self.bytes, "byte"), counted(self.files, "file"));
        write!(f, "{bytes} in {files} are not applied yet")
    }
}
