//! Retention: whole segments past their time go, and ids past theirs. On the coordinator's thread.
//!
//! # The ordered steps of a prune
//! 0. The data directory is held alone (flock), and the database's files lie where the writer opened
//!    them. Each file of the segment outside the quarantine has the length and checksum of its row;
//!    else the segment stays and is named.
//! 1. One transaction: the segment's sums move to the `pruned` row, with the length and checksum of its
//!    file; its own row goes, and it is taken off `applied_sum`.
//! 2. A checkpoint (FULL): all of the WAL is in the database file, synced, and that file, its `-wal`
//!    and its `-shm` still lie at their paths, looked at before and after. A commit in a `-wal` that
//!    somebody removed is gone with the process, and the file would be gone too. While a reader keeps
//!    the checkpoint from moving all, the file stays.
//! 3. The file is removed.
//! 4. fsync of its directory. The next segment only after that, so a crash leaves one file at most.
//!
//! A crash after 1 or 2 leaves that file and no row: the next start, or the next round, removes it by
//! the length and checksum in the `pruned` row, after a checkpoint like that of 2. A file of a pruned
//! number with another content stays and is named. A crash after 3 leaves nothing, or the file, to the
//! same end.
//!
//! Oldest number first; never the newest, whose number tells the next one's; never past a segment
//! that still waits to be applied; files from elsewhere never, for their row keeps the same file
//! from counting again. Age counts from when a segment was wholly applied.
//!
//! Nothing goes while somebody verifies, nor while the database's sums are wrong or being checked.
//! A file that is not what was applied stays, with its row, and is named in readiness.

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

/// How long a round may go on letting go; one segment goes at least.
const ROUND_MAX: Duration = Duration::from_millis(100);
/// The most segments that go in a round.
const SEGMENTS_AT_ONCE: u64 = 1000;
/// A segment that could not go is tried again after this.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// So long a reader may keep a file from going before that is said.
const UNSETTLED_MAX: Duration = Duration::from_mins(1);
/// Ids looked at in one transaction, how long a step may go on, and how often there is one: two
/// hundredths of the time.
const IDS_AT_ONCE: u32 = 2000;
const IDS_STEP_MAX: Duration = Duration::from_millis(20);
const IDS_STEP_EVERY: Duration = Duration::from_secs(1);

/// What fails to be let go, in readiness.
pub(super) const RETENTION: &str = "retention";

/// What goes, and how far letting go has come.
pub(super) struct Retention {
    config: ProcessConfig,
    not_before: Instant,
    /// The number up to which segments were let go since that was last told.
    pruned: Option<u64>,
    /// Since when a file that is to go waits for the database to be settled.
    unsettled_since: Option<Instant>,
    /// Since when another program holds the directory, and whether that was logged.
    held_up: Option<(Instant, bool)>,
    ids: IdsWalk,
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
            held_up: None,
            ids: IdsWalk::default(),
            ids_not_before: now,
        }
    }

    /// Lets go what is due now: segments before `end`, the first that must stay. The number up to
    /// which segments were pruned, if any was. A file or directory that fails is named in readiness
    /// and tried again later; only the database's errors are the caller's.
    pub(super) fn round(
        &mut self,
        writer: &mut Writer,
        disk: &dyn Disk,
        end: u64,
        health: &Health,
    ) -> Result<Option<u64>, StoreError> {
        match self.step(writer, disk, end, health) {
            Ok(()) => {}
            // Somebody holds the database: another time.
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
        if !self.config.clock.is_believed() {
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
        // Only what may go in this round is kept apart by name.
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
        let mut stays = None;
        while let Some((row, number)) = self.due(writer, end)?
            && listed.contains(&number)
        {
            let now_ms = self.config.clock.now_ms();
            match prune(writer, disk, &catalog, &row, now_ms, &mut self.pruned)? {
                Outcome::Gone => {}
                Outcome::Stays(path) => {
                    stays = Some(format!(
                        "{}: not what was applied as segment {number}, so it stays, and nothing after it is pruned. Restore the file or move it to quarantine/",
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
        match stays {
            None => health.clear(RETENTION),
            Some(words) => {
                self.not_before = Instant::now() + RETRY_AFTER;
                health.set(RETENTION, words);
            }
        }
        Ok(())
    }

    /// A file that is to go stays until what the database says of it is in the database file.
    fn later(&mut self, health: &Health) {
        self.not_before = Instant::now() + RETRY_AFTER;
        let since = *self.unsettled_since.get_or_insert_with(Instant::now);
        if since.elapsed() > UNSETTLED_MAX {
            health.set(
                RETENTION,
                format!(
                    "database {}: another program reads an old state of it for {} s, so that the WAL cannot be moved into it, and nothing is pruned meanwhile. End that program's transaction",
                    self.config.database().display(),
                    since.elapsed().as_secs()
                ),
            );
        }
    }

    /// The segment to go next, if one is due.
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
            // Of a clock that was not set, or set wrongly: its age counts from now.
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

    /// A step of the walk over all ids.
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
        // Times are kept in whole seconds: rounded so that no id goes early.
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

    /// `None` while somebody verifies.
    fn hold(&mut self) -> Result<Option<DirHold>, ProcessError> {
        let dir = &self.config.data_dir;
        let held = DirHold::alone(dir).map_err(ProcessError::io("hold", dir))?;
        match (&held, self.held_up) {
            (Some(_), _) => self.held_up = None,
            (None, None) => self.held_up = Some((Instant::now(), false)),
            (None, Some((since, false))) if since.elapsed() >= disk::HELD_UP => {
                tracing::warn!("nothing is pruned meanwhile: {}", disk::held_by(dir));
                self.held_up = Some((since, true));
            }
            (None, Some(_)) => {}
        }
        Ok(held)
    }
}

enum Outcome {
    Gone,
    /// This file is not what was applied.
    Stays(PathBuf),
    /// The row is not what was seen.
    Changed,
    /// Its row is gone; the file goes once that is in the database file itself.
    Later,
}

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
                    return Ok(Outcome::Stays(segment.path));
                }
                paths.push(segment.path);
            }
        }
    }
    // 1. One transaction.
    if !writer.prune(row, now_ms)? {
        return Ok(Outcome::Changed);
    }
    *pruned = row.id.number();
    // 2. That it was, in the database file as it lies on the disk under its name.
    if !paths.is_empty() && !writer.settle()? {
        return Ok(Outcome::Later);
    }
    for path in &paths {
        remove(disk, path)?;
    }
    tracing::info!(segment = %row.id, bytes = row.applied_bytes, "pruned");
    Ok(Outcome::Gone)
}

/// Files that may go: what somebody set aside is his.
fn files<'c>(catalog: &'c Catalog, id: &SegmentId) -> impl Iterator<Item = &'c Path> {
    let found = catalog.sealed.get(id).into_iter().flatten();
    found
        .filter(|found| found.place != Place::Quarantine)
        .map(|found| found.path.as_path())
}

/// 3. unlink. 4. fsync.
fn remove(disk: &dyn Disk, path: &Path) -> Result<(), ProcessError> {
    disk.remove(path)
        .map_err(ProcessError::io("remove", path))?;
    let dir = path.parent().unwrap_or(Path::new("."));
    disk.sync_dir(dir).map_err(ProcessError::io("sync", dir))
}

/// Whether nothing is left of what was let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finished {
    Yes,
    /// What the database says is not in its file yet, as while somebody reads an older state.
    Later,
}

/// Removes the file of the last segment that was let go, if a crash left it: by the length and
/// checksum that were kept. The caller holds the directory or has just started.
///
/// What the database shows need not be durable, and need not be in the file that the next start
/// finds: it is settled before a file is removed on its word.
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

/// [`finish`] at a start, with what was listed just now, unless somebody verifies: then the file waits for the next time. A file
/// that can't be removed stands in nobody's way: it is not applied.
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
    if let Some(_held) = DirHold::alone(data_dir).map_err(ProcessError::io("hold", data_dir))? {
        finish(disk, catalog, writer)?;
        if let Some(found) = catalog.sealed.get_mut(&SegmentId::Native(pruned)) {
            found.retain(|found| disk.identity(&found.path).is_ok_and(|file| file.is_some()));
        }
    }
    Ok(())
}

/// Why a file of a number that was let go is not applied.
pub(super) fn was_pruned(path: &Path, pruned: u64) -> String {
    format!(
        "{}: retention has let go everything up to segment {pruned}, and its events are in the totals still, so this file is not applied. Move it away",
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

    /// Removes and syncs directories only so many times: as a crash, or a disk that fails.
    struct Failing(AtomicU32);

    impl Failing {
        fn allowed(&self) -> io::Result<()> {
            let left = self.0.load(Ordering::Relaxed);
            self.0.store(left.saturating_sub(1), Ordering::Relaxed);
            if left == 0 {
                return Err(io::Error::other("no more"));
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

    /// Files below `applied/`.
    fn kept(dir: &Path) -> usize {
        let catalog = Catalog::scan(&RealDisk, dir, tag_of(dir)).expect("a listing");
        catalog.sealed.values().flatten().count()
    }

    #[test]
    fn a_prune_cut_short_anywhere_is_finished_and_the_sums_agree_all_along() {
        for steps in 0..=2 * u32::try_from(SEGMENTS).expect("few") {
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

            let path = dir.path().join(DATABASE_FILE);
            let health = Health::default();
            let failing = Failing(AtomicU32::new(steps));
            let mut writer = Writer::open(&path, Existing::Only).expect("it opens");
            let mut retention = Retention::new(&config);
            let mut pruned = 0;
            // As often as the disk allows, then the process ends.
            for _ in 0..SEGMENTS {
                let went = retention.round(&mut writer, &failing, u64::MAX, &health);
                pruned = went.expect("the database is well").unwrap_or(pruned);
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
                "it is told"
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
            // A round goes on for so long; on a slow machine one is not all.
            for _ in 0..SEGMENTS {
                let went = retention.round(&mut writer, &RealDisk, u64::MAX, &health);
                went.expect("the database is well");
            }
            assert_eq!(kept(dir.path()), 1, "the newest stays");
            let checks = read_checks(&path).expect("a read").expect("a database");
            let expected = (SEGMENTS, 4_000_000);
            assert_eq!((checks.segments, checks.totals), (expected, expected));
        }
    }

    #[test]
    fn no_clock_makes_what_was_just_applied_old() {
        // Red if files or ids of seconds ago go because the clock was not set, jumped, or was wrong
        // when they were applied.
        let year = Duration::from_hours(366 * 24);
        let year_ms = i64::try_from(year.as_millis()).expect("few");
        let (all, old) = ((2, 2), (1, 0));
        for (applied_at, then, believed) in [
            // A board without a clock, until it is set.
            (0, NOW, all),
            // Set to another year while it runs, and left there.
            (NOW, NOW + 3 * year_ms, old),
            // It was wrong when they were applied, and is set right.
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
                // The first dates anew what has to be, the second judges by that.
                for _ in 0..2 {
                    retention.ids_not_before = Instant::now();
                    let went = retention.round(&mut writer, &RealDisk, 3, &health);
                    went.expect("the database is well");
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
            assert_eq!(kept_after(MINUTE), believed, "{applied_at} {then}");
            fake.pass(year_ms - HOUR);
            assert_eq!(kept_after(0), believed, "{applied_at} {then}: younger");
            assert_eq!(kept_after(2 * HOUR), old, "{applied_at} {then}: old");
        }
    }

    #[test]
    fn no_file_goes_on_the_word_of_a_commit_that_is_not_in_the_database_file() {
        for removed in [true, false] {
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
            let path = dir.path().join(DATABASE_FILE);
            let mut writer = Writer::open(&path, Existing::Only).expect("it opens");
            let (health, mut retention) = (Health::default(), Retention::new(&config));
            // Somebody removes the -wal, or reads an old state.
            let reader = rusqlite::Connection::open(&path).expect("it opens");
            if removed {
                std::fs::remove_file(crate::store::sibling(&path, "-wal")).expect("removed");
            } else {
                reader
                    .execute_batch("BEGIN; SELECT count(*) FROM user_total")
                    .expect("a read");
            }
            let round = |retention: &mut Retention, writer: &mut Writer| {
                let went = retention.round(writer, &RealDisk, u64::MAX, &health);
                went.expect("the database is well")
            };
            assert_eq!(round(&mut retention, &mut writer), Some(1));
            let all = usize::try_from(SEGMENTS).expect("few");
            assert_eq!(kept(dir.path()), all, "what is in the -wal only");
            drop(reader);
            if removed {
                writer.abandon();
                let writer = Writer::open(&path, Existing::Only).expect("it opens");
                assert_eq!(writer.pruned().expect("a read").number, 0);
            } else {
                // A round goes on for so long; on a slow machine one is not all.
                for _ in 0..=SEGMENTS {
                    retention.not_before = Instant::now();
                    round(&mut retention, &mut writer);
                }
                assert_eq!(kept(dir.path()), 1);
            }
        }
    }

    #[test]
    fn what_waits_to_be_applied_is_never_passed() {
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
