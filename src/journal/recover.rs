//! Recovery at start: turns the state after a crash into an active segment with a known durable end.
//! It runs on the thread that opens the journal, before the committer starts and before the server
//! listens.
//!
//! After a crash, visible data is not necessarily durable, so everything is synced before its length
//! is used. Every step is idempotent: a crash during recovery only makes the next recovery repeat it.
//!
//! The label in the first line of `events.jsonl` identifies the segment; without a label,
//! `directory.json` does. If the two name different segments, or the label's segment is already sealed,
//! another program put the file there, or the directory was copied while it changed. Recovery then
//! never treats the bytes as those of another segment, deletes nothing, and reports what it found.
//! Any I/O error ends recovery, and the journal does not open.

mod active_file;
mod quarantine;
mod tail;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crc32fast::Hasher;

use self::active_file::ActiveFile;
use self::quarantine::{keep_torn_tail, write_missing_note};
use self::tail::{each_block, has_zeros, rewrite};
use super::{JournalError, KnownSegment, KnownSegments};
use crate::data_dir::disk::{self, Disk, DiskFile};
use crate::data_dir::segment::{ACTIVE_FILE, Label, Numbers, SegmentId};
use crate::data_dir::{Catalog, Directory, QUARANTINE_DIR, first_free, is_sealed, read_label};

/// The findings of recovery, for the log and for the processor. Each is `None` if it did not occur.
#[derive(Debug, Default)]
pub struct Recovery {
    /// The number of bytes after the last line end, which were never acknowledged, and the file in
    /// `quarantine/` that holds them now.
    pub torn: Option<(u64, PathBuf)>,
    /// The number of a segment that held acknowledged events and whose file is missing.
    pub missing: Option<u64>,
    /// The number of an active segment that was shorter than its applied offset; it was sealed.
    pub corrupt: Option<u64>,
    /// The number of a segment that was sealed as it is, and its bytes. A later segment was created, so this
    /// file is a copy from before the segment was sealed: events that were appended afterwards may be missing.
    pub early_copy: Option<(u64, u64)>,
    /// The new path of an `events.jsonl` without a label, which is imported.
    pub imported: Option<PathBuf>,
    /// Why `events.jsonl` was moved to `quarantine/`, and what the operator can do.
    pub contradiction: Option<String>,
}

/// The active segment, open for appending.
pub(super) struct Active {
    pub(super) directory: Directory,
    pub(super) durable_end: u64,
    /// CRC-32 of the bytes before the durable end.
    pub(super) checksum: Hasher,
    pub(super) file: Arc<dyn DiskFile>,
    /// Numbers in use by files or database rows: no new segment gets one of them.
    pub(super) taken: Numbers,
}

pub(super) fn recover(
    disk: &dyn Disk,
    data_dir: &Path,
    known: &KnownSegments,
) -> Result<(Active, Recovery), JournalError> {
    let quarantine = data_dir.join(QUARANTINE_DIR);
    disk.create_dir(&quarantine)
        .map_err(JournalError::io("create", &quarantine))?;
    let directory = Directory::establish(disk, data_dir, known.directory, known.highest())?;
    // The files with a number that the active segment may have are listed one by one, even if the
    // database has the segment as fully applied.
    let mut settled = known.applied.clone();
    for number in active_numbers(disk, data_dir) {
        settled.remove(number);
    }
    let catalog = Catalog::scan_unapplied(disk, data_dir, directory.tag(), &settled)
        .map_err(JournalError::io("list", data_dir))?;
    let mut taken = catalog.numbers();
    taken.extend(known.segments.iter().map(|row| row.number));
    known
        .applied
        .ranges()
        .for_each(|range| taken.insert_range(range));
    let mut recover = Recover {
        disk,
        data_dir,
        active_file: ActiveFile::in_dir(disk, data_dir),
        known,
        directory,
        catalog,
        taken,
        recovery: Recovery::default(),
    };
    // 0. Make the directory entries durable before they are used.
    for dir in &recover.catalog.dirs {
        disk.sync_dir(dir).map_err(JournalError::io("sync", dir))?;
    }
    let (durable_end, file) = recover.active()?;
    let checksum = recover.checksum(&*file, durable_end)?;
    let active = Active {
        directory: recover.directory,
        durable_end,
        checksum,
        file,
        taken: recover.taken,
    };
    Ok((active, recover.recovery))
}

/// The numbers that the active segment may have, from `directory.json` and from the label of
/// `events.jsonl`. Recovery needs their rows. A file that cannot be read is skipped here, because
/// recovery reports it.
pub fn active_numbers(disk: &dyn Disk, data_dir: &Path) -> Vec<u64> {
    let directory = Directory::read(disk, data_dir).ok().flatten();
    let file = disk.open_read(&data_dir.join(ACTIVE_FILE)).ok();
    let label = file.and_then(|file| read_label(&*file).ok().flatten());
    let numbers = directory.map(|directory| directory.number).into_iter();
    numbers.chain(label.map(|label| label.number)).collect()
}

struct Recover<'r> {
    disk: &'r dyn Disk,
    data_dir: &'r Path,
    active_file: ActiveFile<'r>,
    known: &'r KnownSegments,
    directory: Directory,
    catalog: Catalog,
    taken: Numbers,
    recovery: Recovery,
}

/// The durable end and the open file.
type Opened = (u64, Arc<dyn DiskFile>);

impl Recover<'_> {
    /// Identifies the segment in `events.jsonl` and continues it, or creates a new one.
    fn active(&mut self) -> Result<Opened, JournalError> {
        let Some(file) = self.active_file.open()? else {
            return self.without_events();
        };
        let label = read_label(&*file).map_err(self.active_file.io("read"))?;
        let size = file.size().map_err(self.active_file.io("examine"))?;
        let mut durable_end = self.make_durable(&*file, label, size)?;
        // A power failure during the first write of a segment: unsynced blocks read as zeros.
        if label.is_none()
            && !self.directory.started
            && has_zeros(&*file).map_err(self.active_file.io("read"))?
        {
            durable_end = 0;
        }
        if durable_end == 0 {
            if size > 0 {
                self.cut_torn_tail(&*file, 0, size)?;
            }
            if self.directory.started || self.is_taken() {
                drop(file);
                self.active_file.remove()?;
                return self.without_events();
            }
            self.retoken()?;
            return Ok((0, file));
        }
        let ours = label.filter(|label| label.tag.directory == self.directory.tag());
        match ours {
            Some(label) if is_sealed(&self.catalog, label) => {
                drop(file);
                self.set_aside(&format!(
                    "it is a copy of segment {}, which is sealed already",
                    label.number
                ))?;
                self.without_events()
            }
            Some(label) => self.labelled(label, file, durable_end, size),
            None if self.directory.started => {
                drop(file);
                let number = self.directory.number;
                let applied = self.known.row(number);
                self.set_aside(&match (label, applied.map_or(0, |row| row.applied_bytes)) {
                    (Some(other), _) => format!(
                        "it is segment {} of the data directory {:08x}, but segment {number} of this one is active",
                        other.number, other.tag.directory
                    ),
                    (None, 0) => format!("it has no label, but segment {number} is active"),
                    (None, bytes) => format!(
                        "it has no label, but segment {number} is active, of which {bytes} bytes are applied; if the file begins with the same lines, remove them before you process it, otherwise they are counted twice"
                    ),
                })?;
                self.without_events()
            }
            None => {
                drop(file);
                self.recovery.imported = Some(self.active_file.import()?);
                self.without_events()
            }
        }
    }

    /// Continues or seals a file with a label of this directory that is not sealed yet. It is the
    /// active segment, or, in a copy taken while segments changed, the one before or after it.
    fn labelled(
        &mut self,
        label: Label,
        file: Arc<dyn DiskFile>,
        durable_end: u64,
        size: u64,
    ) -> Result<Opened, JournalError> {
        let stored = self.directory.label();
        let rival = label.number == stored.number && label != stored && self.directory.started;
        let row = self.known.row(label.number);
        let other = row.filter(|row| row.tag.is_some_and(|tag| tag != label.tag));
        if rival || other.is_some() || self.is_other_sealed(label) {
            drop(file);
            self.set_aside(&format!(
                "its label says segment {}, but another segment of that number is known here",
                label.number
            ))?;
            return self.without_events();
        }
        if durable_end < size {
            self.cut_torn_tail(&*file, durable_end, size)?;
        }
        // A later segment was created: this one must not grow any more.
        let passed = stored.number > label.number;
        if self.directory.started
            && stored != label
            && !is_sealed(&self.catalog, stored)
            && !self.is_applied(stored)
        {
            self.note_missing(stored)?;
        }
        let known = row.is_some_and(|row| row.sealed || row.applied_bytes > durable_end);
        if row.is_some_and(|row| row.applied_bytes > durable_end) {
            self.recovery.corrupt = Some(label.number);
        }
        self.taken.insert(label.number);
        if passed || known || label.number <= self.known.pruned {
            // It must not grow: it is sealed as it is. The processor checks and reports its content.
            self.active_file.seal(label)?;
            // A pruned segment is not applied again, and a known one is checked against its row.
            if passed && !known && label.number > self.known.pruned {
                self.recovery.early_copy = Some((label.number, durable_end));
            }
            if passed && !self.directory.started && !self.is_taken() {
                self.retoken()?;
                return self.create();
            }
            return self.create_next();
        }
        self.directory.number = label.number;
        self.directory.token = label.tag.token;
        if stored != label || !self.directory.started {
            self.directory.started = true;
            self.directory.write(self.disk, self.data_dir)?;
        }
        self.active_file.lock(&*file)?;
        Ok((durable_end, file))
    }

    /// Creates the active segment where `events.jsonl` is missing, was empty, or was moved away.
    fn without_events(&mut self) -> Result<Opened, JournalError> {
        let stored = self.directory.label();
        if self.directory.started {
            if !is_sealed(&self.catalog, stored) && !self.is_applied(stored) {
                self.note_missing(stored)?;
            }
            self.taken.insert(stored.number);
            return self.create_next();
        }
        let row = self.known.row(stored.number);
        if let Some(row) = row.filter(|row| row.applied_bytes > 0 && !row.sealed) {
            self.note_missing(Label {
                number: row.number,
                ..stored
            })?;
        }
        if self.is_taken() {
            return self.create_next();
        }
        self.retoken()?;
        self.create()
    }

    /// Gives a segment that has not started a new token, so that it differs from the segment of the
    /// same number in another copy of the directory.
    fn retoken(&mut self) -> Result<(), JournalError> {
        self.directory = self.directory.next(self.directory.number);
        Ok(self.directory.write(self.disk, self.data_dir)?)
    }

    /// Whether the number of the stored segment, which has not started, is already in use by a file or
    /// a row.
    fn is_taken(&self) -> bool {
        let number = self.directory.number;
        self.taken.contains(number) || number <= self.known.pruned
    }

    fn is_other_sealed(&self, label: Label) -> bool {
        let id = SegmentId::Native(label.number);
        let mut found = self.catalog.sealed.get(&id).into_iter().flatten();
        found.any(|found| found.tag != Some(label.tag))
    }

    /// Whether the database has a sealed segment with this label.
    fn is_applied(&self, label: Label) -> bool {
        let row = self.known.row(label.number);
        row.is_some_and(|row| row.sealed && row.tag == Some(label.tag))
    }

    /// Records that the file of a segment with acknowledged events is missing.
    fn note_missing(&mut self, label: Label) -> Result<(), JournalError> {
        let row = self.known.row(label.number);
        write_missing_note(self.disk, self.data_dir, label, row)?;
        self.taken.insert(label.number);
        self.recovery.missing = Some(label.number);
        Ok(())
    }

    /// Makes the content of the file durable and returns the end of its last complete line.
    fn make_durable(
        &self,
        file: &dyn DiskFile,
        label: Option<Label>,
        size: u64,
    ) -> Result<u64, JournalError> {
        let row = label.and_then(|label| self.row_of(label));
        let applied = row.map_or(0, |row| row.applied_bytes.min(size));
        rewrite(file, applied, size).map_err(self.active_file.io("rewrite the end of"))?;
        file.sync_data().map_err(self.active_file.io("sync"))?;
        disk::last_line_end(file, size).map_err(self.active_file.io("read"))
    }

    /// CRC-32 of the active segment up to its durable end. The checksum of the applied bytes is taken
    /// from the database and not from the file, so that a change to them is detected later.
    fn checksum(&self, file: &dyn DiskFile, durable_end: u64) -> Result<Hasher, JournalError> {
        let row = self.row_of(self.directory.label());
        let applied = row
            .filter(|row| row.applied_bytes <= durable_end)
            .and_then(|row| Some((row.checksum?, row.applied_bytes)));
        let (checksum, applied) = applied.unwrap_or_default();
        let mut hasher = Hasher::new_with_initial_len(checksum, applied);
        each_block(file, applied, durable_end, |_, block| {
            hasher.update(block);
            Ok(())
        })
        .map_err(self.active_file.io("read"))?;
        Ok(hasher)
    }

    /// The row of the segment with this label.
    fn row_of(&self, label: Label) -> Option<KnownSegment> {
        let row = self.known.row(label.number);
        row.filter(|row| row.tag.is_none_or(|tag| tag == label.tag))
    }

    fn cut_torn_tail(
        &mut self,
        file: &dyn DiskFile,
        durable_end: u64,
        size: u64,
    ) -> Result<(), JournalError> {
        let quarantine = self.data_dir.join(QUARANTINE_DIR);
        let number = self.directory.number;
        let kept = keep_torn_tail(self.disk, &quarantine, number, file, durable_end, size)?;
        self.active_file.truncate(file, durable_end)?;
        self.recovery.torn = Some((size - durable_end, kept));
        Ok(())
    }

    /// Moves `events.jsonl` to `quarantine/`, where it is kept and not applied.
    fn set_aside(&mut self, why: &str) -> Result<(), JournalError> {
        let kept = self.active_file.set_aside()?;
        self.recovery.contradiction = Some(format!(
            "{} was put there by another program: {why}. It was moved to {} and is not counted. If its events are to be counted, run `tallyline process {}`",
            self.active_file.path().display(),
            kept.display(),
            kept.display()
        ));
        Ok(())
    }

    /// Creates the active segment with the first free number from the stored one on.
    fn create_next(&mut self) -> Result<Opened, JournalError> {
        let from = self.directory.number.max(self.known.pruned + 1);
        let number = first_free(from, &self.taken);
        self.directory = self.directory.next(number);
        self.directory.write(self.disk, self.data_dir)?;
        self.create()
    }

    fn create(&mut self) -> Result<Opened, JournalError> {
        Ok((0, self.active_file.create()?))
    }
}
