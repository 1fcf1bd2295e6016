//! One connection: a state machine between bytes and requests.
//!
//! ```text
//! Head --no body--> Handling --reply--> (written) --> Head, or Linger --> closed
//!   \--> Upload --whole--^
//! ```
//!
//! One request of a connection is in hand at a time. What a client sends meanwhile stays in the
//! kernel's buffer, or up to [`HEAD_BYTES_MAX`] of it in ours; so replies are in order, and a client
//! that never reads is not read from. Everything here runs on the I/O thread and never blocks.
//!
//! A connection that the server ends is shut down for writing first and then read from for up to
//! [`LINGER_TIME`]: closed at once with bytes unread, it would be reset, and the client could lose
//! the reply.

use std::io::{ErrorKind, Read as _};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mio::net::TcpStream;

use super::body::{Body, Keep, Received};
use super::framing::{Length, Persistence};
use super::head::{self, HEAD_BYTES_MAX, Head, Method, Scanner};
use super::reply::Outgoing;
use super::request::Request;
use super::room::Share;
use super::turn::{Next, Turn};
use super::upload::{ROOM_WAIT, SMALL_BYTES_MAX, Then, Upload, millis};
use super::{Admission, Lane, Limits, Refusal, Reply, Shared};

/// Bytes read from one connection before the others have their turn.
const TURN_BYTES_MAX: usize = 256 << 10;
/// How long a connection is read from after it was shut down for writing.
const LINGER_TIME: Duration = Duration::from_secs(1);
/// Bytes that are read then, at most: who sends more does not read.
const LINGER_BYTES_MAX: u64 = 8 << 20;
/// A connection is kept for longer than was announced, for a request that is on its way then.
const KEEP_ALIVE_GRACE: Duration = Duration::from_secs(1);
/// An idle connection keeps an input buffer up to this size.
pub(super) const IDLE_BUFFER_BYTES_MAX: usize = 1 << 10;

/// Which connection; an index is used again, a serial number is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) index: usize,
    pub(super) serial: u64,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    peer: SocketAddr,
    pub(super) key: Key,
    state: State,
    /// Read and not yet consumed.
    input: Vec<u8>,
    scanner: Scanner,
    /// What must be written before anything else.
    out: Option<Outgoing>,
    /// The current request is HEAD.
    to_head: bool,
    /// Of the current request.
    persistence: Persistence,
    arriving: Arriving,
    /// A whole request has come.
    served: bool,
    /// Since when it is in its state, or in the current window of a body or reply.
    since: Instant,
    /// Bytes of the body or reply when that window began.
    moved: u64,
    /// The earliest timer queued for it.
    pub(super) timer: Option<Instant>,
    /// It has had its share of a turn, and is queued for the next one.
    pub(super) queued: bool,
}

/// What the kernel has of a connection that is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arriving {
    /// Nothing; an event says when that changes.
    Nothing,
    /// Perhaps something.
    Bytes,
    /// The client has shut down its side: the end comes after what there is, without another event.
    LastBytes,
    /// The end was read.
    Ended,
}

#[derive(Debug)]
enum State {
    /// Between requests, or part of a head has come.
    Head,
    /// A body is coming.
    Upload(Box<Upload>),
    /// The handler has the request.
    Handling,
    /// The reply was the last one.
    Linger,
}

/// What a step found.
enum Step {
    On,
    Stop(Next),
}

/// What a read brought.
enum Read {
    Bytes(usize),
    Ended,
    Nothing(Next),
}

impl Connection {
    pub(super) fn new(stream: TcpStream, peer: SocketAddr, key: Key, now: Instant) -> Self {
        Self {
            stream,
            peer,
            key,
            state: State::Head,
            input: Vec::new(),
            scanner: Scanner::default(),
            out: None,
            to_head: false,
            persistence: Persistence::Kept,
            arriving: Arriving::Nothing,
            served: false,
            since: now,
            moved: 0,
            timer: None,
            queued: false,
        }
    }

    /// The socket reported something. False where the connection is broken.
    pub(super) fn event(&mut self, event: &mio::event::Event) -> bool {
        match self.arriving {
            Arriving::Ended => {}
            _ if event.is_read_closed() => self.arriving = Arriving::LastBytes,
            _ if event.is_readable() => self.set_readable(),
            _ => {}
        }
        !event.is_error()
    }

    /// Reads once more, whether or not the socket reported something.
    pub(super) fn set_readable(&mut self) {
        if self.arriving == Arriving::Nothing {
            self.arriving = Arriving::Bytes;
        }
    }

    /// Whether nothing is asked and nothing is owed.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.state, State::Head) && self.input.is_empty() && self.out.is_none()
    }

    /// Whether it may be closed to make room, and in which order: those that never sent a whole
    /// request first, the longest idle first.
    pub(super) fn rank_to_evict(&self, idle_since: Instant) -> Option<(bool, Instant)> {
        let expendable = match &self.state {
            _ if self.out.is_some() => true,
            State::Head => !self.served || self.input.is_empty(),
            State::Upload(upload) => !self.served && upload.request.share.is_none(),
            State::Handling | State::Linger => false,
        };
        (expendable && self.since <= idle_since).then_some((self.served, self.since))
    }

    /// Bytes of memory that it holds in buffers.
    pub(super) fn buffered_bytes(&self) -> usize {
        let body = match &self.state {
            State::Upload(upload) if upload.request.share.is_none() => upload.body.len(),
            _ => 0,
        };
        self.input.capacity() + body + self.out.as_ref().map_or(0, Outgoing::held_bytes)
    }

    /// When it has waited for too long.
    pub(super) fn deadline(&self, limits: &Limits) -> Option<Instant> {
        let time = match &self.state {
            _ if self.out.is_some() => limits.write_time,
            State::Head if self.input.is_empty() => limits.keep_alive + KEEP_ALIVE_GRACE,
            State::Head => limits.head_time,
            State::Upload(upload) if upload.waits => ROOM_WAIT,
            State::Upload(_) => limits.body_time,
            State::Linger => LINGER_TIME,
            State::Handling => return None,
        };
        Some(self.since + time)
    }

    fn begin_window(&mut self, now: Instant, moved: u64) {
        self.since = now;
        self.moved = moved;
    }

    /// Its deadline has passed.
    pub(super) fn time_out(&mut self, turn: &mut Turn<'_>) -> Next {
        let limits = &turn.shared.limits;
        let least = |time: Duration| limits.rate_min * millis(time) / 1000;
        let (moved, least) = match (&self.out, &self.state) {
            (Some(out), _) => (out.written() as u64, least(limits.write_time)),
            (None, State::Upload(upload)) => (upload.body.count(), least(limits.body_time)),
            (None, _) => (0, u64::MAX),
        };
        let waits = matches!(&self.state, State::Upload(upload) if upload.waits);
        if moved.saturating_sub(self.moved) >= least && !waits {
            self.begin_window(turn.now, moved);
            return Next::Wait;
        }
        match &self.state {
            _ if self.out.is_some() => Next::Close,
            State::Upload(_) if waits => Next::WantsRoom,
            State::Upload(_) => self.refuse(turn, Refusal::BodyTimedOut),
            State::Head if !self.input.is_empty() => self.refuse(turn, Refusal::HeadTimedOut),
            State::Head | State::Handling | State::Linger => Next::Close,
        }
    }

    /// Goes on for as long as there is something to do, and the connection has its turn.
    pub(super) fn advance(&mut self, turn: &mut Turn<'_>) -> Next {
        turn.budget = TURN_BYTES_MAX;
        loop {
            if let Some(out) = &mut self.out {
                match out.write_to(&mut self.stream) {
                    Ok(true) => self.written(turn),
                    Ok(false) => return Next::Wait,
                    Err(_) => return Next::Close,
                }
            }
            let step = match &mut self.state {
                State::Head => self.head(turn),
                State::Upload(_) => self.upload(turn),
                State::Linger => self.linger(turn),
                State::Handling => return Next::Wait,
            };
            if let Step::Stop(next) = step {
                return next;
            }
        }
    }

    /// Everything owed is written.
    fn written(&mut self, turn: &Turn<'_>) {
        self.out = None;
        let moved = match &self.state {
            State::Upload(upload) => upload.body.count(),
            _ => 0,
        };
        self.begin_window(turn.now, moved);
        if matches!(self.state, State::Linger) {
            // Where this fails, the client has gone.
            let _gone = self.stream.shutdown(Shutdown::Write);
        }
    }

    /// Reads at most `bytes_max` bytes into the scratch buffer.
    fn read(&mut self, turn: &mut Turn<'_>, bytes_max: usize) -> Read {
        let bytes_max = bytes_max.min(turn.scratch.len());
        loop {
            match self.arriving {
                Arriving::Ended => return Read::Ended,
                Arriving::Nothing => return Read::Nothing(Next::Wait),
                _ if turn.budget == 0 => return Read::Nothing(Next::Again),
                Arriving::Bytes | Arriving::LastBytes => {}
            }
            match self.stream.read(&mut turn.scratch[..bytes_max]) {
                Ok(0) => self.arriving = Arriving::Ended,
                Ok(count) => {
                    // After a short read the kernel has no more.
                    if count < bytes_max && self.arriving == Arriving::Bytes {
                        self.arriving = Arriving::Nothing;
                    }
                    turn.budget = turn.budget.saturating_sub(count);
                    return Read::Bytes(count);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.arriving = Arriving::Nothing;
                }
                Err(_) => return Read::Nothing(Next::Close),
            }
        }
    }

    fn linger(&mut self, turn: &mut Turn<'_>) -> Step {
        self.input = Vec::new();
        match self.read(turn, usize::MAX) {
            Read::Bytes(count) => {
                self.moved += count as u64;
                if self.moved > LINGER_BYTES_MAX {
                    return Step::Stop(Next::Close);
                }
                Step::On
            }
            Read::Ended => Step::Stop(Next::Close),
            Read::Nothing(next) => Step::Stop(next),
        }
    }

    fn head(&mut self, turn: &mut Turn<'_>) -> Step {
        self.input.drain(..head::empty_lines(&self.input));
        match self.scanner.scan(&self.input) {
            Err(refusal) => Step::after(self.refuse(turn, refusal)),
            Ok(Some(length)) => {
                let head = Head::parse(&self.input[..length]);
                self.input.drain(..length);
                self.scanner = Scanner::default();
                Step::after(match head {
                    Ok(head) => self.begin(turn, head),
                    Err(refusal) => self.refuse(turn, refusal),
                })
            }
            Ok(None) => {
                if self.input.is_empty() && self.input.capacity() > IDLE_BUFFER_BYTES_MAX {
                    self.input = Vec::new();
                }
                match self.read(turn, HEAD_BYTES_MAX) {
                    Read::Bytes(count) => {
                        if self.input.is_empty() {
                            self.begin_window(turn.now, 0);
                        }
                        self.input.extend_from_slice(&turn.scratch[..count]);
                        Step::On
                    }
                    Read::Ended if self.input.is_empty() => Step::Stop(Next::Close),
                    Read::Ended => {
                        Step::after(self.refuse(turn, Refusal::Malformed("the head ends early")))
                    }
                    Read::Nothing(next) => Step::Stop(next),
                }
            }
        }
    }

    /// A valid head has come.
    fn begin(&mut self, turn: &mut Turn<'_>, head: Head) -> Next {
        self.to_head = head.method == Method::Head;
        self.persistence = head.framing.persistence;
        let (framing, bytes_max) = (head.framing, turn.shared.limits.body_bytes_max);
        let announced = match framing.body {
            Length::Bytes(bytes) => Some(bytes),
            Length::Chunked => None,
        };
        if announced.is_some_and(|bytes| bytes > Body::discard_max(bytes_max)) {
            return self.refuse(turn, Refusal::BodyTooLarge);
        }
        let request = Request {
            head,
            body: Vec::new(),
            share: None,
            received: turn.now,
            key: self.key,
            shared: Some(Arc::clone(turn.shared)),
        };
        let too_large = announced.is_some_and(|bytes| bytes > bytes_max as u64);
        let then = match turn.admit(&request) {
            None => Then::Answer(turn.shared.handler.refusal(Refusal::Panicked)),
            Some(Admission::Take(_)) if too_large => {
                Then::Answer(turn.shared.handler.refusal(Refusal::BodyTooLarge))
            }
            Some(Admission::Take(lane)) => Then::Handle(lane),
            Some(Admission::Refuse(reply)) => Then::Answer(reply),
        };
        let asks_to_continue = framing.expects_continue && self.input.is_empty();
        match then {
            Then::Answer(reply) if announced == Some(0) => {
                request.disarm();
                self.reply(turn, reply)
            }
            // The client waits for this answer before it sends a body.
            Then::Answer(reply) if asks_to_continue => {
                request.disarm();
                self.reply(turn, reply.closing())
            }
            Then::Handle(lane) if announced == Some(0) => self.dispatch(turn, request, lane),
            then => {
                let keep = match then {
                    Then::Handle(_) => Keep::UpToLimit,
                    Then::Answer(_) => Keep::Nothing,
                };
                self.begin_window(turn.now, 0);
                self.state = State::Upload(Box::new(Upload {
                    request,
                    body: Body::new(framing.body, bytes_max, keep),
                    announced,
                    then,
                    began: turn.now,
                    waits: false,
                    asks_to_continue,
                }));
                Next::Wait
            }
        }
    }

    fn upload(&mut self, turn: &mut Turn<'_>) -> Step {
        let State::Upload(upload) = &mut self.state else {
            return Step::On;
        };
        if let Some(bytes) = upload.wants_room() {
            let share = turn.waiting.is_empty().then(|| turn.room.take(bytes));
            if let Some(share) = share.flatten() {
                upload.grant(share);
            } else {
                upload.waits = true;
                turn.waiting.push_back(self.key);
                let moved = upload.body.count();
                self.begin_window(turn.now, moved);
            }
        }
        let State::Upload(upload) = &mut self.state else {
            return Step::On;
        };
        if upload.waits {
            return Step::Stop(Next::Wait);
        }
        if std::mem::take(&mut upload.asks_to_continue) {
            self.out = Some(Outgoing::interim());
            return Step::On;
        }
        // Of chunks no more at once than a small body, until there is room for a large one.
        let bytes_max = match upload.request.share {
            None => SMALL_BYTES_MAX,
            Some(_) => usize::MAX,
        };
        let received = if self.input.is_empty() {
            match self.read(turn, bytes_max) {
                Read::Bytes(count) => {
                    let State::Upload(upload) = &mut self.state else {
                        return Step::On;
                    };
                    let bytes = &turn.scratch[..count];
                    upload.body.receive(bytes).map(|(taken, received)| {
                        self.input.extend_from_slice(&bytes[taken..]);
                        received
                    })
                }
                Read::Ended => Err("the body ends early"),
                Read::Nothing(next) => return Step::Stop(next),
            }
        } else {
            upload.body.receive(&self.input).map(|(taken, received)| {
                self.input.drain(..taken);
                received
            })
        };
        Step::after(match received {
            Ok(Received::Partly) => return Step::On,
            Ok(Received::Whole) => self.received(turn),
            Ok(Received::WholeTooLarge) => {
                let reply = turn.shared.handler.refusal(Refusal::BodyTooLarge);
                self.reply(turn, reply)
            }
            Ok(Received::FarTooLarge) => self.refuse(turn, Refusal::BodyTooLarge),
            Err(why) => self.refuse(turn, Refusal::Malformed(why)),
        })
    }

    /// The body is complete.
    fn received(&mut self, turn: &mut Turn<'_>) -> Next {
        let State::Upload(upload) = std::mem::replace(&mut self.state, State::Handling) else {
            return Next::Wait;
        };
        let mut request = upload.request;
        request.body = upload.body.into_bytes();
        request.received = turn.now;
        match upload.then {
            Then::Handle(lane) => self.dispatch(turn, request, lane),
            Then::Answer(reply) => {
                request.disarm();
                self.state = State::Head;
                self.reply(turn, reply)
            }
        }
    }

    /// Has a whole request handled.
    fn dispatch(&mut self, turn: &mut Turn<'_>, request: Request, lane: Lane) -> Next {
        self.served = true;
        let limits = &turn.shared.limits;
        let in_flight = turn.shared.in_flight.fetch_add(1, Ordering::SeqCst);
        self.state = State::Handling;
        if in_flight >= limits.in_flight_max {
            request.refuse(Refusal::Busy);
            return Next::Wait;
        }
        match lane {
            Lane::Io if request.body.len() <= SMALL_BYTES_MAX => turn.handle(request),
            Lane::Io | Lane::Worker => request.submit(),
        }
        Next::Wait
    }

    /// The handler has answered.
    pub(super) fn answered(&mut self, turn: &mut Turn<'_>, reply: Reply) -> Next {
        if !matches!(self.state, State::Handling) {
            return Next::Wait;
        }
        self.reply(turn, reply);
        self.advance(turn)
    }

    /// Refuses what has come, and ends the connection.
    pub(super) fn refuse(&mut self, turn: &mut Turn<'_>, refusal: Refusal) -> Next {
        tracing::debug!(peer = %self.peer, ?refusal, "refused");
        let reply = turn.shared.handler.refusal(refusal);
        self.reply(turn, reply.closing())
    }

    fn reply(&mut self, turn: &mut Turn<'_>, reply: Reply) -> Next {
        self.leave(turn.shared);
        let mut ends = reply.close || self.persistence == Persistence::Ends;
        if turn.stopping && !ends {
            ends = !self.has_more(turn);
        }
        let kept = (!ends).then_some(turn.shared.limits.keep_alive);
        self.out = Some(reply.encode(self.to_head, kept));
        self.state = if ends { State::Linger } else { State::Head };
        (self.to_head, self.persistence) = (false, Persistence::Kept);
        self.begin_window(turn.now, 0);
        Next::Wait
    }

    /// Leaves its state. A request that was not handed out is not answered by itself.
    pub(super) fn leave(&mut self, shared: &Shared) {
        match std::mem::replace(&mut self.state, State::Head) {
            State::Upload(upload) => upload.request.disarm(),
            State::Handling => drop(shared.in_flight.fetch_sub(1, Ordering::SeqCst)),
            State::Head | State::Linger => {}
        }
    }

    /// Whether the client has sent anything beyond the current request.
    fn has_more(&mut self, turn: &mut Turn<'_>) -> bool {
        if self.input.is_empty()
            && let Read::Bytes(count) = self.read(turn, HEAD_BYTES_MAX)
        {
            self.input.extend_from_slice(&turn.scratch[..count]);
        }
        !self.input.is_empty()
    }

    /// How much room its upload waits for, if it does.
    pub(super) fn wanted_room(&self) -> Option<usize> {
        match &self.state {
            State::Upload(upload) if upload.waits => upload.wants_room(),
            _ => None,
        }
    }

    /// There is room for its upload.
    pub(super) fn grant(&mut self, turn: &mut Turn<'_>, share: Share) -> Next {
        if let State::Upload(upload) = &mut self.state {
            upload.grant(share);
            let moved = upload.body.count();
            self.begin_window(turn.now, moved);
        }
        self.advance(turn)
    }

    /// It waits on: room is about to be given back.
    pub(super) fn wait_on(&mut self, now: Instant) {
        self.since = now;
    }

    /// The rate of an upload that has room, in bytes a second, where it is low enough to yield.
    pub(super) fn yielding_rate(&self, now: Instant) -> Option<u64> {
        match &self.state {
            State::Upload(upload) => upload.yielding_rate(now),
            _ => None,
        }
    }
}

impl Step {
    /// After something that leaves bytes to be written or a state to go on with.
    fn after(next: Next) -> Self {
        match next {
            Next::Wait => Self::On,
            next => Self::Stop(next),
        }
    }
}
