//! Clients that stall, trickle, or do not read, and handlers that take too long.

use super::*;

#[test]
fn a_client_that_sends_after_its_last_reply_is_disconnected() {
    // Fails if the engine reads without a bound after it has refused a request.
    let fixture = Fixture::start(Limits::default());
    let mut client = fixture.connect();
    assert_eq!(client.ask("GET /closing").0, 200);
    client.send_until_ended(GET_A.as_bytes(), usize::MAX);
    fixture.serves();
    fixture.stop();
}

#[test]
fn stalled_and_trickled_requests_do_not_block_others() {
    let limits = Limits {
        body_time: Duration::from_millis(300),
        head_time: Duration::from_millis(300),
        ..Limits::default()
    };
    let fixture = Fixture::start(limits);
    let mut stalled = Vec::new();
    for i in 0..100 {
        let mut client = fixture.connect();
        client.send(["POST /a HT", "POST /a HTTP/1.1\r\nHost: h\r\nX: "][i % 2]);
        stalled.push(client);
        let mut client = fixture.connect();
        client.send("POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\nabc");
        stalled.push(client);
    }
    let mut client = fixture.connect();
    for _ in 0..50 {
        assert_eq!(
            client.post("/b", &"x".repeat(5_000)),
            (200, "/b 5000".into())
        );
        assert_eq!(client.ask("GET /ok"), (200, "/ok 0".into()));
    }
    // Each incomplete request is answered, and all connections are closed.
    for client in &mut stalled {
        assert_eq!(client.answer().0, 408);
        client.ends();
    }
    fixture.serves();
    fixture.stop();
}

#[test]
fn a_trickled_head_times_out_and_a_slow_complete_request_does_not() {
    let limits = Limits {
        head_time: Duration::from_millis(1500),
        ..Limits::default()
    };
    let fixture = Fixture::start(limits);
    let (mut trickles, mut lives, mut waits) =
        (fixture.connect(), fixture.connect(), fixture.connect());
    waits.send("GET /held HTTP/1.1\r\nHost: h\r\n\r\n");
    trickles.send("GET /ok HTTP/1.1\r\nX: ");
    let start = Instant::now();
    while trickles.stream.write_all(b"x").is_ok() && start.elapsed() < PATIENCE {
        assert_eq!(lives.ask("GET /ok"), (200, "/ok 0".into()));
    }
    assert!(start.elapsed() < PATIENCE, "disconnected");
    assert_eq!(lives.ask("GET /ok"), (200, "/ok 0".into()));
    echo(fixture.take_held());
    assert_eq!(waits.answer(), (200, "/held 0".into()));
    fixture.stop();
}

#[test]
fn a_trickled_body_ends_at_its_deadline() {
    let limits = Limits {
        body_time: Duration::from_millis(300),
        rate_min: 1 << 30,
        ..Limits::default()
    };
    let fixture = Fixture::start(limits);
    let mut lives = fixture.connect();
    for head in ["Content-Length: 100000", "Transfer-Encoding: chunked"] {
        let mut client = fixture.connect();
        client.send(format!("POST /a HTTP/1.1\r\nHost: h\r\n{head}\r\n\r\n"));
        let start = Instant::now();
        // A request of another client after each byte: too slow for the deadline.
        while client.stream.write_all(b"0").is_ok() && start.elapsed() < PATIENCE {
            assert_eq!(lives.ask("GET /ok"), (200, "/ok 0".into()));
        }
        assert!(start.elapsed() < PATIENCE, "{head}: cut off");
    }
    fixture.stop();
}

#[test]
fn clients_that_never_read_do_not_block_others() {
    let limits = Limits {
        write_time: Duration::from_secs(2),
        rate_min: 1 << 30,
        ..Limits::default()
    };
    let fixture = Fixture::start(limits);
    let mut deaf: Vec<_> = (0..50).map(|_| fixture.connect()).collect();
    for client in &mut deaf {
        client.send("GET /large HTTP/1.1\r\nHost: h\r\n\r\n".repeat(16));
    }
    let mut client = fixture.connect();
    for _ in 0..100 {
        assert_eq!(client.ask("GET /later"), (200, "/later 0".into()));
        assert_eq!(client.ask("GET /lookup"), (200, "/lookup 0".into()));
    }
    fixture.until("they are disconnected", |figures| figures.connections <= 1);
    drop(deaf);
    fixture.stop();
}

#[test]
fn a_handler_that_blocks_the_io_thread_is_counted() {
    let fixture = Fixture::start(Limits::default());
    fixture.serves();
    let before = fixture.engine().figures().blocked;
    assert_eq!(fixture.connect().ask("GET /slow"), (200, "/slow 0".into()));
    assert!(fixture.engine().figures().blocked > before);
    fixture.stop();
}

#[test]
fn idle_connections_are_closed_after_the_announced_time() {
    let limits = Limits {
        keep_alive: Duration::from_secs(1),
        ..Limits::default()
    };
    let fixture = Fixture::start(limits);
    let (mut silent, mut idle) = (fixture.connect(), fixture.connect());
    idle.send(GET_A);
    let (_, headers, _) = idle.full_answer();
    assert!(
        headers.contains(&"connection: keep-alive".into()),
        "{headers:?}"
    );
    assert!(
        headers.contains(&"keep-alive: timeout=1".into()),
        "{headers:?}"
    );
    silent.ends();
    idle.ends();
    fixture.stop();
}

#[test]
fn a_client_at_the_minimum_rate_is_served() {
    // Fails if a body or a reply has one deadline, regardless of its rate.
    let limits = Limits {
        body_time: Duration::from_millis(200),
        write_time: Duration::from_millis(200),
        rate_min: 10,
        ..Limits::default()
    };
    let fixture = Fixture::start(limits);
    let mut client = fixture.connect();
    client.send("POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 300\r\n\r\n");
    let start = Instant::now();
    let mut lives = fixture.connect();
    let mut sent = 0_u32;
    while sent < 300 {
        // 300 bytes in about a second.
        if start.elapsed() > sent * Duration::from_millis(3) {
            client.send("x");
            sent += 1;
        }
        assert_eq!(lives.ask("GET /ok"), (200, "/ok 0".into()));
    }
    assert_eq!(client.answer(), (200, "/a 300".into()));
    fixture.stop();
}

#[test]
fn a_refusal_reaches_a_client_that_is_still_sending() {
    // Fails if the connection is closed with unread bytes: the reset discards the reply.
    let fixture = Fixture::start(small());
    for _ in 0..20 {
        let mut client = fixture.connect();
        client.send("POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n");
        let sent = client.stream.write_all(&vec![b'x'; 1_000_000]);
        assert!(sent.is_ok(), "{sent:?}");
        assert_eq!(client.answer().0, 413);
        let mut rest = Vec::new();
        let end = client.reader.read_to_end(&mut rest);
        assert!(matches!(end, Ok(0)), "not reset: {end:?}");
    }
    fixture.stop();
}

#[test]
fn pipelined_requests_that_are_refused_at_once_take_turns_with_other_connections() {
    // Fails if all that one connection has sent is handled in one turn of the loop.
    let mut fixture = Fixture::start(Limits::default());
    let mut gate = fixture.connect();
    gate.send("GET /gate HTTP/1.1\r\nHost: h\r\n\r\n");
    fixture.until("the I/O thread is blocked", |figures| {
        figures.in_flight == 1
    });
    // These arrive meanwhile, in this order.
    let mut pipelined = fixture.connect();
    pipelined.send("GET /refused HTTP/1.1\r\nHost: h\r\n\r\n".repeat(1000));
    let mut other = fixture.connect();
    other.send(GET_A);
    drop(fixture.gate.take());
    assert_eq!(other.answer(), (200, "/a 0".into()));
    for _ in 0..1000 {
        assert_eq!(pipelined.answer().0, 404);
    }
    let heads = fixture.fake.heads.lock().expect("unpoisoned").clone();
    let before = heads.iter().position(|target| target == "/a");
    assert!(before.is_some_and(|before| before < 100), "{before:?}");
    fixture.stop();
}

#[test]
fn new_connections_take_turns_with_the_requests_on_open_ones() {
    // Fails if all connections in the kernel's queue are accepted, and their requests handled, in one turn.
    let mut fixture = Fixture::start(Limits::default());
    let mut open = fixture.connect();
    assert_eq!(open.ask("GET /open"), (200, "/open 0".into()));
    let mut gate = fixture.connect();
    gate.send("GET /gate HTTP/1.1\r\nHost: h\r\n\r\n");
    fixture.until("the I/O thread is blocked", |figures| {
        figures.in_flight == 1
    });
    // These arrive meanwhile. The first of them blocks the thread again while it accepts.
    let queued: Vec<_> = (0..200)
        .map(|place| {
            let mut client = fixture.connect();
            client.send(if place == 0 {
                "GET /gate HTTP/1.1\r\nHost: h\r\n\r\n"
            } else {
                GET_A
            });
            client
        })
        .collect();
    let opens = fixture.gate.as_ref().expect("closed");
    opens.send(()).expect("a request waits");
    assert_eq!(gate.answer(), (200, "/gate 0".into()));
    fixture.until("the I/O thread is blocked again", |_| {
        let heads = fixture.fake.heads.lock().expect("unpoisoned");
        heads.iter().filter(|target| *target == "/gate").count() == 2
    });
    open.send("GET /open HTTP/1.1\r\nHost: h\r\n\r\n");
    drop(fixture.gate.take());
    assert_eq!(open.answer(), (200, "/open 0".into()));
    for mut client in queued {
        assert_eq!(client.answer().0, 200);
    }
    let heads = fixture.fake.heads.lock().expect("unpoisoned").clone();
    let before = heads.iter().rposition(|target| target == "/open");
    assert!(before.is_some_and(|before| before < 50), "{before:?}");
    fixture.stop();
}
