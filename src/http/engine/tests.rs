//! Tests of a running engine on port 0 with a test handler: bounds, timeouts, slow and malformed clients,
//! shutdown.

mod limits;
mod requests;
mod slow;
mod stop;
mod streams;

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
    /// The targets of the requests that were admitted or refused by their head, in this order.
    heads: Mutex<Vec<String>>,
    /// A request for `/gate` blocks the I/O thread until the test sends to the other end, or drops it.
    gate: Mutex<mpsc::Receiver<()>>,
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
        let mut heads = self.heads.lock().expect("unpoisoned");
        heads.push(request.target().to_owned());
        drop(heads);
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
            "/gate" => {
                let gate = self.gate.lock().expect("unpoisoned");
                let _sent_or_dropped = gate.recv();
                drop(gate);
                echo(request);
            }
            "/closing" => request.answer(Reply::empty(200).closing()),
            "/lookup" => request.on_blocking_thread(|request, _| echo(request)),
            "/blocking-panics" => request.on_blocking_thread(|_, _| panic!("the handler panics")),
            "/slow" => {
                let started = Instant::now();
                while started.elapsed() < BLOCKED_MIN {}
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
    gate: Option<mpsc::Sender<()>>,
    fake: Arc<Fake>,
    addr: SocketAddr,
}

impl Fixture {
    fn start(limits: Limits) -> Self {
        let (later, requests) = mpsc::channel::<Request>();
        std::thread::spawn(move || requests.into_iter().for_each(echo));
        let (gate, opens) = mpsc::channel();
        let fake = Arc::new(Fake {
            later: Mutex::new(later),
            held: Mutex::default(),
            refused: Mutex::default(),
            produced: Arc::default(),
            heads: Mutex::default(),
            gate: Mutex::new(opens),
        });
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let engine =
            Engine::start(address, limits, Arc::clone(&fake) as Arc<dyn Handler>).expect("started");
        Self {
            addr: engine.local_addr(),
            engine: Some(engine),
            gate: Some(gate),
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
