//! `tallyline send` of a file that another program rotates, without `--follow`.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;

use super::harness::{Ran, Scratch, Server, arg, event, run};

/// A server and a log that is rotated.
struct Log {
    scratch: Scratch,
    server: Server,
}

impl Log {
    fn new() -> Self {
        let scratch = Scratch::new();
        let server = Server::start(&scratch.data());
        Self { scratch, server }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Appends an event for each of the users to a file.
    fn append(&self, name: &str, users: std::ops::RangeInclusive<u64>) {
        let mut file = File::options()
            .create(true)
            .append(true)
            .open(self.path(name))
            .unwrap();
        file.write_all(lines(users).as_bytes()).unwrap();
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.path(from), self.path(to)).unwrap();
    }

    /// Replaces a file by its compressed form.
    fn compress(&self, name: &str) {
        let to = File::create(self.path(&format!("{name}.gz"))).unwrap();
        let mut gzip = GzEncoder::new(to, Compression::fast());
        gzip.write_all(&fs::read(self.path(name)).unwrap()).unwrap();
        gzip.finish().unwrap();
        fs::remove_file(self.path(name)).unwrap();
    }

    fn send(&self, flags: &[&str]) -> Ran {
        let log = self.path("app.jsonl");
        run(&[&["send", arg(&log), "--to", &self.server.url()], flags].concat())
    }

    fn accepted(&self, flags: &[&str]) -> u64 {
        let ran = self.send(&[flags, &["--json"]].concat()).expect(0);
        let summary: Value = serde_json::from_str(&ran.stdout).unwrap();
        summary["accepted"].as_u64().unwrap()
    }

    /// Each of the users has exactly one event.
    fn assert_counted(&self, users: std::ops::RangeInclusive<u64>) {
        let ledger = self.server.assert_balanced();
        assert_eq!(ledger["applied"], users.clone().count());
        assert_eq!(ledger["duplicates"], 0);
        for user in users {
            let shown = self.server.get(&format!("/userEvents/u{user}")).expect(200);
            assert_eq!(shown.json()["events"], 1, "u{user}");
        }
    }
}

fn lines(users: std::ops::RangeInclusive<u64>) -> String {
    users.map(|user| event(&format!("u{user}"), 1)).collect()
}

fn warns(ran: &Ran, text: &str, path: &Path) {
    let shown = path.display().to_string();
    let warned = ran
        .stderr
        .lines()
        .any(|line| line.contains(text) && line.contains(&shown));
    assert!(warned, "{text} {shown}: {ran}");
}

#[test]
fn a_rotated_log_is_sent_once_and_in_full() {
    // Fails if the new content is refused as edited, or if lines that were added to the former content
    // before its rotation are not sent.
    let log = Log::new();
    log.append("app.jsonl", 1..=3);
    assert_eq!(log.accepted(&[]), 3);
    // Renamed with nothing added.
    log.rename("app.jsonl", "app.jsonl.1");
    log.append("app.jsonl", 4..=5);
    let ran = log.send(&[]).expect(0);
    warns(&ran, "former content is in", &log.path("app.jsonl.1"));
    log.send(&[]).expect(2);
    // Renamed after lines were added, and rotated by date.
    log.append("app.jsonl", 6..=7);
    log.rename("app.jsonl", "app.jsonl-20261127");
    log.append("app.jsonl", 8..=9);
    let ran = log.send(&[]).expect(0);
    let former = log.path("app.jsonl-20261127");
    warns(&ran, "former content is in", &former);
    assert!(ran.stdout.starts_with("4 events accepted"), "{ran}");
    // Compressed, with the date before the extension. The new file is empty at first.
    log.append("app.jsonl", 10..=10);
    log.rename("app.jsonl", "app-2026-11-28.jsonl");
    log.compress("app-2026-11-28.jsonl");
    File::create(log.path("app.jsonl")).unwrap();
    assert_eq!(log.accepted(&[]), 1);
    assert_eq!(log.accepted(&[]), 0);
    log.append("app.jsonl", 11..=12);
    assert_eq!(log.accepted(&[]), 2);
    // Copied and truncated.
    log.append("app.jsonl", 13..=13);
    fs::copy(log.path("app.jsonl"), log.path("app.jsonl.1")).unwrap();
    fs::write(log.path("app.jsonl"), lines(14..=20)).unwrap();
    assert_eq!(log.accepted(&[]), 8);
    log.send(&[]).expect(2);
    log.assert_counted(1..=20);
}

#[test]
fn an_interrupted_run_is_finished_in_the_rotated_log() {
    // Fails if only complete runs are looked for in the rotated file, or if the state of a run that
    // continues in a compressed file is not found again.
    let log = Log::new();
    log.append("app.jsonl", 1..=4);
    let invalid = "{\"userId\": \"u\"}\n";
    let mut file = File::options()
        .append(true)
        .open(log.path("app.jsonl"))
        .unwrap();
    file.write_all(invalid.repeat(2000).as_bytes()).unwrap();
    let state = log.path("app.jsonl.tallyline-state");
    log.send(&["--batch", "4"]).expect(3);
    // The state as an interruption after the first request would leave it.
    let mut runs: Value = serde_json::from_slice(&fs::read(&state).unwrap()).unwrap();
    let record = &mut runs["runs"][0];
    let sent = lines(1..=4).len();
    for (key, value) in [
        ("lines", 4),
        ("bytes", sent),
        ("accepted", 4),
        ("refused", 0),
    ] {
        record[key] = value.into();
    }
    record["complete"] = false.into();
    fs::write(&state, runs.to_string()).unwrap();
    log.rename("app.jsonl", "app.jsonl.1");
    log.compress("app.jsonl.1");
    log.append("app.jsonl", 5..=6);
    let ran = log.send(&["--json"]).expect(3);
    let summary: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(
        (&summary["accepted"], &summary["refused"]),
        (&2.into(), &2000.into()),
        "{ran}"
    );
    log.assert_counted(1..=6);
}

#[test]
fn new_content_without_the_former_beside_it_is_refused() {
    // Fails if any file beside it, or any file with a rotated name, is taken for the former content: the
    // unchanged lines of an edited file would count again.
    let log = Log::new();
    log.append("app.jsonl", 1..=9);
    assert_eq!(log.accepted(&[]), 9);
    let former = fs::read(log.path("app.jsonl")).unwrap();
    let edited = lines(1..=3) + &lines(5..=9);
    let refused = |what: &str| {
        let ran = log.send(&[]).expect(2);
        for text in ["app.jsonl.1", "rotated", "--again"] {
            assert!(ran.stderr.contains(text), "{what}: {text}: {ran}");
        }
        assert_eq!(log.server.counter("applied"), 9, "{what}");
    };
    for (name, content, new, what) in [
        ("", &former[..], lines(20..=22), "no file beside it"),
        ("app.jsonl.bak", &former, lines(20..=22), "no rotated name"),
        ("app.jsonl~", &former, lines(20..=22), "an editor's backup"),
        (
            "other.jsonl.1",
            &former,
            lines(20..=22),
            "another log's name",
        ),
        ("app.jsonl.1", &former[1..], lines(20..=22), "other content"),
        ("app.jsonl.1", &former[..90], lines(20..=22), "a part of it"),
        (
            "app.jsonl.1.gz",
            &former,
            lines(20..=22),
            "compressed by name only",
        ),
        ("app.jsonl.1", &former, edited, "a copy before an edit"),
    ] {
        if !name.is_empty() {
            fs::write(log.path(name), content).unwrap();
        }
        fs::write(log.path("app.jsonl"), new).unwrap();
        // The last two are the former content: only the name of the first of them is misleading.
        if what == "compressed by name only" {
            log.scratch.file(name, "not gzip");
        }
        refused(what);
        if !name.is_empty() {
            fs::remove_file(log.path(name)).unwrap();
        }
    }
    // With a source, the ids would be those of the former lines.
    fs::write(log.path("app.jsonl"), &former).unwrap();
    log.send(&[]).expect(2);
    fs::write(log.path("app.jsonl"), lines(20..=22)).unwrap();
    assert_eq!(log.accepted(&["--again"]), 3);
}

#[test]
fn a_log_rotated_twice_between_two_sends_is_reported() {
    // Fails if the lines of the file between are not sent and nothing says so.
    let log = Log::new();
    log.append("app.jsonl", 1..=2);
    assert_eq!(log.accepted(&[]), 2);
    let age = |name: &str, seconds: u64| {
        let file = File::options().append(true).open(log.path(name)).unwrap();
        let time = std::time::SystemTime::now() - std::time::Duration::from_secs(seconds);
        file.set_modified(time).unwrap();
    };
    log.rename("app.jsonl", "app.jsonl.2");
    age("app.jsonl.2", 100);
    log.append("app.jsonl.1", 3..=4);
    age("app.jsonl.1", 50);
    log.append("app.jsonl.3", 90..=91);
    age("app.jsonl.3", 150);
    log.append("app.jsonl", 5..=6);
    let ran = log.send(&[]).expect(0);
    let between = log.path("app.jsonl.1");
    warns(&ran, "was rotated after the last send", &between);
    assert!(!ran.stderr.contains("app.jsonl.3"), "{ran}");
    run(&["send", arg(&between), "--to", &log.server.url()]).expect(0);
    log.assert_counted(1..=6);
}
