//! Verification, and what can still be verified after pruning: `verify`, `process --rebuild`,
//! `--retention`, `--dedup-window`, and a database that was changed from outside.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rusqlite::Connection;

use super::harness::suite::{Locked, change, delete_database, number, url};
use super::harness::{
    PATIENCE, Process, Ran, Scratch, Server, SetAtEnd, arg, database, event, files_below, names_in,
    recount, run, tallyline, until,
};

/// Small segments, applied at once.
const SMALL: [&str; 4] = ["--rotate-size", "1KiB", "--flush-interval", "10ms"];

#[track_caller]
fn verify(data: &Path) -> Ran {
    run(&["verify", "--data-dir", arg(data)])
}

#[track_caller]
fn rebuild(data: &Path) -> Ran {
    run(&["process", "--rebuild", "--data-dir", arg(data)])
}

/// Asserts that there is one file of SQLite's, or none if the database is PostgreSQL, and no temporary file.
#[track_caller]
fn assert_one_database_file(data: &Path) {
    let mut left = names_in(data);
    left.retain(|name| name.contains(".db"));
    let expected: &[&str] = if url(data).is_some() {
        &[]
    } else {
        &["revenue.db"]
    };
    assert_eq!(left, expected);
}

fn with_id(user: &str, value: u64, id: &str) -> String {
    format!(
        "{{\"userId\":\"{user}\",\"name\":\"add_revenue\",\"value\":{value},\"id\":\"{id}\"}}\n"
    )
}

fn archive(data: &Path) -> Vec<PathBuf> {
    files_below(&data.join("applied"))
}

/// A column of the `pruned` row.
fn pruned(data: &Path, column: &str) -> u64 {
    let number = number(data, &format!("SELECT {column} FROM pruned"));
    u64::try_from(number).unwrap()
}

/// A stopped data directory of `count` segments, with one event of user u in each.
fn segments(scratch: &Scratch, count: usize) {
    let server = Server::with(&scratch.data(), &SMALL);
    for _ in 0..count {
        server.accept(event("u", 1));
        server.flush();
    }
    server.stop().expect(0);
}

#[test]
fn verify_agrees_beside_a_busy_server() {
    // Fails if `verify` reports concurrent changes as differences, or leaves files behind.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = Server::with(&data, &SMALL);
    server.accept(with_id("u", 1, "first"));
    server.flush();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let stop_sender = SetAtEnd(&done);
        let sender = scope.spawn(|| {
            let mut number = 0;
            while !done.load(Ordering::Relaxed) {
                number += 1;
                server.accept(format!(
                    "{}{}{}",
                    event(&format!("u{}", number % 7), number),
                    with_id("u", number, &format!("id-{number}")),
                    with_id("u", 1, "first"),
                ));
            }
        });
        let verdicts: Vec<Ran> = (0..4).map(|_| verify(&data)).collect();
        drop(stop_sender);
        sender.join().unwrap();
        for verdict in verdicts {
            verdict.expect(0);
        }
    });
    server.stop().expect(0);
    let ran = verify(&data).expect(0);
    let counted = recount(&data);
    assert_eq!(counted.users, database(&data));
    let words = format!("{} duplicates", counted.duplicates);
    assert!(ran.stdout.contains(&words), "{words}: {ran}");
    assert_one_database_file(&data);
}

#[test]
fn verify_after_a_crash_agrees_and_leaves_one_file() {
    // Fails if `verify` needs a clean shutdown, or leaves a -wal behind.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = Server::with(&data, &["--flush-interval", "10ms"]);
    let position = server.accept(event("u", 1).repeat(10));
    server
        .get(&format!("/userEvents/u?after={position}&wait=50s"))
        .expect(200);
    server.kill();
    assert!(data.join("revenue.db-wal").exists(), "it was a crash");
    verify(&data).expect(0);
    assert_one_database_file(&data);
    fs::write(data.join("events_new.jsonl"), event("u", 1)).unwrap();
    let ran = verify(&data).expect(0);
    assert!(ran.stdout.contains("pending"), "{ran}");
    fs::remove_file(data.join("revenue.db")).unwrap();
    let ran = verify(&data).expect(1);
    assert!(ran.stderr.contains("no database"), "{ran}");
    assert!(!data.join("revenue.db").exists(), "verify creates nothing");
}

#[test]
fn verify_names_each_difference() {
    // Fails if `verify` stops at the first difference, or does not name the user or file.
    let scratch = Scratch::new();
    let data = scratch.data();
    segments(&scratch, 3);
    fs::write(archive(&data)[1].as_path(), event("u", 2)).unwrap();
    fs::remove_file(&archive(&data)[2]).unwrap();
    change(&data, "UPDATE segment SET net_check = 7 WHERE key = 1");
    let ran = verify(&data).expect(1);
    for words in [
        "MISMATCH: segment events-000001",
        "MISMATCH: segment events-000002",
        "INCONCLUSIVE: segment events-000003",
        "MISMATCH: all users together",
    ] {
        assert!(ran.stdout.contains(words), "{words}: {ran}");
    }
}

#[test]
fn a_rebuild_keeps_the_ids_of_pruned_segments() {
    // Fails if a rebuild forgets the ids of events in pruned files: events with these ids in a kept
    // file, or sent again, would count.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = Server::with(&data, &[&SMALL[..], &["--retention", "0s"]].concat());
    for body in [with_id("u", 5, "a"), with_id("u", 5, "a") + &event("u", 1)] {
        server.accept(body);
        server.flush();
    }
    until(PATIENCE, "the first segment is pruned", || {
        (archive(&data).len() == 1).then_some(())
    });
    server.stop().expect(0);
    rebuild(&data).expect(0);
    assert_eq!(database(&data)["u"], (6_000_000, 2));
    verify(&data).expect(0);
    let server = Server::with(&data, &SMALL);
    server.accept(with_id("u", 5, "a"));
    server.flush();
    assert_eq!(server.get("/userEvents/u").json()["revenue"], 6);
    server.assert_balanced();
}

#[test]
fn a_rebuild_corrects_changed_totals() {
    // Fails if a rebuild uses totals of the old database, leaves a part of it, or requires what it
    // can do without.
    let scratch = Scratch::new();
    let data = scratch.data();
    segments(&scratch, 3);
    scratch.file("data/events_old.jsonl", with_id("v", 2, "a").repeat(3));
    run(&["process", "--data-dir", arg(&data)]).expect(0);
    let before = database(&data);
    change(
        &data,
        "UPDATE user_total SET revenue_micros = 5, events = 9",
    );
    verify(&data).expect(1);
    if url(&data).is_none() {
        // Left by a rebuild that was killed.
        scratch.file("data/revenue.db.rebuild", "half a database");
        scratch.file("data/revenue.db.rebuild-wal", "and its WAL");
    }
    rebuild(&data).expect(0);
    assert_eq!(database(&data), before);
    assert_one_database_file(&data);
    let ran = verify(&data).expect(0);
    assert!(ran.stdout.contains("2 duplicates"), "{ran}");
    let file = scratch.file("more.jsonl", event("u", 1));
    run(&["process", "--rebuild", "--data-dir", arg(&data), arg(&file)]).expect(2);
    // Without a database, a rebuild creates one.
    delete_database(&data);
    rebuild(&data).expect(0);
    assert_eq!(database(&data), before);
}

/// Whether a rebuild has a part of the new database.
fn rebuild_has_begun(data: &Path) -> bool {
    match url(data) {
        Some(_) => {
            let locks =
                "SELECT count(*) FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation
                         WHERE c.relname = 'segment' AND l.mode = 'ExclusiveLock' AND l.granted";
            number(data, locks) > 0
        }
        None => data.join("revenue.db.rebuild").exists(),
    }
}

#[test]
fn a_rebuild_killed_at_any_moment_leaves_the_old_database_or_the_new_one() {
    // Fails if at any moment there is no database, half of one, or the WAL of the old one beside
    // the new one.
    let scratch = Scratch::new();
    let data = scratch.data();
    for part in 0..8 {
        let lines = (0..2000u64).map(|n| event(&format!("user-{}", n % 900), part));
        scratch.file(
            &format!("data/events_{part}.jsonl"),
            lines.collect::<String>(),
        );
    }
    run(&["process", "--data-dir", arg(&data)]).expect(0);
    let before = database(&data);
    let mut killed = 0;
    for looks in (0..60).step_by(4) {
        let args = ["process", "--rebuild", "--data-dir", arg(&data)];
        let mut process = Process::start(&mut tallyline(&args));
        let mut seen = 0;
        let ended = until(PATIENCE, "the rebuild has begun", || {
            seen += u32::from(rebuild_has_begun(&data));
            let ended = process.exited().is_some();
            (ended || seen > looks).then_some(ended)
        });
        process.kill();
        killed += u32::from(!ended);
        // A connection that may write rolls back what was interrupted; the read-only one of the
        // harness cannot.
        change(&data, "UPDATE user_total SET events = events");
        assert_eq!(database(&data), before, "after {looks} looks");
    }
    assert!(killed > 0, "no rebuild was killed in time");
    run(&["process", "--data-dir", arg(&data)]).expect(0);
    assert_one_database_file(&data);
    verify(&data).expect(0);
}

#[test]
fn a_rebuild_is_rejected_beside_a_server_and_a_verify() {
    // Fails if the database is replaced while another process of the directory uses it, or if the error does not
    // name that process.
    let scratch = Scratch::new();
    let data = scratch.data();
    for flags in [&[][..], &["--no-process"]] {
        let server = Server::with(&data, flags);
        server.accept(event("u", 1));
        let ran = rebuild(&data).expect(1);
        let pid = server.process.id().to_string();
        assert!(ran.stderr.contains(&pid), "pid {pid}: {ran}");
        server.stop().expect(0);
    }
    run(&["process", "--data-dir", arg(&data)]).expect(0);
    let before = database(&data);
    let held = File::open(&data).unwrap();
    held.lock_shared().unwrap();
    let ran = rebuild(&data).expect(1);
    assert!(ran.stderr.contains("verify"), "{ran}");
    drop(held);
    rebuild(&data).expect(0);
    assert_eq!(database(&data), before);
    assert_one_database_file(&data);
}

#[test]
fn a_rebuild_is_rejected_beside_a_reader() {
    // Fails if the file of the database is replaced while another program reads it, or if the error does not name
    // the file.
    let scratch = Scratch::new();
    let data = scratch.data();
    segments(&scratch, 1);
    let before = database(&data);
    let reader = Connection::open(data.join("revenue.db")).unwrap();
    reader
        .query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))
        .unwrap();
    reader
        .execute_batch("BEGIN; SELECT count(*) FROM segment;")
        .unwrap();
    let ran = rebuild(&data).expect(1);
    assert!(ran.stderr.contains("revenue.db"), "{ran}");
    drop(reader);
    assert_eq!(database(&data), before);
    rebuild(&data).expect(0);
    assert_eq!(database(&data), before);
    assert_one_database_file(&data);
}

#[test]
fn a_rebuild_reports_lower_totals() {
    // Fails if a total becomes lower silently.
    let scratch = Scratch::new();
    let data = scratch.data();
    segments(&scratch, 3);
    fs::remove_file(&archive(&data)[1]).unwrap();
    let ran = rebuild(&data).expect(1);
    assert!(
        ran.stdout.contains("events-000002") && ran.stdout.contains("no longer"),
        "{ran}"
    );
    assert_eq!(database(&data)["u"].1, 2);
    let ran = verify(&data).expect(1);
    assert!(ran.stdout.contains("segments 2"), "still missing: {ran}");
}

#[test]
fn retention_prunes_and_keeps_every_total() {
    // Fails if pruning changes a total, deletes the newest segment or unapplied data, restarts the
    // numbers, or leaves sums that cannot be checked.
    let scratch = Scratch::new();
    let data = scratch.data();
    let flags = [&SMALL[..], &["--retention", "0s"]].concat();
    let server = Server::with(&data, &flags);
    let first = server.accept(event("u", 1));
    for number in 1..30 {
        server.accept(event("u", 1).repeat(10) + &event(&format!("v{number}"), number));
        server.flush();
    }
    until(PATIENCE, "all but the newest are gone", || {
        (archive(&data).len() == 1).then_some(())
    });
    assert_eq!(
        server.get("/userEvents/u").expect(200).json()["events"],
        291
    );
    server
        .get(&format!("/userEvents/u?after={first}"))
        .expect(200);
    let status = server.assert_balanced();
    assert_eq!(status["applied"], 291 + 29);
    assert_eq!(server.get("/readyz").status, 200, "{status}");
    server.stop().expect(0);
    let before = database(&data);
    let ran = verify(&data).expect(0);
    assert!(ran.stdout.contains("pruned"), "{ran}");
    // A rebuild keeps sums whose files were pruned, and reports this.
    let ran = rebuild(&data).expect(0);
    assert!(ran.stdout.contains("carried over"), "{ran}");
    assert_eq!(database(&data), before);
    verify(&data).expect(0);
    let number = pruned(&data, "number");
    let server = Server::start(&data);
    let next = server.accept(event("u", 1));
    let segment: u64 = next.split_once('-').unwrap().0.parse().unwrap();
    assert!(segment > number + 1, "{next} after {number}");
    server.flush();
    assert_eq!(server.get("/readyz").status, 200);
    server.stop().expect(0);
    // It is refused if the totals do not match these sums.
    change(
        &data,
        "UPDATE user_total SET events = events + 1 WHERE user_id = 'u'",
    );
    verify(&data).expect(1);
    let ran = rebuild(&data).expect(1);
    assert!(ran.stderr.contains("backup"), "{ran}");
    assert_eq!(database(&data)["u"].1, 293, "unchanged");
    assert_one_database_file(&data);
}

#[test]
fn retention_does_not_hide_a_missing_segment() {
    // Fails if segments above a missing one are pruned: a number below the highest pruned one is not
    // missing, so the lost events are not reported any more.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = Server::with(&data, &["--no-process"]);
    for _ in 0..5 {
        server.accept(event("u", 1));
        server.post("/flush", "");
    }
    server.stop().expect(0);
    let segments = names_in(&data);
    let lost = segments.iter().find(|name| name.contains("-000002-"));
    fs::remove_file(data.join(lost.unwrap())).unwrap();
    let flags = ["--retention", "1ms", "--flush-interval", "10ms"];
    for _ in 0..2 {
        let server = Server::with(&data, &flags);
        server.flush();
        until(PATIENCE, "segment 1 is pruned", || {
            (files_below(&data.join("applied")).len() == 3).then_some(())
        });
        // Several rounds.
        for _ in 0..3 {
            let ready = server.get("/readyz").problem(503);
            assert!(ready.to_string().contains("segment 2"), "{ready}");
            server.flush();
        }
        assert_eq!(files_below(&data.join("applied")).len(), 3);
        server.stop().expect(0);
        let ran = run(&["verify", "--data-dir", arg(&data)]).expect(1);
        assert!(ran.stdout.contains("segments 2"), "{ran}");
    }
}

#[test]
fn nothing_is_pruned_during_verify() {
    // Fails if files are deleted while `verify` reads them.
    let scratch = Scratch::new();
    let data = scratch.data();
    segments(&scratch, 4);
    let held = File::open(&data).unwrap();
    held.lock_shared().unwrap();
    let flags = [&SMALL[..], &["--retention", "0s", "--dedup-window", "0s"]].concat();
    let server = Server::with(&data, &flags);
    for _ in 0..5 {
        server.accept(event("u", 1));
        server.flush();
    }
    // A file is moved to the archive shortly after its last line was applied.
    until(PATIENCE, "all but the last are archived", || {
        (archive(&data).len() >= 8).then_some(())
    });
    drop(held);
    until(PATIENCE, "pruned now", || {
        (archive(&data).len() <= 1).then_some(())
    });
    server.stop().expect(0);
    verify(&data).expect(0);
}

#[test]
fn a_file_left_by_an_interrupted_prune_is_removed_and_not_counted() {
    // Fails if a pruned file that exists again is counted twice, or if another file is removed
    // because it has the number of a pruned one.
    let scratch = Scratch::new();
    let data = scratch.data();
    segments(&scratch, 5);
    let files: Vec<(PathBuf, Vec<u8>)> = archive(&data)
        .into_iter()
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    let server = Server::with(&data, &["--retention", "0s", "--flush-interval", "10ms"]);
    until(PATIENCE, "pruned", || {
        (archive(&data).len() == 1).then_some(())
    });
    server.stop().expect(0);
    assert_eq!(pruned(&data, "number"), 4);
    let before = database(&data);
    // The last one pruned, as after a crash between the commit and the removal.
    fs::write(&files[3].0, &files[3].1).unwrap();
    // An earlier one that was restored.
    let back = data.join(files[1].0.file_name().unwrap());
    fs::write(&back, &files[1].1).unwrap();
    let ran = run(&["process", "--data-dir", arg(&data)]).expect(1);
    assert!(ran.stderr.contains("000002"), "{ran}");
    assert!(!files[3].0.exists(), "finished");
    // A file with the same number and other content is not removed.
    fs::write(&files[3].0, event("u", 99)).unwrap();
    let server = Server::start(&data);
    let reasons = until(PATIENCE, "/readyz reports it", || {
        let ready = server.get("/readyz");
        (ready.status == 503).then(|| ready.text())
    });
    assert!(reasons.contains("000002"), "{reasons}");
    server.accept(event("v", 1));
    server.flush();
    server.assert_balanced();
    server.stop().expect(0);
    assert!(back.exists() && files[3].0.exists());
    assert_eq!(database(&data)["u"], before["u"]);
    verify(&data).expect(0);
}

#[test]
fn a_file_changed_after_it_was_applied_is_not_pruned() {
    // Fails if retention removes bytes that were never counted.
    let scratch = Scratch::new();
    let data = scratch.data();
    segments(&scratch, 3);
    let first = archive(&data).remove(0);
    fs::write(&first, event("other", 7)).unwrap();
    let server = Server::with(&data, &["--retention", "0s", "--flush-interval", "10ms"]);
    let reasons = until(PATIENCE, "/readyz reports it", || {
        let ready = server.get("/readyz");
        (ready.status == 503).then(|| ready.text())
    });
    assert!(reasons.contains("000001"), "{reasons}");
    assert_eq!(archive(&data).len(), 3);
    fs::remove_file(&first).unwrap();
    until(
        PATIENCE,
        "pruning continues once the file was moved away",
        || (archive(&data).len() == 1 && server.get("/readyz").status == 200).then_some(()),
    );
    server.stop().expect(0);
    assert_eq!(database(&data)["u"].1, 3);
}

#[test]
fn a_full_disk_is_507_until_retention_frees_space() {
    // Fails if `--max-disk` with `--retention` needs manual action, or if unapplied files are
    // deleted to free space.
    let scratch = Scratch::new();
    let data = scratch.data();
    let flags = [
        "--max-disk",
        "12MiB",
        "--retention",
        "2s",
        "--disk-reserve",
        "0",
    ];
    let flags = [
        &flags[..],
        &["--rotate-size", "1MiB", "--flush-interval", "10ms"],
    ]
    .concat();
    let server = Server::with(&data, &flags);
    let big = event(&"x".repeat(200), 1).repeat(2000);
    let mut taken = 0;
    until(PATIENCE, "the disk is full", || {
        let reply = server.post("/liveEvent", &big);
        taken += u64::from(reply.status == 202) * 2000;
        (reply.status != 202).then(|| reply.problem(507))
    });
    until(
        PATIENCE,
        "it accepts events again without a restart",
        || (server.post("/liveEvent", &big).status == 202).then_some(()),
    );
    taken += 2000;
    server.flush();
    assert_eq!(server.assert_balanced()["applied"], taken);
    server.stop().expect(0);
    verify(&data).expect(0);
}

#[test]
fn ids_expire_after_the_dedup_window_and_not_before() {
    // Fails if `--dedup-window` expires ids at once or never, or if `verify` then reports wrong
    // totals.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = Server::with(&data, &["--flush-interval", "10ms", "--dedup-window", "1h"]);
    for _ in 0..3 {
        server.accept(with_id("u", 5, "a"));
        server.flush();
    }
    assert_eq!(server.get("/userEvents/u").expect(200).json()["events"], 1);
    assert_eq!(server.assert_balanced()["duplicates"], 2);
    server.stop().expect(0);
    let server = Server::with(&data, &["--flush-interval", "10ms", "--dedup-window", "1s"]);
    until(
        PATIENCE,
        "the id expires and its event is counted again",
        || {
            server.accept(with_id("u", 5, "a"));
            server.flush();
            (server.get("/userEvents/u").expect(200).json()["events"] == 2).then_some(())
        },
    );
    server.assert_balanced();
    server.stop().expect(0);
    let ran = verify(&data).expect(0);
    assert!(ran.stdout.contains("expired"), "{ran}");
}

/// A database mixed from two copies: the file of an older backup and the WAL of a later crash.
fn mixed_from_two_copies(scratch: &Scratch) {
    let data = scratch.data();
    let all: String = (0..3000).map(|n| event(&format!("user-{n}"), 1)).collect();
    for _ in 0..2 {
        let server = Server::start(&data);
        server.accept(&all);
        server.stop().expect(0);
        if !scratch.path().join("backup.db").exists() {
            fs::copy(data.join("revenue.db"), scratch.path().join("backup.db")).unwrap();
        }
    }
    let server = Server::start(&data);
    let position = server.accept(event("user-7", 1));
    server
        .get(&format!("/userEvents/user-7?after={position}&wait=50s"))
        .expect(200);
    server.kill();
    assert!(data.join("revenue.db-wal").exists());
    fs::copy(scratch.path().join("backup.db"), data.join("revenue.db")).unwrap();
}

#[test]
fn a_backup_copied_beside_an_old_wal_is_detected_and_rebuilt() {
    // Fails if totals of two different times are served silently.
    let scratch = Scratch::new();
    let data = scratch.data();
    mixed_from_two_copies(&scratch);
    let server = Server::with(&data, &["--retention", "0s"]);
    let reasons = until(PATIENCE, "/readyz answers 503", || {
        let ready = server.get("/readyz");
        (ready.status == 503).then(|| ready.text())
    });
    assert!(reasons.contains("--rebuild"), "{reasons}");
    server.flush();
    server.stop().expect(0);
    assert!(archive(&data).len() >= 3, "nothing is pruned meanwhile");
    verify(&data).expect(1);
    rebuild(&data).expect(0);
    verify(&data).expect(0);
    assert_eq!(database(&data), recount(&data).users);
    let server = Server::start(&data);
    server.flush();
    assert_eq!(server.get("/readyz").status, 200);
}

#[test]
fn ids_of_pruned_segments_lost_by_a_mixed_database_are_reported() {
    // Fails if an event that is sent again counts again and nothing is reported. The tables of ids become those of
    // a backup, as if its file lay beside a WAL that has all pages of the sums and none of the ids.
    for prefix in ["id-", "id-00000"] {
        let scratch = Scratch::new();
        let (data, backup) = (scratch.data(), scratch.path().join("backup.db"));
        let run = |bodies: &[String], segments: u64| {
            let flags = ["--flush-interval", "10ms", "--retention", "0s"];
            let server = Server::with(&data, &flags);
            for body in bodies {
                server.accept(body);
                server.flush();
            }
            until(PATIENCE, "all but the last segment are pruned", || {
                (pruned(&data, "segments") + 1 >= segments).then_some(())
            });
            server
        };
        let ids = |from: u32| {
            let ids = (from..from + 9).map(|n| with_id("u", 1, &format!("{prefix}{n}")));
            ids.collect::<String>()
        };
        let other = event("u", 1);
        run(&[ids(1), other.clone()], 2).stop().expect(0);
        fs::copy(data.join("revenue.db"), &backup).unwrap();
        run(&[ids(11), other.clone()], 4).stop().expect(0);
        let db = Connection::open(data.join("revenue.db")).unwrap();
        db.execute("ATTACH ?1 AS backup", [arg(&backup)]).unwrap();
        for table in ["event_id", "id_block"] {
            db.execute_batch(&format!(
                "DELETE FROM {table}; INSERT INTO {table} SELECT * FROM backup.{table}"
            ))
            .unwrap();
        }
        db.close().unwrap();
        File::create(data.join("revenue.db-wal")).unwrap(); // as after an unclean shutdown
        let server = Server::start(&data);
        until(PATIENCE, "/readyz reports the ids", || {
            let ready = server.get("/readyz");
            let text = ready.text();
            (ready.status == 503 && text.contains("overall has 18 ids")).then_some(())
        });
        server.stop().expect(0);
        let found = verify(&data).expect(1).stdout;
        assert!(found.contains("event_id and id_block have 9"), "{found}");
        let rebuilt = rebuild(&data).expect(0);
        let said = format!("{}{}", rebuilt.stdout, rebuilt.stderr);
        assert!(said.contains("9 ids instead of 18"), "{said}");
        verify(&data).expect(0);
    }
}

#[test]
fn a_rebuild_repairs_a_database_with_a_foreign_wal() {
    // Fails if the recommended fix fails: the WAL does not belong to the database, so the two
    // cannot be merged.
    for (backup_users, log_users) in [(1, 3000), (200, 20), (3000, 200), (3000, 1)] {
        let scratch = Scratch::new();
        let data = scratch.data();
        let users = |prefix: &str, count: u32| {
            (0..count)
                .map(|n| event(&format!("{prefix}-{n}"), 1))
                .collect::<String>()
        };
        let server = Server::start(&data);
        server.accept(users("early", backup_users));
        server.stop().expect(0);
        fs::copy(data.join("revenue.db"), scratch.path().join("backup.db")).unwrap();
        let server = Server::start(&data);
        server.accept(users("between", 5000));
        server.stop().expect(0);
        let server = Server::start(&data);
        for round in 0..3 {
            let position = server.accept(users(&format!("late-{round}"), log_users));
            server
                .get(&format!(
                    "/userEvents/late-{round}-0?after={position}&wait=50s"
                ))
                .expect(200);
        }
        server.kill();
        assert!(data.join("revenue.db-wal").exists());
        fs::copy(scratch.path().join("backup.db"), data.join("revenue.db")).unwrap();
        rebuild(&data).expect(0);
        verify(&data).expect(0);
        assert_eq!(database(&data), recount(&data).users);
        assert!(!data.join("revenue.db-wal").exists());
        let server = Server::start(&data);
        server.flush();
        server.get("/readyz").expect(200);
        server.stop().expect(0);
    }
}

#[test]
fn process_reports_a_database_mixed_from_two_copies() {
    // Fails if `process` continues with such a database and exits with 0.
    let scratch = Scratch::new();
    mixed_from_two_copies(&scratch);
    let ran = run(&["process", "--data-dir", arg(&scratch.data())]).expect(1);
    assert!(ran.stderr.contains("--rebuild"), "{ran}");
}

#[test]
fn a_backup_put_in_place_of_an_open_database_is_caught_up() {
    // Fails if the server continues with the file that it had open, or counts anything twice.
    let scratch = Scratch::new();
    let data = scratch.data();
    segments(&scratch, 2);
    let backup = scratch.path().join("backup.db");
    fs::copy(data.join("revenue.db"), &backup).unwrap();
    let server = Server::with(&data, &["--flush-interval", "1h"]);
    server.accept(event("u", 1).repeat(5));
    server.flush();
    assert_eq!(server.get("/userEvents/u").expect(200).json()["events"], 7);
    fs::rename(&backup, data.join("revenue.db")).unwrap();
    // Detected within a second, whatever --flush-interval is.
    until(PATIENCE, "caught up", || {
        let shown = server.get("/userEvents/u");
        (shown.status == 200 && shown.json()["events"] == 7).then_some(())
    });
    fs::remove_file(data.join("revenue.db")).unwrap();
    until(PATIENCE, "made again", || {
        let shown = server.get("/userEvents/u");
        (shown.status == 200 && shown.json()["events"] == 7).then_some(())
    });
    server.assert_balanced();
    server.stop().expect(0);
    verify(&data).expect(0);
}

/// A server with four segments, of which retention has pruned the first three.
fn with_three_pruned(scratch: &Scratch) -> Server {
    let data = scratch.data();
    segments(scratch, 4);
    let server = Server::with(&data, &["--retention", "0s", "--flush-interval", "10ms"]);
    until(PATIENCE, "pruned", || {
        (archive(&data).len() == 1).then_some(())
    });
    server
}

#[test]
fn a_database_deleted_after_pruning_is_reported() {
    // Fails if pruned events are missing from the totals and `/readyz` still answers 200.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = with_three_pruned(&scratch);
    delete_database(&data);
    let reasons = until(PATIENCE, "/readyz reports them", || {
        let ready = server.get("/readyz");
        let text = ready.text();
        (ready.status == 503 && text.contains("1 to 3")).then_some(text)
    });
    assert!(
        reasons.contains("missing") || reasons.contains("no file"),
        "{reasons}"
    );
    server.stop().expect(0);
    assert_eq!(database(&data)["u"].1, 1);
    let ran = verify(&data).expect(1);
    assert!(ran.stdout.contains("1 to 3"), "{ran}");
}

#[test]
fn a_database_deleted_with_directory_json_after_pruning_is_logged() {
    // Fails if nothing says that the events of pruned segments are not counted any more. The segments have another
    // UUID now, and the totals agree with the files that are left.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = with_three_pruned(&scratch);
    server.stop().expect(0);
    delete_database(&data);
    fs::remove_file(data.join("directory.json")).unwrap();
    let ran = Server::start(&data).stop().expect(0);
    assert!(ran.stderr.contains("Segments 1 to 3 are not here"), "{ran}");
    let ran = Server::start(&data).stop().expect(0);
    assert!(!ran.stderr.contains("are not here"), "only once: {ran}");
}

#[test]
fn a_locked_database_delays_pruning_and_does_not_block_verify() {
    // Fails if a transaction of another program stops retention for good or blocks `verify`.
    let scratch = Scratch::new();
    let data = scratch.data();
    segments(&scratch, 4);
    let server = Server::with(&data, &["--flush-interval", "10ms"]);
    server.accept(event("u", 1));
    server.flush();
    server.stop().expect(0);
    let lock = Locked::database(&data);
    let flags = ["--retention", "0s", "--flush-interval", "10ms"];
    let server = Server::by(&data, &flags, tallyline); // it cannot open a locked database
    verify(&data).expect(0);
    server.accept(event("u", 1));
    assert_eq!(archive(&data).len(), 5);
    drop(lock);
    until(PATIENCE, "pruned", || {
        (archive(&data).len() <= 1).then_some(())
    });
    server.flush();
    server.stop().expect(0);
    assert_eq!(database(&data)["u"].1, 6);
    verify(&data).expect(0);
}

#[test]
fn a_missing_file_can_be_accepted_as_lost() {
    // Fails if `/readyz` answers 503 for ever after a file was lost, if the fix that it names does
    // not work, or if the lost events are reported as applied afterwards.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = Server::with(&data, &["--flush-interval", "1h"]);
    let applied = server.accept(event("u", 1));
    let look = |server: &Server, position: &str| {
        server.get(&format!("/userEvents/u?after={position}&wait=50s"))
    };
    look(&server, &applied).expect(200); // so that the database has a row of the segment
    let lost = server.accept(event("u", 1));
    server.kill();
    fs::remove_file(data.join("events.jsonl")).unwrap();
    let server = Server::start(&data);
    let reason = until(PATIENCE, "/readyz reports the missing file", || {
        let reply = server.get("/readyz");
        (reply.status == 503).then(|| reply.text())
    });
    let (_, named) = reason.split_once("put an empty file ").expect(&reason);
    let name = named.split(' ').next().unwrap();
    server.stop();
    fs::write(data.join("quarantine").join(name), "").unwrap();
    let server = Server::start(&data);
    server.flush();
    server.get("/readyz").expect(200);
    look(&server, &lost).problem(410);
    look(&server, &applied).expect(200);
    server.assert_balanced();
    server.stop();
    verify(&data).expect(1); // the only file of the segment is deleted
}
