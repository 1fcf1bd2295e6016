//! What one client may cost at most: memory, threads, descriptors. Each attack is one that grew
//! without a bound, or kept what it took, before there was a mitigation.

use std::io::{ErrorKind, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, from_str};
use socket2::{Domain, Socket, Type};

use super::harness::http::{Conn, Request};
use super::harness::{
    PATIENCE, Process, Scratch, Server, arg, database, event, recount, tallyline, until,
};
use super::hostile::{assert_calm, live};
use super::kernel_log::stop_traced;
use super::outside::traced;

/// A number of /metrics.
fn metric(server: &Server, name: &str) -> u64 {
    let metrics = server.get("/metrics").expect(200).text();
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.trim().parse().ok());
    number.unwrap_or_else(|| panic!("no {name} in {metrics}"))
}

/// MiB that the server had at most.
fn peak(server: &Server) -> u64 {
    server.proc_status("VmHWM") >> 10
}

/// A server whose environment has that variable.
fn start_with_variable(scratch: &Scratch, name: &str, value: &str) -> Server {
    Server::by(&scratch.data(), &[], |args| {
        let mut command = tallyline(args);
        command.env(name, value);
        command
    })
}

#[test]
fn heads_and_chunk_sizes_without_an_end_are_cut_off() {
    // Red if reading goes on for as long as bytes come.
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
        assert!(sent.is_some(), "half a GiB of {start:?} was taken");
    }
    // One that sends whole requests is not cut off, however many bytes that are.
    let mut whole = server.connect();
    let body = event("u", 1) + &" ".repeat(4 << 20);
    for _ in 0..8 {
        let post = Request::new("POST", "/liveEvent").body(&body);
        whole.ask(&post).expect(202);
    }
    assert!(peak(&server) < 200, "{} MiB", peak(&server));
    assert_calm(&server, 8);
}

#[test]
fn what_large_bodies_took_is_given_back() {
    // Red if the allocator keeps large bodies that are freed.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let padding = format!(",\"padding\":\"{}\"}}", "x".repeat(32 << 10));
    let body = event("u", 1).replace('}', &padding).repeat(7 << 5);
    let post = Request::new("POST", "/liveEvent").body(&body);
    for _ in 0..4 {
        thread::scope(|scope| {
            for _ in 0..16 {
                // Some are refused: there is room for some at a time.
                scope.spawn(|| server.connect().ask(&post));
            }
        });
    }
    until(PATIENCE, "the memory is given back", || {
        let kept = server.proc_status("VmRSS") >> 10;
        (kept < 50).then_some(())
    });
}

#[test]
fn of_pipelined_requests_one_is_in_hand() {
    // Red if a client may have any number of answers kept for it, or if those it is owed are lost.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let mut conn = server.connect();
    // The first waits for an event that is not there yet; the others wait for the first.
    let waits = Request::new("GET", "/userEvents/u?after=1-1&wait=60s").bytes();
    let health = Request::new("GET", "/healthz").bytes();
    conn.send([waits, health.repeat(400)].concat()).unwrap();
    let in_flight = || metric(&server, "tallyline_http_requests_in_flight");
    // The other one asks for the metrics.
    until(PATIENCE, "the first waits", || {
        (in_flight() == 2).then_some(())
    });
    server.accept(event("u", 1));
    for _ in 0..401 {
        assert_eq!(conn.reply().unwrap().status, 200);
    }
    assert_calm(&server, 1);
}

#[test]
fn requests_by_the_thousand_from_one_that_never_reads_are_not_kept() {
    // Red if what such a client sends is read and queued.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let pages = Request::new("GET", "/openapi.json").bytes().repeat(1000);
    let mut deaf = Vec::new();
    for _ in 0..4 {
        let mut conn = server.connect();
        let patience = Some(Duration::from_millis(200));
        conn.stream().set_write_timeout(patience).unwrap();
        let full = (0..1000).any(|_| conn.send(&pages).is_err());
        assert!(full, "a million requests were taken");
        deaf.push(conn);
    }
    server.accept(event("u", 1));
    assert!(peak(&server) < 200, "{} MiB", peak(&server));
    drop(deaf);
    assert_calm(&server, 1);
}

#[test]
fn a_flood_of_requests_on_connections_that_come_and_go_is_survived() {
    // Red if requests are queued without a bound.
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
            // As much as sockets hold.
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
fn large_bodies_have_one_bound() {
    // Red if any number of them is held in memory, if the room of one that broke off stays taken, or
    // if uploads that stall keep the room from others.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let body = event("u", 1) + &" ".repeat(1 << 20);
    let whole = Request::new("POST", "/liveEvent").body(&body);
    let bytes = whole.bytes();
    // All but the end of it; there is room for 32 MiB.
    let mut stalled: Vec<_> = (0..64)
        .map(|_| {
            let mut conn = server.connect();
            conn.stream().set_nonblocking(true).unwrap();
            let _what_is_not_read_is_not_sent = conn.send(&bytes[..bytes.len() - 1000]);
            conn
        })
        .collect();
    until(PATIENCE, "some are refused", || {
        stalled.retain(|conn| {
            let nothing = conn.stream().peek(&mut [0]);
            nothing.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
        });
        (stalled.len() < 64).then_some(())
    });
    until(PATIENCE, "one that does not stall is accepted", || {
        let reply = server.post("/liveEvent", &body);
        assert!([202, 503].contains(&reply.status), "{}", reply.text());
        (reply.status == 202).then_some(())
    });
    assert!(peak(&server) < 80, "{} MiB", peak(&server));
    drop(stalled);
    server.accept(&body);
    assert_calm(&server, 2);
}

#[test]
fn bodies_announced_far_too_large_leave_nothing_behind() {
    // Red if each costs a thread and two descriptors until a restart.
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
    until(PATIENCE, "threads and descriptors are given back", || {
        (server.proc_status("Threads") < 24 && server.descriptors() < 64).then_some(())
    });
    let refused = "tallyline_http_refused_total{reason=\"body_too_large\"}";
    assert_eq!(metric(&server, refused), 120);
    let status = server.get("/status").expect(200).json();
    assert_eq!(status["httpRefused"]["body_too_large"], 120, "{status}");
    assert_calm(&server, 0);
}

/// A connection from this port, any for 0, of an address that no other test comes from.
fn connect_from(port: u16, to: u16) -> Option<Conn> {
    let at = |ip: Ipv4Addr, port| SocketAddr::from((ip, port)).into();
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    // Leaves nothing behind that would keep the port.
    socket.set_linger(Some(Duration::ZERO)).unwrap();
    socket.bind(&at(Ipv4Addr::new(127, 0, 0, 2), port)).ok()?; // not yet free
    socket.connect(&at(Ipv4Addr::LOCALHOST, to)).ok()?;
    Some(Conn::over(socket.into()))
}

#[test]
fn the_next_client_from_the_port_of_a_hostile_one_is_served() {
    // Red if nothing from an address is believed any more once somebody broke the rules there: the
    // next one to be given that port waited for an answer for ever.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let mut hostile = connect_from(0, server.port).expect("connected");
    let port = hostile.stream().local_addr().unwrap().port();
    let twofold =
        "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nContent-Length: 2\r\n\r\n";
    hostile.send(twofold).unwrap();
    assert_eq!(hostile.reply().unwrap().status, 400);
    drop(hostile);
    until(PATIENCE, "another client from there is answered", || {
        let mut conn = connect_from(port, server.port)?;
        let reply = conn.try_ask(&Request::new("GET", "/healthz")).ok()?;
        (reply.status == 200).then_some(())
    });
}

#[test]
fn requests_of_clients_that_are_gone_when_they_are_accepted_leave_no_word() {
    // Red if a client that has gone is worth a line of the log: a flood would fill the disk.
    let scratch = Scratch::new();
    let server = start_with_variable(&scratch, "RUST_BACKTRACE", "1");
    server.process.signal(Signal::STOP);
    for _ in 0..64 {
        let mut conn = connect_from(0, server.port).expect("the kernel takes it");
        conn.send(Request::new("GET", "/healthz").bytes()).unwrap();
    }
    server.process.signal(Signal::CONT);
    assert_calm(&server, 0);
    let said = server.process.stderr();
    assert!(said.lines().count() < 32, "{said}");
}

#[test]
fn a_client_that_sends_on_after_its_answer_is_told_soon() {
    // Red if its connection is ended in an orderly way only: with the window full it would learn of
    // that when the kernel gives up, after a minute.
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
        let kind = error.expect("64 MiB are not taken").kind();
        assert!(!matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut));
    }
    assert_calm(&server, 0);
}

#[test]
fn a_handler_that_panics_answers_500_and_serves_on() {
    // Red if a panic ends the thread that takes everybody's requests, or the client is left waiting; or
    // if its words are no JSON where logs are. (Debug builds have a path that panics.)
    let scratch = Scratch::new();
    let server = Server::with(&scratch.data(), &["--log-format", "json"]);
    for _ in 0..20 {
        server.get("/panic").expect(500);
        let large = " ".repeat(5000);
        server.post("/panic", large).expect(500);
    }
    let mut conn = server.connect();
    conn.ask(&live("u")).expect(202);
    assert_calm(&server, 1);
    let said = server.process.stderr();
    let lines = said
        .lines()
        .map(|line| from_str::<Value>(line).expect(line));
    let panics = lines.filter(|line| {
        line["message"]
            .as_str()
            .is_some_and(|m| m.starts_with("panicked"))
    });
    assert_eq!(panics.count(), 40, "{said}");
}

#[test]
fn what_holds_up_the_io_thread_is_counted_and_named() {
    // Red if a handler that takes too long on the thread that serves everybody goes unnoticed. (Debug
    // builds have a path that does.)
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let held_up = || metric(&server, "tallyline_http_io_held_up_total");
    server.get("/slow?secret").expect(404);
    assert!(held_up() >= 1);
    let line = until(PATIENCE, "a log line names it", || {
        let said = server.process.stderr();
        let line = said.lines().find(|line| line.contains("GET /slow"));
        line.map(str::to_owned)
    });
    assert!(line.contains("WARN") && line.contains("held up"), "{line}");
    assert!(!line.contains("secret"), "{line}");
}

#[test]
#[ignore = "needs strace"]
fn a_full_queue_is_503_and_send_rides_it_out() {
    // Red if what waits for a stuck disk has no bound, if the refusal does not say when to come
    // again, or if `send` gives up on it or counts anything twice.
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
