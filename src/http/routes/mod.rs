//! The routes: the handlers of all paths.
//!
//! A request is checked by its head before the body is read ([`Handler::admit`]), in this order: host
//! and origin (403), token (401), path and method (404, 405), encoding of the body (415). Handlers run
//! on threads that must not block. The database and the disk are accessible only on threads that may
//! ([`Blocking`]).

mod listings;
mod live_event;
mod nodes;
mod pages;
mod params;
mod positions;
mod scrape;
mod service;
pub(super) mod status;
mod users;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;
use std::time::{Duration, Instant, SystemTime};

use uuid::Uuid;

pub(super) use self::users::lookups::Lookups;
use super::auth::{self, Foreign, Listening, Tokens};
use super::counters::{Counters, Route};
use super::engine::{
    Admission, Blocking, Handler, Lane, MayBlock, Method, Refusal, Reply, Request,
};
use super::history::History;
use super::problem::Problem;
use super::refused::RefusedRequests;
use crate::data_dir::disk::Disk;
use crate::health::Health;
use crate::journal::Journal;
use crate::other_nodes::NodeWaits;
use crate::progress::Progress;
use crate::store::{Readers, StoreError};

/// The state that all routes share.
pub(super) struct Inner {
    pub(super) journal: Journal,
    pub(super) progress: Arc<Progress>,
    /// Waits for positions of other nodes; `None` if the database is not shared.
    pub(super) other_nodes: Option<Arc<NodeWaits>>,
    pub(super) health: Arc<Health>,
    pub(super) readers: Blocking<Readers>,
    pub(super) lookups: Lookups,
    pub(super) files: Blocking<Files>,
    /// `None` if requests need no token.
    pub(super) tokens: Option<Tokens>,
    pub(super) listening: Listening,
    /// The identifier of the data directory.
    pub(super) directory: Uuid,
    pub(super) lost_log_lines: fn() -> u64,
    pub(super) counters: Arc<Counters>,
    pub(super) history: Arc<History>,
    pub(super) refused: RefusedRequests,
    /// Maximum bytes of a body, as sent and after decompression.
    pub(super) body_bytes_max: usize,
    pub(super) stopping: AtomicBool,
    pub(super) started_at: SystemTime,
}

/// The data directory, for `/segments` and the metrics.
pub(super) struct Files {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) data_dir: PathBuf,
}

/// The handler of the engine.
pub(super) struct Routes {
    pub(super) inner: Arc<Inner>,
}

/// What a method and a path select.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call<'a> {
    LiveEvent,
    User(&'a str),
    Users,
    Flush,
    Healthz,
    Readyz,
    Status,
    History,
    Refused,
    Metrics,
    Nodes,
    Segments,
    Rejected,
    Openapi,
    StatusPage,
    /// OPTIONS, with the value of `Allow`.
    Allowed(&'static str),
}

/// Why a method and a path select nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NoCall {
    /// The path does not exist.
    Path,
    /// The path has other methods: the value of `Allow`.
    Method(&'static str),
}

/// In debug builds the handler of this path panics; in release builds the path does not exist.
const PANIC: &str = "/panic";
/// In debug builds the handler of this path occupies its thread for 150 ms.
const SLOW: &str = "/slow";
const GET: &str = "GET, HEAD, OPTIONS";
const POST: &str = "POST, OPTIONS";
const ALL: &str = "GET, HEAD, POST, OPTIONS";

/// The table of all paths and methods.
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
        "/nodes" => Call::Nodes,
        "/segments" => Call::Segments,
        "/rejected" => Call::Rejected,
        "/status" => Call::Status,
        "/history" => Call::History,
        "/refused" => Call::Refused,
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

/// Splits a target into authority, path and query. Only a full URL has an authority.
fn split_target(target: &str) -> (Option<&str>, &str, &str) {
    let scheme = if target.starts_with('/') {
        None
    } else {
        target.find("://")
    };
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
    /// Sends a reply and counts it.
    fn answer(&self, request: Request, route: Route, reply: Reply) {
        self.counters.answered(route, reply.status);
        request.answer(reply);
    }

    /// The same without waking the I/O thread, see [`Request::answer_unwoken`].
    #[must_use = "the reply may be sent late if the waker is not called"]
    fn answer_unwoken(&self, request: Request, route: Route, reply: Reply) -> Option<Waker> {
        self.counters.answered(route, reply.status);
        request.answer_unwoken(reply)
    }

    /// Runs `find` on a thread that may block, and sends its reply.
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

    /// Checks the head of a request. Returns the threads that handle the request, or why it is refused.
    fn check_head(&self, request: &Request) -> Result<Lane, (Route, Problem)> {
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
        match self.inner.check_head(request) {
            Ok(lane) => Admission::Accept(lane),
            Err((route, problem)) => {
                if split_target(request.target()).1 == "/liveEvent" {
                    self.inner.record_refused(&problem, 0);
                }
                self.inner.counters.answered(route, problem.status());
                Admission::Refuse(problem.reply())
            }
        }
    }

    fn handle(&self, request: Request) {
        let inner = &self.inner;
        let target = request.target().to_owned();
        let (_, path, query) = split_target(&target);
        // For tests of a handler that panics, and of one that is slow.
        assert!(
            !(cfg!(debug_assertions) && path == PANIC),
            "a request for {PANIC} was received"
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
            Ok(Call::Status) => status::status(inner, request),
            Ok(Call::History) => status::history(inner, request),
            Ok(Call::Refused) => status::refused(inner, request),
            Ok(Call::Metrics) => scrape::metrics(inner, request),
            Ok(Call::Nodes) => nodes::nodes(inner, request, query),
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
        self.inner.record_refused(&problem, 0);
        problem.reply()
    }

    fn drain_ends(&self) {
        self.inner.progress.end_waiting();
        if let Some(others) = &self.inner.other_nodes {
            others.end();
        }
    }

    fn accepting(&self, works: bool) {
        let health = &self.inner.health;
        if works {
            health.clear("http");
        } else {
            let reason = "cannot accept connections: no file descriptor or no memory is left, or the maximum number of connections is open; retrying";
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
                "the host of the request is not a name of this server; use 127.0.0.1, localhost, [::1] or the address of --listen"
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

/// The problem of a database that cannot be read. It is also logged.
fn unreadable(error: &StoreError) -> Problem {
    tracing::warn!(%error, "cannot read the database for a request");
    Problem::new(503, format!("cannot read the database: {error}")).retry()
}
fn no_call(none: NoCall) -> Problem {
    match none {
        NoCall::Path => Problem::new(
            404,
            "unknown path; the paths are /liveEvent, /userEvents, /userEvents/{userId} (send a / in the id as %2F), /flush, /status, /nodes, /history, /segments, /rejected, /refused, /metrics, /healthz, /readyz, /openapi.json and / (the status page)",
        ),
        NoCall::Method(allow) => Problem::new(405, format!("the methods of this path are {allow}"))
            .header("Allow", allow),
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
    fn a_method_and_a_path_select_a_call() {
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
    fn a_target_is_split() {
        assert_eq!(split_target("/a?b=c?d"), (None, "/a", "b=c?d"));
        assert_eq!(split_target("http://h:1/a?b"), (Some("h:1"), "/a", "b"));
        assert_eq!(split_target("http://h"), (Some("h"), "/", ""));
        assert_eq!(split_target("/a?u=http://h/"), (None, "/a", "u=http://h/"));
        assert_eq!(split_target("*"), (None, "*", ""));
    }
}
