//! The lists of segments and of rejected lines in the API, and the responses to waiting requests at
//! a shutdown.

use std::fs;
use std::io::Write as _;
use std::thread;

use serde_json::{Value, json};

use tallyline::data_dir::segment::Label;

use super::harness::http::Request;
use super::harness::{PATIENCE, Scratch, Server, event, until};

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
        let length = fs::metadata(scratch.data().join("events.jsonl"))
            .ok()?
            .len();
        (length == (body.len() + Label::BYTES) as u64).then(|| format!("2-{length}"))
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
    db.execute_batch("ROLLBACK").unwrap();
    stopping.join().unwrap().expect(0);
}
