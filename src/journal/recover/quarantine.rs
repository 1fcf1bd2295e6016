//! What recovery leaves in `quarantine/`: torn tails, and notes of missing segments.

use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::tail::each_block;
use crate::data_dir::disk::{self, Disk, DiskFile};
use crate::data_dir::missing_note;
use crate::data_dir::segment::{ACTIVE_FILE, Label, sealed_file_name};
use crate::journal::{JournalError, KnownSegment};

/// Copies `[from, to)` to `quarantine/torn-<number>-<from>`. An existing file of that name (from an
/// interrupted recovery, or another tail) is kept, and the copy gets a numbered suffix.
pub(super) fn keep_torn_tail(
    disk: &dyn Disk,
    quarantine: &Path,
    number: u64,
    file: &dyn DiskFile,
    from: u64,
    to: u64,
) -> Result<PathBuf, JournalError> {
    let name = format!("torn-{number}-{from}");
    let mut path = quarantine.join(&name);
    let mut copies = 1;
    while disk
        .identity(&path)
        .map_err(JournalError::io("examine", &path))?
        .is_some()
    {
        copies += 1;
        path = quarantine.join(format!("{name}.{copies}"));
    }
    disk::write_new(disk, &path, |copy| {
        each_block(file, from, to, |at, block| {
            copy.write_all_at(block, at - from)
        })
    })
    .map_err(JournalError::io("write", &path))?;
    Ok(path)
}

/// Notes that the file of a segment with acknowledged events is missing; an existing note is kept.
pub(super) fn write_missing_note(
    disk: &dyn Disk,
    data_dir: &Path,
    label: Label,
    row: Option<KnownSegment>,
) -> Result<(), JournalError> {
    let note = missing_note(data_dir, label.number);
    let applied_bytes = row.map_or(0, |row| row.applied_bytes);
    let text = format!(
        "Segment {} is missing: {ACTIVE_FILE} was missing or empty at start, but the segment held acknowledged events.\n\
         {applied_bytes} bytes of it were applied to the database and are still counted. Events that were acknowledged\n\
         after that are lost unless the file is found. If you find it, stop the server, put the file into the data\n\
         directory under the name\n\
         {}\n\
         delete this note, and start the server again.\n",
        label.number,
        sealed_file_name(label, SystemTime::now()),
    );
    match disk::write_new(disk, &note, |file| file.write_all_at(text.as_bytes(), 0)) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        written => written.map_err(JournalError::io("write", &note)),
    }
}
