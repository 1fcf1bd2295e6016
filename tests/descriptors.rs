//! A server with few file descriptors, and more clients than it can have connections.

use std::process::Command;
use std::time::Duration;

use super::harness::http::{Conn, Reply, Request};
use super::harness::{PATIENCE, Scratch, Server, event, quiet_environment, until};
use super::hostile::{assert_bounded, live};

fn start_with_64_descriptors(scratch: &Scratch, flags: &[&str]) -> Server {
    Server::by(&scratch.data(), flags, |args| {
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -n 64; exec \"$0\" \"$@\""]);
        command.arg(env!("CARGO_BIN_EXE_tallyline")).args(args);
        quiet_environment(&mut command);
        command
    })
}

/// Sends a request on a connection. If the server has closed it for another client because it was idle for a
/// second, which happens if this test is not scheduled for that long, the request is sent on a new one, as
/// every HTTP client does.
fn ask(server: &Server, conn: &mut Conn, request: &Request) -> Reply {
    until(PATIENCE, "a response", || {
        let reply = conn.try_ask(request).ok();
        if reply.is_none() {
            *conn = server.connect();
        }
        reply
    })
}

#[test]
fn descriptors_are_reserved_for_the_journal() {
    // Fails if connections can use all descriptors: the next file cannot be created, events are
    // rejected, and `/readyz` answers 503.
    let scratch = Scratch::new();
    let server = start_with_64_descriptors(&scratch, &["--rotate-size", "1KiB"]);
    let mut polite = server.connect();
    let post = Request::new("POST", "/liveEvent").body(event("u", 1).repeat(50));
    let mut crowd = Vec::new();
    for round in 0..20 {
        crowd.extend((0..16).filter_map(|_| {
            let mut conn = Conn::try_open(server.port).ok()?;
            conn.send("GET /healthz HTTP/1.1\r\nHo").ok()?;
            Some(conn)
        }));
        ask(&server, &mut polite, &post).expect(202);
        let ready = ask(&server, &mut polite, &Request::new("GET", "/readyz"));
        assert_eq!(ready.status, 200, "{round}: {}", ready.text());
    }
    // Further clients wait for a free descriptor and get one.
    server.get("/healthz").expect(200);
    drop(crowd);
    assert_bounded(&server, 1000);
}

#[test]
fn the_server_recovers_when_no_descriptor_was_left() {
    // Fails if one failed accept ends the accept loop: the server runs and listens, but does not
    // respond.
    for _ in 0..3 {
        let scratch = Scratch::new();
        let server = start_with_64_descriptors(&scratch, &[]);
        for acked in 0..2 {
            let mut crowd = Vec::new();
            for _ in 0..150 {
                // The backlog of the socket holds the connections that cannot be accepted.
                if let Ok(mut conn) = Conn::try_open(server.port) {
                    let _may_be_refused = conn.send("GET /healthz HTTP/1.1\r\nHo");
                    crowd.push(conn);
                }
            }
            drop(crowd);
            until(PATIENCE, "it responds again once they are closed", || {
                let mut conn = Conn::try_open(server.port).ok()?;
                let patience = Some(Duration::from_secs(2));
                conn.stream().set_read_timeout(patience).ok()?;
                let reply = conn.try_ask(&Request::new("GET", "/readyz")).ok()?;
                (reply.status == 200).then_some(())
            });
            assert_bounded(&server, acked);
        }
    }
}

#[test]
fn hundreds_of_connections_opened_before_the_first_request_are_all_answered() {
    // Fails if a connection whose client has not sent its request yet is closed to accept another one, as
    // with `Promise.all` of thousands of fetches in Node.
    let scratch = Scratch::new();
    let server = start_with_64_descriptors(&scratch, &[]);
    let open = |count| (0..count).map(|_| server.connect()).collect::<Vec<_>>();
    let mut polite = server.connect();
    // The server has at most 16 connections; the others wait in the kernel's queue.
    let mut crowd = open(10);
    let mut stalled = server.connect();
    stalled.send("GET /healthz HTTP/1.1\r\nHo").unwrap();
    crowd.extend(open(400));
    // A second passes until a client that stalls in its request is disconnected.
    assert!(stalled.reply().is_err());
    polite.ask(&Request::new("GET", "/readyz")).expect(200);
    for conn in &mut crowd {
        conn.send(live("u").bytes()).unwrap();
    }
    for conn in &mut crowd {
        conn.reply().unwrap().expect(202);
    }
    drop(crowd);
    assert_bounded(&server, 410);
}
