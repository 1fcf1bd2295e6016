//! Upper bounds of the memory, threads and descriptors that one client can use. Each attack once
//! made one of these grow without a bound, or kept it allocated.

use std::io::{ErrorKind, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, from_str};
use socket2::{Domain, Socket, Type};

use super::harness::http::{Conn, Request};
use super::harness::suite::Locked;
use super::harness::{
    PATIENCE, Process, Scratch, Server, arg, database, event, recount, tallyline, until,
};
use super::hostile::{assert_bounded, live};
use super::kernel_log::stop_traced;
use super::outside::traced;

/// The value of one metric of /metrics.
fn metric(server: &Server, name: &str) -> u64 {
    let metrics = server.get("/metrics").expect(200).text();
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.trim().parse().ok());
    number.unwrap_or_else(|| panic!("no {name} in {metrics}"))
}

/// Peak memory of the server in MiB.
fn peak(server: &Server) -> u64 {
    server.proc_status("VmHWM") >> 10
}

/// Starts a server with this environment variable.
fn start_with_variable(scratch: &Scratch, name: &str, value: &str) -> Server {
    Server::by(&scratch.data(), &[], |args| {
        let mut command = tallyline(args);
        command.env(name, value);
        command
    })
}

#[test]
fn endless_heads_and_chunk_sizes_are_rejected() {
    // Fails if reading continues as long as bytes arrive.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let post = "POST /liveEvent HTTP/1.1\r\nHost: localhost\r\n";
    for start in [
        "GET /".to_owned(),
        format!("{post}X-Endless: "),
        format!("{post}Transfer-Encoding: chunked\r\n\r\n0"),
    ] {
        let mut conn = server.connect();
        conn.send(&start).unwrap();
        let block = vec![b'0'; 64 << 10];
        let sent = (0..8 << 10).position(|_| conn.send(&block).is_err());
        assert!(sent.is_some(), "half a GiB of {start:?} was accepted");
    }
    // A client that sends complete requests is not cut off, however many bytes it sends.
    let mut whole = server.connect();
    let body = event("u", 1) + &" ".repeat(4 << 20);
    for _ in 0..8 {
        let post = Request::new("POST", "/liveEvent").body(&body);
        whole.ask(&post).expect(202);
    }
    assert!(peak(&server) < 200, "{} MiB", peak(&server));
    assert_bounded(&server, 8);
}

#[test]
fn memory_of_large_bodies_is_released() {
    // Fails if the allocator keeps the memory of large bodies.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let padding = format!(",\"padding\":\"{}\"}}", "x".repeat(32 << 10));
    let body = event("u", 1).replace('}', &padding).repeat(7 << 5);
    let post = Request::new("POST", "/liveEvent").body(&body);
    for _ in 0..4 {
        thread::scope(|scope| {
            for _ in 0..16 {
                // Some are rejected: the memory for bodies is limited.
                scope.spawn(|| server.connect().ask(&post));
            }
        });
    }
    until(PATIENCE, "the memory is released", || {
        let kept = server.proc_status("VmRSS") >> 10;
        (kept < 50).then_some(())
    });
}

#[test]
fn pipelined_requests_are_handled_one_at_a_time() {
    // Fails if the server queues any number of responses for a client, or if a response to a
    // pipelined request is lost.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    server.accept(event("u", 1));
    server.flush();
    let mut conn = server.connect();
    // The first request waits for a position that is not applied, because the database is locked; the others wait
    // for the first.
    let lock = Locked::database(&scratch.data());
    let position = server.accept(event("u", 1));
    let waits = Request::new("GET", &format!("/userEvents/u?after={position}&wait=60s")).bytes();
    let health = Request::new("GET", "/healthz").bytes();
    conn.send([waits, health.repeat(400)].concat()).unwrap();
    let in_flight = || metric(&server, "tallyline_http_requests_in_flight");
    // Another connection reads the metrics.
    until(PATIENCE, "the first waits", || {
        (in_flight() == 2).then_some(())
    });
    drop(lock);
    for _ in 0..401 {
        assert_eq!(conn.reply().unwrap().status, 200);
    }
    assert_bounded(&server, 2);
}

#[test]
fn requests_of_a_client_that_never_reads_are_not_queued() {
    // Fails if requests are read and queued for a client that does not read its responses.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let pages = Request::new("GET", "/openapi.json").bytes().repeat(1000);
    let mut deaf = Vec::new();
    for _ in 0..4 {
        let mut conn = server.connect();
        let patience = Some(Duration::from_millis(200));
        conn.stream().set_write_timeout(patience).unwrap();
        let full = (0..1000).any(|_| conn.send(&pages).is_err());
        assert!(full, "a million requests were read");
        deaf.push(conn);
    }
    server.accept(event("u", 1));
    assert!(peak(&server) < 200, "{} MiB", peak(&server));
    drop(deaf);
    assert_bounded(&server, 1);
}

#[test]
fn a_flood_of_requests_on_new_connections_is_served_in_bounded_memory() {
    // Fails if requests are queued without a bound.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let pages = Request::new("GET", "/openapi.json").bytes().repeat(1000);
    let mut sent = 0;
    while sent < 2 << 30 {
        let flood: Vec<_> = (0..16)
            .filter_map(|_| Conn::try_open(server.port).ok())
            .collect();
        for conn in &flood {
            conn.stream().set_nonblocking(true).unwrap();
            // As much as the socket buffers hold.
            while let Ok(bytes) = conn.stream().write(&pages) {
                sent += bytes;
            }
        }
    }
    server.accept(event("u", 1));
    server.get("/readyz").expect(200);
    assert!(peak(&server) < 100, "{} MiB", peak(&server));
    let data = server.data.clone();
    server.stop().expect(0);
    assert_eq!(database(&data)["u"].1, 1);
    assert_eq!(database(&data), recount(&data).users);
}

#[test]
fn large_bodies_share_one_memory_limit() {
    // Fails if any number of large bodies is held in memory, if the memory of an aborted upload
    // stays reserved, or if stalled uploads block others.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let body = event("u", 1) + &" ".repeat(1 << 20);
    let whole = Request::new("POST", "/liveEvent").body(&body);
    let bytes = whole.bytes();
    // All but the last byte; there is memory for 32 MiB.
    let mut stalled: Vec<_> = (0..64)
        .map(|_| {
            let mut conn = server.connect();
            conn.stream().set_nonblocking(true).unwrap();
            let _what_is_not_read_is_not_sent = conn.send(&bytes[..bytes.len() - 1000]);
            conn
        })
        .collect();
    until(PATIENCE, "some are rejected", || {
        stalled.retain(|conn| {
            let nothing = conn.stream().peek(&mut [0]);
            nothing.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
        });
        (stalled.len() < 64).then_some(())
    });
    until(
        PATIENCE,
        "an upload that does not stall is accepted",
        || {
            let reply = server.post("/liveEvent", &body);
            assert!([202, 503].contains(&reply.status), "{}", reply.text());
            (reply.status == 202).then_some(())
        },
    );
    assert!(peak(&server) < 80, "{} MiB", peak(&server));
    drop(stalled);
    server.accept(&body);
    assert_bounded(&server, 2);
}

#[test]
fn requests_with_absurd_content_lengths_leave_no_thread_or_descriptor() {
    // Fails if each such request holds a thread and two descriptors until a restart.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    for _ in 0..40 {
        for length in ["33554433", "100000000", "9000000000000000000"] {
            let mut conn = server.connect();
            let request = Request::new("POST", "/liveEvent").header("Content-Length", length);
            conn.send(request.bytes()).unwrap();
            assert_eq!(conn.reply().expect("an answer").status, 413);
        }
    }
    until(PATIENCE, "threads and descriptors are released", || {
        (server.proc_status("Threads") < 24 && server.descriptors() < 64).then_some(())
    });
    let refused = "tallyline_http_refused_total{reason=\"body_too_large\"}";
    assert_eq!(metric(&server, refused), 120);
    let status = server.get("/status").expect(200).json();
    assert_eq!(status["httpRefused"]["body_too_large"], 120, "{status}");
    assert_bounded(&server, 0);
}

/// A connection from this port (0: any) of an address that no other test uses.
fn connect_from(port: u16, to: u16) -> Option<Conn> {
    let at = |ip: Ipv4Addr, port| SocketAddr::from((ip, port)).into();
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    // No TIME_WAIT state that would keep the port in use.
    socket.set_linger(Some(Duration::ZERO)).unwrap();
    socket.bind(&at(Ipv4Addr::new(127, 0, 0, 2), port)).ok()?; // still in use
    socket.connect(&at(Ipv4Addr::LOCALHOST, to)).ok()?;
    Some(Conn::over(socket.into()))
}

#[test]
fn a_client_that_reuses_the_port_of_a_hostile_one_is_served() {
    // Fails if the server ignores everything from an address that once broke the protocol: the next
    // client with that port waited for a response for ever.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let mut hostile = connect_from(0, server.port).expect("connected");
    let port = hostile.stream().local_addr().unwrap().port();
    let twofold =
        "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nContent-Length: 2\r\n\r\n";
    hostile.send(twofold).unwrap();
    assert_eq!(hostile.reply().unwrap().status, 400);
    drop(hostile);
    until(
        PATIENCE,
        "another client from that address gets a response",
        || {
            let mut conn = connect_from(port, server.port)?;
            let reply = conn.try_ask(&Request::new("GET", "/healthz")).ok()?;
            (reply.status == 200).then_some(())
        },
    );
}

#[test]
fn connections_closed_before_they_are_accepted_are_not_logged() {
    // Fails if a request of a client that has already closed its connection writes a log line: a
    // flood would fill the disk.
    let scratch = Scratch::new();
    let server = start_with_variable(&scratch, "RUST_BACKTRACE", "1");
    server.process.signal(Signal::STOP);
    for _ in 0..64 {
        let mut conn = connect_from(0, server.port).expect("the kernel accepts it");
        conn.send(Request::new("GET", "/healthz").bytes()).unwrap();
    }
    server.process.signal(Signal::CONT);
    assert_bounded(&server, 0);
    let reported = server.process.stderr();
    assert!(reported.lines().count() < 32, "{reported}");
}

#[test]
fn a_client_that_keeps_sending_after_its_response_is_disconnected_soon() {
    // Fails if the connection is only closed in an orderly way: if the window is full, the client
    // would notice only when the kernel times out, after a minute.
    let scratch = Scratch::new();
    let server = Server::with(&scratch.data(), &["--max-body", "64KiB"]);
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(65536));
    for _ in 0..10 {
        let mut conn = server.connect();
        let patience = Some(Duration::from_secs(30));
        conn.stream().set_write_timeout(patience).unwrap();
        let chunked = Request::new("POST", "/liveEvent").header("Transfer-Encoding", "chunked");
        conn.send(chunked.bytes()).unwrap();
        let error = (0..1024).find_map(|_| conn.send(&chunk).err());
        let kind = error.expect("64 MiB are not read").kind();
        assert!(!matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut));
    }
    assert_bounded(&server, 0);
}

#[test]
fn a_panic_in_a_handler_is_500_and_the_server_continues() {
    // Fails if a panic ends the thread that handles the requests of all connections, the client
    // gets no response, or the log line of the panic is not JSON where the log is. (Debug builds
    // have a path that panics.)
    let scratch = Scratch::new();
    let server = Server::with(&scratch.data(), &["--log-format", "json"]);
    for _ in 0..20 {
        server.get("/panic").expect(500);
        let large = " ".repeat(5000);
        server.post("/panic", large).expect(500);
    }
    let mut conn = server.connect();
    conn.ask(&live("u")).expect(202);
    assert_bounded(&server, 1);
    let reported = server.process.stderr();
    let lines = reported
        .lines()
        .map(|line| from_str::<Value>(line).expect(line));
    let panics = lines.filter(|line| {
        line["message"]
            .as_str()
            .is_some_and(|m| m.starts_with("panicked"))
    });
    assert_eq!(panics.count(), 40, "{reported}");
}

#[test]
fn a_handler_that_blocks_the_io_thread_is_counted_and_logged() {
    // Fails if a handler that blocks the I/O thread for too long is not reported. (Debug builds
    // have a path that blocks.)
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let blocked = || metric(&server, "tallyline_http_io_blocked_total");
    server.get("/slow?secret").expect(404);
    assert!(blocked() >= 1);
    let line = until(PATIENCE, "it is logged", || {
        let reported = server.process.stderr();
        let line = reported.lines().find(|line| line.contains("GET /slow"));
        line.map(str::to_owned)
    });
    assert!(
        line.contains("WARN") && line.contains("blocked the HTTP I/O thread"),
        "{line}"
    );
    assert!(!line.contains("secret"), "{line}");
}

#[test]
#[ignore = "needs strace"]
fn a_full_queue_is_503_and_send_retries() {
    // Fails if the queue of requests that wait for a stuck disk has no bound, if the 503 has no
    // `Retry-After`, or if `send` gives up or counts anything twice.
    let scratch = Scratch::new();
    let log = scratch.path().join("strace");
    let active = scratch.data().join("events.jsonl");
    let stuck = "inject=fdatasync:delay_enter=10000000:when=1";
    let only = ["-e", "trace=fdatasync", "-P", arg(&active), "-e", stuck];
    let server = traced(&scratch.data(), &log, &only, &[]);
    let body = event("u", 1) + &"\n".repeat(7 << 20);
    std::thread::scope(|scope| {
        // 64 MiB wait.
        let posts: Vec<_> = (0..16)
            .map(|_| scope.spawn(|| server.post("/liveEvent", &body)))
            .collect();
        let mut send = Command::new(env!("CARGO_BIN_EXE_tallyline"));
        let file = scratch.file("events.jsonl", event("sent", 1).repeat(300_000));
        send.args([
            "send",
            arg(&file),
            "--to",
            &server.url(),
            "--batch",
            "100000",
        ]);
        super::harness::quiet_environment(&mut send);
        let send = Process::start(&mut send);
        let replies: Vec<_> = posts.into_iter().map(|post| post.join().unwrap()).collect();
        for reply in &replies {
            match reply.status {
                202 => {}
                503 => assert!(reply.header("Retry-After").is_some(), "{}", reply.text()),
                other => panic!("{other}: {}", reply.text()),
            }
        }
        send.finish().expect(0);
        server.flush();
        let taken = replies.iter().filter(|reply| reply.status == 202).count();
        assert_eq!(
            server.get("/userEvents/u").expect(200).json()["events"],
            taken
        );
    });
    let sent = server.get("/userEvents/sent").expect(200).json();
    assert_eq!(sent["events"], 300_000);
    assert!(peak(&server) < 400, "{} MiB", peak(&server));
    server.assert_balanced();
    stop_traced(server);
}
