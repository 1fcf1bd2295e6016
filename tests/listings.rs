//! The lists of users, segments, rejected lines and refused requests in the API, and the responses to waiting requests at
//! a shutdown.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::thread;

use serde_json::{Value, json};

use tallyline::data_dir::segment::Label;

use super::harness::http::Request;
use super::harness::{PATIENCE, Scratch, Server, arg, event, run, until, without_node};

fn segments(server: &Server) -> Vec<Value> {
    let listed = server.get("/segments?limit=10").expect(200).json();
    listed["segments"].as_array().expect("a list").clone()
}

#[test]
fn segments_are_listed_with_the_active_one_first() {
    // Fails if a state, a path or a count is wrong, or if the order is not by age.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    assert_eq!(segments(&server), Vec::<Value>::new());
    server.accept(event("u", 1).repeat(3));
    server.flush();
    until(PATIENCE, "the first is archived", || {
        let first = segments(&server).into_iter().next()?;
        let file = first["file"].as_str()?;
        file.starts_with("applied/").then_some(())
    });
    server.accept(event("u", 1));
    let [active, applied] = &segments(&server)[..] else {
        panic!("two segments: {:?}", segments(&server));
    };
    assert_eq!(active["name"], "events-000002");
    assert_eq!(
        (&active["state"], &active["file"], &active["sealedAt"]),
        (&json!("active"), &json!("events.jsonl"), &Value::Null)
    );
    assert_eq!(applied["name"], "events-000001");
    assert_eq!(
        (&applied["state"], &applied["events"]),
        (&json!("applied"), &json!(3))
    );
    assert_eq!(applied["bytes"], applied["appliedBytes"]);
    let file = applied["file"].as_str().expect("a path");
    let length = fs::metadata(scratch.data().join(file)).unwrap().len();
    assert_eq!(applied["bytes"], length);
    for time in ["sealedAt", "completedAt"] {
        humantime::parse_rfc3339(applied[time].as_str().expect(time)).expect(time);
    }
    server.get("/segments?limit=0").problem(400);
    server.get("/segments?limit=1001").problem(400);
    assert_eq!(
        server.get("/segments?limit=1").expect(200).json()["segments"][0]["name"],
        "events-000002"
    );
}

#[test]
fn rejected_lines_are_listed_from_the_end() {
    // Fails if a line that was not counted cannot be found by its file and offset.
    let scratch = Scratch::new();
    let (good, bad) = (event("u", 1), "{\"userId\":\"u\",\"value\":1}\n");
    scratch.file("data/events_more.jsonl", format!("{good}{bad}nonsense\n"));
    let server = Server::start(&scratch.data());
    let listed = until(PATIENCE, "both are rejected", || {
        let listed = server.get("/rejected").expect(200).json();
        (listed["rejected"].as_array()?.len() == 2).then_some(listed)
    });
    let [last, first] = &listed["rejected"].as_array().unwrap()[..] else {
        panic!("two lines: {listed}");
    };
    assert_eq!(first["segment"], "events_more.jsonl");
    assert_eq!(first["offset"], good.len());
    assert_eq!(first["line"], bad.trim_end());
    assert_eq!(last["line"], "nonsense");
    assert!(last["reason"].as_str().is_some_and(|why| !why.is_empty()));
    server.get("/rejected?limit=x").problem(400);
}

#[test]
fn waiting_requests_are_answered_during_a_shutdown() {
    // Fails if a shutdown closes connections of clients whose events are durable without a
    // response.
    let scratch = Scratch::new();
    let (server, db) = Server::with_database_locked(&scratch.data());
    let mut posts = server.connect();
    let mut gets = server.connect();
    let mut flushes = server.connect();
    let body = event("u", 1);
    let post = Request::new("POST", "/liveEvent?ack=applied&wait=60s").body(&body);
    posts.send(post.bytes()).unwrap();
    let position = until(PATIENCE, "it is durable", || {
        let end = format!("2-{}", body.len() + Label::BYTES);
        let status = server.status();
        (without_node(status["position"].as_str().unwrap()) == end).then_some(end)
    });
    let get = Request::new("GET", &format!("/userEvents/u?after={position}&wait=60s"));
    gets.send(get.bytes()).unwrap();
    flushes
        .stream()
        .write_all(&Request::new("POST", "/flush").bytes())
        .unwrap();
    until(PATIENCE, "all three are waiting", || {
        let metrics = server.get("/metrics").text();
        metrics
            .contains("tallyline_http_requests_in_flight 4")
            .then_some(())
    });
    let stopping = thread::spawn(move || server.stop());
    let durable = posts.reply().unwrap().expect(202).json();
    assert_eq!(durable["acked"], "durable");
    gets.reply().unwrap().problem(503);
    flushes.reply().unwrap().problem(503);
    drop(db);
    stopping.join().unwrap().expect(0);
}

#[test]
fn users_are_filtered_by_the_prefix_of_their_id() {
    // Fails if a user is missing or too many in a page, in one of the orders, or after the first page.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let ids = [
        "acme", "acme/eu", "acme/us", "acme0", "ACME", "acmé", "b", "acme%",
    ];
    let lines = ids.iter().zip(1..).map(|(id, value)| event(id, value));
    server.accept(lines.collect::<String>());
    server.flush();
    for (prefix, expected) in [
        ("acme", 5),
        ("acme%2F", 2),
        ("acme%25", 1),
        ("acm%C3%A9", 1),
        ("A", 1),
        ("", 8),
        ("c", 0),
    ] {
        for order in ["userId", "revenue", "-revenue"] {
            let path = format!("/userEvents?limit=2&prefix={prefix}&order={order}");
            let mut seen = BTreeSet::new();
            let mut page = server.get(&path).expect(200).json();
            loop {
                for user in page["users"].as_array().expect("a list") {
                    assert!(seen.insert(user["userId"].to_string()), "twice: {user}");
                }
                let Some(next) = page["next"].as_str() else {
                    break;
                };
                page = server
                    .get(&format!("{path}&cursor={next}"))
                    .expect(200)
                    .json();
            }
            assert_eq!(seen.len(), expected, "{prefix} {order}: {seen:?}");
        }
    }
    server.get("/userEvents?prefix=%FF").problem(400);
}

fn csv(server: &Server, query: &str) -> super::harness::http::Reply {
    let target = format!("/userEvents{query}");
    server.ask(&Request::new("GET", &target).header("Accept", "text/csv"))
}

#[test]
fn all_users_are_sent_as_csv() {
    // Fails if a row is missing, repeated or differs from `query --csv`, over several pieces.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let lines: String = (0..2500)
        .map(|n| event(&format!("u{n:04}, \"x\""), n))
        .collect();
    server.accept(lines);
    server.flush();
    let reply = csv(&server, "").expect(200);
    let kind = reply.header("Content-Type").expect("a type");
    assert!(kind.starts_with("text/csv"), "{kind}");
    assert_eq!(reply.header("Vary"), Some("Accept"));
    let text = reply.text();
    assert_eq!(text.lines().count(), 2501);
    let ran = run(&[
        "query",
        "--csv",
        "--top",
        "5000",
        "--data-dir",
        arg(&server.data),
    ])
    .expect(0);
    let sorted = |text: &str| {
        let mut rows: Vec<_> = text.lines().map(str::to_owned).collect();
        rows.sort();
        rows
    };
    assert_eq!(sorted(&text), sorted(&ran.stdout));
    let (heading, rows) = text.split_once('\n').expect("rows");
    assert_eq!(heading, "userId,revenue,revenueMicros,events,updatedAt");
    assert!(rows.lines().is_sorted(), "in order of the id");
    assert_eq!(
        csv(&server, "?prefix=u12")
            .expect(200)
            .text()
            .lines()
            .count(),
        101
    );
    // One page, in any order.
    let page = csv(&server, "?limit=3&order=-revenue").expect(200).text();
    let revenues: Vec<_> = page
        .lines()
        .skip(1)
        .filter_map(|row| row.rsplit(',').nth(3))
        .collect();
    assert_eq!(revenues, ["2499", "2498", "2497"]);
    let refused = csv(&server, "?order=-revenue").problem(400).to_string();
    assert!(refused.contains("limit"), "{refused}");
    csv(&server, "?cursor=").problem(400);
    let head = Request::new("HEAD", "/userEvents").header("Accept", "text/csv");
    assert!(server.ask(&head).expect(200).body.is_empty());
}

#[test]
fn a_slow_reader_of_csv_holds_no_read_transaction() {
    // Fails if the rest of the WAL cannot be checkpointed while a client reads slowly, or if the rows
    // that it reads later are wrong.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = Server::with(&data, &["--flush-interval", "10ms"]);
    let padding = "p".repeat(240);
    for part in 0..8 {
        let users = (part * 5000)..((part + 1) * 5000);
        let lines: String = users
            .map(|n| event(&format!("{n:05}{padding}"), 1))
            .collect();
        server.accept(lines);
    }
    server.flush();
    // More bytes than the buffers of the kernel hold.
    let mut slow = server.connect();
    slow.send(
        Request::new("GET", "/userEvents")
            .header("Accept", "text/csv")
            .bytes(),
    )
    .expect("sent");
    let mut first = [0; 1];
    slow.stream().peek(&mut first).expect("the response begins");
    let db = rusqlite::Connection::open(data.join("revenue.db")).unwrap();
    until(PATIENCE, "the WAL is reset", || {
        server.accept(event("z", 1));
        server.flush();
        let busy: i64 = db
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))
            .ok()?;
        (busy == 0).then_some(())
    });
    let text = slow.reply().expect("the rest").text();
    assert_eq!(
        text.lines().filter(|row| row.contains(&padding)).count(),
        40_000
    );
}

#[test]
fn refused_requests_are_listed_with_their_first_error() {
    // Fails if the operator cannot see why requests are refused, or if an entry has the wrong reason.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let refused = || server.get("/refused").expect(200).json()["refused"].clone();
    assert_eq!(refused(), json!([]));
    server.accept(event("u", 1));
    let bad = event("u", 1) + r#"{"userId":"u","name":"add_revenue","value":-5}"#;
    for _ in 0..3 {
        server.post("/liveEvent", &bad).problem(422);
    }
    server.post("/liveEvent?invalid=skip", &bad).expect(202);
    server
        .post("/liveEvent?ack=yes", event("u", 1))
        .problem(400);
    let listed = refused();
    let one = |at: usize, name: &str| listed[at][name].clone();
    assert_eq!(listed.as_array().map(Vec::len), Some(3), "{listed}");
    assert_eq!(
        (one(2, "status"), one(2, "requests"), one(2, "events")),
        (json!(422), json!(3), json!(6))
    );
    assert_eq!(listed[2]["error"]["line"], 2);
    assert_eq!(listed[2]["error"]["code"], "negative");
    assert_eq!((one(1, "status"), one(1, "events")), (json!(202), json!(1)));
    assert_eq!(listed[1]["error"]["pointer"], "/value");
    assert_eq!(
        (one(0, "status"), one(0, "error")),
        (json!(400), Value::Null)
    );
    assert!(one(0, "detail").to_string().contains("ack"), "{listed}");
    humantime::parse_rfc3339(listed[0]["at"].as_str().expect("a time")).expect("RFC 3339");
}

#[test]
fn the_history_has_the_counters_of_the_last_minutes() {
    // Fails if the status page has to wait for its first samples.
    let scratch = Scratch::new();
    let server = Server::with(&scratch.data(), &["--flush-interval", "10ms"]);
    server.accept(event("u", 1).repeat(7));
    server.flush();
    until(PATIENCE, "a sample after the events", || {
        let history = server.get("/history").expect(200).json();
        let last = |name: &str| history[name].as_array().expect("a column").last().cloned();
        let lengths: BTreeSet<_> = history
            .as_object()
            .expect("columns")
            .values()
            .map(|column| column.as_array().map(Vec::len))
            .collect();
        assert_eq!(lengths.len(), 1, "{history}");
        assert!(
            history["atMs"]
                .as_array()
                .expect("times")
                .is_sorted_by_key(Value::as_i64)
        );
        (last("accepted") == Some(json!(7)) && last("processed") == Some(json!(7))).then_some(())
    });
}

#[test]
fn the_edges_of_a_wait_are_as_described() {
    // Fails if a value that openapi.json allows is rejected, or one beyond its bounds is accepted.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    server.accept(event("u", 1));
    server.flush();
    for (wait, status) in [
        ("0", 200),
        ("0s", 200),
        ("60s", 200),
        ("60000ms", 200),
        ("1m", 200),
        ("61s", 400),
        ("60001ms", 400),
        ("2m", 400),
        ("5", 400),
        ("", 400),
        ("-1s", 400),
    ] {
        let reply = server.get(&format!("/userEvents/u?wait={wait}"));
        assert_eq!(reply.status, status, "wait={wait}");
    }
    for (wait, status) in [
        ("0", 200),
        ("10m", 200),
        ("600s", 200),
        ("601s", 400),
        ("11m", 400),
    ] {
        let reply = server.post(&format!("/flush?wait={wait}"), "");
        assert_eq!(reply.status, status, "wait={wait}");
    }
    for headers in [
        &["ce-id"][..],
        &["ce-type", "ce-source"],
        &["ce-specversion"],
    ] {
        let request = Request::new("POST", "/liveEvent").body(event("u", 1));
        let request = headers
            .iter()
            .fold(request, |request, name| request.header(name, "1.0"));
        server.ask(&request).problem(422);
    }
    let alone = Request::new("POST", "/liveEvent")
        .header("ce-subject", "v")
        .body(event("u", 1));
    server.ask(&alone).expect(202);
    server.get("/userEvents?cursor=").problem(400);
}
