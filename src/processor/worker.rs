//! The thread `process`: decides what is applied and in which order, and handles failures.
//!
//! It owns the store's writer. In each round it reads the journal's durable end, lists the data directory,
//! applies what is new, publishes the status, and prunes and expires what is due.
//!
//! All its state is derived from the database and the directory by the startup scan
//! ([`Worker::start_over`]). The scan is repeated after any error and when another program has changed or
//! replaced the database. An error of one file is reported in readiness and does not end a round.

mod checks;
mod segments;
mod skipped_files;
mod startup_scan;
mod status;
mod sums_check;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::skipped_files::SkippedFiles;
pub(super) use self::startup_scan::describe_missing;
use self::status::PublishedStatus;
use self::sums_check::SumsCheck;
use super::applier::{Applier, Commit, Confirmed, Corrupt, Watch, Work};
use super::other_names::OtherNames;
use super::retention::{self, Retention};
use super::{ProcessError, ProcessorConfig, describe, sealed_files, unfinished};
use crate::aggregate::pool::Pool;
use crate::data_dir::disk::{self, Disk};
use crate::data_dir::segment::{ACTIVE_FILE, Label, Position, SegmentId, Tag};
use crate::data_dir::{Catalog, Claims, Found, Place, SegmentFile};
use crate::health::Health;
use crate::journal::{Journal, Tail};
use crate::progress::{DeadSegment, Progress, Settled};
use crate::store::{RangeEnd, SegmentRow, SegmentState, StoreError, discard_wal, is_consistent};
use crate::verify::contents::{accounts_for, compare_claims, describe_rivals};
use crate::verify::sums;

const DATABASE: &str = "database";
const SUMS: &str = "database sums";
pub(super) const MISSING: &str = "missing segments";
/// Prefix of the readiness topics of segments.
const SEGMENT: &str = "segment ";
/// The pause after a failure doubles from `PAUSE_MIN` to `PAUSE_MAX`.
const PAUSE_MAX: Duration = Duration::from_secs(5);
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// How often the files of the database are checked between rounds.
const DATABASE_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// A database file that did not change for this long is taken to be completely written.
const UNCHANGED_FOR: Duration = Duration::from_millis(500);
/// Replaces a flush interval that is too long to add to an `Instant`.
const PERIOD_MAX: Duration = Duration::from_hours(24);
/// Pause before a file that failed is tried again.
const FILE_RETRY_AFTER: Duration = Duration::from_secs(5);
/// A round starts early when about this much has been appended. Bytes that are read soon after they were
/// written occupy few pages of the page cache.
const ROUND_BYTES: u64 = 32 << 20;
/// The time from one round to the next is at least this many times the duration of its commits.
const COMMIT_TIME_FACTOR: u32 = 5;
/// How long the last flush, at shutdown, waits for a locked database.
const LAST_FLUSH_MAX: Duration = Duration::from_secs(2);
/// How long to wait for a rotation; after that the next round requests it again.
const ROTATE_MAX: Duration = Duration::from_secs(10);

/// The state of the thread, which is kept when the startup scan is repeated.
struct Worker {
    config: ProcessorConfig,
    disk: Arc<dyn Disk>,
    journal: Journal,
    status: PublishedStatus,
    skipped: SkippedFiles,
    other_names: OtherNames,
    /// Numbers below the active one that have no file and no fully applied row.
    missing: BTreeSet<u64>,
    /// Number of the active segment at the last startup scan. The journal counts the lines of later ones.
    since: u64,
    sums_check: SumsCheck,
    retention: Retention,
}

/// The body of the thread. After [`Progress::stop`] it applies the rest and closes the database. Returns why
/// not everything was applied; `None` if everything was.
pub(super) fn run(
    config: ProcessorConfig,
    disk: Arc<dyn Disk>,
    journal: Journal,
    progress: &Arc<Progress>,
    health: &Arc<Health>,
    mut pool: Pool,
) -> Option<String> {
    if let Err(error) = unfinished::remove(&config.data_dir) {
        tracing::warn!("{}", describe(&error));
    }
    let mut worker = Worker {
        sums_check: SumsCheck::new(sums::was_left_open(&config.database)),
        retention: Retention::new(&config),
        status: PublishedStatus::new(Arc::clone(progress), Arc::clone(health)),
        skipped: SkippedFiles::new(config.directory_tag()),
        other_names: OtherNames::default(),
        config,
        disk,
        journal,
        missing: BTreeSet::new(),
        since: 1,
    };
    let mut pause = PAUSE_MIN;
    let unapplied = loop {
        // During shutdown there is one last attempt.
        let last = progress.is_stopping();
        let Err(error) = worker.attempt(&mut pool) else {
            break None;
        };
        if last || matches!(error, ProcessError::Stopped) {
            break Some(describe_unapplied(&error, health));
        }
        match error {
            ProcessError::Overwritten { .. } => {
                worker.sums_check.request();
                continue;
            }
            // Not an error yet: the startup scan checks the sums.
            ProcessError::ChangedByOthers { .. } => {
                tracing::warn!("{}", describe(&error));
                continue;
            }
            ProcessError::Replaced { .. } => pause = PAUSE_MIN,
            _ => {}
        }
        health.set(DATABASE, describe(&error));
        progress.wait_until(Instant::now() + pause);
        pause = (pause * 2).min(PAUSE_MAX);
    };
    worker.sums_check.join();
    progress.finish();
    unapplied
}

/// Describes why the rest was not applied at the shutdown.
fn describe_unapplied(error: &ProcessError, health: &Health) -> String {
    let locked = match error {
        ProcessError::Stopped => health.reason(DATABASE),
        _ => None,
    };
    format!(
        "cannot apply all acknowledged events at shutdown: {}. They are kept, and the next start or `tallyline process` applies them",
        locked.unwrap_or_else(|| describe(error))
    )
}

/// The time from the start of a round to the start of the next one. `since` is the time in which the work of
/// the round arrived.
fn pause(since: Duration, work: Work, flush_interval: Duration) -> Duration {
    let until_full = since.as_nanos() * u128::from(ROUND_BYTES) / u128::from(work.bytes.max(1));
    Duration::from_nanos_u128(until_full)
        .max(work.committing * COMMIT_TIME_FACTOR)
        .min(flush_interval)
}

/// Waits until the database file has not changed for [`UNCHANGED_FOR`], or for shutdown. A file that was
/// removed in the meantime does not change either.
fn wait_until_unchanged(path: &Path, progress: &Progress) {
    let mut before = None;
    loop {
        let now = disk::written(path);
        if before == Some(now) || progress.is_stopping() {
            return;
        }
        before = Some(now);
        progress.wait_until(Instant::now() + UNCHANGED_FOR);
    }
}

fn close(applier: Applier<'_>) {
    if let Err(error) = applier.writer.close() {
        let error = describe(&error);
        tracing::warn!(
            error,
            "cannot close the database; it is recovered at the next start"
        );
    }
}

impl Worker {
    /// Opens the database, follows the files until shutdown or an error, and closes it.
    fn attempt(&mut self, pool: &mut Pool) -> Result<(), ProcessError> {
        let mut applier = Applier::open(&self.config, pool)?;
        let result = self.follow(&mut applier);
        match &result {
            Ok(()) => close(applier),
            Err(error @ ProcessError::Overwritten { path }) => {
                applier.writer.abandon();
                tracing::warn!("{}", describe(error));
                self.status.health.set(DATABASE, describe(error));
                wait_until_unchanged(path, &self.status.progress);
                if !is_consistent(path).unwrap_or(false) {
                    discard_wal(path);
                }
            }
            Err(_) => applier.release(),
        }
        result
    }

    /// Runs the startup scan and then rounds. Returns `Ok` after the last round of a shutdown.
    fn follow(&mut self, applier: &mut Applier<'_>) -> Result<(), ProcessError> {
        self.start_over(applier)?;
        let mut last = Instant::now();
        loop {
            let began = Instant::now();
            let last_round = self.status.progress.is_stopping();
            applier.work = Work::default();
            self.round(applier)?;
            self.status.health.clear(DATABASE);
            if last_round {
                return Ok(());
            }
            let pause = pause(began - last, applier.work, self.config.flush_interval);
            // An interval too long for the clock: rounds start on demand.
            let due = began.checked_add(pause).unwrap_or(began + PERIOD_MAX);
            last = began;
            while !self
                .status
                .progress
                .wait_for_demand(due.min(Instant::now() + DATABASE_CHECK_INTERVAL))
                && Instant::now() < due
            {
                self.check_database(applier)?;
            }
        }
    }

    /// Applies everything that is durable now, then prunes and expires.
    fn round(&mut self, applier: &mut Applier<'_>) -> Result<(), ProcessError> {
        self.check_database(applier)?;
        let clock = &self.config.clock;
        clock.check_and_store(&mut applier.writer)?;
        // Read before the listing, which then has every segment below this one.
        let tail = self.journal.tail();
        self.status.active = tail.number;
        self.find_files(applier)?;
        let files = self.due_files();
        let mut rest = &files[..];
        while let Some(first) = rest.first() {
            if self.status.progress.is_stopping() && first.id.number().is_none() {
                break; // Imported files are applied at the next start.
            }
            let disk = Arc::clone(&self.disk);
            let data_dir = self.config.data_dir.clone();
            let handled = sealed_files::apply_some(
                &*disk,
                &data_dir,
                applier,
                self.status.pruned,
                rest,
                self,
            )?;
            rest = &rest[handled..];
        }
        self.active_file(applier, &tail)?;
        self.status.account(&tail);
        self.status.publish();
        self.prune_and_expire(applier)
    }

    /// Runs retention, unless the sums of the database are wrong or not yet checked.
    fn prune_and_expire(&mut self, applier: &mut Applier<'_>) -> Result<(), ProcessError> {
        if self.sums_check.is_running()
            || self.status.health.is_set(SUMS)
            || self.status.progress.is_stopping()
        {
            return Ok(());
        }
        if applier.writer.replaced().is_some() {
            return Ok(()); // The next round reports it.
        }
        applier.check_in_place()?;
        let (status, writer) = (&mut self.status, &mut applier.writer);
        let waiting = status.sealed.iter().filter(|(_, sealed)| !sealed.applied);
        // A number below the highest pruned one is not reported as missing any more.
        let end = waiting
            .filter_map(|(id, _)| id.number())
            .chain(self.missing.first().copied())
            .min()
            .unwrap_or(status.active);
        let pruned = self
            .retention
            .round(writer, &*self.disk, end, &status.health)?;
        status.pruned = pruned.unwrap_or(status.pruned);
        // If this fails, the next check of the database finds out.
        let _unknown = writer.note_written();
        Ok(())
    }

    /// Applies the durable part of the active segment.
    fn active_file(&mut self, applier: &mut Applier<'_>, tail: &Tail) -> Result<(), ProcessError> {
        let id = SegmentId::Native(tail.number);
        let path = self.config.data_dir.join(ACTIVE_FILE);
        let segment = SegmentFile {
            id,
            tag: Some(tail.tag),
            path,
            file: Arc::clone(&tail.file),
        };
        if tail.durable_end == 0 && !self.status.applied.contains_key(&tail.number) {
            return Ok(());
        }
        match applier.confirm(&segment)? {
            Confirmed::At(bytes) if bytes <= tail.durable_end => {
                self.status.applied.insert(tail.number, bytes);
                applier.apply(
                    &segment,
                    tail.durable_end,
                    RangeEnd::Active,
                    &mut self.status,
                )
            }
            // It was sealed, and perhaps applied, since the tail was read.
            Confirmed::At(_) | Confirmed::Applied(_) => Ok(()),
            Confirmed::Restored(row) => Ok(applier.note(&row, SegmentState::Active, None)?),
            Confirmed::Corrupt(Corrupt { reason, .. }) | Confirmed::Rival(reason) => {
                self.status.health.set(&topic(&segment.id), reason);
                self.seal_corrupt();
                Ok(())
            }
        }
    }

    /// Seals an active segment whose applied prefix has changed, so that ingestion continues in the next one.
    /// A later round finds the sealed file and marks it as corrupt.
    fn seal_corrupt(&self) {
        let (sender, receiver) = crossbeam_channel::bounded(1);
        self.journal.rotate(Box::new(move |rotated| {
            let _timed_out = sender.send(rotated.map(|_| ()));
        }));
        match receiver.recv_timeout(ROTATE_MAX) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot seal the corrupt segment; trying again");
            }
            Err(error) => {
                tracing::warn!(%error, "the corrupt segment is not sealed yet; trying again");
            }
        }
    }
}

/// The readiness topic of a segment.
pub(super) fn topic(id: &SegmentId) -> String {
    format!("{SEGMENT}{id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_more_frequent_under_load_if_commits_are_fast() {
        let second = Duration::from_secs(1);
        let work = |mib: u64, ms| Work {
            bytes: mib << 20,
            committing: Duration::from_millis(ms),
        };
        assert_eq!(pause(second, work(0, 0), second), second);
        assert_eq!(pause(second, work(16, 1), second), second);
        assert_eq!(pause(second, work(320, 1), second), second / 10);
        assert_eq!(pause(second / 10, work(32, 1), second), second / 10);
        let slow = pause(second, work(320, 60), second);
        assert_eq!(slow, Duration::from_millis(300), "many users");
        assert_eq!(pause(second, work(320, 600), second), second);
        let (year, least) = (Duration::from_hours(8766), Duration::from_millis(10));
        assert_eq!(pause(year, work(0, 0), least), least);
    }
    #[test]
    fn a_removed_database_file_ends_the_wait_for_its_last_write() {
        // Fails if the wait ends only when there is a file again: nothing would be applied until the
        // next restart.
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("revenue.db");
        let (sender, receiver) = crossbeam_channel::bounded(1);
        std::thread::spawn(move || {
            let progress = Progress::new(crate::progress::Processing::Here);
            wait_until_unchanged(&path, &progress);
            let _ = sender.send(());
        });
        receiver
            .recv_timeout(Duration::from_mins(1))
            .expect("the wait ends");
    }
}
