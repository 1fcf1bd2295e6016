//! Other programs' hands on the database beside a running server: they open and close it, remove or
//! replace its files, write into it. Nothing acknowledged is lost or counted twice, and whatever can
//! be wrong is said.
//!
//! This process is the other program: POSIX locks belong to a process, and the server is another.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rusqlite::Connection;
use rustix::process::Signal;

use super::harness::{
    PATIENCE, Process, Scratch, Server, arg, database, event, files_below, names_in, run,
    tallyline, until,
};

/// An outside reader that opens the database, reads, and closes it. The last to close a database
/// moves its WAL into it and removes it: this one must not take itself for the last.
fn look_in(data: &Path) -> u64 {
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

/// POST, and wait until it is in the totals.
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
    until(PATIENCE, "readiness turns green", || {
        (server.get("/readyz").status == 200).then_some(())
    });
}

#[track_caller]
fn until_logged(server: &Server, words: &str) {
    until(PATIENCE, &format!("the log says: {words}"), || {
        server.process.stderr().contains(words).then_some(())
    });
}

/// SQLite's locks of the server on the database and its -shm, as the kernel has them: kind, access
/// and bytes.
fn locks(server: &Server) -> Vec<String> {
    use std::os::unix::fs::MetadataExt as _;
    let inode = |name: &str| fs::metadata(server.data.join(name)).unwrap().ino();
    let files = ["revenue.db", "revenue.db-shm"].map(|name| (name, inode(name)));
    let pid = server.process.id().to_string();
    let mut locks: Vec<String> = fs::read_to_string("/proc/locks")
        .unwrap()
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [_, "POSIX", _, access, by, file, from, to] = fields[..] else {
                return None;
            };
            let (name, _) = files
                .iter()
                .find(|(_, inode)| file.ends_with(&format!(":{inode}")))?;
            (by == pid).then(|| format!("{name} {access} {from}-{to}"))
        })
        .collect();
    locks.sort();
    locks.dedup();
    locks
}

#[test]
fn an_outside_reader_after_a_scrape_leaves_the_wal_where_it_is() {
    // Red if the server opens and closes its own database files, which drops SQLite's locks on them.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = Server::start(&data);
    applied(&server, event("user1", 1));
    for _ in 0..3 {
        server.get("/metrics").expect(200);
        assert!(look_in(&data) > 0);
        run(&["query", "--data-dir", arg(&data), "user1"]).expect(0);
        assert!(wal(&data).exists(), "the last user has not left");
        applied(&server, event("user1", 1));
    }
    assert_eq!(events_of(&server, "user1"), 4);
    assert_eq!(look_in(&data), 4);
    run(&["verify", "--data-dir", arg(&data)]).expect(0);
    server.kill();
    assert_eq!(look_in(&data), 4, "what was acknowledged as applied is");
}

#[track_caller]
fn same(server: &Server, before: &[String], after: &str) {
    // A statement that runs just now has locks of its own besides.
    until(
        PATIENCE,
        &format!("the locks are there after {after}"),
        || {
            let now = locks(server);
            before.iter().all(|lock| now.contains(lock)).then_some(())
        },
    );
}

#[test]
fn the_locks_on_the_database_are_the_same_whatever_the_server_does() {
    // Red if any path through the server closes a descriptor of the database or its -shm: by name,
    // by listing, through a link, at the limit of the disk, in a rotation, in a prune, at SIGHUP.
    let scratch = Scratch::new();
    let data = scratch.data();
    fs::create_dir_all(data.join("quarantine")).unwrap();
    let tokens = scratch.file("tokens", "secret-token-of-this-test\n");
    let flags = [
        "--max-disk",
        "3MiB",
        "--rotate-interval",
        "50ms",
        "--retention",
        "100ms",
        "--flush-interval",
        "10ms",
        "--token-file",
        arg(&tokens),
    ];
    let server = Server::with(&data, &flags);
    let ask = |method: &str, target: &str, body: &str| {
        let token = "Bearer secret-token-of-this-test";
        let request = super::harness::http::Request::new(method, target);
        server.ask(&request.header("Authorization", token).body(body))
    };
    let one = event("user1", 1);
    ask("POST", "/liveEvent?ack=applied", &one).expect(200);
    ask("GET", "/userEvents/user1", "").expect(200);
    let before = locks(&server);
    assert!(
        before.iter().any(|lock| lock.starts_with("revenue.db ")),
        "{before:?}"
    );
    assert!(
        before.iter().any(|lock| lock.contains("-shm")),
        "{before:?}"
    );
    for target in [
        "/userEvents/user1",
        "/users",
        "/segments",
        "/rejected",
        "/status",
        "/metrics",
        "/readyz",
        "/",
    ] {
        ask("GET", target, "");
        same(&server, &before, target);
    }
    ask("POST", "/flush", "").expect(200);
    same(&server, &before, "/flush");

    // Names of segments that lead to the database: listed, archived, verified.
    for (name, of) in [
        ("events_hard.jsonl", "revenue.db"),
        ("events_hard_shm.jsonl", "revenue.db-shm"),
        ("quarantine/events_hard.jsonl", "revenue.db-wal"),
    ] {
        fs::hard_link(data.join(of), data.join(name)).unwrap();
    }
    std::os::unix::fs::symlink(data.join("revenue.db"), data.join("events_soft.jsonl")).unwrap();
    until(PATIENCE, "the names are reported", || {
        let said = ask("GET", "/readyz", "").text();
        (said.contains("events_hard.jsonl") && said.contains("events_soft.jsonl")).then_some(())
    });
    for _ in 0..3 {
        ask("GET", "/metrics", "").expect(200);
    }
    same(&server, &before, "links");
    for name in [
        "events_hard.jsonl",
        "events_hard_shm.jsonl",
        "events_soft.jsonl",
    ] {
        fs::remove_file(data.join(name)).unwrap();
    }
    fs::remove_file(data.join("quarantine/events_hard.jsonl")).unwrap();

    server.process.signal(Signal::HUP);
    until_logged(&server, "tokens are in force");
    same(&server, &before, "SIGHUP");

    // Load, with rotations and prunes, up to the limit.
    until(PATIENCE, "segments are pruned", || {
        ask("POST", "/liveEvent?ack=applied", &one);
        let said = server.process.stderr();
        (said.matches("pruned").count() > 3).then_some(())
    });
    same(&server, &before, "prunes");
    let many = one.repeat(20_000);
    until(PATIENCE, "--max-disk is reached", || {
        (ask("POST", "/liveEvent", &many).status == 507).then_some(())
    });
    same(&server, &before, "--max-disk");
    drop(server);
}

#[test]
fn an_outside_reader_that_comes_and_goes_changes_nothing() {
    // Red if retention, load and kill -9 together with an outside reader lose what was acknowledged.
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
        let reader = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                look_in(&data);
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
        stop.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
    let server = Server::start(&data);
    server.flush();
    assert_eq!(events_of(&server, "u"), acknowledged);
    server.stop().expect(0);
    run(&["verify", "--data-dir", arg(&data)]).expect(0);
}

#[test]
fn a_wal_removed_or_replaced_is_noticed_and_nothing_is_lost() {
    // Red if the server goes on writing into a -wal that nobody can see, adopts one that is not its
    // own, or prunes on the word of a commit that is in no file.
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
            let said = format!("{retain:?} {replaced}");
            assert_eq!(look_in(&data), 12, "{said}");
            server.kill();
            assert_eq!(look_in(&data), 12, "{said}");
            let server = Server::start(&data);
            assert_eq!(events_of(&server, "u"), 12, "{said}");
            server.stop().expect(0);
            run(&["verify", "--data-dir", arg(&data)]).expect(0);
            let aside = names_in(&data)
                .iter()
                .any(|name| name.starts_with("revenue.db-wal.aside"));
            assert_eq!(aside, replaced, "{said}");
        }
    }
}

#[test]
fn a_shm_removed_keeps_what_the_wal_has() {
    // Red if the -wal, which alone has the last commits, is removed or set aside with the -shm.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = Server::start(&data);
    applied(&server, event("u", 1).repeat(5));
    fs::remove_file(data.join("revenue.db-shm")).unwrap();
    until_logged(&server, "revenue.db-shm was removed");
    until_ready(&server);
    assert_eq!(look_in(&data), 5);
    applied(&server, event("u", 1));
    assert_eq!(look_in(&data), 6);
    server.stop().expect(0);
    assert_eq!(database(&data)["u"].1, 6);
    assert!(names_in(&data).iter().all(|name| !name.contains("aside")));
}

#[test]
fn a_backup_restored_into_the_idle_database_is_caught_up() {
    // Red if a database that another program wrote into is believed to be what it was, until the
    // next event comes.
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
        // What `.restore` of sqlite3 does.
        let from = Connection::open(&old).unwrap();
        let mut to = Connection::open(data.join("revenue.db")).unwrap();
        let backup = rusqlite::backup::Backup::new(&from, &mut to).unwrap();
        backup
            .run_to_completion(1000, Duration::ZERO, None)
            .unwrap();
    }
    until_logged(&server, "another program changed it");
    until_events(&server, "u", 9);
    assert_eq!(look_in(&data), 9);
    until_ready(&server);
    server.stop().expect(0);
    run(&["verify", "--data-dir", arg(&data)]).expect(0);
}

#[test]
fn a_database_written_over_in_place_under_an_idle_server_is_caught_up() {
    // Red if only names and SQLite's own counters say whether the file is still the same: `cat`, `cp`
    // and `rsync --inplace` change neither.
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
            // What the -wal has is less than what the file had.
            applied(&server, event("w", 1));
        }
        fs::write(data.join("revenue.db"), fs::read(&old).unwrap()).unwrap();
        until_logged(&server, "overwrote the file in place");
        until_events(&server, "u", 9);
        until_events(&server, "v", 1);
        until_ready(&server);
        assert_eq!(look_in(&data), if checkpointed { 11 } else { 10 });
        applied(&server, event("u", 1));
        server.stop().expect(0);
        run(&["verify", "--data-dir", arg(&data)]).expect(0);
        assert_eq!(database(&data)["u"].1, 10);
    }
}

#[test]
fn a_database_that_was_only_touched_keeps_its_wal() {
    // Red if a new time of the file alone throws away what is committed in the -wal.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = Server::start(&data);
    applied(&server, event("u", 1).repeat(3));
    let size = fs::metadata(wal(&data)).unwrap().len();
    let file = fs::OpenOptions::new()
        .append(true)
        .open(data.join("revenue.db"))
        .unwrap();
    file.set_modified(std::time::SystemTime::now()).unwrap();
    until_logged(&server, "overwrote the file in place");
    until_ready(&server);
    assert!(fs::metadata(wal(&data)).unwrap().len() >= size);
    applied(&server, event("u", 1));
    assert_eq!(look_in(&data), 4);
    server.stop().expect(0);
    run(&["verify", "--data-dir", arg(&data)]).expect(0);
}

#[test]
fn triggers_on_our_tables_stop_the_applying_until_they_are_gone() {
    // Red if another program's trigger runs in the transaction that counts. Tables of its own are fine.
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
    let said = until(PATIENCE, "readiness turns red", || {
        let ready = server.get("/readyz");
        (ready.status == 503).then(|| ready.text())
    });
    assert!(
        said.contains("trigger spy on user_total") && said.contains("DROP TRIGGER"),
        "{said}"
    );
    server.accept(event("u", 1));
    assert_eq!(events_of(&server, "u"), 2, "reading goes on");
    assert_eq!(look_in(&data), 2);
    db.execute_batch("DROP TRIGGER spy").unwrap();
    drop(db);
    until_events(&server, "u", 3);
    until_ready(&server);
    server.stop().expect(0);
}

#[test]
fn a_user_version_changed_under_the_server_is_said() {
    // Red if the server goes on in a database that another program has made its own.
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
        until(PATIENCE, "readiness turns red", || {
            let ready = server.get("/readyz");
            (ready.status == 503 && ready.text().contains("7777")).then_some(())
        });
        db.pragma_update(None, "user_version", version).unwrap();
        db.pragma_update(None, "application_id", 0x7461_6C79)
            .unwrap();
        until_ready(&server);
    }
    applied(&server, event("u", 1));
    assert_eq!(look_in(&data), 2);
}

#[test]
fn the_size_of_the_data_directory_is_that_of_its_files() {
    // Red if what is appended, archived or pruned is not followed.
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
fn a_lock_on_the_directory_by_another_job_is_said() {
    // Red if `verify` hangs, or retention stalls, without a word of what holds it up.
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
    let said = format!("process {}", std::process::id());
    let mut verify = Process::start(&mut tallyline(&["verify", "--data-dir", arg(&data)]));
    for _ in 0..3 {
        // Each in a segment of its own: the newest is never pruned.
        applied(&server, event("u", 1));
        server.flush();
    }
    until(PATIENCE, "verify says what it waits for", || {
        assert!(verify.exited().is_none(), "it waits");
        verify.stderr().contains(&said).then_some(())
    });
    until_logged(&server, "nothing is pruned meanwhile");
    assert!(server.process.stderr().contains(&said));
    drop(held);
    verify.finish().expect(0);
    until_logged(&server, "pruned segment");
}
