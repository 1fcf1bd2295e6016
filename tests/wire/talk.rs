//! An engine that answers everything with an empty 200, and a client that sends it any bytes.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tallyline::http::engine::{
    Admission, Engine, Handler, Lane, Limits, Method, Refusal, Reply, Request,
};

use super::model::{BODY_BYTES_MAX, Reading};

/// The engine, and what it has parsed from the current stream.
pub(crate) struct Talk {
    engine: Engine,
    read: Arc<Recorder>,
    turn: Mutex<()>,
}

#[derive(Default)]
struct Recorder(Mutex<Vec<Reading>>);

impl Handler for Recorder {
    fn admit(&self, _: &Request) -> Admission {
        Admission::Accept(Lane::Io)
    }

    fn handle(&self, mut request: Request) {
        let method = match request.method() {
            Method::Get => "GET",
            Method::Head => "HEAD",
            Method::Post => "POST",
            Method::Options => "OPTIONS",
            Method::Other => "OTHER",
        };
        let headers = ["host", "x"].map(|name| request.header(name).map(str::to_owned));
        let (target, body) = (request.target().to_owned(), request.take_body());
        let reading = Reading::Request(method.to_owned(), target, headers, body);
        let mut read = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        read.push(reading);
        request.answer(Reply::empty(200));
    }

    fn refusal(&self, refusal: Refusal) -> Reply {
        Reply::empty(match refusal {
            Refusal::Malformed(_) | Refusal::Tls => 400,
            Refusal::HeadTimedOut | Refusal::BodyTimedOut => 408,
            Refusal::BodyTooLarge => 413,
            Refusal::Expectation => 417,
            Refusal::HeadTooLarge => 431,
            Refusal::Panicked => 500,
            Refusal::Busy => 503,
            Refusal::Version => 505,
        })
    }
}

impl Talk {
    pub(crate) fn start() -> Self {
        let limits = Limits {
            body_bytes_max: BODY_BYTES_MAX,
            ..Limits::default()
        };
        let read = Arc::new(Recorder::default());
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let handler = Arc::clone(&read) as Arc<dyn Handler>;
        Self {
            engine: Engine::start(address, limits, handler).expect("an engine"),
            read,
            turn: Mutex::new(()),
        }
    }

    /// Sends `bytes` in pieces of that length, ends the stream, and returns the results of the
    /// engine: the requests that it handled and the statuses with which it rejected the others.
    pub(crate) fn read(&self, bytes: &[u8], piece: usize) -> Vec<Reading> {
        let _one_at_a_time = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut stream = TcpStream::connect(self.engine.local_addr()).expect("a connection");
        stream.set_nodelay(true).expect("set");
        let patience = Some(Duration::from_mins(1));
        stream.set_read_timeout(patience).expect("set");
        // The engine may have responded and closed before it has read everything.
        let sent = bytes
            .chunks(piece)
            .all(|piece| stream.write_all(piece).is_ok());
        let _gone = sent && stream.shutdown(Shutdown::Write).is_ok();
        let mut answers = Vec::new();
        if let Err(error) = stream.read_to_end(&mut answers) {
            let late = [ErrorKind::WouldBlock, ErrorKind::TimedOut];
            assert!(
                !late.contains(&error.kind()),
                "neither a response nor a close"
            );
        }
        let requests =
            std::mem::take(&mut *self.read.0.lock().unwrap_or_else(PoisonError::into_inner));
        let mut requests = requests.into_iter();
        let readings = statuses(&answers).into_iter().map(|status| match status {
            200 => requests.next().expect("a request for each 200"),
            refused => Reading::Refused(refused),
        });
        let readings = readings.collect();
        assert_eq!(requests.next(), None, "every request has a response");
        readings
    }
}

/// The statuses of responses without bodies, except interim ones.
fn statuses(answers: &[u8]) -> Vec<u16> {
    let text = std::str::from_utf8(answers).expect("text");
    let heads: Vec<_> = text.split_terminator("\r\n\r\n").collect();
    assert!(text.is_empty() || text.ends_with("\r\n\r\n"), "{text}");
    let status = |head: &&str| {
        let status = head
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3));
        let status = status.and_then(|status| status.parse().ok());
        status.unwrap_or_else(|| panic!("a status line, not {head:?}"))
    };
    let all = heads.iter().map(status);
    all.filter(|status| *status != 100).collect()
}
