//! The coordinator thread: what is to be applied, in which order, and what to do when it fails.
//!
//! It alone owns the writer. Each round it looks at the journal's durable end and at the directory,
//! applies what is new, and publishes. Everything it knows of the database is read from the rows
//! when it starts over: at the start, after any error, when the database file was replaced.

mod segments;
mod startup_scan;
mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub(super) use self::startup_scan::missing_in_words;
use super::applier::{
    Applier, Commit, Confirmed, Corrupt, Opened, Small, Watch, Work, open_sealed, open_together,
};
use super::retention::{self, Retention};
use super::{ProcessConfig, ProcessError, archive, describe, rebuild};
use crate::aggregate::pool::Pool;
use crate::data_dir::SegmentFile;
use crate::data_dir::disk::{self, Disk, Identity};
use crate::data_dir::segment::{ACTIVE_FILE, Label, Position, SegmentId, Tag};
use crate::data_dir::{Catalog, Claims, Found, Place};
use crate::health::Health;
use crate::journal::{Journal, Tail};
use crate::progress::{DeadSegment, Progress, Settled};
use crate::store::{RangeEnd, SegmentRow, SegmentState, StoreError, discard_wal, is_consistent};
use crate::verify::contents::{describe_rivals, settle, stand_for};
use crate::verify::sums;

const DATABASE: &str = "database";
const SUMS: &str = "database sums";
pub(super) const MISSING: &str = "missing segments";
/// How the topic of each segment begins.
const SEGMENT: &str = "segment ";
/// Pauses after a failure grow up to this.
const PAUSE_MAX: Duration = Duration::from_secs(5);
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// How often the database's path is looked at between rounds.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A file that was not written to for so long is complete.
const STILL_FOR: Duration = Duration::from_millis(500);
/// Stands for a period that no clock can measure.
const PERIOD_MAX: Duration = Duration::from_hours(24);
/// A file that failed is tried again after this.
const FILE_RETRY_AFTER: Duration = Duration::from_secs(5);
/// When more than this comes in a flush interval, a round begins as soon as so much has come: what is
/// read soon after it was written takes few pages of memory, and those again and again.
const ROUND_BYTES: u64 = 32 << 20;
/// ... but the database gets no more than one part in so many of the time.
const COMMITTING: u32 = 5;
/// How long the last flush waits for a locked database.
const LAST_FLUSH_MAX: Duration = Duration::from_secs(2);
/// How long a rotation may take before it is asked for again.
const ROTATE_MAX: Duration = Duration::from_secs(10);

/// A sealed file that is not wholly applied yet.
#[expect(
    clippy::struct_excessive_bools,
    reason = "four facts that do not depend on each other"
)]
struct Sealed {
    path: PathBuf,
    tag: Option<Tag>,
    place: Place,
    /// Its size at the last look, for files from elsewhere: those still being copied here wait.
    size: Option<u64>,
    retry_at: Option<Instant>,
    /// Whether its lines are in `pending`.
    counted: bool,
    /// Whether its number is past the active segment's: another copy of the directory made it.
    ahead: bool,
    /// Whether only its move to the archive is left.
    whole: bool,
    /// Whether it was no regular file at the last look.
    unusable: bool,
}

/// What is known of the outside, and what is published. Apart from the applier, so that a commit
/// can be told here.
struct PublishedStatus {
    progress: Arc<Progress>,
    health: Arc<Health>,
    sealed: BTreeMap<SegmentId, Sealed>,
    lost: BTreeMap<u64, DeadSegment>,
    /// Applied bytes of the segments of ours that are not whole.
    applied: BTreeMap<u64, u64>,
    active: u64,
    /// Retention has let go the segments up to this number; a file of theirs is not applied.
    pruned: u64,
    settled: Settled,
    /// Lines that were settled when this process first read the database.
    settled_before: Option<u64>,
    /// The end of the last range of ours that was committed.
    committed: Position,
    locked_since: Option<Instant>,
}

/// What outlives starting over.
struct Worker {
    config: ProcessConfig,
    disk: Arc<dyn Disk>,
    journal: Journal,
    board: PublishedStatus,
    /// Files that were left alone, and why: not looked at again unless they change.
    left_alone: BTreeMap<PathBuf, Identity>,
    /// Numbers below the active one with neither file nor whole row.
    missing: BTreeSet<u64>,
    /// The active segment when the coordinator last started over: the lines of later ones are among
    /// those that the journal counts.
    since: u64,
    /// Whether the sums of the database are to be checked, and the thread that does.
    to_check: bool,
    check: Option<JoinHandle<()>>,
    retention: Retention,
}

/// Runs until told to stop, then applies what is left and closes the database.
pub(super) fn run(
    config: ProcessConfig,
    disk: Arc<dyn Disk>,
    journal: Journal,
    progress: &Arc<Progress>,
    health: &Arc<Health>,
    mut pool: Pool,
) {
    if let Err(error) = rebuild::remove_unfinished(&config.data_dir) {
        tracing::warn!("{}", describe(&error));
    }
    let mut coordinator = Worker {
        to_check: sums::was_left_open(&config.database()),
        check: None,
        retention: Retention::new(&config),
        board: PublishedStatus::new(Arc::clone(progress), Arc::clone(health)),
        config,
        disk,
        journal,
        left_alone: BTreeMap::new(),
        missing: BTreeSet::new(),
        since: 1,
    };
    let mut pause = PAUSE_MIN;
    loop {
        // Once told to stop, one last try.
        let last = progress.is_stopping();
        let failed = match Applier::open(&coordinator.config, &mut pool) {
            Err(error) => error.into(),
            Ok(mut applier) => match coordinator.follow(&mut applier) {
                Ok(()) => {
                    coordinator.finish_check();
                    close(applier);
                    break;
                }
                Err(error @ ProcessError::Overwritten { .. }) => {
                    applier.writer.abandon();
                    error
                }
                Err(error) => {
                    applier.release();
                    error
                }
            },
        };
        if let ProcessError::Overwritten { path } = &failed {
            tracing::warn!("{}", describe(&failed));
            health.set(DATABASE, describe(&failed));
            wait_until_still(path, progress);
            if !is_consistent(path).unwrap_or(false) {
                discard_wal(path);
            }
            if !last {
                continue;
            }
        }
        if last || matches!(failed, ProcessError::Stopped) {
            coordinator.finish_check();
            break;
        }
        match failed {
            ProcessError::Replaced { .. } => pause = PAUSE_MIN,
            // Nothing is wrong yet; what is found then will tell.
            ProcessError::ChangedByOthers { .. } => {
                tracing::warn!("{}", describe(&failed));
                continue;
            }
            _ => {}
        }
        health.set(DATABASE, describe(&failed));
        progress.wait_until(Instant::now() + pause);
        pause = (pause * 2).min(PAUSE_MAX);
    }
    progress.finish();
}

/// From the beginning of a round to that of the next, when its work came in the time `since` the one
/// before.
fn pause(since: Duration, work: Work, flush_interval: Duration) -> Duration {
    let until_full = since.as_nanos() * u128::from(ROUND_BYTES) / u128::from(work.bytes.max(1));
    Duration::from_nanos_u128(until_full)
        .max(work.committing * COMMITTING)
        .min(flush_interval)
}

/// Waits until another program that writes to the database file is done, as far as can be seen.
fn wait_until_still(path: &Path, progress: &Progress) {
    let mut before = None;
    loop {
        let now = disk::written(path);
        if (before.is_some() && now == before) || progress.is_stopping() {
            return;
        }
        before = now;
        progress.wait_until(Instant::now() + STILL_FOR);
    }
}

fn close(applier: Applier<'_>) {
    if let Err(error) = applier.writer.close() {
        let error = describe(&error);
        tracing::warn!(
            error,
            "the database was not closed cleanly; nothing is lost"
        );
    }
}

impl Worker {
    /// Reads the rows, then applies round by round; `Ok` once told to stop and all is applied.
    fn follow(&mut self, applier: &mut Applier<'_>) -> Result<(), ProcessError> {
        self.start_over(applier)?;
        let mut last = Instant::now();
        loop {
            let began = Instant::now();
            let going_on = !self.board.progress.is_stopping();
            applier.work = Work::default();
            self.round(applier)?;
            self.board.health.clear(DATABASE);
            if !going_on {
                return Ok(());
            }
            let pause = pause(began - last, applier.work, self.config.flush_interval);
            // Without an end, whoever waits demands a round.
            let due = began.checked_add(pause).unwrap_or(began + PERIOD_MAX);
            last = began;
            while !self
                .board
                .progress
                .wait_for_demand(due.min(Instant::now() + LOOK_EVERY))
                && Instant::now() < due
            {
                self.look_at_database(applier)?;
            }
        }
    }

    /// Whether the database's paths still lead to what is open, and whether another program wrote
    /// into it. Either way the rows are read anew, and the sums are checked.
    fn look_at_database(&mut self, applier: &mut Applier<'_>) -> Result<(), ProcessError> {
        let path = self.config.database();
        if let Some(what) = applier.writer.replaced() {
            self.to_check = true;
            return Err(ProcessError::Replaced { path, what });
        }
        match applier.writer.is_changed_by_others() {
            Ok(false) => match applier.writer.is_overwritten() {
                Ok(true) => {
                    self.to_check = true;
                    Err(ProcessError::Overwritten { path })
                }
                Err(error) if !error.is_locked() => Err(error.into()),
                _ => Ok(()),
            },
            Ok(true) => {
                self.to_check = true;
                Err(ProcessError::ChangedByOthers { path })
            }
            // The next look will tell.
            Err(error) if error.is_locked() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the time is still to be believed; stores it now and then.
    fn look_at_clock(&self, applier: &mut Applier<'_>) -> Result<(), ProcessError> {
        let clock = &self.config.clock;
        let Some(at_ms) = clock.look(None) else {
            return Ok(());
        };
        match applier.writer.set_clock(at_ms) {
            Ok(()) => clock.stored(at_ms),
            Err(error) if error.is_locked() => {} // Another time.
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Applies what is there now.
    fn round(&mut self, applier: &mut Applier<'_>) -> Result<(), ProcessError> {
        self.look_at_database(applier)?;
        self.look_at_clock(applier)?;
        // Before the listing: what this tail says is sealed is in it then.
        let tail = self.journal.tail();
        self.board.active = tail.number;
        self.look_for_files(applier)?;
        let ids: Vec<SegmentId> = self.board.sealed.keys().cloned().collect();
        let mut rest = &ids[..];
        while let Some(first) = rest.first() {
            if self.board.progress.is_stopping() && first.number().is_none() {
                break; // Files from elsewhere have time until the next start.
            }
            let done = self.sealed_files(applier, rest)?;
            rest = &rest[done..];
        }
        self.active_file(applier, &tail)?;
        self.board.account(&tail);
        self.board.publish();
        self.prune_and_expire(applier)
    }

    /// Retention, unless the database's sums are wrong or not yet known to be right.
    fn prune_and_expire(&mut self, applier: &mut Applier<'_>) -> Result<(), ProcessError> {
        let checking = self
            .check
            .as_ref()
            .is_some_and(|check| !check.is_finished());
        if checking || self.board.health.is_set(SUMS) || self.board.progress.is_stopping() {
            return Ok(());
        }
        let (board, writer) = (&mut self.board, &mut applier.writer);
        if writer.replaced().is_some() {
            return Ok(()); // The next round says so.
        }
        let waiting = board.sealed.iter().filter(|(_, sealed)| !sealed.whole);
        let end = waiting
            .filter_map(|(id, _)| id.number())
            .min()
            .unwrap_or(board.active);
        let pruned = self
            .retention
            .round(writer, &*self.disk, end, &board.health)?;
        board.pruned = pruned.unwrap_or(board.pruned);
        Ok(())
    }

    /// What is durable of the active segment.
    fn active_file(&mut self, applier: &mut Applier<'_>, tail: &Tail) -> Result<(), ProcessError> {
        let id = SegmentId::Native(tail.number);
        let path = self.config.data_dir.join(ACTIVE_FILE);
        let segment = SegmentFile {
            id,
            tag: Some(tail.tag),
            path,
            file: Arc::clone(&tail.file),
        };
        if tail.durable_end == 0 && !self.board.applied.contains_key(&tail.number) {
            return Ok(());
        }
        match applier.confirm(&segment)? {
            Confirmed::At(bytes) if bytes <= tail.durable_end => {
                self.board.applied.insert(tail.number, bytes);
                applier.apply(
                    &segment,
                    tail.durable_end,
                    RangeEnd::Active,
                    &mut self.board,
                )
            }
            // Sealed, and perhaps applied, between the look at the tail and now.
            Confirmed::At(_) | Confirmed::Applied(_) => Ok(()),
            Confirmed::Restored(row) => Ok(applier.note(&row, SegmentState::Active, None)?),
            Confirmed::Corrupt(Corrupt { reason, .. }) | Confirmed::Rival(reason) => {
                self.board.health.set(&topic(&segment.id), reason);
                self.seal_corrupt();
                Ok(())
            }
        }
    }

    /// The active segment is not what was applied of it: taking goes on in the next one. The
    /// sealed file is then found and marked.
    fn seal_corrupt(&self) {
        let (sender, receiver) = crossbeam_channel::bounded(1);
        self.journal.rotate(Box::new(move |rotated| {
            let _given_up = sender.send(rotated.map(|_| ()));
        }));
        match receiver.recv_timeout(ROTATE_MAX) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "the corrupt segment could not be sealed yet");
            }
            Err(error) => tracing::warn!(%error, "the corrupt segment was not sealed in time"),
        }
    }
}

impl Sealed {
    fn new(found: &Found) -> Self {
        Self {
            path: found.path.clone(),
            tag: found.tag,
            place: found.place,
            size: None,
            retry_at: None,
            counted: false,
            ahead: false,
            whole: false,
            unusable: false,
        }
    }
}

pub(super) fn topic(id: &SegmentId) -> String {
    format!("{SEGMENT}{id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_follow_sooner_where_much_comes_and_the_database_keeps_up() {
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
}
