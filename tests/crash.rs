//! kill -9 during ingestion and applying, ten times: acknowledged events are present and counted
//! once.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::thread;

use super::harness::http::{Conn, Request};
use super::harness::recount::event_files;
use super::harness::{
    PATIENCE, Process, Scratch, Server, arg, database, event, files_below, generated, recount,
    recount_files, run, tallyline, until, without_node,
};

const ROUNDS: usize = 10;
const SENDERS: usize = 3;
const BATCH: usize = 20;

/// The batch with this name: [`BATCH`] lines of one unit each, all with an id.
fn batch(name: &str) -> String {
    (0..BATCH)
        .map(|line| {
            let user = line % 7;
            format!(
                "{{\"userId\":\"u{user}\",\"name\":\"add_revenue\",\"value\":1,\"id\":\"{name}-{line}\"}}\n"
            )
        })
        .collect()
}

fn post(conn: &mut Conn, name: &str) -> std::io::Result<u16> {
    let request = Request::new("POST", "/liveEvent").body(batch(name));
    Ok(conn.try_ask(&request)?.status)
}

/// Sends batches until the server is killed; returns the batch whose request failed.
fn send_until_cut_off(port: u16, prefix: &str, acked: &Mutex<Vec<String>>) -> String {
    let mut conn = Conn::open(port);
    for number in 0.. {
        let name = format!("{prefix}-{number}");
        match post(&mut conn, &name) {
            Ok(202) => acked.lock().unwrap().push(name),
            Ok(status) => panic!("{name}: {status}"),
            Err(_) => return name,
        }
    }
    unreachable!("the numbers are endless")
}

/// All ids in all event files.
fn ids_in_files(data: &Path) -> HashSet<String> {
    let text = |path| String::from_utf8(fs::read(path).unwrap()).expect("complete lines of UTF-8");
    event_files(data)
        .iter()
        .flat_map(|path| {
            let ids = |line: &str| {
                Some(
                    line.split_once("\"id\":\"")?
                        .1
                        .split('"')
                        .next()?
                        .to_owned(),
                )
            };
            text(path).lines().filter_map(ids).collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn acknowledged_lines_survive_kill_9_and_count_once() {
    // Fails if an acknowledgement is sent before its line is in the file, if recovery drops or
    // duplicates a complete line, or if a total and its offset differ after a crash.
    let scratch = Scratch::new();
    let data = scratch.data();
    let flags = ["--rotate-size", "16KiB", "--flush-interval", "10ms"];
    let acked = Mutex::new(Vec::new());
    for round in 0..ROUNDS {
        let server = Server::with(&data, &flags);
        let port = server.port;
        let target = acked.lock().unwrap().len() + 30 + 17 * (round % 4);
        let cut_off: Vec<String> = thread::scope(|scope| {
            let senders: Vec<_> = (0..SENDERS)
                .map(|sender| {
                    let prefix = format!("{round}-{sender}");
                    let acked = &acked;
                    scope.spawn(move || send_until_cut_off(port, &prefix, acked))
                })
                .collect();
            until(PATIENCE, "enough is acknowledged", || {
                (acked.lock().unwrap().len() >= target).then_some(())
            });
            server.kill();
            senders.into_iter().map(|s| s.join().unwrap()).collect()
        });
        let found = ids_in_files(&data);
        for name in acked.lock().unwrap().iter() {
            for line in 0..BATCH {
                let id = format!("{name}-{line}");
                assert!(found.contains(&id), "round {round}: {id} was acknowledged");
            }
        }
        // The failed batch is sent again: lines that were stored before the crash are duplicates
        // now.
        let server = Server::with(&data, &flags);
        let mut conn = server.connect();
        for name in cut_off {
            assert_eq!(post(&mut conn, &name).unwrap(), 202);
            acked.lock().unwrap().push(name);
        }
        if round % 2 == 0 {
            server.kill(); // crash the recovered server, perhaps while it applies
        } else {
            server.stop().expect(0);
        }
    }
    let server = Server::with(&data, &flags);
    server.flush();
    server.assert_balanced();
    server.get("/readyz").expect(200);
    server.stop().expect(0);
    let events = u64::try_from(acked.lock().unwrap().len() * BATCH).unwrap();
    let counted = database(&data);
    assert_eq!(counted.values().map(|total| total.1).sum::<u64>(), events);
    assert_eq!(counted, recount(&data).users);
    run(&["verify", "--data-dir", arg(&data)]).expect(0);
}

/// Waits until a part of the input is on the disk.
fn until_under_way(data: &Path, bytes: u64) {
    until(PATIENCE, "a part of the input is on the disk", || {
        // A file may be renamed between the listing and the read.
        let size = |path: &_| fs::metadata(path).map_or(0, |metadata| metadata.len());
        let found: u64 = files_below(data)
            .iter()
            .filter(|path| path.extension().is_some_and(|ext| ext == "jsonl"))
            .map(size)
            .sum();
        (found >= bytes).then_some(())
    });
}

#[test]
fn send_continues_after_server_crashes_and_counts_nothing_twice() {
    // Fails if `send` gives up at a reset connection, or sends accepted lines again without their
    // ids.
    let scratch = Scratch::new();
    let input = generated(&scratch, 20_000, 100, 1);
    let truth = recount_files(std::slice::from_ref(&input));
    let data = scratch.data();
    let mut server = Server::with(&data, &["--rotate-size", "256KiB"]);
    // The same port, so that the sender reconnects.
    let listen = format!("127.0.0.1:{}", server.port);
    let mut args = vec!["send", arg(&input)];
    let url = server.url();
    args.extend(["--to", &url, "--batch", "20"]);
    let mut sender = Process::start(&mut tallyline(&args));
    let size = fs::metadata(&input).unwrap().len();
    for round in 1..=3 {
        until_under_way(&data, size * round / 5);
        assert!(sender.exited().is_none(), "killed during the run");
        server.kill();
        server = Server::with(&data, &["--rotate-size", "256KiB", "--listen", &listen]);
    }
    sender.finish().expect(0);
    server.stop().expect(0);
    assert_eq!(database(&data), truth.users);
}

#[test]
fn a_killed_send_continues_and_counts_nothing_twice() {
    // Fails if a killed sender sends its file from the beginning under new ids.
    let scratch = Scratch::new();
    let input = generated(&scratch, 20_000, 100, 1);
    let truth = recount_files(std::slice::from_ref(&input));
    let data = scratch.data();
    let server = Server::start(&data);
    let size = fs::metadata(&input).unwrap().len();
    let url = server.url();
    let args = ["send", arg(&input), "--to", &url, "--batch", "20"];
    for round in 1..=3 {
        let mut sender = Process::start(&mut tallyline(&args));
        until_under_way(&data, size * round / 5);
        assert!(sender.exited().is_none(), "killed during the run");
        sender.kill();
    }
    run(&args).expect(0);
    server.stop().expect(0);
    assert_eq!(database(&data), truth.users);
}

#[test]
fn a_torn_line_is_kept_in_quarantine_and_ingestion_continues() {
    // Fails if a torn tail is counted, joined to the next line, or deleted.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = Server::start(&data);
    let before = server.accept(event("u", 1));
    server.kill();
    let active = data.join("events.jsonl");
    let torn = event("u", 1_000_000).trim_end().to_owned(); // complete except for its newline
    let kept = fs::read_to_string(&active).unwrap();
    fs::write(&active, format!("{kept}{torn}")).unwrap();
    let server = Server::start(&data);
    let after = server.accept(event("u", 1));
    server.flush();
    assert_eq!(server.get("/userEvents/u").expect(200).json()["revenue"], 2);
    let offset = |position: &str| {
        let (_, offset) = without_node(position).split_once('-').unwrap();
        offset.parse::<u64>().unwrap()
    };
    assert_eq!(offset(&after), offset(&before) + event("u", 1).len() as u64);
    let kept = data.join(format!("quarantine/torn-1-{}", offset(&before)));
    assert_eq!(fs::read_to_string(&kept).unwrap(), torn);
    server.assert_balanced();
}

#[test]
fn sigint_and_sigterm_shut_down_and_lose_nothing() {
    // Fails if SIGINT or SIGTERM loses acknowledged events, or leaves work for the next start.
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
        let scratch = Scratch::new();
        let data = scratch.data();
        let server = Server::with(
            &data,
            &["--flush-interval", "1h", "--rotate-interval", "1h"],
        );
        server.accept(event("u", 1).repeat(100));
        server.process.signal(signal);
        server.process.finish().expect(0);
        assert_eq!(database(&data)["u"], (100_000_000, 100));
    }
}

#[test]
fn a_shutdown_under_load_answers_every_accepted_request() {
    // Fails if a graceful shutdown drops a response, or loses an event that it acknowledged.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = Server::with(&data, &["--rotate-size", "64KiB"]);
    let port = server.port;
    let acked = Mutex::new(0u64);
    thread::scope(|scope| {
        for sender in 0..4 {
            let acked = &acked;
            scope.spawn(move || {
                let mut conn = Conn::open(port);
                for number in 0.. {
                    match post(&mut conn, &format!("{sender}-{number}")) {
                        Ok(202) => *acked.lock().unwrap() += 1,
                        Ok(503) | Err(_) => break,
                        Ok(status) => panic!("{status}"),
                    }
                }
            });
        }
        until(PATIENCE, "the load has begun", || {
            (*acked.lock().unwrap() > 100).then_some(())
        });
        server.stop().expect(0);
    });
    let counted: u64 = database(&data).values().map(|total| total.1).sum();
    let batch = u64::try_from(BATCH).unwrap();
    let acked = *acked.lock().unwrap() * batch;
    // Of each sender, at most the batch in flight was stored without a response.
    assert!(
        (acked..=acked + 4 * batch).contains(&counted),
        "{acked} {counted}"
    );
    assert_eq!(database(&data), recount(&data).users);
}
