//! Which segment a file is: copies, backups, merged directories, files put back, a second server.
//!
//! Each test does to a real data directory what a person or another program does, and then asks for
//! one of two things: the totals are exact, or readiness and `verify` say what is wrong.

use std::fs;
use std::path::{Path, PathBuf};

use tallyline::data_dir::segment::label_in_name;

use super::harness::{
    PATIENCE, Scratch, Server, database, event, files_below, names_in, run, until,
};

const ACTIVE: &str = "events.jsonl";

/// Revenue of user `u` in whole units, by the database.
fn revenue(data: &Path) -> i128 {
    database(data)
        .get("u")
        .map_or(0, |total| total.0 / 1_000_000)
}

/// A server that has taken `events` one by one, of 1 each, and applied them.
fn serve(data: &Path, events: u32) -> Server {
    let server = Server::start(data);
    post(&server, events);
    server
}

fn post(server: &Server, events: u32) {
    for _ in 0..events {
        server.accept(event("u", 1));
    }
    server.flush();
}

fn reasons(server: &Server) -> String {
    server.status()["reasons"].to_string()
}

fn copy_tree(from: &Path, to: &Path) {
    for path in files_below(from) {
        let target = to.join(path.strip_prefix(from).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(&path, &target).unwrap();
    }
}

fn verify(data: &Path) -> super::harness::Ran {
    run(&["verify", "--data-dir", data.to_str().unwrap()])
}

fn process(data: &Path) -> super::harness::Ran {
    run(&["process", "--data-dir", data.to_str().unwrap()])
}

/// The sealed native segments of a directory, wherever they lie, by number.
fn sealed(data: &Path) -> Vec<(u64, PathBuf)> {
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
fn an_older_copy_of_the_active_file_put_back_is_not_counted_again() {
    // Red if the number of events.jsonl is guessed from the sealed files: 12 instead of 9.
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
        let said = reasons(&server);
        assert!(said.contains("copy of segment 1"), "{said}");
        assert_eq!(
            said.contains("segment 3"),
            killed,
            "its events are gone: {said}"
        );
        server.stop().expect(0);
        assert_eq!(revenue(&data), 9);
    }
}

#[test]
fn a_copy_of_the_running_directory_in_any_order_is_exact_or_refused() {
    // Red if the start of one segment can pass for another: a rotation between any two files that
    // are copied. Every event is the same line, so nothing but the label tells segments apart.
    for order in 0..3 {
        let scratch = Scratch::new();
        let data = scratch.data();
        let server = serve(&data, 4);
        for _ in 0..5 {
            server.accept(event("u", 1));
        }
        let copy = scratch.path().join("copy");
        // What the copy begins with: names are listed first, as cp does.
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
        let said = reasons(&again);
        let answer = again.get("/userEvents/u");
        let exact = answer.status == 200 && answer.json()["revenue"] == 9;
        assert!(
            exact || said.contains("not wholly applied"),
            "order {order}: {said}"
        );
        again.stop().expect(0);
        let ran = verify(&copy);
        assert!(exact || ran.code != Some(0), "order {order}: {ran}");
    }
}

#[test]
fn older_files_put_back_beside_the_newer_database_count_nothing_twice_and_are_named() {
    // Red if the rows of segments that are no longer there are taken for those of new ones.
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
fn merged_directories_count_both_once_and_a_rebuild_says_the_same() {
    // Red if a segment of another directory is taken for ours because of its number.
    let scratch = Scratch::new();
    let (a, b) = (scratch.path().join("a"), scratch.path().join("b"));
    serve(&a, 3).stop().expect(0);
    serve(&b, 5).stop().expect(0);
    // cp -rn B/. A/: names that are there already stay.
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
fn two_contents_under_one_number_are_named_and_neither_replaces_the_other() {
    // Red if one of two segments of a number is chosen without a report: by a server, by `process`,
    // by a rebuild or by `verify`.
    two_contents_under_one_number(End::Stopped);
    two_contents_under_one_number(End::Killed);
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Stopped,
    Killed,
}

fn two_contents_under_one_number(end: End) {
    let scratch = Scratch::new();
    let (a, b) = (scratch.path().join("a"), scratch.path().join("b"));
    let server = serve(&a, 1);
    server
        .post("/liveEvent?ack=applied", event("u", 1))
        .expect(200);
    if end == End::Killed {
        server.kill(); // and both go on with the same file, under the same label
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
        "both made this number"
    );
    let put = a.join(rival.1.file_name().unwrap());
    fs::copy(&rival.1, &put).unwrap();
    let name = put.to_str().unwrap();

    let server = Server::start(&a);
    until(PATIENCE, "readiness names it", || {
        reasons(&server).contains(name).then_some(())
    });
    assert_eq!(server.get("/userEvents/u").expect(200).json()["revenue"], 5);
    server.stop().expect(0);
    let ran = verify(&a).expect(1);
    assert!(ran.stdout.contains(name), "{ran}");
    let ran = process(&a).expect(1);
    assert!(ran.stderr.contains(name), "{ran}");
    let ran = run(&["process", "--rebuild", "--data-dir", a.to_str().unwrap()]).expect(1);
    assert!(ran.stderr.contains("old database is as it was"), "{ran}");
    // The cure that the words give.
    let aside = scratch.path().join("aside.jsonl");
    fs::rename(&put, &aside).unwrap();
    let ran = run(&[
        "process",
        "--data-dir",
        a.to_str().unwrap(),
        aside.to_str().unwrap(),
    ])
    .expect(0);
    // Of the segment that both went on with, the lines after those that both have; here all lines
    // are the same, so that three of the seven cannot be told from the three that were applied. Who
    // runs it reads so.
    let warned = ran.stderr.contains("too few may be counted");
    assert_eq!(warned, end == End::Killed, "{ran}");
    assert_eq!(revenue(&a), if end == End::Stopped { 12 } else { 9 });
    verify(&a).expect(0);

    // Without a database neither is known: both are named, none is applied.
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
fn the_highest_file_moved_away_and_put_back_counts_once() {
    // Red if the next number is worked out from the files that happen to be there.
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
fn a_file_numbered_ahead_keeps_its_number_and_nothing_is_lost_when_it_is_reached() {
    // Red if the server gives a number out that a file bears already: what it then acknowledges
    // under that number is never applied.
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
    // Red if lines of another program are taken for the active segment's.
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
    // In the place of a file with acknowledged events.
    fs::write(data.join(ACTIVE), event("u", 100)).unwrap();
    let server = Server::start(&data);
    server.flush();
    let said = reasons(&server);
    assert!(
        said.contains("set-aside") && said.contains("missing"),
        "{said}"
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
fn a_database_of_another_directory_is_refused_by_name() {
    // Red if rows about other files decide what is applied of these.
    let scratch = Scratch::new();
    let (a, b) = (scratch.path().join("a"), scratch.path().join("b"));
    serve(&a, 3).stop().expect(0);
    serve(&b, 5).stop().expect(0);
    fs::copy(b.join("revenue.db"), a.join("revenue.db")).unwrap();
    let server = Server::start(&a);
    until(PATIENCE, "readiness says so", || {
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
    // Red if a server starts in the empty directory under a volume that is not mounted.
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
fn a_data_directory_moved_away_under_the_server_stops_ingestion_and_is_named() {
    // Red if events are acknowledged in a directory that nobody will find.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = Server::start(&data);
    server.accept(event("u", 1));
    fs::rename(&data, scratch.path().join("away")).unwrap();
    fs::create_dir(&data).unwrap();
    until(PATIENCE, "readiness says so", || {
        reasons(&server)
            .contains("another file system was mounted over it")
            .then_some(())
    });
    server.post("/liveEvent", event("u", 1)).problem(503);
}

#[test]
fn a_second_server_is_kept_out_though_the_lock_file_was_replaced() {
    // Red if serve.lock alone keeps a second server out, or if the first goes on after it was
    // replaced: 238 acknowledged, 150 kept.
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
fn an_active_file_cut_or_written_to_by_others_stops_ingestion_before_the_next_append() {
    // Red if the server writes at an offset where the file does not end: 3,309 acknowledged, 9
    // counted.
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
    // Red if an imported file is known by its name alone: each event counts once more, and `verify`
    // agrees with that.
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
        until(PATIENCE, "readiness names it", || {
            reasons(&server).contains(name).then_some(())
        });
    }
    server.assert_balanced();
    fs::remove_file(data.join("events_copy.jsonl")).unwrap();
    fs::remove_file(data.join("events_link.jsonl")).unwrap();
    until(PATIENCE, "readiness is green", || {
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
fn a_segment_of_another_directory_counts_once_however_it_is_brought_in() {
    // Red if its events count again when the file comes a second time under another name.
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
fn an_emptied_segment_is_named() {
    // Red if a file that was truncated before it was applied passes for a segment without events.
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
    until(PATIENCE, "readiness names it", || {
        reasons(&server).contains("emptied").then_some(())
    });
}

#[test]
fn the_other_of_two_contradicting_files_is_applied_once_one_was_moved_away() {
    // Red if it is left alone until a restart, with readiness green.
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
    until(PATIENCE, "readiness names both", || {
        reasons(&server).contains("are not applied").then_some(())
    });
    fs::rename(&put, scratch.path().join("away")).unwrap();
    until(PATIENCE, "the other one is applied", || {
        (server.get("/userEvents/u").json()["revenue"] == 4).then_some(())
    });
    until(PATIENCE, "readiness is green", || {
        (reasons(&server) == "[]").then_some(())
    });
    server.assert_balanced();
    // One that contradicts what is applied stays named, whatever happens to the genuine one.
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
    let said = reasons(&server);
    assert!(said.contains(put.to_str().unwrap()), "{said}");
}

#[test]
fn a_number_far_ahead_does_not_make_verify_count_up_to_it() {
    // Red if each missing number is listed: four thousand million of them.
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
fn an_active_file_that_lost_its_label_is_not_said_to_be_safe_to_process() {
    // Red if the cure counts events again that were applied before an editor removed the blanks at
    // the end of the first line.
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
    let said = reasons(&server);
    assert!(said.contains("otherwise they are counted twice"), "{said}");
}

#[test]
fn a_file_of_the_active_segments_number_is_not_applied_in_its_place() {
    // Red if the clone's file is taken for the segment because the active one has no row yet: what
    // this server acknowledges then is never applied.
    let scratch = Scratch::new();
    let (data, clone) = (scratch.data(), scratch.path().join("clone"));
    serve(&data, 1).stop().expect(0);
    copy_tree(&data, &clone);
    serve(&clone, 7).stop().expect(0);
    let (number, file) = sealed(&clone).pop().unwrap();
    let server = Server::start(&data);
    let put = data.join(file.file_name().unwrap());
    fs::copy(&file, &put).unwrap();
    until(PATIENCE, "readiness names it", || {
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
