//! Applies one segment to the database: verifies the applied prefix, then scans and commits range by range.
//!
//! Used by the thread `process` and by a batch run. The state of a segment in memory ([`Follow`]) changes only
//! after a commit. After any error it is discarded and read from the database again.

mod confirm;
mod files;
mod folded;
mod replay;
mod same_content;
#[cfg(test)]
mod tests;
mod together;

use std::cell::Cell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crc32fast::Hasher;

use self::confirm::Follow;
pub(super) use self::confirm::{Confirmed, Corrupt};
pub(super) use self::files::open_sealed;
pub(super) use self::folded::{Committed, Folded, Member, can_fold};
use self::replay::{FileSource, REPLAY_RANGE_MIN, is_replay_too_large};
use self::same_content::Imports;
pub(super) use self::together::{Opened, Small, is_out_of_descriptors, open_together};
use super::clock::Clock;
use super::{ProcessError, ProcessorConfig};
use crate::aggregate::UserSums;
use crate::aggregate::pool::{Pool, RangeAggregate};
use crate::aggregate::scan::PartialAggregate;
use crate::data_dir::SegmentFile;
use crate::data_dir::disk;
use crate::data_dir::segment::{DirectoryTag, Label, Seal, SegmentId};
use crate::store::{Applied, Delta, Opening, Outcome, Range, RangeEnd, StoreError, Writer};
use crate::verify::seal;

/// While the active segment is applied, its pages are released from the page cache after this many bytes.
const RELEASE_BYTES: u64 = 4 << 20;

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

/// The work of a round.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Work {
    pub(super) bytes: u64,
    /// Duration of the commits.
    pub(super) committing: Duration,
}

pub(super) struct Applier<'p> {
    pub(super) writer: Writer,
    /// The database file; empty if the database is not a file.
    database: PathBuf,
    /// The work since this was last reset.
    pub(super) work: Work,
    pool: &'p mut Pool,
    clock: Arc<Clock>,
    follows: HashMap<SegmentId, Follow>,
    /// The imported files in `follows` that are a native segment or a part of one. Nothing of them may be
    /// committed yet.
    labelled: HashMap<Label, Vec<SegmentId>>,
    /// The data directory's part of the tags in labels.
    directory: DirectoryTag,
    imports: Imports,
    /// Whether a part of a segment of this data directory was imported; `None` if that was not looked up.
    own_parts: Cell<Option<bool>>,
}

impl<'p> Applier<'p> {
    /// The data directory's part of the tags in labels.
    pub(super) fn directory(&self) -> DirectoryTag {
        self.directory
    }

    /// Opens the database, or creates it.
    pub(super) fn open(config: &ProcessorConfig, pool: &'p mut Pool) -> Result<Self, StoreError> {
        let mut writer = open_writer(config, Opening::Follow)?;
        writer.keep_ids(config.dedup_window)?;
        Self::new(config, pool, writer)
    }

    /// For a batch run, with a writer that is open already.
    pub(super) fn of(
        config: &ProcessorConfig,
        pool: &'p mut Pool,
        writer: Writer,
    ) -> Result<Self, StoreError> {
        Self::new(config, pool, writer)
    }

    fn new(
        config: &ProcessorConfig,
        pool: &'p mut Pool,
        writer: Writer,
    ) -> Result<Self, StoreError> {
        writer.check_rows()?;
        writer.cache(config.memory_budget().cache_bytes)?;
        config.clock.check(writer.clock()?);
        Ok(Self {
            writer,
            database: config
                .database
                .file()
                .map(Path::to_owned)
                .unwrap_or_default(),
            work: Work::default(),
            pool,
            clock: Arc::clone(&config.clock),
            follows: HashMap::new(),
            labelled: HashMap::new(),
            directory: config.directory_tag(),
            imports: Imports::default(),
            own_parts: Cell::new(None),
        })
    }

    /// Closes the database after an error; without a checkpoint if one of its files was replaced.
    pub(super) fn release(self) {
        if self.writer.replaced().is_some() {
            self.writer.abandon();
        }
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
        let mut bytes_max = u64::MAX;
        loop {
            let Some(follow) = self.follows.get(&segment.id) else {
                return Err(ProcessError::Raced {
                    segment: segment.id.to_string(),
                });
            };
            let from = follow.applied.total_len();
            let mut checksum = follow.applied.clone();
            let label = follow.label;
            if from >= to && !(first && end == RangeEnd::Complete) {
                return Ok(());
            }
            first = false;
            let began = Instant::now();
            let aggregate = self
                .pool
                .scan_at_most(&segment.file, from, to, bytes_max)
                .map_err(ProcessError::io("read", &segment.path))?;
            checksum.combine(&aggregate.partial.checksum);
            let end = match end {
                RangeEnd::Complete if aggregate.to < to => RangeEnd::Sealed,
                end => end,
            };
            let scanned_at = Instant::now();
            let committed = self.commit(
                (segment, label),
                from,
                &aggregate,
                checksum.clone().finalize(),
                end,
                watch,
            );
            let applied = match committed {
                Err(error) if is_replay_too_large(&error) => {
                    bytes_max = ((aggregate.to - from) / 8).max(REPLAY_RANGE_MIN);
                    continue;
                }
                committed => committed?,
            };
            let commit = Commit {
                segment,
                from,
                to: aggregate.to,
                applied,
            };
            self.advance(&commit, checksum, scanned_at.elapsed());
            watch.committed(&[commit], began.elapsed());
            if from > 0 && from / RELEASE_BYTES != aggregate.to / RELEASE_BYTES {
                segment.file.release_cache(aggregate.to);
            }
        }
    }

    /// Commits a range of this segment.
    fn commit(
        &mut self,
        (segment, label): (&SegmentFile, Option<Label>),
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
        let name = segment.name();
        let now_ms = self.clock.now_ms();
        let range = aggregate.range((segment, label, &name), from, checksum, end, now_ms);
        let mut source = FileSource {
            file: &*segment.file,
            from,
            to: aggregate.to,
            memory_bytes_max: self.pool.range_bytes() / 2,
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

    /// Changes the state in memory after a commit that took `took`. `checksum` is that of the applied prefix.
    fn advance(&mut self, commit: &Commit<'_>, checksum: Hasher, took: Duration) {
        self.work.bytes += commit.to - commit.from;
        self.work.committing += took;
        if let Some(follow) = self.follows.get_mut(&commit.segment.id) {
            follow.applied = checksum;
        }
    }

    /// Fails if another program wrote to the database file or its `-wal` in place. A commit after that could
    /// be lost, or a checkpoint could write what is not in the `-wal` any more.
    pub(super) fn check_in_place(&mut self) -> Result<(), ProcessError> {
        match self.writer.is_overwritten() {
            Ok(true) => Err(ProcessError::Overwritten {
                path: self.database.clone(),
            }),
            Err(error) if !error.is_locked() => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Writes, and repeats it while another program has the database locked and `watch` waits.
    fn until_unlocked<T>(
        &mut self,
        watch: &mut dyn Watch,
        mut write: impl FnMut(&mut Writer) -> Result<T, StoreError>,
    ) -> Result<T, ProcessError> {
        loop {
            self.check_in_place()?;
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
}

impl RangeAggregate {
    /// The range of a segment from `from` on, as the store applies it.
    fn range<'a>(
        &'a self,
        (segment, label, file_name): (&'a SegmentFile, Option<Label>, &'a str),
        from: u64,
        checksum: u32,
        end: RangeEnd,
        now_ms: i64,
    ) -> Range<'a> {
        Range {
            segment: &segment.id,
            tag: segment.tag,
            label,
            file_name,
            from,
            to: self.to,
            checksum,
            end,
            now_ms,
            delta: delta(&self.users, &self.partial),
        }
    }
}

fn delta<'a>(users: &'a UserSums, partial: &'a PartialAggregate) -> Delta<'a> {
    Delta {
        users,
        with_id: &partial.with_id,
        rejected: &partial.rejected,
        rejected_count: partial.rejected_count,
        lines: partial.lines,
        net_check: partial.net_check,
    }
}

/// Opens the database as the only writer of the data directory.
pub(super) fn open_writer(
    config: &ProcessorConfig,
    opening: Opening,
) -> Result<Writer, StoreError> {
    Writer::of(
        &config.database,
        &config.data_dir,
        config.directory,
        opening,
    )
}
