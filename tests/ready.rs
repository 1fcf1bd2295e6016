//! `tallyline ready`: exit codes and messages for each state of a server.

use std::fs::OpenOptions;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::thread;

use super::harness::{Scratch, Server, event, run};

#[test]
fn a_server_is_ready_until_it_stops() {
    // Fails if a server that runs is not recognised, or one that does not run is called ready.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let url = server.url();
    let ready = run(&["ready", "--to", &url]).expect(0);
    assert_eq!(ready.stdout, format!("{url} is ready\n"));
    let quiet = run(&["ready", "--quiet", "--to", &url]).expect(0);
    assert_eq!(quiet.stdout, "");
    server.stop();
    let gone = run(&["ready", "--to", &url]).expect(1);
    let expected = format!("error: {url} is not ready: no answer: ");
    assert!(gone.stderr.contains(&expected), "{gone}");
    assert!(gone.stdout.is_empty(), "{gone}");
}

#[test]
fn the_reasons_of_a_server_that_is_not_ready_are_printed() {
    // Fails if a 503 counts as ready, or its reasons are lost.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    server.accept(event("u", 1));
    let active = server.data.join("events.jsonl");
    let mut file = OpenOptions::new().append(true).open(active).unwrap();
    file.write_all(b"of another program\n").unwrap();
    server.post("/liveEvent", event("u", 1)).expect(503);
    let red = run(&["ready", "--to", &server.url()]).expect(1);
    assert!(
        red.stderr.contains(" is not ready: ") && red.stderr.contains("events.jsonl"),
        "{red}"
    );
}

#[test]
fn with_wait_it_asks_until_the_server_is_ready() {
    // Fails if `--wait` gives up after the first answer, or does not end at the first 200.
    let not_ready =
        r#"{"status":503,"title":"not ready","reasons":["the disk is full","and slow"]}"#;
    let (url, asked) = fake(vec![(503, not_ready), (503, not_ready), (200, "{}")]);
    run(&["ready", "--wait", "1m", "--to", &url]).expect(0);
    assert_eq!(asked.join().unwrap(), 3);

    let (url, asked) = fake(vec![(503, not_ready)]);
    let red = run(&["ready", "--to", &url]).expect(1);
    assert!(red.stderr.contains("the disk is full; and slow"), "{red}");
    assert_eq!(asked.join().unwrap(), 1);

    let (url, _asked) = fake(vec![(404, "no such page")]);
    let other = run(&["ready", "--to", &url.replace("//", "//u:secret@")]).expect(1);
    assert!(other.stderr.contains("/readyz answered 404"), "{other}");
    assert!(!other.stderr.contains("secret"), "{other}");

    let wrong = run(&["ready", "--to", "127.0.0.1:8000"]).expect(2);
    assert!(wrong.stderr.contains("http://127.0.0.1:8000"), "{wrong}");
}

/// A server that gives these answers to `GET /readyz`, one a connection, and returns how many it gave.
fn fake(answers: Vec<(u16, &'static str)>) -> (String, thread::JoinHandle<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let thread = thread::spawn(move || {
        let mut given = 0;
        for (status, body) in answers {
            let (mut socket, _) = listener.accept().unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                socket.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            assert!(head.starts_with(b"GET /readyz HTTP/1.1\r\n"));
            let length = body.len();
            write!(
                socket,
                "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            )
            .unwrap();
            given += 1;
        }
        given
    });
    (url, thread)
}
