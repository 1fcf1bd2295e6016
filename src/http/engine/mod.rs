//! The HTTP engine: requests in, replies out, now or later.
//!
//! What the rest of the program knows of HTTP on the wire is here: [`Request`], [`Reply`],
//! [`Handler`], [`Engine`]. Everything else in this directory is `tiny_http` 0.12 and what it
//! takes to serve hostile clients and full load through it; each mitigation names the defect it
//! answers. Another engine would bring the same four and none of the rest.
//!
//! # Threads
//! | thread | does | may block on a client |
//! |---|---|---|
//! | the library's, one a connection | reads heads, and bodies up to 1 KiB | yes |
//! | `http-door-N` | takes requests in order, handles what never blocks | no |
//! | `http-body-N` | reads larger bodies and handles those requests | yes |
//! | `http-lookup-N` | handles what waits for the database | yes |
//! | `http-answer-N` | writes replies that others made ready | yes |
//! | `http-usher` | keeps accepting and the library's pool going ([`usher`]) | no |
//!
//! Threads that may block on a client come in crews that grow while others wait ([`crew`]).
//! A reply may be given on any thread, the committer's too: where a thread must not block, the
//! reply goes through the answering crew. Replies of one connection are written in order, by one
//! thread at a time, and nobody waits for an elder ([`lines`]).
//!
//! # On failure
//! A handler that panics, or drops its request, answers 500. A client that breaks off, stalls or
//! lies about its framing loses its connection, and nothing it sends later on it is believed.
//! When accepting fails it is begun anew, with back-off, and readiness says so meanwhile.

mod answer;
mod body;
mod crew;
mod diag;
mod door;
mod framing;
mod lines;
mod listener;
mod reply;
mod request;
mod sever;
mod usher;
mod watch;

use std::cell::Cell;
use std::collections::VecDeque;
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use answer::{Answer, Outgoing};
use crew::{Crew, Size};
use door::Door;
pub use reply::Reply;
use request::{BodyJob, Lookup};
pub use request::{Method, Request};
use usher::Nudge;

/// What the library says through the `log` crate is known to the engine already, and said in words.
pub const LOG_DIRECTIVE: &str = "tiny_http=off";

/// Whether it is the library that panics, which costs it a connection, or an accept loop that is begun
/// anew. It does so over each request of a client that had gone when it was accepted, thousands a
/// second in a flood: to print them, with backtraces where the environment asks for those, holds up
/// everybody, and fills the disk.
pub fn is_the_librarys(panic: &PanicHookInfo<'_>) -> bool {
    let at = panic.location();
    at.is_some_and(|at| at.file().contains("tiny_http"))
}

/// Bounds of the engine; the defaults are what `serve` uses.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a body; default 8 MiB. Up to four times as much is read and thrown away, so that
    /// the client sees the answer.
    pub body_bytes_max: usize,
    /// A connection that sends nothing for so long is ended; default 30 s.
    pub idle_time: Duration,
    /// A connection on which bytes come but no whole request for so long is ended; default 60 s.
    pub head_time: Duration,
    /// A connection on which so many bytes come and no whole request is ended within moments;
    /// default 1 MiB.
    pub head_bytes_max: u64,
    /// A client that takes nothing of a reply for so long is cut off; default 5 s.
    pub write_time: Duration,
    /// A body must be here in this time, and one second more for each 128 KiB; default 20 s.
    pub body_time: Duration,
    /// Unanswered requests of one connection; one more ends it; default 256.
    pub pipelined_max: u64,
    /// Unanswered requests of all connections; past it 503; default 32,768.
    pub in_flight_max: usize,
    /// How long a stop waits for requests in flight; default 3 s.
    pub drain_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes_max: 8 << 20,
            idle_time: Duration::from_secs(30),
            head_time: Duration::from_mins(1),
            head_bytes_max: 1 << 20,
            write_time: Duration::from_secs(5),
            body_time: Duration::from_secs(20),
            pipelined_max: 256,
            in_flight_max: 32_768,
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
    /// The library would not start.
    #[error("cannot start serving")]
    Server(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// No thread.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
}

/// Which threads may handle a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// The door itself: handling never blocks and is short.
    Door,
    /// The crew that also reads bodies: it may take its time.
    Body,
    /// The crew that waits for the database.
    Lookup,
}

/// What is done with a request whose head was read.
#[derive(Debug)]
pub enum Admission {
    /// Handle it there (a request with a larger body is handled where its body was read).
    Take(Lane),
    /// Answer this, without reading more of the body than politeness asks.
    Refuse(Reply),
}

/// Why the engine itself refuses a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// 400: its head can be read in two ways; the words say how.
    Framing(&'static str),
    /// 413: its body is over the limit.
    BodyTooLarge,
    /// 408: its body did not come in time.
    BodyTimedOut,
    /// 400: its body ended early, or its chunks are none.
    BodyBroken,
    /// 503: too much is going on.
    Busy,
    /// 503: too many unanswered requests, on this connection or on all.
    TooMany,
    /// 500: a handler panicked.
    Panicked,
}

/// What serves the requests. Called from several threads at once.
pub trait Handler: Send + Sync + 'static {
    /// Looks at the head, before any of the body is read; on the door, so it must not block.
    fn admit(&self, request: &Request) -> Admission;
    /// Handles an admitted request with its body, and sees to it that it is answered in time.
    fn handle(&self, request: Request);
    /// The reply to a request that the engine refuses. Must not panic.
    fn refusal(&self, refusal: Refusal) -> Reply;
    /// The engine stops and has waited for most of its drain time: what is not answered now is cut
    /// off soon.
    fn drain_ends(&self) {}
    /// Accepting connections failed, or works again.
    fn accepting(&self, _works: bool) {}
}

/// Figures of the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Requests taken and not yet answered.
    pub in_flight: usize,
    /// Threads of the engine's crews.
    pub threads: usize,
    /// Connections that could only be abandoned: each holds a thread and two descriptors inside
    /// the library until the process ends.
    pub abandoned: u64,
}

/// A running engine.
#[derive(Debug)]
pub struct Engine {
    shared: Arc<Shared>,
    usher: JoinHandle<Vec<Door>>,
    listener: TcpListener,
    /// We bound the listener, so we may also end it.
    own_listener: bool,
    local_addr: SocketAddr,
}

/// How long a client has to read its last reply before what it still sends is not even read.
const PARTING_TIME: Duration = Duration::from_secs(1);
/// Connections that wait for that.
const PARTING_MAX: usize = 4096;

/// What a stop gives the doors to take what is queued, when the drain time is over.
const DOORS_TIME: Duration = Duration::from_millis(250);
/// What a stop gives all threads to end, when all connections have.
const ENDS_TIME: Duration = Duration::from_millis(750);

const RUNNING: u8 = 0;
const STOPPING: u8 = 1;
const CLOSED: u8 = 2;

/// What all threads of one engine share.
struct Shared {
    handler: Arc<dyn Handler>,
    limits: Limits,
    lines: lines::Lines<Outgoing>,
    seen: usher::Seen,
    sever: sever::Sever,
    readings: body::Readings,
    nudges: crossbeam_channel::Sender<Nudge>,
    answers: Crew<Answer>,
    bodies: Crew<BodyJob>,
    lookups: Crew<Lookup>,
    /// Connections that had their last reply, and when: soon they are ended for good.
    parting: Mutex<VecDeque<(Instant, sever::Found)>>,
    /// Room for large bodies.
    room: body::Room,
    phase: AtomicU8,
    in_flight: AtomicUsize,
    abandoned: AtomicU64,
    /// Told when `in_flight` falls to zero while stopping.
    drained: (Mutex<()>, Condvar),
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
        limits: Limits,
        handler: Arc<dyn Handler>,
    ) -> Result<Self, EngineError> {
        // Defect 5: running out of descriptors ends the accept loop.
        listener::raise_descriptor_limit();
        let (listener, own_listener) = match listen {
            Listen::Address(address) => {
                let bound = listener::bind(address, &limits)
                    .map_err(|source| EngineError::Bind { address, source })?;
                (bound, true)
            }
            Listen::Bound(bound) => {
                listener::set_options(&socket2::SockRef::from(&bound), &limits)
                    .map_err(EngineError::Listener)?;
                bound
                    .set_nonblocking(false)
                    .map_err(EngineError::Listener)?;
                (bound, false)
            }
        };
        let local_addr = listener.local_addr().map_err(EngineError::Listener)?;
        let (nudges, usher_told) = crossbeam_channel::bounded(1024);
        let shared = Arc::new(Shared::new(limits, handler, local_addr, nudges)?);
        let clone = listener.try_clone().map_err(EngineError::Listener)?;
        let own = listener::own_address(local_addr);
        let usher = usher::Usher::start(Arc::clone(&shared), clone, own, usher_told)?;
        Ok(Self {
            shared,
            usher,
            listener,
            own_listener,
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

    /// Stops accepting, answers what was accepted, ends all connections, waits for the threads. Takes
    /// at most [`Limits::drain_time`] and a second; threads that clients, or a flood of requests,
    /// still hold then are left to end by themselves.
    pub fn stop(self) {
        let shared = &self.shared;
        // From now on replies end their connections.
        shared.phase.store(STOPPING, Ordering::SeqCst);
        shared.nudge(Nudge::Stop);
        if self.own_listener {
            // Ends the accept loop as well. A listener from elsewhere stays its owner's.
            let _best_effort = socket2::SockRef::from(&self.listener).shutdown(Shutdown::Both);
        }
        let drain_time = shared.limits.drain_time;
        let deadline = Instant::now() + drain_time;
        shared.wait_drained(deadline.checked_sub(drain_time / 4).unwrap_or(deadline));
        shared.handler.drain_ends();
        shared.wait_drained(deadline);
        shared.phase.store(CLOSED, Ordering::SeqCst);
        let doors = self.usher.join().unwrap_or_default();
        // They get a moment in any case: what was accepted may wait behind one that was not answered.
        let calm = door::close(&doors, deadline.max(Instant::now() + DOORS_TIME));
        shared.wait_drained(deadline);
        // Idle connections, and those that still block somebody, end here (defect 7: the
        // library would leave them hanging).
        if calm {
            shared.sever.all();
        } else {
            tracing::warn!("a flood of requests; what is not answered now is not answered");
            shared.sever.all_unread();
        }
        let deadline = Instant::now() + ENDS_TIME;
        let _left_to_end_by_themselves = door::close(&doors, deadline);
        shared.lookups.stop(deadline);
        shared.bodies.stop(deadline);
        shared.answers.stop(deadline);
    }
}

impl Shared {
    fn new(
        limits: Limits,
        handler: Arc<dyn Handler>,
        local_addr: SocketAddr,
        nudges: crossbeam_channel::Sender<Nudge>,
    ) -> Result<Self, EngineError> {
        // Two write as fast as two cores can; more only while those are blocked by their clients.
        let answers = Size {
            threads_min: 2,
            threads_max: 256,
            queue_max: usize::MAX, // bounded by the requests in flight
            // Less would take a machine without time to spare for a client that does not read,
            // and have more threads compete for it.
            grow_after: Duration::from_millis(25),
        };
        // An upload that stalls holds its thread until its deadline: as many as that take.
        let bodies = Size {
            threads_min: 2,
            threads_max: 512,
            queue_max: 1024,
            grow_after: Duration::ZERO,
        };
        // They write what they found, too: clients that do not read must not hold all of them.
        let lookups = Size {
            threads_min: 2,
            threads_max: 256,
            queue_max: 4096,
            grow_after: Duration::from_millis(10),
        };
        let sever = sever::Sever::new(local_addr);
        // For those whose socket is not known: what a connection sent before it was ended is read
        // within moments; one that cannot be ended from here lives for as long as its receive
        // timeout. Longer would be wrong: a client may get the same address again.
        let gone_for = if sever.works() {
            PARTING_TIME + Duration::from_secs(3)
        } else {
            limits.idle_time + Duration::from_secs(5)
        };
        Ok(Self {
            handler,
            limits,
            lines: lines::Lines::new(limits.pipelined_max, gone_for),
            seen: usher::Seen::new(),
            sever,
            readings: body::Readings::default(),
            nudges,
            answers: Crew::start("http-answer", answers, answer::write_from)
                .map_err(EngineError::Thread)?,
            bodies: Crew::start("http-body", bodies, BodyJob::run).map_err(EngineError::Thread)?,
            lookups: Crew::start("http-lookup", lookups, Lookup::run)
                .map_err(EngineError::Thread)?,
            parting: Mutex::default(),
            room: body::Room::default(),
            phase: AtomicU8::new(RUNNING),
            in_flight: AtomicUsize::new(0),
            abandoned: AtomicU64::new(0),
            drained: (Mutex::new(()), Condvar::new()),
        })
    }

    fn figures(&self) -> Figures {
        Figures {
            in_flight: self.in_flight.load(Ordering::Relaxed),
            threads: self.answers.threads() + self.bodies.threads() + self.lookups.threads(),
            abandoned: self.abandoned.load(Ordering::Relaxed),
        }
    }

    fn is_stopping(&self) -> bool {
        self.phase.load(Ordering::Relaxed) != RUNNING
    }

    fn is_closed(&self) -> bool {
        self.phase.load(Ordering::SeqCst) == CLOSED
    }

    fn is_full(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) > self.limits.in_flight_max
    }

    /// From now on nothing that comes from the peer is believed. Its connection is shut down, and
    /// soon ended for good: the client has a moment to read what it was told.
    fn give_up(&self, peer: SocketAddr, how: Shutdown) {
        self.lines.give_up(peer);
        if !self.sever.works() {
            return; // its timeouts end it, nobody knows when
        }
        let found = self.sever.peer(peer, how);
        self.lines
            .was(peer, found.as_ref().map(|found| found.inode));
        let Some(found) = found else { return };
        let mut parting = self.parting.lock().unwrap_or_else(PoisonError::into_inner);
        if parting.len() >= PARTING_MAX
            && let Some((_, found)) = parting.pop_front()
        {
            found.reset();
        }
        parting.push_back((Instant::now(), found));
    }

    /// The same where its client has ended it already: none among all sockets has its address any
    /// more, and a flood of such connections must not have all of them looked at each time.
    fn give_up_ended(&self, peer: SocketAddr) {
        self.lines.give_up_ended(peer, self.sever.works());
    }

    /// Ends those whose moment is over, or who did not wait for that; for the usher.
    fn part(&self) {
        let mut parting = self.parting.lock().unwrap_or_else(PoisonError::into_inner);
        let over = parting
            .iter()
            .take_while(|(since, _)| since.elapsed() >= PARTING_TIME)
            .count();
        let over: Vec<_> = parting.drain(..over).collect();
        parting.retain(|(_, found)| found.is_connected());
        drop(parting);
        for (_, found) in over {
            found.reset();
        }
    }

    fn nudge(&self, nudge: Nudge) {
        // A full channel has nudges enough; a lost accept loop is seen by its descriptor as well.
        let _full = self.nudges.try_send(nudge);
    }

    fn wait_drained(&self, deadline: Instant) {
        let (lock, drained) = &self.drained;
        let guard = lock.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = deadline.saturating_duration_since(Instant::now());
        let _deadline_or_drained =
            drained.wait_timeout_while(guard, wait, |()| self.in_flight.load(Ordering::SeqCst) > 0);
    }
}

thread_local! {
    static MAY_BLOCK: Cell<bool> = const { Cell::new(false) };
}

/// This thread may be held up by a client: replies are written right on it.
fn may_block_here() {
    MAY_BLOCK.set(true);
}

#[cfg(test)]
mod tests;
