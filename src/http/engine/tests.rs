//! A real engine on port 0 with a handler of the test's own, and clients of every kind. Each test
//! fails without the mitigation it names.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::*;

/// Long enough for any machine; a test that waits so long fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// Answers with the target and the body's length, in the way the path asks for.
struct Fake {
    /// Requests for `/later`, answered by a thread that is not allowed to block.
    later: Mutex<mpsc::Sender<Request>>,
    /// Requests for `/held`, until the test answers them.
    held: Mutex<Vec<Request>>,
}

fn echo(mut request: Request) {
    let length = request.take_body().len();
    let text = format!("{} {length}", request.target());
    request.answer(Reply::new(200, "text/plain", text.into_bytes()));
}

impl Handler for Fake {
    fn admit(&self, request: &Request) -> Admission {
        match request.target() {
            "/refused" => Admission::Refuse(Reply::empty(404)),
            "/lookup" | "/large" => Admission::Take(Lane::Lookup),
            "/admit-panics" => panic!("as a handler might"),
            _ => Admission::Take(Lane::Door),
        }
    }

    fn handle(&self, request: Request) {
        match request.target() {
            "/later" => {
                let later = self.later.lock().expect("unpoisoned");
                later.send(request).expect("the thread is there");
            }
            "/held" => self.held.lock().expect("unpoisoned").push(request),
            "/closing" => request.answer(Reply::empty(200).closing()),
            "/large" => request.answer(Reply::new(200, "text/plain", vec![b'x'; 1 << 20])),
            "/panics" => panic!("as a handler might"),
            "/dropped" => drop(request),
            _ => echo(request),
        }
    }

    fn refusal(&self, refusal: Refusal) -> Reply {
        Reply::empty(match refusal {
            Refusal::Framing(_) | Refusal::BodyBroken => 400,
            Refusal::BodyTooLarge => 413,
            Refusal::BodyTimedOut => 408,
            Refusal::Busy | Refusal::TooMany => 503,
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
        });
        let listen = Listen::Address(SocketAddr::from(([127, 0, 0, 1], 0)));
        let engine =
            Engine::start(listen, limits, Arc::clone(&fake) as Arc<dyn Handler>).expect("started");
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

    /// An ordinary request on a fresh connection is answered in good time.
    fn serves(&self) {
        let start = Instant::now();
        assert_eq!(self.connect().ask("GET /ok"), (200, "/ok 0".into()));
        assert!(start.elapsed() < PATIENCE);
    }

    /// Waits until the engine's figures are so.
    fn until(&self, what: &str, holds: impl Fn(Figures) -> bool) {
        let start = Instant::now();
        while !holds(self.engine().figures()) {
            assert!(start.elapsed() < PATIENCE, "{what}");
            std::thread::yield_now();
        }
    }

    /// Takes a request for `/held`, which came.
    fn take_held(&self) -> Request {
        let held = self.fake.held.lock().expect("unpoisoned").pop();
        held.expect("held")
    }

    fn stop(mut self) {
        self.engine.take().expect("running").stop();
    }
}

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

    fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).expect("sent");
    }

    fn ask(&mut self, start: &str) -> (u16, String) {
        self.send(&format!("{start} HTTP/1.1\r\nHost: h\r\n\r\n"));
        self.answer()
    }

    /// Sends the same again and again until the server has ended the connection; how many times.
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
        self.send(&post(path, body));
        self.answer()
    }

    fn answer(&mut self) -> (u16, String) {
        let (status, _, body) = self.whole_answer();
        (status, body)
    }

    /// Status, header lines in lower case, body.
    fn whole_answer(&mut self) -> (u16, Vec<String>, String) {
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

    /// The server has nothing more to say and ends the connection.
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
            client.send(&format!("{:x}\r\n{piece}\r\n", piece.len()));
        }
        client.send("0\r\n\r\n");
        assert_eq!(client.answer(), (200, format!("/c {length}")));
    }
    // Refused by its head: the body is thrown away and the connection goes on.
    assert_eq!(
        client.post("/refused", &"x".repeat(9_000)),
        (404, String::new())
    );
    assert_eq!(client.ask("GET /on"), (200, "/on 0".into()));
    fixture.stop();
}

#[test]
fn a_body_over_the_limit_is_413_and_the_connection_lives_up_to_four_times_it() {
    let fixture = Fixture::start(small());
    let mut client = fixture.connect();
    assert_eq!(client.post("/a", &"x".repeat(40_000)), (413, String::new()));
    assert_eq!(client.ask("GET /on"), (200, "/on 0".into()));
    assert_eq!(fixture.engine().figures().abandoned, 0);
    fixture.stop();
}

#[test]
fn an_absurd_content_length_is_413_and_the_process_lives() {
    let fixture = Fixture::start(Limits::default());
    for length in [
        "100000000000000",
        "18446744073709551615",
        "99999999999999999999999",
    ] {
        let mut client = fixture.connect();
        client.send(&format!(
            "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\nxxx"
        ));
        let (status, headers, _) = client.whole_answer();
        assert_eq!(status, 413);
        assert!(headers.contains(&"connection: close".into()), "{headers:?}");
        client.ends();
        // Also where nothing is ever sent of it, and in a head that is refused.
        let mut client = fixture.connect();
        client.send(&format!(
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
    client.send(&chunk.repeat(60));
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
fn the_size_of_a_chunk_that_does_not_end_is_cut_off() {
    // Red if only the body's deadline ends it: the library keeps all of it meanwhile.
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
fn framing_that_can_be_read_in_two_ways_is_400_and_what_follows_is_not_believed() {
    let fixture = Fixture::start(Limits::default());
    for head in [
        "Content-Length: +3",
        "Content-Length: 3\r\nContent-Length: 4",
        "Content-Length: 3\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: gzip",
        "X: a\nContent-Length: 30",
    ] {
        let mut client = fixture.connect();
        client.send(&format!(
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
fn http2_lines_do_not_stop_the_others() {
    let fixture = Fixture::start(Limits::default());
    let hostile: Vec<_> = (0..50)
        .map(|_| {
            let mut client = fixture.connect();
            client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
            client
        })
        .collect();
    for _ in 0..20 {
        fixture.serves();
    }
    drop(hostile);
    fixture.serves();
    fixture.stop();
}

#[test]
fn connections_parked_by_http2_lines_are_counted() {
    let limits = Limits {
        head_time: Duration::from_millis(300),
        ..Limits::default()
    };
    let fixture = Fixture::start(limits);
    let mut parked: Vec<_> = (0..5).map(|_| fixture.connect()).collect();
    for client in &mut parked {
        client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    }
    fixture.until("all are counted", |figures| figures.abandoned >= 5);
    assert_eq!(fixture.engine().figures().abandoned, 5);
    fixture.stop();
}

#[test]
fn a_hundred_pipelined_requests_are_answered_in_order_beside_other_clients() {
    let fixture = Fixture::start(Limits::default());
    let paths = ["/a", "/later", "/lookup", "/refused", "/dropped"];
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
    assert_eq!(
        fixture.engine().shared.lines.sizes().0,
        0,
        "lines are forgotten"
    );
    fixture.stop();
}

#[test]
fn an_elder_that_is_held_holds_nobody_else() {
    let fixture = Fixture::start(Limits::default());
    let mut client = fixture.connect();
    client.send("GET /held HTTP/1.1\r\nHost: h\r\n\r\n");
    for path in ["/a", "/later", "/lookup"].repeat(50) {
        client.send(&format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n"));
    }
    client
        .send("POST /e HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi");
    for _ in 0..20 {
        fixture.serves();
    }
    fixture.until("those behind it are taken", |figures| {
        figures.in_flight >= 150
    });
    echo(fixture.take_held());
    assert_eq!(client.answer(), (200, "/held 0".into()));
    for path in ["/a", "/later", "/lookup"].repeat(50) {
        assert_eq!(client.answer(), (200, format!("{path} 0")));
    }
    assert_eq!(client.answer().0, 100);
    assert_eq!(client.answer(), (200, "/e 2".into()));
    fixture.stop();
}

#[test]
fn who_is_to_be_told_to_go_on_waits_for_its_turn_on_no_thread() {
    // Red if a body's reader says `100 Continue` itself: within the library it waits for the elders.
    let fixture = Fixture::start(Limits::default());
    let mut clients: Vec<_> = (0..30).map(|_| fixture.connect()).collect();
    for client in &mut clients {
        client.send("GET /held HTTP/1.1\r\nHost: h\r\n\r\n");
        client.send(
            "POST /e HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi",
        );
    }
    fixture.until("all are taken", |figures| figures.in_flight == 60);
    let threads = fixture.engine().figures().threads;
    assert!(threads < 20, "{threads} threads");
    for _ in &clients {
        echo(fixture.take_held());
    }
    for client in &mut clients {
        assert_eq!(client.answer(), (200, "/held 0".into()));
        assert_eq!(client.answer().0, 100);
        assert_eq!(client.answer(), (200, "/e 2".into()));
    }
    fixture.stop();
}

#[test]
fn too_many_pipelined_requests_end_the_connection_and_memory_is_bounded() {
    let limits = Limits {
        pipelined_max: 10,
        ..Limits::default()
    };
    let fixture = Fixture::start(limits);
    let mut client = fixture.connect();
    client.send("GET /held HTTP/1.1\r\nHost: h\r\n\r\n");
    // Far more, but no flood: it is not read on, and not cut off while answers are owed to it.
    client.send(&GET_A.repeat(1000));
    fixture.serves();
    fixture.until("more than may wait came", |figures| figures.in_flight >= 12);
    // That of `serves` is counted out a moment after its answer. Of those past the eleventh the last
    // is kept, and those, one for each 16 KiB, that the end of reading made unreadable.
    fixture.until("few in flight", |figures| figures.in_flight <= 14);
    echo(fixture.take_held());
    assert_eq!(client.answer(), (200, "/held 0".into()));
    for _ in 0..9 {
        assert_eq!(client.answer(), (200, "/a 0".into()));
    }
    assert_eq!(client.answer().0, 503);
    client.ends();
    fixture.stop();
}

#[test]
fn what_the_library_has_to_say_comes_after_what_is_owed() {
    // Red if one that is not believed is let go before its elders are answered: what follows it is no
    // request, and the library says so at once. A race, so several try.
    let fixture = Fixture::start(Limits::default());
    let bad = "GET /a HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n";
    let closing = "GET /closing HTTP/1.1\r\nHost: h\r\n\r\n";
    for (last, status) in [(closing, 200), (bad, 400)] {
        let mut clients: Vec<_> = (0..30).map(|_| fixture.connect()).collect();
        for client in &mut clients {
            client.send("GET /held HTTP/1.1\r\nHost: h\r\n\r\n");
            client.send(&format!("{last}{bad}{GET_A}{GET_A}nonsense\r\n\r\n"));
        }
        fixture.serves();
        fixture.until("all are taken", |figures| figures.in_flight >= 120);
        for _ in &clients {
            echo(fixture.take_held());
        }
        for client in &mut clients {
            assert_eq!(client.answer(), (200, "/held 0".into()));
            assert_eq!(client.answer(), (status, String::new()));
            client.ends();
        }
    }
    fixture.stop();
}

#[test]
fn who_sends_on_after_its_last_answer_is_cut_off() {
    // Red if the library goes on reading from a connection that is not believed any more.
    let fixture = Fixture::start(Limits::default());
    let mut client = fixture.connect();
    assert_eq!(client.ask("GET /closing").0, 200);
    client.send_until_ended(GET_A.as_bytes(), usize::MAX);
    fixture.serves();
    fixture.stop();
}

#[test]
fn a_deaf_client_holds_one_thread_however_much_is_owed_to_it() {
    // Red if an answer that is not in turn waits for its turn on a thread: the library would have it
    // so, and a few such clients would hold all there are.
    let limits = Limits {
        write_time: Duration::from_hours(1),
        ..Limits::default()
    };
    let fixture = Fixture::start(limits);
    let mut deaf: Vec<_> = (0..3).map(|_| fixture.connect()).collect();
    for client in &mut deaf {
        client.send(&"GET /large HTTP/1.1\r\nHost: h\r\n\r\n".repeat(16));
        client.send(&GET_A.repeat(230));
    }
    fixture.until("all are taken", |figures| figures.in_flight >= 600);
    let mut client = fixture.connect();
    for _ in 0..20 {
        assert_eq!(client.ask("GET /later"), (200, "/later 0".into()));
    }
    let threads = fixture.engine().figures().threads;
    assert!(threads < 50, "{threads} threads");
    drop(deaf);
    fixture.stop();
}

#[test]
fn stalled_and_trickled_heads_and_bodies_do_not_stop_the_others() {
    let limits = Limits {
        body_time: Duration::from_millis(300),
        idle_time: Duration::from_secs(2),
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
    // The bodies that never came are answered, and no connection is left.
    for (i, client) in stalled.iter_mut().enumerate() {
        if i % 2 == 1 {
            assert_eq!(client.answer().0, 408);
        }
        client.ends();
    }
    assert_eq!(fixture.engine().figures().abandoned, 0);
    fixture.serves();
    fixture.stop();
}

#[test]
fn a_trickled_head_ends_in_time_and_slow_but_whole_requests_live() {
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
    assert!(start.elapsed() < PATIENCE, "cut off");
    assert_eq!(lives.ask("GET /ok"), (200, "/ok 0".into()));
    echo(fixture.take_held());
    assert_eq!(waits.answer(), (200, "/held 0".into()));
    fixture.stop();
}

#[test]
fn a_trickled_body_ends_at_its_deadline() {
    let limits = Limits {
        body_time: Duration::from_millis(300),
        ..Limits::default()
    };
    let fixture = Fixture::start(limits);
    let mut lives = fixture.connect();
    // The second trickles within the library: its reader does not see the deadline itself.
    for head in ["Content-Length: 100000", "Transfer-Encoding: chunked"] {
        let mut client = fixture.connect();
        client.send(&format!("POST /a HTTP/1.1\r\nHost: h\r\n{head}\r\n\r\n"));
        let start = Instant::now();
        // A request of somebody else for each byte: slow enough not to get done in time.
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
    for path in ["/panics", "/admit-panics", "/dropped", "/panics"] {
        assert_eq!(client.ask(&format!("GET {path}")), (500, String::new()));
        assert_eq!(client.post(path, &"x".repeat(3_000)).0, 500);
        client = fixture.connect();
    }
    fixture.serves();
    fixture.stop();
}

#[test]
fn an_accept_loop_that_ended_is_begun_anew() {
    let fixture = Fixture::start(Limits::default());
    let mut old = fixture.connect();
    assert_eq!(old.ask("GET /a"), (200, "/a 0".into()));
    for _ in 0..3 {
        // The clone shares its mode with the library's: `accept` fails when it would block.
        let listener = &fixture.engine().listener;
        listener.set_nonblocking(true).expect("set");
        let _wakes_accept = TcpStream::connect(fixture.addr);
        let warned = Instant::now();
        while warned.elapsed() < Duration::from_millis(100) {
            std::thread::yield_now();
        }
        listener.set_nonblocking(false).expect("set");
        fixture.serves();
    }
    assert_eq!(
        old.ask("GET /b"),
        (200, "/b 0".into()),
        "old connections live"
    );
    fixture.stop();
}

#[test]
fn clients_that_never_read_do_not_stop_the_others() {
    let limits = Limits {
        write_time: Duration::from_secs(2),
        ..Limits::default()
    };
    let fixture = Fixture::start(limits);
    let mut deaf: Vec<_> = (0..50).map(|_| fixture.connect()).collect();
    for client in &mut deaf {
        // Together no more in memory than would pass for a flood.
        client.send(&"GET /large HTTP/1.1\r\nHost: h\r\n\r\n".repeat(16));
    }
    let mut client = fixture.connect();
    for _ in 0..100 {
        assert_eq!(client.ask("GET /later"), (200, "/later 0".into()));
        assert_eq!(client.ask("GET /lookup"), (200, "/lookup 0".into()));
    }
    fixture.until("they are cut off", |figures| figures.in_flight == 0);
    drop(deaf);
    fixture.stop();
}

#[test]
fn old_and_closing_clients_head_and_continue() {
    let fixture = Fixture::start(Limits::default());
    let mut client = fixture.connect();
    client.send("GET /a HTTP/1.0\r\n\r\n");
    let (status, headers, _) = client.whole_answer();
    assert_eq!(status, 200);
    assert!(headers.contains(&"connection: close".into()));
    client.ends();

    let mut client = fixture.connect();
    client.send("GET /a HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n");
    assert!(
        client
            .whole_answer()
            .1
            .contains(&"connection: keep-alive".into())
    );
    client.send("GET /a HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    assert!(
        client
            .whole_answer()
            .1
            .contains(&"connection: close".into())
    );
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
    client.send("POST /a HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\nhello");
    assert_eq!(client.answer(), (200, "/a 5".into()));
    client.ends();
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
    fixture.until("both are taken", |figures| figures.in_flight >= 2);
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
        let (status, headers, _) = held.whole_answer();
        assert_eq!(status, 200);
        assert!(headers.contains(&"connection: close".into()), "{headers:?}");
    });
    assert!(start.elapsed() < Duration::from_secs(5));
    held.ends();
    idle.ends();
}

#[test]
fn what_is_not_believed_waits_until_those_before_it_are_answered() {
    // Red if the end of the connection, which the last one asks for, takes the first answers along.
    let fixture = Fixture::start(Limits::default());
    let mut client = fixture.connect();
    let bad = "GET /a HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n";
    client.send(&format!("GET /held HTTP/1.1\r\nHost: h\r\n\r\n{bad}{bad}"));
    fixture.until("all three wait", |figures| figures.in_flight == 3);
    echo(fixture.take_held());
    assert_eq!(client.answer(), (200, "/held 0".into()));
    assert_eq!(client.answer().0, 400);
    client.ends();
    fixture.serves();
    fixture.stop();
}

#[test]
fn a_stop_does_not_wait_for_a_door_that_is_kept_busy() {
    // As by a flood that comes faster than it is taken.
    let fixture = Fixture::start(Limits {
        drain_time: Duration::from_millis(50),
        ..Limits::default()
    });
    let fake = Arc::clone(&fixture.fake);
    let busy = fake.held.lock().expect("unpoisoned");
    let mut client = fixture.connect();
    client.send("GET /held HTTP/1.1\r\nHost: h\r\n\r\n");
    fixture.until("the door has it", |figures| figures.in_flight == 1);
    let (stopped, stops) = mpsc::channel();
    std::thread::spawn(move || {
        fixture.stop();
        stopped.send(()).expect("the test waits");
    });
    stops.recv_timeout(PATIENCE).expect("stopped");
    client.ends();
    drop(busy);
}

#[test]
fn under_load_a_stop_takes_no_longer_than_it_may() {
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
