//! Retention: prunes segments and expires ids that are older than configured. Runs on the thread `process`.
//!
//! # The ordered steps of a prune
//! 0. The exclusive lock on the data directory (`flock`) is held, and the files of the database are those
//!    that the writer opened. Each file of the segment outside the quarantine has the length and checksum of
//!    its row; otherwise the segment is kept and reported in readiness.
//! 1. One transaction adds the segment's sums and the length and checksum of its file to the `pruned` row,
//!    deletes the segment's row, and subtracts it from `applied_sum`.
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
//! # Which segments
//! Segments are pruned in the order of their numbers, up to the first that is pending. The newest segment is
//! kept, because the next number is derived from it. Imported segments are kept, because their rows prevent
//! the same file from being counted again. The age of a segment counts from when it was fully applied.
//!
//! Nothing is pruned or expires while `tallyline verify` runs, or while the sums of the database are wrong or
//! being checked.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{ProcessConfig, ProcessError, describe};
use crate::aggregate::lines;
use crate::data_dir::SegmentFile;
use crate::data_dir::disk::{self, DirHold, Disk};
use crate::data_dir::segment::SegmentId;
use crate::data_dir::{Catalog, Place};
use crate::health::Health;
use crate::store::{IdsWalk, SegmentRow, StoreError, Writer};
use crate::verify::contents;

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
    config: ProcessConfig,
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

impl Retention {
    pub(super) fn new(config: &ProcessConfig) -> Self {
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
        let dir = &self.config.data_dir;
        // The listing needs names only for the segments that may be pruned in this round.
        let (mut others, _) = writer.applied()?;
        let first = others
            .native
            .ranges()
            .next()
            .map_or(0, |range| *range.start());
        let listed = first..=first + SEGMENTS_AT_ONCE;
        listed.clone().for_each(|number| {
            others.native.remove(number);
        });
        let tag = self.config.directory_tag();
        let catalog = Catalog::scan_unapplied(disk, dir, tag, &others.native)
            .map_err(ProcessError::io("list", dir))?;
        if finish(disk, &catalog, writer)? == Finished::Later {
            self.later(health);
            return Ok(());
        }
        let began = Instant::now();
        let mut kept = None;
        while let Some((row, number)) = self.due(writer, end)?
            && listed.contains(&number)
        {
            let now_ms = self.config.clock.now_ms();
            match prune(writer, disk, &catalog, &row, now_ms, &mut self.pruned)? {
                Outcome::Pruned => {}
                Outcome::OtherContent(path) => {
                    kept = Some(format!(
                        "cannot prune {}: it has another content than was applied as segment {number}; no later segment is pruned either. Restore the file or move it to quarantine/",
                        path.display()
                    ));
                    break;
                }
                Outcome::Changed => break,
                Outcome::Later => {
                    self.later(health);
                    return Ok(());
                }
            }
            if began.elapsed() > ROUND_MAX {
                break;
            }
        }
        self.unsettled_since = None;
        match kept {
            None => health.clear(RETENTION),
            Some(reason) => {
                self.not_before = Instant::now() + RETRY_AFTER;
                health.set(RETENTION, reason);
            }
        }
        Ok(())
    }

    /// Postpones pruning because the checkpoint is incomplete.
    fn later(&mut self, health: &Health) {
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
    fn hold(&mut self) -> Result<Option<DirHold>, ProcessError> {
        let dir = &self.config.data_dir;
        let held = DirHold::alone(dir).map_err(ProcessError::io("lock", dir))?;
        match (&held, self.locked_out) {
            (Some(_), _) => self.locked_out = None,
            (None, None) => self.locked_out = Some((Instant::now(), false)),
            (None, Some((since, false))) if since.elapsed() >= disk::HELD_UP => {
                tracing::warn!("nothing is pruned meanwhile: {}", disk::held_by(dir));
                self.locked_out = Some((since, true));
            }
            (None, Some(_)) => {}
        }
        Ok(held)
    }
}

/// The result of an attempt to prune a segment.
enum Outcome {
    /// The row and the files are removed.
    Pruned,
    /// Nothing is removed: this file has another content than was applied.
    OtherContent(PathBuf),
    /// Nothing is removed: the row has changed since it was read.
    Changed,
    /// The row is removed. The file is removed once a checkpoint is complete.
    Later,
}

/// Prunes one segment; see the ordered steps. Sets `pruned` after step 1.
fn prune(
    writer: &mut Writer,
    disk: &dyn Disk,
    catalog: &Catalog,
    row: &SegmentRow,
    now_ms: i64,
    pruned: &mut Option<u64>,
) -> Result<Outcome, ProcessError> {
    let mut paths = Vec::new();
    for path in files(catalog, &row.id) {
        match disk.open_read(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            file => {
                let file = file.map_err(ProcessError::io("open", path))?;
                let segment = SegmentFile {
                    id: row.id.clone(),
                    tag: row.tag,
                    path: path.to_owned(),
                    file,
                };
                if !contents::is_what_was_applied(&segment, row)? {
                    return Ok(Outcome::OtherContent(segment.path));
                }
                paths.push(segment.path);
            }
        }
    }
    // Step 1: the transaction.
    if !writer.prune(row, now_ms)? {
        return Ok(Outcome::Changed);
    }
    *pruned = row.id.number();
    // Step 2: the checkpoint.
    if !paths.is_empty() && !writer.settle()? {
        return Ok(Outcome::Later);
    }
    for path in &paths {
        remove(disk, path)?;
    }
    tracing::info!(segment = %row.id, bytes = row.applied_bytes, "pruned");
    Ok(Outcome::Pruned)
}

/// The files of a segment that are removed with it; those in the quarantine are kept.
fn files<'c>(catalog: &'c Catalog, id: &SegmentId) -> impl Iterator<Item = &'c Path> {
    let found = catalog.sealed.get(id).into_iter().flatten();
    found
        .filter(|found| found.place != Place::Quarantine)
        .map(|found| found.path.as_path())
}

/// Steps 3 and 4: unlink, sync of the directory.
fn remove(disk: &dyn Disk, path: &Path) -> Result<(), ProcessError> {
    disk.remove(path)
        .map_err(ProcessError::io("remove", path))?;
    let dir = path.parent().unwrap_or(Path::new("."));
    disk.sync_dir(dir).map_err(ProcessError::io("sync", dir))
}

/// Whether the last prune is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finished {
    /// No file of the last pruned segment is left.
    Yes,
    /// A file is left, because a reader prevents the checkpoint.
    Later,
}

/// Completes the last prune: removes the file of the last pruned segment if a crash left it, which is
/// recognised by its length and checksum in the `pruned` row. The caller holds the exclusive lock on the
/// directory.
///
/// The rows that the connection reads may not be durable, or be in a `-wal` that was removed. Therefore a
/// checkpoint must complete before the file is removed.
pub(super) fn finish(
    disk: &dyn Disk,
    catalog: &Catalog,
    writer: &Writer,
) -> Result<Finished, ProcessError> {
    let pruned = writer.pruned()?;
    for path in files(catalog, &SegmentId::Native(pruned.number)) {
        let read = |source| ProcessError::io("read", path)(source);
        let file = match disk.open_read(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            file => file.map_err(read)?,
        };
        let size = file.size().map_err(read)?;
        if size == pruned.file_bytes
            && lines::checksum(&*file, size).map_err(read)? == pruned.file_checksum
        {
            if !writer.settle()? {
                return Ok(Finished::Later);
            }
            remove(disk, path)?;
        }
    }
    Ok(Finished::Yes)
}

/// [`finish`] at a start, with the new listing `catalog`. Does nothing while another process holds the lock on
/// the directory. A file that cannot be removed does no harm, because it is not applied.
pub(super) fn finish_at_start(
    disk: &dyn Disk,
    config: &ProcessConfig,
    catalog: &mut Catalog,
    writer: &Writer,
) -> Result<(), ProcessError> {
    let pruned = writer.pruned()?.number;
    if pruned == 0 {
        return Ok(());
    }
    let data_dir = &config.data_dir;
    if let Some(_held) = DirHold::alone(data_dir).map_err(ProcessError::io("lock", data_dir))? {
        finish(disk, catalog, writer)?;
        if let Some(found) = catalog.sealed.get_mut(&SegmentId::Native(pruned)) {
            found.retain(|found| disk.identity(&found.path).is_ok_and(|file| file.is_some()));
        }
    }
    Ok(())
}

/// Describes why a file with a pruned number is not applied.
pub(super) fn was_pruned(path: &Path, pruned: u64) -> String {
    format!(
        "{}: retention has pruned all segments up to {pruned}, and their events are still in the totals, so this file is not applied. Move it away",
        path.display()
    )
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::super::clock::Clock;
    use super::super::clock::tests::{Fake, HOUR, MINUTE, NOW};
    use super::*;
    use crate::data_dir::disk::{DiskDir, RealDisk};
    use crate::data_dir::testing::{tag_of, write_sealed};
    use crate::processor::run_once;
    use crate::store::{DATABASE_FILE, Existing, read_checks};

    /// A disk that fails after a number of removals and syncs of directories, like a crash.
    struct Failing(AtomicU32);

    impl Failing {
        fn allowed(&self) -> io::Result<()> {
            let left = self.0.load(Ordering::Relaxed);
            self.0.store(left.saturating_sub(1), Ordering::Relaxed);
            if left == 0 {
                return Err(io::Error::other("the disk has failed"));
            }
            Ok(())
        }
    }

    impl crate::data_dir::disk::DiskLayer for Failing {
        fn below(&self) -> &dyn Disk {
            &RealDisk
        }
        fn remove(&self, path: &Path) -> io::Result<()> {
            self.allowed().and_then(|()| RealDisk.remove(path))
        }
        fn open_dir(&self, dir: &Path) -> io::Result<Box<dyn DiskDir>> {
            self.allowed().and_then(|()| RealDisk.open_dir(dir))
        }
    }

    const SEGMENTS: u64 = 4;

    /// Number of sealed files.
    fn kept(dir: &Path) -> usize {
        let catalog = Catalog::scan(&RealDisk, dir, tag_of(dir)).expect("a listing");
        catalog.sealed.values().flatten().count()
    }

    /// A directory with [`SEGMENTS`] applied segments, of which every one may be pruned at once.
    fn applied_segments() -> (tempfile::TempDir, ProcessConfig, Arc<dyn Disk>) {
        let dir = tempfile::tempdir().expect("a directory");
        for number in 1..=SEGMENTS {
            let line = r#"{"userId":"u","name":"add_revenue","value":1}"#;
            write_sealed(dir.path(), number, &format!("{line}\n"));
        }
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let mut config = ProcessConfig::new(dir.path());
        config.retention = Some(Duration::ZERO);
        let config = config.established(&RealDisk).expect("it is read");
        run_once(&config, &disk, &[], &mut |_| {}).expect("it runs");
        (dir, config, disk)
    }

    #[test]
    fn a_prune_interrupted_at_any_step_is_completed_and_the_sums_always_match() {
        for steps in 0..=2 * u32::try_from(SEGMENTS).expect("few") {
            let (dir, config, disk) = applied_segments();

            let path = dir.path().join(DATABASE_FILE);
            let health = Health::default();
            let failing = Failing(AtomicU32::new(steps));
            let mut writer = Writer::open(&path, Existing::Only).expect("it opens");
            let mut retention = Retention::new(&config);
            let mut pruned = 0;
            // Until the disk fails; then the process ends.
            for _ in 0..SEGMENTS {
                let result = retention.round(&mut writer, &failing, u64::MAX, &health);
                pruned = result.expect("no database error").unwrap_or(pruned);
                let checks = read_checks(&path).expect("a read").expect("a database");
                assert_eq!(checks.segments, checks.totals, "after {steps} steps");
                assert_eq!(checks.applied_sum, checks.applied_rows, "{steps} steps");
                if health.is_set(RETENTION) {
                    break;
                }
            }
            assert_eq!(
                writer.pruned().expect("a read").number,
                pruned,
                "the number is returned"
            );
            let done = pruned == SEGMENTS - 1 && !health.is_set(RETENTION);
            assert_eq!(
                done,
                u64::from(steps) >= 2 * (SEGMENTS - 1),
                "{steps} steps"
            );
            writer.close().expect("closed");

            // The next start.
            let summary = run_once(&config, &disk, &[], &mut |_| {}).expect("it runs");
            assert_eq!((summary.applied.len(), summary.refused.len()), (0, 0));
            assert_eq!(
                u64::try_from(kept(dir.path())).expect("few"),
                SEGMENTS - pruned
            );
            let mut writer = Writer::open(&path, Existing::Only).expect("it opens");
            let mut retention = Retention::new(&config);
            // On a slow machine one round may not prune all of them.
            for _ in 0..SEGMENTS {
                let result = retention.round(&mut writer, &RealDisk, u64::MAX, &health);
                result.expect("no database error");
            }
            assert_eq!(kept(dir.path()), 1, "the newest is kept");
            let checks = read_checks(&path).expect("a read").expect("a database");
            let expected = (SEGMENTS, 4_000_000);
            assert_eq!((checks.segments, checks.totals), (expected, expected));
        }
    }

    #[test]
    fn a_wrong_clock_does_not_prune_or_expire_new_events() {
        // Fails if new files are pruned or new ids expire because the clock was not set, jumped, or was wrong
        // when they were applied.
        let year = Duration::from_hours(366 * 24);
        let year_ms = i64::try_from(year.as_millis()).expect("few");
        let (all, old) = ((2, 2), (1, 0));
        for (applied_at, then, expected) in [
            // A board without a battery-backed clock, which is then set.
            (0, NOW, all),
            // Set to another year while the process runs.
            (NOW, NOW + 3 * year_ms, old),
            // Wrong when the files were applied, then corrected.
            (NOW + 20 * year_ms, NOW, all),
        ] {
            let dir = tempfile::tempdir().expect("a directory");
            for number in 1..=2 {
                let line = format!(
                    "{{\"userId\":\"u\",\"name\":\"add_revenue\",\"value\":1,\"id\":\"{number}\"}}\n"
                );
                write_sealed(dir.path(), number, &line);
            }
            let disk: Arc<dyn Disk> = Arc::new(RealDisk);
            let fake = Fake::at(applied_at);
            let mut config = ProcessConfig::new(dir.path());
            config.clock = Arc::new(Clock::of(Box::new(fake.clone())));
            (config.retention, config.dedup_window) = (Some(year), Some(year));
            let config = config.established(&RealDisk).expect("it is read");
            run_once(&config, &disk, &[], &mut |_| {}).expect("it runs");
            let path = dir.path().join(DATABASE_FILE);
            let mut writer = Writer::open(&path, Existing::Only).expect("it opens");
            let health = Health::default();
            let mut retention = Retention::new(&config);
            let mut kept_after = |ms: i64| {
                for _ in 0..ms / MINUTE {
                    fake.pass(MINUTE);
                    config.clock.look(None);
                }
                // The first round corrects the dates, the second uses them.
                for _ in 0..2 {
                    retention.ids_not_before = Instant::now();
                    let result = retention.round(&mut writer, &RealDisk, 3, &health);
                    result.expect("no database error");
                }
                let database = rusqlite::Connection::open(&path).expect("it opens");
                let ids = database.query_row("SELECT count(*) FROM event_id", [], |row| {
                    row.get::<_, u64>(0)
                });
                (kept(dir.path()), ids.expect("a count"))
            };
            fake.set(then);
            config.clock.look(None);
            assert_eq!(kept_after(0), all, "{applied_at} {then}");
            assert_eq!(kept_after(HOUR - MINUTE), all, "{applied_at} {then}");
            assert_eq!(kept_after(MINUTE), expected, "{applied_at} {then}");
            fake.pass(year_ms - HOUR);
            assert_eq!(kept_after(0), expected, "{applied_at} {then}: younger");
            assert_eq!(kept_after(2 * HOUR), old, "{applied_at} {then}: old");
        }
    }

    #[test]
    fn no_file_is_removed_before_the_commit_is_in_the_database_file() {
        for removed in [true, false] {
            let (dir, config, _) = applied_segments();
            let path = dir.path().join(DATABASE_FILE);
            let mut writer = Writer::open(&path, Existing::Only).expect("it opens");
            let (health, mut retention) = (Health::default(), Retention::new(&config));
            // Another program removes the -wal, or has a read transaction open.
            let reader = rusqlite::Connection::open(&path).expect("it opens");
            if removed {
                std::fs::remove_file(crate::store::sibling(&path, "-wal")).expect("removed");
            } else {
                reader
                    .execute_batch("BEGIN; SELECT count(*) FROM user_total")
                    .expect("a read");
            }
            let round = |retention: &mut Retention, writer: &mut Writer| {
                let result = retention.round(writer, &RealDisk, u64::MAX, &health);
                result.expect("no database error")
            };
            assert_eq!(round(&mut retention, &mut writer), Some(1));
            let all = usize::try_from(SEGMENTS).expect("few");
            assert_eq!(kept(dir.path()), all, "the commit is only in the -wal");
            drop(reader);
            if removed {
                writer.abandon();
                let writer = Writer::open(&path, Existing::Only).expect("it opens");
                assert_eq!(writer.pruned().expect("a read").number, 0);
            } else {
                // On a slow machine one round may not prune all of them.
                for _ in 0..=SEGMENTS {
                    retention.not_before = Instant::now();
                    round(&mut retention, &mut writer);
                }
                assert_eq!(kept(dir.path()), 1);
            }
        }
    }

    #[test]
    fn no_segment_after_a_pending_one_is_pruned() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(DATABASE_FILE);
        let mut writer = Writer::open(&path, Existing::OrCreate).expect("it opens");
        let mut config = ProcessConfig::new(dir.path());
        config.retention = Some(Duration::ZERO);
        let retention = Retention::new(&config);
        assert!(
            retention
                .due(&mut writer, u64::MAX)
                .expect("a read")
                .is_none()
        );
        writer.close().expect("closed");
        for number in [2, 3] {
            write_sealed(dir.path(), number, "nonsense\n");
        }
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        run_once(&config, &disk, &[], &mut |_| {}).expect("it runs");
        let mut writer = Writer::open(&path, Existing::Only).expect("it opens");
        let mut due = |end| {
            retention
                .due(&mut writer, end)
                .expect("a read")
                .map(|due| due.1)
        };
        assert_eq!((due(2), due(3)), (None, Some(2)));
        let mut later = ProcessConfig::new(dir.path());
        later.retention = Some(Duration::from_hours(1));
        let later = Retention::new(&later);
        assert!(
            later.due(&mut writer, 3).expect("a read").is_none(),
            "too young"
        );
    }
}
