//! Arbitrary bytes on a connection. The HTTP engine must read the same requests from them as a
//! plain model of RFC 9112, however they are split. If there is a `POST /liveEvent` among them,
//! they are also sent to a real server: the ledger must contain exactly what it acknowledged, and
//! the next client must get its response.

#![no_main]

#[path = "../../wire/model.rs"]
mod model;
#[path = "../../wire/talk.rs"]
mod talk;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{LazyLock, OnceLock};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use tallyline::cli::config::ServeConfig;
use tallyline::server::Server;

/// A server that runs as long as the fuzzer, and its data directory.
fn server() -> SocketAddr {
    static RUNNING: OnceLock<(Server, tempfile::TempDir)> = OnceLock::new();
    let (server, _) = RUNNING.get_or_init(|| {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a directory");
        let mut config = ServeConfig::at(dir.path().join("data"));
        config.max_body_bytes = 64 << 10;
        config.rotate_size = 1 << 20;
        config.retention = Some(Duration::ZERO);
        config.disk_reserve_bytes = 0;
        (Server::start(&config).expect("a server"), dir)
    });
    server.address()
}

static TALK: LazyLock<talk::Talk> = LazyLock::new(talk::Talk::start);

/// Sends all bytes, shuts down the sending side, and reads to the end. True if the connection ended
/// without an error.
fn talk(bytes: &[u8]) -> (Vec<u8>, bool) {
    let mut stream = TcpStream::connect(server()).expect("a connection");
    let patience = Some(Duration::from_secs(60));
    stream.set_read_timeout(patience).expect("a timeout");
    // The server may have responded and closed the connection before it has read everything.
    let sent = stream.write_all(bytes).is_ok() && stream.shutdown(Shutdown::Write).is_ok();
    let mut answer = Vec::new();
    let ended = match stream.read_to_end(&mut answer) {
        Ok(_) => sent,
        Err(error) => {
            assert!(
                !matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                ),
                "neither a response nor a close within a minute"
            );
            false
        }
    };
    (answer, ended)
}

/// The number of events that the responses acknowledge.
fn acknowledged(answers: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(answers);
    text.split("\r\n\r\n{\"accepted\":")
        .skip(1)
        .map(|rest| {
            let end = rest.find(|c: char| !c.is_ascii_digit()).expect("an end");
            rest[..end].parse::<u64>().expect("a number")
        })
        .sum()
}

/// Events accepted so far and lines in the files, from `/status`.
fn ledger() -> (u64, u64) {
    let request = b"GET /status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let (answer, _) = talk(request);
    let text = String::from_utf8_lossy(&answer);
    assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
    let (_, body) = text.split_once("\r\n\r\n").expect("a body");
    let status: serde_json::Value = serde_json::from_str(body).expect("JSON");
    let count = |name: &str| status[name].as_u64().expect("a count");
    assert_eq!(count("received"), count("accepted") + count("refused"));
    (count("accepted"), count("lines"))
}

/// Asserts that what the server acknowledges is what it stores.
fn balances(bytes: &[u8]) {
    let before = ledger();
    let (answers, ended) = talk(bytes);
    let reported = acknowledged(&answers);
    let after = ledger();
    let taken = after.0 - before.0;
    assert_eq!(taken, after.1 - before.1, "lines in the files");
    assert!(reported <= taken, "{reported} acknowledged, {taken} taken");
    if ended {
        assert_eq!(reported, taken, "{}", String::from_utf8_lossy(&answers));
    }
}

fuzz_target!(|bytes: &[u8]| {
    let pieces = [usize::MAX, 1, 2, 7, 64];
    let piece = pieces[bytes.len() % pieces.len()];
    let expected = model::read(bytes);
    let got = TALK.read(bytes, piece);
    assert!(
        model::agree(&expected, &got),
        "{}: the model {expected:?}, the engine {got:?}",
        bytes.escape_ascii()
    );
    let is_ingest = |reading: &model::Reading| matches!(reading, model::Reading::Request(method, target, ..) if method == "POST" && target.contains("/liveEvent"));
    if expected.iter().any(is_ingest) {
        balances(bytes);
    }
});
