//! Runs that are continued: after a failure, a stop or a crash.

use super::*;

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
pub(super) fn stopped_at(bench: &Bench, flags: &[&str], at: usize) -> (SendSummary, FakeServer) {
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
