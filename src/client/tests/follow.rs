//! `--follow`: a file that grows, is renamed, or is truncated.

use super::*;
use crate::cli::exit::Exit;

/// A server that counts events, and a function that waits for a count.
fn counting() -> (FakeServer, impl Fn(usize)) {
    let (sender, arrived) = mpsc::channel();
    let server = FakeServer::with(move |_, body| {
        sender.send(body.lines().count()).expect("the test listens");
        None
    });
    let wait_for = move |events: usize| {
        let mut count = 0;
        while count < events {
            let patience = Duration::from_secs(30);
            count += arrived.recv_timeout(patience).expect("in time");
        }
        assert_eq!(count, events);
    };
    (server, wait_for)
}

/// Stops the sender when dropped, because following does not end by itself.
struct Ends<'a>(&'a Shutdown);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.request();
    }
}

fn append(path: &Path, text: &str) {
    let mut file = fs::OpenOptions::new()
        .append(true)
        .open(path)
        .expect("open");
    std::io::Write::write_all(&mut file, text.as_bytes()).expect("append");
}

#[test]
fn a_followed_file_is_sent_across_its_rotation() {
    let bench = Bench::new(&events(5));
    let stop = Shutdown::default();
    let (server, wait_for) = counting();
    let config = bench.config(&server, &["--follow"]);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| send(&config, &stop));
        let _ends = Ends(&stop);
        wait_for(5);
        let mut file = fs::OpenOptions::new()
            .append(true)
            .open(bench.file())
            .expect("open");
        std::io::Write::write_all(&mut file, numbered(6..=8).as_bytes()).expect("append");
        wait_for(3);
        fs::rename(bench.file(), bench.path("events.jsonl.1")).expect("rename");
        std::io::Write::write_all(&mut file, numbered(9..=9).as_bytes()).expect("append");
        fs::write(bench.file(), numbered(10..=12)).expect("write");
        wait_for(4);
        stop.request();
        let summary = sender.join().expect("no panic");
        assert_eq!(summary.exit(), Exit::Done, "{summary}");
        assert!(
            last_line(&summary).starts_with("OK: stopped following"),
            "{summary}"
        );
    });
    assert_eq!(server.seen().ids().len(), 12);
    // Continued later, after another rotation: first the rest of the followed file.
    fs::rename(bench.file(), bench.path("events.jsonl.2")).expect("rename");
    let old = fs::read_to_string(bench.path("events.jsonl.2")).expect("read") + &numbered(13..=13);
    append(
        &bench.path("events.jsonl.2"),
        &old[old.len() - numbered(13..=13).len()..],
    );
    fs::write(bench.file(), numbered(14..=14)).expect("write");
    let stop = Shutdown::default();
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| send(&config, &stop));
        let _ends = Ends(&stop);
        wait_for(2);
        stop.request();
        sender.join().expect("no panic");
    });
    let ids = server.seen().ids();
    assert_eq!((ids.len(), ids.values().max()), (14, Some(&1)));
}

#[test]
fn a_copied_and_truncated_file_is_read_from_its_beginning() {
    // Fails if logrotate's copytruncate ends the following, or sends the copied lines again.
    let bench = Bench::new(&events(5));
    let stop = Shutdown::default();
    let (server, wait_for) = counting();
    let config = bench.config(&server, &["--follow"]);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| send(&config, &stop));
        let _ends = Ends(&stop);
        wait_for(5);
        fs::copy(bench.file(), bench.path("events.jsonl.1")).expect("copy");
        fs::write(bench.file(), "").expect("cut short");
        // Shorter than before, so that the truncation is noticed at any time.
        append(&bench.file(), &numbered(6..=7));
        wait_for(2);
        stop.request();
        let summary = sender.join().expect("no panic");
        assert_eq!(summary.exit(), Exit::Done, "{summary}");
    });
    let ids = server.seen().ids();
    assert_eq!((ids.len(), ids.values().max()), (7, Some(&1)));
}

#[test]
fn a_truncated_file_that_grew_past_its_length_is_detected_by_content() {
    // Fails if only the length is checked: the first lines of the new content are then skipped. The
    // line added before the copy was made comes from the copy.
    let bench = Bench::new(&events(5));
    let stop = Shutdown::default();
    let (server, wait_for) = counting();
    let config = bench.config(&server, &["--follow"]);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| send(&config, &stop));
        let _ends = Ends(&stop);
        wait_for(5);
        fs::write(bench.path("events.jsonl.1"), numbered(1..=6)).expect("a copy");
        let longer = numbered(100..=120);
        assert!(longer.len() > numbered(1..=6).len());
        // In one step, so that it is never seen shorter.
        let mut file = fs::OpenOptions::new()
            .write(true)
            .open(bench.file())
            .expect("open");
        std::io::Write::write_all(&mut file, longer.as_bytes()).expect("overwrite");
        wait_for(22);
        append(&bench.file(), &numbered(121..=121));
        wait_for(1);
        stop.request();
        let summary = sender.join().expect("no panic");
        assert_eq!(summary.exit(), Exit::Done, "{summary}");
    });
    let ids = server.seen().ids();
    assert_eq!((ids.len(), ids.values().max()), (28, Some(&1)));
    let stored = server.seen().stored.join("\n");
    for value in (1..=6).chain(100..=121) {
        assert!(stored.contains(&format!("\"value\": {value}}}")), "{value}");
    }
}

#[test]
fn a_file_truncated_between_runs_is_finished_from_its_copy() {
    // Fails if a restart of the sender loses the lines that only the copy has, or takes a file with the
    // same beginning for the copy.
    let bench = Bench::new(&events(5));
    fs::write(bench.path("older.jsonl"), events(9)).expect("write");
    let (server, wait_for) = counting();
    let config = bench.config(&server, &["--follow"]);
    let follow = |count: usize| {
        let stop = Shutdown::default();
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| send(&config, &stop));
            let _ends = Ends(&stop);
            wait_for(count);
            stop.request();
            sender.join().expect("no panic")
        })
    };
    follow(5);
    fs::write(
        bench.path("events.jsonl.1"),
        numbered((1..=5).chain(20..=21)),
    )
    .expect("copy");
    fs::write(bench.file(), numbered(100..=109)).expect("write");
    follow(12);
    let ids = server.seen().ids();
    assert_eq!((ids.len(), ids.values().max()), (17, Some(&1)));
    let stored = server.seen().stored.join("\n");
    for value in (1..=5).chain(20..=21).chain(100..=109) {
        assert!(stored.contains(&format!("\"value\": {value}}}")), "{value}");
    }
}
