//! What a node shows of the whole database (`--ignored`: needs PostgreSQL 15).

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use serde_json::{Value, json};

use super::harness::postgres::Postgres;
use super::harness::recount::event_files;
use super::harness::suite;
use super::harness::{
    PATIENCE, Process, Scratch, Server, SetAtEnd, arg, event, recount_files, run, until,
};

#[track_caller]
fn node(scratch: &Scratch, name: &str, url: &str) -> Server {
    let flags = ["--database", url, "--flush-interval", "20ms"];
    Server::with(&scratch.path().join(name), &flags)
}

/// The value of a metric, as text.
#[track_caller]
fn metric<'m>(metrics: &'m str, name: &str) -> &'m str {
    let mut lines = metrics.lines();
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {name} in\n{metrics}"))
}

/// The states of the nodes, in order.
fn states(nodes: &Value) -> Vec<String> {
    let nodes = nodes["nodes"].as_array().unwrap();
    let state = |node: &Value| node["state"].as_str().unwrap().to_owned();
    nodes.iter().map(state).collect()
}

#[test]
#[ignore = "needs PostgreSQL"]
fn any_node_shows_the_totals_and_the_state_of_all_nodes() {
    // Fails if a page adds up the users of several nodes, mixes the figures of a node with those of all nodes, or
    // shows a node that was stopped as ready.
    let server = Postgres::start();
    let url = server.database("tally");
    let scratch = Scratch::new();
    let a = node(&scratch, "a", &url);
    let alone = a.get("/nodes").expect(200).json();
    assert_eq!((&alone["users"], &alone["revenue"]), (&json!(0), &json!(0)));
    a.post(
        "/liveEvent?ack=applied",
        event("both", 1) + &event("only-a", 2),
    )
    .expect(200);
    assert_eq!(a.get("/nodes").json()["users"], 2, "of the only node");
    let b = node(&scratch, "b", &url);
    let big = 9_000_000_000_000_u64 / 10;
    b.post(
        "/liveEvent?ack=applied",
        event("both", big) + &event("only-b", big),
    )
    .expect(200);
    for at in [&a, &b] {
        let all = at.get("/nodes").expect(200).json();
        assert_eq!(all["events"], 4, "{all}");
        assert_eq!(all["revenueMicros"], "1800000000003000000", "{all}");
        assert!(all["updatedAt"].is_string(), "{all}");
        assert_eq!(all["nodes"].as_array().unwrap().len(), 2, "{all}");
        assert_eq!(all["nodes"][0]["applied"], 2, "{all}");
        assert_eq!(all["nodes"][0]["users"], 2, "{all}");
        assert_eq!(all["nodes"][1]["revenueMicros"], "1800000000000000000");
        let counted = until(PATIENCE, "the users are counted", || {
            let all = at.get("/nodes").json();
            (all["users"] == 3).then_some(all)
        });
        assert_eq!(states(&counted), ["ready", "ready"], "{counted}");
        // The node's own figures.
        let status = at.assert_balanced();
        assert_eq!(status["shared"], true, "{status}");
        assert_eq!(
            (&status["users"], &status["events"]),
            (&json!(2), &json!(2))
        );
        let ids = [&counted["nodes"][0]["id"], &counted["nodes"][1]["id"]];
        assert!(ids.contains(&&status["directory"]), "{status}");
        let metrics = at.get("/metrics").text();
        assert_eq!(metric(&metrics, "tallyline_events"), "2");
        assert_eq!(metric(&metrics, "tallyline_cluster_events"), "4");
        assert_eq!(
            metric(&metrics, "tallyline_cluster_nodes{state=\"ready\"}"),
            "2"
        );
        at.get("/nodes?limit=1").problem(400);
    }
    // A node that was stopped, and one that is not ready.
    let b_dir = scratch.path().join("b");
    b.stop().expect(0);
    server.run("tally", "UPDATE tallyline.node_status SET seen_at_ms = seen_at_ms - 60000, pending_lines = 5 WHERE node = 2");
    let all = a.get("/nodes").expect(200).json();
    assert_eq!(states(&all), ["ready", "not_reporting"], "{all}");
    let metrics = a.get("/metrics").text();
    assert_eq!(metric(&metrics, "tallyline_cluster_pending_lines"), "5");
    let oldest = metric(&metrics, "tallyline_cluster_oldest_report_seconds");
    assert!(oldest.parse::<f64>().unwrap() >= 60., "{oldest}");
    std::fs::write(b_dir.join("events.jsonl"), "").unwrap();
    std::fs::create_dir(b_dir.join("events_1.jsonl")).unwrap();
    let b = node(&scratch, "b", &url);
    let all = until(PATIENCE, "the node reports why it is not ready", || {
        let all = a.get("/nodes").json();
        (states(&all)[1] == "not_ready").then_some(all)
    });
    assert!(
        all["nodes"][1]["reasons"].to_string().contains("events_1"),
        "{all}"
    );
    b.stop().expect(0);
    // `process` does not report.
    let c_dir = scratch.path().join("c");
    let file = scratch.file("events_2.jsonl", event("only-c", 1));
    run(&[
        "process",
        "--data-dir",
        arg(&c_dir),
        "--database",
        &url,
        arg(&file),
    ])
    .expect(0);
    let all = a.get("/nodes").expect(200).json();
    assert_eq!(states(&all)[2], "never_reported", "{all}");
    assert_eq!(
        (&all["nodes"][2]["applied"], &all["events"]),
        (&json!(1), &json!(5))
    );
    let listed = run(&["nodes", "--database", &url]).expect(0).stdout;
    assert!(listed.contains("never reported"), "{listed}");
    a.stop().expect(0);
}

#[test]
#[ignore = "needs PostgreSQL"]
fn an_outage_leaves_the_figures_of_the_node() {
    // Fails if `/status` or `/metrics` needs the database, or if `/nodes` shows zeros while it is away.
    let mut server = Postgres::start();
    let url = server.database("tally");
    let scratch = Scratch::new();
    let a = node(&scratch, "a", &url);
    a.post("/liveEvent?ack=applied", event("u", 1)).expect(200);
    server.kill();
    a.accept(event("u", 1));
    let problem = a.get("/nodes").expect(503);
    assert!(problem.header("Retry-After").is_some());
    let status = a.get("/status").expect(200).json();
    assert_eq!(
        (&status["accepted"], &status["events"]),
        (&json!(2), &json!(1))
    );
    let metrics = a.get("/metrics").expect(200).text();
    assert_eq!(metric(&metrics, "tallyline_events"), "1");
    assert!(!metrics.contains("tallyline_cluster_"), "{metrics}");
}

/// `rsync -a FLAGS from/ to/`. A file may be renamed meanwhile.
fn rsync(from: &std::path::Path, to: &std::path::Path, flags: &[&str]) {
    let [from, to] = [from, to].map(|dir| format!("{}/", arg(dir)));
    let mut command = Command::new("rsync");
    command.arg("-a").args(flags).args([&from, &to]);
    let ran = Process::start(&mut command).finish();
    // 24: "some files vanished before they could be transferred".
    assert!(matches!(ran.code, Some(0 | 24)), "{ran}");
}

/// The dump of a database.
fn dump(server: &Postgres, from: &str) -> Vec<u8> {
    let command = Command::new("/usr/lib/postgresql/15/bin/pg_dump")
        .args(["-d", &server.url(from)])
        .output()
        .unwrap();
    assert!(command.status.success(), "{command:?}");
    command.stdout
}

/// Restores a dump into a new database, and returns its URL.
fn restore(server: &Postgres, dump: &[u8], to: &str) -> String {
    use std::io::Write as _;
    let url = server.database(to);
    let mut psql = Command::new("/usr/lib/postgresql/15/bin/psql")
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", &url])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    psql.stdin.take().unwrap().write_all(dump).unwrap();
    assert!(psql.wait().unwrap().success());
    url
}

#[test]
#[ignore = "needs PostgreSQL and rsync"]
fn files_a_dump_and_files_again_are_an_exact_backup_of_running_nodes() {
    // Fails if the recipe of data/docs/scaling.md loses an acknowledged event, counts one twice, or does not agree
    // with the files.
    let server = Postgres::start();
    let url = server.database("tally");
    let scratch = Scratch::new();
    let dirs = ["a", "b"].map(|name| scratch.path().join(name));
    let flags = [
        "--database",
        &url,
        "--flush-interval",
        "20ms",
        "--rotate-size",
        "16KiB",
    ];
    let nodes = dirs.each_ref().map(|dir| Server::with(dir, &flags));
    let (stop, acknowledged) = (AtomicBool::new(false), AtomicU64::new(0));
    let more = |count: u64| {
        let before = acknowledged.load(Ordering::Relaxed);
        until(PATIENCE, "more events are acknowledged", || {
            (acknowledged.load(Ordering::Relaxed) > before + count).then_some(())
        });
    };
    let copies = ["copy-a", "copy-b"].map(|name| scratch.path().join(name));
    let copy = |flags: &[&str]| {
        for (dir, to) in dirs.iter().zip(&copies) {
            rsync(dir, to, flags);
        }
    };
    let (before, dumped) = thread::scope(|scope| {
        let _stop_at_end = SetAtEnd(&stop);
        for (at, node) in nodes.iter().enumerate() {
            let (stop, acknowledged) = (&stop, &acknowledged);
            scope.spawn(move || send_until(node, at, stop, acknowledged));
        }
        more(500);
        copy(&[]);
        more(300);
        let before = acknowledged.load(Ordering::Relaxed);
        let dumped = dump(&server, "tally");
        more(300);
        copy(&[]);
        copy(&["--ignore-existing"]);
        (before, dumped)
    });
    for node in nodes {
        node.stop().expect(0);
    }
    let restored = restore(&server, &dumped, "restored");
    for dir in &copies {
        run(&["process", "--data-dir", arg(dir), "--database", &restored]).expect(0);
    }
    for dir in &copies {
        run(&["verify", "--data-dir", arg(dir), "--database", &restored]).expect(0);
    }
    let totals = suite::totals(&restored);
    let events: u64 = totals.values().map(|(_, events)| events).sum();
    // Half of the ids are at both nodes.
    assert!(events >= before / 2, "{events} of {before} events");
    let files: Vec<_> = copies.iter().flat_map(|dir| event_files(dir)).collect();
    assert_eq!(totals, recount_files(&files).users);
}

/// Sends events one by one; every second id is one that the other node gets, too.
fn send_until(node: &Server, at: usize, stop: &AtomicBool, acknowledged: &AtomicU64) {
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let id = if number % 2 == 0 {
            format!("both-{number}x")
        } else {
            format!("n{at}-{number:09}")
        };
        let user = number % 7;
        node.accept(format!(
            "{{\"id\":\"{id}\",\"userId\":\"u{user}\",\"name\":\"add_revenue\",\"value\":1}}\n"
        ));
        acknowledged.fetch_add(1, Ordering::Relaxed);
    }
}
