//! Access control: tokens, and requests that a web page on the same machine can send.

use rustix::process::Signal;

use super::harness::http::Request;
use super::harness::{PATIENCE, Scratch, Server, arg, event, until};

const LIVE: &str = "/liveEvent";

fn with_token(method: &str, path: &str, token: &str) -> Request {
    Request::new(method, path).header("Authorization", &format!("Bearer {token}"))
}

#[test]
fn every_path_but_the_four_open_ones_requires_a_token() {
    // Fails if a path answers without a token that must not, or a monitor without a token is
    // rejected.
    let scratch = Scratch::new();
    let tokens = scratch.file("tokens", "first-token\nsecond-token\n");
    let server = Server::with(&scratch.data(), &["--token-file", arg(&tokens)]);
    for path in ["/", "/healthz", "/readyz", "/openapi.json"] {
        server.get(path).expect(200);
    }
    for (method, path) in [
        ("POST", LIVE),
        ("POST", "/flush"),
        ("GET", "/userEvents"),
        ("GET", "/userEvents/u"),
        ("GET", "/status"),
        ("GET", "/metrics"),
    ] {
        let bare = server.ask(&Request::new(method, path).body(event("u", 1)));
        assert!(
            bare.header("WWW-Authenticate")
                .is_some_and(|scheme| scheme.starts_with("Bearer")),
            "{path}"
        );
        bare.problem(401);
        for wrong in ["", "first", "first-token2", "FIRST-TOKEN", "first-token\tx"] {
            server
                .ask(&with_token(method, path, wrong).body(event("u", 1)))
                .problem(401);
        }
        let basic = Request::new(method, path).header("Authorization", "Basic Zmlyc3QtdG9rZW4=");
        server.ask(&basic).problem(401);
    }
    for token in ["first-token", "second-token"] {
        let post = with_token("POST", LIVE, token).body(event("u", 1));
        server.ask(&post).expect(202);
    }
    let status = with_token("GET", "/status", "second-token");
    assert_eq!(server.ask(&status).expect(200).json()["accepted"], 2);
    let log = server.process.stderr();
    assert!(!log.contains("first-token"), "secrets are never logged");
}

#[test]
fn tokens_are_reloaded_on_sighup() {
    // Fails if a token can only be withdrawn by a restart.
    let scratch = Scratch::new();
    let tokens = scratch.file("tokens", "old\n");
    let server = Server::with(&scratch.data(), &["--token-file", arg(&tokens)]);
    server.ask(&with_token("GET", "/status", "old")).expect(200);
    scratch.file("tokens", "new\n");
    server.process.signal(Signal::HUP);
    until(PATIENCE, "the new token is accepted", || {
        let status = server.ask(&with_token("GET", "/status", "new")).status;
        (status == 200).then_some(())
    });
    server
        .ask(&with_token("GET", "/status", "old"))
        .problem(401);
}

#[test]
fn a_web_page_cannot_post_to_localhost() {
    // Fails if a page in a browser on this machine can add events (foreign `Origin`), or reach the
    // server under a host name of its own that resolves to 127.0.0.1 (foreign `Host`).
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let port = server.port;
    let paths = [
        ("POST", LIVE),
        ("GET", "/status"),
        ("GET", "/"),
        ("DELETE", "/x"),
    ];
    for (method, path) in paths {
        let plain = || Request::new(method, path).body(event("u", 1));
        for origin in [
            "https://evil.example",
            "null",
            "http://127.0.0.1.evil.example",
        ] {
            server.ask(&plain().header("Origin", origin)).problem(403);
        }
        for host in [
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example:80",
            "",
        ] {
            server.ask(&plain().header("Host", host)).problem(403);
        }
    }
    assert_eq!(server.counter("accepted"), 0);
    for host in [
        "localhost",
        "127.0.0.1:1",
        "[::1]",
        "[::1]:8000",
        "LOCALHOST",
    ] {
        let request = Request::new("POST", LIVE).header("Host", host);
        server.ask(&request.body(event("u", 1))).expect(202);
    }
    let own = format!("http://127.0.0.1:{port}");
    let request = Request::new("POST", LIVE)
        .header("Host", &format!("127.0.0.1:{port}"))
        .header("Origin", &own);
    server.ask(&request.body(event("u", 1))).expect(202);
    let mut old = server.connect();
    old.send("GET /healthz HTTP/1.0\r\n\r\n").unwrap();
    old.reply().unwrap().expect(200);
}

#[test]
fn a_server_on_the_network_accepts_any_host_but_requires_a_token() {
    // Fails if a `Host` that is a DNS name is rejected where the operator opened the server to the
    // network.
    let scratch = Scratch::new();
    let tokens = scratch.file("tokens", "secret\n");
    let flags = ["--listen", "0.0.0.0:0", "--token-file", arg(&tokens)];
    let server = Server::with(&scratch.data(), &flags);
    let named = with_token("GET", "/status", "secret").header("Host", "tally.example:8000");
    server.ask(&named).expect(200);
    server.get("/status").problem(401);
}
