//! Tests of a running engine on port 0 with a test handler: bounds, timeouts, slow and malformed clients,
//! shutdown.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Mutex, mpsc};

use super::*;

/// The timeout of every wait in these tests: a test that waits this long fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// A handler that answers with the target and the length of the body; the path selects how.
struct Fake {
    /// Requests for `/later`, which another thread answers.
    later: Mutex<mpsc::Sender<Request>>,
    /// Requests for `/held`, until the test answers them.
    held: Mutex<Vec<Request>>,
    /// The refusals of the engine, the newest last.
    refused: Mutex<Vec<Refusal>>,
    /// The pieces that were produced for `/endless`.
    produced: Arc<AtomicUsize>,
}

fn echo(mut request: Request) {
    let length = request.take_body().len();
    let text = format!("{} {length}", request.target());
    request.answer(Reply::new(200, "text/plain", text.into_bytes()));
}

/// Answers with the piece `0;` and those of `source`, which gets their number.
fn stream(request: Request, mut source: impl FnMut(usize) -> Piece + Send + 'static) {
    let mut number = 0;
    let reply = Reply::new(200, "text/plain", "0;".as_bytes());
    let next = move |_: &MayBlock| {
        number += 1;
        source(number)
    };
    request.answer_with_stream(reply, Box::new(next));
}

impl Handler for Fake {
    fn admit(&self, request: &Request) -> Admission {
        match request.target() {
            "/refused" => Admission::Refuse(Reply::empty(404)),
            "/worker" => Admission::Accept(Lane::Worker),
            "/admit-panics" => panic!("the handler panics"),
            _ => Admission::Accept(Lane::Io),
        }
    }

    fn handle(&self, request: Request) {
        match request.target() {
            "/later" => {
                let later = self.later.lock().expect("unpoisoned");
                later.send(request).expect("the thread is there");
            }
            "/held" => self.held.lock().expect("unpoisoned").push(request),
            "/stream" => stream(request, |number| match number {
                1 | 2 => Piece::More(format!("{number};").into_bytes()),
                _ => Piece::Last(b"end".to_vec()),
            }),
            "/stream-fails" => stream(request, |_| Piece::Failed),
            "/stream-panics" => stream(request, |_| panic!("the source panics")),
            "/endless" => {
                let produced = Arc::clone(&self.produced);
                stream(request, move |_| {
                    produced.fetch_add(1, Ordering::SeqCst);
                    Piece::More(vec![b'x'; 1 << 20])
                });
            }
            "/closing" => request.answer(Reply::empty(200).closing()),
            "/lookup" => request.on_blocking_thread(|request, _| echo(request)),
            "/blocking-panics" => request.on_blocking_thread(|_, _| panic!("the handler panics")),
            "/slow" => {
                let started = Instant::now();
                while started.elapsed() < HELD_UP_MIN {}
                echo(request);
            }
            "/large" => request.answer(Reply::new(200, "text/plain", vec![b'x'; 1 << 20])),
            "/panics" => panic!("the handler panics"),
            "/dropped" => drop(request),
            _ => echo(request),
        }
    }

    fn refusal(&self, refusal: Refusal) -> Reply {
        self.refused.lock().expect("unpoisoned").push(refusal);
        Reply::empty(match refusal {
            Refusal::Malformed(_) | Refusal::Tls => 400,
            Refusal::BodyTooLarge => 413,
            Refusal::BodyTimedOut | Refusal::HeadTimedOut => 408,
            Refusal::Expectation => 417,
            Refusal::HeadTooLarge => 431,
            Refusal::Busy => 503,
            Refusal::Version => 505,
            Refusal::Panicked => 500,
        })
    }
}

struct Fixture {
    engine: Option<Engine>,
    fake: Arc<Fake>,
    addr: SocketAddr,
}

impl Fixture {
    fn start(limits: Limits) -> Self {
        let (later, requests) = mpsc::channel::<Request>();
        std::thread::spawn(move || requests.into_iter().for_each(echo));
        let fake = Arc::new(Fake {
            later: Mutex::new(later),
            held: Mutex::default(),
            refused: Mutex::default(),
            produced: Arc::default(),
        });
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let engine =
            Engine::start(address, limits, Arc::clone(&fake) as Arc<dyn Handler>).expect("started");
        Self {
            addr: engine.local_addr(),
            engine: Some(engine),
            fake,
        }
    }

    fn connect(&self) -> Client {
        Client::connect(self.addr)
    }

    fn engine(&self) -> &Engine {
        self.engine.as_ref().expect("running")
    }

    /// Asserts that a request on a new connection is answered in time.
    fn serves(&self) {
        let start = Instant::now();
        assert_eq!(self.connect().ask("GET /ok"), (200, "/ok 0".into()));
        assert!(start.elapsed() < PATIENCE);
    }

    /// Waits until the engine's counters satisfy `holds`.
    fn until(&self, what: &str, holds: impl Fn(Figures) -> bool) {
        let start = Instant::now();
        while !holds(self.engine().figures()) {
            assert!(start.elapsed() < PATIENCE, "{what}");
            std::thread::yield_now();
        }
    }

    /// Waits for a request for `/held` and takes it.
    fn take_held(&self) -> Request {
        let start = Instant::now();
        loop {
            let held = self.fake.held.lock().expect("unpoisoned").pop();
            match held {
                Some(request) => return request,
                None => assert!(start.elapsed() < PATIENCE, "held"),
            }
            std::thread::yield_now();
        }
    }

    fn stop(mut self) {
        self.engine.take().expect("running").stop();
    }
}

/// The first bytes of a TLS 1.2 client hello.
const TLS_HELLO: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";

fn small() -> Limits {
    Limits {
        body_bytes_max: 10_000,
        ..Limits::default()
    }
}

fn post(path: &str, body: &str) -> String {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n{body}")
}

const GET_A: &str = "GET /a HTTP/1.1\r\nHost: h\r\n\r\n";

struct Client {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Client {
    fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        stream.set_write_timeout(Some(PATIENCE)).expect("set");
        let reader = BufReader::new(stream.try_clone().expect("cloned"));
        Self { stream, reader }
    }

    fn send(&mut self, text: impl AsRef<[u8]>) {
        self.stream.write_all(text.as_ref()).expect("sent");
    }

    fn ask(&mut self, start: &str) -> (u16, String) {
        self.send(format!("{start} HTTP/1.1\r\nHost: h\r\n\r\n"));
        self.answer()
    }

    /// Sends `bytes` repeatedly until the server has closed the connection. Returns how many times.
    fn send_until_ended(&mut self, bytes: &[u8], times_max: usize) -> usize {
        let start = Instant::now();
        for times in 0..times_max {
            if let Err(error) = self.stream.write_all(bytes) {
                let kind = error.kind();
                assert!(!matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut));
                return times;
            }
            assert!(start.elapsed() < PATIENCE, "not ended");
        }
        panic!("not ended after {times_max} times");
    }

    fn post(&mut self, path: &str, body: &str) -> (u16, String) {
        self.send(post(path, body));
        self.answer()
    }

    fn answer(&mut self) -> (u16, String) {
        let (status, _, body) = self.full_answer();
        (status, body)
    }

    /// The status, the header lines in lower case, and the body.
    fn full_answer(&mut self) -> (u16, Vec<String>, String) {
        let mut line = String::new();
        self.reader.read_line(&mut line).expect("a status line");
        let status = line.get(9..12).and_then(|s| s.parse().ok());
        let status = status.unwrap_or_else(|| panic!("a status line, not {line:?}"));
        let (mut length, mut headers) = (0, Vec::new());
        loop {
            let mut line = String::new();
            self.reader.read_line(&mut line).expect("a header");
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.parse().expect("a length");
            }
            headers.push(line);
        }
        let mut body = vec![0; length];
        self.reader.read_exact(&mut body).expect("a body");
        (status, headers, String::from_utf8(body).expect("text"))
    }

    /// Asserts that the server sends nothing more and closes the connection.
    fn ends(&mut self) {
        let mut rest = Vec::new();
        match self.reader.read_to_end(&mut rest) {
            Ok(_) => assert!(rest.is_empty(), "{:?}", String::from_utf8_lossy(&rest)),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
    }
}

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
fn a_stop_answers_what_was_accepted_and_ends_every_connection() {
    let fixture = Fixture::start(Limits::default());
    let addr = fixture.addr;
    let mut idle = fixture.connect();
    assert_eq!(idle.ask("GET /a"), (200, "/a 0".into()));
    let mut held = fixture.connect();
    held.send("GET /held HTTP/1.1\r\nHost: h\r\n\r\nGET /a HTTP/1.1\r\nHost: h\r\n\r\n");
    fixture.until("it is taken", |figures| figures.in_flight == 1);
    let fake = Arc::clone(&fixture.fake);
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| fixture.stop());
        while TcpStream::connect(addr).is_ok() {
            assert!(start.elapsed() < PATIENCE, "refused in the end");
            std::thread::yield_now();
        }
        let request = fake.held.lock().expect("unpoisoned").pop().expect("held");
        echo(request);
        assert_eq!(held.answer(), (200, "/held 0".into()));
        let (status, headers, _) = held.full_answer();
        assert_eq!(status, 200);
        assert!(headers.contains(&"connection: close".into()), "{headers:?}");
    });
    assert!(start.elapsed() < Duration::from_secs(5));
    held.ends();
    idle.ends();
}

#[test]
fn a_stop_does_not_wait_for_a_handler_that_blocks() {
    let fixture = Fixture::start(Limits {
        drain_time: Duration::from_millis(50),
        ..Limits::default()
    });
    let fake = Arc::clone(&fixture.fake);
    let busy = fake.held.lock().expect("unpoisoned");
    let mut client = fixture.connect();
    client.send("GET /held HTTP/1.1\r\nHost: h\r\n\r\n");
    fixture.until("the handler has it", |figures| figures.in_flight == 1);
    let (stopped, stops) = mpsc::channel();
    std::thread::spawn(move || {
        fixture.stop();
        stopped.send(()).expect("the test waits");
    });
    stops.recv_timeout(PATIENCE).expect("stopped");
    drop(busy);
    client.ends();
}

#[test]
fn a_stop_under_load_ends_within_its_time() {
    let fixture = Fixture::start(Limits::default());
    let addr = fixture.addr;
    std::thread::scope(|scope| {
        let (ready, all_ready) = mpsc::channel();
        for _ in 0..16 {
            let ready = ready.clone();
            scope.spawn(move || {
                let mut client = Client::connect(addr);
                for i in 0_u64.. {
                    if i == 20 {
                        ready.send(()).expect("the test waits");
                    }
                    let sent = client
                        .stream
                        .write_all(b"GET /later HTTP/1.1\r\nHost: h\r\n\r\n");
                    let mut first = [0; 1];
                    if sent.is_err() || client.reader.read_exact(&mut first).is_err() {
                        return;
                    }
                    client.reader.read_until(b'/', &mut Vec::new()).ok();
                    let (mut line, mut closes) = (String::new(), false);
                    while client.reader.read_line(&mut line).is_ok_and(|n| n > 2) {
                        closes |= line.contains("Connection: close");
                        line.clear();
                    }
                    client.reader.read_exact(&mut [0; 8]).ok();
                    if closes {
                        return;
                    }
                }
            });
        }
        for _ in 0..16 {
            all_ready.recv().expect("ready");
        }
        let start = Instant::now();
        fixture.stop();
        assert!(start.elapsed() < Duration::from_secs(5));
    });
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

#[test]
fn at_the_connection_limit_those_without_a_request_are_evicted_first() {
    let limits = Limits {
        connections_max: 20,
        ..Limits::default()
    };
    let fixture = Fixture::start(limits);
    let mut half: Vec<_> = (0..9).map(|_| fixture.connect()).collect();
    for client in &mut half {
        client.send("GET /a HT");
    }
    let mut kept: Vec<_> = (0..10).map(|_| fixture.connect()).collect();
    for client in &mut kept {
        assert_eq!(client.ask("GET /a"), (200, "/a 0".into()));
    }
    let mut held = fixture.connect();
    held.send("GET /held HTTP/1.1\r\nHost: h\r\n\r\n");
    fixture.until("all are open", |figures| figures.connections == 20);
    let mut new: Vec<_> = (0..9).map(|_| fixture.connect()).collect();
    for client in &mut new {
        assert_eq!(client.ask("GET /c"), (200, "/c 0".into()));
    }
    for client in &mut half {
        client.ends();
    }
    for client in &mut kept {
        assert_eq!(client.ask("GET /b"), (200, "/b 0".into()));
    }
    drop((kept, new));
    // If no connection is idle long enough, a new one waits in the kernel's queue.
    let mut all: Vec<_> = (0..30).map(|_| fixture.connect()).collect();
    for client in &mut all {
        client.send("GET /held HTTP/1.1\r\nHost: h\r\n\r\n");
    }
    fixture.until("all that may be are held", |figures| {
        figures.in_flight == 20
    });
    let held_now = || fixture.fake.held.lock().expect("unpoisoned").pop();
    let mut answered = 0;
    let start = Instant::now();
    while answered < 31 {
        assert!(start.elapsed() < PATIENCE, "{answered} were held");
        match held_now() {
            Some(request) => {
                request.answer(Reply::empty(200).closing());
                answered += 1;
            }
            None => std::thread::yield_now(),
        }
    }
    for client in &mut all {
        assert_eq!(client.answer().0, 200);
    }
    assert!(fixture.engine().figures().evicted >= 9);
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
fn a_stalled_upload_yields_its_room_to_a_new_one() {
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
    // A chunked body needs room for a body of the maximum length.
    let mut client = fixture.connect();
    client.send("POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send(format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len()));
    assert_eq!(client.answer(), (200, "/c 600000".into()));
    // A small body needs no room.
    assert_eq!(client.post("/a", "small"), (200, "/a 5".into()));
    fixture.stop();
}

#[test]
fn without_room_for_it_a_large_body_is_503() {
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
    // This upload is fast enough to keep its room: the other one is refused before it is complete.
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

#[test]
fn a_handler_that_holds_up_the_io_thread_is_counted() {
    let fixture = Fixture::start(Limits::default());
    fixture.serves();
    let before = fixture.engine().figures().held_up;
    assert_eq!(fixture.connect().ask("GET /slow"), (200, "/slow 0".into()));
    assert!(fixture.engine().figures().held_up > before);
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
fn a_stream_is_sent_in_chunks_and_the_connection_is_kept() {
    let fixture = Fixture::start(Limits::default());
    let mut client = fixture.connect();
    client.send("GET /stream HTTP/1.1\r\nHost: h\r\n\r\nHEAD /stream HTTP/1.1\r\nHost: h\r\n\r\n");
    let (status, headers, _) = client.full_answer();
    assert_eq!(status, 200);
    let coded = "transfer-encoding: chunked".to_owned();
    assert!(headers.contains(&coded), "{headers:?}");
    assert!(
        !headers
            .iter()
            .any(|line| line.starts_with("content-length"))
    );
    let expected = "2\r\n0;\r\n2\r\n1;\r\n2\r\n2;\r\n3\r\nend\r\n0\r\n\r\n";
    let mut body = vec![0; expected.len()];
    client.reader.read_exact(&mut body).expect("the body");
    assert_eq!(String::from_utf8_lossy(&body), expected);
    let (status, headers, _) = client.full_answer();
    assert!(
        status == 200 && headers.contains(&coded),
        "HEAD has no body: {headers:?}"
    );
    assert_eq!(client.ask("GET /ok"), (200, "/ok 0".into()));
    // A client of HTTP/1.0 does not know chunks: the end of the connection ends the body.
    let mut old = fixture.connect();
    old.send("GET /stream HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    let (status, headers, _) = old.full_answer();
    assert_eq!(status, 200);
    assert!(
        headers.contains(&"connection: close".to_owned()),
        "{headers:?}"
    );
    let mut body = String::new();
    old.reader.read_to_string(&mut body).expect("the body");
    assert_eq!(body, "0;1;2;end");
    fixture.stop();
}

#[test]
fn a_stream_that_cannot_be_continued_ends_without_its_last_chunk() {
    let fixture = Fixture::start(Limits::default());
    for path in ["/stream-fails", "/stream-panics"] {
        let mut client = fixture.connect();
        client.send(format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n"));
        assert_eq!(client.full_answer().0, 200);
        let mut body = String::new();
        client.reader.read_to_string(&mut body).expect("the body");
        assert_eq!(body, "2\r\n0;\r\n", "{path}");
        fixture.serves();
    }
    fixture.stop();
}

#[test]
fn a_stream_waits_for_its_client_and_ends_with_it() {
    let fixture = Fixture::start(Limits::default());
    let produced = || fixture.fake.produced.load(Ordering::SeqCst);
    let mut client = fixture.connect();
    client.send("GET /endless HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(client.full_answer().0, 200);
    // The client reads nothing. Other requests use the threads that produce.
    for _ in 0..200 {
        assert_eq!(
            fixture.connect().ask("GET /lookup"),
            (200, "/lookup 0".into())
        );
    }
    let waiting = produced();
    assert!(waiting < 100, "{waiting} MiB for the buffers of the kernel");
    assert_eq!(
        fixture.engine().figures().connections,
        2,
        "its connection, and the last one"
    );
    // It continues when the client reads.
    let mut some = vec![0; 1 << 20];
    let start = Instant::now();
    while produced() < waiting + 20 {
        client.reader.read_exact(&mut some).expect("more");
        assert!(start.elapsed() < PATIENCE);
    }
    drop(client);
    fixture.until("the connection is closed", |figures| {
        figures.connections == 0
    });
    let last = produced();
    for _ in 0..20 {
        fixture.serves();
    }
    assert!(
        produced() <= last + 1,
        "nothing is produced for a closed connection"
    );
    fixture.stop();
}
