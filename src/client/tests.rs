//! The sender against a server with scripted failures.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

use clap::Parser as _;

use super::fake_server::{DIRECTORY, FakeServer, Instead};
use super::*;
use crate::cli::args::{Cli, Command};
use crate::cli::exit::Exit;
use crate::event::Event;

mod follow;
mod formats;
mod resume;

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new(text: &str) -> Self {
        let bench = Self {
            dir: tempfile::tempdir().expect("dir"),
        };
        fs::write(bench.file(), text).expect("write");
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self) -> PathBuf {
        self.path("events.jsonl")
    }

    fn state(&self) -> PathBuf {
        self.path("events.jsonl.tallyline-state")
    }

    fn config(&self, server: &FakeServer, flags: &[&str]) -> SendConfig {
        let (file, url) = (self.file(), server.url());
        let file = file.to_str().expect("text");
        let all = [&["tallyline", "send", file, "--to", &url], flags].concat();
        match Cli::try_parse_from(all).expect("flags").command {
            Command::Send(args) => SendConfig::new(*args, false).expect("good"),
            other => panic!("{other:?}"),
        }
    }

    fn send(&self, server: &FakeServer, flags: &[&str]) -> SendSummary {
        send(&self.config(server, flags), &Shutdown::default())
    }
}

fn events(count: u64) -> String {
    numbered(1..=count)
}

fn numbered(numbers: impl Iterator<Item = u64>) -> String {
    numbers.fold(String::new(), |mut text, number| {
        writeln!(
            text,
            r#"{{"userId": "u", "name": "add_revenue", "value": {number}}}"#
        )
        .expect("memory");
        text
    })
}

fn failure(summary: &SendSummary) -> String {
    match &summary.verdict {
        SendOutcome::Failed(error) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

fn last_line(summary: &SendSummary) -> String {
    summary
        .to_string()
        .lines()
        .last()
        .expect("a line")
        .to_owned()
}

#[test]
fn every_event_gets_an_id_that_sorts_as_sent() {
    let bench = Bench::new(&events(1234));
    let server = FakeServer::new();
    let summary = bench.send(&server, &["--batch", "100", "--connections", "3"]);
    assert_eq!(summary.exit(), Exit::Done, "{summary}");
    assert_eq!(
        (summary.counts.accepted, summary.counts.requests),
        (1234, 13)
    );
    assert_eq!(
        last_line(&summary),
        "OK: 1,234 lines acknowledged, none refused"
    );
    let seen = server.seen();
    let ids = seen.ids();
    assert_eq!(ids.len(), 1234);
    assert!(ids.values().all(|&count| count == 1));
    for (index, id) in ids.keys().enumerate() {
        assert_eq!(*id, format!("{}-{:012}", summary.run, index + 1));
    }
    assert_eq!(seen.headers["content-type"], "application/x-ndjson");
}

#[test]
fn a_complete_file_is_sent_again_only_with_again_or_source() {
    let bench = Bench::new(&events(3));
    let server = FakeServer::new();
    assert_eq!(bench.send(&server, &[]).exit(), Exit::Done);
    let again = bench.send(&server, &[]);
    assert_eq!((again.exit(), server.seen().stored.len()), (Exit::Usage, 3));
    assert_eq!(
        last_line(&again),
        "NOT SENT: the whole file was sent before"
    );
    assert!(failure(&again).contains(DIRECTORY), "{}", failure(&again));
    assert_eq!(bench.send(&server, &["--again"]).exit(), Exit::Done);
    assert_eq!(server.seen().ids().len(), 6);
    assert_eq!(bench.send(&server, &[]).exit(), Exit::Usage);
    let server = FakeServer::new();
    bench.send(&server, &["--source", "mine"]);
    bench.send(&server, &["--source", "mine", "--batch", "1"]);
    assert_eq!(bench.send(&server, &[]).exit(), Exit::Usage, "remembered");
    let expected = (1..=3).map(|n| (format!("mine-{n:012}"), 2)).collect();
    assert_eq!(server.seen().ids(), expected);
}

#[test]
fn a_batch_of_one_is_the_event_alone() {
    let bench = Bench::new(&events(2));
    let server = FakeServer::new();
    let summary = bench.send(&server, &["--batch", "1", "--no-ids"]);
    assert_eq!(summary.counts.requests, 2);
    let seen = server.seen();
    let mut bodies = seen.bodies.clone();
    bodies.sort();
    assert_eq!(bodies, events(2).lines().collect::<Vec<_>>());
    assert_eq!(seen.headers["content-type"], "application/json");
}

#[test]
fn refused_lines_are_named_by_their_line_in_the_file() {
    let mut text = events(10);
    text.push_str("{\"userId\": \"u\", \"name\": \"add_revenue\", \"value\": -5}\n\n");
    text.push_str("not json\n[1]\n{\"userId\": \"\"}\n");
    text.push_str(&events(3));
    let bench = Bench::new(&text);
    let rejects = bench.path("bad.jsonl");
    let flags = ["--batch", "4", "--rejects", rejects.to_str().expect("text")];
    let server = FakeServer::new();
    let summary = bench.send(&server, &flags);
    assert_eq!(summary.exit(), Exit::Refused);
    assert_eq!((summary.counts.accepted, summary.counts.refused), (13, 4));
    assert!(
        last_line(&summary).starts_with("REFUSED: 4 events not stored"),
        "{summary}"
    );
    let mut named: Vec<(u64, String, String)> = fs::read_to_string(&rejects)
        .expect("rejects")
        .lines()
        .map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).expect("json");
            let text = |key: &str| line[key].as_str().expect(key).to_owned();
            (
                line["line"].as_u64().expect("line"),
                text("code"),
                text("text"),
            )
        })
        .collect();
    named.sort();
    let lines: Vec<&str> = text.lines().collect();
    let expected = [
        (11, "negative"),
        (13, "not_json"),
        (14, "not_object"),
        (15, "missing"),
    ]
    .map(|(line, code)| (line as u64, code.to_owned(), lines[line - 1].to_owned()));
    let codes = |all: &[(u64, String, String)]| -> Vec<(u64, String)> {
        all.iter()
            .map(|(line, _, text)| (*line, text.clone()))
            .collect()
    };
    assert_eq!(codes(&named), codes(&expected));
    assert_eq!(named[0].1, "negative");
    assert_eq!(named[1].1, "not_json");
}

#[test]
fn a_broken_file_is_sent_line_by_line() {
    // Taken together these lines are one object, or hold an array; each line alone is neither.
    for text in [
        "{\n\"userId\": \"u\",\n\"name\": \"add_revenue\", \"value\": 1\n}\n",
        "{\"userId\": \"u\", \"name\": \"add_revenue\",\n\"value\": 1}\n",
        "{\n[{\"userId\": \"u\", \"name\": \"add_revenue\", \"value\": 1}]\n",
    ] {
        // In a batch of their own, after lines that show that the file has an event a line.
        let lines = text.lines().count();
        let bench = Bench::new(&(events(lines as u64) + text));
        let server = FakeServer::new();
        let summary = bench.send(&server, &["--batch", &lines.to_string()]);
        assert_eq!(
            (summary.counts.accepted, summary.counts.refused),
            (lines as u64, lines as u64),
            "{text}"
        );
        let seen = server.seen();
        let (first, others) = seen.bodies.split_first().expect("two batches");
        assert_eq!(first.lines().count(), lines);
        for body in others {
            assert!(!body.starts_with('['), "{body}");
            assert!(Event::parse(body.as_bytes()).is_err(), "{body}");
        }
    }
}

#[test]
fn a_refusal_that_names_no_line_is_narrowed_down() {
    let bench = Bench::new(&events(16));
    let server = FakeServer::with(|_, body| {
        let bad = body.contains("\"value\": 7}");
        bad.then_some(Instead::Answer(422, r#"{"title": "no"}"#))
    });
    let summary = bench.send(&server, &["--batch", "16"]);
    assert_eq!((summary.counts.accepted, summary.counts.refused), (15, 1));
    let server = FakeServer::with(|_, body| {
        (body.lines().count() > 3).then_some(Instead::Answer(413, "{}"))
    });
    let summary = bench.send(&server, &["--batch", "16", "--again"]);
    assert_eq!((summary.counts.accepted, summary.exit()), (16, Exit::Done));
    assert_eq!(server.seen().stored.len(), 16);
}

#[test]
fn a_busy_server_is_retried_and_events_count_once() {
    let bench = Bench::new(&events(10));
    let server = FakeServer::with(|number, _| match number {
        0 | 1 => Some(Instead::RetryAfter),
        2 => Some(Instead::Answer(500, "")),
        3 => Some(Instead::StoreWithoutAnswer),
        _ => None,
    });
    let summary = bench.send(&server, &["--connections", "1"]);
    assert_eq!(summary.exit(), Exit::Done, "{summary}");
    assert_eq!((summary.counts.retries, summary.counts.doubtful), (4, 0));
    let ids = server.seen().ids();
    assert_eq!((ids.len(), ids.values().max()), (10, Some(&2)));
}

#[test]
fn without_ids_a_lost_answer_is_reported() {
    let mut text = events(3);
    text.push_str(r#"{"userId": "u", "name": "add_revenue", "value": 1, "id": "own"}"#);
    let bench = Bench::new(&text);
    let server = FakeServer::with(|number, _| (number == 0).then_some(Instead::StoreWithoutAnswer));
    let summary = bench.send(&server, &["--no-ids"]);
    assert_eq!((summary.counts.accepted, summary.counts.doubtful), (4, 3));
    assert!(
        summary
            .to_string()
            .contains("up to 3 events may be counted twice"),
        "{summary}"
    );
}

#[test]
fn a_server_that_is_not_tallyline_is_reported() {
    let bench = Bench::new(&events(2));
    for (status, body, word) in [
        (200, "<html>", "not as a tallyline server does"),
        (200, r#"{"accepted": 1}"#, "sent 2 lines"),
        (401, "{}", "TALLYLINE_TOKEN"),
        (404, "{}", "base URL"),
        (301, "", "--to"),
    ] {
        let server = FakeServer::with(move |_, _| Some(Instead::Answer(status, body)));
        let summary = bench.send(&server, &[]);
        assert_eq!(summary.exit(), Exit::Failed);
        assert!(
            failure(&summary).contains(word),
            "{status}: {}",
            failure(&summary)
        );
        assert_eq!(server.seen().bodies.len(), 1, "{status} is not tried again");
    }
}

#[test]
fn no_server_and_no_file_are_reported() {
    let bench = Bench::new(&events(2));
    let mut config = bench.config(&FakeServer::new(), &["--retry-for", "0s"]);
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    config.to = format!("http://{}", free.local_addr().expect("bound"));
    drop(free);
    let summary = send(&config, &Shutdown::default());
    assert!(
        failure(&summary).contains("refused"),
        "{}",
        failure(&summary)
    );
    config.input = Input::File(bench.path("missing.jsonl"));
    let summary = send(&config, &Shutdown::default());
    assert!(
        failure(&summary).contains("missing.jsonl"),
        "{}",
        failure(&summary)
    );
}

#[test]
fn the_token_is_sent_and_an_empty_file_succeeds() {
    let bench = Bench::new(&events(1));
    let token = bench.path("token");
    fs::write(&token, "s3cret\n").expect("write");
    let server = FakeServer::new();
    let flags = ["--token-file", token.to_str().expect("text")];
    let summary = bench.send(&server, &flags);
    assert_eq!(server.seen().headers["authorization"], "Bearer s3cret");
    assert!(!format!("{summary:?}{}", summary.to_json()).contains("s3cret"));
    let empty = Bench::new("\n\n");
    let summary = empty.send(&server, &flags);
    assert_eq!(
        (summary.exit(), server.seen().bodies.len()),
        (Exit::Done, 1)
    );
}

#[test]
fn a_rate_is_enforced() {
    // Fails if --rate has no effect: five requests of ten events, a tenth of a second apart.
    let bench = Bench::new(&events(50));
    let server = FakeServer::new();
    let summary = bench.send(&server, &["--rate", "100"]);
    assert_eq!(
        (summary.counts.accepted, summary.counts.requests),
        (50, 5),
        "small enough to be even"
    );
    assert!(summary.elapsed >= Duration::from_millis(400), "{summary}");
}

#[test]
fn a_grown_file_is_sent_from_where_it_ended() {
    // Fails if lines that were sent before are sent as new ones, or new lines under old ids.
    let bench = Bench::new(&events(3));
    let server = FakeServer::new();
    let first = bench.send(&server, &[]);
    fs::write(bench.file(), events(5) + events(1).trim_end()).expect("write");
    let second = bench.send(&server, &[]);
    assert_eq!((second.exit(), second.counts.accepted), (Exit::Done, 3));
    assert_eq!(second.run, first.run);
    assert_eq!(server.seen().stored.len(), 6);
    // The last line had no end. Now it has one, and another line after it.
    fs::write(bench.file(), events(5) + &events(2)).expect("write");
    let third = bench.send(&server, &[]);
    assert_eq!((third.exit(), third.lines), (Exit::Done, 7), "{third}");
    let expected = (1..=7).map(|n| {
        let times = if n == 6 { 2 } else { 1 };
        (format!("{}-{n:012}", first.run), times)
    });
    assert_eq!(server.seen().ids(), expected.collect());
    for blank in ["", "\n", " \n\n"] {
        fs::write(bench.file(), events(5) + &events(2) + blank).expect("write");
        assert_eq!(bench.send(&server, &[]).exit(), Exit::Usage, "{blank:?}");
    }
    // Changed content is sent only with --again, because it may be an edited file.
    fs::write(bench.file(), numbered(50..=51)).expect("write");
    let other = bench.send(&server, &[]);
    assert_eq!((other.exit(), other.counts.accepted), (Exit::Usage, 0));
    let other = bench.send(&server, &["--again"]);
    assert_eq!((other.exit(), other.counts.accepted), (Exit::Done, 2));
    assert_ne!(other.run, first.run);
}

#[test]
fn lines_that_are_all_refused_are_sent_once() {
    // Fails if lines that the answer does not name are sent again.
    let bench = Bench::new(&"{\"userId\": \"u\"}\n".repeat(500));
    let server = FakeServer::new();
    let summary = bench.send(&server, &[]);
    assert_eq!(
        (summary.counts.refused, summary.exit()),
        (500, Exit::Refused)
    );
    assert_eq!(server.seen().bodies.len(), 1);
}

#[test]
fn the_state_keeps_no_password() {
    let kept = run::without_credentials;
    assert_eq!(kept("http://user:pw@h:1/base"), "http://h:1/base");
    assert_eq!(kept("http://h:1/base"), "http://h:1/base");
}

#[test]
fn retry_after_is_bounded_by_retry_for() {
    // Fails if Retry-After is obeyed past --retry-for: the pause is what is left of it.
    let left = |after: u64| {
        let (patience, silent) = (Some(Duration::from_secs(2)), Duration::from_millis(500));
        let after = Some(Duration::from_secs(after));
        deliver::pause_before_retry(patience, silent, after, Duration::ZERO)
    };
    assert_eq!(left(86_400), Some(Duration::from_millis(1500)));
    assert_eq!(left(1), Some(Duration::from_secs(1)));
}
