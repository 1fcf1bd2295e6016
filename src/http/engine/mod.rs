//! The HTTP engine: requests in, replies out, now or later.
//!
//! What the rest of the program knows of HTTP on the wire is here: [`Request`], [`Reply`],
//! [`Handler`], [`Engine`]. HTTP/1.1 and 1.0 are served (RFC 9112), strictly: a request that two
//! readers could understand in two ways is rejected, and its connection closed.
//!
//! # The way of a request
//! `io` accepts a connection and gives it its `turn` when `poll` says so; `connection` is its state
//! machine. `head` parses the head, `framing` says how the body ends, and `upload` receives it within
//! bounds: `body` decodes it, and a large one first waits for `room`. The [`Handler`] admits or refuses
//! the `request` by its head, and handles it with its body: on the I/O thread, or on `workers`. Its
//! [`Reply`] is left in the I/O thread's `mailbox` by whatever thread has it, and `reply` is its form
//! on the wire. `system` holds what is special to Linux.
//!
//! # Threads
//! | thread | does | may block on |
//! |---|---|---|
//! | `http-io` | all sockets: accepts, reads, writes, keeps deadlines; handles small requests | nothing |
//! | `http-worker-N` | handles requests with large or compressed bodies | nothing |
//! | `http-blocking-N` | handles requests that read the database or the disk | those |
//!
//! No thread waits for a client. A handler on `http-io` must not block: what blocks asks for
//! [`MayBlock`], which only `http-blocking-N` has. If it is slow all the same, by
//! [`HELD_UP_MIN`] or more, a log line and [`Figures::held_up`] say so.
//!
//! # Bounds
//! Connections, heads, bodies (each, and all large ones together), buffers, requests in flight, and
//! the time a client may take for each step are bounded by [`Limits`]. One request of a connection
//! is in hand at a time.
//!
//! # On failure
//! A handler that panics, or drops its request, answers 500. What the engine itself refuses is
//! answered by [`Handler::refusal`] and counted there. When accepting fails it is retried, and the
//! handler is told.

mod body;
mod connection;
mod framing;
mod head;
mod io;
mod mailbox;
mod reply;
mod request;
mod room;
mod system;
mod turn;
mod upload;
mod workers;

use std::marker::PhantomData;
use std::net::{SocketAddr, TcpListener};
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
use workers::Workers;

/// Bounds of the engine; the defaults are what `serve` uses.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a body; default 8 MiB. Up to four times as much is read and discarded, so that the
    /// client sees the answer.
    pub body_bytes_max: usize,
    /// Bytes of all bodies over 16 KiB together; a body waits for 2 s until there is room for it.
    /// Default 32 MiB.
    pub bodies_bytes_max: usize,
    /// Bytes of all connections' buffers (heads, small bodies, replies); past it connections that
    /// are idle longest are closed. Default 64 MiB.
    pub buffers_bytes_max: usize,
    /// Connections; default 16,384. Less where the system's limit of open descriptors is lower.
    pub connections_max: usize,
    /// Unanswered requests; past it 503. Default 8192.
    pub in_flight_max: usize,
    /// How long a connection is kept between requests, and a second more; default 75 s, longer than
    /// proxies keep theirs.
    pub keep_alive: Duration,
    /// A head must be complete in this time from its first byte; default 30 s.
    pub head_time: Duration,
    /// A body must be complete in this time, or come at [`Self::rate_min`] for each such time;
    /// default 20 s.
    pub body_time: Duration,
    /// The same for taking a reply; default 20 s.
    pub write_time: Duration,
    /// Bytes a second that a slow client must send of a body, or take of a reply; default 1 KiB.
    pub rate_min: u64,
    /// How long a stop waits for requests in flight; default 3 s.
    pub drain_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes_max: 8 << 20,
            bodies_bytes_max: 32 << 20,
            buffers_bytes_max: 64 << 20,
            connections_max: 16_384,
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

/// Where to listen.
#[derive(Debug)]
pub enum Listen {
    /// Bind this address; port 0 picks one.
    Address(SocketAddr),
    /// Use this listener, bound by somebody else (socket activation). It is left listening for
    /// its owner when the engine stops.
    Bound(TcpListener),
}

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}; is another server running there?")]
    Bind {
        /// As asked for.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The listener cannot be used.
    #[error("cannot use the listening socket")]
    Listener(#[source] std::io::Error),
    /// No thread.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
}

/// Which threads handle a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// The I/O thread, where the body is small; else a worker. Handling never blocks and is short.
    Io,
    /// A worker: handling never blocks, but takes time.
    Worker,
}

/// Snapshot that this thread may block; [`Request::on_blocking_thread`] gives it, and it cannot leave
/// that thread.
#[derive(Debug)]
pub struct MayBlock(PhantomData<*const ()>);

/// Something that blocks whoever uses it: out of reach without [`MayBlock`].
#[derive(Debug)]
pub struct Blocking<T>(T);

impl<T> Blocking<T> {
    /// Puts it out of reach.
    pub fn new(what: T) -> Self {
        Self(what)
    }

    /// What blocks, for a thread that may.
    pub fn get(&self, _: &MayBlock) -> &T {
        &self.0
    }
}

impl MayBlock {
    /// For threads whose only work is to block.
    fn on_this_thread() -> Self {
        Self(PhantomData)
    }
}

/// What is done with a request whose head was read.
#[derive(Debug)]
pub enum Admission {
    /// Handle it there.
    Take(Lane),
    /// Answer this. The body is discarded.
    Refuse(Reply),
}

/// Why the engine itself refuses a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// 400: it is not HTTP/1.1, or can be understood in two ways.
    Malformed(&'static str),
    /// 400: it begins a TLS connection.
    Tls,
    /// 408: its head did not come in time.
    HeadTimedOut,
    /// 431: its head is too long.
    HeadTooLarge,
    /// 417: it expects something other than `100-continue`.
    Expectation,
    /// 505: it is of another version of HTTP.
    Version,
    /// 413: its body is over the limit.
    BodyTooLarge,
    /// 408: its body did not come in time.
    BodyTimedOut,
    /// 503: too much is going on.
    Busy,
    /// 500: a handler panicked.
    Panicked,
}

impl Refusal {
    /// The names of all reasons, in the order of [`Self::index`].
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

    /// The place of its reason in [`Self::REASONS`].
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

/// What serves the requests. Called from several threads at once.
pub trait Handler: Send + Sync + 'static {
    /// Looks at the head, before any of the body is read. On the I/O thread: it must not block.
    fn admit(&self, request: &Request) -> Admission;
    /// Handles an admitted request with its body, and sees to it that it is answered in time. It
    /// must not block: what does goes on by [`Request::on_blocking_thread`].
    fn handle(&self, request: Request);
    /// The reply to a request that the engine refuses. Must not panic.
    fn refusal(&self, refusal: Refusal) -> Reply;
    /// The engine stops and has waited for most of its drain time: what is not answered now is cut
    /// off soon.
    fn drain_ends(&self) {}
    /// Accepting connections has been impossible for a second, or works again.
    fn accepting(&self, _works: bool) {}
}

/// Figures of the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Requests taken and not yet answered.
    pub in_flight: usize,
    /// Open connections.
    pub connections: usize,
    /// Connections that may be open.
    pub connections_max: usize,
    /// Connections closed to make room for others.
    pub evicted: u64,
    /// How often a handler or a turn of the loop took [`HELD_UP_MIN`] of the I/O thread.
    pub held_up: u64,
}

/// A step on the I/O thread that takes so long is logged and counted.
pub const HELD_UP_MIN: Duration = Duration::from_millis(100);
/// Threads that may block. More would wait for the same database and the same cores.
const BLOCKING_THREADS: usize = 2;
/// Requests that may wait for them.
const BLOCKING_QUEUE_MAX: usize = 4096;
/// Threads for large bodies, and bodies that may wait for them.
const WORKER_THREADS: usize = 2;
const WORKER_QUEUE_MAX: usize = 1024;
/// What a stop gives the loop after its drain time, and all other threads after that.
const ENDS_TIME: Duration = Duration::from_millis(750);

/// A running engine.
#[derive(Debug)]
pub struct Engine {
    shared: Arc<Shared>,
    /// Disconnected when the I/O thread has ended.
    running: Receiver<std::convert::Infallible>,
    local_addr: SocketAddr,
}

/// What all threads of one engine share.
struct Shared {
    handler: Arc<dyn Handler>,
    limits: Limits,
    mailbox: Mailbox,
    workers: Workers,
    blocking: Workers,
    in_flight: AtomicUsize,
    /// Bytes of room for large bodies that are taken, and whether others wait for room.
    room_taken: AtomicUsize,
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
    /// Listens and serves. When it returns, the port answers.
    pub fn start(
        listen: Listen,
        mut limits: Limits,
        handler: Arc<dyn Handler>,
    ) -> Result<Self, EngineError> {
        let descriptors = system::descriptors_for_connections();
        limits.connections_max = limits.connections_max.min(descriptors);
        let listener = match listen {
            Listen::Address(address) => {
                system::listen(address).map_err(|source| EngineError::Bind { address, source })?
            }
            Listen::Bound(bound) => {
                system::set_options(&socket2::SockRef::from(&bound))
                    .map_err(EngineError::Listener)?;
                bound
            }
        };
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

    /// The address it listens on, with the port that was picked.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Figures now.
    pub fn figures(&self) -> Figures {
        self.shared.figures()
    }

    /// Stops accepting, answers what was accepted, closes all connections, waits for the threads.
    /// Takes at most [`Limits::drain_time`] and a second and a half.
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

    /// A step on the I/O thread has ended. Counted and logged where it took too long.
    fn stepped(&self, started: Instant, what: &str) {
        let took = started.elapsed();
        if took >= HELD_UP_MIN {
            self.held_up.fetch_add(1, Ordering::Relaxed);
            tracing::warn!("the HTTP I/O thread was held up for {took:?} by {what}");
        }
    }
}

#[cfg(test)]
mod tests;
