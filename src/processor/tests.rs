//! The processor over real files, with a real journal beside it.

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
use crate::data_dir::testing::write_sealed;
use crate::event::{Event, Kind};
use crate::journal::{Batch, Committer, JournalConfig, KnownSegment, KnownSegments};
use crate::progress::{Applies, WaitOutcome};
use crate::store::{Existing, SegmentState, Writer, read_segments};

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

/// What is in the archive, whatever the month.
fn archived(dir: &TempDir) -> Vec<String> {
    let applied = dir.path().join("applied");
    names(&applied)
        .iter()
        .flat_map(|month| names(&applied.join(month)))
        .collect()
}

fn run(dir: &TempDir, files: &[PathBuf]) -> Summary {
    let config = ProcessConfig::new(dir.path());
    run_once(&config, &disk(), files, &mut |_| {}).expect("it runs")
}

fn write(dir: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = dir.path().join(name);
    fs::write(&path, text).expect("it is written");
    path
}

/// A server's worth of it: journal and processor.
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
        let progress = Arc::new(Progress::new(Applies::Here));
        let mut config = ProcessConfig::new(dir.path());
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
            lines: u32::try_from(lines.lines().count()).expect("few"),
        };
        self.journal
            .append(batch, Box::new(move |done| drop(sender.send(done))));
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

    /// Waits until `true` or fails.
    fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !done(self) {
            assert!(
                Instant::now() < deadline,
                "{what}: {:?}",
                self.health.reasons()
            );
            std::thread::yield_now();
        }
    }
}

#[test]
fn acknowledged_events_are_applied_archived_and_one_file_is_left() {
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
        "a clean stop seals and applies what is left"
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
fn a_line_that_comes_to_nothing_is_unaccounted_for_and_turns_readiness_red() {
    // Red if the ledger balances by arithmetic. An empty line is none to the processor, so one that the
    // journal has written is a line lost between the two.
    let dir = tempfile::tempdir().expect("a directory");
    let server = Running::start(&dir);
    // What was written before the processor began is found in the files.
    let position = server.append(&line("u", 1));
    assert_eq!(server.wait(position), WaitOutcome::Applied);
    let unaccounted = |server: &Running| {
        let (ledger, run) = server.progress.ledger(|| server.journal.tail().lines);
        assert_eq!(run.appended, run.settled.unsigned_abs() + 1);
        (ledger.applied, ledger.unaccounted)
    };
    let position = server.append(&format!("{}\n", line("u", 1)));
    assert_eq!(server.wait(position), WaitOutcome::Applied);
    server.until("it is red", |server| {
        let reasons = server.health.reasons();
        reasons.iter().any(|reason| reason.contains("1 lines"))
    });
    assert_eq!(unaccounted(&server), (2, 1));
    server.rotate();
    let position = server.append(&line("u", 1));
    assert_eq!(server.wait(position), WaitOutcome::Applied);
    server.until("it stays", |server| unaccounted(server) == (3, 1));
    server.stop();
}

#[test]
fn work_goes_on_after_a_restart_and_a_deleted_database_comes_back_the_same() {
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
fn a_database_deleted_under_a_running_server_is_made_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Running::start(&dir);
    let first = server.append(&line("u", 1));
    assert_eq!(server.wait(first), WaitOutcome::Applied);
    server.rotate();
    server.until("archived", |_| archived(&dir).len() == 1);
    fs::remove_file(dir.path().join(DATABASE_FILE)).expect("it is there");
    let second = server.append(&line("u", 2));
    assert_eq!(server.wait(second), WaitOutcome::Applied);
    server.until("made again", |_| {
        fs::exists(dir.path().join(DATABASE_FILE)).expect("a look")
            && server.health.reasons().is_empty()
    });
    server.stop();
    assert_eq!(totals(&dir), [total("u", 3, 2)]);
}

#[test]
fn a_locked_database_stops_neither_taking_nor_deadlines() {
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
    let (sender, told) = mpsc::channel();
    let tell = Box::new(move |waited| sender.send(waited).expect("the test listens"));
    server.progress.when_applied(second, soon, tell);
    assert_eq!(told.recv(), Ok(WaitOutcome::TimedOut));
    server.until("red", |server| server.health.is_set("database"));
    assert!(server.progress.lag_seconds() > 0.0);
    let third = server.append(&line("u", 3));
    other.execute_batch("ROLLBACK").expect("no lock");
    assert_eq!(server.wait(third), WaitOutcome::Applied);
    server.until("green", |server| !server.health.is_set("database"));
    drop(other);
    server.stop();
    assert_eq!(totals(&dir), [total("u", 6, 3)]);
}

#[test]
fn a_changed_prefix_is_corrupt_and_the_rest_goes_on() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Running::start(&dir);
    let first = server.append(&line("u", 1));
    assert_eq!(server.wait(first), WaitOutcome::Applied);
    // As if killed: nothing is sealed. Then a byte changes, and a line was not applied yet.
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
    // Set aside by the operator: ready again.
    let sealed = names(dir.path())
        .into_iter()
        .find(|name| name.contains("Z-000001-"));
    let sealed = sealed.expect("it stays where it is");
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
fn a_missing_segment_is_named_until_it_is_back() {
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
    server.until("green", |server| server.health.reasons().is_empty());
    server.until("applied", |_| totals(&dir) == [total("u", 31, 5)]);
    server.stop();
}

#[test]
fn a_run_applies_skips_refuses_and_counts() {
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
    // The same by hand, into the directory itself.
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
    assert_eq!(totals(&dir), before, "the files are the truth");
}

#[test]
fn memory_bounds_a_range_not_the_result() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut text = String::new();
    for number in 0..60_000u32 {
        let (user, id) = (number % 5000, number % 50_000);
        writeln!(
            text,
            r#"{{"userId":"user{user}","name":"add_revenue","value":1,"id":"{id:08}"}}"#
        )
        .expect("a String takes all");
    }
    write(&dir, "events_big.jsonl", &text);
    let mut config = ProcessConfig::new(dir.path());
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

/// What a fold must come to, said in the simplest way.
fn model(text: &[u8]) -> (BTreeMap<String, (u128, u128, u64)>, u64, u64) {
    let mut users = BTreeMap::<String, (u128, u128, u64)>::new();
    let (mut lines, mut rejected) = (0, 0);
    for line in text.split(|&byte| byte == b'\n') {
        if line.trim_ascii().is_empty() {
            continue;
        }
        lines += 1;
        match Event::parse(line) {
            Err(_) => rejected += 1,
            // Those with an id, too: as if all of them counted.
            Ok(event) => {
                let sums = users.entry(event.user_id.into_owned()).or_default();
                match event.kind {
                    Kind::Add => sums.0 += u128::from(event.amount_micros),
                    Kind::Subtract => sums.1 += u128::from(event.amount_micros),
                }
                sums.2 += 1;
            }
        }
    }
    (users, lines, rejected)
}

fn any_line() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => ("[a-c]{1,3}", -5i64..1000).prop_map(|(user, amount)| line(&user, amount)),
        1 => ("[a-z]{20,40}", 0i64..1000).prop_map(|(user, amount)| line(&user, amount)),
        1 => "[a-z]{1,2}".prop_map(|id| format!("{{\"userId\":\"a\",\"name\":\"add_revenue\",\"value\":1,\"id\":\"{id}\"}}\n")),
        1 => Just("\n".to_owned()),
        1 => Just(" \r\n".to_owned()),
        1 => "[ -~]{0,200}".prop_map(|junk| junk + "\n"),
    ]
}

fn pool(threads: usize) -> Pool {
    let unbounded = MemoryBudget {
        threads,
        cache_bytes: 0,
        range_bytes: usize::MAX,
    };
    Pool::start(&unbounded).expect("threads")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever the chunks and threads: the same sums, counts, checksum, rejected lines and ids.
    #[test]
    fn a_fold_depends_on_the_bytes_alone(
        lines in prop::collection::vec(any_line(), 0..60),
        ended: bool,
        chunk_bytes in 1u64..400,
        threads in 1usize..4,
    ) {
        let mut text = lines.concat().into_bytes();
        if !ended {
            text.pop();
        }
        let file = tempfile::tempfile().expect("a file");
        DiskFile::write_all_at(&file, &text, 0).expect("it is written");
        let file: Arc<dyn DiskFile> = Arc::new(file);
        let fold = |chunk_bytes, threads| -> RangeAggregate {
            let mut pool = pool(threads).with_chunk_bytes(chunk_bytes);
            pool.scan(&file, 0, text.len() as u64).expect("it scans")
        };
        let aggregate = fold(chunk_bytes, threads);
        let (users, lines, rejected) = model(&text);
        let frozen = aggregate.users.freeze();
        let sums: BTreeMap<String, (u128, u128, u64)> = frozen
            .sorted()
            .into_iter()
            .map(|(user, sums)| (user.to_owned(), (sums.added(), sums.subtracted(), sums.events())))
            .collect();
        prop_assert_eq!(sums, users);
        prop_assert_eq!(aggregate.to, text.len() as u64);
        prop_assert_eq!(aggregate.partial.checksum.clone().finalize(), crc32fast::hash(&text));
        prop_assert_eq!((aggregate.partial.lines, aggregate.partial.rejected_count), (lines, rejected));
        let seen = |partial: &PartialAggregate| {
            let ids: Vec<_> = partial.with_id.iter().map(|event| (event.offset, event.id.to_owned())).collect();
            (ids, partial.rejected.clone())
        };
        let at_once = fold(u64::MAX / 4, 1);
        prop_assert_eq!(seen(&aggregate.partial), seen(&at_once.partial));
    }
}

/// Lines across the blocks a chunk is read in, and chunks across lines longer than a block.
#[test]
fn lines_longer_than_a_block_are_lines_too() {
    let mut text = String::new();
    for number in 0..40_000 {
        text += &line(&format!("user{}", number % 7), number % 90);
        if number % 9_000 == 0 {
            writeln!(text, "{{\"x\":\"{}\"}}", "y".repeat(700_000)).expect("written");
        }
    }
    let text = text.trim_end();
    let file = tempfile::tempfile().expect("a file");
    DiskFile::write_all_at(&file, text.as_bytes(), 0).expect("it is written");
    let file: Arc<dyn DiskFile> = Arc::new(file);
    let (users, lines, rejected) = model(text.as_bytes());
    for chunk_bytes in [100_000, 300_000, 1_000_000, u64::MAX] {
        let mut pool = pool(2).with_chunk_bytes(chunk_bytes);
        let aggregate = pool.scan(&file, 0, text.len() as u64).expect("it scans");
        assert_eq!(
            (aggregate.partial.lines, aggregate.partial.rejected_count),
            (lines, rejected)
        );
        assert_eq!(
            aggregate.partial.checksum.clone().finalize(),
            crc32fast::hash(text.as_bytes())
        );
        let frozen = aggregate.users.freeze();
        for (user, sums) in frozen.sorted() {
            assert_eq!(
                (sums.added(), sums.subtracted(), sums.events()),
                users[user],
                "{user}"
            );
        }
        assert_eq!(frozen.sorted().len(), users.len());
    }
}

#[test]
fn a_line_too_long_is_one_rejected_line_wherever_chunks_fall() {
    let long = "x".repeat(crate::event::LINE_BYTES_MAX + 5);
    let text = format!("{}{long}\n{}", line("a", 1), line("a", 2));
    let file = tempfile::tempfile().expect("a file");
    DiskFile::write_all_at(&file, text.as_bytes(), 0).expect("it is written");
    let file: Arc<dyn DiskFile> = Arc::new(file);
    for chunk_bytes in [1 << 20, u64::MAX / 4] {
        let mut pool = pool(2).with_chunk_bytes(chunk_bytes);
        let aggregate = pool.scan(&file, 0, text.len() as u64).expect("it scans");
        assert_eq!(
            (aggregate.partial.lines, aggregate.partial.rejected_count),
            (3, 1)
        );
        let rejected = &aggregate.partial.rejected[0];
        assert_eq!(
            (rejected.code, rejected.line.len()),
            ("line_too_long", 1024)
        );
        assert_eq!(
            aggregate.partial.checksum.clone().finalize(),
            crc32fast::hash(text.as_bytes())
        );
    }
}

#[test]
fn a_second_writer_that_was_quicker_is_noticed() {
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
        "it would be played into the next one"
    );
}

#[test]
fn a_file_that_grows_before_its_last_line_is_applied_is_not_done() {
    // Red if it is marked as applied to its end, so that what is appended never counts.
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("events_x.jsonl");
    let begun = format!("{}{}", line("u", 1), line("u", 2).trim_end());
    let complete = format!("{begun}\n{}", line("u", 4));
    fs::write(&path, &begun).expect("written");
    let config = ProcessConfig::new(dir.path());
    let summary = run_once(&config, &disk(), &[], &mut |_| {
        // After the lines that have an end, before the one that has none.
        fs::write(&path, &complete).expect("written");
    });
    let refused = summary.expect("it runs").refused;
    assert_eq!(refused.len(), 1);
    assert!(refused[0].reason.contains("changed while it was read"));
    assert_eq!(totals(&dir), [total("u", 1, 1)]);
    let summary = run_once(&config, &disk(), &[], &mut |_| {}).expect("it runs");
    assert_eq!(summary.refused.len(), 0);
    assert_eq!(totals(&dir), [total("u", 7, 3)]);
}

#[test]
fn a_file_that_grows_before_it_is_archived_stays_where_it_is() {
    // Red if the archive gets a file that is not what was applied, which nothing looks at again.
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("events_x.jsonl");
    fs::write(&path, line("u", 1)).expect("written");
    let grown = line("u", 1).repeat(2);
    let config = ProcessConfig::new(dir.path());
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
