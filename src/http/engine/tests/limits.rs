//! The bounds: connections, bodies, buffers, requests in flight.

use super::*;

#[test]
fn a_body_over_the_limit_is_413_and_is_discarded_up_to_four_times_the_limit() {
    let fixture = Fixture::start(small());
    let mut client = fixture.connect();
    assert_eq!(client.post("/a", &"x".repeat(40_000)), (413, String::new()));
    assert_eq!(client.ask("GET /on"), (200, "/on 0".into()));
    fixture.stop();
}

#[test]
fn a_huge_content_length_is_413_and_uses_no_memory() {
    let fixture = Fixture::start(Limits::default());
    for length in [
        "100000000000000",
        "18446744073709551615",
        "99999999999999999999999",
    ] {
        let mut client = fixture.connect();
        client.send(format!(
            "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\nxxx"
        ));
        let (status, headers, _) = client.full_answer();
        assert_eq!(status, 413);
        assert!(headers.contains(&"connection: close".into()), "{headers:?}");
        client.ends();
        // Also if the body is never sent, and if the head is refused.
        let mut client = fixture.connect();
        client.send(format!(
            "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\nContent-Length: 5\r\n\r\n"
        ));
        assert_eq!(client.answer().0, 400);
    }
    fixture.serves();
    fixture.stop();
}

#[test]
fn chunks_over_the_limit_are_413() {
    let fixture = Fixture::start(small());
    let mut client = fixture.connect();
    client.send("POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
    let chunk = format!("3e8\r\n{}\r\n", "x".repeat(1000));
    client.send(chunk.repeat(60));
    assert_eq!(client.answer().0, 413);
    client.ends();
    let mut client = fixture.connect();
    client.send("POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n");
    assert_eq!(client.answer().0, 400);
    client.ends();
    fixture.serves();
    fixture.stop();
}

#[test]
fn a_chunk_size_line_that_does_not_end_is_refused() {
    // Fails if such a line is buffered until the deadline of the body.
    let limits = Limits {
        body_time: Duration::from_hours(1),
        ..Limits::default()
    };
    let fixture = Fixture::start(limits);
    let mut client = fixture.connect();
    client.send("POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send_until_ended("0".repeat(64 << 10).as_bytes(), 1000);
    fixture.serves();
    fixture.stop();
}

#[test]
fn a_held_request_delays_its_own_connection_only() {
    // Fails if a connection has more than one request in progress, or buffers what it sends meanwhile.
    let fixture = Fixture::start(Limits::default());
    let mut client = fixture.connect();
    client.send("GET /held HTTP/1.1\r\nHost: h\r\n\r\n");
    fixture.until("it is held", |figures| figures.in_flight == 1);
    client.stream.set_nonblocking(true).expect("set");
    let mut sent = 0;
    while sent < 64 << 20 {
        match client.stream.write(&GET_A.as_bytes().repeat(1000)) {
            Ok(bytes) => sent += bytes,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(sent < 64 << 20, "it is not read");
    client.stream.set_nonblocking(false).expect("set");
    for _ in 0..20 {
        fixture.serves();
    }
    fixture.until("still one", |figures| figures.in_flight == 1);
    echo(fixture.take_held());
    assert_eq!(client.answer(), (200, "/held 0".into()));
    for _ in 0..1000 {
        assert_eq!(client.answer(), (200, "/a 0".into()));
    }
    fixture.stop();
}

/// Connects `count` clients, each of which sends these bytes.
fn crowd(fixture: &Fixture, count: usize, bytes: &str) -> Vec<Client> {
    let client = |_| {
        let mut client = fixture.connect();
        client.send(bytes);
        client
    };
    (0..count).map(client).collect()
}

const HELD: &str = "GET /held HTTP/1.1\r\nHost: h\r\n\r\n";

#[test]
fn at_the_connection_limit_those_that_stall_in_a_request_are_evicted_first() {
    let limits = Limits {
        connections_max: 40,
        ..Limits::default()
    };
    let fixture = Fixture::start(limits);
    let half = crowd(&fixture, 30, "GET /a HT");
    let mut kept = crowd(&fixture, 10, GET_A);
    for client in &mut kept {
        assert_eq!(client.answer(), (200, "/a 0".into()));
    }
    fixture.until("all are open", |figures| figures.connections == 40);
    let held = crowd(&fixture, 30, HELD);
    fixture.until("all new ones are held", |figures| figures.in_flight == 30);
    for mut client in half {
        client.ends();
    }
    for client in &mut kept {
        assert_eq!(client.ask("GET /b"), (200, "/b 0".into()));
    }
    drop(kept);
    // If none may be evicted, a new connection waits in the kernel's queue.
    let more = crowd(&fixture, 30, HELD);
    fixture.until("all that may be are held", |figures| {
        figures.in_flight == 40
    });
    for _ in 0..60 {
        fixture.take_held().answer(Reply::empty(200));
    }
    for mut client in held.into_iter().chain(more) {
        assert_eq!(client.answer().0, 200);
    }
    fixture.stop();
}

#[test]
fn at_the_connection_limit_many_partial_heads_do_not_keep_a_new_client_waiting() {
    // Fails if such a connection is kept for a second: the last of these would wait for 100 s.
    let limits = Limits {
        connections_max: 4,
        ..Limits::default()
    };
    let fixture = Fixture::start(limits);
    let partial = crowd(&fixture, 400, "GET /a HT");
    fixture.serves();
    assert!(fixture.engine().figures().evicted > 390);
    drop(partial);
    fixture.stop();
}

#[test]
fn at_the_connection_limit_a_client_that_has_not_sent_a_request_yet_is_not_reset() {
    // Fails if such a connection is evicted: a script that opens thousands of connections at once sends the
    // first request on them seconds later.
    let limits = Limits {
        connections_max: 16,
        ..Limits::default()
    };
    let fixture = Fixture::start(limits);
    let silent = crowd(&fixture, 15, "");
    fixture.until("these are open", |figures| figures.connections == 15);
    let mut half = crowd(&fixture, 1, "GET /a HT");
    fixture.until("this one is open", |figures| figures.connections == 16);
    let queued = crowd(&fixture, 40, "");
    // It is evicted for one of them.
    half[0].ends();
    for mut client in silent.into_iter().chain(queued) {
        assert_eq!(client.ask("GET /a"), (200, "/a 0".into()));
    }
    fixture.stop();
}

#[test]
fn at_the_connection_limit_a_client_that_sends_nothing_for_long_is_evicted() {
    let limits = Limits {
        connections_max: 16,
        first_byte_time: Duration::from_millis(20),
        ..Limits::default()
    };
    let fixture = Fixture::start(limits);
    let mut kept = crowd(&fixture, 1, GET_A);
    assert_eq!(kept[0].answer(), (200, "/a 0".into()));
    let silent = crowd(&fixture, 15, "");
    fixture.until("all are open", |figures| figures.connections == 16);
    let held = crowd(&fixture, 15, HELD);
    fixture.until("all new ones are held", |figures| figures.in_flight == 15);
    for mut client in silent {
        client.ends();
    }
    assert_eq!(kept[0].ask("GET /b"), (200, "/b 0".into()));
    drop(held);
    fixture.stop();
}

#[test]
fn at_the_buffer_limit_connections_without_a_request_are_evicted() {
    let limits = Limits {
        buffers_bytes_max: 1 << 20,
        ..Limits::default()
    };
    let fixture = Fixture::start(limits);
    let mut kept = fixture.connect();
    assert_eq!(kept.ask("GET /a"), (200, "/a 0".into()));
    let half = format!("GET /a HTTP/1.1\r\nX: {}", "x".repeat(15_000));
    let clients: Vec<_> = (0..200)
        .map(|_| {
            let mut client = fixture.connect();
            client.send(&half);
            client
        })
        .collect();
    fixture.until("few are left", |figures| {
        // Each turn of the loop evicts more of them.
        fixture.serves();
        figures.connections < 80
    });
    assert_eq!(kept.ask("GET /b"), (200, "/b 0".into()));
    drop(clients);
    fixture.stop();
}

#[test]
fn a_stalled_upload_is_refused_if_another_one_waits_for_its_memory() {
    let limits = Limits {
        bodies_bytes_max: 1 << 20,
        ..Limits::default()
    };
    let fixture = Fixture::start(limits);
    let mut stalled: Vec<_> = (0..3).map(|_| fixture.connect()).collect();
    for client in &mut stalled {
        client.send("POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 500000\r\n\r\nabc");
    }
    let body = "x".repeat(600_000);
    for _ in 0..3 {
        let mut client = fixture.connect();
        assert_eq!(client.post("/a", &body), (200, "/a 600000".into()));
    }
    // A chunked body reserves memory for a body of the maximum length.
    let mut client = fixture.connect();
    client.send("POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send(format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len()));
    assert_eq!(client.answer(), (200, "/c 600000".into()));
    // A small body reserves no memory.
    assert_eq!(client.post("/a", "small"), (200, "/a 5".into()));
    fixture.stop();
}

#[test]
fn an_upload_that_waited_for_memory_is_not_slow() {
    // Fails if the time in which the server read nothing counts against the client.
    let limits = Limits {
        bodies_bytes_max: 1 << 20,
        ..Limits::default()
    };
    let fixture = Fixture::start(limits);
    let large = "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 600000\r\n\r\n";
    let mut stalled = fixture.connect();
    stalled.send(large);
    let mut first = fixture.connect();
    first.send(large);
    first.send(vec![b'x'; 250_000]);
    // The second one waits a little longer: it still waits when the first one gets its memory.
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(200) {
        fixture.serves();
    }
    let mut second = fixture.connect();
    second.send(large);
    assert_eq!(stalled.answer().0, 408);
    assert_eq!(second.answer().0, 503);
    first.send(vec![b'x'; 350_000]);
    assert_eq!(first.answer(), (200, "/a 600000".into()));
    fixture.stop();
}

#[test]
fn a_large_body_that_gets_no_memory_is_503() {
    let limits = Limits {
        bodies_bytes_max: 1 << 20,
        ..Limits::default()
    };
    let fixture = Fixture::start(limits);
    let mut fast = fixture.connect();
    fast.send("POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 8000000\r\n\r\n");
    let mut waits = fixture.connect();
    waits.send("POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 500000\r\n\r\n");
    waits.stream.set_nonblocking(true).expect("set");
    // This upload is fast enough to keep its memory: the other one is refused before it is complete.
    let piece = [b'x'; 16_000];
    let mut sent = 0;
    let start = Instant::now();
    while waits.stream.peek(&mut [0]).is_err() {
        let rate = sent * 1000 / (start.elapsed().as_millis() as usize + 1);
        if rate < 400_000 && sent + piece.len() < 8_000_000 {
            fast.send(piece);
            sent += piece.len();
        }
        assert!(start.elapsed() < PATIENCE, "not refused");
        std::thread::yield_now();
    }
    waits.stream.set_nonblocking(false).expect("set");
    assert_eq!(waits.answer().0, 503);
    fast.send(vec![b'x'; 8_000_000 - sent]);
    assert_eq!(fast.answer(), (200, "/a 8000000".into()));
    fixture.stop();
}

#[test]
fn at_the_limit_of_requests_in_flight_the_answer_is_503() {
    let limits = Limits {
        in_flight_max: 2,
        ..Limits::default()
    };
    let fixture = Fixture::start(limits);
    let mut held: Vec<_> = (0..2).map(|_| fixture.connect()).collect();
    for client in &mut held {
        client.send("GET /held HTTP/1.1\r\nHost: h\r\n\r\n");
    }
    fixture.until("two are held", |figures| figures.in_flight == 2);
    let mut client = fixture.connect();
    assert_eq!(client.ask("GET /a").0, 503);
    echo(fixture.take_held());
    fixture.until("one is answered", |figures| figures.in_flight == 1);
    assert_eq!(client.ask("GET /a").0, 200, "on the same connection");
    fixture.stop();
}
