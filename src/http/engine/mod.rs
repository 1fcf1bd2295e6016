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
//! first waits for `room`, memory that all large bodies share. The [`Handler`] then handles the request
//! on the I/O thread or on one of the `workers`. The thread that answers puts the [`Reply`] into the
//! `mailbox` of the I/O thread, and `reply` encodes it. The body of a reply may be a `stream`. `system` has the calls that are specific to
//! Linux.
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
//! [`HELD_UP_MIN`] or more is logged and counted in [`Figures::held_up`].
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
mod mailbox;
mod reply;
mod request;
mod room;
mod stream;
mod system;
mod turn;
mod upload;
mod workers;

use std::marker::PhantomData;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

pub(crate) use body::reserve;
use crossbeam_channel::{Receiver, RecvTimeoutError};
pub use head::Method;
use io::{Io, Sockets};
use mailbox::{Mailbox, Message};
pub use reply::Reply;
pub use request::Request;
pub use stream::Piece;
use workers::Workers;

/// Bounds of the engine; the defaults are what `serve` uses.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum bytes of a body; default 8 MiB. Of a larger body, up to four times this limit is read
    /// and discarded, so that the client reads the reply.
    pub body_bytes_max: usize,
    /// Maximum bytes of all bodies over 16 KiB together; default 32 MiB. A body waits up to 2 s until
    /// enough of this memory is free.
    pub bodies_bytes_max: usize,
    /// Maximum bytes of the buffers of all connections (heads, small bodies, replies); default 64 MiB.
    /// Above it, the connections that are idle longest are closed.
    pub buffers_bytes_max: usize,
    /// Maximum number of connections; default 16,384. It is lowered to what the limit of open
    /// descriptors allows. At the maximum, connections that have been idle or stalled for a second are
    /// closed to accept others.
    pub connections_max: usize,
    /// Maximum time until the first byte of a new connection while the maximum number of connections is
    /// open; default 10 s. Meanwhile further connections wait in the kernel's queue.
    pub first_byte_time: Duration,
    /// Maximum number of unanswered requests; default 8192. Further requests are answered with 503.
    pub in_flight_max: usize,
    /// The announced time that an idle connection is kept; default 75 s, longer than the usual
    /// timeouts of proxies. It is closed one second later.
    pub keep_alive: Duration,
    /// Maximum time from the first byte of a head to its last; default 30 s.
    pub head_time: Duration,
    /// Maximum time for a body; default 20 s. It starts again if the client sent at least
    /// [`Self::rate_min`] in it.
    pub body_time: Duration,
    /// Maximum time for writing a reply, by the same rule; default 20 s.
    pub write_time: Duration,
    /// Minimum rate at which a client must send a body and read a reply, in bytes a second; default
    /// 1 KiB.
    pub rate_min: u64,
    /// How long a shutdown waits for requests in flight; default 3 s.
    pub drain_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes_max: 8 << 20,
            bodies_bytes_max: 32 << 20,
            buffers_bytes_max: 64 << 20,
            connections_max: 16_384,
            first_byte_time: Duration::from_secs(10),
            in_flight_max: 8192,
            keep_alive: Duration::from_secs(75),
            head_time: Duration::from_secs(30),
            body_time: Duration::from_secs(20),
            write_time: Duration::from_secs(20),
            rate_min: 1 << 10,
            drain_time: Duration::from_secs(3),
        }
    }
}

/// Why the engine cannot start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Binding or listening failed.
    #[error("cannot listen on {address}{}", advice_on_bind(source))]
    Bind {
        /// The configured address.
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
    /// The I/O thread if the body is small, otherwise a worker. The handler takes microseconds.
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
    /// Wraps a value.
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
    /// Open connections.
    pub connections: usize,
    /// Maximum number of open connections.
    pub connections_max: usize,
    /// Idle connections that were closed to accept others or to free memory.
    pub evicted: u64,
    /// How often a handler or a turn of the loop took [`HELD_UP_MIN`] or more of the I/O thread.
    pub held_up: u64,
}

/// A step on the I/O thread that takes this long is logged and counted.
pub const HELD_UP_MIN: Duration = Duration::from_millis(100);
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

/// A running engine.
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
    room_taken: AtomicUsize,
    /// Whether uploads wait until such bytes are released.
    room_wanted: AtomicBool,
    connections: AtomicUsize,
    evicted: AtomicU64,
    held_up: AtomicU64,
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
            room_taken: AtomicUsize::new(0),
            room_wanted: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
            evicted: AtomicU64::new(0),
            held_up: AtomicU64::new(0),
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

    /// The current counters.
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

impl Shared {
    fn figures(&self) -> Figures {
        Figures {
            in_flight: self.in_flight.load(Ordering::Relaxed),
            connections: self.connections.load(Ordering::Relaxed),
            connections_max: self.limits.connections_max,
            evicted: self.evicted.load(Ordering::Relaxed),
            held_up: self.held_up.load(Ordering::Relaxed),
        }
    }

    /// Ends a step on the I/O thread that began at `started`. If it took [`HELD_UP_MIN`] or more, it is
    /// counted and logged.
    fn end_step(&self, started: Instant, step: &str) {
        let duration = started.elapsed();
        if duration >= HELD_UP_MIN {
            self.held_up.fetch_add(1, Ordering::Relaxed);
            tracing::warn!("{step} held up the HTTP I/O thread for {duration:?}");
        }
    }
}

#[cfg(test)]
mod tests;
