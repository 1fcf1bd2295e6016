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
fn giving_up_fails_and_the_run_can_be_continued() {
    let bench = Bench::new(&events(100));
    let fails = Arc::new(AtomicUsize::new(30));
    let until = Arc::clone(&fails);
    let server = FakeServer::with(move |number, _| {
        let answer = Instead::Answer(503, "{\"detail\": \"down\"}");
        (number >= until.load(Ordering::Relaxed)).then_some(answer)
    });
    let flags = ["--batch", "1", "--connections", "1", "--retry-for", "0s"];
    let first = bench.send(&server, &flags);
    assert_eq!((first.exit(), first.counts.accepted), (Exit::Failed, 30));
    assert!(
        last_line(&first).starts_with("FAILED: not everything was sent; acknowledged: 30 lines"),
        "{first}"
    );
    assert!(failure(&first).contains("down"), "{}", failure(&first));
    fails.store(usize::MAX, Ordering::Relaxed);
    let second = bench.send(&server, &flags);
    assert_eq!((second.exit(), second.counts.accepted), (Exit::Done, 70));
    assert_eq!((&second.run, second.lines_earlier), (&first.run, 30));
    assert_eq!(server.seen().ids().len(), 100);
}

#[test]
fn refusals_of_an_earlier_attempt_are_counted() {
    let bench = Bench::new(&format!("bad\n{}", events(2)));
    let server = FakeServer::with(|number, _| (number == 2).then_some(Instead::Answer(503, "")));
    let flags = ["--batch", "1", "--connections", "1", "--retry-for", "0s"];
    assert_eq!(bench.send(&server, &flags).exit(), Exit::Failed);
    let second = bench.send(&server, &flags);
    assert_eq!((second.exit(), second.counts.refused), (Exit::Refused, 0));
    assert_eq!(second.refused(), 1);
}

/// Sends, requests a stop at request `at`, and returns the summary.
fn stopped_at(bench: &Bench, flags: &[&str], at: usize) -> (SendSummary, FakeServer) {
    let stop = Shutdown::default();
    let asked = stop.clone();
    let server = FakeServer::with(move |number, _| {
        if number == at {
            asked.request();
        }
        None
    });
    let summary = send(&bench.config(&server, flags), &stop);
    (summary, server)
}

#[test]
fn a_stop_finishes_current_requests_and_the_run_can_be_continued() {
    let bench = Bench::new(&events(1000));
    // With several connections, a batch after one that was not sent is sent again; its ids are the same.
    let (first, one) = stopped_at(&bench, &["--batch", "10", "--connections", "1"], 20);
    assert_eq!(first.exit(), Exit::Failed);
    assert!(
        last_line(&first).starts_with("STOPPED before the end"),
        "{first}"
    );
    assert_eq!(first.counts.accepted, one.seen().stored.len() as u64);
    let two = FakeServer::new();
    let second = bench.send(&two, &["--batch", "7"]);
    assert_eq!(second.exit(), Exit::Done);
    let mut ids = one.seen().ids();
    ids.extend(two.seen().ids());
    assert_eq!(ids.len(), 1000);
    assert_eq!(one.seen().stored.len() + two.seen().stored.len(), 1000);
}

#[test]
fn a_crash_loses_progress_but_not_the_run() {
    let bench = Bench::new(&events(50));
    let (first, one) = stopped_at(&bench, &["--batch", "1", "--connections", "1"], 5);
    // As if killed before any progress was written: the state has the name only.
    let text = fs::read_to_string(bench.state()).expect("state");
    let mut state: serde_json::Value = serde_json::from_str(&text).expect("state");
    for figure in ["lines", "bytes", "accepted"] {
        state["runs"][0][figure] = 0.into();
    }
    fs::write(bench.state(), serde_json::to_string(&state).expect("json")).expect("write");
    let two = FakeServer::new();
    let second = bench.send(&two, &[]);
    assert_eq!((&second.run, second.counts.accepted), (&first.run, 50));
    let mut ids = two.seen().ids();
    ids.extend(one.seen().ids());
    assert_eq!(ids.len(), 50);
}

#[test]
fn changed_content_does_not_continue_a_run() {
    let bench = Bench::new(&events(50));
    stopped_at(&bench, &["--batch", "1", "--connections", "1"], 5);
    let server = FakeServer::new();
    fs::write(bench.file(), numbered(100..200)).expect("write");
    let refused = bench.send(&server, &[]);
    assert_eq!(refused.exit(), Exit::Failed);
    assert!(
        failure(&refused).contains("tallyline-state"),
        "{}",
        failure(&refused)
    );
    assert_eq!(server.seen().bodies.len(), 0);
    assert!(failure(&refused).contains("--again"), "{refused}");
    // A file that has grown is accepted: what may have been sent is still there.
    fs::write(bench.file(), events(60)).expect("write");
    assert_eq!(bench.send(&server, &[]).exit(), Exit::Done);
    assert!(
        server
            .seen()
            .ids()
            .keys()
            .any(|id| id.ends_with("-000000000060"))
    );
}

#[test]
fn other_ids_than_the_run_was_begun_with_are_refused() {
    let bench = Bench::new(&events(50));
    stopped_at(&bench, &["--batch", "1"], 5);
    let server = FakeServer::new();
    for flags in [&["--no-ids"][..], &["--source", "x"]] {
        let refused = bench.send(&server, flags);
        assert!(failure(&refused).contains("was begun with generated ids"));
    }
}

#[test]
fn gzip_is_detected_by_content_and_its_run_continues() {
    let bench = Bench::new("");
    let file = fs::File::create(bench.file()).expect("file");
    let mut gzip = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, events(300).as_bytes()).expect("write");
    gzip.finish().expect("write");
    let (first, one) = stopped_at(&bench, &["--batch", "10"], 3);
    let two = FakeServer::new();
    let second = bench.send(&two, &["--batch", "10"]);
    assert_eq!((second.exit(), &second.run), (Exit::Done, &first.run));
    // A request that timed out is sent again with the same ids.
    let mut ids = one.seen().ids();
    ids.extend(two.seen().ids());
    assert_eq!(ids.len(), 300);
}

#[test]
fn stdin_continues_where_its_state_ends_if_it_is_the_same() {
    let bench = Bench::new(&events(100));
    let text = events(100);
    let stream = |text: &str, server: &FakeServer, stop: &Shutdown| {
        let mut config = bench.config(server, &["--batch", "10", "--connections", "1"]);
        config.state = Some(bench.path("state"));
        let source =
            InputSource::stream(std::io::Cursor::new(text.to_owned()), stop).expect("thread");
        let mut summary = bench.send(&FakeServer::new(), &[]);
        summary.counts = Counts::default();
        summary.verdict =
            send_once(&config, source, stop, &mut summary).unwrap_or_else(SendOutcome::Failed);
        summary
    };
    let stop = Shutdown::default();
    let asked = stop.clone();
    let one = FakeServer::with(move |number, _| {
        if number == 4 {
            asked.request();
        }
        None
    });
    assert!(matches!(
        stream(&text, &one, &stop).verdict,
        SendOutcome::Stopped
    ));
    let two = FakeServer::new();
    let other = stream(&numbered(7..99), &two, &Shutdown::default());
    assert!(failure(&other).contains("cannot continue the run of"));
    let second = stream(&text, &two, &Shutdown::default());
    assert!(
        matches!(second.verdict, SendOutcome::Complete),
        "{second:?}"
    );
    assert_eq!((one.seen().stored.len(), two.seen().stored.len()), (50, 50));
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
fn arrays_are_sent_element_by_element() {
    let event =
        |n: u64| format!("{{\"userId\": \"u\",\n \"name\": \"add_revenue\", \"value\": {n}\n}}");
    let three: Vec<_> = (1..=3).map(event).collect();
    for text in [
        format!("[{}]", three.join(",")).replace('\n', ""),
        format!("\u{feff}[\n{}\n]\n", three.join(",\n")),
        format!("[\n  {}\n]", three.join("\n  ,\n  ")),
    ] {
        let bench = Bench::new(&text);
        let server = FakeServer::new();
        let flags = ["--source", "s", "--batch", "2", "--connections", "1"];
        let summary = bench.send(&server, &flags);
        assert_eq!(summary.exit(), Exit::Done, "{text}: {summary}");
        let expected = (1..=3).map(|n| (format!("s-{n:012}"), 1)).collect();
        assert_eq!(server.seen().ids(), expected, "{text}");
    }
}

#[test]
fn the_run_of_an_array_continues_and_grows() {
    let array = |count: u64| format!("[\n{}\n]\n", events(count).trim_end().replace('\n', ",\n"));
    let bench = Bench::new(&array(100));
    let flags = ["--batch", "1", "--connections", "1"];
    let (first, one) = stopped_at(&bench, &flags, 20);
    let two = FakeServer::new();
    let second = bench.send(&two, &flags);
    assert_eq!((second.exit(), &second.run), (Exit::Done, &first.run));
    let mut ids = one.seen().ids();
    ids.extend(two.seen().ids());
    assert_eq!(ids.len(), 100);
    assert_eq!(bench.send(&two, &flags).exit(), Exit::Usage);
    fs::write(bench.file(), array(103)).expect("write");
    let third = bench.send(&two, &flags);
    assert_eq!((third.counts.accepted, third.run), (3, first.run));
    assert_eq!(third.lines, 103);
}

#[test]
fn a_broken_array_is_sent_up_to_its_fault_and_reported() {
    let one = events(1);
    let one = one.trim_end();
    for (text, accepted, refused) in [
        (format!("[{one},{one}"), 2, 1),
        (format!("[{one},"), 1, 1),
        (format!("[{one},,{one}]"), 2, 1),
        (format!("[{one} {one},{one}]"), 1, 1),
        (format!("[{one}]\n{one}\nnonsense\n[{one}]"), 3, 1),
    ] {
        let bench = Bench::new(&text);
        let server = FakeServer::new();
        let summary = bench.send(&server, &[]);
        let counts = (summary.counts.accepted, summary.counts.refused);
        assert_eq!(counts, (accepted, refused), "{text}: {summary}");
        assert_eq!(summary.exit(), Exit::Refused);
    }
}

#[test]
fn other_formats_are_refused_before_anything_is_sent() {
    let utf_16: Vec<u8> = events(2)
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    let mut zipped = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut zipped, b"userId,name,value\nu,add_revenue,1\n").expect("zip");
    let zipped = zipped.finish().expect("zip");
    for (bytes, word) in [
        (&b"userId,name,value\nu,add_revenue,1\n"[..], "CSV"),
        (&zipped, "CSV"),
        (&utf_16, "iconv"),
        (b"PK\x03\x04rest", "unzip -p"),
    ] {
        let bench = Bench::new("");
        fs::write(bench.file(), bytes).expect("write");
        let server = FakeServer::new();
        let summary = bench.send(&server, &[]);
        assert_eq!(summary.exit(), Exit::Failed);
        assert!(failure(&summary).contains(word), "{}", failure(&summary));
        assert_eq!(last_line(&summary), "FAILED: nothing was sent");
        let path = bench.path("stdin");
        fs::write(&path, bytes).expect("write");
        let stdin = fs::File::open(path).expect("open");
        let stop = Shutdown::default();
        let mut summary = bench.send(&server, &["--wait", "0s"]);
        let source = InputSource::stream(stdin, &stop).expect("thread");
        let mut config = bench.config(&server, &[]);
        config.state = None;
        let failed = send_once(&config, source, &stop, &mut summary).expect_err("no events");
        assert!(failed.to_string().contains(word), "{failed}");
        assert_eq!(server.seen().bodies.len(), 0);
        assert!(!bench.state().exists());
    }
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
