//! A power cut after each call of apply, archive, prune, checkpoint and rebuild, and a second one
//! after each call of the recovery. All crash points are tried, not a sample, with the real binary
//! and SQLite.
//!
//! A run is recorded by strace. For each call of the log, the disk is constructed as a power cut
//! (or a kill) directly after the call could leave it. The real binary is started on this disk;
//! then files, totals, ledger and `verify` must agree that each line counts once. Ignored by
//! default because strace must be installed. CI tries every first cut, and second ones after one in
//! 60 of them; `TALLYLINE_TEST_SECOND_CUT_EVERY=1` tries all, with more variants of the unsynced
//! bytes and names that are left.

use std::collections::HashSet;
use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use tallyline::store::read_segments;

use super::harness::{
    PATIENCE, Process, Scratch, Server, Totals, arg, database, event, files_below, names_in,
    recount, run, scratch_dir, tallyline, until,
};
use super::kernel_log::{Deed, deeds, disk_of, repeat, stop_traced, traced, write_out};
use super::sim_disk::{Cut, SimDisk};

/// One in how many first cuts is followed by second ones; `None` if not set in the environment.
fn second_cut_every() -> Option<usize> {
    let every = std::env::var("TALLYLINE_TEST_SECOND_CUT_EVERY").ok()?;
    Some(every.parse().unwrap())
}

/// The number of random variants of what is left after each call.
fn choices_of_what_is_left() -> u64 {
    if second_cut_every().is_some() { 6 } else { 2 }
}

/// Asserts the state of a directory after recovery; the second argument is the number of responses
/// sent before the cut.
type Check<'a> = &'a (dyn Fn(&Path, usize) + Sync);

/// A run of the program that may be cut off after any of its calls.
struct Story<'a> {
    name: &'a str,
    before: SimDisk,
    deeds: Vec<Deed>,
    /// The arguments of the program that recovers, without `--data-dir`.
    recover: Vec<&'a str>,
    check: Check<'a>,
}

/// What was tried so far.
#[derive(Default)]
struct Tried {
    seen: Mutex<HashSet<u64>>,
    images: AtomicUsize,
    second_images: AtomicUsize,
}

impl Tried {
    /// Whether this content, after that many responses, is new.
    fn is_new(&self, image: &SimDisk, acks: usize) -> bool {
        let mut hasher = DefaultHasher::new();
        (image.contents(), acks).hash(&mut hasher);
        self.seen.lock().unwrap().insert(hasher.finish())
    }
}

/// A disk after a power cut or kill, and how it was made.
struct Image {
    disk: SimDisk,
    acks: usize,
    how: String,
}

/// Every distinct disk: after each call, a power cut or a kill.
fn images(before: &SimDisk, deeds: &[Deed], acks_before: usize) -> impl Iterator<Item = Image> {
    let disk = before.copy();
    let mut acks = acks_before;
    (0..=deeds.len()).flat_map(move |done| {
        if let Some(deed) = done.checked_sub(1).map(|last| &deeds[last]) {
            repeat(&disk, deed);
            acks += usize::from(*deed == Deed::Ack);
        }
        let after = done.checked_sub(1).map(|last| &deeds[last]);
        let how = |what: &str| format!("{what} after {done} calls, the last {after:?}");
        let image = |disk: SimDisk, how: String| Image { disk, acks, how };
        let mut found = vec![image(disk.copy(), how("killed"))];
        let some = (0..choices_of_what_is_left()).map(|n| Cut::Some(done as u64 + n * 1_000_000));
        for cut in [Cut::Nothing, Cut::Bytes, Cut::Names]
            .into_iter()
            .chain(some)
        {
            found.push(image(disk.copy().cut(cut), how(&format!("{cut:?} left"))));
        }
        if let Some(Deed::Write(path, at, bytes)) = deeds.get(done)
            && bytes.len() > 512
        {
            let half = disk.copy();
            let torn = bytes[..bytes.len() / 1024 * 512].to_vec();
            repeat(&half, &Deed::Write(path.clone(), *at, torn));
            found.push(image(half, how("half of the next write")));
        }
        found
    })
}

impl Story<'_> {
    /// Tries every first cut, and every second one after some of them.
    fn tell(&self) {
        let began = Instant::now();
        let tried = Tried::default();
        let (give, take) = crossbeam_channel::bounded::<Image>(8);
        std::thread::scope(|scope| {
            for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
                let (take, tried) = (take.clone(), &tried);
                scope.spawn(move || {
                    for image in take {
                        self.try_one(&image, tried);
                    }
                });
            }
            drop(take);
            for image in images(&self.before, &self.deeds, 0) {
                if tried.is_new(&image.disk, image.acks) && give.send(image).is_err() {
                    return; // every worker failed: the scope reports why
                }
            }
            drop(give);
        });
        let (first, second) = (
            tried.images.load(Ordering::Relaxed),
            tried.second_images.load(Ordering::Relaxed),
        );
        assert!(first * 2 > self.deeds.len(), "hardly any disk to try");
        eprintln!(
            "crash points of {}: {} calls, {first} disks after a first cut, {second} after a second, {:.1} s",
            self.name,
            self.deeds.len(),
            began.elapsed().as_secs_f32()
        );
    }

    fn try_one(&self, image: &Image, tried: &Tried) {
        let dir = scratch_dir();
        let count = tried.images.fetch_add(1, Ordering::Relaxed);
        if count % 9 == 1 {
            return self.recovers_serving(image, dir.path());
        }
        if !count.is_multiple_of(second_cut_every().unwrap_or(60)) {
            return self.recovers(image, dir.path(), tallyline);
        }
        let log = dir.path().join("strace");
        self.recovers(image, dir.path(), |args| traced(&log, args));
        let recovery = deeds(&log, &dir.path().join("data"));
        for second in images(&image.disk, &recovery, image.acks) {
            if tried.is_new(&second.disk, second.acks) {
                tried.second_images.fetch_add(1, Ordering::Relaxed);
                let how = format!("{}; then {}", image.how, second.how);
                self.recovers(&Image { how, ..second }, scratch_dir().path(), tallyline);
            }
        }
    }

    /// Starts the program on what is left, and asserts the result.
    fn recovers(&self, image: &Image, dir: &Path, command: impl FnOnce(&[&str]) -> Command) {
        let data = dir.join("data");
        write_out(&image.disk, &data);
        let args = [&self.recover[..], &["--data-dir", arg(&data)]].concat();
        let ran = command(&args).output().unwrap();
        let done = matches!(ran.status.code(), Some(0 | 3));
        assert!(done, "{}: {}: {ran:?}", self.name, image.how);
        self.holds(image, &data);
    }

    /// Does the same with a server, which recovers by other code paths.
    fn recovers_serving(&self, image: &Image, dir: &Path) {
        let data = dir.join("data");
        write_out(&image.disk, &data);
        let server = Server::with(&data, &["--flush-interval", "10ms"]);
        server.flush();
        server.assert_balanced();
        server.get("/readyz").expect(200);
        server.stop().expect(0);
        let args = [&self.recover[..], &["--data-dir", arg(&data)]].concat();
        run(&args); // a file whose copy was incomplete is imported again
        self.holds(image, &data);
    }

    fn holds(&self, image: &Image, data: &Path) {
        let held = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let args = ["verify", "--data-dir", arg(data)];
            let ran = tallyline(&args).output().unwrap();
            assert!(ran.status.success(), "{ran:?}");
            (self.check)(data, image.acks);
        }));
        assert!(held.is_ok(), "{}: {}", self.name, image.how);
    }
}

/// Runs the program under strace; returns its calls, after a check that replaying them leads to the
/// same files.
fn record(data: &Path, run: impl FnOnce(&Path)) -> (SimDisk, Vec<Deed>) {
    let before = disk_of(data);
    let log = data.with_extension("strace");
    run(&log);
    let deeds = deeds(&log, data);
    let after = before.copy();
    for deed in &deeds {
        repeat(&after, deed);
    }
    assert!(
        after.contents() == disk_of(data).contents(),
        "the log leads to {:?}, not to what is there: {deeds:#?}",
        after.files()
    );
    (before, deeds)
}

/// Records a run of `process`, which exits by itself.
fn record_process(data: &Path, flags: &[&str]) -> (SimDisk, Vec<Deed>) {
    let mut args = vec!["process", "--data-dir", arg(data)];
    args.extend(flags);
    record(data, |log| {
        Process::start(&mut traced(log, &args)).finish().expect(3);
    })
}

/// `count` events of several users from number `from` on, two in three with an id (most of them
/// sequential); among them an invalid line and a duplicate.
fn lines(from: usize, count: usize) -> String {
    (from..from + count)
        .map(|n| match n % 12 {
            5 => "no event\n".to_owned(),
            7 => with_id(n - 1),
            number if number % 3 == 0 => event(&format!("u{}", n % 7), n as u64),
            _ => with_id(n),
        })
        .collect()
}

fn with_id(n: usize) -> String {
    let pad = "x".repeat(n * 37 % 90);
    let id = match n % 5 {
        0 => n.to_string(),
        // Some of them before the end of a block of 128, most after it.
        _ => format!("run-{:06}", n + 120),
    };
    format!(
        "{{\"userId\":\"u{}\",\"name\":\"add_revenue\",\"value\":{n}.5,\"id\":\"{id}\",\"pad\":\"{pad}\"}}\n",
        n % 7
    )
}

/// The sums of the ledger: applied, duplicate and rejected lines, including pruned segments.
#[derive(Debug, PartialEq, Eq)]
struct Sums {
    totals: Totals,
    events: u64,
    duplicates: u64,
    rejected: u64,
}

fn sums(data: &Path) -> Sums {
    let db = super::harness::recount::open_database(data);
    let sum = |column: &str| {
        let sql = format!(
            "SELECT (SELECT coalesce(sum({column}), 0) FROM segment) + (SELECT coalesce(sum({column}), 0) FROM pruned)"
        );
        let number: i64 = db.query_row(&sql, [], |row| row.get(0)).unwrap();
        u64::try_from(number).unwrap()
    };
    Sums {
        totals: database(data),
        events: sum("events"),
        duplicates: sum("duplicates"),
        rejected: sum("rejected"),
    }
}

/// The expected sums of these lines.
fn expected(text: &str) -> Sums {
    let count = super::harness::recount::recount_bytes(std::iter::once(text.as_bytes()));
    Sums {
        totals: count.users,
        events: count.applied,
        duplicates: count.duplicates,
        rejected: count.rejected,
    }
}

/// Asserts that each line counts once, in the database and in a recount of the files.
fn counts_once(data: &Path, truth: &Sums) {
    assert_eq!(sums(data), *truth);
    nothing_is_in_doubt(data);
    assert_eq!(recount(data).users, truth.totals);
}

/// Asserts that nothing but a torn tail is in quarantine, and no segment is reported as corrupt.
fn nothing_is_in_doubt(data: &Path) {
    let odd = |name: &String| !name.starts_with("torn-");
    let aside = names_in(&data.join("quarantine"));
    assert!(!aside.iter().any(odd), "{aside:?}");
    for row in read_segments(&data.join("revenue.db")).unwrap() {
        assert!(row.completed_at_ms.is_some(), "{row:?}");
    }
}

#[test]
#[ignore = "needs strace"]
fn the_first_load_may_end_after_any_call() {
    // Fails if the rollback journal of the first load, or the rename of the archive, leads to a
    // line counted twice or not at all.
    let scratch = Scratch::new();
    let data = scratch.data();
    fs::create_dir(&data).unwrap();
    let (ours, theirs) = (lines(0, 40), lines(40, 30));
    fs::write(data.join("events.jsonl"), &ours).unwrap();
    fs::write(data.join("events_1700000000000.jsonl"), &theirs).unwrap();
    let (before, deeds) = record_process(&data, &[]);
    let journal =
        |deed: &Deed| matches!(deed, Deed::Remove(path) if path.ends_with("revenue.db-journal"));
    assert!(deeds.iter().any(journal), "by the rollback journal");
    let truth = expected(&(ours + &theirs));
    Story {
        name: "the first load",
        before,
        deeds,
        recover: vec!["process"],
        check: &|data, _| counts_once(data, &truth),
    }
    .tell();
}

#[test]
#[ignore = "needs strace"]
fn small_files_applied_together_may_be_cut_off_after_any_call() {
    // Fails if of the segments of one transaction one can be in the totals without the others or without
    // its bytes, or if one of them is lost between its rename and the sync of the directories.
    const FILES: usize = 12;
    let files: Vec<String> = (0..FILES).map(|n| lines(20 + n * 12, 13)).collect();
    files_of_one_transaction("small files", &files, &[], |deeds, first| {
        let position = |wanted: &dyn Fn(&Deed) -> bool| deeds.iter().position(wanted);
        let synced = position(&|deed| *deed == Deed::SyncAll).expect("together");
        let committed = position(&is_commit);
        assert!(
            committed.is_some_and(|at| synced < at && at < first),
            "{deeds:#?}"
        );
    });
}

#[test]
#[ignore = "needs strace"]
fn large_files_whose_sums_are_added_up_may_be_cut_off_after_any_call() {
    // Fails if of the segments of one transaction one can be in the totals without the others, or if one of
    // them is lost between its rename and the sync of the directories.
    const FILES: usize = 2;
    // Each has a line of the one before it.
    let files: Vec<String> = (0..FILES).map(|n| lines(20 + n * 799, 800)).collect();
    for text in &files {
        assert!(
            text.len() > 60 << 10,
            "large with so little memory: {}",
            text.len()
        );
    }
    files_of_one_transaction("large files", &files, &["--memory", "32MiB"], |_, _| {});
}

/// The story of a `process` with these flags that applies files in one transaction, after another one has applied
/// the active file. `check` gets what it did, and the place of the first rename into the archive.
fn files_of_one_transaction(
    name: &'static str,
    files: &[String],
    flags: &[&'static str],
    check: impl Fn(&[Deed], usize),
) {
    let scratch = Scratch::new();
    let data = scratch.data();
    fs::create_dir(&data).unwrap();
    let ours = lines(0, 20);
    fs::write(data.join("events.jsonl"), &ours).unwrap();
    run(&["process", "--data-dir", arg(&data)]).expect(3);
    for (n, text) in files.iter().enumerate() {
        fs::write(data.join(format!("events_17000000000{n:02}.jsonl")), text).unwrap();
    }
    let (before, deeds) = record_process(&data, flags);
    let first = deeds
        .iter()
        .position(|deed| matches!(deed, Deed::Rename(_, to) if to.starts_with("data/applied")))
        .expect("archived");
    check(&deeds, first);
    let commits = deeds[..first].iter().filter(|deed| is_commit(deed));
    assert!(commits.count() <= 2, "one transaction: {deeds:#?}");
    let truth = expected(&(ours + &files.concat()));
    Story {
        name,
        before,
        deeds,
        recover: [&["process"], flags].concat(),
        check: &|data, _| counts_once(data, &truth),
    }
    .tell();
}

fn is_commit(deed: &Deed) -> bool {
    matches!(deed, Deed::Sync(path) if path.ends_with("revenue.db-wal"))
}

#[test]
#[ignore = "needs strace"]
fn a_file_from_elsewhere_may_be_cut_off_after_any_call() {
    // Fails if an incomplete copy can be taken for a complete one, or the checkpoint of the WAL
    // loses a commit.
    let scratch = Scratch::new();
    let data = scratch.data();
    fs::create_dir(&data).unwrap();
    let (ours, theirs) = (lines(0, 40), lines(40, 60));
    fs::write(data.join("events.jsonl"), &ours).unwrap();
    run(&["process", "--data-dir", arg(&data)]).expect(3);
    let file = scratch.file("their.jsonl", &theirs);
    let (before, deeds) = record_process(&data, &[arg(&file)]);
    let wal = |deed: &Deed| matches!(deed, Deed::Create(path) if path.ends_with("revenue.db-wal"));
    assert!(deeds.iter().any(wal), "by the WAL");
    let truth = expected(&(ours + &theirs));
    Story {
        name: "an imported file",
        before,
        deeds,
        recover: vec!["process", arg(&file)],
        check: &|data, _| counts_once(data, &truth),
    }
    .tell();
}

/// A server that has archived a few segments; returns their lines.
fn archived(data: &Path, flags: &[&str]) -> (Server, String) {
    let server = Server::with(data, &[&["--flush-interval", "10ms"], flags].concat());
    let text: String = (0..4)
        .map(|part| {
            let body = lines(part * 12, 12).replace("no event\n", "");
            server.accept(&body);
            server.flush();
            body
        })
        .collect();
    (server, text)
}

#[test]
#[ignore = "needs strace"]
fn a_rebuild_may_end_after_any_call() {
    // Fails if at any moment neither the old database nor the new one is complete, or if the WAL of
    // the old one can be applied to the new one; also with sums of pruned segments.
    for flags in [&[][..], &["--retention", "0s"]] {
        let scratch = Scratch::new();
        let data = scratch.data();
        let (server, text) = archived(&data, flags);
        let truth = expected(&text);
        let pruned = !flags.is_empty();
        until(PATIENCE, "some are pruned, or all are there", || {
            let kept = files_below(&data.join("applied")).len();
            ((kept < 4) == pruned).then_some(())
        });
        server.kill();
        assert!(data.join("revenue.db-wal").exists(), "something to play in");
        let (before, deeds) = record(&data, |log| {
            let args = ["process", "--rebuild", "--data-dir", arg(&data)];
            Process::start(&mut traced(log, &args)).finish().expect(0);
        });
        Story {
            name: if pruned {
                "a rebuild that carries over"
            } else {
                "a rebuild"
            },
            before,
            deeds,
            recover: vec!["process"],
            check: &|data, _| {
                assert_eq!(sums(data), truth);
                nothing_is_in_doubt(data);
            },
        }
        .tell();
    }
}

#[test]
#[ignore = "needs strace"]
fn retention_may_end_after_any_call() {
    // Fails if the sums of a pruned segment can be lost or added twice, its file can be applied
    // again, or a file can be removed whose row is still needed, such as that of an imported one.
    let scratch = Scratch::new();
    let data = scratch.data();
    let theirs = lines(100, 20);
    scratch.file("data/events_theirs.jsonl", &theirs);
    let (server, text) = archived(&data, &[]);
    server.stop().expect(0);
    let truth = expected(&(text + &theirs));
    let (before, deeds) = record(&data, |log| {
        let flags = [
            "--retention",
            "0s",
            "--dedup-window",
            "0s",
            "--flush-interval",
            "10ms",
        ];
        let server = Server::by(&data, &flags, |args| traced(log, args));
        until(PATIENCE, "all of ours but the newest are pruned", || {
            (files_below(&data.join("applied")).len() == 2).then_some(())
        });
        stop_traced(server);
    });
    let removed =
        |deed: &&Deed| matches!(deed, Deed::Remove(path) if path.starts_with("data/applied"));
    assert_eq!(deeds.iter().filter(removed).count(), 3);
    Story {
        name: "retention",
        before,
        deeds,
        recover: vec!["process"],
        check: &|data, _| {
            assert_eq!(sums(data), truth);
            nothing_is_in_doubt(data);
        },
    }
    .tell();
}

#[test]
#[ignore = "needs strace"]
fn a_pruned_file_is_removed_only_once_its_commit_is_durable() {
    // Fails if recovery removes a file because of a commit that was written but possibly not
    // synced: a kill before and a power cut now lose both.
    let scratch = Scratch::new();
    let data = scratch.data();
    let (server, _) = archived(&data, &[]);
    server.stop().expect(0);
    let archive = data.join("applied");
    let files: Vec<_> = files_below(&archive)
        .into_iter()
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    let mut server = Server::with(&data, &["--retention", "0s", "--flush-interval", "10ms"]);
    until(PATIENCE, "all but the newest are pruned", || {
        (files_below(&archive).len() == 1).then_some(())
    });
    server.process.kill();
    assert!(data.join("revenue.db-wal").exists());
    // As after a kill between the commit and the removal.
    let (file, bytes) = &files[files.len() - 2];
    fs::write(file, bytes).unwrap();
    let (_, deeds) = record(&data, |log| {
        let args = ["process", "--data-dir", arg(&data)];
        Process::start(&mut traced(log, &args)).finish().expect(0);
    });
    let name = file.file_name().unwrap();
    let removed = deeds
        .iter()
        .position(|deed| matches!(deed, Deed::Remove(path) if path.ends_with(name)));
    let before = &deeds[..removed.expect("removed")];
    let synced = |deed: &Deed| matches!(deed, Deed::Sync(path) if path.ends_with("revenue.db-wal"));
    assert!(before.iter().any(synced), "{before:#?}");
}

#[test]
#[ignore = "needs strace"]
fn a_server_may_end_after_any_call() {
    // Fails if a 202 is sent before its lines are durable, a rotation can lose or duplicate a
    // segment, or totals and progress can differ.
    const BATCHES: usize = 8;
    let scratch = Scratch::new();
    let data: PathBuf = scratch.data();
    fs::create_dir(&data).unwrap();
    let batch = |n: usize| lines(n * 12, 12).replace("no event\n", "");
    let (before, deeds) = record(&data, |log| {
        let flags = ["--rotate-size", "1KiB", "--flush-interval", "10ms"];
        let server = Server::by(&data, &flags, |args| traced(log, args));
        for n in 0..BATCHES {
            server.accept(batch(n));
            if n % 3 == 2 {
                server.flush();
            }
        }
        stop_traced(server);
    });
    let acks = deeds.iter().filter(|deed| **deed == Deed::Ack).count();
    assert_eq!(acks, BATCHES);
    Story {
        name: "a server",
        before,
        deeds,
        recover: vec!["process"],
        check: &|data, acks| {
            nothing_is_in_doubt(data);
            let (found, count) = (sums(data), recount(data));
            assert_eq!(found.totals, count.users);
            let lines = (count.applied, count.duplicates, count.rejected);
            assert_eq!((found.events, found.duplicates, found.rejected), lines);
            let acked: String = (0..acks).map(batch).collect();
            let acked = expected(&acked);
            assert!(count.applied >= acked.events, "{acks} acknowledged");
            for (user, (micros, events)) in acked.totals {
                let counted = count.users.get(&user).copied().unwrap_or_default();
                assert!(counted.0 >= micros && counted.1 >= events, "{user}: {acks}");
            }
        },
    }
    .tell();
}
