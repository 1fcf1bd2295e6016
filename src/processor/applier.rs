//! Applies one segment to the database: verifies the applied prefix, then scans and commits range by range.
//!
//! Used by the thread `process` and by a batch run. The state of a segment in memory ([`Follow`]) changes only
//! after a commit. After any error it is discarded and read from the database again.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crc32fast::Hasher;

use super::clock::Clock;
use super::import::{self, Part};
use super::{ProcessConfig, ProcessError};
use crate::aggregate::pool::{Pool, RangeAggregate};
use crate::aggregate::sharded_totals::{Frozen, ShardedTotals};
use crate::aggregate::{Sums, UserLine};
use crate::aggregate::{lines, scan};
use crate::data_dir::DataDirError;
use crate::data_dir::SegmentFile;
use crate::data_dir::disk::{self as disk, Disk, DiskFile, Identity};
use crate::data_dir::read_label;
use crate::data_dir::segment::{DirectoryTag, Label, Seal, SegmentId, Tag};
use crate::event::{Event, Looks};
use crate::store::{
    Applied, Delta, Mark, Opening, Outcome, OutcomeOfAll, Range, RangeEnd, SegmentRow,
    SegmentState, Source, StoreError, Writer,
};
use crate::verify::seal;

/// While the active segment is applied, its pages are released from the page cache after this many bytes.
const RELEASE_BYTES: u64 = 4 << 20;
/// Larger segments get a transaction of their own, which costs less than the scan.
const SMALL_BYTES_MAX: u64 = 256 << 10;
/// The most segments applied in one transaction. All of them are open during it.
pub(super) const TOGETHER_MAX: usize = 256;
/// From this number of files on, one sync of the file system is used instead of one of each file. It also
/// writes what other programs have not synced.
const SYNC_TOGETHER_MIN: usize = 8;

/// A small segment that was scanned to its end and is committed together with others.
pub(super) struct Small {
    pub(super) segment: SegmentFile,
    from: u64,
    aggregate: RangeAggregate,
    /// The CRC-32 of all bytes up to the end.
    checksum: Hasher,
    took: Duration,
}

impl Small {
    /// The maximum memory in bytes until it is applied.
    pub(super) fn memory_bytes(&self) -> usize {
        let RangeAggregate { users, partial, .. } = &self.aggregate;
        ShardedTotals::EMPTY_BYTES + users.memory_bytes() + partial.memory_bytes()
    }
}

/// The result of a commit for one segment.
pub(super) struct Commit<'a> {
    pub(super) segment: &'a SegmentFile,
    /// The range that was applied.
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) applied: Applied,
}

/// Receives every commit, and decides whether to wait while the database is locked.
pub(super) trait Watch {
    /// These segments were committed in one transaction; `took` is the duration of the scan and the commit.
    fn committed(&mut self, commits: &[Commit<'_>], took: Duration);
    /// Another program holds the lock of the database. Returns whether to try again.
    fn locked(&mut self, error: &StoreError) -> bool;
    /// The commit got the lock.
    fn unlocked(&mut self);
}

/// The applied prefix of a segment, which was verified in a file.
struct Follow {
    /// CRC-32 of the applied bytes, with their number as its length.
    applied: Hasher,
    /// The file in which the prefix was verified.
    confirmed: Identity,
    /// The path of the sealed file that was compared with the seal in its name; `None` if it has none.
    sealed: Option<PathBuf>,
}

/// Whether more of a file can be applied.
pub(super) enum Confirmed {
    /// Yes: this many bytes are applied, and the file begins with them.
    At(u64),
    /// The segment is fully applied.
    Applied(SegmentRow),
    /// Nothing of the file is applied: another segment with its number was applied, its label does not match
    /// its name, or it is not JSON Lines. The reason and what to do.
    Rival(String),
    /// The file has changed since it was applied or sealed.
    Corrupt(Corrupt),
    /// It was marked corrupt, and matches the applied prefix again.
    Restored(SegmentRow),
}

/// A file that has changed since it was applied or sealed.
pub(super) struct Corrupt {
    pub(super) applied_bytes: u64,
    pub(super) size: u64,
    pub(super) reason: String,
    /// Whether it is already marked as corrupt in the database.
    pub(super) known: bool,
}

/// The work of a round.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Work {
    /// Bytes applied.
    pub(super) bytes: u64,
    /// Duration of the commits.
    pub(super) committing: Duration,
}

pub(super) struct Applier<'p> {
    pub(super) writer: Writer,
    /// The work since this was last reset.
    pub(super) work: Work,
    pool: &'p mut Pool,
    clock: Arc<Clock>,
    follows: HashMap<SegmentId, Follow>,
    /// The data directory's part of the tags in labels.
    directory: DirectoryTag,
}

impl<'p> Applier<'p> {
    /// Opens the database, or creates it.
    pub(super) fn open(config: &ProcessConfig, pool: &'p mut Pool) -> Result<Self, StoreError> {
        let mut writer = open_writer(config, Opening::Follow)?;
        writer.keep_ids(config.dedup_window)?;
        Self::new(config, pool, writer)
    }

    /// For a batch run, with a writer that is open already.
    pub(super) fn of(
        config: &ProcessConfig,
        pool: &'p mut Pool,
        writer: Writer,
    ) -> Result<Self, StoreError> {
        Self::new(config, pool, writer)
    }

    fn new(config: &ProcessConfig, pool: &'p mut Pool, writer: Writer) -> Result<Self, StoreError> {
        writer.cache(config.shares().cache_bytes)?;
        config.clock.look(writer.clock()?);
        Ok(Self {
            writer,
            work: Work::default(),
            pool,
            clock: Arc::clone(&config.clock),
            follows: HashMap::new(),
            directory: config.directory_tag(),
        })
    }

    /// Closes the database after an error; without a checkpoint if one of its files was replaced.
    pub(super) fn release(self) {
        if self.writer.replaced().is_some() {
            self.writer.abandon();
        }
    }

    /// Verifies by checksum that the file begins with its applied prefix, and that a sealed file matches its
    /// seal. A file is verified once, and again after an error.
    pub(super) fn confirm(&mut self, segment: &SegmentFile) -> Result<Confirmed, ProcessError> {
        let stat = segment
            .file
            .stat()
            .map_err(ProcessError::io("inspect", &segment.path))?;
        if let Some(follow) = self.follows.get(&segment.id)
            && follow.confirmed == stat.identity
            && follow.applied.total_len() <= stat.size
            // Before its first line is applied, a file may have been too short to determine its format.
            && (follow.applied.total_len() > 0 || segment.tag.is_some())
            && (follow.sealed.as_ref() == Some(&segment.path)
                || seal::of_path(&segment.path).is_none())
        {
            return Ok(Confirmed::At(follow.applied.total_len()));
        }
        let row = self.writer.segment(&segment.id)?;
        if let Some(rival) = self.rival(segment, row.as_ref())? {
            return Ok(Confirmed::Rival(rival));
        }
        let (applied_bytes, expected) = match &row {
            Some(row) if row.state == SegmentState::Applied => {
                return Ok(Confirmed::Applied(row.clone()));
            }
            Some(row) => (row.applied_bytes, row.checksum),
            None => (0, Hasher::new().finalize()),
        };
        let known = row
            .as_ref()
            .is_some_and(|row| row.state == SegmentState::Corrupt);
        let name = format!("segment {} ({})", segment.id, segment.path.display());
        let corrupt = |reason: String| {
            let size = stat.size;
            Ok(Confirmed::Corrupt(Corrupt {
                applied_bytes,
                size,
                reason,
                known,
            }))
        };
        if stat.size < applied_bytes {
            return corrupt(format!(
                "{name}: {applied_bytes} bytes of it were applied, but it has only {}; the applied events stay in the totals. Restore the file, or move it to quarantine/",
                stat.size
            ));
        }
        let found = lines::checksum(&*segment.file, applied_bytes)
            .map_err(ProcessError::io("read", &segment.path))?;
        if found != expected {
            return corrupt(format!(
                "{name}: {applied_bytes} bytes were applied with another content; the applied events stay in the totals, the other {} bytes are not applied. Restore the file, or move it to quarantine/",
                stat.size - applied_bytes
            ));
        }
        let applied = Hasher::new_with_initial_len(expected, applied_bytes);
        let broken = seal::contradiction(&*segment.file, &segment.path, &applied)
            .map_err(ProcessError::io("read", &segment.path))?;
        if let Some(broken) = broken {
            return corrupt(format!("segment {}: {broken}", segment.id));
        }
        if let Some(row) = row.filter(|_| known) {
            return Ok(Confirmed::Restored(row));
        }
        let follow = Follow {
            applied,
            confirmed: stat.identity,
            sealed: seal::of_path(&segment.path).map(|_| segment.path.clone()),
        };
        self.follows.insert(segment.id.clone(), follow);
        Ok(Confirmed::At(applied_bytes))
    }

    /// Describes why a file is not the segment in its name, or not the one in the database, and what to do;
    /// `None` if it is.
    fn rival(
        &self,
        segment: &SegmentFile,
        row: Option<&SegmentRow>,
    ) -> Result<Option<String>, ProcessError> {
        let path = segment.path.display();
        let cure = "To count its events, move it out of the data directory and run `tallyline process FILE` with it, which imports the events that are not counted yet; otherwise move it to quarantine/";
        if let Some(row) = row
            && row.tag != segment.tag
        {
            return Ok(Some(format!(
                "segment {}: {path} is not the segment of that number that was applied ({}), so it is not applied. {cure}",
                row.id, row.file_name
            )));
        }
        if row.is_some_and(|row| row.applied_bytes > 0) {
            return Ok(None); // The checksum of the prefix identifies it.
        }
        let io = || ProcessError::io("read", &segment.path);
        let label = read_label(&*segment.file).map_err(io())?;
        let (Some(number), Some(tag)) = (segment.id.number(), segment.tag) else {
            let looks = Looks::of(&import::head(&*segment.file).map_err(io())?);
            if let Some(refusal) = refusal(looks, &segment.path) {
                return Ok(Some(format!("{path}: {refusal}")));
            }
            let part = Part::of_name(&segment.name());
            let ours = label.filter(|label| label.tag.directory == self.directory);
            return Ok(ours.filter(|ours| part.is_none_or(|part| part.label != *ours)).map(|ours| {
                format!(
                    "{path}: according to its first line it is segment {} of this data directory under another name, so it is not applied. {cure}",
                    ours.number
                )
            }));
        };
        if label == Some(Label { number, tag }) {
            return Ok(None);
        }
        Ok(Some(format!(
            "segment {}: the first line of {path} is not the label of this segment, so it was renamed, edited or emptied and is not applied. {cure}",
            segment.id
        )))
    }

    /// Whether this process has read and applied every byte of this file.
    pub(super) fn has_read(&self, id: &SegmentId, identity: Identity, size: u64) -> bool {
        self.follows
            .get(id)
            .is_some_and(|f| f.confirmed == identity && f.applied.total_len() == size)
    }

    /// Discards the state of a segment.
    pub(super) fn forget(&mut self, id: &SegmentId) {
        self.follows.remove(id);
    }

    /// Applies the rest of a confirmed sealed file of `size` bytes. A last line without a line end is applied
    /// last, and only if the file has not grown meanwhile.
    pub(super) fn apply_sealed(
        &mut self,
        segment: &SegmentFile,
        applied: u64,
        size: u64,
        watch: &mut dyn Watch,
    ) -> Result<(), ProcessError> {
        let lines_end = disk::last_line_end(&*segment.file, size)
            .map_err(ProcessError::io("read", &segment.path))?
            .max(applied);
        if lines_end < size {
            self.apply(segment, lines_end, RangeEnd::Sealed, watch)?;
        }
        self.apply(segment, size, RangeEnd::Complete, watch)
    }

    /// Applies a confirmed segment up to `to`, in as many transactions as the memory budget requires. The last
    /// one sets the state to `end`; for `RangeEnd::Complete` there is one even if no byte is left.
    pub(super) fn apply(
        &mut self,
        segment: &SegmentFile,
        to: u64,
        end: RangeEnd,
        watch: &mut dyn Watch,
    ) -> Result<(), ProcessError> {
        let mut first = true;
        loop {
            let Some(follow) = self.follows.get(&segment.id) else {
                return Err(ProcessError::Raced {
                    segment: segment.id.to_string(),
                });
            };
            let from = follow.applied.total_len();
            let mut checksum = follow.applied.clone();
            if from >= to && !(first && end == RangeEnd::Complete) {
                return Ok(());
            }
            first = false;
            let began = Instant::now();
            let aggregate = self
                .pool
                .scan(&segment.file, from, to)
                .map_err(ProcessError::io("read", &segment.path))?;
            checksum.combine(&aggregate.partial.checksum);
            let end = match end {
                RangeEnd::Complete if aggregate.to < to => RangeEnd::Sealed,
                end => end,
            };
            let scanned_at = Instant::now();
            let applied = self.commit(
                segment,
                from,
                &aggregate,
                checksum.clone().finalize(),
                end,
                watch,
            )?;
            self.work.bytes += aggregate.to - from;
            self.work.committing += scanned_at.elapsed();
            // Only after the commit.
            if let Some(follow) = self.follows.get_mut(&segment.id) {
                follow.applied = checksum;
            }
            let commit = Commit {
                segment,
                from,
                to: aggregate.to,
                applied,
            };
            watch.committed(&[commit], began.elapsed());
            if from > 0 && from / RELEASE_BYTES != aggregate.to / RELEASE_BYTES {
                segment.file.release_cache(aggregate.to);
            }
        }
    }

    /// A segment of up to so many bytes may be applied with others.
    pub(super) fn small_bytes(&self) -> u64 {
        self.pool.small_bytes().min(SMALL_BYTES_MAX)
    }

    /// How much of small segments may be held until they are applied, in bytes of memory.
    pub(super) fn held_bytes_max(&self) -> usize {
        self.pool.range_bytes() / 2
    }

    /// Reads all that is left of a confirmed small sealed file of `size` bytes.
    pub(super) fn read_small(
        &mut self,
        segment: SegmentFile,
        from: u64,
        size: u64,
    ) -> Result<Small, ProcessError> {
        let began = Instant::now();
        let Some(follow) = self.follows.get(&segment.id) else {
            return Err(ProcessError::Raced {
                segment: segment.id.to_string(),
            });
        };
        let mut checksum = follow.applied.clone();
        let aggregate = self
            .pool
            .scan(&segment.file, from, size)
            .map_err(ProcessError::io("read", &segment.path))?;
        checksum.combine(&aggregate.partial.checksum);
        let now = segment
            .file
            .size()
            .map_err(ProcessError::io("look at", &segment.path))?;
        let sealed = Seal {
            bytes: size,
            checksum: checksum.clone().finalize(),
        };
        let is_sealed = seal::of_path(&segment.path).is_none_or(|seal| seal == sealed);
        if aggregate.to != size || now != size || !is_sealed {
            self.forget(&segment.id);
            return Err(ProcessError::Changed {
                path: segment.path.clone(),
            });
        }
        Ok(Small {
            segment,
            from,
            aggregate,
            checksum,
            took: began.elapsed(),
        })
    }

    /// Applies small segments to their ends, in this order, in one transaction.
    pub(super) fn commit_together(
        &mut self,
        small: &[Small],
        watch: &mut dyn Watch,
    ) -> Result<(), ProcessError> {
        let began = Instant::now();
        let names: Vec<String> = small.iter().map(|small| small.segment.name()).collect();
        let frozen: Vec<_> = small.iter().map(|it| it.aggregate.users.freeze()).collect();
        let users: Vec<_> = frozen.iter().map(Frozen::sorted).collect();
        let mut sources: Vec<_> = small
            .iter()
            .map(|small| FileSource {
                file: &*small.segment.file,
                from: small.from,
                to: small.aggregate.to,
            })
            .collect();
        let now_ms = self.clock.now_ms();
        let mut ranges: Vec<(Range<'_>, &mut dyn Source)> = Vec::with_capacity(small.len());
        for (((small, name), users), source) in
            small.iter().zip(&names).zip(&users).zip(&mut sources)
        {
            let checksum = small.checksum.clone().finalize();
            let range = small.aggregate.range(
                (&small.segment, name),
                small.from,
                users,
                checksum,
                RangeEnd::Complete,
                now_ms,
            );
            ranges.push((range, source));
        }
        let outcome = self.until_unlocked(watch, |writer| writer.apply_together(&mut ranges))?;
        let all = match outcome {
            OutcomeOfAll::Applied(all) => all,
            OutcomeOfAll::Raced(at) => {
                for small in small {
                    self.forget(&small.segment.id);
                }
                return Err(ProcessError::Raced {
                    segment: small[at].segment.id.to_string(),
                });
            }
        };
        self.work.committing += began.elapsed();
        let mut commits = Vec::with_capacity(small.len());
        for (small, applied) in small.iter().zip(all) {
            self.work.bytes += small.aggregate.to - small.from;
            // Only now: it is committed.
            if let Some(follow) = self.follows.get_mut(&small.segment.id) {
                follow.applied = small.checksum.clone();
            }
            commits.push(Commit {
                segment: &small.segment,
                from: small.from,
                to: small.aggregate.to,
                applied,
            });
        }
        let reading: Duration = small.iter().map(|small| small.took).sum();
        watch.committed(&commits, reading + began.elapsed());
        Ok(())
    }

    fn commit(
        &mut self,
        segment: &SegmentFile,
        from: u64,
        aggregate: &RangeAggregate,
        checksum: u32,
        end: RangeEnd,
        watch: &mut dyn Watch,
    ) -> Result<Applied, ProcessError> {
        let size = || {
            segment
                .file
                .size()
                .map_err(ProcessError::io("inspect", &segment.path))
        };
        let sealed = Seal {
            bytes: aggregate.to,
            checksum,
        };
        let is_sealed = |path| seal::of_path(path).is_none_or(|seal| seal == sealed);
        if end == RangeEnd::Complete && (size()? != aggregate.to || !is_sealed(&segment.path)) {
            self.forget(&segment.id);
            return Err(ProcessError::Changed {
                path: segment.path.clone(),
            });
        }
        let frozen = aggregate.users.freeze();
        let users = frozen.sorted();
        let name = segment.name();
        let now_ms = self.clock.now_ms();
        let range = aggregate.range((segment, &name), from, &users, checksum, end, now_ms);
        let mut source = FileSource {
            file: &*segment.file,
            from,
            to: aggregate.to,
        };
        match self.until_unlocked(watch, |writer| writer.apply(&range, &mut source))? {
            Outcome::Applied(applied) => Ok(applied),
            Outcome::Raced => {
                self.forget(&segment.id);
                Err(ProcessError::Raced {
                    segment: segment.id.to_string(),
                })
            }
        }
    }

    /// Writes, and repeats it while another program has the database locked and `watch` waits.
    fn until_unlocked<T>(
        &mut self,
        watch: &mut dyn Watch,
        mut write: impl FnMut(&mut Writer) -> Result<T, StoreError>,
    ) -> Result<T, ProcessError> {
        loop {
            match write(&mut self.writer) {
                Ok(done) => {
                    // Before the commit is reported: any later write to the file is not by this writer.
                    // If this fails, the next check of the database finds out.
                    let _unknown = self.writer.note_written();
                    watch.unlocked();
                    return Ok(done);
                }
                Err(error) if error.is_locked() => {
                    if !watch.locked(&error) {
                        return Err(ProcessError::Stopped);
                    }
                    if self.writer.replaced().is_some() {
                        return Err(error.into());
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Marks a file as corrupt in the database: no more of it is applied. Returns the number of lines that are
    /// not applied.
    pub(super) fn mark_corrupt(
        &mut self,
        segment: &SegmentFile,
        corrupt: &Corrupt,
    ) -> Result<u64, ProcessError> {
        let from = corrupt.applied_bytes.min(corrupt.size);
        let corrupt_lines = lines::count(&*segment.file, from, corrupt.size)
            .map_err(ProcessError::io("read", &segment.path))?;
        self.forget(&segment.id);
        self.writer.mark(&Mark {
            segment: &segment.id,
            tag: segment.tag,
            file_name: &segment.name(),
            applied_bytes: corrupt.applied_bytes,
            state: SegmentState::Corrupt,
            reason: Some(&corrupt.reason),
            corrupt_bytes: corrupt.size - from,
            corrupt_lines,
            now_ms: self.clock.now_ms(),
        })?;
        Ok(corrupt_lines)
    }

    /// Records in the database that a segment's file is missing, or present again.
    pub(super) fn note(
        &mut self,
        row: &SegmentRow,
        state: SegmentState,
        reason: Option<&str>,
    ) -> Result<(), StoreError> {
        self.writer.mark(&Mark {
            segment: &row.id,
            tag: row.tag,
            file_name: &row.file_name,
            applied_bytes: row.applied_bytes,
            state,
            reason,
            corrupt_bytes: 0,
            corrupt_lines: 0,
            now_ms: self.clock.now_ms(),
        })?;
        Ok(())
    }
}

impl RangeAggregate {
    /// The range of a segment from `from` on, as the store applies it.
    fn range<'a>(
        &'a self,
        (segment, file_name): (&'a SegmentFile, &'a str),
        from: u64,
        users: &'a [(&'a str, &'a Sums)],
        checksum: u32,
        end: RangeEnd,
        now_ms: i64,
    ) -> Range<'a> {
        Range {
            segment: &segment.id,
            tag: segment.tag,
            file_name,
            from,
            to: self.to,
            checksum,
            end,
            now_ms,
            delta: Delta {
                users,
                with_id: &self.partial.with_id,
                rejected: &self.partial.rejected,
                rejected_count: self.partial.rejected_count,
                lines: self.partial.lines,
            },
        }
    }
}

/// Opens the database as the only writer of the data directory.
pub(super) fn open_writer(config: &ProcessConfig, opening: Opening) -> Result<Writer, StoreError> {
    Writer::of(
        &config.database,
        &config.data_dir,
        config.directory,
        opening,
    )
}

/// Reads lines of the range again, for the overflow replay of the store.
struct FileSource<'a> {
    file: &'a dyn DiskFile,
    from: u64,
    to: u64,
}

impl Source for FileSource<'_> {
    fn lines_of(&mut self, users: &HashSet<String>) -> io::Result<Vec<UserLine>> {
        let mut found = Vec::new();
        lines::each(self.file, self.from, self.to, |offset, line| {
            if let Ok(event) = Event::parse(line)
                && event.id.is_none()
                && users.contains(&*event.user_id)
            {
                found.push(UserLine {
                    offset,
                    user_id: event.user_id.into_owned(),
                    kind: event.kind,
                    amount_micros: event.amount_micros,
                });
            }
        })?;
        Ok(found)
    }

    fn line_at(&mut self, offset: u64) -> io::Result<Vec<u8>> {
        scan::line_start(self.file, offset)
    }
}

/// Opens a sealed file and syncs it, so that only durable bytes are applied.
pub(super) fn open_sealed(
    disk: &dyn Disk,
    id: &SegmentId,
    tag: Option<Tag>,
    path: &Path,
) -> Result<SegmentFile, ProcessError> {
    let segment = open(disk, id, tag, path)?;
    sync(&segment)?;
    Ok(segment)
}

fn open(
    disk: &dyn Disk,
    id: &SegmentId,
    tag: Option<Tag>,
    path: &Path,
) -> Result<SegmentFile, ProcessError> {
    let file = disk
        .open_read(path)
        .map_err(ProcessError::io("open", path))?;
    Ok(SegmentFile {
        id: id.clone(),
        tag,
        path: path.to_owned(),
        file,
    })
}

fn sync(segment: &SegmentFile) -> Result<(), ProcessError> {
    segment
        .file
        .sync_data()
        .map_err(ProcessError::io("sync", &segment.path))
}

/// The result of opening one of several sealed files.
pub(super) enum Opened {
    /// Open and durable.
    Small(SegmentFile),
    /// Too large to be applied with others.
    Large,
    Failed(ProcessError),
}

/// Opens up to [`TOGETHER_MAX`] sealed files and makes the small ones durable: from
/// [`SYNC_TOGETHER_MIN`] files on by one sync of the data directory's file system.
pub(super) fn open_together<'f>(
    disk: &dyn Disk,
    data_dir: &Path,
    files: impl IntoIterator<Item = (&'f SegmentId, Option<Tag>, &'f Path)>,
    small_bytes: u64,
) -> Vec<Opened> {
    let mut opened: Vec<Opened> = Vec::new();
    let mut devices = Vec::new();
    for (id, tag, path) in files.into_iter().take(TOGETHER_MAX) {
        let found = open(disk, id, tag, path).and_then(|segment| {
            let stat = segment.file.stat();
            Ok((stat.map_err(ProcessError::io("look at", path))?, segment))
        });
        match found {
            // The files that are open are applied and closed first.
            Err(error) if !opened.is_empty() && is_out_of_descriptors(&error) => break,
            Err(error) => opened.push(Opened::Failed(error)),
            Ok((stat, _)) if stat.size > small_bytes => opened.push(Opened::Large),
            Ok((stat, segment)) => {
                devices.push(stat.identity.0);
                opened.push(Opened::Small(segment));
            }
        }
    }
    let synced = if devices.len() < SYNC_TOGETHER_MIN {
        None
    } else {
        device_synced(disk, data_dir)
    };
    let mut devices = devices.into_iter();
    for entry in &mut opened {
        if let Opened::Small(segment) = entry
            && devices.next() != synced
            && let Err(error) = sync(segment)
        {
            *entry = Opened::Failed(error);
        }
    }
    opened
}

/// Syncs all files on the device of the data directory and returns the device; `None` if each file must
/// be synced by itself.
fn device_synced(disk: &dyn Disk, data_dir: &Path) -> Option<u64> {
    let device = disk.identity(data_dir).ok()??.0;
    disk.sync_file_system(data_dir).ok()?.then_some(device)
}

fn is_out_of_descriptors(error: &ProcessError) -> bool {
    use rustix::io::Errno;
    let ProcessError::Io(DataDirError { source, .. }) = error else {
        return false;
    };
    let of_all = [Errno::MFILE, Errno::NFILE].map(Errno::raw_os_error);
    source
        .raw_os_error()
        .is_some_and(|errno| of_all.contains(&errno))
}

/// Describes why a file with this format is not applied, and what to do; `None` for JSON Lines.
fn refusal(looks: Looks, path: &Path) -> Option<String> {
    let what = match looks {
        Looks::Lines => return None,
        Looks::Unfit(unfit) => {
            return Some(format!(
                "it looks like {}, not JSON Lines, so it is not applied. Move it out of the data directory and {}",
                unfit.what,
                unfit.cure(path)
            ));
        }
        Looks::Gzip => "compressed with gzip",
        Looks::Array => "a JSON array",
        Looks::Objects => "JSON objects over several lines",
    };
    Some(format!(
        "it looks like {what}, not JSON Lines, so it is not applied. Move it out of the data directory and run `tallyline process FILE` (while no server applies there) or `tallyline send FILE`, which convert it"
    ))
}
