//! The main task on real input: server, client and files together.

use std::fs;
use std::path::Path;
use std::thread;

use super::harness::recount::{event_files, open_database};
use super::harness::suite::Locked;
use super::harness::{
    PATIENCE, Process, Scratch, Server, arg, database, event, generated, names_in, recount,
    recount_files, run, tallyline, until,
};

/// Events of a big run: a million in an optimised build, or `TALLYLINE_TEST_EVENTS`.
fn big() -> u64 {
    let default = if cfg!(debug_assertions) {
        100_000
    } else {
        1_000_000
    };
    std::env::var("TALLYLINE_TEST_EVENTS").map_or(default, |events| {
        events.parse().expect("a number of events")
    })
}

/// Asserts the contents of the data directory after everything was applied and all processes ended.
fn assert_everything_archived(data: &Path) {
    let stays = [
        "applied",
        "quarantine",
        "serve.lock",
        "process.lock",
        "directory.json",
    ];
    let left: Vec<_> = names_in(data)
        .into_iter()
        .filter(|name| !stays.contains(&name.as_str()))
        // An empty events.jsonl may be left for the next start.
        .filter(|name| name != "events.jsonl" || fs::metadata(data.join(name)).unwrap().len() > 0)
        .collect();
    let database = match super::harness::suite::url(data) {
        Some(_) => "node.json",
        None => "revenue.db",
    };
    assert_eq!(
        left,
        [database],
        "one database file, every segment in applied/"
    );
}

#[test]
fn a_big_run_equals_an_independent_recount() {
    // Fails if one event of the run is lost, duplicated or counted for another user at any stage:
    // sender, socket, file, rotation, threads, transaction, GET.
    let scratch = Scratch::new();
    let input = generated(&scratch, big(), 1000, 1);
    let truth = recount_files(std::slice::from_ref(&input));
    assert_eq!(truth.applied, big());
    let data = scratch.data();
    let flags = [
        "--rotate-size",
        "1MiB",
        "--rotate-interval",
        "1s",
        "--flush-interval",
        "100ms",
    ];
    let server = Server::with(&data, &flags);
    run(&["send", arg(&input), "--to", &server.url()]).expect(0);
    server.flush();

    let status = server.assert_balanced();
    assert_eq!(status["applied"], big(), "{status}");
    assert_eq!(status["pending"], 0, "{status}");
    for (user, (micros, events)) in truth.users.iter().take(20) {
        let shown = server.get(&format!("/userEvents/{user}")).expect(200);
        let shown = shown.text();
        let total = super::harness::recount::shown(&shown);
        assert_eq!(total, (*micros, *events), "{shown}");
    }
    assert_eq!(database(&data), truth.users, "while running");
    until(PATIENCE, "every segment is in the archive", || {
        let waiting = names_in(&data);
        (!waiting.iter().any(|name| name.starts_with("events-"))).then_some(())
    });

    server.stop().expect(0);
    assert_everything_archived(&data);
    assert_eq!(database(&data), truth.users, "after the shutdown");
    assert_eq!(
        recount(&data).users,
        truth.users,
        "a recount of the files agrees"
    );
    assert!(event_files(&data).len() > 2, "the journal was rotated");
    run(&["verify", "--data-dir", arg(&data)]).expect(0);
}

#[test]
fn the_user_revenue_view_agrees_with_the_exact_totals() {
    // Fails if `SELECT * FROM user_revenue` shows another amount than the one stored.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = Server::start(&data);
    server.accept(r#"{"userId":"u","name":"add_revenue","value":10.25}"#);
    server.stop().expect(0);
    let db = open_database(&data);
    let sql = "SELECT user_id, revenue, events, updated_at, revenue_micros FROM user_revenue";
    // A REAL by contract; 10.25 has an exact representation.
    let row: (String, f64, i64, String, i64) = db
        .query_row(sql, [], |row| {
            Ok((
                row.get(0)?,
                row.get(1)?,
                row.get(2)?,
                row.get(3)?,
                row.get(4)?,
            ))
        })
        .unwrap();
    assert_eq!((&*row.0, row.2, row.4), ("u", 1, 10_250_000));
    assert_eq!(row.1.to_bits(), 10.25_f64.to_bits());
    humantime::parse_rfc3339(&row.3).expect("RFC 3339");
    for pragma in ["user_version", "application_id"] {
        let value: i64 = db
            .query_row(&format!("PRAGMA {pragma}"), [], |row| row.get(0))
            .unwrap();
        assert_ne!(value, 0, "{pragma}");
    }
    let mode: String = db
        .query_row("PRAGMA journal_mode", [], |row| row.get(0))
        .unwrap();
    assert_eq!(mode, "delete", "a clean shutdown leaves one database file");
}

#[test]
fn serve_send_and_process_apart_give_the_same_totals() {
    // Fails if `serve`, `send` and `process` only work in one process.
    let scratch = Scratch::new();
    let input = generated(&scratch, big() / 5, 500, 2);
    let truth = recount_files(std::slice::from_ref(&input));
    let data = scratch.data();
    let server = Server::with(&data, &["--no-process", "--rotate-size", "256KiB"]);
    run(&[
        "send",
        arg(&input),
        "--to",
        &server.url(),
        "--connections",
        "3",
    ])
    .expect(0);
    let status = server.assert_balanced();
    assert_eq!(status["pending"], truth.lines, "{status}");
    server.stop().expect(0);
    run(&["process", "--data-dir", arg(&data)]).expect(0);
    assert_eq!(database(&data), truth.users);
    assert_everything_archived(&data);
}

#[test]
fn single_events_and_batches_give_the_same_totals() {
    // Fails if the batch size changes the totals.
    let scratch = Scratch::new();
    let input = generated(&scratch, 500, 20, 3);
    let truth = recount_files(std::slice::from_ref(&input));
    let server = Server::start(&scratch.data());
    run(&["send", arg(&input), "--to", &server.url(), "--batch", "1"]).expect(0);
    server.stop().expect(0);
    assert_eq!(database(&scratch.data()), truth.users);
}

#[test]
fn a_file_counts_twice_only_with_again_and_a_source_only_once() {
    // Fails if a completed file is sent again without `--again`, or if `--source` does not
    // deduplicate.
    let scratch = Scratch::new();
    let input = generated(&scratch, 300, 20, 4);
    let server = Server::start(&scratch.data());
    let url = server.url();
    run(&["send", arg(&input), "--to", &url]).expect(0);
    run(&["send", arg(&input), "--to", &url]).expect(2);
    run(&["send", arg(&input), "--to", &url, "--again"]).expect(0);
    server.flush();
    assert_eq!(server.counter("applied"), 600);
    for _ in 0..2 {
        run(&["send", arg(&input), "--to", &url, "--source", "till-7"]).expect(0);
    }
    server.flush();
    let status = server.assert_balanced();
    assert_eq!(status["applied"], 900, "{status}");
    assert_eq!(status["duplicates"], 300, "{status}");
}

#[test]
fn the_demo_shows_the_sample_and_can_be_run_again() {
    // Fails if the demo shows wrong totals, or cannot be run a second time.
    let scratch = Scratch::new();
    for _ in 0..2 {
        let mut demo = tallyline(&["demo", "--exit", "--listen", "127.0.0.1:0"]);
        let ran = Process::start(demo.current_dir(scratch.path()))
            .finish()
            .expect(0);
        let total = |user: &str| {
            let of_user = |line: &&str| line.split_whitespace().next() == Some(user);
            let line = ran.stdout.lines().find(of_user);
            let line = line.unwrap_or_else(|| panic!("no line for {user}: {ran}"));
            line.split_whitespace().nth(1).map(str::to_owned)
        };
        for (user, revenue) in [
            ("user1", "50"),
            ("user2", "200"),
            ("café", "7.75"),
            ("acme/eu", "1000"),
            ("refunds@example.com", "-12.000001"),
            ("metered", "1000.000003"),
        ] {
            assert_eq!(total(user).as_deref(), Some(revenue), "{user}: {ran}");
        }
    }
    assert!(scratch.path().join("data/demo/revenue.db").exists());
    // The demo does not empty a directory that it did not create.
    let own = scratch.file("own/keep.txt", "mine");
    let own_dir = own.parent().unwrap();
    let args = [
        "demo",
        "--exit",
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        arg(own_dir),
    ];
    run(&args).expect(2);
    assert!(own.exists());
}

#[test]
fn concurrent_waiting_requests_share_one_flush() {
    // Fails if each request with `ack=applied` has its own transaction, or waits for the next
    // interval.
    const WAITING: u64 = 40;
    let scratch = Scratch::new();
    let server = Server::with(&scratch.data(), &["--flush-interval", "1h"]);
    let flushes = || -> u64 {
        let metrics = server.get("/metrics").expect(200).text();
        let count = "tallyline_flush_duration_seconds_count ";
        let line = metrics.lines().find_map(|line| line.strip_prefix(count));
        line.and_then(|count| count.parse().ok()).expect(&metrics)
    };
    server.accept(event("u", 1));
    server.flush();
    let before = flushes();
    // All of them queue while another connection holds the lock.
    let lock = Locked::database(&scratch.data());
    thread::scope(|scope| {
        for _ in 0..WAITING {
            scope.spawn(|| {
                let answer = server.post("/liveEvent?ack=applied&wait=60s", event("u", 1));
                answer.expect(200);
            });
        }
        until(PATIENCE, "all events are durable", || {
            (server.counter("lines") == 1 + WAITING).then_some(())
        });
        drop(lock);
    });
    // One commit that was in progress, one for all the others, and possibly one for the file
    // before: that it is fully applied is committed with the next range.
    let shared = flushes() - before;
    assert!((1..=3).contains(&shared), "{shared} flushes");
}
