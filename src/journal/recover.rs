//! Recovery at start: from whatever a crash left to an active segment with a known durable end.
//!
//! What is seen after a crash is not yet durable: everything is synced before its length is
//! believed. Each step can be cut short by another crash and done again.
//!
//! Which segment `events.jsonl` is, is decided by what is stored, in this order: the label in its
//! first line; without one, `directory.json`. Where the two name different segments, or the label's
//! segment lies sealed beside it, somebody put a file in or copied the directory while it changed:
//! no byte is taken for those of another segment, nothing is deleted, and what happened is reported.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use crc32fast::Hasher;

use super::{JournalError, KnownSegment, KnownSegments};
use crate::data_dir::disk::{self, Disk, DiskFile};
use crate::data_dir::segment::{ACTIVE_FILE, Label, Numbers, sealed_file_name};
use crate::data_dir::{Catalog, QUARANTINE_DIR, missing_note};
use crate::data_dir::{Directory, first_free, is_sealed, read_label};
use crate::timestamp;

/// What recovery found and did, for the log and for the processor.
#[derive(Debug, Default)]
pub struct Recovery {
    /// Bytes after the last line end, never acknowledged, and the file that keeps them now.
    pub torn: Option<(u64, PathBuf)>,
    /// The active segment's number whose file was gone though it held acknowledged events.
    pub missing: Option<u64>,
    /// The number of an active segment shorter than what was applied of it; it was sealed.
    pub corrupt: Option<u64>,
    /// An `events.jsonl` without a label, from another program: the name it is imported under.
    pub imported: Option<PathBuf>,
    /// What is wrong about the segment that `events.jsonl` is, and what was done about it.
    pub contradiction: Option<String>,
}

/// The active segment, ready to be appended to.
pub(super) struct Active {
    pub(super) directory: Directory,
    pub(super) durable_end: u64,
    /// CRC-32 of the bytes before the durable end.
    pub(super) checksum: Hasher,
    pub(super) file: Arc<dyn DiskFile>,
    /// Numbers that files bear and that the database knows: none of them is given out again.
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
    // Which files bear the number of the active segment is looked at closely, whatever is known of it.
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
        path: data_dir.join(ACTIVE_FILE),
        known,
        directory,
        catalog,
        taken,
        recovery: Recovery::default(),
    };
    // 0. What is seen is made durable before it is believed.
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

/// The numbers that the active segment may have, as `directory.json` and `events.jsonl` say: recovery
/// asks for the rows of these. What cannot be read is left out: recovery says so.
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
    path: PathBuf,
    known: &'r KnownSegments,
    directory: Directory,
    catalog: Catalog,
    taken: Numbers,
    recovery: Recovery,
}

/// The durable end, and the file.
type Opened = (u64, Arc<dyn DiskFile>);

impl Recover<'_> {
    /// Finds out which segment `events.jsonl` is, and goes on with it or with a new one.
    fn active(&mut self) -> Result<Opened, JournalError> {
        let Some(file) = self.open()? else {
            return self.without_events();
        };
        let label = read_label(&*file).map_err(self.io("read"))?;
        let size = file.size().map_err(self.io("look at"))?;
        let mut durable_end = self.make_durable(&*file, label, size)?;
        // The first write of a segment, cut short by a power cut: what was not synced reads as zeros.
        if label.is_none()
            && !self.directory.started
            && has_zeros(&*file).map_err(self.io("read"))?
        {
            durable_end = 0;
        }
        if durable_end == 0 {
            if size > 0 {
                self.cut_torn_tail(&*file, 0, size)?;
            }
            if self.directory.started || self.is_taken() {
                drop(file);
                self.remove_empty()?;
                return self.without_events();
            }
            self.retoken()?;
            return Ok((0, file));
        }
        match label.filter(|label| label.tag.directory == self.directory.tag()) {
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
                self.set_aside(&match applied.map_or(0, |row| row.applied_bytes) {
                    0 => format!("it does not say that it is segment {number}, the active one"),
                    bytes => format!(
                        "it does not say that it is segment {number}, the active one, of which {bytes} bytes are counted; where its first lines are those, remove them before it is processed, or they count twice"
                    ),
                })?;
                self.without_events()
            }
            None => {
                drop(file);
                self.import()?;
                self.without_events()
            }
        }
    }

    /// The file is a segment of this directory that is not sealed: the active one, or, in a copy
    /// that was made while segments changed, the one before or after what `directory.json` says.
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
                "it says that it is segment {}, but another segment of that number is known here",
                label.number
            ))?;
            return self.without_events();
        }
        if durable_end < size {
            self.cut_torn_tail(&*file, durable_end, size)?;
        }
        // A later segment was created: nothing may be appended to this one any more.
        let passed = stored.number > label.number;
        if self.directory.started
            && stored != label
            && !is_sealed(&self.catalog, stored)
            && !self.is_applied(stored)
        {
            self.lose(stored)?;
        }
        let known = row.is_some_and(|row| row.sealed || row.applied_bytes > durable_end);
        if row.is_some_and(|row| row.applied_bytes > durable_end) {
            self.recovery.corrupt = Some(label.number);
        }
        self.taken.insert(label.number);
        if passed || known || label.number <= self.known.pruned {
            // Nothing may be appended to it: it is sealed as it is, and the processor says more.
            self.seal(label)?;
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
        self.lock(&*file)?;
        Ok((durable_end, file))
    }

    /// There is no `events.jsonl` any more, or none that held anything.
    fn without_events(&mut self) -> Result<Opened, JournalError> {
        let stored = self.directory.label();
        if self.directory.started {
            if !is_sealed(&self.catalog, stored) && !self.is_applied(stored) {
                self.lose(stored)?;
            }
            self.taken.insert(stored.number);
            return self.create_next();
        }
        let row = self.known.row(stored.number);
        if let Some(row) = row.filter(|row| row.applied_bytes > 0 && !row.sealed) {
            self.lose(Label {
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

    /// Draws a new token for a segment that has not started: a copy of the directory, made while
    /// nothing ran, does not go on under the same one.
    fn retoken(&mut self) -> Result<(), JournalError> {
        self.directory = self.directory.next(self.directory.number);
        Ok(self.directory.write(self.disk, self.data_dir)?)
    }

    /// Whether the stored segment, which has not started, cannot be used: its number is known from
    /// elsewhere.
    fn is_taken(&self) -> bool {
        let number = self.directory.number;
        self.taken.contains(number) || number <= self.known.pruned
    }

    fn is_other_sealed(&self, label: Label) -> bool {
        let id = crate::data_dir::segment::SegmentId::Native(label.number);
        let mut found = self.catalog.sealed.get(&id).into_iter().flatten();
        found.any(|found| found.tag != Some(label.tag))
    }

    /// Whether every byte of the sealed segment is in the database.
    fn is_applied(&self, label: Label) -> bool {
        let row = self.known.row(label.number);
        row.is_some_and(|row| row.sealed && row.tag == Some(label.tag))
    }

    /// Declares a segment lost that held acknowledged events.
    fn lose(&mut self, label: Label) -> Result<(), JournalError> {
        let row = self.known.row(label.number);
        write_missing_note(self.disk, self.data_dir, label, row)?;
        self.taken.insert(label.number);
        self.recovery.missing = Some(label.number);
        Ok(())
    }

    fn open(&self) -> Result<Option<Arc<dyn DiskFile>>, JournalError> {
        if self
            .disk
            .identity(&self.path)
            .map_err(self.io("look at"))?
            .is_none()
        {
            return Ok(None);
        }
        let file = self.disk.open(&self.path).map_err(self.io("open"))?;
        self.lock(&*file)?;
        Ok(Some(file))
    }

    fn lock(&self, file: &dyn DiskFile) -> Result<(), JournalError> {
        if file.try_lock().map_err(self.io("lock"))? {
            return Ok(());
        }
        Err(JournalError::Locked {
            path: self.path.clone(),
        })
    }

    /// Makes all that is read durable; the end of the last whole line.
    fn make_durable(
        &self,
        file: &dyn DiskFile,
        label: Option<Label>,
        size: u64,
    ) -> Result<u64, JournalError> {
        let row = label.and_then(|label| self.row_of(label));
        let applied = row.map_or(0, |row| row.applied_bytes.min(size));
        write_again(file, applied, size).map_err(self.io("write the end again of"))?;
        file.sync_data().map_err(self.io("sync"))?;
        disk::last_line_end(file, size).map_err(self.io("read"))
    }

    /// CRC-32 of the active segment up to its durable end: of what is applied, as the database has it,
    /// so that a file which was changed there does not pass for what was acknowledged.
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
        .map_err(self.io("read"))?;
        Ok(hasher)
    }

    /// What the database knows of a segment.
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
        file.set_len(durable_end)
            .map_err(self.io("cut the torn tail off"))?;
        file.sync_data().map_err(self.io("sync"))?;
        self.recovery.torn = Some((size - durable_end, kept));
        Ok(())
    }

    fn seal(&mut self, label: Label) -> Result<(), JournalError> {
        let name = sealed_file_name(label, SystemTime::now());
        self.rename(&self.data_dir.join(name), "seal")
    }

    /// Moves `events.jsonl` to `quarantine/`, where it is kept and not applied.
    fn set_aside(&mut self, why: &str) -> Result<(), JournalError> {
        let kept = self.free_name(&self.data_dir.join(QUARANTINE_DIR), "set-aside")?;
        self.rename(&kept, "set aside")?;
        let quarantine = self.data_dir.join(QUARANTINE_DIR);
        self.disk
            .sync_dir(&quarantine)
            .map_err(JournalError::io("sync", &quarantine))?;
        self.recovery.contradiction = Some(format!(
            "{} was put in from elsewhere: {why}. It was moved to {} and is not counted. If it holds events that are to count, run `tallyline process {}`",
            self.path.display(),
            kept.display(),
            kept.display()
        ));
        Ok(())
    }

    /// Gives the `events.jsonl` of another program a name under which it is imported.
    fn import(&mut self) -> Result<(), JournalError> {
        let imported = self.free_name(self.data_dir, "events_found")?;
        self.rename(&imported, "rename")?;
        self.recovery.imported = Some(imported);
        Ok(())
    }

    /// `<stem>-<UTC time>.jsonl`, or with a count behind the time where that is taken.
    fn free_name(&self, dir: &Path, stem: &str) -> Result<PathBuf, JournalError> {
        let time = timestamp::rfc3339_millis(SystemTime::now()).replace(':', "-");
        let mut path = dir.join(format!("{stem}-{time}.jsonl"));
        let mut copies = 1;
        while self
            .disk
            .identity(&path)
            .map_err(JournalError::io("look at", &path))?
            .is_some()
        {
            copies += 1;
            path = dir.join(format!("{stem}-{time}-{copies}.jsonl"));
        }
        Ok(path)
    }

    fn rename(&self, to: &Path, action: &'static str) -> Result<(), JournalError> {
        self.disk
            .rename_new(&self.path, to)
            .map_err(self.io(action))?;
        self.disk
            .sync_dir(self.data_dir)
            .map_err(JournalError::io("sync", self.data_dir))
    }

    fn remove_empty(&self) -> Result<(), JournalError> {
        self.disk.remove(&self.path).map_err(self.io("remove"))
    }

    /// Creates the first segment after the stored one whose number nothing bears.
    fn create_next(&mut self) -> Result<Opened, JournalError> {
        let from = self.directory.number.max(self.known.pruned + 1);
        let number = first_free(from, &self.taken);
        self.directory = self.directory.next(number);
        self.directory.write(self.disk, self.data_dir)?;
        self.create()
    }

    fn create(&mut self) -> Result<Opened, JournalError> {
        let file = self
            .disk
            .create_new(&self.path)
            .map_err(self.io("create"))?;
        self.lock(&*file)?;
        self.disk
            .sync_dir(self.data_dir)
            .map_err(JournalError::io("sync", self.data_dir))?;
        Ok((0, file))
    }

    fn io(&self, action: &'static str) -> impl FnOnce(io::Error) -> JournalError {
        JournalError::io(action, &self.path)
    }
}

fn write_missing_note(
    disk: &dyn Disk,
    data_dir: &Path,
    label: Label,
    row: Option<KnownSegment>,
) -> Result<(), JournalError> {
    let note = missing_note(data_dir, label.number);
    let applied_bytes = row.map_or(0, |row| row.applied_bytes);
    let text = format!(
        "Segment {} is lost: {ACTIVE_FILE} was gone or empty at start, though the segment held acknowledged events.\n\
         {applied_bytes} bytes of it had been applied to the database and still count. Events that were acknowledged\n\
         after that are gone, unless the file is found: then stop the server, name the file\n\
         {}\n\
         in the data directory, delete this note and start again.\n",
        label.number,
        sealed_file_name(label, SystemTime::now()),
    );
    match disk::write_new(disk, &note, |file| file.write_all_at(text.as_bytes(), 0)) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        written => written.map_err(JournalError::io("write", &note)),
    }
}

/// Writes the file once more, as it reads, from `applied` on: what is applied was durable before. A
/// sync that failed has marked pages clean that never reached the disk; if the process died before
/// it could cut them off, they still read as written, and a sync alone would succeed without
/// bringing them to the disk.
fn write_again(file: &dyn DiskFile, applied: u64, size: u64) -> io::Result<()> {
    each_block(file, applied, size, |at, block| {
        file.write_all_at(block, at)
    })
}

/// Calls `each` with the blocks of `[from, to)`, in order, and where they begin.
fn each_block(
    file: &dyn DiskFile,
    from: u64,
    to: u64,
    mut each: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    if from >= to {
        return Ok(());
    }
    let mut block = vec![0; 1 << 20];
    let mut at = from;
    while at < to {
        let length = usize::try_from(to - at)
            .unwrap_or(usize::MAX)
            .min(block.len());
        read_exact_at(file, &mut block[..length], at)?;
        each(at, &block[..length])?;
        at += length as u64;
    }
    Ok(())
}

/// Whether the first line has a NUL byte in it, which no line of JSON has.
fn has_zeros(file: &dyn DiskFile) -> io::Result<bool> {
    let mut block = vec![0; 64 << 10];
    let mut at = 0;
    loop {
        let count = file.read_at(&mut block, at)?;
        match memchr::memchr2(0, b'\n', &block[..count]) {
            Some(found) => return Ok(block[found] == 0),
            None if count == 0 => return Ok(false),
            None => at += count as u64,
        }
    }
}

/// Copies `[from, to)` to `quarantine/torn-<number>-<from>`; an earlier copy (of a recovery that was
/// cut short, or of another tail) stays beside it.
fn keep_torn_tail(
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
        .map_err(JournalError::io("look at", &path))?
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

fn read_exact_at(file: &dyn DiskFile, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buf.is_empty() {
        match file.read_at(buf, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                buf = &mut buf[count..];
                offset += count as u64;
            }
        }
    }
    Ok(())
}
