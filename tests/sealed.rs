//! Sealed files that are not applied yet and are truncated, changed, moved or copied by another
//! program.
//!
//! Until a file has a row in the database, only its name says what was acknowledged in it. Each
//! test changes a directory before any processor has seen it, and asserts that every command
//! reports the change.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use tallyline::data_dir::segment::{label_in_name, seal_in_name};

use super::harness::{PATIENCE, Scratch, Server, database, event, files_below, run, until};

fn revenue(data: &Path) -> i128 {
    database(data)
        .get("u")
        .map_or(0, |total| total.0 / 1_000_000)
}

fn command(name: &[&str], data: &Path) -> super::harness::Ran {
    let mut args = name.to_vec();
    args.extend(["--data-dir", data.to_str().unwrap()]);
    run(&args)
}

fn sealed(data: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = files_below(data)
        .into_iter()
        .filter(|path| label_in_name(path.file_name().unwrap().to_str().unwrap()).is_some())
        .collect();
    found.sort();
    found
}

fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

/// For each item, a server without a processor seals a segment with so many events of value 1 in
/// the directory.
fn unapplied(data: &Path, events: &[u32]) -> Vec<PathBuf> {
    for &count in events {
        let server = Server::with(data, &["--no-process"]);
        for _ in 0..count {
            server.accept(event("u", 1));
        }
        server.stop().expect(0);
    }
    sealed(data)
}

#[track_caller]
fn until_reported(server: &Server, text: &str) {
    until(PATIENCE, &format!("/readyz reports {text}"), || {
        let ready = server.get("/readyz");
        (ready.status == 503 && ready.text().contains(text)).then_some(())
    });
}

/// Asserts that every command, and the server with and without a processor, reports that the
/// segment differs from what was acknowledged.
#[track_caller]
fn assert_reported_by_all(data: &Path, text: &str) {
    let server = Server::with(data, &["--no-process"]);
    until_reported(&server, text);
    server.stop().expect(0);
    let server = Server::start(data);
    until_reported(&server, text);
    server.stop().expect(0);
    let ran = command(&["process"], data).expect(1);
    assert!(ran.stderr.contains(text), "{ran}");
    let ran = command(&["verify"], data).expect(1);
    assert!(ran.stdout.contains(text), "{ran}");
    let ran = command(&["process", "--rebuild"], data).expect(1);
    assert!(ran.stderr.contains(text), "{ran}");
}

#[test]
fn a_sealed_file_changed_before_it_is_applied_is_reported_and_not_applied() {
    // Fails if the length and the checksum of the acknowledged bytes are not stored when a file is
    // sealed.
    for change in ["cut", "grown", "edited", "older"] {
        let scratch = Scratch::new();
        let data = scratch.data();
        let file = unapplied(&data, &[4]).pop().unwrap();
        let whole = fs::read(&file).unwrap();
        assert_eq!(
            seal_in_name(name(&file)).map(|seal| (seal.bytes, seal.checksum)),
            Some((whole.len() as u64, crc32fast::hash(&whole)))
        );
        let line_ends: Vec<usize> = (1..=whole.len())
            .filter(|&end| whole[end - 1] == b'\n')
            .collect();
        match change {
            "cut" => fs::write(&file, &whole[..line_ends[2]]).unwrap(),
            // An earlier content of the file, under its current name.
            "older" => {
                fs::remove_file(&file).unwrap();
                fs::write(&file, &whole[..line_ends[0]]).unwrap();
            }
            "grown" => fs::write(&file, [&whole[..], event("u", 1).as_bytes()].concat()).unwrap(),
            _ => {
                let edited = String::from_utf8(whole.clone()).unwrap();
                let at = edited
                    .rfind("\"value\":1")
                    .or(edited.rfind("\"value\": 1"))
                    .unwrap();
                let mut edited = edited.into_bytes();
                let digit = at + edited[at..].iter().position(|&byte| byte == b'1').unwrap();
                edited[digit] = b'9';
                fs::write(&file, edited).unwrap();
            }
        }
        assert_reported_by_all(&data, name(&file));
        assert_eq!(revenue(&data), 0, "{change}");
        // The fix: the sealed content is restored.
        fs::write(&file, &whole).unwrap();
        command(&["process"], &data).expect(0);
        assert_eq!(revenue(&data), 4, "{change}");
        command(&["verify"], &data).expect(0);
    }
}

#[test]
fn a_file_truncated_to_its_applied_part_is_not_fully_applied() {
    // Fails if a segment is considered fully applied because its file ends where the database does.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = Server::start(&data);
    for _ in 0..2 {
        server
            .post("/liveEvent?ack=applied", event("u", 1))
            .expect(200);
    }
    server.kill();
    let applied = fs::metadata(data.join("events.jsonl")).unwrap().len();
    let file = unapplied(&data, &[3]).pop().unwrap();
    let whole = fs::read(&file).unwrap();
    assert_eq!(
        seal_in_name(name(&file)).map(|seal| (seal.bytes, seal.checksum)),
        Some((whole.len() as u64, crc32fast::hash(&whole))),
        "across a restart, too"
    );
    fs::write(&file, &whole[..usize::try_from(applied).unwrap()]).unwrap();
    assert_reported_by_all(&data, name(&file));
    assert_eq!(revenue(&data), 2);
    fs::write(&file, &whole).unwrap();
    let server = Server::start(&data);
    until(PATIENCE, "the other segments are applied", || {
        (server.get("/userEvents/u").json()["revenue"] == 5).then_some(())
    });
    server.stop().expect(0);
    command(&["verify"], &data).expect(0);
}

#[test]
fn a_changed_file_renamed_as_reported_is_applied_as_it_is() {
    // Fails if the rest of a damaged file cannot be counted.
    let scratch = Scratch::new();
    let data = scratch.data();
    let file = unapplied(&data, &[4]).pop().unwrap();
    let whole = fs::read(&file).unwrap();
    let end = 1 + whole.iter().position(|&byte| byte == b'\n').unwrap();
    fs::write(&file, &whole[..end]).unwrap();
    let reported = command(&["process"], &data).expect(1).stderr;
    let (_, to) = reported.split_once("rename it to ").unwrap();
    let to = to.split_whitespace().next().unwrap();
    fs::rename(&file, data.join(to)).unwrap();
    command(&["process"], &data).expect(0);
    assert_eq!(revenue(&data), 1);
    command(&["verify"], &data).expect(0);
}

#[test]
fn a_file_moved_to_the_quarantine_before_it_is_applied_is_missing() {
    // Fails if a file in the quarantine counts as an accepted loss without a decision of the
    // operator.
    let scratch = Scratch::new();
    let data = scratch.data();
    let files = unapplied(&data, &[1, 2, 4]);
    let aside = data.join("quarantine").join(name(&files[1]));
    fs::rename(&files[1], &aside).unwrap();
    let ran = command(&["process"], &data).expect(1);
    assert!(
        ran.stdout.contains("missing: segments 2 have no file"),
        "{ran}"
    );
    let ran = command(&["verify"], &data).expect(1);
    assert!(ran.stdout.contains(aside.to_str().unwrap()), "{ran}");
    for flags in [&[][..], &["--no-process"]] {
        let server = Server::with(&data, flags);
        until_reported(&server, "segment 2: no file and not fully applied");
        server.stop().expect(0);
    }
    // The loss is accepted by an empty file in its place, as `/readyz` says.
    let kept = fs::read(&aside).unwrap();
    fs::write(&aside, "").unwrap();
    command(&["process"], &data).expect(0);
    command(&["verify"], &data).expect(0);
    for flags in [&[][..], &["--no-process"]] {
        let server = Server::with(&data, flags);
        until(PATIENCE, "it is ready", || {
            (server.get("/readyz").status == 200).then_some(())
        });
        server.stop().expect(0);
    }
    assert_eq!(revenue(&data), 5);
    // Or the file is counted.
    fs::write(&aside, kept).unwrap();
    fs::rename(&aside, &files[1]).unwrap();
    command(&["process"], &data).expect(0);
    assert_eq!(revenue(&data), 7);
    command(&["verify"], &data).expect(0);
}

#[test]
fn a_partly_applied_file_moved_to_the_quarantine_is_missing() {
    // Fails if the bytes that were not applied are forgotten when the file is moved.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = Server::start(&data);
    server
        .post("/liveEvent?ack=applied", event("u", 1))
        .expect(200);
    server.kill();
    let file = unapplied(&data, &[3]).pop().unwrap();
    let aside = data.join("quarantine").join(name(&file));
    fs::rename(&file, &aside).unwrap();
    let ran = command(&["process"], &data).expect(1);
    assert!(ran.stdout.contains("missing: segments 1 "), "{ran}");
    let ran = command(&["verify"], &data).expect(1);
    assert!(ran.stdout.contains(aside.to_str().unwrap()), "{ran}");
    let server = Server::start(&data);
    until_reported(&server, "segment 1: no file and not fully applied");
    server.stop().expect(0);
    fs::rename(&aside, &file).unwrap();
    command(&["process"], &data).expect(0);
    assert_eq!(revenue(&data), 4);
    command(&["verify"], &data).expect(0);
}

#[test]
fn a_server_without_a_processor_reports_two_files_with_one_number() {
    // Fails if only a server with a processor checks whether files contradict each other.
    let scratch = Scratch::new();
    let (a, b) = (scratch.data(), scratch.path().join("b"));
    unapplied(&a, &[1]);
    for path in files_below(&a) {
        let target = b.join(path.strip_prefix(&a).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(path, target).unwrap();
    }
    unapplied(&a, &[1]);
    let rival = unapplied(&b, &[2]).pop().unwrap();
    let put = a.join(name(&rival));
    let server = Server::with(&a, &["--no-process"]);
    until(PATIENCE, "it is ready", || {
        (server.get("/readyz").status == 200).then_some(())
    });
    fs::copy(&rival, &put).unwrap();
    until_reported(&server, name(&rival));
    // The same tag with a different end.
    fs::remove_file(&put).unwrap();
    let own = sealed(&a).pop().unwrap();
    let cut = a.join("applied").join(name(&own));
    fs::create_dir_all(cut.parent().unwrap()).unwrap();
    fs::copy(&own, &cut).unwrap();
    until(PATIENCE, "copies are not a conflict", || {
        (server.get("/readyz").status == 200).then_some(())
    });
    fs::OpenOptions::new()
        .append(true)
        .open(&cut)
        .unwrap()
        .write_all(event("u", 1).as_bytes())
        .unwrap();
    until_reported(&server, cut.to_str().unwrap());
    fs::remove_file(&cut).unwrap();
    until(PATIENCE, "it is ready again", || {
        (server.get("/readyz").status == 200).then_some(())
    });
    server.stop().expect(0);
}

#[test]
fn process_fails_where_numbers_are_missing() {
    // Fails if the exit code is 0 although events of missing files are not counted.
    let scratch = Scratch::new();
    let data = scratch.data();
    let files = unapplied(&data, &[1, 1, 1, 1]);
    fs::remove_file(&files[1]).unwrap();
    fs::remove_file(&files[2]).unwrap();
    let ran = command(&["process"], &data).expect(1);
    assert!(
        ran.stdout.contains("missing: segments 2, 3 have no file"),
        "{ran}"
    );
    assert_eq!(revenue(&data), 2, "the others are applied");
    let ran = command(&["process", "--rebuild"], &data).expect(1);
    assert!(ran.stdout.contains("segments 2, 3 have no file"), "{ran}");
}

#[test]
fn an_imported_segment_is_recognised_when_its_file_is_gone() {
    // Fails if imported segments are recognized only by their files, not by the rows that remain.
    for renamed in [false, true] {
        let scratch = Scratch::new();
        let (data, other) = (scratch.data(), scratch.path().join("other"));
        let original = unapplied(&other, &[3]).pop().unwrap();
        unapplied(&data, &[1]);
        let put = if renamed {
            "events_of-another-instance.jsonl".to_owned()
        } else {
            name(&original).to_owned()
        };
        fs::copy(&original, data.join(&put)).unwrap();
        command(&["process"], &data).expect(0);
        assert_eq!(revenue(&data), 4);
        for path in files_below(&data) {
            if name(&path) == put {
                fs::remove_file(path).unwrap();
            }
        }
        let again = scratch.path().join("again.jsonl");
        fs::copy(&original, &again).unwrap();
        let ran = command(&["process", again.to_str().unwrap()], &data).expect(0);
        assert!(ran.stdout.contains("applied before"), "{ran}");
        assert_eq!(revenue(&data), 4, "renamed: {renamed}");
        // Of a longer one, only the new lines count.
        let mut longer = fs::read(&original).unwrap();
        longer.extend_from_slice(event("u", 10).as_bytes());
        fs::write(&again, longer).unwrap();
        command(&["process", again.to_str().unwrap()], &data).expect(0);
        assert_eq!(revenue(&data), 14, "renamed: {renamed}");
    }
}
