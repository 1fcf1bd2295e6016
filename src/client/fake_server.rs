//! A server for the tests of the sender. It answers as the real one does unless a script decides.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde_json::json;

use crate::event::Event;

/// An answer of the script.
pub(super) enum Instead {
    /// This status and this body; nothing is stored.
    Answer(u16, &'static str),
    /// 503 with `Retry-After: 0`; nothing is stored.
    RetryAfter,
    /// Stores the events, but answers 503 with an unknown outcome.
    StoreWithoutAnswer,
}

/// What the server received.
#[derive(Default)]
pub(super) struct Seen {
    /// Bodies of the POST requests, in order.
    pub(super) bodies: Vec<String>,
    /// Headers of the last request, names in lower case.
    pub(super) headers: BTreeMap<String, String>,
    /// Targets of the GET requests, in order.
    pub(super) gets: Vec<String>,
    /// Lines of stored events, in order, with repetitions.
    pub(super) stored: Vec<String>,
}

impl Seen {
    /// The ids of stored events, and how often each was stored.
    pub(super) fn ids(&self) -> BTreeMap<String, usize> {
        let mut ids = BTreeMap::new();
        for line in &self.stored {
            let event = Event::parse(line.as_bytes()).expect("stored");
            let id = event.id.expect("an id").into_owned();
            *ids.entry(id).or_default() += 1;
        }
        ids
    }
}

type Script = Box<dyn FnMut(usize, &str) -> Option<Instead> + Send>;

/// The server. Dropping it stops its thread.
pub(super) struct FakeServer {
    server: Arc<tiny_http::Server>,
    thread: Option<std::thread::JoinHandle<()>>,
    seen: Arc<Mutex<Seen>>,
}

impl FakeServer {
    /// A server that accepts all events.
    pub(super) fn new() -> Self {
        Self::with(|_, _| None)
    }

    /// A server that calls `script` first, with the number of the request (from 0) and its body.
    pub(super) fn with(
        script: impl FnMut(usize, &str) -> Option<Instead> + Send + 'static,
    ) -> Self {
        let server = Arc::new(tiny_http::Server::http("127.0.0.1:0").expect("a port"));
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (incoming, record) = (Arc::clone(&server), Arc::clone(&seen));
        let mut script: Script = Box::new(script);
        let thread = std::thread::spawn(move || {
            let mut number = 0;
            while let Ok(request) = incoming.recv() {
                let posted = request.method() == &tiny_http::Method::Post;
                answer(request, number, &mut script, &record);
                number += usize::from(posted);
            }
        });
        Self {
            server,
            thread: Some(thread),
            seen,
        }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.server.server_addr())
    }

    /// What was received so far.
    pub(super) fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().expect("no panic")
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.server.unblock();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("no panic");
        }
    }
}

fn answer(mut request: tiny_http::Request, number: usize, script: &mut Script, seen: &Mutex<Seen>) {
    if request.method() == &tiny_http::Method::Get {
        return answer_get(request, seen);
    }
    let mut body = String::new();
    request.as_reader().read_to_string(&mut body).expect("text");
    let headers = request.headers().iter();
    let headers = headers.map(|header| {
        (
            header.field.as_str().as_str().to_ascii_lowercase(),
            header.value.as_str().to_owned(),
        )
    });
    let mut seen = seen.lock().expect("no panic");
    seen.headers = headers.collect();
    seen.bodies.push(body.clone());
    assert_eq!(request.url(), "/liveEvent?invalid=skip");
    let instead = script(number, &body);
    let (status, text) = match &instead {
        Some(Instead::Answer(status, text)) => (*status, (*text).to_owned()),
        Some(Instead::RetryAfter) => (503, json!({"detail": "busy"}).to_string()),
        Some(Instead::StoreWithoutAnswer) => {
            store(&body, &mut seen);
            (503, json!({"outcome": "unknown"}).to_string())
        }
        None => store(&body, &mut seen),
    };
    drop(seen);
    let kind = if status < 400 {
        "application/json"
    } else {
        "application/problem+json"
    };
    let header = |name: &str, value: &str| {
        tiny_http::Header::from_bytes(name.as_bytes(), value.as_bytes()).expect("a header")
    };
    let mut response = tiny_http::Response::from_string(text)
        .with_status_code(status)
        .with_header(header("Content-Type", kind));
    if matches!(instead, Some(Instead::RetryAfter)) {
        response = response.with_header(header("Retry-After", "0"));
    }
    // The sender may have closed the connection.
    let _gone = request.respond(response);
}

/// Id of the data directory. It is the same for all fake servers, which stand for one server.
pub(super) const DIRECTORY: &str = "01234567-89ab-4def-8123-456789abcdef";

/// Answers that everything is applied and nothing is rejected.
fn answer_get(request: tiny_http::Request, seen: &Mutex<Seen>) {
    let url = request.url().to_owned();
    let text = match url.as_str() {
        "/status" => json!({"directory": DIRECTORY, "position": "1-0"}).to_string(),
        _ => json!({"rejected": []}).to_string(),
    };
    seen.lock().expect("no panic").gets.push(url);
    // The sender may have closed the connection.
    let _gone = request.respond(tiny_http::Response::from_string(text));
}

/// Stores the valid lines, as with `invalid=skip`. Of the errors only the first two are named.
fn store(body: &str, seen: &mut Seen) -> (u16, String) {
    let mut accepted = 0;
    let mut errors = Vec::new();
    let mut refused = 0;
    for (index, line) in body.lines().enumerate() {
        match Event::parse(line.as_bytes()) {
            Ok(_) => {
                accepted += 1;
                seen.stored.push(line.to_owned());
            }
            Err(error) => {
                refused += 1;
                if errors.len() < 2 {
                    errors.push(json!({
                        "line": index + 1,
                        "pointer": error.pointer,
                        "code": error.code,
                        "detail": error.detail,
                    }));
                }
            }
        }
    }
    if accepted == 0 {
        let more = refused - errors.len();
        let answer = json!({"title": "no good line", "errors": errors, "moreErrors": more});
        return (422, answer.to_string());
    }
    let answer =
        json!({"accepted": accepted, "refused": refused, "position": "1-1", "errors": errors});
    (202, answer.to_string())
}
