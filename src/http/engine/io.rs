//! The event loop of the thread `http-io`, which owns all sockets: it accepts, reads, writes and keeps
//! deadlines.
//!
//! Other threads reach it through the [`Mailbox`] only. It sleeps in `poll` only: all sockets are
//! non-blocking, and handlers that may block run on other threads.

mod accept;

use std::io::{self, ErrorKind};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use accept::ACCEPTS_A_TURN;
use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token, Waker};
use slab::Slab;

use super::connection::Connection;
use super::mailbox::{Key, Mailbox, Message};
use super::memory::BodyMemory;
use super::reply::DateCache;
use super::turn::{Next, Turn};
use super::{Refusal, Shared};

const LISTENER: Token = Token(usize::MAX);
const WAKER: Token = Token(usize::MAX - 1);
/// The events that are reported for connections.
const INTEREST: Interest = Interest::READABLE.add(Interest::WRITABLE);
/// Maximum bytes of one read.
const SCRATCH_BYTES: usize = 64 << 10;
/// Maximum number of connections accepted when a shutdown begins.
const STOP_ACCEPTS_MAX: usize = 4096;
/// Minimum time between two checks of all deadlines.
const SWEEP_PAUSE: Duration = Duration::from_millis(20);

/// The poll and the listener registered with it.
pub(super) struct Sockets {
    poll: Poll,
    listener: TcpListener,
}

impl Sockets {
    pub(super) fn new(listener: std::net::TcpListener) -> io::Result<(Self, Mailbox)> {
        listener.set_nonblocking(true)?;
        let poll = Poll::new()?;
        let mut listener = TcpListener::from_std(listener);
        let registry = poll.registry();
        registry.register(&mut listener, LISTENER, Interest::READABLE)?;
        let mailbox = Mailbox::new(Waker::new(registry, WAKER)?);
        Ok((Self { poll, listener }, mailbox))
    }
}

/// The state of the loop.
pub(super) struct Io {
    shared: Arc<Shared>,
    poll: Poll,
    /// `None` during a shutdown.
    listener: Option<TcpListener>,
    connections: Slab<Connection>,
    serial: u64,
    memory: BodyMemory,
    scratch: Box<[u8]>,
    date: DateCache,
    /// See [`Turn::line`].
    line: String,
    /// When to check the deadlines: at the earliest deadline of all connections, or before it.
    sweep_at: Option<Instant>,
    /// The kernel's queue may hold connections to accept.
    acceptable: bool,
    /// When to accept again; `None` for at once.
    accept_at: Option<Instant>,
    /// Since when accepting fails.
    held_off: Option<Instant>,
    /// The handler was notified that accepting fails.
    reported: bool,
    /// Bytes in the buffers of all connections.
    buffered: usize,
    /// When a shutdown closes the connections that are still open; `None` if there is no shutdown.
    stop_at: Option<Instant>,
}

impl Io {
    pub(super) fn new(shared: Arc<Shared>, sockets: Sockets) -> Self {
        Self {
            memory: BodyMemory::new(Arc::clone(&shared)),
            shared,
            poll: sockets.poll,
            listener: Some(sockets.listener),
            connections: Slab::new(),
            serial: 0,
            scratch: vec![0; SCRATCH_BYTES].into(),
            date: DateCache::default(),
            line: String::new(),
            sweep_at: None,
            acceptable: true,
            accept_at: None,
            held_off: None,
            reported: false,
            buffered: 0,
            stop_at: None,
        }
    }

    /// Runs until a shutdown was requested and all connections are closed, or the drain time has passed.
    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        let mut messages = Vec::new();
        while !self.is_done() {
            let timeout = if self.shared.mailbox.may_sleep() {
                self.next_timer()
            } else {
                Some(Duration::ZERO)
            };
            if let Err(error) = self.poll.poll(&mut events, timeout)
                && error.kind() != ErrorKind::Interrupted
            {
                tracing::error!(%error, "cannot poll the sockets");
            }
            self.shared.mailbox.set_awake();
            let started = Instant::now();
            for event in &events {
                match event.token() {
                    LISTENER => self.acceptable = true,
                    WAKER => {}
                    Token(index) => self.event(index, event),
                }
            }
            // After the events, so that the replies to their requests may be among the messages.
            self.shared.mailbox.take(&mut messages);
            for message in messages.drain(..) {
                self.message(message);
            }
            while let Some((key, reservation)) = self.memory.reserve_for_next() {
                self.advance(key, |connection, turn| connection.grant(turn, reservation));
            }
            self.sweep(Instant::now());
            self.accept(Instant::now());
            self.shared.end_step(started, "a turn of the loop");
            let count = self.connections.len();
            self.shared.connections.store(count, Ordering::Relaxed);
        }
    }

    fn is_done(&self) -> bool {
        let is_late = |at| Instant::now() >= at;
        self.stop_at
            .is_some_and(|at| self.connections.is_empty() || is_late(at))
    }

    /// The time until the next timer; `None` if no timer is set.
    fn next_timer(&self) -> Option<Duration> {
        let accept_at = self.accept_at.filter(|_| self.acceptable);
        let times = [self.sweep_at, accept_at, self.stop_at];
        let next = times.into_iter().flatten().min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    fn event(&mut self, index: usize, event: &mio::event::Event) {
        let Some(connection) = self.connections.get_mut(index) else {
            return;
        };
        let key = connection.key;
        if connection.event(event) {
            self.advance(key, Connection::advance);
        } else {
            self.close(index);
        }
    }

    fn message(&mut self, message: Message) {
        match message {
            Message::Reply(key, reply) => {
                self.advance(key, |connection, turn| connection.answered(turn, &reply));
            }
            Message::Stream(key, reply, rest) => self.advance(key, |connection, turn| {
                connection.answered_with_stream(turn, &reply, rest)
            }),
            Message::Piece(key, piece, rest) => self.advance(key, |connection, turn| {
                connection.produced(turn, piece, rest)
            }),
            Message::MemoryReleased => {}
            Message::Shutdown => self.begin_stop(),
        }
    }

    /// Calls `action` on a connection, unless it was closed meanwhile, and acts on the result.
    fn advance(&mut self, key: Key, action: impl FnOnce(&mut Connection, &mut Turn<'_>) -> Next) {
        let connection = self.connections.get_mut(key.index);
        let Some(connection) = connection.filter(|connection| connection.key == key) else {
            return;
        };
        let before = connection.buffered_bytes();
        let turn = &mut Turn {
            now: Instant::now(),
            scratch: &mut self.scratch,
            shared: &self.shared,
            memory: &mut self.memory,
            date: &mut self.date,
            stopping: self.stop_at.is_some(),
            budget: 0,
            line: &mut self.line,
        };
        turn.line.clear();
        // A panic closes this connection and leaves the others open.
        let next = catch_unwind(AssertUnwindSafe(|| action(connection, turn)));
        let step = match turn.line.as_str() {
            "" => "a turn of a connection",
            line => line,
        };
        self.shared.end_step(turn.now, step);
        self.buffered = self.buffered + connection.buffered_bytes() - before;
        if let Some(at) = connection.deadline(&self.shared.limits) {
            self.sweep_at = Some(self.sweep_at.map_or(at, |sweep_at| sweep_at.min(at)));
        }
        match next.unwrap_or(Next::Close) {
            Next::Wait => {}
            Next::Again => {
                let (stream, token) = (&mut connection.stream, Token(key.index));
                // Registering again reports the pending data as a new event.
                if failed(&self.poll.registry().reregister(stream, token, INTEREST)) {
                    self.close(key.index);
                }
            }
            Next::Close => self.close(key.index),
            Next::WaitedForMemory => self.refuse_for_memory(key),
        }
    }

    fn close(&mut self, index: usize) {
        if let Some(mut connection) = self.connections.try_remove(index) {
            self.buffered -= connection.buffered_bytes();
            connection.leave(&self.shared, &mut self.memory);
            // Another connection may be accepted at once.
            self.accept_at = None;
        }
    }

    /// Times out the connections whose deadline has passed.
    fn sweep(&mut self, now: Instant) {
        if self.sweep_at.is_none_or(|at| at > now) {
            return;
        }
        let mut due = Vec::new();
        let mut next: Option<Instant> = None;
        for (_, connection) in &self.connections {
            match connection.deadline(&self.shared.limits) {
                Some(at) if at <= now => due.push(connection.key),
                Some(at) => next = Some(next.map_or(at, |next| next.min(at))),
                None => {}
            }
        }
        self.sweep_at = next.map(|at| at.max(now + SWEEP_PAUSE));
        for key in due {
            self.advance(key, Connection::time_out);
        }
    }

    /// Ends the wait of an upload for memory: refuses the slowest upload that has reserved some, or, if
    /// none is slow, the waiting one.
    fn refuse_for_memory(&mut self, key: Key) {
        let now = Instant::now();
        let rate = |connection: &Connection| Some((connection.slow_rate(now)?, connection.key));
        let rates = self.connections.iter().filter_map(|(_, one)| rate(one));
        let slowest = rates.min_by_key(|(rate, _)| *rate);
        let (key, refusal) = match slowest {
            Some((_, slowest)) => {
                self.advance(key, |connection, turn| {
                    connection.begin_window(turn.now);
                    Next::Wait
                });
                (slowest, Refusal::BodyTimedOut)
            }
            None => (key, Refusal::Busy),
        };
        self.advance(key, |connection, turn| {
            connection.refuse(turn, refusal);
            connection.advance(turn)
        });
    }

    /// Begins the shutdown: accepts the connections in the kernel's queue, closes the listener and closes
    /// the idle connections.
    fn begin_stop(&mut self) {
        let now = Instant::now();
        self.acceptable = true;
        for _ in 0..STOP_ACCEPTS_MAX / ACCEPTS_A_TURN {
            self.accept_at = None;
            self.accept(now);
        }
        if let Some(mut listener) = self.listener.take() {
            let _closed_anyway = self.poll.registry().deregister(&mut listener);
        }
        self.acceptable = false;
        self.stop_at = Some(now + self.shared.limits.drain_time);
        let keys: Vec<_> = self.connections.iter().map(|(_, one)| one.key).collect();
        for key in keys {
            self.advance(key, |connection, turn| {
                connection.set_readable();
                match connection.advance(turn) {
                    Next::Wait if connection.is_idle() => Next::Close,
                    next => next,
                }
            });
        }
    }
}

/// Whether registering a connection failed, which is logged.
fn failed(polled: &io::Result<()>) -> bool {
    if let Err(error) = polled {
        tracing::warn!(%error, "cannot poll a connection; closing it");
    }
    polled.is_err()
}
