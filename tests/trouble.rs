//! A database that is locked, deleted, replaced or restored, and files changed while a server runs
//! or is stopped: ingestion continues, `/readyz` reports the reason, and no total is silently
//! wrong.

use std::fs;
use std::path::Path;

use rusqlite::Connection;

use super::harness::{
    PATIENCE, Scratch, Server, arg, database, event, files_below, names_in, recount, run, until,
};

/// Waits until `/readyz` answers 503; returns the reasons.
#[track_caller]
fn until_not_ready(server: &Server) -> String {
    until(PATIENCE, "/readyz answers 503", || {
        let ready = server.get("/readyz");
        (ready.status == 503).then(|| ready.text())
    })
}

#[track_caller]
fn until_ready(server: &Server) {
    until(PATIENCE, "/readyz answers 200", || {
        (server.get("/readyz").status == 200).then_some(())
    });
}

/// A stopped data directory in which user u has `count` events in one fully applied segment.
fn stopped_with(scratch: &Scratch, count: usize) {
    let server = Server::start(&scratch.data());
    server.accept(event("u", 1).repeat(count));
    server.stop().expect(0);
}

#[test]
fn a_locked_database_does_not_stop_ingestion() {
    // Fails if an open transaction of another program leads to rejected events or lost totals.
    let scratch = Scratch::new();
    let (server, db) = Server::with_database_locked(&scratch.data());
    for _ in 0..50 {
        server.accept(event("u", 1));
    }
    server.post("/flush?wait=100ms", "").problem(503);
    assert_eq!(server.get("/userEvents/u").expect(200).json()["events"], 1);
    drop(db);
    server.flush();
    assert_eq!(server.get("/userEvents/u").expect(200).json()["events"], 51);
    until_ready(&server);
    server.assert_balanced();
}

#[test]
fn an_invalid_database_stops_only_applying() {
    // Fails if a broken database leads to rejected events, is overwritten, or is not reported.
    let scratch = Scratch::new();
    scratch.file("data/revenue.db", "this is not a database".repeat(100));
    let server = Server::start(&scratch.data());
    let reasons = until_not_ready(&server);
    assert!(reasons.contains("revenue.db"), "{reasons}");
    server.accept(event("u", 1));
    let left = fs::read_to_string(scratch.data().join("revenue.db")).unwrap();
    assert!(left.starts_with("this is not"), "left unchanged");
    server.kill();
    fs::remove_file(scratch.data().join("revenue.db")).unwrap();
    let server = Server::start(&scratch.data());
    server.flush();
    assert_eq!(server.get("/userEvents/u").expect(200).json()["events"], 1);
}

#[test]
fn a_database_of_a_newer_version_is_rejected() {
    // Fails if an older program writes into a schema of a newer version.
    let scratch = Scratch::new();
    stopped_with(&scratch, 1);
    let path = scratch.data().join("revenue.db");
    let db = Connection::open(&path).unwrap();
    db.execute_batch("PRAGMA user_version = 9999").unwrap();
    drop(db);
    let before = fs::read(&path).unwrap();
    scratch.file("data/events_more.jsonl", event("u", 1));
    let ran = run(&["process", "--data-dir", arg(&scratch.data())]).expect(1);
    assert!(ran.stderr.contains("9999"), "{ran}");
    let after = fs::read(&path).unwrap();
    let changed: Vec<_> = (0..before.len().min(after.len()))
        .filter(|&at| before[at] != after[at])
        .collect();
    assert!(
        after == before,
        "untouched: {} {} {changed:?}",
        before.len(),
        after.len()
    );
}

#[test]
fn a_database_deleted_while_the_server_runs_is_rebuilt() {
    // Fails if the server continues to write into a deleted file.
    let scratch = Scratch::new();
    let server = Server::with(&scratch.data(), &["--flush-interval", "10ms"]);
    server.accept(event("u", 1).repeat(10));
    server.flush();
    for name in ["revenue.db", "revenue.db-wal", "revenue.db-shm"] {
        let _may_be_missing = fs::remove_file(scratch.data().join(name));
    }
    server.accept(event("u", 1));
    until(PATIENCE, "the database is rebuilt completely", || {
        let there = scratch.data().join("revenue.db").exists();
        let shown = server.get("/userEvents/u");
        (there && shown.status == 200 && shown.json()["events"] == 11).then_some(())
    });
    server.stop().expect(0);
    assert_eq!(database(&scratch.data())["u"], (11_000_000, 11));
}

#[test]
fn an_older_backup_is_caught_up_from_the_files() {
    // Fails if restoring a backup loses later events, or counts any event twice.
    let scratch = Scratch::new();
    stopped_with(&scratch, 3);
    let db = scratch.data().join("revenue.db");
    let backup = scratch.path().join("backup.db");
    fs::copy(&db, &backup).unwrap();
    stopped_with(&scratch, 4);
    assert_eq!(database(&scratch.data())["u"].1, 7);
    fs::copy(&backup, &db).unwrap();
    assert_eq!(database(&scratch.data())["u"].1, 3);
    stopped_with(&scratch, 5);
    assert_eq!(database(&scratch.data())["u"].1, 12);
    run(&["verify", "--data-dir", arg(&scratch.data())]).expect(0);
}

/// Overwrites the start of a file with other bytes of the same length.
fn overwrite(path: &Path, old: &str, new: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(old.len() == new.len() && text.contains(old));
    fs::write(path, text.replacen(old, new, 1)).unwrap();
}

#[test]
fn nothing_is_applied_behind_a_changed_prefix() {
    // Fails if the next range is applied although the prefix of the file is not the one that was
    // counted.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let position = server.accept(event("u", 1).repeat(5));
    server
        .get(&format!("/userEvents/u?after={position}&wait=50s"))
        .expect(200);
    server.kill();
    let active = scratch.data().join("events.jsonl");
    overwrite(&active, "\"value\":1", "\"value\":9");
    let server = Server::start(&scratch.data());
    let reasons = until_not_ready(&server);
    assert!(reasons.contains("another content"), "{reasons}");
    // Ingestion continues in the next segment, which is applied.
    let next = server.accept(event("v", 1));
    assert!(next.starts_with("2-"), "{next}");
    let shown = server.get(&format!("/userEvents/v?after={next}&wait=50s"));
    assert_eq!(shown.expect(200).json()["events"], 1);
    assert_eq!(server.get("/userEvents/u").expect(200).json()["revenue"], 5);
    server.assert_balanced();
}

#[test]
fn verify_reports_a_changed_archived_file() {
    // Fails if `verify` compares the stored figures only and does not read the files.
    let scratch = Scratch::new();
    stopped_with(&scratch, 5);
    let archived = files_below(&scratch.data().join("applied")).remove(0);
    overwrite(&archived, "\"value\":1", "\"value\":2");
    let ran = run(&["verify", "--data-dir", arg(&scratch.data())]).expect(1);
    let reported = format!("{}{}", ran.stdout, ran.stderr);
    assert!(reported.contains("000001"), "{ran}");
}

#[test]
fn a_missing_segment_is_reported() {
    // Fails if a gap in the numbers is not reported once the database is deleted, too.
    let scratch = Scratch::new();
    for _ in 0..3 {
        stopped_with(&scratch, 1);
    }
    let files = files_below(&scratch.data().join("applied"));
    assert_eq!(files.len(), 3);
    fs::remove_file(&files[1]).unwrap();
    fs::remove_file(scratch.data().join("revenue.db")).unwrap();
    let server = Server::start(&scratch.data());
    let reasons = until_not_ready(&server);
    assert!(reasons.contains("segment 2"), "{reasons}");
}

#[test]
fn an_applied_file_moved_out_of_the_archive_is_not_counted_again() {
    // Fails if an applied segment that is moved back out of the archive is counted again.
    let scratch = Scratch::new();
    stopped_with(&scratch, 5);
    let archived = files_below(&scratch.data().join("applied")).remove(0);
    let name = archived.file_name().unwrap();
    fs::rename(&archived, scratch.data().join(name)).unwrap();
    stopped_with(&scratch, 1);
    assert_eq!(database(&scratch.data())["u"].1, 6);
    assert_eq!(recount(&scratch.data()).users, database(&scratch.data()));
    let sealed = names_in(&scratch.data());
    assert!(
        !sealed.iter().any(|name| name.starts_with("events-")),
        "archived again: {sealed:?}"
    );
}

#[test]
fn moving_the_active_file_of_a_running_server_stops_acknowledgements() {
    // Fails if lines are acknowledged into a file that is no longer at its path.
    let scratch = Scratch::new();
    let server = Server::with(&scratch.data(), &["--flush-interval", "10ms"]);
    server.accept(event("u", 1));
    let active = scratch.data().join("events.jsonl");
    fs::rename(&active, scratch.data().join("mine.jsonl")).unwrap();
    let reasons = until_not_ready(&server);
    assert!(reasons.contains("events.jsonl"), "{reasons}");
    server.post("/liveEvent", event("u", 1)).problem(503);
}

#[test]
fn an_unknown_outcome_is_reported_as_unknown() {
    // Fails if an event that was written to a deleted file is acknowledged, or reported as surely
    // not stored.
    let scratch = Scratch::new();
    let server = Server::with(&scratch.data(), &["--flush-interval", "1h"]);
    server.accept(event("u", 1));
    fs::remove_file(scratch.data().join("events.jsonl")).unwrap();
    let unknown = server.post("/liveEvent", event("u", 1)).problem(503);
    assert_eq!(unknown["outcome"], "unknown", "{unknown}");
    let refused = server.post("/liveEvent", event("u", 1)).problem(503);
    assert!(
        refused["outcome"].is_null(),
        "nothing is written any more: {refused}"
    );
    until_not_ready(&server);
}

#[test]
fn reaching_max_disk_is_507_until_space_is_free() {
    // Fails if `--max-disk` is exceeded, or if a full disk needs a restart once there is free space
    // again.
    let scratch = Scratch::new();
    let ballast = scratch.file("data/ballast", vec![0; 900 << 10]);
    let server = Server::with(&scratch.data(), &["--max-disk", "1MiB", "--no-process"]);
    let big = event(&"x".repeat(200), 1).repeat(1000);
    let mut full = None;
    for _ in 0..10 {
        let reply = server.post("/liveEvent", &big);
        if reply.status != 202 {
            full = Some(reply);
            break;
        }
    }
    full.expect("full at some point").problem(507);
    let lines = server.counter("lines");
    fs::remove_file(ballast).unwrap();
    until(
        PATIENCE,
        "it accepts events again without a restart",
        || (server.post("/liveEvent", event("u", 1)).status == 202).then_some(()),
    );
    assert_eq!(server.counter("lines"), lines + 1);
    server.assert_balanced();
}

#[test]
fn a_shutdown_that_cannot_seal_the_active_segment_exits_with_1() {
    // Fails if the exit code says that the server stopped cleanly although events.jsonl is not sealed.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = Server::start(&data);
    server.accept(event("u", 1));
    let (active, away) = (data.join("events.jsonl"), scratch.path().join("away"));
    fs::rename(&active, &away).unwrap();
    let stopped = server.stop().expect(1);
    let error = format!(
        "error: cannot seal the active segment at shutdown: {}",
        active.display()
    );
    assert!(stopped.stderr.contains(&error), "{stopped}");
    assert!(
        stopped
            .stderr
            .contains("The next start or `tallyline process`"),
        "{stopped}"
    );
    fs::rename(away, active).unwrap();
    let again = Server::start(&data);
    again.flush();
    assert_eq!(again.get("/userEvents/u").expect(200).json()["events"], 1);
    let stopped = again.stop().expect(0);
    assert!(!stopped.stderr.contains("error:"), "{stopped}");
}

#[test]
fn a_shutdown_that_cannot_apply_everything_exits_with_1() {
    // Fails if the server stops as if everything were applied while another program has the database locked,
    // or if the events are lost.
    let scratch = Scratch::new();
    let data = scratch.data();
    let (server, db) = Server::with_database_locked(&data);
    server.accept(event("u", 1));
    let stopped = server.stop().expect(1);
    let error = "error: cannot apply all acknowledged events at shutdown: database ";
    assert!(stopped.stderr.contains(error), "{stopped}");
    assert!(stopped.stderr.contains("locked"), "{stopped}");
    assert!(stopped.stderr.contains("the next start"), "{stopped}");
    drop(db);
    run(&["process", "--data-dir", arg(&data)]).expect(0);
    assert_eq!(database(&data), recount(&data).users);
    assert_eq!(recount(&data).users["u"].1, 2);
}
