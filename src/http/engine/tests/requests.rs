//! Requests and their replies.

use super::*;

#[test]
fn bursts_of_keep_alive_connections_are_all_answered() {
    let fixture = Fixture::start(Limits::default());
    for _ in 0..3 {
        let mut clients: Vec<_> = (0..128).map(|_| fixture.connect()).collect();
        for client in &mut clients {
            client.send("GET /burst HTTP/1.1\r\nHost: h\r\n\r\n");
        }
        for client in &mut clients {
            assert_eq!(client.answer(), (200, "/burst 0".into()));
        }
    }
    fixture.stop();
}

#[test]
fn bodies_small_and_large_and_chunked() {
    let fixture = Fixture::start(small());
    let mut client = fixture.connect();
    for length in [0, 1, 1024, 1025, 9_999, 10_000] {
        let body = "x".repeat(length);
        assert_eq!(client.post("/a", &body), (200, format!("/a {length}")));
        client.send("POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
        for piece in body.as_bytes().chunks(700) {
            let piece = String::from_utf8_lossy(piece);
            client.send(format!("{:x}\r\n{piece}\r\n", piece.len()));
        }
        client.send("0\r\n\r\n");
        assert_eq!(client.answer(), (200, format!("/c {length}")));
    }
    // Refused by its head: the body is discarded and the connection stays open.
    assert_eq!(
        client.post("/refused", &"x".repeat(9_000)),
        (404, String::new())
    );
    assert_eq!(client.ask("GET /on"), (200, "/on 0".into()));
    fixture.stop();
}

#[test]
fn ambiguous_framing_is_400_and_the_bytes_after_it_are_not_parsed() {
    let fixture = Fixture::start(Limits::default());
    for head in [
        "Content-Length: +3",
        "Content-Length: 3\r\nContent-Length: 4",
        "Content-Length: 3\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: gzip",
        "X: a\nContent-Length: 30",
        "X : a",
        "X: a\r\n folded: b",
    ] {
        let mut client = fixture.connect();
        client.send(format!(
            "POST /a HTTP/1.1\r\nHost: h\r\n{head}\r\n\r\nabcGET /held HTTP/1.1\r\nHost: h\r\n\r\n"
        ));
        assert_eq!(client.answer().0, 400, "{head}");
        client.ends();
    }
    fixture.serves();
    let smuggled = fixture.fake.held.lock().expect("unpoisoned").len();
    assert_eq!(smuggled, 0, "requests hidden in bodies");
    fixture.stop();
}

#[test]
fn another_version_is_505_at_once() {
    let fixture = Fixture::start(Limits::default());
    let hostile: Vec<_> = (0..50)
        .map(|_| {
            let mut client = fixture.connect();
            client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
            client
        })
        .collect();
    fixture.serves();
    for mut client in hostile {
        assert_eq!(client.answer().0, 505);
        client.ends();
    }
    fixture.serves();
    fixture.stop();
}

#[test]
fn a_hundred_pipelined_requests_are_answered_in_order_beside_other_clients() {
    let fixture = Fixture::start(Limits::default());
    let paths = ["/a", "/later", "/lookup", "/refused", "/dropped", "/worker"];
    let expected = |i: usize, length: usize| match paths[i % paths.len()] {
        "/refused" => (404, String::new()),
        "/dropped" => (500, String::new()),
        path => (200, format!("{path} {length}")),
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = fixture.connect();
                let mut sent = String::new();
                for i in 0..100 {
                    let body = "x".repeat(if i % 7 == 0 { 5_000 } else { i });
                    let path = paths[i % paths.len()];
                    sent.push_str(&post(path, &body));
                }
                client.send(&sent);
                for i in 0..100 {
                    let length = if i % 7 == 0 { 5_000 } else { i };
                    assert_eq!(client.answer(), expected(i, length), "request {i}");
                }
            });
        }
        for _ in 0..50 {
            fixture.serves();
        }
    });
    fixture.until("all are answered", |figures| figures.in_flight == 0);
    fixture.stop();
}

#[test]
fn continue_is_sent_when_the_request_is_in_turn() {
    let fixture = Fixture::start(Limits::default());
    let mut client = fixture.connect();
    client.send("GET /held HTTP/1.1\r\nHost: h\r\n\r\n");
    let expect = "POST /e HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
    client.send(expect);
    fixture.until("it is held", |figures| figures.in_flight == 1);
    echo(fixture.take_held());
    assert_eq!(client.answer(), (200, "/held 0".into()));
    assert_eq!(client.answer().0, 100);
    client.send("hi");
    assert_eq!(client.answer(), (200, "/e 2".into()));
    // A client that does not wait for `100 Continue` gets none.
    client.send(format!("{expect}hi"));
    assert_eq!(client.answer(), (200, "/e 2".into()));
    // A refused request gets its final reply instead.
    client.send(
        "POST /refused HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n",
    );
    assert_eq!(client.answer().0, 404);
    client.ends();
    fixture.stop();
}

#[test]
fn a_handler_that_panics_answers_500() {
    let fixture = Fixture::start(Limits::default());
    let mut client = fixture.connect();
    for path in ["/panics", "/admit-panics", "/dropped", "/blocking-panics"] {
        assert_eq!(client.ask(&format!("GET {path}")), (500, String::new()));
        assert_eq!(client.post(path, &"x".repeat(3_000)).0, 500);
        client = fixture.connect();
    }
    fixture.serves();
    fixture.stop();
}

#[test]
fn http_1_0_connection_close_head_and_continue() {
    let fixture = Fixture::start(Limits::default());
    let mut client = fixture.connect();
    client.send("GET /a HTTP/1.0\r\n\r\n");
    let (status, headers, _) = client.full_answer();
    assert_eq!(status, 200);
    assert!(headers.contains(&"connection: close".into()));
    client.ends();

    let mut client = fixture.connect();
    client.send("GET /a HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n");
    assert!(
        client
            .full_answer()
            .1
            .contains(&"connection: keep-alive".into())
    );
    client.send("GET /a HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    assert!(client.full_answer().1.contains(&"connection: close".into()));
    client.ends();

    let mut client = fixture.connect();
    client.send("HEAD /a HTTP/1.1\r\nHost: h\r\n\r\nGET /b HTTP/1.1\r\nHost: h\r\n\r\n");
    let mut text = String::new();
    client.stream.shutdown(Shutdown::Write).expect("shut");
    client.reader.read_to_string(&mut text).expect("both");
    assert!(text.contains("Content-Length: 4\r\n"), "{text}");
    assert!(text.contains("\r\n\r\nHTTP/1.1 200 OK"), "no body: {text}");

    let mut client = fixture.connect();
    client.send("POST /a HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    assert_eq!(client.answer().0, 100);
    client.send("hello");
    assert_eq!(client.answer(), (200, "/a 5".into()));
    client.send("POST /a HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\nhello");
    assert_eq!(client.answer(), (200, "/a 5".into()));
    assert_eq!(client.ask("GET /on"), (200, "/on 0".into()));
    fixture.stop();
}

#[test]
fn refusals_of_the_engine_are_counted_by_reason() {
    let limits = Limits {
        head_time: Duration::from_millis(50),
        ..small()
    };
    let fixture = Fixture::start(limits);
    let long = format!("GET /a HTTP/1.1\r\nX: {}", "x".repeat(17_000));
    let post = "POST /a HTTP/1.1\r\nHost: h\r\n";
    for (bytes, status, refusal) in [
        (
            &b"GET /a HTTP/1.1\n\n"[..],
            400,
            Refusal::Malformed("a line ends with LF instead of CRLF"),
        ),
        (TLS_HELLO, 400, Refusal::Tls),
        (b"GET /a HTTP/1.1\r\nX: ", 408, Refusal::HeadTimedOut),
        (
            format!("{post}Expect: more\r\n\r\n").as_bytes(),
            417,
            Refusal::Expectation,
        ),
        (
            format!("{post}Content-Length: 40001\r\n\r\n").as_bytes(),
            413,
            Refusal::BodyTooLarge,
        ),
        (long.as_bytes(), 431, Refusal::HeadTooLarge),
        (b"GET /a HTTP/1.2\r\n", 505, Refusal::Version),
    ] {
        let mut client = fixture.connect();
        client.send(bytes);
        let (answer, headers, _) = client.full_answer();
        assert_eq!(answer, status, "{refusal:?}");
        assert!(headers.contains(&"connection: close".into()), "{headers:?}");
        client.ends();
        let refused = fixture.fake.refused.lock().expect("unpoisoned").pop();
        assert_eq!(refused, Some(refusal));
    }
    fixture.stop();
}
