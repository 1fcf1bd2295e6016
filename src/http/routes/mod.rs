//! The routes: which call is answered by what.
//!
//! Whatever may be refused without the body is refused before it is read ([`Handler::admit`]), in
//! this order: where it comes from (403), who sends it (401), what it asks for (404, 405), how
//! its body is encoded (415). Nothing here blocks but what runs on a thread that may: the database
//! and the disk are out of reach elsewhere ([`Blocking`]).

mod listings;
mod live_event;
mod pages;
mod params;
mod scrape;
mod service;
mod users;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use uuid::Uuid;

use super::auth::{self, Foreign, Listening, Tokens};
use super::counters::{Counters, Route};
use super::engine::{
    Admission, Blocking, Handler, Lane, MayBlock, Method, Refusal, Reply, Request,
};
use super::problem::Problem;
use crate::data_dir::disk::Disk;
use crate::health::Health;
use crate::journal::Journal;
use crate::progress::Progress;
use crate::store::Readers;

/// What every route may use.
pub(super) struct Inner {
    pub(super) journal: Journal,
    pub(super) progress: Arc<Progress>,
    pub(super) health: Arc<Health>,
    /// Reading the database blocks.
    pub(super) readers: Blocking<Readers>,
    /// So does reading the disk.
    pub(super) files: Blocking<Files>,
    /// `None`: no token is asked for.
    pub(super) tokens: Option<Tokens>,
    /// What the server listens on.
    pub(super) listening: Listening,
    /// The name of the data directory.
    pub(super) directory: Uuid,
    pub(super) lost_log_lines: fn() -> u64,
    pub(super) counters: Arc<Counters>,
    /// Bytes of a body, as sent and inflated.
    pub(super) body_bytes_max: usize,
    pub(super) stopping: AtomicBool,
    pub(super) started_at: SystemTime,
}

/// The files that are looked at, for `/segments` and the metrics.
pub(super) struct Files {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) data_dir: PathBuf,
}

/// The handler behind the engine.
pub(super) struct Routes {
    pub(super) inner: Arc<Inner>,
}

/// A call that there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call<'a> {
    LiveEvent,
    User(&'a str),
    Users,
    Flush,
    Healthz,
    Readyz,
    Status,
    Metrics,
    Segments,
    Rejected,
    Openapi,
    StatusPage,
    /// OPTIONS, with what `Allow` says.
    Allowed(&'static str),
}

/// A call that there is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NoCall {
    Path,
    /// With what `Allow` says.
    Method(&'static str),
}

/// In debug builds the handler of this path panics; otherwise there is no such path.
const PANIC: &str = "/panic";
/// In debug builds the handler of this path takes 150 ms of its thread.
const SLOW: &str = "/slow";
const GET: &str = "GET, HEAD, OPTIONS";
const POST: &str = "POST, OPTIONS";
const ALL: &str = "GET, HEAD, POST, OPTIONS";

/// The one table of calls.
fn call(method: Method, path: &str) -> Result<Call<'_>, NoCall> {
    use Method::{Get, Head, Post};
    let get = match path {
        "/liveEvent" | "/flush" => {
            return match (method, path) {
                (Post, "/liveEvent") => Ok(Call::LiveEvent),
                (Post, _) => Ok(Call::Flush),
                (method, _) => other(method, POST),
            };
        }
        "*" if method == Method::Options => return Ok(Call::Allowed(ALL)),
        "/userEvents" => Call::Users,
        "/segments" => Call::Segments,
        "/rejected" => Call::Rejected,
        "/status" => Call::Status,
        "/metrics" => Call::Metrics,
        "/healthz" => Call::Healthz,
        "/readyz" => Call::Readyz,
        "/openapi.json" => Call::Openapi,
        "/" => Call::StatusPage,
        path => match path.strip_prefix("/userEvents/") {
            Some(id) if is_one_segment(id) => Call::User(id),
            _ => return Err(NoCall::Path),
        },
    };
    match method {
        Get | Head => Ok(get),
        method => other(method, GET),
    }
}

fn other(method: Method, allow: &'static str) -> Result<Call<'static>, NoCall> {
    match method {
        Method::Options => Ok(Call::Allowed(allow)),
        _ => Err(NoCall::Method(allow)),
    }
}

fn is_one_segment(id: &str) -> bool {
    !id.is_empty() && !id.contains('/')
}

/// A target's parts: what it was sent to (only a whole URL says), path, query.
fn split_target(target: &str) -> (Option<&str>, &str, &str) {
    let scheme = target.find("://").filter(|_| !target.starts_with('/'));
    let (authority, rest) = match scheme {
        None => (None, target),
        Some(at) => {
            let rest = &target[at + 3..];
            let end = rest.find(['/', '?']).unwrap_or(rest.len());
            (Some(&rest[..end]), &rest[end..])
        }
    };
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let path = if path.is_empty() { "/" } else { path };
    (authority, path, query)
}

impl Inner {
    /// Answers and counts.
    fn answer(&self, request: Request, route: Route, reply: Reply) {
        self.counters.answered(route, reply.status);
        request.answer(reply);
    }

    /// Answers with what is found on a thread that may block.
    fn answer_blocking(
        self: &Arc<Self>,
        request: Request,
        route: Route,
        query: &str,
        find: fn(&Self, &str, &MayBlock) -> Result<Reply, Problem>,
    ) {
        let (inner, query) = (Arc::clone(self), query.to_owned());
        request.on_blocking_thread(move |request, may_block| {
            let reply = find(&inner, &query, may_block).unwrap_or_else(Problem::reply);
            inner.answer(request, route, reply);
        });
    }

    /// What can be said against a request by its head alone.
    fn object(&self, request: &Request) -> Result<Lane, (Route, Problem)> {
        let (authority, path, _) = split_target(request.target());
        let host = authority.or_else(|| request.header("Host"));
        let foreign = auth::check_origin(&self.listening, host, request.header("Origin"));
        foreign.map_err(|foreign| (Route::Other, forbidden(foreign)))?;
        if let Some(tokens) = &self.tokens
            && !auth::is_open(path)
            && !tokens.allow(request.header("Authorization"))
        {
            return Err((Route::Other, unauthorized()));
        }
        if cfg!(debug_assertions) && [PANIC, SLOW].contains(&path) {
            return Ok(Lane::Io);
        }
        let call = call(request.method(), path).map_err(|none| (Route::Other, no_call(none)))?;
        let lane = match call {
            Call::LiveEvent => {
                live_event::lane(request).map_err(|problem| (Route::LiveEvent, problem))?
            }
            _ => Lane::Io,
        };
        Ok(lane)
    }
}

impl Handler for Routes {
    fn admit(&self, request: &Request) -> Admission {
        match self.inner.object(request) {
            Ok(lane) => Admission::Accept(lane),
            Err((route, problem)) => {
                self.inner.counters.answered(route, problem.status());
                Admission::Refuse(problem.reply())
            }
        }
    }

    fn handle(&self, request: Request) {
        let inner = &self.inner;
        let target = request.target().to_owned();
        let (_, path, query) = split_target(&target);
        // So that a test can see what becomes of the client, and of the server.
        assert!(
            !(cfg!(debug_assertions) && path == PANIC),
            "as it was asked to"
        );
        if cfg!(debug_assertions) && path == SLOW {
            let started = Instant::now();
            while started.elapsed() < Duration::from_millis(150) {}
        }
        match call(request.method(), path) {
            Ok(Call::LiveEvent) => live_event::post(inner, request, query),
            Ok(Call::User(id)) => users::one(inner, request, id, query),
            Ok(Call::Users) => users::list(inner, request, query),
            Ok(Call::Flush) => service::flush(inner, request, query),
            Ok(Call::Healthz) => service::healthz(inner, request),
            Ok(Call::Readyz) => service::readyz(inner, request),
            Ok(Call::Status) => service::status(inner, request),
            Ok(Call::Metrics) => scrape::metrics(inner, request),
            Ok(Call::Segments) => listings::segments(inner, request, query),
            Ok(Call::Rejected) => listings::rejected(inner, request, query),
            Ok(Call::Openapi) => pages::openapi(inner, request),
            Ok(Call::StatusPage) => pages::status_page(inner, request),
            Ok(Call::Allowed(allow)) => {
                let reply = Reply::empty(204).with("Allow", allow);
                inner.answer(request, Route::Other, reply);
            }
            Err(none) => inner.answer(request, Route::Other, no_call(none).reply()),
        }
    }

    fn refusal(&self, refusal: Refusal) -> Reply {
        let problem = Problem::of_refusal(refusal, self.inner.body_bytes_max);
        self.inner.counters.answered(Route::Other, problem.status());
        self.inner.counters.refused(refusal);
        problem.reply()
    }

    fn drain_ends(&self) {
        self.inner.progress.end_waiting();
    }

    fn accepting(&self, works: bool) {
        let health = &self.inner.health;
        if works {
            health.clear("http");
        } else {
            let reason = "cannot accept connections: no descriptor is left, or all connections that may be open are in use; retrying";
            health.set("http", reason);
        }
    }
}

fn forbidden(foreign: Foreign) -> Problem {
    Problem::new(
        403,
        match foreign {
            Foreign::Origin => "the request comes from a web page of another origin",
            Foreign::Host => {
                "the request was sent to a name that is not this machine's own; use 127.0.0.1, localhost, [::1] or what --listen says"
            }
        },
    )
}

fn unauthorized() -> Problem {
    Problem::new(
        401,
        "send a token of the server's token file: Authorization: Bearer TOKEN",
    )
    .header("WWW-Authenticate", "Bearer")
}

fn no_call(none: NoCall) -> Problem {
    match none {
        NoCall::Path => Problem::new(
            404,
            "there is no such path; there are /liveEvent, /userEvents, /userEvents/{userId} (a / in it is sent as %2F), /flush, /status, /segments, /rejected, /metrics, /healthz, /readyz, /openapi.json and / (the status page)",
        ),
        NoCall::Method(allow) => {
            Problem::new(405, format!("the path takes {allow}")).header("Allow", allow)
        }
    }
}

impl Inner {
    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_calls() {
        assert_eq!(call(Method::Post, "/liveEvent"), Ok(Call::LiveEvent));
        assert_eq!(
            call(Method::Head, "/userEvents/a%2Fb"),
            Ok(Call::User("a%2Fb"))
        );
        assert_eq!(call(Method::Get, "/userEvents"), Ok(Call::Users));
        assert_eq!(call(Method::Get, "/liveEvent"), Err(NoCall::Method(POST)));
        assert_eq!(
            call(Method::Other, "/userEvents/u"),
            Err(NoCall::Method(GET))
        );
        assert_eq!(call(Method::Options, "/flush"), Ok(Call::Allowed(POST)));
        for path in [
            "/userEvents/",
            "/userEvents/a/b",
            "/liveevent",
            "",
            "/liveEvent/",
        ] {
            assert_eq!(call(Method::Get, path), Err(NoCall::Path), "{path}");
        }
    }

    #[test]
    fn targets_come_apart() {
        assert_eq!(split_target("/a?b=c?d"), (None, "/a", "b=c?d"));
        assert_eq!(split_target("http://h:1/a?b"), (Some("h:1"), "/a", "b"));
        assert_eq!(split_target("http://h"), (Some("h"), "/", ""));
        assert_eq!(split_target("/a?u=http://h/"), (None, "/a", "u=http://h/"));
        assert_eq!(split_target("*"), (None, "*", ""));
    }
}
