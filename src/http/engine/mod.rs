//! The HTTP engine: it reads requests from sockets, passes them to a [`Handler`] and writes the replies.
//!
//! The rest of the program uses [`Engine`], [`Handler`], [`Request`] and [`Reply`], and does not see
//! sockets. The engine serves HTTP/1.1 and 1.0 (RFC 9112). It rejects each request that can be parsed
//! in two ways, and closes its connection.
//!
//! # The path of a request
//! `io` accepts a connection and gives it a `turn` for each event of `poll`; `connection` is its state
//! machine. `head` parses the head and `framing` finds the length of the body. The [`Handler`] admits or
//! refuses the `request` by its head. `upload` receives the body, `body` decodes it, and a large body
//! first reserves `memory`, which all large bodies share. The [`Handler`] then handles the request on
//! the I/O thread or on one of the `workers`. The thread that answers puts the [`Reply`] into the
//! `mailbox` of the I/O thread, and `reply` encodes it. A thread that answers several requests at once,
//! as the committer does, wakes the I/O thread once ([`Request::answer_unwoken`]). The body of a reply
//! may be a `stream`. `system` has the calls that are specific to Linux.
//!
//! # Threads
//! | thread | work | may block on |
//! |---|---|---|
//! | `http-io` | all sockets: accepts, reads, writes, keeps deadlines; handles small requests | nothing |
//! | `http-worker-N` | handles requests with large or compressed bodies | nothing |
//! | `http-blocking-N` | handles requests that read the database or the disk | the database, the disk |
//!
//! No thread blocks on a client. A handler must not block `http-io`: blocking operations require a
//! [`MayBlock`], which exists on `http-blocking-N` only. A step on `http-io` that takes
//! [`BLOCKED_MIN`] or more is logged and counted in [`Figures::blocked`].
//!
//! # Bounds
//! [`Limits`] bounds connections, heads, bodies (each one, and all large ones together), buffers,
//! requests in flight, and the time that a client may take for each step. Of each connection, one
//! request is handled at a time.
//!
//! # On failure
//! If a handler panics or drops its request, the request is answered with 500. [`Handler::refusal`]
//! makes the replies to requests that the engine refuses. If accepting fails, the engine retries it
//! and calls [`Handler::accepting`].

mod body;
mod connection;
mod framing;
mod head;
mod io;
mod limits;
mod mailbox;
mod memory;
mod produce;
mod reply;
mod request;
mod stream;
mod system;
mod turn;
mod upload;
mod workers;

use std::marker::PhantomData;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::Wake;
use std::time::{Duration, Instant};

pub(crate) use body::reserve;
use crossbeam_channel::{Receiver, RecvTimeoutError};
pub use head::Method;
use io::{Io, Sockets};
pub use limits::Limits;
use mailbox::{Mailbox, Message};
pub use reply::Reply;
pub use request::Request;
pub use stream::Piece;
use workers::Workers;

/// Why the engine cannot start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Binding or listening failed.
    #[error("cannot listen on {address}{}", advice_on_bind(source))]
    Bind {
        /// As it was configured; the port may be 0.
        address: SocketAddr,
        /// The error of the system call.
        source: std::io::Error,
    },
    /// The bound listener cannot be polled.
    #[error("cannot use the listening socket")]
    Listener(#[source] std::io::Error),
    /// A thread cannot be started.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
}

/// What to do after an error of `bind` or `listen`.
fn advice_on_bind(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            "; is another server running there? --listen with port 0 picks a free port"
        }
        std::io::ErrorKind::AddrNotAvailable => {
            "; no network interface of this machine has this address. Listen on 127.0.0.1 for this machine only, or on 0.0.0.0 for all its addresses"
        }
        std::io::ErrorKind::PermissionDenied => {
            "; a port below 1024 needs root or CAP_NET_BIND_SERVICE. Use a higher port"
        }
        _ => "",
    }
}

/// Which threads handle a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// The I/O thread if the body has at most 64 KiB, otherwise a worker. The handler takes microseconds, and 0.2 ms
    /// for a body of that size.
    Io,
    /// A worker. The handler takes longer, for example to decompress the body.
    Worker,
}

/// Proof that the current thread may block. [`Request::on_blocking_thread`] provides it; it cannot be
/// sent to another thread.
#[derive(Debug)]
pub struct MayBlock(PhantomData<*const ()>);

/// A value whose methods block; it is accessible with a [`MayBlock`] only.
#[derive(Debug)]
pub struct Blocking<T>(T);

impl<T> Blocking<T> {
    /// Makes a value that only a thread that may block can use.
    pub fn new(value: T) -> Self {
        Self(value)
    }

    /// The value, on a thread that may block.
    pub fn get(&self, _: &MayBlock) -> &T {
        &self.0
    }
}

impl MayBlock {
    /// For the threads `http-blocking-N`.
    fn on_this_thread() -> Self {
        Self(PhantomData)
    }
}

/// The decision about a request, made after its head was read.
#[derive(Debug)]
pub enum Admission {
    /// Read the body and handle the request on these threads.
    Accept(Lane),
    /// Discard the body and send this reply.
    Refuse(Reply),
}

/// Why the engine itself refuses a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// 400: the request is malformed or ambiguous; the text says why.
    Malformed(&'static str),
    /// 400: the client starts a TLS handshake.
    Tls,
    /// 408: the head was not complete within [`Limits::head_time`].
    HeadTimedOut,
    /// 431: the head has too many bytes or fields.
    HeadTooLarge,
    /// 417: the `Expect` header is not `100-continue`.
    Expectation,
    /// 505: the HTTP version is not 1.1 or 1.0.
    Version,
    /// 413: the body exceeds [`Limits::body_bytes_max`].
    BodyTooLarge,
    /// 408: the body arrived slower than [`Limits::body_time`] and [`Limits::rate_min`] allow.
    BodyTimedOut,
    /// 503: a queue is full, or too many requests are in flight.
    Busy,
    /// 500: the handler panicked or dropped the request.
    Panicked,
}

impl Refusal {
    /// The names of all reasons, as in metric labels, in the order of [`Self::index`].
    pub const REASONS: [&'static str; 10] = [
        "malformed",
        "tls",
        "head_timed_out",
        "head_too_large",
        "expectation",
        "version",
        "body_too_large",
        "body_timed_out",
        "busy",
        "panicked",
    ];

    /// The index of the reason in [`Self::REASONS`].
    pub fn index(self) -> usize {
        match self {
            Self::Malformed(_) => 0,
            Self::Tls => 1,
            Self::HeadTimedOut => 2,
            Self::HeadTooLarge => 3,
            Self::Expectation => 4,
            Self::Version => 5,
            Self::BodyTooLarge => 6,
            Self::BodyTimedOut => 7,
            Self::Busy => 8,
            Self::Panicked => 9,
        }
    }
}

/// Serves the requests. Several threads call it at once.
pub trait Handler: Send + Sync + 'static {
    /// Decides by the head whether the request is handled; the body has not been read. It runs on the
    /// I/O thread and must not block.
    fn admit(&self, request: &Request) -> Admission;
    /// Handles an admitted request with its body. The request must be answered, now or later. This
    /// method must not block: blocking work runs by [`Request::on_blocking_thread`].
    fn handle(&self, request: Request);
    /// The reply to a request that the engine refuses. Must not panic.
    fn refusal(&self, refusal: Refusal) -> Reply;
    /// Three quarters of the drain time of a shutdown have passed: answer the waiting requests now,
    /// because their connections are closed at its end.
    fn drain_ends(&self) {}
    /// Accepting connections has failed for a second (`false`), or works again (`true`).
    fn accepting(&self, _works: bool) {}
}

/// The counters of the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Requests received and not yet answered.
    pub in_flight: usize,
    /// Open connections, idle ones included.
    pub connections: usize,
    /// Maximum number of open connections.
    pub connections_max: usize,
    /// Idle connections that were closed to accept others or to free memory.
    pub evicted: u64,
    /// How often a turn of a connection or of the loop blocked the I/O thread for [`BLOCKED_MIN`] or more.
    pub blocked: u64,
}

/// A step on the I/O thread that takes this long is logged and counted.
pub const BLOCKED_MIN: Duration = Duration::from_millis(100);
/// Number of threads that may block. More of them would compete for the same database and cores.
const BLOCKING_THREADS: usize = 2;
/// Maximum number of requests queued for these threads.
const BLOCKING_QUEUE_MAX: usize = 4096;
/// Number of threads for large and compressed bodies.
const WORKER_THREADS: usize = 2;
/// Maximum number of requests queued for these threads.
const WORKER_QUEUE_MAX: usize = 1024;
/// How long a shutdown waits for the I/O thread after the drain time, and then for all other threads.
const ENDS_TIME: Duration = Duration::from_millis(750);

/// A running engine. [`Engine::stop`] ends its threads.
#[derive(Debug)]
pub struct Engine {
    shared: Arc<Shared>,
    /// Disconnected when the I/O thread ends.
    running: Receiver<std::convert::Infallible>,
    local_addr: SocketAddr,
}

/// The state that all threads of an engine share.
struct Shared {
    handler: Arc<dyn Handler>,
    limits: Limits,
    mailbox: Mailbox,
    workers: Workers,
    blocking: Workers,
    in_flight: AtomicUsize,
    /// Bytes reserved for large bodies.
    body_bytes: AtomicUsize,
    /// Whether uploads wait for such bytes.
    memory_awaited: AtomicBool,
    connections: AtomicUsize,
    evicted: AtomicU64,
    blocked: AtomicU64,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Engine {
    /// Listens on `address` and starts the threads. When this returns, the port answers.
    pub fn start(
        address: SocketAddr,
        mut limits: Limits,
        handler: Arc<dyn Handler>,
    ) -> Result<Self, EngineError> {
        let descriptors = system::descriptors_for_connections();
        limits.connections_max = limits.connections_max.min(descriptors);
        let listener =
            system::listen(address).map_err(|source| EngineError::Bind { address, source })?;
        let local_addr = listener.local_addr().map_err(EngineError::Listener)?;
        let (sockets, mailbox) = Sockets::new(listener).map_err(EngineError::Listener)?;
        let threads = |name, count, queue_max| {
            Workers::start(name, count, queue_max).map_err(EngineError::Thread)
        };
        let shared = Arc::new(Shared {
            handler,
            limits,
            mailbox,
            workers: threads("http-worker", WORKER_THREADS, WORKER_QUEUE_MAX)?,
            blocking: threads("http-blocking", BLOCKING_THREADS, BLOCKING_QUEUE_MAX)?,
            in_flight: AtomicUsize::new(0),
            body_bytes: AtomicUsize::new(0),
            memory_awaited: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
            evicted: AtomicU64::new(0),
            blocked: AtomicU64::new(0),
        });
        let io = Io::new(Arc::clone(&shared), sockets);
        let (runs, running) = crossbeam_channel::bounded(0);
        std::thread::Builder::new()
            .name("http-io".into())
            .spawn(move || {
                let _until_it_ends = runs;
                io.run();
            })
            .map_err(EngineError::Thread)?;
        Ok(Self {
            shared,
            running,
            local_addr,
        })
    }

    /// The bound address; its port is never 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    #[cfg(test)]
    fn figures(&self) -> Figures {
        self.shared.figures()
    }

    /// Stops accepting, answers the requests of accepted connections, closes all connections and waits
    /// for the threads. Takes at most [`Limits::drain_time`] and 1.5 s.
    pub fn stop(self) {
        self.shared.mailbox.post(Message::Shutdown);
        let drain_time = self.shared.limits.drain_time;
        let (most, rest) = (drain_time / 4 * 3, drain_time / 4);
        if self.running.recv_timeout(most) == Err(RecvTimeoutError::Timeout) {
            self.shared.handler.drain_ends();
            let _ended_or_late = self.running.recv_timeout(rest + ENDS_TIME);
        }
        let deadline = Instant::now() + ENDS_TIME;
        self.shared.workers.stop(deadline);
        self.shared.blocking.stop(deadline);
    }
}

impl Wake for Shared {
    /// Wakes the I/O thread if it sleeps.
    fn wake(self: Arc<Self>) {
        self.mailbox.wake();
    }
}

impl Shared {
    fn figures(&self) -> Figures {
        Figures {
            in_flight: self.in_flight.load(Ordering::Relaxed),
            connections: self.connections.load(Ordering::Relaxed),
            connections_max: self.limits.connections_max,
            evicted: self.evicted.load(Ordering::Relaxed),
            blocked: self.blocked.load(Ordering::Relaxed),
        }
    }

    /// Counts and logs a step on the I/O thread that began at `started`, if it took [`BLOCKED_MIN`] or more.
    fn end_step(&self, started: Instant, step: &str) {
        let duration = started.elapsed();
        if duration >= BLOCKED_MIN {
            self.blocked.fetch_add(1, Ordering::Relaxed);
            tracing::warn!("{step} blocked the HTTP I/O thread for {duration:?}");
        }
    }
}

#[cfg(test)]
mod tests;
