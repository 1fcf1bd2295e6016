//! A server for the sender's tests: takes events as the real one does, unless told otherwise.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde_json::json;

use crate::event::Event;

/// What to answer instead.
pub(super) enum Instead {
    /// This status with this body; nothing is taken.
    Answer(u16, &'static str),
    /// 503 with `Retry-After: 0`; nothing is taken.
    RetryAfter,
    /// Takes it, but answers that it does not know.
    TakeAndForget,
}

/// What the server saw.
#[derive(Default)]
pub(super) struct Seen {
    /// Bodies, in order.
    pub(super) bodies: Vec<String>,
    /// Headers of the last request, names in lower case.
    pub(super) headers: BTreeMap<String, String>,
    /// What was asked by GET.
    pub(super) gets: Vec<String>,
    /// Events taken, as often as taken: line by line.
    pub(super) taken: Vec<String>,
}

impl Seen {
    /// The ids taken, with how often each.
    pub(super) fn ids(&self) -> BTreeMap<String, usize> {
        let mut ids = BTreeMap::new();
        for line in &self.taken {
            let event = Event::parse(line.as_bytes()).expect("taken");
            let id = event.id.expect("an id").into_owned();
            *ids.entry(id).or_default() += 1;
        }
        ids
    }
}

type Script = Box<dyn FnMut(usize, &str) -> Option<Instead> + Send>;

/// Stops when dropped.
pub(super) struct FakeServer {
    server: Arc<tiny_http::Server>,
    thread: Option<std::thread::JoinHandle<()>>,
    seen: Arc<Mutex<Seen>>,
}

impl FakeServer {
    /// One that takes everything.
    pub(super) fn new() -> Self {
        Self::with(|_, _| None)
    }

    /// One that asks `script` first: with the request's number from 0, and its body.
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

    /// Its base URL.
    pub(super) fn url(&self) -> String {
        format!("http://{}", self.server.server_addr())
    }

    /// What it saw so far.
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
        Some(Instead::TakeAndForget) => {
            take(&body, &mut seen);
            (503, json!({"outcome": "unknown"}).to_string())
        }
        None => take(&body, &mut seen),
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
    // The sender may be gone.
    let _gone = request.respond(response);
}

/// The name of every fake server's data directory: they stand for one server.
pub(super) const DIRECTORY: &str = "01234567-89ab-4def-8123-456789abcdef";

/// All that was taken is applied, and nothing is rejected.
fn answer_get(request: tiny_http::Request, seen: &Mutex<Seen>) {
    let url = request.url().to_owned();
    let text = match url.as_str() {
        "/status" => json!({"directory": DIRECTORY, "position": "1-0"}).to_string(),
        _ => json!({"rejected": []}).to_string(),
    };
    seen.lock().expect("no panic").gets.push(url);
    // The sender may be gone.
    let _gone = request.respond(tiny_http::Response::from_string(text));
}

/// `invalid=skip`; of many errors only the first two are named.
fn take(body: &str, seen: &mut Seen) -> (u16, String) {
    let mut accepted = 0;
    let mut errors = Vec::new();
    let mut refused = 0;
    for (index, line) in body.lines().enumerate() {
        match Event::parse(line.as_bytes()) {
            Ok(_) => {
                accepted += 1;
                seen.taken.push(line.to_owned());
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
