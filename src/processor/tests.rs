//! The processor with real files and a real journal.

mod growing;
mod observed;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::sync::mpsc;
use std::time::Instant;

use proptest::prelude::*;
use rusqlite::Connection;
use tempfile::TempDir;

use super::*;
use crate::aggregate::pool::{Pool, RangeAggregate};
use crate::aggregate::scan::PartialAggregate;
use crate::data_dir::disk::{DiskFile, RealDisk};
use crate::data_dir::segment::Position;
use crate::data_dir::testing::write_sealed;
use crate::event::{Event, Kind};
use crate::journal::{Batch, Committer, JournalConfig, KnownSegment, KnownSegments};
use crate::progress::{Processing, WaitOutcome};
use crate::store::{DATABASE_FILE, Existing, SegmentState, Writer, read_segments};

mod folded;
mod scanned;
mod scans;
mod spilled;

fn disk() -> Arc<dyn Disk> {
    Arc::new(RealDisk)
}

fn line(user: &str, amount: i64) -> String {
    let name = if amount < 0 {
        "subtract_revenue"
    } else {
        "add_revenue"
    };
    format!(
        "{{\"userId\": \"{user}\", \"name\": \"{name}\", \"value\": {}}}\n",
        amount.abs()
    )
}

/// (user, revenue in units, events), by user.
type Totals = Vec<(String, i64, u64)>;

fn totals(dir: &TempDir) -> Totals {
    let connection = Connection::open(dir.path().join(DATABASE_FILE)).expect("it opens");
    let mut select = connection
        .prepare(
            "SELECT user_id, revenue_micros / 1000000, events FROM user_total ORDER BY user_id",
        )
        .expect("a table");
    let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
    rows.expect("rows").map(|row| row.expect("a row")).collect()
}

fn total(user: &str, revenue: i64, events: u64) -> (String, i64, u64) {
    (user.to_owned(), revenue, events)
}

fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    names
}

/// The names of the files in the archive, of all months.
fn archived(dir: &TempDir) -> Vec<String> {
    let applied = dir.path().join("applied");
    names(&applied)
        .iter()
        .flat_map(|month| names(&applied.join(month)))
        .collect()
}

fn run(dir: &TempDir, files: &[PathBuf]) -> BatchSummary {
    let config = ProcessorConfig::new(dir.path());
    run_once(&config, &disk(), files, &mut |_| {}).expect("it runs")
}

fn write(dir: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = dir.path().join(name);
    fs::write(&path, text).expect("it is written");
    path
}

/// A running journal and processor, as in a server.
struct Running {
    journal: Journal,
    committer: Committer,
    processor: Processor,
    progress: Arc<Progress>,
    health: Arc<Health>,
}

impl Running {
    fn start(dir: &TempDir) -> Self {
        let segments = read_segments(&dir.path().join(DATABASE_FILE))
            .unwrap_or_default()
            .iter()
            .filter_map(|row| {
                Some(KnownSegment {
                    number: row.id.number()?,
                    tag: row.tag,
                    applied_bytes: row.applied_bytes,
                    checksum: Some(row.checksum),
                    sealed: row.state != SegmentState::Active,
                })
            })
            .collect();
        let known = KnownSegments {
            segments,
            ..KnownSegments::default()
        };
        let config = JournalConfig {
            rotate_interval: None,
            rotate_size: u64::MAX,
            check_every: Duration::from_secs(1),
            queue_bytes_max: 64 << 20,
            disk_reserve_bytes: 0,
            disk_bytes_max: None,
            lock: None,
        };
        let health = Arc::new(Health::default());
        let (journal, committer, _) =
            Journal::open(disk(), dir.path(), config, &known, Arc::clone(&health))
                .expect("the journal opens");
        let progress = Arc::new(Progress::new(Processing::Here));
        let mut config = ProcessorConfig::new(dir.path());
        config.flush_interval = Duration::from_millis(10);
        let processor = Processor::start(
            config,
            disk(),
            journal.clone(),
            Arc::clone(&progress),
            Arc::clone(&health),
        )
        .expect("the processor starts");
        Self {
            journal,
            committer,
            processor,
            progress,
            health,
        }
    }

    fn append(&self, lines: &str) -> Position {
        let (sender, receiver) = mpsc::channel();
        let batch = Batch {
            bytes: lines.into(),
        };
        self.journal.append(
            batch,
            Box::new(move |done| {
                drop(sender.send(done));
                None
            }),
        );
        receiver.recv().expect("an answer").expect("it is durable")
    }

    fn rotate(&self) -> Position {
        let (sender, receiver) = mpsc::channel();
        self.journal
            .rotate(Box::new(move |done| drop(sender.send(done))));
        receiver.recv().expect("an answer").expect("it is sealed")
    }

    fn wait(&self, position: Position) -> WaitOutcome {
        self.progress
            .wait_applied(position, Instant::now() + Duration::from_secs(20))
    }

    fn stop(self) {
        self.committer.stop();
        self.processor.stop();
    }

    fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        until(&self.health, what, || done(self));
    }
}

/// Waits until `done` returns true; panics after 30 seconds.
fn until(health: &Health, what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < deadline, "{what}: {:?}", health.reasons());
        std::thread::yield_now();
    }
}

#[test]
fn acknowledged_events_are_applied_and_archived_and_the_database_is_one_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Running::start(&dir);
    let first = server.append(&format!("{}{}", line("user1", 100), line("user1", -50)));
    assert_eq!(server.wait(first), WaitOutcome::Applied);
    assert_eq!(totals(&dir), [total("user1", 50, 2)]);
    let second = server.append(&line("user2", 200));
    let sealed = server.rotate();
    let third = server.append(&line("user1", 7));
    assert!(first < second && second <= sealed && sealed < third);
    assert_eq!(server.wait(third), WaitOutcome::Applied);
    assert_eq!(server.progress.applied(), third);
    server.until("archived", |_| archived(&dir).len() == 1);
    let (ledger, _) = server.progress.ledger(|| server.journal.tail().lines);
    assert_eq!((ledger.lines, ledger.applied, ledger.pending), (4, 4, 0));
    assert_eq!(server.health.reasons(), Vec::<String>::new());
    server.stop();
    assert_eq!(
        totals(&dir),
        [total("user1", 57, 3), total("user2", 200, 1)]
    );
    assert_eq!(
        archived(&dir).len(),
        2,
        "a clean shutdown seals and applies the rest"
    );
    assert_eq!(
        names(dir.path()),
        [
            "applied",
            "directory.json",
            "events.jsonl",
            "quarantine",
            "revenue.db"
        ]
    );
}

#[test]
fn a_line_that_is_never_counted_is_unaccounted_and_reported() {
    // Fails if the ledger balances only because pending lines are computed as the difference. The journal
    // counts an empty line and the processor ignores it, so this simulates a lost line.
    let dir = tempfile::tempdir().expect("a directory");
    let server = Running::start(&dir);
    // Lines written before the startup scan are found in the files.
    let position = server.append(&line("u", 1));
    assert_eq!(server.wait(position), WaitOutcome::Applied);
    let unaccounted = |server: &Running| {
        let (ledger, run) = server.progress.ledger(|| server.journal.tail().lines);
        assert_eq!(run.appended, run.settled.unsigned_abs() + 1);
        (ledger.applied, ledger.unaccounted)
    };
    let position = server.append(&format!("{}\n", line("u", 1)));
    assert_eq!(server.wait(position), WaitOutcome::Applied);
    server.until("readiness reports it", |server| {
        let reasons = server.health.reasons();
        reasons.iter().any(|reason| reason.contains("1 lines"))
    });
    assert_eq!(unaccounted(&server), (2, 1));
    server.rotate();
    let position = server.append(&line("u", 1));
    assert_eq!(server.wait(position), WaitOutcome::Applied);
    server.until("still reported", |server| unaccounted(server) == (3, 1));
    server.stop();
}

#[test]
fn applying_continues_after_a_restart_and_a_deleted_database_is_rebuilt() {
    let dir = tempfile::tempdir().expect("a directory");
    for round in 1..=3 {
        let server = Running::start(&dir);
        let position = server.append(&line("u", round));
        assert_eq!(server.wait(position), WaitOutcome::Applied);
        let (ledger, _) = server.progress.ledger(|| server.journal.tail().lines);
        assert_eq!(
            (ledger.lines, ledger.pending),
            (u64::try_from(round).expect("few"), 0)
        );
        server.stop();
    }
    assert_eq!(totals(&dir), [total("u", 6, 3)]);
    fs::remove_file(dir.path().join(DATABASE_FILE)).expect("it is there");
    let server = Running::start(&dir);
    let position = server.append(&line("u", 4));
    assert_eq!(server.wait(position), WaitOutcome::Applied);
    assert_eq!(server.health.reasons(), Vec::<String>::new());
    server.stop();
    assert_eq!(totals(&dir), [total("u", 10, 4)]);
}

#[test]
fn a_database_deleted_while_the_server_runs_is_created_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Running::start(&dir);
    let first = server.append(&line("u", 1));
    assert_eq!(server.wait(first), WaitOutcome::Applied);
    server.rotate();
    server.until("archived", |_| archived(&dir).len() == 1);
    fs::remove_file(dir.path().join(DATABASE_FILE)).expect("it is there");
    let second = server.append(&line("u", 2));
    assert_eq!(server.wait(second), WaitOutcome::Applied);
    server.until("created again", |_| {
        fs::exists(dir.path().join(DATABASE_FILE)).expect("a check")
            && server.health.reasons().is_empty()
    });
    server.stop();
    assert_eq!(totals(&dir), [total("u", 3, 2)]);
}

#[test]
fn a_locked_database_does_not_delay_ingestion_or_deadlines() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Running::start(&dir);
    let first = server.append(&line("u", 1));
    assert_eq!(server.wait(first), WaitOutcome::Applied);
    let other = Connection::open(dir.path().join(DATABASE_FILE)).expect("it opens");
    other.execute_batch("BEGIN IMMEDIATE").expect("the lock");
    let second = server.append(&line("u", 2));
    let soon = Instant::now() + Duration::from_millis(100);
    assert_eq!(
        server.progress.wait_applied(second, soon),
        WaitOutcome::TimedOut
    );
    let (sender, outcomes) = mpsc::channel();
    let done = Box::new(move |outcome| sender.send(outcome).expect("the test listens"));
    server.progress.when_applied(second, soon, done);
    assert_eq!(outcomes.recv(), Ok(WaitOutcome::TimedOut));
    server.until("not ready", |server| server.health.is_set("database"));
    assert!(server.progress.lag_seconds() > 0.0);
    let third = server.append(&line("u", 3));
    other.execute_batch("ROLLBACK").expect("no lock");
    assert_eq!(server.wait(third), WaitOutcome::Applied);
    server.until("ready", |server| !server.health.is_set("database"));
    drop(other);
    server.stop();
    assert_eq!(totals(&dir), [total("u", 6, 3)]);
}

#[test]
fn a_segment_with_a_changed_prefix_is_corrupt_and_the_others_are_applied() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Running::start(&dir);
    let first = server.append(&line("u", 1));
    assert_eq!(server.wait(first), WaitOutcome::Applied);
    // As after a kill: the segment is not sealed. Then an applied byte is changed and a line is added.
    server.journal.tail().file.unlock();
    let _not_stopped = (server.committer, server.journal);
    server.processor.stop();
    let active = dir.path().join("events.jsonl");
    let changed = fs::read_to_string(&active)
        .expect("a file")
        .replace(": 1}", ": 9}");
    fs::write(&active, changed + &line("u", 2)).expect("it is written");
    let server = Running::start(&dir);
    server.until("corrupt", |server| {
        server.health.is_set("segment events-000001")
    });
    server.until("sealed", |server| server.journal.tail().number == 2);
    let later = server.append(&line("u", 4));
    assert_eq!(later.segment, 2);
    assert_eq!(server.wait(later), WaitOutcome::Applied);
    assert_eq!(
        server.wait(Position {
            segment: 1,
            offset: first.offset + 1
        }),
        WaitOutcome::Gone
    );
    assert_eq!(server.wait(first), WaitOutcome::Applied);
    let (ledger, _) = server.progress.ledger(|| server.journal.tail().lines);
    assert_eq!((ledger.applied, ledger.corrupt, ledger.pending), (2, 1, 0));
    server.stop();
    assert_eq!(totals(&dir), [total("u", 5, 2)]);
    // Once the operator has moved it to the quarantine, the server is ready.
    let sealed = names(dir.path())
        .into_iter()
        .find(|name| name.contains("Z-000001-"));
    let sealed = sealed.expect("it is still in the data directory");
    fs::rename(
        dir.path().join(&sealed),
        dir.path().join("quarantine").join(&sealed),
    )
    .expect("moved");
    let server = Running::start(&dir);
    let position = server.append(&line("u", 1));
    assert_eq!(server.wait(position), WaitOutcome::Applied);
    assert_eq!(server.health.reasons(), Vec::<String>::new());
    server.stop();
}

#[test]
fn a_missing_segment_is_reported_until_it_is_restored() {
    let dir = tempfile::tempdir().expect("a directory");
    write_sealed(dir.path(), 1, &line("u", 1));
    write_sealed(dir.path(), 4, &line("u", 4));
    let server = Running::start(&dir);
    let position = server.append(&line("u", 8));
    assert_eq!(server.wait(position), WaitOutcome::Applied);
    let reasons = server.health.reasons();
    assert!(
        reasons.len() == 1 && reasons[0].contains("segments 2, 3"),
        "{reasons:?}"
    );
    assert_eq!(
        server.wait(Position {
            segment: 2,
            offset: 1
        }),
        WaitOutcome::Gone
    );
    write_sealed(dir.path(), 2, &line("u", 2));
    write_sealed(dir.path(), 3, &line("u", 16));
    server.until("ready", |server| server.health.reasons().is_empty());
    server.until("applied", |_| totals(&dir) == [total("u", 31, 5)]);
    server.stop();
}

#[test]
fn a_batch_run_applies_skips_refuses_and_counts() {
    let dir = tempfile::tempdir().expect("a directory");
    let elsewhere = tempfile::tempdir().expect("a directory");
    let text = format!("{}not json\n\n{}", line("a", 1), line("a", 2).trim_end());
    write(&dir, "events_1700000000000.jsonl", &text);
    write_sealed(dir.path(), 1, &line("b", -3));
    let summary = run(&dir, &[]);
    assert_eq!((summary.applied.len(), summary.refused.len()), (2, 0));
    let counts = summary.counts;
    assert_eq!((counts.lines, counts.events, counts.rejected), (4, 3, 1));
    assert_eq!(totals(&dir), [total("a", 3, 2), total("b", -3, 1)]);
    assert_eq!(
        names(dir.path()),
        ["applied", "directory.json", "revenue.db"]
    );

    let file = write(&elsewhere, "more.jsonl", &line("a", 10));
    assert_eq!(
        run(&dir, std::slice::from_ref(&file)).applied,
        ["events_more.jsonl"]
    );
    assert_eq!(
        run(&dir, std::slice::from_ref(&file)).skipped,
        ["events_more.jsonl"]
    );
    write(&elsewhere, "more.jsonl", &line("a", 11));
    let summary = run(&dir, std::slice::from_ref(&file));
    assert_eq!(summary.refused.len(), 1);
    assert!(file.exists() && totals(&dir)[0] == total("a", 13, 3));
    // The same with a file that was copied into the data directory.
    let copy = write(&dir, "events_more.jsonl", &line("a", 11));
    assert_eq!(run(&dir, &[]).refused.len(), 1);
    assert!(copy.exists());
    write(&dir, "events_more.jsonl", &line("a", 10));
    assert_eq!(run(&dir, &[]).skipped, ["events_more.jsonl"]);
    assert_eq!(totals(&dir)[0], total("a", 13, 3));
    let before = totals(&dir);
    fs::remove_file(dir.path().join(DATABASE_FILE)).expect("it is there");
    fs::remove_file(copy).expect("it is there");
    run(&dir, &[]);
    assert_eq!(totals(&dir), before, "the same totals from the files");
}

#[test]
fn the_memory_budget_limits_ranges_and_does_not_change_totals() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut text = String::new();
    for number in 0..60_000u32 {
        let (user, id) = (number % 5000, number % 50_000);
        writeln!(
            text,
            r#"{{"userId":"user{user}","name":"add_revenue","value":1,"id":"{id:08}"}}"#
        )
        .expect("writing to a String");
    }
    write(&dir, "events_big.jsonl", &text);
    let mut config = ProcessorConfig::new(dir.path());
    config.memory_bytes = 1;
    config.threads = 1;
    let mut commits = 0;
    let summary = run_once(&config, &disk(), &[], &mut |_| commits += 1).expect("it runs");
    assert!(commits > 1, "{commits}");
    assert_eq!(
        (summary.counts.events, summary.counts.duplicates),
        (50_000, 10_000)
    );
    assert_eq!(totals(&dir).len(), 5000);
}

#[test]
fn a_replaced_database_is_detected_and_its_wal_removed() {
    let dir = tempfile::tempdir().expect("a directory");
    write(&dir, "events_a.jsonl", &line("a", 1));
    run(&dir, &[]);
    let writer = Writer::open(&dir.path().join(DATABASE_FILE), Existing::Only).expect("it opens");
    assert_eq!(writer.replaced(), None);
    fs::rename(dir.path().join(DATABASE_FILE), dir.path().join("old.db")).expect("moved");
    assert_eq!(writer.replaced().as_deref(), Some("revenue.db was removed"));
    writer.abandon();
    assert!(
        !dir.path().join("revenue.db-wal").exists(),
        "SQLite would apply it to the next database"
    );
}

#[test]
fn a_file_that_grows_before_its_last_line_is_applied_is_not_complete() {
    // Fails if it is marked as fully applied, so that the appended lines are never counted.
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("events_x.jsonl");
    // So many lines that it is not applied together with others.
    let many = 10_000;
    let begun = format!("{}{}", line("u", 1).repeat(many), line("u", 2).trim_end());
    let complete = format!("{begun}\n{}", line("u", 4));
    fs::write(&path, &begun).expect("written");
    let config = ProcessorConfig::new(dir.path());
    let summary = run_once(&config, &disk(), &[], &mut |_| {
        // After the complete lines were applied, before the incomplete last one.
        fs::write(&path, &complete).expect("written");
    });
    let refused = summary.expect("it runs").refused;
    assert_eq!(refused.len(), 1);
    assert!(refused[0].reason.contains("changed while it was read"));
    assert_eq!(totals(&dir), [total("u", 10_000, 10_000)]);
    let summary = run_once(&config, &disk(), &[], &mut |_| {}).expect("it runs");
    assert_eq!(summary.refused.len(), 0);
    assert_eq!(totals(&dir), [total("u", 10_006, 10_002)]);
}

#[test]
fn a_file_that_grows_before_it_is_archived_is_not_moved() {
    // Fails if a file with other content than was applied is archived, where it is never checked again.
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("events_x.jsonl");
    fs::write(&path, line("u", 1)).expect("written");
    let grown = line("u", 1).repeat(2);
    let config = ProcessorConfig::new(dir.path());
    for _ in 0..2 {
        let summary = run_once(&config, &disk(), &[], &mut |_| {
            fs::write(&path, &grown).expect("written");
        });
        let refused = summary.expect("it runs").refused;
        assert_eq!(refused.len(), 1);
        assert!(refused[0].reason.contains("has grown since"));
        assert_eq!(archived(&dir), [""; 0]);
        assert_eq!(totals(&dir), [total("u", 1, 1)]);
    }
}
