//! Clients that stall, send bursts, announce wrong lengths, never read, or open thousands of
//! connections.
//!
//! After each attack [`assert_bounded`] checks that the server is ready, its counters balance, and
//! each acknowledged event counts once.

use std::io::{ErrorKind, Write};
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::harness::http::{Conn, Request};
use super::harness::{PATIENCE, Scratch, Server, arg, database, event, recount, until};

/// Asserts that the server is ready, threads and descriptors are bounded, and `acked` events of
/// user `u` are counted once each.
#[track_caller]
pub(super) fn assert_bounded(server: &Server, acked: u64) {
    until(PATIENCE, "the server is ready and answers", || {
        let mut conn = Conn::try_open(server.port).ok()?;
        let ready = conn.try_ask(&Request::new("GET", "/readyz")).ok()?;
        (ready.status == 200).then_some(())
    });
    let posted = server
        .post("/liveEvent?ack=applied&wait=50s", event("u", 1))
        .expect(200);
    assert_eq!(posted.json()["accepted"], 1);
    server.flush();
    let status = server.assert_balanced();
    assert_eq!(status["accepted"], acked + 1, "{status}");
    let user = server.get("/userEvents/u").expect(200).json();
    assert_eq!(user["events"], acked + 1, "{user}");
    assert_eq!(database(&server.data), recount(&server.data).users);
    until(PATIENCE, "threads and descriptors are bounded", || {
        (server.proc_status("Threads") < 24 && server.descriptors() < 600).then_some(())
    });
}

pub(super) fn live(user: &str) -> Request {
    Request::new("POST", "/liveEvent").body(event(user, 1))
}

/// Opens `count` keep-alive connections at once and sends one POST on each; returns how many got a
/// response.
fn burst(port: u16, count: usize) -> usize {
    let mut conns: Vec<_> = (0..count).map(|_| Conn::open(port)).collect();
    for conn in &mut conns {
        conn.send(live("u").bytes()).unwrap();
    }
    // All stay open until the last response: no connection depends on the closing of another one.
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut answered = 0;
    for conn in &mut conns {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = left.max(Duration::from_millis(10));
        conn.stream().set_read_timeout(Some(left)).unwrap();
        answered += usize::from(conn.reply().is_ok_and(|reply| reply.status == 202));
    }
    answered
}

#[test]
fn every_connection_of_a_burst_gets_a_response() {
    // Fails if a connection is only served when another one closes. Runs on one processor.
    let scratch = Scratch::new();
    let data = scratch.data();
    let server = thread::spawn(move || {
        let all = sched_getaffinity(None).unwrap();
        let mut one = CpuSet::new();
        one.set((0..CpuSet::MAX_CPU).find(|&cpu| all.is_set(cpu)).unwrap());
        sched_setaffinity(None, &one).unwrap();
        Server::start(&data)
    });
    let server = server.join().unwrap();
    let bursts = [64, 128, 250, 250, 64];
    for count in bursts {
        assert_eq!(burst(server.port, count), count, "of {count} at once");
    }
    assert_bounded(&server, bursts.iter().sum::<usize>() as u64);
}

#[test]
fn an_absurd_content_length_is_413_and_does_not_affect_others() {
    // Fails if memory of the announced length is allocated: the process would abort.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    for length in ["100000000000000", "18446744073709551615", "33554433"] {
        for method in ["POST", "GET", "DELETE"] {
            let mut conn = server.connect();
            let request = Request::new(method, "/liveEvent").header("Content-Length", length);
            conn.send(request.bytes()).unwrap();
            let reply = conn.reply().expect("a response, not a reset");
            assert_eq!(reply.status, 413, "{method} {length}: {}", reply.text());
        }
    }
    let mut conn = server.connect();
    let past =
        Request::new("POST", "/liveEvent").header("Content-Length", "99999999999999999999999");
    conn.send(past.bytes()).unwrap();
    let status = conn.reply().expect("an answer").status;
    assert!(matches!(status, 400 | 413), "{status}");
    assert_bounded(&server, 0);
}

#[test]
fn a_chunked_body_over_the_limit_is_413() {
    // Fails if the total size of the chunks has no limit.
    let scratch = Scratch::new();
    let server = Server::with(&scratch.data(), &["--max-body", "64KiB"]);
    let before = server.proc_status("VmRSS");
    for _ in 0..20 {
        let mut conn = server.connect();
        conn.send(
            Request::new("POST", "/liveEvent")
                .header("Transfer-Encoding", "chunked")
                .bytes(),
        )
        .unwrap();
        let chunk = format!("10000\r\n{}\r\n", " ".repeat(65536));
        // The server may close at any point: it has sent its 413 by then.
        for _ in 0..64 {
            if conn.send(&chunk).is_err() {
                break;
            }
        }
        if let Ok(reply) = conn.reply() {
            assert_eq!(reply.status, 413, "{}", reply.text());
        }
    }
    let grown = server.proc_status("VmRSS").saturating_sub(before);
    assert!(grown < 64 << 10, "{grown} KiB more");
    assert_bounded(&server, 0);
}

#[test]
fn stalled_heads_and_bodies_do_not_delay_others() {
    // Fails if a client that sends half a request blocks a resource that other clients need.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let half_head = "POST /liveEvent HTTP/1.1\r\nHost: localhost\r\nContent-Le";
    let half_body = "POST /liveEvent HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n{";
    let half_chunk = "POST /liveEvent HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1000\r\n{";
    let mut stalled = Vec::new();
    for _ in 0..67 {
        for half in [half_head, half_body, half_chunk] {
            let mut conn = server.connect();
            conn.send(half).unwrap();
            stalled.push(conn);
        }
    }
    let mut acked = 0;
    for _ in 0..4 {
        let mut conn = server.connect();
        for _ in 0..50 {
            conn.ask(&live("u")).expect(202);
            acked += 1;
        }
    }
    // A slow client has no more effect than a stalled one.
    for conn in &mut stalled {
        let _may_be_cut_off = conn.send("x");
    }
    assert_eq!(burst(server.port, 32), 32);
    acked += 32;
    drop(stalled);
    assert_bounded(&server, acked);
}

#[test]
fn another_http_version_is_505_at_once() {
    // Fails if the server waits after such a request line, or keeps a thread or a descriptor.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let mut kept = Vec::new();
    for n in 0..50 {
        let mut conn = server.connect();
        let line = if n % 2 == 0 {
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        } else {
            "GET /healthz HTTP/2.0\r\nHost: localhost\r\n\r\n"
        };
        conn.send(line).unwrap();
        kept.push(conn);
    }
    assert_eq!(burst(server.port, 64), 64);
    for conn in &mut kept {
        conn.reply().unwrap().problem(505);
    }
    assert_bounded(&server, 64);
}

#[test]
fn a_hundred_pipelined_requests_are_answered_in_order() {
    // Fails if responses are sent in another order than the requests.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let port = server.port;
    let rounds = 5;
    let kinds = [
        (live("u"), "POST", 202),
        (Request::new("GET", "/healthz"), "GET", 200),
        (
            Request::new("POST", "/liveEvent").body("nonsense"),
            "POST",
            400,
        ),
        (Request::new("HEAD", "/status"), "HEAD", 200),
        (Request::new("GET", "/nowhere"), "GET", 404),
        (
            Request::new("POST", "/liveEvent?ack=applied&wait=50s").body(event("u", 1)),
            "POST",
            200,
        ),
        (Request::new("DELETE", "/liveEvent"), "DELETE", 405),
        (live("u"), "POST", 202),
        (Request::new("GET", "/userEvents/nobody"), "GET", 404),
        (Request::new("OPTIONS", "/flush"), "OPTIONS", 204),
    ];
    let requests: Vec<_> = kinds.iter().cycle().take(100).collect();
    let wire: Vec<u8> = requests.iter().flat_map(|kind| kind.0.bytes()).collect();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut other = Conn::open(port);
                for _ in 0..100 {
                    other.ask(&live("u")).expect(202);
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..rounds {
                    let mut conn = Conn::open(port);
                    conn.send(&wire).unwrap();
                    for (place, (_, method, status)) in requests.iter().enumerate() {
                        let reply = conn.reply_to(method).unwrap();
                        assert_eq!(reply.status, *status, "response {place}: {}", reply.text());
                    }
                }
            });
        }
    });
    assert_bounded(&server, 200 + 2 * rounds * 30);
}

#[test]
fn a_client_that_never_reads_does_not_delay_others() {
    // Fails if a response that cannot be written blocks the thread that serves all connections.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let page = Request::new("GET", "/openapi.json").bytes().repeat(50);
    let mut deaf = Vec::new();
    for _ in 0..16 {
        let conn = server.connect();
        let patience = Some(Duration::from_millis(100));
        conn.stream().set_write_timeout(patience).unwrap();
        let mut stream = conn.stream();
        // Until the server reads no more, or has read far more requests than fit into the socket
        // buffers as responses.
        for _ in 0..40 {
            match stream.write_all(&page) {
                Ok(()) => {}
                Err(error) => {
                    let full = [ErrorKind::WouldBlock, ErrorKind::TimedOut];
                    assert!(full.contains(&error.kind()) || error.raw_os_error().is_some());
                    break;
                }
            }
        }
        deaf.push(conn);
    }
    // Some of them also wait for the disk.
    for conn in &mut deaf {
        let _may_be_full = conn.send(live("deaf").bytes());
    }
    assert_eq!(burst(server.port, 64), 64);
    let mut conn = server.connect();
    for _ in 0..50 {
        conn.ask(&live("u")).expect(202);
    }
    drop(deaf);
    let of_deaf = until(
        PATIENCE,
        "the connections that never read are closed",
        || {
            server.flush();
            (server.descriptors() < 64).then(|| server.counter("accepted") - 114)
        },
    );
    assert!(of_deaf <= 16);
    assert_eq!(
        server.get("/userEvents/u").expect(200).json()["events"],
        114
    );
    server.assert_balanced();
    server.get("/readyz").expect(200);
}

#[test]
fn ambiguous_framing_is_rejected_and_no_request_is_smuggled() {
    // Fails if a request is served although two parsers could disagree about its end: behind a
    // proxy, its tail becomes another user's request.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let smuggled = String::from_utf8(live("smuggled").bytes()).unwrap();
    let length = smuggled.len();
    for head in [
        format!("Content-Length: 0\r\nContent-Length: {length}"),
        format!("Content-Length: {length}\r\nContent-Length: 0"),
        format!("Content-Length: {length}, {length}"),
        format!("Content-Length: +{length}"),
        format!("Content-Length: -{length}"),
        format!("Content-Length: 0x{length:x}"),
        "Content-Length: ".to_owned(),
        "Content-Length: 0\r\nTransfer-Encoding: chunked".to_owned(),
        "Transfer-Encoding: chunked\r\nContent-Length: 0".to_owned(),
        "Transfer-Encoding: identity".to_owned(),
        "Transfer-Encoding: xchunked".to_owned(),
        "Transfer-Encoding: gzip, chunked".to_owned(),
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked".to_owned(),
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity".to_owned(),
        "Content-Length: 0\r\nX-Control: a\u{1}b".to_owned(),
        "Content-Length: 0\r\nX-Control: a\rTransfer-Encoding: chunked".to_owned(),
    ] {
        let mut conn = server.connect();
        let wire = format!(
            "POST /liveEvent HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n0\r\n\r\n{smuggled}"
        );
        conn.send(wire).unwrap();
        conn.end();
        let answers = String::from_utf8_lossy(&conn.rest().unwrap()).into_owned();
        assert!(answers.starts_with("HTTP/1.1 4"), "{head}: {answers}");
        assert_eq!(
            answers.matches("HTTP/1.1 ").count(),
            1,
            "the connection is closed: {head}: {answers}"
        );
    }
    // The same for events with a length that not every parser accepts.
    let body = event("smuggled", 1);
    let mut plus = server.connect();
    plus.send(format!(
        "POST /liveEvent HTTP/1.1\r\nHost: localhost\r\nContent-Length: +{}\r\n\r\n{body}",
        body.len()
    ))
    .unwrap();
    assert_eq!(plus.reply().unwrap().status, 400);
    let mut old = server.connect();
    old.send(format!(
        "POST /liveEvent HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"
    ))
    .unwrap();
    old.end();
    let answer = String::from_utf8_lossy(&old.rest().unwrap()).into_owned();
    assert!(
        answer.starts_with("HTTP/1.") && answer.contains(" 400 "),
        "{answer}"
    );
    server.get("/userEvents/smuggled").problem(404);
    assert_bounded(&server, 0);
}

#[test]
fn request_data_cannot_add_a_response_header() {
    // Fails if a path or an id can end a header line of the response.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    for path in [
        "/x%0d%0aSet-Cookie:%20a=b",
        "/userEvents/x%0d%0aSet-Cookie:%20a=b",
    ] {
        let reply = server.get(path);
        assert!(
            reply.status == 404 || reply.status == 400,
            "{}",
            reply.status
        );
        let crossed = reply
            .headers
            .iter()
            .any(|(name, value)| name == "Set-Cookie" || value.contains("a=b"));
        assert!(!crossed, "{:?}", reply.headers);
    }
    assert_bounded(&server, 0);
}

#[test]
fn dropped_connections_leave_no_thread_descriptor_or_memory() {
    // Fails if a connection that ends in the middle of a request leaves a thread, a descriptor or
    // memory behind.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let request = live("u").bytes();
    let mut acked = 0;
    for n in 0..3000 {
        let mut conn = server.connect();
        match n % 4 {
            0 => {}
            1 => conn.send(&request[..20]).unwrap(),
            2 => conn.send(&request[..request.len() - 5]).unwrap(),
            _ => {
                conn.ask(&live("u")).expect(202);
                acked += 1;
            }
        }
    }
    until(PATIENCE, "threads and descriptors are released", || {
        (server.proc_status("Threads") < 64 && server.descriptors() < 128).then_some(())
    });
    assert_bounded(&server, acked);
}

#[test]
fn concurrent_senders_are_all_counted() {
    // Fails if a position, a total or a response is mixed up between connections under load.
    let scratch = Scratch::new();
    let server = Server::with(
        &scratch.data(),
        &["--rotate-size", "32KiB", "--flush-interval", "10ms"],
    );
    let port = server.port;
    let (senders, posts) = (32u64, 40u64);
    thread::scope(|scope| {
        for sender in 0..senders {
            scope.spawn(move || {
                let mut conn = Conn::open(port);
                let user = format!("s{sender}");
                let mut last = (0, 0);
                for sent in 1..=posts {
                    let answer = conn.ask(&live(&user)).expect(202).json();
                    let position = answer["position"].as_str().unwrap();
                    let (segment, offset) = position.split_once('-').unwrap();
                    let position = (segment.parse::<u64>().unwrap(), offset.parse().unwrap());
                    assert!(position > last, "positions only grow");
                    last = position;
                    if sent % 10 == 0 {
                        let path = format!("/userEvents/{user}?after={segment}-{offset}&wait=50s");
                        let shown = conn.ask(&Request::new("GET", &path)).expect(200).json();
                        assert_eq!(shown["events"], sent, "reads its own writes");
                    }
                }
            });
        }
    });
    server.flush();
    assert_eq!(server.assert_balanced()["applied"], senders * posts);
    assert_eq!(database(&server.data), recount(&server.data).users);
}

#[test]
fn a_port_in_use_is_reported() {
    // Fails if a server that cannot listen hangs, or exits with 0.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let other = scratch.path().join("other");
    let listen = format!("127.0.0.1:{}", server.port);
    let args = ["serve", "--data-dir", arg(&other), "--listen", &listen];
    let ran = super::harness::run(&args).expect(1);
    assert!(ran.stderr.contains(&listen), "{ran}");
}
