//! The identity of segments: copies, backups, merged directories, restored files, a second server.
//!
//! Each test changes a real data directory as an operator or another program could, and then
//! asserts that either the totals are exact, or `/readyz` and `verify` report what is wrong.

use std::fs;
use std::path::{Path, PathBuf};

use tallyline::data_dir::segment::label_in_name;

use super::harness::{
    PATIENCE, Scratch, Server, copy_tree, database, event, files_below, names_in, run, until,
};

const ACTIVE: &str = "events.jsonl";

/// Revenue of user `u` in whole units, read from the database.
pub(super) fn revenue(data: &Path) -> i128 {
    database(data)
        .get("u")
        .map_or(0, |total| total.0 / 1_000_000)
}

/// Starts a server, posts `events` events of value 1 one by one, and waits until they are applied.
pub(super) fn serve(data: &Path, events: u32) -> Server {
    let server = Server::start(data);
    post(&server, events);
    server
}

pub(super) fn post(server: &Server, events: u32) {
    for _ in 0..events {
        server.accept(event("u", 1));
    }
    server.flush();
}

pub(super) fn reasons(server: &Server) -> String {
    server.status()["reasons"].to_string()
}

pub(super) fn verify(data: &Path) -> super::harness::Ran {
    run(&["verify", "--data-dir", data.to_str().unwrap()])
}

pub(super) fn process(data: &Path) -> super::harness::Ran {
    run(&["process", "--data-dir", data.to_str().unwrap()])
}

/// The sealed native segments of a directory, in any of its subdirectories, by number.
pub(super) fn sealed(data: &Path) -> Vec<(u64, PathBuf)> {
    let mut found: Vec<(u64, PathBuf)> = files_below(data)
        .into_iter()
        .filter_map(|path| {
            let label = label_in_name(path.file_name()?.to_str()?)?;
            Some((label.number, path))
        })
        .collect();
    found.sort();
    found
}

#[test]
fn a_restored_older_active_file_is_not_counted_again() {
    // Fails if the number of events.jsonl is derived from the sealed files: 12 instead of 9.
    for killed in [false, true] {
        let scratch = Scratch::new();
        let data = scratch.data();
        let server = Server::start(&data);
        for _ in 0..3 {
            server.accept(event("u", 1));
        }
        fs::copy(data.join(ACTIVE), scratch.path().join("older")).unwrap();
        server.flush();
        post(&server, 3);
        for _ in 0..3 {
            server
                .post("/liveEvent?ack=applied", event("u", 1))
                .expect(200);
        }
        if killed {
            server.kill();
        } else {
            server.stop().expect(0);
        }
        fs::copy(scratch.path().join("older"), data.join(ACTIVE)).unwrap();
        let server = Server::start(&data);
        server.flush();
        let reported = reasons(&server);
        assert!(reported.contains("copy of segment 1"), "{reported}");
        assert_eq!(
            reported.contains("segment 3"),
            killed,
            "its events are gone: {reported}"
        );
        server.stop().expect(0);
        assert_eq!(revenue(&data), 9);
    }
}

#[test]
fn a_copy_of_the_running_directory_in_any_order_is_exact_or_rejected() {
    // Fails if the beginning of one segment can be taken for another one, after a rotation between
    // the copies of any two files. All events are the same line, so only the label tells segments
    // apart.
    for order in 0..3 {
        let scratch = Scratch::new();
        let data = scratch.data();
        let server = serve(&data, 4);
        for _ in 0..5 {
            server.accept(event("u", 1));
        }
        let copy = scratch.path().join("copy");
        // The copy begins with a list of the names, as cp does.
        let listed = files_below(&data);
        let active = data.join(ACTIVE);
        let identity = data.join("directory.json");
        let copy_one = |path: &Path| {
            let target = copy.join(path.strip_prefix(&data).unwrap());
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            drop(fs::copy(path, target));
        };
        let database = |path: &&PathBuf| path.to_str().unwrap().contains("revenue.db");
        let lock = |path: &&PathBuf| path.extension().is_some_and(|end| end == "lock");
        let rest: Vec<&PathBuf> = listed
            .iter()
            .filter(|path| **path != active && **path != identity)
            .filter(|path| !database(path) && !lock(path))
            .collect();
        let rotate = |count: u32| {
            server.flush();
            post(&server, count);
            server.accept(event("u", 1));
        };
        match order {
            0 => {
                copy_one(&identity);
                rotate(1);
                copy_one(&active);
            }
            1 => {
                copy_one(&active);
                rotate(1);
                copy_one(&identity);
            }
            _ => {
                copy_one(&identity);
                server.flush(); // the next file is empty when it is copied
                copy_one(&active);
            }
        }
        for path in rest {
            copy_one(path);
        }
        server.stop().expect(0);

        let again = Server::start(&copy);
        again.flush();
        let reported = reasons(&again);
        // The copy has the beginning of a segment that was sealed afterwards.
        let log = again.process.stderr();
        let is_early = log.contains("from before it was sealed");
        assert_eq!(is_early, order == 1, "order {order}: {log}");
        let answer = again.get("/userEvents/u");
        let exact = answer.status == 200 && answer.json()["revenue"] == 9;
        assert!(
            exact || reported.contains("not fully applied"),
            "order {order}: {reported}"
        );
        again.stop().expect(0);
        let ran = verify(&copy);
        assert!(exact || ran.code != Some(0), "order {order}: {ran}");
    }
}

#[test]
fn an_older_active_file_of_a_pruned_segment_is_reported_and_not_counted_again() {
    // Fails if it counts again, or if the log says that it may lack events: whether it does cannot be known.
    let scratch = Scratch::new();
    let data = scratch.data();
    let flags = ["--retention", "0s", "--flush-interval", "10ms"];
    let server = Server::with(&data, &flags);
    for _ in 0..2 {
        server.accept(event("u", 1));
    }
    fs::copy(data.join(ACTIVE), scratch.path().join("older")).unwrap();
    server.accept(event("u", 1));
    server.flush();
    post(&server, 2);
    let is_first = |(number, _): &(u64, PathBuf)| *number == 1;
    until(PATIENCE, "segment 1 is pruned", || {
        (!sealed(&data).iter().any(is_first)).then_some(())
    });
    server.stop().expect(0);
    fs::copy(scratch.path().join("older"), data.join(ACTIVE)).unwrap();
    let server = Server::with(&data, &flags);
    until(PATIENCE, "it is reported", || {
        reasons(&server).contains("pruned").then_some(())
    });
    let log = server.stop().expect(0).stderr;
    assert!(!log.contains("from before it was sealed"), "{log}");
    assert_eq!(revenue(&data), 5);
}

#[test]
fn restored_older_files_are_reported_and_count_nothing_twice() {
    // Fails if the rows of segments whose files are missing are used for new segments.
    let scratch = Scratch::new();
    let (data, older) = (scratch.data(), scratch.path().join("older"));
    let server = serve(&data, 2);
    server
        .post("/liveEvent?ack=applied", event("u", 1))
        .expect(200);
    server.kill();
    copy_tree(&data, &older);
    serve(&data, 3).stop().expect(0);
    for path in files_below(&data) {
        if !path.to_str().unwrap().contains("revenue.db") {
            fs::remove_file(path).unwrap();
        }
    }
    for path in files_below(&older) {
        if !path.to_str().unwrap().contains("revenue.db") {
            let target = data.join(path.strip_prefix(&older).unwrap());
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            fs::copy(path, target).unwrap();
        }
    }
    let server = Server::start(&data);
    for _ in 0..5 {
        server
            .post("/liveEvent?ack=applied", event("u", 1))
            .expect(200);
    }
    server.stop().expect(0);
    assert_eq!(
        revenue(&data),
        11,
        "three, three that are in the database alone, five"
    );
    let ran = verify(&data).expect(1);
    assert!(ran.stdout.contains("events-000002"), "{ran}");
}

#[test]
fn merged_directories_count_once_and_a_rebuild_agrees() {
    // Fails if a segment of another directory is taken for a native one because of its number.
    let scratch = Scratch::new();
    let (a, b) = (scratch.path().join("a"), scratch.path().join("b"));
    serve(&a, 3).stop().expect(0);
    serve(&b, 5).stop().expect(0);
    // cp -rn B/. A/: existing files are kept.
    for path in files_below(&b) {
        let target = a.join(path.strip_prefix(&b).unwrap());
        if !target.exists() {
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            fs::copy(&path, &target).unwrap();
        }
    }
    process(&a).expect(0);
    assert_eq!(revenue(&a), 8);
    verify(&a).expect(0);
    run(&["process", "--rebuild", "--data-dir", a.to_str().unwrap()]).expect(0);
    assert_eq!(revenue(&a), 8);
    let server = Server::start(&a);
    assert_eq!(reasons(&server), "[]");
}

#[test]
fn segments_of_three_instances_in_one_directory_count_once() {
    // Fails if only one of several segments with the number 1 is applied, or if a rebuild chooses another one.
    let scratch = Scratch::new();
    let all = scratch.path().join("all");
    fs::create_dir(&all).unwrap();
    for (name, events) in [("a", 1), ("b", 2), ("c", 4)] {
        let one = scratch.path().join(name);
        serve(&one, events).stop().expect(0);
        let (number, file) = sealed(&one).pop().unwrap();
        assert_eq!(number, 1);
        fs::copy(&file, all.join(file.file_name().unwrap())).unwrap();
    }
    process(&all).expect(0);
    assert_eq!(revenue(&all), 7);
    run(&["process", "--rebuild", "--data-dir", all.to_str().unwrap()]).expect(0);
    assert_eq!(revenue(&all), 7);
    verify(&all).expect(0);
}

#[test]
fn archived_files_compressed_before_a_rebuild_count_once_after_they_are_restored() {
    // Fails if a number is used again whose file cannot be read as a segment for some time: its events would
    // be missing, or those of the new segment.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = serve(&data, 3);
    post(&server, 2);
    server.stop().expect(0);
    let files = sealed(&data);
    assert_eq!(files.len(), 2);
    let compressed = |path: &Path| path.with_extension("jsonl.gz");
    for (_, path) in &files {
        fs::rename(path, compressed(path)).unwrap();
    }
    let ran = run(&["process", "--rebuild", "--data-dir", data.to_str().unwrap()]);
    assert!(ran.stdout.contains("segments 1, 2"), "{ran}");
    let server = serve(&data, 1);
    let reported = reasons(&server);
    assert!(reported.contains("segments 1, 2"), "{reported}");
    server.stop().expect(0);
    verify(&data).expect(1);
    for (_, path) in &files {
        fs::rename(compressed(path), path).unwrap();
    }
    let server = Server::start(&data);
    until(PATIENCE, "all of them count", || {
        let user = server.get("/userEvents/u").json();
        (user["revenue"] == 6 && reasons(&server) == "[]").then_some(())
    });
    server.stop().expect(0);
    verify(&data).expect(0);
}

#[test]
fn two_files_with_one_number_are_reported_and_neither_replaces_the_other() {
    // Fails if one of two segments with the same number is chosen silently by a server, by
    // `process`, by a rebuild or by `verify`.
    two_files_with_one_number(End::Stopped);
    two_files_with_one_number(End::Killed);
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Stopped,
    Killed,
}

fn two_files_with_one_number(end: End) {
    let scratch = Scratch::new();
    let (a, b) = (scratch.path().join("a"), scratch.path().join("b"));
    let server = serve(&a, 1);
    server
        .post("/liveEvent?ack=applied", event("u", 1))
        .expect(200);
    if end == End::Killed {
        server.kill(); // both copies continue the same file, under the same label
    } else {
        server.stop().expect(0);
    }
    copy_tree(&a, &b);
    serve(&a, 3).stop().expect(0);
    serve(&b, 7).stop().expect(0);
    let rival = sealed(&b).pop().unwrap();
    assert_eq!(
        rival.0,
        sealed(&a).pop().unwrap().0,
        "both created this number"
    );
    let put = a.join(rival.1.file_name().unwrap());
    fs::copy(&rival.1, &put).unwrap();
    let name = put.to_str().unwrap();

    let server = Server::start(&a);
    until(PATIENCE, "/readyz reports it", || {
        reasons(&server).contains(name).then_some(())
    });
    assert_eq!(server.get("/userEvents/u").expect(200).json()["revenue"], 5);
    server.stop().expect(0);
    let ran = verify(&a).expect(1);
    assert!(ran.stdout.contains(name), "{ran}");
    let ran = process(&a).expect(1);
    assert!(ran.stderr.contains(name), "{ran}");
    let ran = run(&["process", "--rebuild", "--data-dir", a.to_str().unwrap()]).expect(1);
    assert!(ran.stderr.contains("old database is unchanged"), "{ran}");
    // The fix that the message describes.
    let aside = scratch.path().join("aside.jsonl");
    fs::rename(&put, &aside).unwrap();
    let ran = run(&[
        "process",
        "--data-dir",
        a.to_str().unwrap(),
        aside.to_str().unwrap(),
    ])
    .expect(if end == End::Killed { 3 } else { 0 });
    // For a segment that both copies continued, the lines after the common part count. Here all
    // lines are equal, so three of the seven lines look like the three that were applied, and the
    // output says so.
    let warned = ran.stderr.contains("too few may be counted");
    assert_eq!(warned, end == End::Killed, "{ran}");
    assert_eq!(revenue(&a), if end == End::Stopped { 12 } else { 9 });
    verify(&a).expect(0);

    // Without a database neither file is known to be applied: both are reported, none is applied.
    fs::copy(&aside, &put).unwrap();
    fs::remove_file(a.join("revenue.db")).unwrap();
    let ran = process(&a).expect(1);
    assert!(ran.stderr.contains(name), "{ran}");
    let other = sealed(&a).into_iter().filter(|found| found.0 == rival.0);
    for (_, path) in other {
        assert!(ran.stderr.contains(path.to_str().unwrap()), "{ran}");
    }
}

#[test]
fn the_highest_segment_moved_away_and_restored_counts_once() {
    // Fails if the next number is derived from the files that are present.
    let scratch = Scratch::new();
    let data = scratch.data();
    let flags = ["--no-process"];
    let server = Server::with(&data, &flags);
    server.accept(event("u", 1));
    server.stop().expect(0);
    let (number, highest) = sealed(&data).pop().unwrap();
    let away = scratch.path().join("away");
    fs::rename(&highest, &away).unwrap();
    let server = Server::with(&data, &flags);
    let position = server.accept(event("u", 2));
    assert!(
        position.starts_with(&format!("{}-", number + 1)),
        "{position}"
    );
    server.stop().expect(0);
    fs::rename(&away, &highest).unwrap();
    process(&data).expect(0);
    assert_eq!(revenue(&data), 3);
    verify(&data).expect(0);
}

#[test]
fn a_number_that_a_file_already_has_is_not_assigned() {
    // Fails if the server assigns a number that a file already has: what it then acknowledges under
    // that number is never applied.
    for running in [true, false] {
        let scratch = Scratch::new();
        let (data, clone) = (scratch.data(), scratch.path().join("clone"));
        serve(&data, 1).stop().expect(0);
        copy_tree(&data, &clone);
        for _ in 0..3 {
            serve(&clone, 1).stop().expect(0);
        }
        let (ahead, file) = sealed(&clone).pop().unwrap();
        let put = data.join(file.file_name().unwrap());
        if !running {
            fs::copy(&file, &put).unwrap();
        }
        let server = Server::start(&data);
        if running {
            // After the startup scan, which reserves the numbers of the files that it finds.
            server
                .post("/liveEvent?ack=applied", event("v", 1))
                .expect(200);
            fs::copy(&file, &put).unwrap();
        }
        until(PATIENCE, "it is applied", || {
            let user = server.get("/userEvents/u").expect(200).json();
            (user["revenue"] == 2).then_some(())
        });
        let mut last = 0;
        while last <= ahead {
            let answer = server
                .post("/liveEvent?ack=applied", event("u", 10))
                .expect(200);
            let position = answer.json()["position"].as_str().unwrap().to_owned();
            last = position.split_once('-').unwrap().0.parse().unwrap();
            assert_ne!(last, ahead, "{position}");
            server.flush();
        }
        server.stop().expect(0);
        let counted = revenue(&data);
        assert_eq!(
            counted % 10,
            2,
            "each acknowledged event is counted: {counted}"
        );
        assert_eq!(counted / 10, i128::from(last - 2), "running: {running}");
        verify(&data).expect(0);
    }
}

#[test]
fn a_plain_file_in_place_of_the_active_one_is_imported_or_set_aside() {
    // Fails if lines of another program are taken for lines of the active segment.
    let scratch = Scratch::new();
    let data = scratch.data();
    fs::create_dir(&data).unwrap();
    // As the original program leaves it: nothing was acknowledged here yet.
    fs::write(data.join(ACTIVE), event("u", 1)).unwrap();
    let server = Server::start(&data);
    until(PATIENCE, "it is imported", || {
        (server.get("/userEvents/u").status == 200).then_some(())
    });
    server.accept(event("u", 2));
    server.kill();
    // In place of a file with acknowledged events.
    fs::write(data.join(ACTIVE), event("u", 100)).unwrap();
    let server = Server::start(&data);
    server.flush();
    let reported = reasons(&server);
    assert!(
        reported.contains("set-aside") && reported.contains("missing"),
        "{reported}"
    );
    server.stop().expect(0);
    assert!(revenue(&data) < 100);
    assert!(
        names_in(&data.join("quarantine"))
            .iter()
            .any(|name| name.starts_with("set-aside"))
    );
}

#[test]
fn a_database_of_another_directory_is_rejected_by_name() {
    // Fails if rows about other files decide which of these files are applied.
    let scratch = Scratch::new();
    let (a, b) = (scratch.path().join("a"), scratch.path().join("b"));
    serve(&a, 3).stop().expect(0);
    serve(&b, 5).stop().expect(0);
    fs::copy(b.join("revenue.db"), a.join("revenue.db")).unwrap();
    let server = Server::start(&a);
    until(PATIENCE, "/readyz reports it", || {
        reasons(&server)
            .contains("belongs to the data directory")
            .then_some(())
    });
    server.accept(event("u", 1));
    server.stop();
    let ran = process(&a).expect(1);
    assert!(
        ran.stderr.contains("belongs to the data directory"),
        "{ran}"
    );
    fs::remove_file(a.join("revenue.db")).unwrap();
    process(&a).expect(0);
    assert_eq!(revenue(&a), 4);
}

#[test]
fn a_directory_that_is_not_the_expected_one_is_not_served() {
    // Fails if a server starts in the empty directory under a volume that is not mounted.
    let scratch = Scratch::new();
    let (data, other) = (scratch.data(), scratch.path().join("other"));
    let id = serve(&data, 1).status()["directory"]
        .as_str()
        .unwrap()
        .to_owned();
    serve(&other, 1).stop().expect(0);
    let serve_at = |dir: &Path| {
        let dir = dir.to_str().unwrap();
        run(&[
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--data-dir",
            dir,
            "--expect-id",
            &id,
        ])
    };
    let missing = scratch.path().join("missing");
    for (dir, why) in [(&other, "another volume"), (&missing, "mounted?")] {
        let ran = serve_at(dir).expect(1);
        assert!(
            ran.stderr.contains(why) && ran.stderr.contains(&id),
            "{ran}"
        );
    }
    assert!(!missing.exists(), "nothing is created");
    let server = Server::with(&data, &["--expect-id", &id]);
    assert_eq!(server.status()["directory"], id.as_str());
}

#[test]
fn moving_the_directory_of_a_running_server_stops_ingestion() {
    // Fails if events are acknowledged in a directory that is no longer at its path.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = Server::start(&data);
    server.accept(event("u", 1));
    fs::rename(&data, scratch.path().join("away")).unwrap();
    fs::create_dir(&data).unwrap();
    until(PATIENCE, "/readyz reports it", || {
        reasons(&server)
            .contains("another file system was mounted over it")
            .then_some(())
    });
    server.post("/liveEvent", event("u", 1)).problem(503);
}

#[test]
fn a_second_server_is_rejected_after_the_lock_file_was_replaced() {
    // Fails if only serve.lock keeps a second server out, or if the first server continues after
    // the lock file was replaced: 238 acknowledged, 150 kept.
    for replaced in [true, false] {
        let scratch = Scratch::new();
        let data = scratch.data();
        let first = Server::start(&data);
        first.accept(event("u", 1));
        for name in ["serve.lock", "process.lock"] {
            let lock = data.join(name);
            fs::remove_file(&lock).unwrap();
            if replaced {
                fs::write(&lock, "").unwrap();
            }
        }
        let ran = run(&[
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--data-dir",
            data.to_str().unwrap(),
        ]);
        let ran = ran.expect(1);
        assert!(ran.stderr.contains("another server appends to it"), "{ran}");
        let refused = first.post("/liveEvent", event("u", 1)).problem(503);
        assert!(refused.to_string().contains("serve.lock"), "{refused}");
        assert!(reasons(&first).contains("serve.lock"));
        first.kill();
        process(&data).expect(0);
        assert_eq!(revenue(&data), 1);
    }
}

#[test]
fn a_change_of_the_active_file_stops_ingestion_before_the_next_append() {
    // Fails if the server writes at an offset that is not the end of the file: 3,309 acknowledged,
    // 9 counted.
    for text in ["", "{}\n"] {
        let scratch = Scratch::new();
        let data = scratch.data();
        let server = Server::start(&data);
        server.accept(event("u", 1));
        let active = data.join(ACTIVE);
        let before = fs::read_to_string(&active).unwrap();
        let cut = if text.is_empty() {
            String::new()
        } else {
            before + text
        };
        fs::write(&active, &cut).unwrap();
        let refused = server.post("/liveEvent", event("u", 1)).problem(503);
        assert!(
            refused.to_string().contains("another program wrote to it"),
            "{refused}"
        );
        assert_eq!(
            fs::read_to_string(&active).unwrap(),
            cut,
            "nothing was written"
        );
        assert!(reasons(&server).contains("another program wrote to it"));
    }
}

#[test]
fn a_copy_of_a_segment_under_another_name_is_not_counted_again() {
    // Fails if an imported file is recognized by its name only: each event counts once more, and
    // `verify` does not report it.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = serve(&data, 3);
    for _ in 0..2 {
        server
            .post("/liveEvent?ack=applied", event("u", 1))
            .expect(200);
    }
    let archived = sealed(&data).pop().unwrap().1;
    fs::copy(&archived, data.join("events_copy.jsonl")).unwrap();
    fs::hard_link(data.join(ACTIVE), data.join("events_link.jsonl")).unwrap();
    for name in ["events_copy.jsonl", "events_link.jsonl"] {
        until(PATIENCE, "/readyz reports it", || {
            reasons(&server).contains(name).then_some(())
        });
    }
    server.assert_balanced();
    let ran = verify(&data).expect(1);
    for name in ["events_copy.jsonl", "events_link.jsonl"] {
        let found = ran.stdout.lines().any(|line| {
            line.starts_with("MISMATCH")
                && line.contains(name)
                && line.contains("under another name")
        });
        assert!(found, "{name}: {ran}");
    }
    fs::remove_file(data.join("events_copy.jsonl")).unwrap();
    fs::remove_file(data.join("events_link.jsonl")).unwrap();
    until(PATIENCE, "/readyz answers 200", || {
        (reasons(&server) == "[]").then_some(())
    });
    server.stop().expect(0);
    for (_, path) in sealed(&data) {
        let args = ["process", "--data-dir", data.to_str().unwrap()];
        let args = [&args[..], &[path.to_str().unwrap()]].concat();
        let ran = run(&args).expect(0);
        assert!(ran.stdout.contains("applied before"), "{ran}");
    }
    assert!(
        !names_in(&data)
            .iter()
            .any(|name| name.starts_with("events_"))
    );
    assert_eq!(revenue(&data), 5);
    verify(&data).expect(0);
}

#[test]
fn a_segment_under_the_number_of_another_is_reported() {
    // Fails if the events of a segment count twice because a copy has another number in its name, or if
    // readiness, `process`, a rebuild or `verify` does not name that file.
    let scratch = Scratch::new();
    let data = scratch.data();
    serve(&data, 3).stop().expect(0);
    let (_, file) = sealed(&data).pop().unwrap();
    let name = file.file_name().unwrap().to_str().unwrap();
    let copy = data.join(name.replace("-000001-", "-000007-"));
    fs::copy(&file, &copy).unwrap();
    let copy = copy.to_str().unwrap();
    let server = Server::start(&data);
    until(PATIENCE, "/readyz reports it", || {
        reasons(&server).contains(copy).then_some(())
    });
    server.stop().expect(0);
    let ran = process(&data).expect(1);
    assert!(ran.stderr.contains(copy), "{ran}");
    let ran = run(&["process", "--rebuild", "--data-dir", data.to_str().unwrap()]).expect(1);
    assert!(ran.stderr.contains(copy), "{ran}");
    let ran = verify(&data).expect(1);
    let reported = |line: &str| line.starts_with("MISMATCH") && line.contains(copy);
    assert!(ran.stdout.lines().any(reported), "{ran}");
    assert_eq!(revenue(&data), 3);
}

#[test]
fn verify_reports_an_active_file_of_another_copy() {
    // Fails if `verify` takes events.jsonl for the segment that was applied, because of its number.
    let scratch = Scratch::new();
    let (data, clone) = (scratch.data(), scratch.path().join("clone"));
    Server::start(&data).stop().expect(0);
    copy_tree(&data, &clone);
    for dir in [&data, &clone] {
        let server = Server::start(dir);
        server
            .post("/liveEvent?ack=applied", event("u", 1))
            .expect(200);
        server.kill();
    }
    verify(&data).expect(0);
    fs::copy(clone.join(ACTIVE), data.join(ACTIVE)).unwrap();
    let ran = verify(&data).expect(1);
    let reported = "events.jsonl is not the segment of that number that was applied";
    assert!(ran.stdout.contains(reported), "{ran}");
}

#[test]
fn a_segment_of_another_directory_counts_once_however_it_is_imported() {
    // Fails if its events count again when the file is imported a second time under another name.
    let scratch = Scratch::new();
    let (a, b) = (scratch.path().join("a"), scratch.path().join("b"));
    serve(&a, 3).stop().expect(0);
    serve(&b, 5).stop().expect(0);
    let file = sealed(&b).pop().unwrap().1;
    let name = file.file_name().unwrap();
    let process_file = |file: &Path| {
        let args = ["process", "--data-dir", a.to_str().unwrap()];
        run(&[&args[..], &[file.to_str().unwrap()]].concat())
    };
    fs::copy(&file, a.join(name)).unwrap();
    process(&a).expect(0);
    let ran = process_file(&file).expect(0);
    assert!(ran.stdout.contains("applied before"), "{ran}");
    let renamed = scratch.path().join("events_renamed.jsonl");
    fs::copy(&file, &renamed).unwrap();
    let ran = process_file(&renamed).expect(0);
    assert!(ran.stdout.contains("applied before"), "{ran}");
    assert_eq!(revenue(&a), 8);
    verify(&a).expect(0);
}

#[test]
fn an_emptied_segment_is_reported() {
    // Fails if a file that was truncated before it was applied is taken for a segment without
    // events.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = Server::with(&data, &["--no-process"]);
    server.accept(event("u", 1));
    server.stop().expect(0);
    let file = sealed(&data).pop().unwrap().1;
    fs::write(&file, "").unwrap();
    let ran = process(&data).expect(1);
    assert!(ran.stderr.contains("emptied"), "{ran}");
    let server = Server::start(&data);
    until(PATIENCE, "/readyz reports it", || {
        reasons(&server).contains("emptied").then_some(())
    });
}

#[test]
fn one_of_two_conflicting_files_is_applied_after_the_other_was_moved() {
    // Fails if the remaining file is only applied after a restart, or if `/readyz` answers 200
    // while it is not applied.
    let scratch = Scratch::new();
    let (a, b) = (scratch.path().join("a"), scratch.path().join("b"));
    let ingest = |data: &Path, count| {
        let server = Server::with(data, &["--no-process"]);
        for _ in 0..count {
            server.accept(event("u", 1));
        }
        server.stop().expect(0);
    };
    ingest(&a, 1);
    copy_tree(&a, &b);
    ingest(&a, 3);
    ingest(&b, 5);
    let rival = sealed(&b).pop().unwrap().1;
    let put = a.join(rival.file_name().unwrap());
    fs::copy(&rival, &put).unwrap();
    let server = Server::start(&a);
    until(PATIENCE, "/readyz reports both", || {
        reasons(&server).contains("are not applied").then_some(())
    });
    fs::rename(&put, scratch.path().join("away")).unwrap();
    until(PATIENCE, "the other one is applied", || {
        (server.get("/userEvents/u").json()["revenue"] == 4).then_some(())
    });
    until(PATIENCE, "/readyz answers 200", || {
        (reasons(&server) == "[]").then_some(())
    });
    server.assert_balanced();
    // A file that contradicts an applied one is reported even while the genuine file is moved.
    server.stop().expect(0);
    fs::copy(&rival, &put).unwrap();
    let genuine = sealed(&a).into_iter().find(|(_, path)| {
        path.to_str().unwrap().contains("applied") && path.to_str().unwrap().contains("-000002-")
    });
    let genuine = genuine.unwrap().1;
    fs::rename(&genuine, a.join(genuine.file_name().unwrap())).unwrap();
    let server = Server::start(&a);
    until(PATIENCE, "the genuine one is archived again", || {
        genuine.exists().then_some(())
    });
    server.flush();
    let reported = reasons(&server);
    assert!(reported.contains(put.to_str().unwrap()), "{reported}");
}

/// Several rounds of the processor.
fn rounds(server: &Server) {
    for _ in 0..3 {
        server
            .post("/liveEvent?ack=applied", event("v", 1))
            .expect(200);
    }
}

#[test]
fn a_conflict_in_the_archive_stays_in_readiness() {
    // Fails if `/readyz` names a conflicting file in the archive only until the first round, which lists the
    // data directory without the archive; or if the remaining file is not applied after the other was moved.
    let scratch = Scratch::new();
    let (a, b) = (scratch.path().join("a"), scratch.path().join("b"));
    serve(&a, 1).stop().expect(0);
    copy_tree(&a, &b);
    serve(&a, 3).stop().expect(0);
    serve(&b, 5).stop().expect(0);
    // As rsync does: into the archive.
    let (_, from) = sealed(&b).pop().unwrap();
    let rival = a.join(from.strip_prefix(&b).unwrap());
    assert!(rival.starts_with(a.join("applied")), "{}", rival.display());
    fs::copy(&from, &rival).unwrap();
    let name = rival.to_str().unwrap();
    let server = Server::start(&a);
    rounds(&server);
    assert!(reasons(&server).contains(name), "{}", reasons(&server));
    let away = scratch.path().join("away");
    fs::rename(&rival, &away).unwrap();
    until(PATIENCE, "/readyz answers 200", || {
        (reasons(&server) == "[]").then_some(())
    });
    server.stop().expect(0);
    assert_eq!(database(&a)["u"].1, 4);

    // Without a row neither is applied, until one of them is moved.
    fs::rename(&away, &rival).unwrap();
    fs::remove_file(a.join("revenue.db")).unwrap();
    let server = Server::start(&a);
    rounds(&server);
    assert!(reasons(&server).contains(name), "{}", reasons(&server));
    fs::rename(&rival, &away).unwrap();
    until(PATIENCE, "the other one is applied", || {
        let user = server.get("/userEvents/u").json();
        (user["events"] == 4 && reasons(&server) == "[]").then_some(())
    });
    server.stop().expect(0);
    verify(&a).expect(0);
}

#[test]
fn a_changed_file_in_the_archive_stays_in_readiness() {
    // Fails if `/readyz` answers 200 after the first round although a file in the archive is not applied: the
    // database was deleted, and the file is not the one that was sealed.
    let scratch = Scratch::new();
    let data = scratch.data();
    serve(&data, 3).stop().expect(0);
    let (_, file) = sealed(&data).pop().unwrap();
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replacen(":1", ":9", 1)).unwrap();
    fs::remove_file(data.join("revenue.db")).unwrap();
    let server = Server::start(&data);
    rounds(&server);
    let reported = reasons(&server);
    assert!(reported.contains(file.to_str().unwrap()), "{reported}");
    fs::write(&file, text).unwrap();
    server.stop().expect(0);
    let server = Server::start(&data);
    until(PATIENCE, "it is applied", || {
        let user = server.get("/userEvents/u").json();
        (user["revenue"] == 3 && reasons(&server) == "[]").then_some(())
    });
}

#[test]
fn verify_lists_missing_numbers_as_ranges() {
    // Fails if each missing number is listed: four thousand million of them.
    let scratch = Scratch::new();
    let data = scratch.data();
    serve(&data, 1).stop().expect(0);
    let file = sealed(&data).pop().unwrap().1;
    let name = file.file_name().unwrap().to_str().unwrap();
    let ahead = name.replace("-000001-", "-4294967295-");
    fs::copy(&file, data.join(&ahead)).unwrap();
    fs::write(data.join("quarantine/missing-18446744073709551615"), "").unwrap();
    let ran = verify(&data).expect(1);
    assert!(ran.stdout.contains("2 to 10001"), "{ran}");
    let ran = process(&data).expect(1);
    assert!(ran.stderr.contains(&ahead), "{ran}");
    assert_eq!(revenue(&data), 1);
}

#[test]
fn an_active_file_without_its_label_is_reported_with_a_warning() {
    // Fails if the advice leads to events that count again: they were applied before an editor
    // removed the blanks at the end of the first line.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = Server::start(&data);
    server
        .post("/liveEvent?ack=applied", event("u", 1))
        .expect(200);
    server.kill();
    let text = fs::read_to_string(data.join(ACTIVE)).unwrap();
    fs::write(data.join(ACTIVE), text.trim_end().to_owned() + "\n").unwrap();
    let server = Server::start(&data);
    let reported = reasons(&server);
    assert!(
        reported.contains("otherwise they are counted twice"),
        "{reported}"
    );
}

#[test]
fn a_file_with_the_number_of_the_active_segment_is_not_applied() {
    // Fails if a file of the clone is taken for the segment because the active file has no row yet:
    // what this server acknowledges then is never applied.
    let scratch = Scratch::new();
    let (data, clone) = (scratch.data(), scratch.path().join("clone"));
    serve(&data, 1).stop().expect(0);
    copy_tree(&data, &clone);
    serve(&clone, 7).stop().expect(0);
    let (number, file) = sealed(&clone).pop().unwrap();
    let server = Server::start(&data);
    let put = data.join(file.file_name().unwrap());
    fs::copy(&file, &put).unwrap();
    until(PATIENCE, "/readyz reports it", || {
        reasons(&server)
            .contains(put.to_str().unwrap())
            .then_some(())
    });
    let answer = server
        .post("/liveEvent?ack=applied", event("u", 1))
        .expect(200)
        .json();
    let position = answer["position"].as_str().unwrap();
    assert!(position.starts_with(&format!("{number}-")), "{position}");
    assert_eq!(server.get("/userEvents/u").expect(200).json()["revenue"], 2);
}
