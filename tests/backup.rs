//! Backup and restore: beside a running server, over other files, killed, and with damaged files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use rusqlite::Connection;
use rustix::process::Signal;
use tallyline::data_dir::segment::label_in_name;

use super::harness::{
    PATIENCE, Process, Ran, Scratch, Server, SetAtEnd, arg, copy_tree, database, event,
    files_below, names_in, run, tallyline, until,
};

const ACTIVE: &str = "events.jsonl";

/// Revenue of user `u` in whole units, read from the database.
fn revenue(data: &Path) -> i128 {
    database(data)
        .get("u")
        .map_or(0, |total| total.0 / 1_000_000)
}

fn backup(data: &Path, to: &Path) -> Ran {
    run(&["backup", arg(to), "--data-dir", arg(data)])
}

fn restore(from: &Path, data: &Path) -> Ran {
    run(&["restore", arg(from), "--data-dir", arg(data)])
}

fn verify(data: &Path) -> Ran {
    run(&["verify", "--data-dir", arg(data)])
}

fn process(data: &Path) -> Ran {
    run(&["process", "--data-dir", arg(data)])
}

/// Posts `count` events of value 1 to a server that applies them, then stops the server.
fn add(data: &Path, events: u32) {
    let server = Server::start(data);
    for _ in 0..events {
        server.accept(event("u", 1));
    }
    server.flush();
    server.stop().expect(0);
}

/// The same, but the server is killed while the events are in the active file.
fn add_and_kill(data: &Path, events: u32) {
    let server = Server::start(data);
    for _ in 0..events {
        server.accept(event("u", 1));
    }
    server
        .post("/liveEvent?ack=applied", event("u", 1))
        .expect(200);
    server.kill();
}

/// Every file except the lock files, with its content.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = files_below(dir).into_iter();
    files
        .filter(|path| path.extension().is_none_or(|end| end != "lock"))
        .filter(|path| !path.to_str().unwrap().ends_with("-shm"))
        .map(|path| (path.clone(), fs::read(&path).unwrap()))
        .collect()
}

/// Asserts that the restored directory has `expected`, by `process`, by a rebuild and under a
/// server.
#[track_caller]
fn assert_exact(data: &Path, expected: i128) {
    process(data).expect(0);
    assert_eq!(revenue(data), expected);
    verify(data).expect(0);
    run(&["process", "--rebuild", "--data-dir", arg(data)]).expect(0);
    assert_eq!(revenue(data), expected, "rebuilt");
    let server = Server::start(data);
    server
        .post("/liveEvent?ack=applied", event("u", 1))
        .expect(200);
    assert_eq!(server.status()["reasons"].to_string(), "[]");
    server.stop().expect(0);
    assert_eq!(revenue(data), expected + 1, "the server continues");
    verify(data).expect(0);
}

#[test]
fn a_backup_under_load_contains_what_was_acknowledged_before_it() {
    under_load(5);
}

#[test]
#[ignore = "the same for longer"]
fn fifty_backups_under_load() {
    // Of ten directories: with a single one, the later backups would take minutes each.
    for _ in 0..10 {
        under_load(5);
    }
}

/// Fails if the files are copied before the database, the active file is left out, or a file is
/// missed that is sealed between listing and copying, or archived meanwhile.
fn under_load(rounds: usize) {
    let scratch = Scratch::new();
    let data = scratch.data();
    let flags = ["--rotate-interval", "100ms", "--flush-interval", "50ms"];
    let server = Server::with(&data, &flags);
    let (acknowledged, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let _stop_at_end = SetAtEnd(&stop);
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    server.accept(event("u", 1));
                    acknowledged.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        for round in 0..rounds {
            let more = acknowledged.load(Ordering::SeqCst) + 100;
            until(PATIENCE, "events come in", || {
                (acknowledged.load(Ordering::SeqCst) > more).then_some(())
            });
            let to = scratch.path().join(format!("backup-{round}"));
            let before = acknowledged.load(Ordering::SeqCst);
            let ran = run(&["backup", arg(&to), "--data-dir", arg(&data), "--verify"]);
            let after = acknowledged.load(Ordering::SeqCst) + 2;
            ran.expect(0);
            let restored = scratch.path().join(format!("restored-{round}"));
            restore(&to, &restored).expect(0);
            process(&restored).expect(0);
            let counted = u64::try_from(revenue(&restored)).unwrap();
            let agrees = verify(&restored);
            let exact = (before..=after).contains(&counted) && agrees.code == Some(0);
            assert!(exact, "{before} <= {counted} <= {after}: {agrees}");
            verify(&to).expect(0);
            fs::remove_dir_all(&to).unwrap();
            fs::remove_dir_all(&restored).unwrap();
        }
    });
    server.flush();
    server.stop().expect(0);
    let total = i128::from(acknowledged.load(Ordering::SeqCst));
    assert_eq!(revenue(&data), total, "the source is unchanged");
    verify(&data).expect(0);
}

#[test]
fn a_backup_is_a_plain_directory_and_does_not_change_its_source() {
    // Fails if a backup of a stopped directory changes it, contains more than its manifest lists,
    // or is changed by `verify`.
    let scratch = Scratch::new();
    let (data, to) = (scratch.data(), scratch.path().join("backup"));
    add(&data, 3);
    add_and_kill(&data, 2);
    fs::write(data.join("quarantine/kept"), "x").unwrap();
    let before = contents(&data);
    backup(&data, &to).expect(0);
    assert_eq!(contents(&data), before);
    assert!(to.join("quarantine/kept").exists());
    let names = names_in(&to);
    assert!(!names.iter().any(|name| name == ACTIVE), "{names:?}");
    let sealed = names.iter().filter(|name| label_in_name(name).is_some());
    assert_eq!(sealed.count(), 1, "the active one: {names:?}");
    assert!(!names.iter().any(|name| name.contains("-wal")), "{names:?}");
    let made = contents(&to);
    let ran = verify(&to).expect(0);
    assert!(ran.stdout.contains("matches its manifest"), "{ran}");
    assert_eq!(contents(&to), made);
    // The backup cannot be served by mistake, a second backup does not replace it, and none is made
    // inside the directory.
    let ran = process(&to).expect(1);
    assert!(ran.stderr.contains("is a backup"), "{ran}");
    let ran = run(&["serve", "--listen", "127.0.0.1:0", "--data-dir", arg(&to)]).expect(1);
    assert!(ran.stderr.contains("is a backup"), "{ran}");
    backup(&data, &to).expect(2);
    backup(&data, &data.join("applied/backup")).expect(2);
    assert_eq!(contents(&data), before);
    let data = scratch.path().join("restored");
    restore(&to, &data).expect(0);
    assert_exact(&data, 6);
}

#[test]
fn a_restore_over_newer_files_counts_later_events_too() {
    // Fails if a restore drops what was acknowledged after the backup, counts it twice, or deletes
    // the database that it replaces.
    for damage in [false, true] {
        let scratch = Scratch::new();
        let (data, to) = (scratch.data(), scratch.path().join("backup"));
        add(&data, 3);
        let server = Server::start(&data);
        server.accept(event("u", 1));
        backup(&data, &to).expect(0);
        server.accept(event("u", 1)); // the same segment continues
        let ran = restore(&to, &data).expect(1);
        assert!(ran.stderr.contains("serve.lock is held"), "{ran}");
        server.stop().expect(0);
        add(&data, 4);
        add_and_kill(&data, 2);
        if damage {
            fs::write(data.join("revenue.db"), "garbage").unwrap();
        }
        let old = fs::read(data.join("revenue.db")).unwrap();
        restore(&to, &data).expect(0);
        let quarantine = data.join("quarantine");
        let kept = names_in(&quarantine)
            .into_iter()
            .find(|name| name.starts_with("revenue.db-") && !name.contains("Z-"));
        let kept = fs::read(quarantine.join(kept.expect("the old database"))).unwrap();
        assert_eq!(kept, old);
        assert!(!data.join("revenue.db-wal").exists());
        restore(&to, &data).expect(0); // a second restore changes nothing
        assert_exact(&data, 12);
    }
}

#[test]
fn a_restore_over_an_older_copy_counts_the_backup() {
    // Fails if a file that holds the beginning of a segment replaces the segment, or is rejected as
    // a different one.
    let scratch = Scratch::new();
    let (data, old) = (scratch.data(), scratch.path().join("old"));
    add(&data, 3);
    add_and_kill(&data, 1);
    copy_tree(&data, &old);
    let first = scratch.path().join("first");
    backup(&data, &first).expect(0);
    add(&data, 4);
    add_and_kill(&data, 1);
    let to = scratch.path().join("backup");
    backup(&data, &to).expect(0);
    restore(&to, &old).expect(0);
    assert_exact(&old, 11);
    // Restore over what was restored from an earlier backup.
    let data = scratch.path().join("again");
    restore(&first, &data).expect(0);
    restore(&to, &data).expect(0);
    assert_exact(&data, 11);
    // Restore an earlier backup over a later one: the files are kept and counted.
    let data = scratch.path().join("back");
    restore(&to, &data).expect(0);
    restore(&first, &data).expect(0);
    assert_exact(&data, 11);
}

#[test]
fn a_restore_into_a_new_instance_counts_its_events_too() {
    // Fails if events that an instance stored after the directory was lost are never counted, or
    // are taken for events of the lost directory because their segment numbers are equal.
    for killed in [false, true] {
        let scratch = Scratch::new();
        let (data, to) = (scratch.data(), scratch.path().join("backup"));
        add(&data, 3);
        add(&data, 3);
        backup(&data, &to).expect(0);
        fs::remove_dir_all(&data).unwrap();
        add(&data, 5);
        if killed {
            add_and_kill(&data, 3);
        } else {
            add(&data, 4);
        }
        restore(&to, &data).expect(0);
        // Its last segment keeps its own label, so that a copy of it is recognized later.
        let names: Vec<String> = names_in(&data);
        assert!(
            !names.iter().any(|name| name.contains("found")),
            "{names:?}"
        );
        let active = fs::metadata(data.join(ACTIVE)).map_or(0, |active| active.len());
        assert_eq!(active, 0, "killed: {killed}");
        assert_exact(&data, 15);
    }
}

#[test]
fn a_restore_over_a_fork_is_rejected_before_anything_is_changed() {
    // Fails if one of two segments with the same number is chosen silently, or anything is changed
    // before the conflict is detected.
    let scratch = Scratch::new();
    let (a, b) = (scratch.path().join("a"), scratch.path().join("b"));
    let to = scratch.path().join("backup");
    add(&a, 2);
    copy_tree(&a, &b);
    add(&a, 3);
    add(&b, 7);
    backup(&b, &to).expect(0);
    let before = contents(&a);
    let ran = restore(&to, &a).expect(1);
    assert!(ran.stderr.contains("different segments of number"), "{ran}");
    for dir in [&a, &to] {
        assert!(ran.stderr.contains(arg(dir)), "{ran}");
    }
    assert_eq!(contents(&a), before);
    // One segment with two different ends.
    let (a, b) = (scratch.path().join("c"), scratch.path().join("d"));
    let to = scratch.path().join("backup2");
    add_and_kill(&a, 2);
    copy_tree(&a, &b);
    add_and_kill(&a, 3);
    let server = Server::start(&b);
    server.accept(event("u", 1000));
    server.stop().expect(0);
    backup(&b, &to).expect(0);
    let before = contents(&a);
    let ran = restore(&to, &a).expect(1);
    assert!(ran.stderr.contains("with different contents"), "{ran}");
    assert!(ran.stderr.contains(ACTIVE), "{ran}");
    assert_eq!(contents(&a), before);
}

#[test]
fn a_restore_that_would_lose_pruned_events_is_rejected() {
    // Fails if a backup replaces the only database in which the events of pruned segments are
    // counted.
    let scratch = Scratch::new();
    let (data, to) = (scratch.data(), scratch.path().join("backup"));
    add(&data, 2);
    backup(&data, &to).expect(0);
    add(&data, 3);
    add(&data, 4);
    let server = Server::with(&data, &["--retention", "1ms", "--flush-interval", "10ms"]);
    until(PATIENCE, "segments are pruned", || {
        let left = files_below(&data.join("applied"));
        (left.len() == 1).then_some(())
    });
    server.stop().expect(0);
    let before = contents(&data);
    let ran = restore(&to, &data).expect(1);
    assert!(ran.stderr.contains("are counted in"), "{ran}");
    assert_eq!(contents(&data), before);
    assert_eq!(revenue(&data), 9);
    // It can be restored into another directory, and the two are different data directories.
    let other = scratch.path().join("other");
    restore(&to, &other).expect(0);
    assert_exact(&other, 2);
}

#[test]
fn leftovers_of_an_interrupted_backup_are_removed_by_the_next_one() {
    // Fails if an incomplete backup has its final name, or a left-over blocks the next backup.
    let scratch = Scratch::new();
    let (data, to) = (scratch.data(), scratch.path().join("backup"));
    let part = scratch.path().join("backup.part");
    add(&data, 2);
    let db = Connection::open(data.join("revenue.db")).unwrap();
    db.execute_batch("BEGIN EXCLUSIVE").unwrap(); // the backup waits for the database here
    for signal in [Signal::INT, Signal::KILL] {
        let args = ["backup", arg(&to), "--data-dir", arg(&data)];
        let running = Process::start(&mut tallyline(&args));
        until(PATIENCE, "the backup has begun", || {
            part.join(".tallyline-backup").exists().then_some(())
        });
        let ran = backup(&data, &to).expect(1);
        assert!(ran.stderr.contains("is held by"), "a second one: {ran}");
        // Not before signal handlers are installed: until then SIGINT kills the process.
        running.signal(signal);
        let ran = running.finish();
        assert!(ran.code != Some(0), "{ran}");
        assert!(!to.exists());
        if signal == Signal::INT {
            assert_eq!(ran.code, Some(1), "{ran}");
            assert!(ran.stderr.contains("no backup was made"), "{ran}");
        }
        assert_eq!(part.exists(), signal == Signal::KILL);
    }
    drop(db);
    backup(&data, &to).expect(0);
    assert!(!part.exists());
    verify(&to).expect(0);
    // Files of other programs stay.
    fs::remove_dir_all(&to).unwrap();
    fs::create_dir(&part).unwrap();
    fs::write(part.join("precious"), "x").unwrap();
    let ran = backup(&data, &to).expect(1);
    assert!(ran.stderr.contains("not an incomplete backup"), "{ran}");
    assert!(part.join("precious").exists());
}

#[test]
fn a_killed_restore_is_completed_by_the_next_one_and_unusable_until_then() {
    // Fails if a half-restored directory is served, processed or verified, or if the second run
    // counts anything twice or not at all. (src/backup/restore.rs stops it after each step.)
    let scratch = Scratch::new();
    let (made, to) = (scratch.path().join("made"), scratch.path().join("backup"));
    for _ in 0..8 {
        add(&made, 1);
    }
    backup(&made, &to).expect(0);
    let fresh = scratch.path().join("fresh");
    add_and_kill(&fresh, 3);
    let mut cut_short = 0;
    for moment in 0..6 {
        let data = scratch.path().join(format!("data-{moment}"));
        copy_tree(&fresh, &data);
        let args = ["restore", arg(&to), "--data-dir", arg(&data)];
        let mut running = Process::start(&mut tallyline(&args));
        until(PATIENCE, "the restore is in progress", || {
            let quarantine = names_in(&data.join("quarantine"));
            let come = match moment {
                0 | 1 => data.join("restore.json").exists(),
                2 | 3 => {
                    data.join("applied").exists()
                        && files_below(&data.join("applied")).len() > 2 + moment
                }
                _ => quarantine.iter().any(|name| name.starts_with("revenue.db")),
            };
            (come || running.exited().is_some()).then_some(())
        });
        running.kill();
        if data.join("restore.json").exists() {
            cut_short += 1;
            let other = scratch.path().join("never");
            let serve = ["serve", "--listen", "127.0.0.1:0", "--data-dir", arg(&data)];
            let uses: [&dyn Fn() -> Ran; 4] = [
                &|| process(&data),
                &|| verify(&data),
                &|| backup(&data, &other),
                &|| run(&serve),
            ];
            for used in uses {
                let ran = used().expect(1);
                assert!(ran.stderr.contains("is incomplete"), "{ran}");
                assert!(ran.stderr.contains(arg(&to)), "{ran}");
            }
        }
        restore(&to, &data).expect(0);
        assert_exact(&data, 12);
    }
    assert!(cut_short > 0, "no run was killed in time");
}

#[test]
fn a_damaged_backup_is_reported_and_not_restored() {
    // Fails if a file that is missing, truncated, changed or exchanged is restored, or `verify`
    // does not report it.
    let scratch = Scratch::new();
    let (made, good) = (scratch.path().join("made"), scratch.path().join("good"));
    add(&made, 2);
    add(&made, 3);
    backup(&made, &good).expect(0);
    let files: Vec<PathBuf> = files_below(&good)
        .into_iter()
        .map(|path| path.strip_prefix(&good).unwrap().to_owned())
        .filter(|path| path != Path::new("manifest.json"))
        .collect();
    assert!(files.len() >= 4, "{files:?}");
    let data = scratch.data();
    for file in &files {
        for damage in ["missing", "cut", "changed"] {
            let bad = scratch.path().join("bad");
            copy_tree(&good, &bad);
            let path = bad.join(file);
            let mut bytes = fs::read(&path).unwrap();
            match damage {
                "missing" => fs::remove_file(&path).unwrap(),
                "cut" => fs::write(&path, &bytes[..bytes.len() - 1]).unwrap(),
                _ => {
                    let middle = bytes.len() / 2;
                    bytes[middle] ^= 1;
                    fs::write(&path, &bytes).unwrap();
                }
            }
            let name = file.file_name().unwrap().to_str().unwrap();
            let ran = verify(&bad);
            assert!(ran.code == Some(1), "{damage} {name}: {ran}");
            let all = format!("{}{}", ran.stdout, ran.stderr);
            assert!(all.contains(name), "{damage} {name}: {ran}");
            let ran = restore(&bad, &data).expect(1);
            assert!(ran.stderr.contains(name), "{damage} {name}: {ran}");
            let left = names_in(&data);
            let locks = |name: &String| name.contains(".lock");
            assert!(left.iter().all(locks), "{damage} {name}: {left:?}");
            fs::remove_dir_all(&bad).unwrap();
        }
    }
    // Files beside those of the backup.
    fs::write(good.join("events_extra.jsonl"), event("u", 9)).unwrap();
    let ran = verify(&good).expect(1);
    assert!(ran.stdout.contains("events_extra.jsonl"), "{ran}");
    let ran = restore(&good, &data).expect(0);
    assert!(ran.stderr.contains("not restored"), "{ran}");
    assert_exact(&data, 5);
}

#[test]
fn damage_anywhere_in_a_manifest_is_detected() {
    // Fails if a flipped bit of the manifest changes what is restored and is not reported.
    let scratch = Scratch::new();
    let (data, to) = (scratch.data(), scratch.path().join("backup"));
    add(&data, 2);
    backup(&data, &to).expect(0);
    let path = to.join("manifest.json");
    let good = fs::read(&path).unwrap();
    let meaning = |bytes: &[u8]| {
        let mut value: serde_json::Value = serde_json::from_slice(bytes).unwrap();
        for optional in ["created", "program"] {
            value[optional] = serde_json::Value::Null;
        }
        value
    };
    let mut noticed = 0;
    for at in 0..good.len() {
        for bit in [1, 4] {
            let mut bad = good.clone();
            bad[at] ^= bit;
            fs::write(&path, &bad).unwrap();
            let mut faults = 0;
            let checked = tallyline::backup::check(&to, &mut |_| faults += 1, &mut |_, _| {});
            match checked {
                Ok(Some(_)) if faults == 0 => assert_eq!(meaning(&bad), meaning(&good), "{at}"),
                _ => noticed += 1,
            }
        }
    }
    assert!(noticed > good.len(), "{noticed}");
    for cut in [0, 1, good.len() / 2] {
        fs::write(&path, &good[..cut]).unwrap();
        let ran = restore(&to, &scratch.path().join("new")).expect(1);
        assert!(ran.stderr.contains("manifest.json"), "{ran}");
    }
    fs::remove_file(&path).unwrap();
    let ran = restore(&to, &scratch.path().join("new")).expect(2);
    assert!(ran.stderr.contains("is not a backup"), "{ran}");
    assert!(!scratch.path().join("new").exists());
}

#[test]
fn the_demo_directory_can_be_backed_up_and_restored_with_defaults() {
    // Fails if the directory of the demo cannot be backed up and restored with the default
    // settings.
    let scratch = Scratch::new();
    let here = |args: &[&str]| {
        let mut command = tallyline(args);
        Process::start(command.current_dir(scratch.path())).finish()
    };
    here(&["demo", "--exit", "--listen", "127.0.0.1:0"]).expect(0);
    here(&["backup", "saved", "--data-dir", "data/demo"]).expect(0);
    fs::remove_dir_all(scratch.path().join("data")).unwrap();
    let ran = here(&["restore", "saved"]).expect(0);
    assert!(ran.stdout.contains("restored saved to data"), "{ran}");
    let ran = here(&["query", "user1", "--csv"]).expect(0);
    assert!(ran.stdout.contains("user1,50"), "{ran}");
    here(&["verify"]).expect(0);
    let ran = here(&["restore", "data"]).expect(2);
    assert!(ran.stderr.contains("is not a backup"), "{ran}");
}

#[test]
fn what_is_not_the_directory_of_a_backup_is_named() {
    // Fails if the message is that of the system for a path below a file, as of an archive.
    let scratch = Scratch::new();
    let (data, saved) = (scratch.data(), scratch.path().join("in/saved"));
    fs::create_dir(scratch.path().join("in")).unwrap();
    Server::start(&data).stop().expect(0);
    run(&["backup", arg(&saved), "--data-dir", arg(&data)]).expect(0);
    let archive = scratch.file("saved.tar", "an archive");
    let new = scratch.path().join("new");
    for (path, texts) in [
        (
            archive.clone(),
            ["it is a file", "unpack it first (tar -xf"],
        ),
        (
            saved.join("directory.json"),
            ["a file of the backup", arg(&saved)],
        ),
        (
            scratch.path().join("in"),
            ["has no manifest.json", arg(&saved)],
        ),
        (data, ["has no manifest.json", "`tallyline backup` created"]),
        (
            scratch.path().join("none"),
            ["there is no such directory", "none"],
        ),
    ] {
        let ran = restore(&path, &new).expect(2);
        let begin = format!("cannot restore {}", path.display());
        for text in [&begin[..], texts[0], texts[1]] {
            assert!(ran.stderr.contains(text), "{text}: {ran}");
        }
        assert!(!new.exists(), "{}", path.display());
    }
}

#[test]
fn a_copy_without_its_last_segment_is_reported_as_incomplete() {
    // Fails if `process` reports a copy of a running directory as complete although its last
    // segment is missing: the active file was sealed and archived during the copy.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = Server::with(&data, &["--no-process"]);
    server.accept(event("u", 1));
    server.post("/flush", "").problem(503);
    server.accept(event("u", 1));
    server.kill();
    process(&data);
    verify(&data).expect(0);
    // `verify` reports it alone, and after `process` has recovered the directory.
    let server = Server::with(&data, &["--no-process"]);
    server.accept(event("u", 1));
    server.kill();
    fs::remove_file(data.join(ACTIVE)).unwrap();
    for _ in 0..2 {
        let ran = verify(&data).expect(1);
        assert!(
            ran.stdout.contains("segments 3: neither a file nor a row"),
            "{ran}"
        );
        process(&data);
    }
}
