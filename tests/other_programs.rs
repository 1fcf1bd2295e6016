//! Other programs that use the database of a running server: they open and close it, remove or
//! replace its files, or write to it. No acknowledged event is lost or counted twice, and every
//! possible inconsistency is reported.
//!
//! This process acts as the other program: POSIX locks belong to a process, and the server is
//! another one.

use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rusqlite::Connection;

use super::harness::{
    PATIENCE, Process, Scratch, Server, SetAtEnd, arg, database, event, files_below, names_in, run,
    tallyline, until,
};

/// Opens the database, reads, and closes it. The last connection of a database checkpoints its WAL
/// and removes it: this connection must not be treated as the last one.
fn read_and_close(data: &Path) -> u64 {
    let db = Connection::open(data.join("revenue.db")).unwrap();
    db.busy_timeout(PATIENCE).unwrap();
    db.query_row("SELECT ifnull(sum(events), 0) FROM user_total", [], |row| {
        row.get(0)
    })
    .unwrap()
}

fn wal(data: &Path) -> PathBuf {
    data.join("revenue.db-wal")
}

/// Posts an event and waits until the totals include it.
#[track_caller]
fn applied(server: &Server, body: impl AsRef<[u8]>) {
    server.post("/liveEvent?ack=applied", body).expect(200);
}

#[track_caller]
fn events_of(server: &Server, user: &str) -> u64 {
    let shown = server.get(&format!("/userEvents/{user}")).expect(200);
    shown.json()["events"].as_u64().unwrap()
}

#[track_caller]
fn until_events(server: &Server, user: &str, events: u64) {
    until(PATIENCE, "the total is right", || {
        let shown = server.get(&format!("/userEvents/{user}"));
        (shown.status == 200 && shown.json()["events"] == events).then_some(())
    });
}

#[track_caller]
fn until_ready(server: &Server) {
    until(PATIENCE, "/readyz answers 200", || {
        (server.get("/readyz").status == 200).then_some(())
    });
}

#[track_caller]
fn until_logged(server: &Server, text: &str) {
    until(PATIENCE, &format!("the log contains: {text}"), || {
        server.process.stderr().contains(text).then_some(())
    });
}

#[test]
fn an_outside_reader_after_a_scrape_does_not_remove_the_wal() {
    // Fails if the server opens and closes files of its own database, which drops SQLite's locks on
    // them.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = Server::start(&data);
    applied(&server, event("user1", 1));
    for _ in 0..3 {
        server.get("/metrics").expect(200);
        assert!(read_and_close(&data) > 0);
        run(&["query", "--data-dir", arg(&data), "user1"]).expect(0);
        assert!(wal(&data).exists(), "the last user is still there");
        applied(&server, event("user1", 1));
    }
    assert_eq!(events_of(&server, "user1"), 4);
    assert_eq!(read_and_close(&data), 4);
    run(&["verify", "--data-dir", arg(&data)]).expect(0);
    server.kill();
    assert_eq!(
        read_and_close(&data),
        4,
        "what was acknowledged as applied is applied"
    );
}

#[test]
fn an_outside_reader_that_opens_and_closes_the_database_changes_nothing() {
    // Fails if retention, load and kill -9 together with an outside reader lose acknowledged
    // events.
    let scratch = Scratch::new();
    let data = scratch.data();
    let flags = [
        "--rotate-interval",
        "30ms",
        "--retention",
        "60ms",
        "--flush-interval",
        "10ms",
    ];
    let stop = AtomicBool::new(false);
    let mut acknowledged = 0;
    Server::start(&data).stop().expect(0);
    thread::scope(|scope| {
        let stop_reader = SetAtEnd(&stop);
        let reader = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                read_and_close(&data);
            }
        });
        for _ in 0..4 {
            let server = Server::with(&data, &flags);
            for _ in 0..40 {
                applied(&server, event("u", 1));
                acknowledged += 1;
                server.get("/metrics").expect(200);
            }
            server.kill();
        }
        drop(stop_reader);
        reader.join().unwrap();
    });
    let server = Server::start(&data);
    server.flush();
    assert_eq!(events_of(&server, "u"), acknowledged);
    server.stop().expect(0);
    run(&["verify", "--data-dir", arg(&data)]).expect(0);
}

#[test]
fn a_wal_removed_or_replaced_is_detected_and_nothing_is_lost() {
    // Fails if the server continues to write into a deleted -wal, uses one that is not its own, or
    // prunes a file whose commit is in no file.
    for retain in [None, Some("1ms")] {
        for replaced in [false, true] {
            let scratch = Scratch::new();
            let data = scratch.data();
            let mut flags = vec!["--flush-interval", "10ms", "--rotate-interval", "20ms"];
            flags.extend(retain.iter().flat_map(|retain| ["--retention", retain]));
            let server = Server::with(&data, &flags);
            for _ in 0..6 {
                applied(&server, event("u", 1));
            }
            let old = fs::read(wal(&data)).unwrap();
            fs::remove_file(wal(&data)).unwrap();
            if replaced {
                fs::write(wal(&data), &old[..old.len() / 2]).unwrap();
            }
            let what = if replaced { "replaced" } else { "removed" };
            until_logged(&server, &format!("revenue.db-wal was {what}"));
            for _ in 0..6 {
                server.accept(event("u", 1));
            }
            server.flush();
            until_events(&server, "u", 12);
            until_ready(&server);
            let case = format!("{retain:?} {replaced}");
            assert_eq!(read_and_close(&data), 12, "{case}");
            server.kill();
            assert_eq!(read_and_close(&data), 12, "{case}");
            let server = Server::start(&data);
            assert_eq!(events_of(&server, "u"), 12, "{case}");
            server.stop().expect(0);
            run(&["verify", "--data-dir", arg(&data)]).expect(0);
            let aside = names_in(&data)
                .iter()
                .any(|name| name.starts_with("revenue.db-wal.aside"));
            assert_eq!(aside, replaced, "{case}");
        }
    }
}

#[test]
fn a_wal_overwritten_in_place_is_detected_and_nothing_is_lost() {
    // Fails if the server appends to a -wal that another program has emptied: the next checkpoint
    // copies the hole over the database, and the pruned events are in no file.
    for emptied in [true, false] {
        for retention in ["1h", "1ms"] {
            let scratch = Scratch::new();
            let data = scratch.data();
            let flags = ["--flush-interval", "10ms", "--retention", retention];
            let server = Server::with(&data, &flags);
            for _ in 0..4 {
                applied(&server, event("u", 1));
            }
            let wal = fs::OpenOptions::new().write(true).open(wal(&data)).unwrap();
            if emptied {
                wal.set_len(0).unwrap();
            } else {
                let length = usize::try_from(wal.metadata().unwrap().len()).unwrap();
                wal.write_all_at(&vec![0; length], 0).unwrap();
            }
            for _ in 0..4 {
                server.accept(event("u", 1));
                server.flush();
            }
            until_logged(&server, "overwrote the file in place, or its -wal");
            until_events(&server, "u", 8);
            until_ready(&server);
            let case = format!("{emptied} {retention}");
            server.kill();
            assert_eq!(read_and_close(&data), 8, "{case}");
            let server = Server::start(&data);
            until_ready(&server);
            assert_eq!(events_of(&server, "u"), 8, "{case}");
            server.stop().expect(0);
            run(&["verify", "--data-dir", arg(&data)]).expect(0);
        }
    }
}

#[test]
fn removing_the_shm_loses_no_commit_of_the_wal() {
    // Fails if the -wal, which alone has the last commits, is removed or set aside with the -shm.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = Server::start(&data);
    applied(&server, event("u", 1).repeat(5));
    fs::remove_file(data.join("revenue.db-shm")).unwrap();
    until_logged(&server, "revenue.db-shm was removed");
    until_ready(&server);
    assert_eq!(read_and_close(&data), 5);
    applied(&server, event("u", 1));
    assert_eq!(read_and_close(&data), 6);
    server.stop().expect(0);
    assert_eq!(database(&data)["u"].1, 6);
    assert!(names_in(&data).iter().all(|name| !name.contains("aside")));
}

#[test]
fn a_backup_restored_into_the_idle_database_is_caught_up() {
    // Fails if a change of the database by another program is only detected when the next event
    // arrives.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = Server::start(&data);
    applied(&server, event("u", 1).repeat(3));
    let old = scratch.path().join("old.db");
    {
        let db = Connection::open(data.join("revenue.db")).unwrap();
        db.execute("VACUUM INTO ?1", [arg(&old)]).unwrap();
    }
    applied(&server, event("u", 1).repeat(6));
    {
        // The same as `.restore` of sqlite3.
        let from = Connection::open(&old).unwrap();
        let mut to = Connection::open(data.join("revenue.db")).unwrap();
        let backup = rusqlite::backup::Backup::new(&from, &mut to).unwrap();
        backup
            .run_to_completion(1000, Duration::ZERO, None)
            .unwrap();
    }
    until_logged(&server, "another program changed it");
    until_events(&server, "u", 9);
    assert_eq!(read_and_close(&data), 9);
    until_ready(&server);
    server.stop().expect(0);
    run(&["verify", "--data-dir", arg(&data)]).expect(0);
}

#[test]
fn an_open_transaction_of_another_program_is_not_taken_for_an_overwritten_file() {
    // Fails if what a transaction writes to the -wal before its commit is reported as written without SQLite.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = Server::start(&data);
    applied(&server, event("u", 1).repeat(3));
    let wal = data.join("revenue.db-wal");
    let before = fs::metadata(&wal).unwrap().len();
    let mut other = Connection::open(data.join("revenue.db")).unwrap();
    other.execute_batch("PRAGMA cache_size = 10").unwrap();
    let writing = other.transaction().unwrap();
    writing
        .execute_batch("CREATE TABLE notes AS SELECT randomblob(3000000) AS note")
        .unwrap();
    assert!(
        fs::metadata(&wal).unwrap().len() > before,
        "pages are in the -wal before the commit"
    );
    server.accept(event("u", 1));
    server.post("/flush?wait=300ms", "").problem(503);
    writing.commit().unwrap();
    until_logged(&server, "another program changed it");
    until_events(&server, "u", 4);
    until_ready(&server);
    let log = server.process.stderr();
    assert!(!log.contains("overwrote"), "{log}");
    server.stop().expect(0);
    run(&["verify", "--data-dir", arg(&data)]).expect(0);
}

#[test]
fn an_idle_server_detects_a_database_overwritten_in_place() {
    // Fails if only names and SQLite's own counters are checked: `cat`, `cp` and `rsync --inplace`
    // change neither.
    for checkpointed in [false, true] {
        let scratch = Scratch::new();
        let data = scratch.data();
        let server = Server::start(&data);
        applied(&server, event("u", 1).repeat(3));
        let old = scratch.path().join("old.db");
        {
            let db = Connection::open(data.join("revenue.db")).unwrap();
            db.execute("VACUUM INTO ?1", [arg(&old)]).unwrap();
        }
        applied(&server, event("u", 1).repeat(6));
        applied(&server, event("v", 1));
        if checkpointed {
            let db = Connection::open(data.join("revenue.db")).unwrap();
            db.query_row("PRAGMA wal_checkpoint(FULL)", [], |_| Ok(()))
                .unwrap();
            // The -wal contains less than the file did.
            applied(&server, event("w", 1));
        }
        fs::write(data.join("revenue.db"), fs::read(&old).unwrap()).unwrap();
        until_logged(&server, "overwrote the file in place");
        until_events(&server, "u", 9);
        until_events(&server, "v", 1);
        until_ready(&server);
        assert_eq!(read_and_close(&data), if checkpointed { 11 } else { 10 });
        applied(&server, event("u", 1));
        server.stop().expect(0);
        run(&["verify", "--data-dir", arg(&data)]).expect(0);
        assert_eq!(database(&data)["u"].1, 10);
    }
}

#[test]
fn a_database_overwritten_and_then_deleted_is_made_again() {
    // Fails if the server waits for ever until the file that was overwritten stops changing.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = Server::start(&data);
    applied(&server, event("u", 1).repeat(3));
    let database = data.join("revenue.db");
    until(PATIENCE, "the log reports the write", || {
        // As a slow copy does, until the server has noticed it.
        let file = fs::OpenOptions::new().append(true).open(&database).unwrap();
        file.set_modified(std::time::SystemTime::now()).unwrap();
        let noticed = server.process.stderr().contains("overwrote the file");
        noticed.then(|| fs::remove_file(&database).unwrap())
    });
    applied(&server, event("u", 1));
    until_ready(&server);
    assert_eq!(read_and_close(&data), 4);
    server.stop().expect(0);
    run(&["verify", "--data-dir", arg(&data)]).expect(0);
}

#[test]
fn a_database_that_was_only_touched_keeps_its_wal() {
    // Fails if a new modification time alone makes the server discard the commits in the -wal, also
    // where their ids are in blocks.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = Server::start(&data);
    applied(
        &server,
        ["run-000001", "run-000002", "other"]
            .map(|id| {
                format!(r#"{{"userId":"u","name":"add_revenue","value":1,"id":"{id}"}}"#) + "\n"
            })
            .concat(),
    );
    let wal_before = fs::metadata(wal(&data)).unwrap().ino();
    let size = fs::metadata(wal(&data)).unwrap().len();
    let file = fs::OpenOptions::new()
        .append(true)
        .open(data.join("revenue.db"))
        .unwrap();
    file.set_modified(std::time::SystemTime::now()).unwrap();
    until_logged(&server, "overwrote the file in place");
    until_ready(&server);
    let now = fs::metadata(wal(&data)).unwrap();
    assert!(now.len() >= size);
    assert_eq!(now.ino(), wal_before, "it is not another one");
    applied(&server, event("u", 1));
    assert_eq!(read_and_close(&data), 4);
    server.stop().expect(0);
    run(&["verify", "--data-dir", arg(&data)]).expect(0);
}

#[test]
fn triggers_on_our_tables_stop_applying_until_they_are_dropped() {
    // Fails if a trigger of another program runs in the transaction that applies. Tables of another
    // program are allowed.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = Server::start(&data);
    applied(&server, event("u", 1));
    let db = Connection::open(data.join("revenue.db")).unwrap();
    db.execute_batch("CREATE TABLE theirs (x); CREATE TRIGGER mine AFTER INSERT ON theirs BEGIN DELETE FROM theirs; END")
        .unwrap();
    applied(&server, event("u", 1));
    until_ready(&server);
    db.execute_batch(
        "CREATE TRIGGER spy AFTER UPDATE ON user_total BEGIN DELETE FROM event_id; END",
    )
    .unwrap();
    let reported = until(PATIENCE, "/readyz answers 503", || {
        let ready = server.get("/readyz");
        (ready.status == 503).then(|| ready.text())
    });
    assert!(
        reported.contains("trigger spy on user_total") && reported.contains("DROP TRIGGER"),
        "{reported}"
    );
    server.accept(event("u", 1));
    assert_eq!(events_of(&server, "u"), 2, "reads continue");
    assert_eq!(read_and_close(&data), 2);
    db.execute_batch("DROP TRIGGER spy").unwrap();
    drop(db);
    until_events(&server, "u", 3);
    until_ready(&server);
    server.stop().expect(0);
}

#[test]
fn a_changed_user_version_is_reported() {
    // Fails if the server continues with a database that another program has marked as its own.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = Server::start(&data);
    applied(&server, event("u", 1));
    let db = Connection::open(data.join("revenue.db")).unwrap();
    let version: i64 = db
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .unwrap();
    for changed in ["PRAGMA user_version = 7777", "PRAGMA application_id = 7777"] {
        db.execute_batch(changed).unwrap();
        until(PATIENCE, "/readyz answers 503", || {
            let ready = server.get("/readyz");
            (ready.status == 503 && ready.text().contains("7777")).then_some(())
        });
        db.pragma_update(None, "user_version", version).unwrap();
        db.pragma_update(None, "application_id", 0x7461_6C79)
            .unwrap();
        until_ready(&server);
    }
    applied(&server, event("u", 1));
    assert_eq!(read_and_close(&data), 2);
}

#[test]
fn the_size_of_the_data_directory_is_that_of_its_files() {
    // Fails if the reported size does not follow an append, an archive or a prune.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = Server::with(
        &data,
        &["--rotate-interval", "30ms", "--flush-interval", "10ms"],
    );
    for _ in 0..5 {
        applied(&server, event("u", 1).repeat(1000));
    }
    until(PATIENCE, "the metric agrees with the files", || {
        let text = server.get("/metrics").expect(200).text();
        let shown = text
            .lines()
            .find_map(|line| line.strip_prefix("tallyline_data_bytes "))?;
        let files = files_below(&data);
        let sum: u64 = files
            .iter()
            .map(|file| fs::metadata(file).map_or(0, |m| m.len()))
            .sum();
        (shown == sum.to_string()).then_some(())
    });
}

#[test]
fn a_lock_of_another_job_on_the_directory_is_reported() {
    // Fails if `verify` hangs, or retention stalls, and the log does not say which process holds
    // the lock.
    let scratch = Scratch::new();
    let data = scratch.data();
    let flags = [
        "--flush-interval",
        "10ms",
        "--rotate-interval",
        "20ms",
        "--retention",
        "1ms",
    ];
    let server = Server::with(&data, &flags);
    applied(&server, event("u", 1));
    let held = fs::File::open(&data).unwrap();
    held.lock().unwrap();
    let reported = format!("process {}", std::process::id());
    let mut verify = Process::start(&mut tallyline(&["verify", "--data-dir", arg(&data)]));
    for _ in 0..3 {
        // Each in its own segment: the newest segment is never pruned.
        applied(&server, event("u", 1));
        server.flush();
    }
    until(PATIENCE, "verify reports what it waits for", || {
        assert!(verify.exited().is_none(), "it waits");
        verify.stderr().contains(&reported).then_some(())
    });
    until_logged(&server, "nothing is pruned meanwhile");
    assert!(server.process.stderr().contains(&reported));
    drop(held);
    verify.finish().expect(0);
    until_logged(&server, "pruned segment");
}
