//! Tests of pruning and of the expiry of ids.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::data_dir::disk::{DiskDir, RealDisk};
use crate::data_dir::segment::SegmentId;
use crate::data_dir::testing::{tag_of, write_sealed};
use crate::processor::clock::Clock;
use crate::processor::clock::tests::{Fake, HOUR, MINUTE, NOW};
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
fn applied_segments() -> (tempfile::TempDir, ProcessorConfig, Arc<dyn Disk>) {
    let dir = tempfile::tempdir().expect("a directory");
    for number in 1..=SEGMENTS {
        let line = r#"{"userId":"u","name":"add_revenue","value":1}"#;
        write_sealed(dir.path(), number, &format!("{line}\n"));
    }
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let mut config = ProcessorConfig::new(dir.path());
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
            assert!(checks.agree(), "after {steps} steps: {checks:?}");
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
        assert_eq!(checks.totals, expected);
        assert!(checks.agree(), "{checks:?}");
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
        let mut config = ProcessorConfig::new(dir.path());
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
                config.clock.check(None);
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
        config.clock.check(None);
        assert_eq!(kept_after(0), all, "{applied_at} {then}");
        assert_eq!(kept_after(HOUR - MINUTE), all, "{applied_at} {then}");
        assert_eq!(kept_after(MINUTE), expected, "{applied_at} {then}");
        fake.pass(year_ms - HOUR);
        assert_eq!(kept_after(0), expected, "{applied_at} {then}: younger");
        assert_eq!(kept_after(2 * HOUR), old, "{applied_at} {then}: old");
    }
}

#[test]
fn the_dates_of_a_doubted_clock_do_not_make_it_plausible_at_the_next_start() {
    // Fails if a start has only the newest records to compare the clock with: the second run, whose clock is
    // two years ahead, dates them by that clock.
    let dir = tempfile::tempdir().expect("a directory");
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let is_trusted = |number: u64, at_ms: i64| {
        let line = r#"{"userId":"u","name":"add_revenue","value":1}"#;
        write_sealed(dir.path(), number, &format!("{line}\n"));
        let mut config = ProcessorConfig::new(dir.path());
        config.clock = Arc::new(Clock::of(Box::new(Fake::at(at_ms))));
        let config = config.established(&RealDisk).expect("it is read");
        let summary = run_once(&config, &disk, &[], &mut |_| {}).expect("it runs");
        assert_eq!(summary.counts.events, 1);
        config.clock.is_trusted()
    };
    assert!(is_trusted(1, NOW));
    let wrong = NOW + 2 * 366 * 24 * HOUR;
    assert!(!is_trusted(2, wrong));
    assert!(!is_trusted(3, wrong), "at the next start");
    assert!(is_trusted(4, NOW + MINUTE));
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
    let mut config = ProcessorConfig::new(dir.path());
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
    let mut later = ProcessorConfig::new(dir.path());
    later.retention = Some(Duration::from_hours(1));
    let later = Retention::new(&later);
    assert!(
        later.due(&mut writer, 3).expect("a read").is_none(),
        "too young"
    );
}

#[test]
fn files_in_the_quarantine_are_kept_when_their_segment_is_pruned() {
    // Fails if retention removes a file that an operator has put into quarantine/.
    let (dir, config, _) = applied_segments();
    let id = SegmentId::Native(1);
    let catalog = Catalog::scan(&RealDisk, dir.path(), tag_of(dir.path())).expect("a listing");
    let archived = catalog.sealed[&id][0].path.clone();
    let quarantine = dir.path().join("quarantine");
    std::fs::create_dir_all(&quarantine).expect("created");
    let copy = quarantine.join(archived.file_name().expect("a name"));
    std::fs::copy(&archived, &copy).expect("copied");
    let path = dir.path().join(DATABASE_FILE);
    let mut writer = Writer::open(&path, Existing::Only).expect("it opens");
    let (health, mut retention) = (Health::default(), Retention::new(&config));
    // On a slow machine one round may not prune all of them.
    for _ in 0..SEGMENTS {
        let result = retention.round(&mut writer, &RealDisk, u64::MAX, &health);
        result.expect("no database error");
    }
    assert_eq!(health.reasons(), Vec::<String>::new());
    assert!(!archived.exists(), "pruned");
    assert!(copy.exists(), "kept");
}

#[test]
fn a_deduplication_window_of_a_fraction_of_a_second_is_rounded_up() {
    // Fails if an id expires before the window has passed: times of ids are whole seconds.
    const SECOND: i64 = 1000;
    let dir = tempfile::tempdir().expect("a directory");
    let line = r#"{"userId":"u","name":"add_revenue","value":1,"id":"one"}"#;
    write_sealed(dir.path(), 1, &format!("{line}\n"));
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let fake = Fake::at(NOW - NOW % SECOND + 900);
    let mut config = ProcessorConfig::new(dir.path());
    config.clock = Arc::new(Clock::of(Box::new(fake.clone())));
    config.dedup_window = Some(Duration::from_millis(1500));
    let config = config.established(&RealDisk).expect("it is read");
    run_once(&config, &disk, &[], &mut |_| {}).expect("it runs");
    let path = dir.path().join(DATABASE_FILE);
    let mut writer = Writer::open(&path, Existing::Only).expect("it opens");
    let (health, mut retention) = (Health::default(), Retention::new(&config));
    let mut ids_after = |ms| {
        fake.pass(ms);
        config.clock.check(None);
        retention.ids_not_before = Instant::now();
        let result = retention.round(&mut writer, &RealDisk, 2, &health);
        result.expect("no database error");
        let database = rusqlite::Connection::open(&path).expect("it opens");
        let count = "SELECT count(*) FROM event_id";
        let ids = database.query_row(count, [], |row| row.get::<_, u64>(0));
        ids.expect("a count")
    };
    assert_eq!(ids_after(1100), 1, "1.1 s old");
    assert_eq!(ids_after(1500), 0, "2.6 s old");
}
