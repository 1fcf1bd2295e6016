//! The HTTP contract, case by case, against the real binary.

use std::fs;
use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use super::harness::http::{Conn, Request};
use super::harness::recount::shown;
use super::harness::suite::change;
use super::harness::{
    PATIENCE, Scratch, Server, arg, event, files_below, lines_in, names_in, run, until,
    without_node,
};

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn a_single_event_is_durable_when_acknowledged_and_then_counted() {
    // Fails if a position is not the end of the last line of the file, or a GET shows another
    // total.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let answer = server
        .post("/liveEvent", event("user1", 100))
        .expect(202)
        .json();
    let length = fs::metadata(scratch.data().join("events.jsonl"))
        .unwrap()
        .len();
    let position = answer["position"].as_str().unwrap();
    assert_eq!(without_node(position), format!("1-{length}"));
    assert_eq!(answer, json!({"accepted": 1, "position": position}));
    server.accept(r#"{"userId": "user1", "name": "subtract_revenue", "value": 50.25}"#);
    server.flush();
    let user = server.get("/userEvents/user1").expect(200);
    assert_eq!(user.header("Content-Type"), Some("application/json"));
    assert_eq!(shown(&user.text()), (49_750_000, 2));
    let user = user.json();
    assert_eq!(user["userId"], "user1");
    let updated = user["updatedAt"].as_str().unwrap();
    humantime::parse_rfc3339(updated).expect("RFC 3339");
}

#[test]
fn totals_that_are_read_together_are_those_of_their_users() {
    // Fails if a lookup that is read in one transaction with others gets the total of another user.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let events: Vec<_> = (1..=100).map(|n| event(&format!("u{n}"), n)).collect();
    server.post("/liveEvent", events.join("\n")).expect(202);
    server.flush();
    for _ in 0..3 {
        let clients: Vec<_> = (1..=200)
            .map(|n| {
                let mut client = Conn::open(server.port);
                let get = Request::new("GET", &format!("/userEvents/u{n}"));
                client.send(get.bytes()).unwrap();
                (n, client)
            })
            .collect();
        for (n, mut client) in clients {
            let reply = client.reply().unwrap();
            if n > 100 {
                reply.problem(404);
                continue;
            }
            let total = reply.expect(200).json();
            assert_eq!(total["userId"], format!("u{n}"));
            assert_eq!(total["revenue"], n);
        }
    }
}

#[test]
fn amounts_keep_every_digit() {
    // Fails if a total is converted to a float on input or output.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    server.accept(r#"{"userId":"big","name":"add_revenue","value":999999999999.999999}"#);
    server.accept(r#"{"userId":"big","name":"add_revenue","value":8000000000000e-1}"#);
    server.accept(r#"{"userId":"small","name":"subtract_revenue","value":0.000001}"#);
    server.flush();
    let shown = |user: &str| {
        server
            .get(&format!("/userEvents/{user}"))
            .expect(200)
            .text()
    };
    assert!(
        shown("big").contains("\"revenue\":1799999999999.999999"),
        "{}",
        shown("big")
    );
    assert!(
        shown("small").contains("\"revenue\":-0.000001"),
        "{}",
        shown("small")
    );
}

#[test]
fn a_body_is_an_object_an_array_or_lines() {
    // Fails if one of the three framings is misread: a line is lost, duplicated, or joined to
    // another.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let one = event("u", 1);
    let line = one.trim_end();
    let pretty = serde_json::to_string_pretty(&serde_json::from_str::<Value>(line).unwrap());
    for (body, events) in [
        (one.clone(), 1),
        (line.to_owned(), 1),
        (pretty.unwrap().replace('\n', "\r\n"), 1),
        (format!("[{line}]"), 1),
        (format!(" \n[ {line} ,\n{line},{line}]\n"), 3),
        (format!("{one}{one}"), 2),
        (format!("\r\n{line}\r\n\r\n{line}"), 2),
    ] {
        let answer = server.post("/liveEvent", &body).expect(202).json();
        assert_eq!(answer["accepted"], events, "{body}");
    }
    let file = scratch.data().join("events.jsonl");
    assert_eq!(lines_in(&file), 11);
    for stored in fs::read_to_string(&file).unwrap().lines() {
        let stored: Value = serde_json::from_str(stored).expect("one event, one line");
        assert_eq!(stored["userId"], "u");
    }
    server.flush();
    assert_eq!(server.get("/userEvents/u").expect(200).json()["events"], 11);
}

#[test]
fn user_ids_are_any_text() {
    // Fails if a path is not percent-decoded, is decoded twice, or is cut at an encoded slash.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    for (user, path) in [
        ("café", "caf%C3%A9"),
        ("acme/eu", "acme%2Feu"),
        ("50%25", "50%2525"),
        ("a+b c?d#e", "a+b%20c%3Fd%23e"),
        ("🦀", "%F0%9F%A6%80"),
        ("..", "%2E%2E"),
    ] {
        server.accept(event(user, 1));
        server.flush();
        let found = server.get(&format!("/userEvents/{path}")).expect(200);
        assert_eq!(found.json()["userId"], user, "{path}");
    }
    server.get("/userEvents/%FF").problem(400);
    server.get("/userEvents/%zz").problem(400);
    server.get("/userEvents/nobody").problem(404);
}

#[test]
fn ack_applied_means_that_a_get_shows_the_event() {
    // Fails if `ack=applied` is answered before the commit, or waits for the next flush (an hour
    // here).
    let scratch = Scratch::new();
    let server = Server::with(&scratch.data(), &["--flush-interval", "1h"]);
    for count in 1..=20 {
        let answer = server
            .post("/liveEvent?ack=applied&wait=50s", event("u", 1))
            .expect(200)
            .json();
        assert_eq!(answer["accepted"], 1);
        assert_eq!(
            server.get("/userEvents/u").expect(200).json()["events"],
            count
        );
    }
    server
        .post("/liveEvent?ack=perhaps", event("u", 1))
        .problem(400);
    server
        .post("/liveEvent?ack=applied&wait=soon", event("u", 1))
        .problem(400);
    assert_eq!(
        server.counter("accepted"),
        20,
        "a rejected query appends nothing"
    );
}

#[test]
fn without_a_processor_nothing_is_reported_as_applied() {
    // Fails if a server that applies nothing reports that something was applied, or lets a client
    // wait for it.
    let scratch = Scratch::new();
    let server = Server::with(&scratch.data(), &["--no-process"]);
    let answer = server
        .post("/liveEvent?ack=applied&wait=60s", event("u", 1))
        .expect(202)
        .json();
    assert_eq!(answer["acked"], "durable", "{answer}");
    let flush = server.post("/flush?wait=60s", "").problem(503);
    assert!(
        flush.to_string().contains("1-"),
        "reports what was rotated: {flush}"
    );
    let sealed = names_in(&scratch.data())
        .into_iter()
        .filter(|name| name.starts_with("events-"));
    assert_eq!(sealed.count(), 1, "rotated all the same");
}

#[test]
fn without_a_processor_more_counted_lines_than_there_are_make_it_unready() {
    // Fails if the difference is taken for 0 pending lines, so that the ledger balances by arithmetic.
    let scratch = Scratch::new();
    let server = Server::with(&scratch.data(), &["--flush-interval", "1h"]);
    let position = server.accept(event("u", 1));
    let look = format!("/userEvents/u?after={position}&wait=50s");
    server.get(&look).expect(200); // so that the database has a row of the segment
    server.kill();
    let more = "UPDATE segment SET lines = lines + 1, duplicates = duplicates + 1";
    change(&scratch.data(), more);
    let server = Server::with(&scratch.data(), &["--no-process"]);
    until(PATIENCE, "readiness reports it", || {
        let reasons = server.get("/readyz").text();
        reasons
            .contains("1 more lines were counted than")
            .then_some(())
    });
    let status = server.status();
    assert_eq!(status["unaccounted"], -1, "{status}");
    let metrics = server.get("/metrics").expect(200).text();
    assert!(
        metrics.contains("\ntallyline_unaccounted_lines -1\n"),
        "{metrics}"
    );
}

#[test]
fn pending_lines_of_an_imported_file_have_an_age() {
    // Fails if the lag is 0 while lines of a file are pending that this server did not receive.
    let lag = |server: &Server| {
        until(PATIENCE, "pending lines with a lag", || {
            let status = server.status();
            let seconds = status["lagSeconds"].as_f64().unwrap();
            (status["pending"] == 2 && seconds > 0.0).then_some(seconds)
        })
    };
    let over = |server: &Server| {
        until(PATIENCE, "no lag when everything is applied", || {
            let status = server.status();
            (status["pending"] == 0 && status["lagSeconds"] == 0.0).then_some(())
        });
        let scraped = server.get("/metrics").expect(200).text();
        assert!(
            scraped.contains("\ntallyline_apply_lag_seconds 0\n"),
            "{scraped}"
        );
    };
    let place = |scratch: &Scratch| {
        let part = scratch.file("part", event("u", 1).repeat(2));
        fs::rename(part, scratch.data().join("events_a.jsonl")).unwrap();
    };
    let scratch = Scratch::new();
    let (server, db) = Server::with_database_locked(&scratch.data());
    place(&scratch);
    let first = lag(&server);
    until(PATIENCE, "a growing lag", || {
        (lag(&server) > first).then_some(())
    });
    drop(db);
    over(&server);

    let scratch = Scratch::new();
    let server = Server::with(
        &scratch.data(),
        &["--no-process", "--flush-interval", "10ms"],
    );
    place(&scratch);
    let first = lag(&server);
    until(PATIENCE, "a growing lag", || {
        (lag(&server) > first).then_some(())
    });
    run(&["process", "--data-dir", arg(&scratch.data())]).expect(0);
    over(&server);
}

#[test]
fn a_get_can_wait_for_a_position() {
    // Fails if read-your-writes is violated: a response is older than the given position, within a
    // file, across a rotation, or after a kill.
    let scratch = Scratch::new();
    let server = Server::with(&scratch.data(), &["--flush-interval", "1h"]);
    for count in 1..=5 {
        let position = server.accept(event("u", 1));
        let path = format!("/userEvents/u?after={position}&wait=50s");
        assert_eq!(server.get(&path).expect(200).json()["events"], count);
        server.post("/flush", "").expect(200); // the same across a rotation
    }
    for malformed in ["", "7", "0-1", "1-x", "%2B1-1", "1-1-1"] {
        server
            .get(&format!("/userEvents/u?after={malformed}"))
            .problem(400);
    }
    server.get("/userEvents/u?after=1-1&wait=long").problem(400);
    let past = server.get("/userEvents/u?after=1-1&wait=50s").expect(200);
    assert_eq!(past.json()["events"], 5);
    let position = server.accept(event("u", 1));
    server.kill();
    let server = Server::with(&scratch.data(), &["--flush-interval", "1h"]);
    let path = format!("/userEvents/u?after={position}&wait=50s");
    assert_eq!(server.get(&path).expect(200).json()["events"], 6);
}

#[test]
fn a_position_that_is_not_applied_in_time_is_503() {
    // Fails if a wait that ends without the events looks like one that has them, or does not say that the client may
    // try again.
    let scratch = Scratch::new();
    let server = Server::with(&scratch.data(), &["--no-process"]);
    let position = server.accept(event("u", 1));
    let late = server.get(&format!("/userEvents/u?after={position}&wait=10ms"));
    assert!(late.header("Retry-After").is_some());
    late.problem(503);
}

#[test]
fn a_position_past_the_end_is_an_error() {
    // Fails if a position that no response contained is waited for, or answered as if its events were applied: past
    // the end of the active segment, of a sealed one, and of all segments.
    let scratch = Scratch::new();
    let server = Server::with(&scratch.data(), &["--flush-interval", "1h"]);
    let of = |position: &str| {
        let (position, node) = match position.split_once('@') {
            Some((position, node)) => (position, format!("@{node}")),
            None => (position, String::new()),
        };
        let (segment, offset) = position.split_once('-').unwrap();
        let [segment, offset] = [segment, offset].map(|digits| digits.parse::<u64>().unwrap());
        (segment, offset, node)
    };
    let refused = |segment: u64, offset: u64, node: &str| {
        for target in ["userEvents/u", "rejected"] {
            let path = format!("/{target}?after={segment}-{offset}{node}&wait=60s");
            let problem = server.get(&path).problem(400);
            assert!(
                problem.to_string().contains("past the end"),
                "{path}: {problem}"
            );
        }
    };
    let position = server.accept(event("u", 1));
    let (segment, end, node) = of(&position);
    refused(segment, end + 1, &node);
    refused(segment + 1, 0, &node);
    refused(segment + 998, 1, &node);
    server.flush();
    let next = server.accept(event("u", 1));
    assert!(of(&next).0 > segment, "the first segment is sealed");
    server.flush();
    refused(segment, end + 1, &node);
    refused(segment, 1 << 40, &node);
    for target in ["userEvents/u", "rejected"] {
        for position in [&position, &next] {
            server
                .get(&format!("/{target}?after={position}&wait=60s"))
                .expect(200);
        }
    }
}

#[test]
fn invalid_skip_stores_the_valid_lines_of_a_batch() {
    // Fails if `invalid=skip` loses a valid line, accepts an invalid one, or reports the wrong
    // line.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let body = format!("{}nonsense\n\n{}{{}}\n", event("u", 1), event("u", 2));
    let answer = server
        .post("/liveEvent?invalid=skip", &body)
        .expect(202)
        .json();
    assert_eq!(
        (&answer["accepted"], &answer["refused"]),
        (&json!(2), &json!(2))
    );
    assert!(answer["position"].is_string());
    let lines: Vec<_> = answer["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|error| (error["line"].as_u64().unwrap(), error["code"].clone()))
        .collect();
    assert_eq!(lines, [(2, json!("not_json")), (5, json!("missing"))]);
    let none = server.post("/liveEvent?invalid=skip", "{}\n[]\n");
    assert_eq!(none.problem(422)["errors"].as_array().unwrap().len(), 2);
    server
        .post("/liveEvent?invalid=perhaps", &body)
        .problem(400);
    server.flush();
    assert_eq!(server.get("/userEvents/u").expect(200).json()["revenue"], 3);
    server.assert_balanced();
}

#[test]
fn users_are_listed_in_order_page_by_page() {
    // Fails if a page skips, repeats or misorders a user; users with equal revenue are the
    // difficult case.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let users = (0..50).map(|n| (format!("u{n:02}"), n % 7));
    let mut expected: Vec<_> = users.collect();
    let body: String = expected.iter().map(|(user, n)| event(user, *n)).collect();
    server.accept(body);
    server.flush();
    let all = |order: &str| {
        let mut users = Vec::new();
        let mut cursor = String::new();
        loop {
            let path = format!("/userEvents?order={order}&limit=7{cursor}");
            let page = server.get(&path).expect(200).json();
            for user in page["users"].as_array().unwrap() {
                let id = user["userId"].as_str().unwrap().to_owned();
                users.push((id, user["revenue"].as_u64().unwrap()));
            }
            match &page["next"] {
                Value::Null => return users,
                next => cursor = format!("&cursor={}", next.as_str().unwrap()),
            }
            assert!(users.len() <= 50, "a cursor that repeats");
        }
    };
    assert_eq!(all("userId"), expected);
    expected.sort_by_key(|(user, revenue)| (*revenue, user.clone()));
    let by_revenue = all("revenue");
    let revenues = |users: &[(String, u64)]| users.iter().map(|user| user.1).collect::<Vec<_>>();
    assert_eq!(revenues(&by_revenue), revenues(&expected));
    let mut descending = revenues(&all("-revenue"));
    descending.reverse();
    assert_eq!(descending, revenues(&expected));
    let mut same = by_revenue;
    same.sort_by_key(|(user, revenue)| (*revenue, user.clone()));
    assert_eq!(same, expected, "every user once");
    for bad in [
        "order=age",
        "limit=0",
        "limit=x",
        "limit=1001",
        "cursor=forged",
    ] {
        server.get(&format!("/userEvents?{bad}")).problem(400);
    }
}

#[test]
fn flush_applies_and_archives_everything() {
    // Fails if `/flush` is answered before the acknowledged events are applied, or does not rotate.
    let scratch = Scratch::new();
    let server = Server::with(&scratch.data(), &["--flush-interval", "1h"]);
    for round in 1..=3 {
        let position = server.accept(event("u", 1));
        let answer = server.flush();
        assert!(answer["position"].is_string() && answer["applied"].is_string());
        assert_eq!(
            server.get("/userEvents/u").expect(200).json()["events"],
            round,
            "{position} {answer}"
        );
        assert_eq!(server.counter("pending"), 0);
    }
    server.flush(); // nothing new: no empty file is created
    let archive = scratch.data().join("applied");
    until(PATIENCE, "three segments in the archive", || {
        (files_below(&archive).len() == 3).then_some(())
    });
    let months = names_in(&archive);
    assert!(
        months
            .iter()
            .all(|m| m.len() == 7 && m.as_bytes()[4] == b'-'),
        "{months:?}"
    );
}

#[test]
fn pages_and_machine_readable_documents_are_served() {
    // Fails if a page for monitoring, scraping, code generation or browsing is missing or has the
    // wrong content type.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    server.accept(event("u", 1));
    server.flush();
    for (path, kind) in [
        ("/healthz", ""),
        ("/readyz", ""),
        ("/status", "application/json"),
        ("/nodes", "application/json"),
        ("/metrics", "text/plain"),
        ("/history", "application/json"),
        ("/refused", "application/json"),
        ("/openapi.json", "application/json"),
        ("/", "text/html"),
    ] {
        let reply = server.get(path).expect(200);
        let found = reply.header("Content-Type").unwrap_or_default();
        assert!(found.starts_with(kind), "{path}: {found}");
        assert!(!reply.body.is_empty(), "{path}");
    }
    let status = server.assert_balanced();
    for (name, value) in [
        ("received", json!(1)),
        ("accepted", json!(1)),
        ("refused", json!(0)),
        ("lines", json!(1)),
        ("applied", json!(1)),
        ("duplicates", json!(0)),
        ("rejected", json!(0)),
        ("pending", json!(0)),
        ("corrupt", json!(0)),
        ("ready", json!(true)),
        ("reasons", json!([])),
    ] {
        assert_eq!(status[name], value, "{name}: {status}");
    }
    assert!(status["lagSeconds"].is_number(), "{status}");
    let all = server.get("/nodes").json();
    for name in ["users", "events", "revenue", "revenueMicros", "updatedAt"] {
        assert_eq!(all[name], status[name], "{name}: {all}");
    }
    let nodes = all["nodes"].as_array().unwrap().len();
    assert_eq!(status["shared"], nodes == 1, "{all}");
    let metrics = server.get("/metrics").text();
    let samples = metrics.lines().filter(|line| !line.starts_with('#'));
    for sample in samples.filter(|line| !line.is_empty()) {
        assert!(sample.starts_with("tallyline_"), "{sample}");
    }
    assert!(metrics.contains("_total 1"), "{metrics}");
    assert!(server.get("/openapi.json").json()["paths"]["/liveEvent"]["post"].is_object());
}

#[test]
fn unknown_paths_are_404_and_wrong_methods_405() {
    // Fails if a wrong method is answered with 404 or without `Allow`, or if HEAD has a body.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    server.accept(event("u", 1));
    server.flush();
    for (path, allowed) in [
        ("/liveEvent", "POST"),
        ("/flush", "POST"),
        ("/userEvents/u", "GET"),
        ("/userEvents", "GET"),
        ("/healthz", "GET"),
        ("/readyz", "GET"),
        ("/status", "GET"),
        ("/nodes", "GET"),
        ("/metrics", "GET"),
        ("/openapi.json", "GET"),
        ("/", "GET"),
    ] {
        let reply = server.ask(&Request::new("DELETE", path));
        let allow = reply.header("Allow").unwrap_or_default().to_owned();
        reply.problem(405);
        let options = server.ask(&Request::new("OPTIONS", path)).expect(204);
        assert_eq!(options.header("Allow"), Some(&*allow), "{path}");
        assert!(options.header("Access-Control-Allow-Origin").is_none());
        let methods: Vec<_> = allow.split(", ").collect();
        assert!(methods.contains(&allowed), "{path}: {allow}");
        if allowed == "GET" {
            assert!(methods.contains(&"HEAD"), "{path}: {allow}");
            let mut conn = server.connect();
            let head = conn.ask(&Request::new("HEAD", path)).expect(200);
            // The next response on the connection follows the head immediately.
            let get = conn.ask(&Request::new("GET", path)).expect(200);
            if matches!(path, "/" | "/openapi.json" | "/userEvents/u") {
                assert_eq!(head.header("Content-Length"), get.header("Content-Length"));
            }
        } else {
            server.get(path).problem(405);
        }
    }
    for path in [
        "/favicon",
        "/liveEvents",
        "/userEvents/u/v",
        "//",
        "/status/",
    ] {
        server.get(path).problem(404);
    }
}

#[test]
fn gzip_bodies_are_decompressed_up_to_the_limit() {
    // Fails if a small body can expand to a large one in memory, or a body with an unknown encoding
    // is stored undecoded.
    let scratch = Scratch::new();
    let server = Server::with(&scratch.data(), &["--max-body", "1MiB"]);
    let encoded = |encoding: &str, body: Vec<u8>| {
        server.ask(
            &Request::new("POST", "/liveEvent")
                .header("Content-Encoding", encoding)
                .body(body),
        )
    };
    let lines = event("u", 1).repeat(3);
    let answer = encoded("gzip", gzip(lines.as_bytes())).expect(202).json();
    assert_eq!(answer["accepted"], 3);
    encoded("gzip", gzip(&vec![b' '; 64 << 20])).problem(413);
    encoded("gzip", b"not gzip".to_vec()).problem(400);
    let mut cut = gzip(lines.as_bytes());
    cut.truncate(cut.len() - 9);
    encoded("gzip", cut).problem(400);
    encoded("br", lines.clone().into_bytes()).problem(415);
    assert_eq!(server.counter("accepted"), 3);
    server.get("/readyz").expect(200);
}

#[test]
fn http_1_0_chunked_bodies_and_expect_continue_are_supported() {
    // Fails if HTTP/1.0, `Connection: close`, chunked bodies or `Expect: 100-continue` are not
    // supported.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let body = event("u", 1);
    let length = body.len();
    let mut old = server.connect();
    old.send(format!(
        "POST /liveEvent HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}"
    ))
    .unwrap();
    old.reply().unwrap().expect(202);
    assert!(old.rest().unwrap().is_empty(), "HTTP/1.0 ends by closing");
    let mut closing = server.connect();
    closing
        .ask(
            &Request::new("POST", "/liveEvent")
                .header("Connection", "close")
                .body(&body),
        )
        .expect(202);
    assert!(closing.rest().unwrap().is_empty());
    let mut chunked = server.connect();
    chunked
        .ask(
            &Request::new("POST", "/liveEvent")
                .header("Transfer-Encoding", "chunked")
                .body(format!("{length:x}\r\n{body}\r\n0\r\n\r\n")),
        )
        .expect(202);
    chunked.ask(&Request::new("GET", "/healthz")).expect(200);
    let mut careful = server.connect();
    careful
        .send(format!(
            "POST /liveEvent HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
        ))
        .unwrap();
    assert_eq!(careful.reply().unwrap().status, 100);
    careful.send(&body).unwrap();
    careful.reply().unwrap().expect(202);
    assert_eq!(server.counter("accepted"), 4);
}

#[test]
fn all_modes_of_cloudevents_are_accepted() {
    // Fails if one of the three modes of CloudEvents 1.0 is misread, or the same event counts twice
    // when it is sent in another mode.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let cloud = |id: &str| {
        json!({"specversion": "1.0", "id": id, "source": "/till/7", "type": "add_revenue",
               "subject": "u", "data": {"value": 2.5}})
    };
    let post = |kind: &str, body: String| {
        server.ask(
            &Request::new("POST", "/liveEvent")
                .header("Content-Type", kind)
                .body(body),
        )
    };
    post("application/cloudevents+json", cloud("1").to_string()).expect(202);
    let batch = json!([cloud("1"), cloud("2"), cloud("3")]);
    post("application/cloudevents-batch+json", batch.to_string()).expect(202);
    server
        .ask(
            &Request::new("POST", "/liveEvent")
                .header("Content-Type", "application/json")
                .header("ce-specversion", "1.0")
                .header("ce-id", "3")
                .header("ce-source", "/till/7")
                .header("ce-type", "add_revenue")
                .header("ce-subject", "u")
                .body(r#"{"value": 2.5}"#),
        )
        .expect(202);
    server.flush();
    let user = server.get("/userEvents/u").expect(200).text();
    assert_eq!(shown(&user), (7_500_000, 3));
    assert_eq!(server.assert_balanced()["duplicates"], 2);
    let mut foreign = cloud("4");
    foreign["type"] = json!("com.example.other");
    post("application/cloudevents+json", foreign.to_string()).problem(422);
}

#[test]
fn a_missing_segment_is_410_and_reported() {
    // Fails if a request waits for a position in a deleted file, or if `/readyz` does not report
    // the file.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let position = server.accept(event("u", 1));
    let path = format!("/userEvents/u?after={position}&wait=50s");
    server.get(&path).expect(200); // so that the database has a row of the segment
    let next = server.accept(event("u", 1));
    server.kill();
    fs::remove_file(scratch.data().join("events.jsonl")).unwrap();
    let server = Server::start(&scratch.data());
    let gone = server.get(&format!("/userEvents/u?after={next}&wait=50s"));
    gone.problem(410);
    let reasons = server.get("/readyz").expect(503).text();
    assert!(reasons.contains("reasons"), "{reasons}");
    assert!(!names_in(&scratch.data().join("quarantine")).is_empty());
    let after = server.accept(event("u", 1));
    assert!(
        after.starts_with("2-"),
        "ingestion continues in the next segment: {after}"
    );
}
