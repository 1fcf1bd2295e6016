//! Retention: prunes segments and expires ids that are older than configured. Runs on the thread `process`.
//!
//! # The ordered steps of a prune
//! 0. The exclusive lock on the data directory (`flock`) is held, and the files of the database are those
//!    that the writer opened. Each file of the segment outside the quarantine has the length and checksum of
//!    its row; otherwise the segment is kept and reported in readiness.
//! 1. One transaction adds the segment's sums and the length and checksum of its file to the `pruned` row,
//!    deletes the segment's row and its rejected lines, and subtracts it from `applied_sum`.
//! 2. A checkpoint (FULL) writes the whole WAL to the database file and syncs it. Before and after it, the
//!    database file, its `-wal` and its `-shm` must still be at their paths: if the `-wal` was removed, the
//!    commit of step 1 would be lost when the process ends, and the segment's file must not be removed. It is
//!    also kept while a reader prevents the checkpoint from completing.
//! 3. The file is removed.
//! 4. Its directory is synced. Only then is the next segment pruned, so that a crash leaves at most one file
//!    to remove.
//!
//! After a crash following step 1 or 2, the file exists without a row. The next start or the next round
//! removes it if it has the length and checksum in the `pruned` row, after a checkpoint as in step 2. A file
//! with a pruned number and another content is kept and reported. After a crash following step 3, the file may
//! exist or not; if it does, it is removed in the same way.
//!
//! In PostgreSQL the commit of step 1 is durable at once, so that there is no step 2 and no file of a database.
//! A segment is then kept for at least `--failover-window`, for a standby that lost the last commits.
//!
//! # Which segments
//! Segments are pruned in the order of their numbers, up to the first that is pending or missing: the pruned
//! numbers are a range from 1 on, and a missing segment in it would not be reported any more. The newest segment is
//! kept, because the next number is derived from it. Imported segments are kept, because their rows prevent
//! the same file from being counted again. The age of a segment counts from when it was fully applied.
//!
//! Nothing is pruned or expires while `tallyline verify` runs, or while the sums of the database are wrong or
//! being checked.

mod prune;
#[cfg(test)]
mod tests;

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use self::prune::{Finished, PruneOutcome, prune};
pub(super) use self::prune::{finish, finish_at_start, was_pruned};
use super::{ProcessError, ProcessorConfig, describe};
use crate::data_dir::Catalog;
use crate::data_dir::disk::{self, DirLock, Disk};
use crate::health::Health;
use crate::store::{IdsWalk, SegmentRow, StoreError, Writer};

/// Time limit for pruning in one round; at least one segment is pruned.
const ROUND_MAX: Duration = Duration::from_millis(100);
/// Most segments that are pruned in one round.
const SEGMENTS_AT_ONCE: u64 = 1000;
/// Pause before a segment that could not be pruned is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// A reader that prevents the checkpoint for longer than this is reported in readiness.
const UNSETTLED_MAX: Duration = Duration::from_mins(1);
/// Ids visited per transaction. A step of expiry takes at most `IDS_STEP_MAX` each `IDS_STEP_EVERY`, which is
/// 2 % of the time.
const IDS_AT_ONCE: u32 = 2000;
const IDS_STEP_MAX: Duration = Duration::from_millis(20);
const IDS_STEP_EVERY: Duration = Duration::from_secs(1);

/// The readiness topic of pruning.
pub(super) const RETENTION: &str = "retention";

/// The state of pruning and expiry.
pub(super) struct Retention {
    config: ProcessorConfig,
    /// Nothing is pruned before this.
    not_before: Instant,
    /// Highest number pruned since the last return from [`Retention::round`].
    pruned: Option<u64>,
    /// Since when a checkpoint has been incomplete; `None` if none is.
    unsettled_since: Option<Instant>,
    /// Since when another process has held the lock on the directory, and whether that was logged.
    locked_out: Option<(Instant, bool)>,
    /// Position of the walk over all ids.
    ids: IdsWalk,
    /// No id expires before this.
    ids_not_before: Instant,
}

/// How pruning ended in one round.
enum Pruning {
    /// What is due was pruned, or time was up.
    Done,
    /// A segment is kept, for this reason.
    Kept(String),
    /// A checkpoint is incomplete.
    Postponed,
}

impl Retention {
    pub(super) fn new(config: &ProcessorConfig) -> Self {
        let now = Instant::now();
        Self {
            config: config.clone(),
            not_before: now,
            pruned: None,
            unsettled_since: None,
            locked_out: None,
            ids: IdsWalk::default(),
            ids_not_before: now,
        }
    }

    /// Prunes and expires what is due. `end` is the first segment that must be kept. Returns the highest number
    /// pruned, if any. An error of a file or directory is reported in readiness and tried again later; only
    /// an error of the database is returned.
    pub(super) fn round(
        &mut self,
        writer: &mut Writer,
        disk: &dyn Disk,
        end: u64,
        health: &Health,
    ) -> Result<Option<u64>, StoreError> {
        match self.step(writer, disk, end, health) {
            Ok(()) => {}
            // A later round tries again.
            Err(ProcessError::Store(error)) if error.is_locked() => {}
            Err(ProcessError::Store(error)) => return Err(error),
            Err(error) => {
                self.not_before = Instant::now() + RETRY_AFTER;
                health.set(RETENTION, describe(&error));
            }
        }
        Ok(self.pruned.take())
    }

    fn step(
        &mut self,
        writer: &mut Writer,
        disk: &dyn Disk,
        end: u64,
        health: &Health,
    ) -> Result<(), ProcessError> {
        if !self.config.clock.is_trusted() {
            return Ok(());
        }
        self.ids(writer)?;
        let unfinished = health.is_set(RETENTION) || self.unsettled_since.is_some();
        if self.not_before > Instant::now() || !(unfinished || self.due(writer, end)?.is_some()) {
            return Ok(());
        }
        let Some(_held) = self.hold()? else {
            return Ok(());
        };
        match self.prune_due(writer, disk, end)? {
            Pruning::Done => {
                self.unsettled_since = None;
                health.clear(RETENTION);
            }
            Pruning::Kept(reason) => {
                self.unsettled_since = None;
                self.not_before = Instant::now() + RETRY_AFTER;
                health.set(RETENTION, reason);
            }
            Pruning::Postponed => self.postpone(health),
        }
        Ok(())
    }

    /// Completes an interrupted prune, then prunes segments until none is due or [`ROUND_MAX`] has passed.
    fn prune_due(
        &mut self,
        writer: &mut Writer,
        disk: &dyn Disk,
        end: u64,
    ) -> Result<Pruning, ProcessError> {
        let (catalog, listed) = self.list(writer, disk)?;
        if finish(disk, &catalog, writer)? == Finished::Later {
            return Ok(Pruning::Postponed);
        }
        let began = Instant::now();
        while let Some((row, number)) = self.due(writer, end)?
            && listed.contains(&number)
        {
            let now_ms = self.config.clock.now_ms();
            match prune(writer, disk, &catalog, &row, now_ms, &mut self.pruned)? {
                PruneOutcome::Pruned => {}
                PruneOutcome::OtherContent(path) => {
                    return Ok(Pruning::Kept(format!(
                        "cannot prune {}: it has another content than was applied as segment {number}; no later segment is pruned either. Restore the file or move it to quarantine/",
                        path.display()
                    )));
                }
                PruneOutcome::Changed => break,
                PruneOutcome::Later => return Ok(Pruning::Postponed),
            }
            if began.elapsed() > ROUND_MAX {
                break;
            }
        }
        Ok(Pruning::Done)
    }

    /// Lists the files with the names of those segments that may be pruned in this round, and the numbers of
    /// these segments.
    fn list(
        &self,
        writer: &Writer,
        disk: &dyn Disk,
    ) -> Result<(Catalog, RangeInclusive<u64>), ProcessError> {
        let dir = &self.config.data_dir;
        let (mut others, _) = writer.applied()?;
        let first = others.native.ranges().next();
        let first = first.map_or(0, |range| *range.start());
        let listed = first..=first + SEGMENTS_AT_ONCE;
        for number in listed.clone() {
            others.native.remove(number);
        }
        let tag = self.config.directory_tag();
        let catalog = Catalog::scan_unapplied(disk, dir, tag, &others.native)
            .map_err(ProcessError::io("list", dir))?;
        Ok((catalog, listed))
    }

    /// Postpones pruning because the checkpoint is incomplete.
    fn postpone(&mut self, health: &Health) {
        self.not_before = Instant::now() + RETRY_AFTER;
        let since = *self.unsettled_since.get_or_insert_with(Instant::now);
        if since.elapsed() > UNSETTLED_MAX {
            health.set(
                RETENTION,
                format!(
                    "database {}: cannot complete a checkpoint, because another program has had a read transaction open for {} s; nothing is pruned meanwhile. End that transaction",
                    self.config.database,
                    since.elapsed().as_secs()
                ),
            );
        }
    }

    /// The next segment to prune and its number; `None` if none is due.
    fn due(
        &self,
        writer: &mut Writer,
        end: u64,
    ) -> Result<Option<(SegmentRow, u64)>, ProcessError> {
        let Some(retention) = self.config.retention else {
            return Ok(None);
        };
        let Some(row) = writer.oldest_applied()? else {
            return Ok(None);
        };
        let stamps = self.config.clock.stamps();
        if row.completed_at_ms.is_some_and(|at| !stamps.can_be(at)) {
            // Dated by a clock that was wrong: its age counts from now.
            writer.restamp_segments(&stamps)?;
            return Ok(None);
        }
        let due_ms = row
            .completed_at_ms
            .and_then(|at| at.checked_add(i64::try_from(retention.as_millis()).ok()?));
        let due = due_ms.is_some_and(|due_ms| due_ms <= stamps.now_ms);
        match row.id.number() {
            Some(number) if due && number < end && number < writer.highest_sealed()? => {
                Ok(Some((row, number)))
            }
            _ => Ok(None),
        }
    }

    /// Expires ids: one step of the walk over all of them.
    fn ids(&mut self, writer: &mut Writer) -> Result<(), ProcessError> {
        let Some(dedup_window) = self.config.dedup_window else {
            return Ok(());
        };
        let began = Instant::now();
        if self.ids_not_before > began {
            return Ok(());
        }
        self.ids_not_before = began + IDS_STEP_EVERY;
        let Some(_held) = self.hold()? else {
            return Ok(());
        };
        // Times of ids are whole seconds; rounded up so that no id expires early.
        let keep_s = i64::try_from(dedup_window.as_millis().div_ceil(1000)).unwrap_or(i64::MAX);
        let stamps = self.config.clock.stamps();
        let before_s = stamps.now_ms.div_euclid(1000).saturating_sub(keep_s);
        while began.elapsed() < IDS_STEP_MAX {
            self.ids = writer.expire_ids(&self.ids, before_s, &stamps, IDS_AT_ONCE)?;
            if self.ids.is_at_start() {
                break;
            }
        }
        Ok(())
    }

    /// Takes the exclusive lock on the data directory; `None` while another process holds it, such as
    /// `tallyline verify`.
    fn hold(&mut self) -> Result<Option<DirLock>, ProcessError> {
        let dir = &self.config.data_dir;
        let held = DirLock::try_exclusive(dir).map_err(ProcessError::io("lock", dir))?;
        match (&held, self.locked_out) {
            (Some(_), _) => self.locked_out = None,
            (None, None) => self.locked_out = Some((Instant::now(), false)),
            (None, Some((since, false))) if since.elapsed() >= disk::WAIT_LOGGED_AFTER => {
                tracing::warn!("nothing is pruned meanwhile: {}", disk::lock_holders(dir));
                self.locked_out = Some((since, true));
            }
            (None, Some(_)) => {}
        }
        Ok(held)
    }
}
