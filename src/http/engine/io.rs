//! The loop that owns every socket: accepts, reads, writes, keeps deadlines. Thread `http-io`.
//!
//! Other threads reach it through the [`Mailbox`] only. It sleeps in `poll` and nowhere else: no
//! read, write or accept blocks, and handlers that may block run elsewhere. Where the process has no
//! descriptor left, or the bound of connections is reached, it stops accepting until there is room;
//! meanwhile clients wait in the kernel's queue.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io::{self, ErrorKind};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token, Waker};
use slab::Slab;

use super::connection::{Connection, IDLE_BUFFER_BYTES_MAX, Key};
use super::room::Room;
use super::turn::{Next, Turn};
use super::{Refusal, Reply, Shared, system};

const LISTENER: Token = Token(usize::MAX);
const WAKER: Token = Token(usize::MAX - 1);
/// What one read may bring.
const SCRATCH_BYTES: usize = 64 << 10;
/// Connections accepted before the others have their turn.
const ACCEPTS_A_TURN: usize = 128;
/// Connections accepted when a stop begins.
const STOP_ACCEPTS_MAX: usize = 4096;
/// Timers beyond a few for each connection.
const TIMERS_SPARE: usize = 1024;
/// How long accepting pauses where it is impossible.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// After so long without accepting, readiness says so.
const ACCEPT_PATIENCE: Duration = Duration::from_secs(1);
/// A connection may be closed to make room after it was idle for so long.
const EVICT_IDLE_MIN: Duration = Duration::from_secs(1);

/// What other threads tell the loop.
#[derive(Debug)]
pub(super) enum Message {
    /// The answer to the request in hand on a connection.
    Reply(Key, Reply),
    /// Stop, and close what is not answered by then.
    Stop(Instant),
}

/// Messages for the loop, and the way to wake it.
#[derive(Debug)]
pub(super) struct Mailbox {
    inbox: Mutex<Inbox>,
    waker: Waker,
}

#[derive(Debug, Default)]
struct Inbox {
    messages: Vec<Message>,
    /// The loop is in `poll`, and nobody has woken it yet.
    asleep: bool,
    /// It must not go to sleep: something changed.
    woken: bool,
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves a message; a system call only where the loop sleeps.
    pub(super) fn post(&self, message: Message) {
        let mut inbox = self.lock();
        inbox.messages.push(message);
        self.wake_from(inbox);
    }

    /// Has the loop look around.
    pub(super) fn wake(&self) {
        let mut inbox = self.lock();
        inbox.woken = true;
        self.wake_from(inbox);
    }

    fn wake_from(&self, mut inbox: MutexGuard<'_, Inbox>) {
        let wake = std::mem::take(&mut inbox.asleep);
        drop(inbox);
        if wake {
            // It fails only where the loop has ended.
            let _ended = self.waker.wake();
        }
    }

    /// Takes the messages; true where there is nothing and the loop may sleep.
    fn take(&self, into: &mut Vec<Message>) -> bool {
        let mut inbox = self.lock();
        std::mem::swap(&mut inbox.messages, into);
        let woken = std::mem::take(&mut inbox.woken);
        inbox.asleep = into.is_empty() && !woken;
        inbox.asleep
    }

    fn awake(&self) {
        self.lock().asleep = false;
    }
}

/// What the loop polls with.
pub(super) struct Sockets {
    poll: Poll,
    listener: TcpListener,
    pub(super) mailbox: Arc<Mailbox>,
}

impl Sockets {
    pub(super) fn new(listener: std::net::TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let poll = Poll::new()?;
        let mut listener = TcpListener::from_std(listener);
        let registry = poll.registry();
        registry.register(&mut listener, LISTENER, Interest::READABLE)?;
        let mailbox = Arc::new(Mailbox {
            inbox: Mutex::default(),
            waker: Waker::new(registry, WAKER)?,
        });
        Ok(Self {
            poll,
            listener,
            mailbox,
        })
    }
}

/// The loop's own state.
pub(super) struct Io {
    shared: Arc<Shared>,
    poll: Poll,
    /// `None` once stopping.
    listener: Option<TcpListener>,
    connections: Slab<Connection>,
    serial: u64,
    timers: BinaryHeap<Reverse<(Instant, usize, u64)>>,
    /// Connections that have more to do than one turn allows.
    again: VecDeque<Key>,
    /// Uploads that wait for room.
    waiting: VecDeque<Key>,
    room: Arc<Room>,
    scratch: Box<[u8]>,
    /// Connections may wait to be accepted.
    acceptable: bool,
    /// Not before this.
    accept_at: Option<Instant>,
    /// Since when connections that may wait were not accepted.
    held_off: Option<Instant>,
    /// What the handler was told of accepting.
    accepts: bool,
    /// Bytes in all connections' buffers.
    buffered: usize,
    stop: Option<Stop>,
}

struct Stop {
    /// The handler is told that the drain ends.
    warn_at: Option<Instant>,
    deadline: Instant,
}

impl Io {
    pub(super) fn new(shared: Arc<Shared>, sockets: Sockets) -> Self {
        let room = shared.limits.bodies_bytes_max;
        Self {
            room: Arc::new(Room::new(room, sockets.mailbox)),
            shared,
            poll: sockets.poll,
            listener: Some(sockets.listener),
            connections: Slab::new(),
            serial: 0,
            timers: BinaryHeap::new(),
            again: VecDeque::new(),
            waiting: VecDeque::new(),
            scratch: vec![0; SCRATCH_BYTES].into(),
            acceptable: true,
            accept_at: None,
            held_off: None,
            accepts: true,
            buffered: 0,
            stop: None,
        }
    }

    /// Runs until it was told to stop and everything is answered, or the deadline has passed.
    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        let mut messages = Vec::new();
        while !self.is_done() {
            let may_sleep = self.shared.mailbox.take(&mut messages) && self.again.is_empty();
            let timeout = if may_sleep {
                self.next_timer()
            } else {
                Some(Duration::ZERO)
            };
            if let Err(error) = self.poll.poll(&mut events, timeout)
                && error.kind() != ErrorKind::Interrupted
            {
                tracing::error!(%error, "cannot poll the sockets");
            }
            self.shared.mailbox.awake();
            let started = Instant::now();
            for event in &events {
                match event.token() {
                    LISTENER => self.acceptable = true,
                    WAKER => {}
                    Token(index) => self.event(index, event),
                }
            }
            for _ in 0..self.again.len() {
                if let Some(key) = self.again.pop_front() {
                    self.advance(key, |connection, turn| {
                        connection.queued = false;
                        connection.advance(turn)
                    });
                }
            }
            for message in messages.drain(..) {
                match message {
                    Message::Reply(key, reply) => {
                        self.advance(key, |connection, turn| connection.answered(turn, reply));
                    }
                    Message::Stop(deadline) => self.begin_stop(deadline),
                }
            }
            self.grant_room();
            self.fire_timers(Instant::now());
            self.accept(Instant::now());
            self.shared.stepped(started, "its sockets");
            let count = self.connections.len();
            self.shared.connections.store(count, Ordering::Relaxed);
        }
    }

    fn is_done(&mut self) -> bool {
        let Some(stop) = &mut self.stop else {
            return false;
        };
        let now = Instant::now();
        if stop.warn_at.is_some_and(|at| now >= at) {
            stop.warn_at = None;
            self.shared.handler.drain_ends();
        }
        self.connections.is_empty() || now >= stop.deadline
    }

    /// How long until something is due.
    fn next_timer(&self) -> Option<Duration> {
        let timer = self.timers.peek().map(|Reverse((at, ..))| *at);
        let accept = self.accept_at.filter(|_| self.acceptable);
        let stop = self.stop.as_ref();
        let stop = stop.map(|stop| stop.warn_at.unwrap_or(stop.deadline));
        let next = [timer, accept, stop].into_iter().flatten().min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    fn event(&mut self, index: usize, event: &mio::event::Event) {
        let Some(connection) = self.connections.get_mut(index) else {
            return;
        };
        let key = connection.key;
        if !connection.event(event) {
            self.close(index);
        } else if !connection.queued {
            self.advance(key, Connection::advance);
        }
    }

    /// Has a connection do something, and sees to what follows.
    fn advance(&mut self, key: Key, what: impl FnOnce(&mut Connection, &mut Turn<'_>) -> Next) {
        let Some(connection) = self.connections.get_mut(key.index) else {
            return;
        };
        if connection.key != key {
            return;
        }
        let before = connection.buffered_bytes();
        let turn = &mut Turn {
            now: Instant::now(),
            scratch: &mut self.scratch,
            shared: &self.shared,
            room: &self.room,
            waiting: &mut self.waiting,
            stopping: self.stop.is_some(),
            budget: 0,
        };
        // A defect costs one connection, not all of them.
        let next = catch_unwind(AssertUnwindSafe(|| what(connection, turn)));
        let next = next.unwrap_or(Next::Close);
        self.buffered = self.buffered + connection.buffered_bytes() - before;
        match next {
            Next::Wait => {}
            Next::Again if connection.queued => {}
            Next::Again => {
                connection.queued = true;
                self.again.push_back(key);
            }
            Next::Close => return self.close(key.index),
            Next::WantsRoom => return self.relieve(key),
        }
        let deadline = connection.deadline(&self.shared.limits);
        if let Some(at) = deadline
            && connection.timer.is_none_or(|timer| at < timer)
        {
            connection.timer = Some(at);
            self.timers.push(Reverse((at, key.index, key.serial)));
        }
    }

    fn close(&mut self, index: usize) {
        if let Some(mut connection) = self.connections.try_remove(index) {
            self.buffered -= connection.buffered_bytes();
            connection.leave(&self.shared);
            // There may be room for another one.
            self.accept_at = None;
        }
        // Timers of connections that are closed would be kept for as long as theirs.
        if self.timers.len() > 4 * self.connections.len() + TIMERS_SPARE {
            let connections = &self.connections;
            self.timers.retain(|Reverse((at, index, serial))| {
                let connection = connections.get(*index);
                connection.is_some_and(|one| one.key.serial == *serial && one.timer == Some(*at))
            });
        }
    }

    fn fire_timers(&mut self, now: Instant) {
        while let Some(Reverse((at, index, serial))) = self.timers.peek().copied()
            && at <= now
        {
            self.timers.pop();
            let Some(connection) = self.connections.get_mut(index) else {
                continue;
            };
            let key = Key { index, serial };
            if connection.key != key || connection.timer != Some(at) {
                continue;
            }
            connection.timer = None;
            let limits = &self.shared.limits;
            let is_due = connection.deadline(limits).is_some_and(|due| due <= now);
            self.advance(key, |connection, turn| {
                match is_due.then(|| connection.time_out(turn)) {
                    None => Next::Wait,
                    Some(Next::Wait) => connection.advance(turn),
                    Some(next) => next,
                }
            });
        }
    }

    /// Gives room that there is to those who wait for it, in order.
    fn grant_room(&mut self) {
        self.room.set_wanted(!self.waiting.is_empty());
        while let Some(key) = self.waiting.front().copied() {
            let connection = self.connections.get(key.index);
            let wanted = connection.filter(|connection| connection.key == key);
            let Some(bytes) = wanted.and_then(Connection::wanted_room) else {
                self.waiting.pop_front();
                continue;
            };
            let Some(share) = self.room.take(bytes) else {
                return;
            };
            self.waiting.pop_front();
            self.advance(key, |connection, turn| connection.grant(turn, share));
        }
    }

    /// An upload has waited for room for too long: the slowest of those that have room yields, or it
    /// is refused itself.
    fn relieve(&mut self, key: Key) {
        let now = Instant::now();
        let rate = |connection: &Connection| Some((connection.yielding_rate(now)?, connection.key));
        let rates = self.connections.iter().filter_map(|(_, one)| rate(one));
        let slowest = rates.min_by_key(|(rate, _)| *rate);
        let (key, refusal) = match slowest {
            Some((_, slowest)) => {
                self.advance(key, |connection, turn| {
                    connection.wait_on(turn.now);
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

    fn accept(&mut self, now: Instant) {
        if self.buffered > self.shared.limits.buffers_bytes_max {
            let holds = |one: &Connection| one.buffered_bytes() > IDLE_BUFFER_BYTES_MAX;
            let expendable = self.expendable(now, holds);
            self.evict(expendable);
        }
        if !self.acceptable || self.accept_at.is_some_and(|at| now < at) {
            return;
        }
        for _ in 0..ACCEPTS_A_TURN {
            let full = self.connections.len() >= self.shared.limits.connections_max;
            let expendable = if full {
                self.expendable(now, |_| true)
            } else {
                Vec::new()
            };
            if full && expendable.is_empty() {
                return self.hold_off(now, "the bound of connections is reached");
            }
            let Some(listener) = &self.listener else {
                return;
            };
            match listener.accept() {
                Ok((stream, peer)) => {
                    self.evict(expendable);
                    self.add(stream, peer, now);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.acceptable = false;
                    return self.accepts_again();
                }
                Err(error) if system::is_exhausted(&error) => {
                    let expendable = self.expendable(now, |_| true);
                    self.evict(expendable);
                    return self.hold_off(now, "no descriptor is left");
                }
                // This client has gone already.
                Err(_) => {}
            }
        }
        self.accepts_again();
        // The others have their turn first.
        self.accept_at = Some(now);
    }

    fn add(&mut self, mut stream: mio::net::TcpStream, peer: std::net::SocketAddr, now: Instant) {
        let entry = self.connections.vacant_entry();
        let index = entry.key();
        let interest = Interest::READABLE | Interest::WRITABLE;
        let registry = self.poll.registry();
        if let Err(error) = registry.register(&mut stream, Token(index), interest) {
            tracing::warn!(%error, "cannot poll a connection");
            return;
        }
        self.serial += 1;
        let serial = self.serial;
        let key = Key { index, serial };
        entry.insert(Connection::new(stream, peer, key, now));
        self.advance(key, Connection::advance);
    }

    /// Accepting is impossible for now.
    fn hold_off(&mut self, now: Instant, why: &str) {
        self.accept_at = Some(now + ACCEPT_PAUSE);
        let since = *self.held_off.get_or_insert(now);
        if self.accepts && now >= since + ACCEPT_PATIENCE {
            self.accepts = false;
            tracing::warn!("cannot accept connections: {why}; retrying");
            self.shared.handler.accepting(false);
        }
    }

    fn accepts_again(&mut self) {
        self.held_off = None;
        self.accept_at = None;
        if !self.accepts {
            self.accepts = true;
            tracing::info!("accepting connections again");
            self.shared.handler.accepting(true);
        }
    }

    /// Some of those connections that are idle longest. Several at once: to look for them takes time.
    fn expendable(&self, now: Instant, which: fn(&Connection) -> bool) -> Vec<usize> {
        let Some(idle_since) = now.checked_sub(EVICT_IDLE_MIN) else {
            return Vec::new();
        };
        let ranked = |(index, connection): (usize, &Connection)| {
            let rank = connection.rank_to_evict(idle_since)?;
            which(connection).then_some((rank, index))
        };
        let mut ranked: Vec<_> = self.connections.iter().filter_map(ranked).collect();
        let count = self.connections.len() / 64 + 1;
        if count < ranked.len() {
            ranked.select_nth_unstable(count);
        }
        ranked
            .into_iter()
            .take(count)
            .map(|(_, index)| index)
            .collect()
    }

    fn evict(&mut self, expendable: Vec<usize>) {
        let count = expendable.len() as u64;
        self.shared.evicted.fetch_add(count, Ordering::Relaxed);
        for index in expendable {
            self.close(index);
        }
    }

    /// Accepts what waits to be accepted, and no more; closes what is idle.
    fn begin_stop(&mut self, deadline: Instant) {
        self.accept_at = None;
        self.acceptable = true;
        let now = Instant::now();
        for _ in 0..STOP_ACCEPTS_MAX / ACCEPTS_A_TURN {
            self.accept(now);
        }
        if let Some(mut listener) = self.listener.take() {
            let _closed_anyway = self.poll.registry().deregister(&mut listener);
        }
        self.stop = Some(Stop {
            warn_at: deadline.checked_sub(self.shared.limits.drain_time / 4),
            deadline,
        });
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
