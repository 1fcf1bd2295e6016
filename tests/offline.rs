//! `process`, `verify` and `query` without a server, on unusual or damaged files, directories and
//! databases: the exit code, and a message with the object, the path and the fix.

use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use rusqlite::Connection;

use super::harness::{
    PATIENCE, Process, Ran, Scratch, Server, arg, database, event, files_below, names_in, run,
    tallyline, until,
};

#[track_caller]
fn process(data: &Path, files: &[&Path]) -> Ran {
    let mut args = vec!["process", "--data-dir", arg(data)];
    args.extend(files.iter().map(|file| arg(file)));
    run(&args)
}

#[track_caller]
fn verify(data: &Path) -> Ran {
    run(&["verify", "--data-dir", arg(data)])
}

#[track_caller]
fn query(data: &Path, user: &str) -> Ran {
    run(&["query", user, "--data-dir", arg(data)])
}

#[track_caller]
fn assert_says(ran: &Ran, texts: &[&str]) {
    let reported = format!("{}{}", ran.stdout, ran.stderr);
    for text in texts {
        assert!(reported.contains(text), "{text:?} is missing: {ran}");
    }
}

/// A data directory in which one event of user u is applied, from `x.jsonl`.
fn applied(scratch: &Scratch) -> PathBuf {
    let file = scratch.file("x.jsonl", event("u", 1));
    process(&scratch.data(), &[&file]).expect(0);
    scratch.data()
}

fn sql(data: &Path, statement: &str) {
    let db = Connection::open(data.join("revenue.db")).unwrap();
    db.execute_batch(statement).unwrap();
}

/// The archive directory of the current month.
fn month(data: &Path) -> PathBuf {
    let printed = Command::new("date").args(["-u", "+%Y-%m"]).output();
    let name = String::from_utf8(printed.unwrap().stdout).unwrap();
    data.join("applied").join(name.trim())
}

#[test]
fn a_file_generated_by_the_kernel_is_rejected_unread() {
    // Fails if a size of 0 of such a file is trusted, so that its content is silently lost and its
    // name is used up, or if reading it blocks forever (`/proc/kmsg`).
    let scratch = Scratch::new();
    let data = applied(&scratch);
    for path in ["/proc/self/status", "/sys/kernel/mm/ksm/run", "/proc/kmsg"] {
        if Path::new(path).exists() {
            let ran = process(&data, &[Path::new(path)]).expect(1);
            assert_says(
                &ran,
                &[path, "which the kernel generates", "copy its content"],
            );
        }
    }
    symlink("/proc/self/status", data.join("events_proc.jsonl")).unwrap();
    let ran = process(&data, &[]).expect(3);
    assert_says(&ran, &["events_proc.jsonl", "procfs"]);
    verify(&data).expect(0);
}

#[test]
fn a_relative_symlink_is_still_valid_after_it_is_archived() {
    // Fails if the archive gets a broken link, so that the events are in no file any more.
    for by_server in [false, true] {
        let scratch = Scratch::new();
        let data = applied(&scratch);
        scratch.file("far.jsonl", event("far", 1));
        symlink("../far.jsonl", data.join("events_far.jsonl")).unwrap();
        if by_server {
            let server = Server::with(&data, &["--flush-interval", "10ms"]);
            until(PATIENCE, "it is applied", || {
                (server.get("/userEvents/far").status == 200).then_some(())
            });
            server.flush();
            server.get("/readyz").expect(200);
            server.stop().expect(0);
        } else {
            process(&data, &[]).expect(0);
        }
        verify(&data).expect(0);
        process(&data, &[]).expect(0);
        run(&["process", "--rebuild", "--data-dir", arg(&data)]).expect(0);
        assert_eq!(database(&data)["far"].1, 1, "by server: {by_server}");
    }
}

#[test]
fn a_file_that_cannot_be_archived_is_reported_as_counted() {
    // Fails if the file is only reported as rejected although it was counted: importing it under
    // another name would count it twice.
    let scratch = Scratch::new();
    let data = scratch.data();
    let in_the_way = month(&data);
    fs::create_dir_all(in_the_way.parent().unwrap()).unwrap();
    fs::write(&in_the_way, "").unwrap();
    let file = scratch.file("x.jsonl", event("u", 1));
    for files in [&[file.as_path()][..], &[]] {
        let ran = process(&data, files).expect(1);
        assert_says(
            &ran,
            &[
                "cannot move",
                "events_x.jsonl to",
                "its events are counted",
                arg(&in_the_way),
                "Not a directory",
                "do not import it under another name",
            ],
        );
        assert_eq!(database(&data)["u"].1, 1);
    }
    fs::remove_file(&in_the_way).unwrap();
    process(&data, &[]).expect(0);
    assert_eq!(names_in(&in_the_way), ["events_x.jsonl"]);
    verify(&data).expect(0);
}

#[test]
fn the_directory_that_cannot_be_listed_is_named() {
    // Fails if the data directory is named instead of the subdirectory.
    let scratch = Scratch::new();
    let data = applied(&scratch);
    let archive = data.join("applied");
    fs::rename(&archive, scratch.path().join("moved")).unwrap();
    fs::write(&archive, "").unwrap();
    for ran in [process(&data, &[]).expect(1), verify(&data).expect(1)] {
        assert_says(&ran, &[&format!("{}: Not a directory", arg(&archive))]);
    }
}

#[test]
fn a_file_name_that_becomes_too_long_is_rejected_with_a_fix() {
    // Fails if only the system's "File name too long" is printed, or if the suggested fix does not
    // work.
    let scratch = Scratch::new();
    let data = applied(&scratch);
    for length in [242, 243, 249] {
        let long = scratch.file(&format!("{}.jsonl", "n".repeat(length)), event("n", 1));
        let ran = process(&data, &[&long]).expect(1);
        assert_says(&ran, &["name is too long", "255", "shorter name"]);
    }
    let short = scratch.file(&format!("{}.jsonl", "n".repeat(237)), event("n", 1));
    process(&data, &[&short]).expect(0);
    assert_eq!(database(&data)["n"].1, 1);
}

#[test]
fn a_failed_copy_names_its_destination() {
    // Fails if only the source is named, which is not what is full.
    let scratch = Scratch::new();
    let data = applied(&scratch);
    let line = event("big", 1).repeat(20_000);
    let array = format!("[{}]", line.trim_end().replace('\n', ","));
    for (name, content) in [("big.jsonl", line), ("array.jsonl", array)] {
        let file = scratch.file(name, content);
        let script = "ulimit -f 200; exec \"$0\" \"$@\"";
        let mut command = Command::new("bash");
        command.args(["-c", script, env!("CARGO_BIN_EXE_tallyline")]);
        command.args(["process", "--data-dir", arg(&data), arg(&file)]);
        let ran = Process::start(&mut command).finish().expect(1);
        let part = data.join(format!("events_{name}.part"));
        assert_says(
            &ran,
            &[&format!("cannot write {}: File too large", arg(&part))],
        );
        assert!(!part.exists());
        process(&data, &[&file]).expect(0);
    }
    assert_eq!(database(&data)["big"].1, 40_000);
}

/// Creates another kind of file at a path.
type Put = fn(&Path);

#[test]
fn a_database_path_that_is_not_a_file_is_reported() {
    // Fails if only SQLite's "unable to open" or "disk I/O error" is printed, or if a read first
    // waits for the time-out of the pool.
    let scratch = Scratch::new();
    let data = applied(&scratch);
    let db = data.join("revenue.db");
    fs::rename(&db, scratch.path().join("moved.db")).unwrap();
    let put_there: [(&str, Put); 3] = [
        ("directory", |path| fs::create_dir(path).unwrap()),
        ("FIFO", |path| {
            assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
        }),
        ("character device", |path| {
            symlink("/dev/zero", path).unwrap();
        }),
    ];
    for (what, put) in put_there {
        put(&db);
        let text = format!("database {}: it is a {what}, not a regular file", arg(&db));
        for ran in [process(&data, &[]), verify(&data), query(&data, "u")] {
            let ran = ran.expect(1);
            assert_says(&ran, &[&text]);
            assert!(!ran.stderr.contains("timed out"), "{ran}");
        }
        fs::remove_file(&db)
            .or_else(|_| fs::remove_dir(&db))
            .unwrap();
    }
    process(&data, &[]).expect(0);
    verify(&data).expect(0);
}

/// Overwrites the first page of a table or index.
fn damage(data: &Path, name: &str) {
    let path = data.join("revenue.db");
    let (page, size): (u64, u64) = {
        let db = Connection::open(&path).unwrap();
        let root = "SELECT rootpage FROM sqlite_schema WHERE name = ?1";
        let page = db.query_row(root, [name], |row| row.get(0)).unwrap();
        let size = db.query_row("PRAGMA page_size", [], |row| row.get(0));
        (page, size.unwrap())
    };
    let mut file = File::options().write(true).open(&path).unwrap();
    file.seek(SeekFrom::Start((page - 1) * size)).unwrap();
    file.write_all(&vec![0x55; usize::try_from(size).unwrap()])
        .unwrap();
}

#[test]
fn a_damaged_database_is_reported_with_a_fix_that_works() {
    // Fails if the message names no fix, or one that does not work.
    for kind in ["header", "user_total", "event_id"] {
        let scratch = Scratch::new();
        let data = scratch.data();
        let id = r#"{"userId":"u","name":"add_revenue","value":1,"id":"k"}"#;
        let file = scratch.file("x.jsonl", format!("{}{id}\n", event("u", 1)));
        process(&data, &[&file]).expect(0);
        let db = data.join("revenue.db");
        match kind {
            "header" => fs::write(&db, "not a database").unwrap(),
            table => damage(&data, table),
        }
        let more = scratch.file("y.jsonl", id.replace("\"k\"", "\"l\""));
        for ran in [verify(&data), process(&data, &[&more])] {
            let cure = "move the file and its -wal and -shm away, and run `tallyline process`";
            assert_says(&ran.expect(1), &["revenue.db", "damaged", cure]);
        }
        for suffix in ["", "-wal", "-shm"] {
            let path = data.join(format!("revenue.db{suffix}"));
            if path.exists() {
                fs::rename(&path, scratch.path().join(format!("moved{suffix}"))).unwrap();
            }
        }
        process(&data, &[]).expect(0);
        verify(&data).expect(0);
        // If the database could be opened at all, `y.jsonl` was copied in before the failure.
        let kept = files_below(&data)
            .iter()
            .any(|path| arg(path).ends_with("events_y.jsonl"));
        assert_eq!(database(&data)["u"].1, 2 + u64::from(kept), "{kind}");
    }
}

#[test]
fn verify_detects_damage_outside_the_totals() {
    // Fails if `verify` reports a match although a page of the database is damaged that the next
    // run needs.
    for name in ["clock", "directory"] {
        let scratch = Scratch::new();
        let data = applied(&scratch);
        verify(&data).expect(0);
        damage(&data, name);
        let ran = verify(&data).expect(1);
        assert_says(&ran, &["revenue.db", "damaged"]);
    }
}

#[test]
fn query_rejects_a_database_of_a_newer_version_or_of_another_program() {
    // Fails if `query` reads tables of an unknown schema, or fails with "no such table".
    let scratch = Scratch::new();
    let data = applied(&scratch);
    sql(&data, "PRAGMA user_version = 99");
    assert_says(&query(&data, "u").expect(1), &["version 99 is newer"]);
    fs::remove_file(data.join("revenue.db")).unwrap();
    sql(&data, "CREATE TABLE t (a)");
    let ran = query(&data, "u").expect(1);
    assert_says(&ran, &["not a tallyline database", "revenue.db"]);
}

#[test]
fn process_waits_for_a_lock_when_it_opens_the_database() {
    // Fails if the message announces a retry and the program ends, or if it does not say what to
    // do.
    let scratch = Scratch::new();
    let data = applied(&scratch);
    let file = scratch.file("y.jsonl", event("y", 1));
    let db = Connection::open(data.join("revenue.db")).unwrap();
    db.execute_batch("BEGIN EXCLUSIVE").unwrap();
    assert_says(
        &verify(&data).expect(1),
        &["locked by another program", "end that transaction"],
    );
    let waiting = Process::start(&mut tallyline(&[
        "process",
        "--data-dir",
        arg(&data),
        arg(&file),
    ]));
    until(PATIENCE, "it says that it waits", || {
        waiting.stderr().contains("waiting").then_some(())
    });
    db.execute_batch("ROLLBACK").unwrap();
    drop(db);
    waiting.finish().expect(0);
    assert_eq!(database(&data)["y"].1, 1);
}

#[test]
fn verify_reports_a_file_that_cannot_be_opened_once() {
    // Fails if the same file is reported both as unreadable and as missing.
    let scratch = Scratch::new();
    let data = applied(&scratch);
    let file = month(&data).join("events_x.jsonl");
    fs::remove_file(&file).unwrap();
    symlink("/nowhere", &file).unwrap();
    let ran = verify(&data).expect(1);
    assert_says(&ran, &[arg(&file), "does not exist", "cannot be recounted"]);
    assert!(!ran.stdout.contains("is missing"), "{ran}");
}

#[test]
fn hard_links_of_one_file_count_once() {
    // Fails if a file is applied once for each of its names: both in the data directory, or one of them
    // in the archive.
    let scratch = Scratch::new();
    let data = scratch.data();
    fs::create_dir_all(&data).unwrap();
    let [a, b, c] = ["a", "b", "c"].map(|name| data.join(format!("events_{name}.jsonl")));
    fs::write(&a, event("u", 1)).unwrap();
    fs::hard_link(&a, &b).unwrap();
    let ran = process(&data, &[]).expect(1);
    assert_says(
        &ran,
        &[
            "events_b.jsonl: it is the same file as",
            "events_a.jsonl",
            "remove this name",
        ],
    );
    assert_eq!(database(&data)["u"].1, 1);
    fs::remove_file(&b).unwrap();
    fs::hard_link(month(&data).join("events_a.jsonl"), &c).unwrap();
    let server = Server::with(&data, &["--flush-interval", "10ms"]);
    until(PATIENCE, "readiness names the link", || {
        let ready = server.get("/readyz").text();
        ready
            .contains("events_c.jsonl: it is the same file as")
            .then_some(())
    });
    server.accept(event("v", 1));
    server.flush();
    server.stop().expect(0);
    assert_eq!(database(&data)["u"].1, 1);
    fs::remove_file(&c).unwrap();
    // A hard link from outside of the data directory is no second name in it.
    let outside = scratch.file("events_d.jsonl", event("w", 1));
    fs::hard_link(&outside, data.join("events_d.jsonl")).unwrap();
    process(&data, &[]).expect(0);
    assert_eq!(database(&data)["w"].1, 1);
    verify(&data).expect(0);
}

#[test]
fn a_deleted_segment_row_is_reported_and_its_file_not_counted_again() {
    // Fails if the archived file of a deleted row is applied again: its events would count twice.
    for imported in [true, false] {
        let scratch = Scratch::new();
        let data = scratch.data();
        for _ in 0..2 {
            if imported {
                applied(&scratch);
            } else {
                let server = Server::start(&data);
                server.accept(event("u", 1));
                server.stop().expect(0);
            }
        }
        let before = database(&data);
        sql(
            &data,
            "DELETE FROM segment WHERE key = (SELECT max(key) FROM segment)",
        );
        let ran = process(&data, &[]).expect(1);
        assert_says(
            &ran,
            &[
                "revenue.db",
                "segments were fully applied",
                "process --rebuild",
            ],
        );
        let server = Server::start(&data);
        until(PATIENCE, "readiness names the rows", || {
            let ready = server.get("/readyz").text();
            ready.contains("segments were fully applied").then_some(())
        });
        server.accept(event("v", 1));
        server.stop();
        assert_eq!(database(&data), before, "nothing was applied");
        run(&["process", "--rebuild", "--data-dir", arg(&data)]).expect(0);
        let after = database(&data);
        assert_eq!((after["u"], after["v"].1), (before["u"], 1));
        verify(&data).expect(0);
    }
}

#[test]
fn a_damaged_database_is_not_backed_up() {
    // Fails if `backup` copies damaged pages and reports success: the damage would be found only when the
    // backup is needed.
    let scratch = Scratch::new();
    let users: String = (0..3000)
        .map(|user| event(&format!("user{user}"), 1))
        .collect();
    let file = scratch.file("x.jsonl", users);
    let data = scratch.data();
    process(&data, &[&file]).expect(0);
    let mut database = File::options()
        .write(true)
        .open(data.join("revenue.db"))
        .unwrap();
    let pages = database.metadata().unwrap().len() / 4096;
    database.seek(SeekFrom::Start((pages - 1) * 4096)).unwrap();
    database.write_all(&[0xff; 4096]).unwrap();
    drop(database);
    let to = scratch.path().join("backup");
    let ran = run(&["backup", arg(&to), "--data-dir", arg(&data)]).expect(1);
    assert_says(&ran, &["revenue.db", "damaged", "process --rebuild"]);
    assert!(!to.exists() && !names_in(scratch.path()).contains(&"backup.part".to_owned()));
    run(&["process", "--rebuild", "--data-dir", arg(&data)]).expect(0);
    run(&["backup", arg(&to), "--data-dir", arg(&data)]).expect(0);
}
