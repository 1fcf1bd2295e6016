//! One connection: a state machine between bytes and requests.
//!
//! ```text
//! Head --no body--> Handling --reply--> (written) --> Head, or Linger --> closed
//!   \--> Upload --complete--^  \--stream--> Streaming --last piece--^
//! ```
//!
//! A connection handles one request at a time. Further bytes of the client stay in the kernel's buffer,
//! except for at most one read in `input`. Replies are therefore in the order of the requests, and a
//! client that does not read its replies is not read from. All of this runs on the I/O thread and
//! never blocks.
//!
//! To end a connection, the server shuts it down for writing and reads from it for up to
//! [`LINGER_TIME`]. If it were closed with unread bytes, the kernel would reset it, and the client could
//! lose the reply.

mod streaming;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::ops::ControlFlow::{self, Break, Continue};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mio::net::TcpStream;

use self::streaming::Streaming;
use super::framing::{Length, Persistence};
use super::head::{self, HEAD_BYTES_MAX, Head, Method};
use super::mailbox::Key;
use super::request::Request;
use super::room::{Room, Share};
use super::turn::{Next, Turn};
use super::upload::{ROOM_WAIT, SMALL_BYTES_MAX, Then, Upload, millis};
use super::{Admission, Lane, Limits, Refusal, Reply, Shared};

/// Maximum bytes read from one connection in one turn.
const TURN_BYTES_MAX: usize = 256 << 10;
/// How long a connection is read from after it was shut down for writing.
const LINGER_TIME: Duration = Duration::from_secs(1);
/// Maximum bytes read in this time: a client that sends more does not read the reply.
const LINGER_BYTES_MAX: u64 = 8 << 20;
/// How long a client must have stalled, or be idle between requests, before its connection may be evicted.
const EVICT_IDLE_MIN: Duration = Duration::from_secs(1);
/// Added to the announced keep-alive time, for a request that is sent just before its end.
const KEEP_ALIVE_GRACE: Duration = Duration::from_secs(1);
/// Maximum capacity of the input buffer that an idle connection keeps, in bytes.
pub(super) const IDLE_BUFFER_BYTES_MAX: usize = 1 << 10;

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: TcpStream,
    peer: SocketAddr,
    pub(super) key: Key,
    state: State,
    /// Bytes read and not yet consumed.
    input: Vec<u8>,
    /// Bytes to write before anything is read.
    out: Vec<u8>,
    /// How many bytes of `out` are written.
    written: usize,
    /// The method of the current request is HEAD.
    to_head: bool,
    /// The version of the current request is 1.1.
    is_http11: bool,
    /// Whether the current request keeps the connection.
    persistence: Persistence,
    arriving: Arriving,
    /// At least one complete request was received.
    served: bool,
    /// When the current state began, or the current window of a body or reply.
    since: Instant,
    /// Bytes of the body or reply that were transferred before this window.
    moved_before: u64,
}

/// What the kernel's receive buffer may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arriving {
    /// It is empty; an event reports new bytes.
    Nothing,
    /// It may hold bytes.
    Bytes,
    /// The client has shut down its side. The end follows the remaining bytes without another event.
    LastBytes,
}

#[derive(Debug)]
enum State {
    /// Between requests, or receiving a head.
    Head,
    /// Receiving a body.
    Upload(Box<Upload>),
    /// The request was passed to the handler, which has not answered yet.
    Handling,
    /// Sending a body that is produced meanwhile.
    Streaming(Streaming),
    /// Writing the last reply, then reading until the client closes the connection.
    Linger,
}

/// `Continue` if the connection can take another step, else how the loop continues with it.
type Step<T = ()> = ControlFlow<Next, T>;

impl Connection {
    pub(super) fn new(stream: TcpStream, peer: SocketAddr, key: Key, now: Instant) -> Self {
        Self {
            stream,
            peer,
            key,
            state: State::Head,
            input: Vec::new(),
            out: Vec::new(),
            written: 0,
            to_head: false,
            is_http11: true,
            persistence: Persistence::Kept,
            arriving: Arriving::Nothing,
            served: false,
            since: now,
            moved_before: 0,
        }
    }

    /// Handles an event of the socket. False if the connection is broken.
    pub(super) fn event(&mut self, event: &mio::event::Event) -> bool {
        if event.is_read_closed() {
            self.arriving = Arriving::LastBytes;
        } else if event.is_readable() {
            self.set_readable();
        }
        !event.is_error()
    }

    /// Makes the next step read, even if no event was reported.
    pub(super) fn set_readable(&mut self) {
        if self.arriving == Arriving::Nothing {
            self.arriving = Arriving::Bytes;
        }
    }

    /// Whether no request has begun and all replies are written.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.state, State::Head) && self.input.is_empty() && self.out.is_empty()
    }

    /// The rank of the connection if it may be evicted; lower ranks are evicted first: connections
    /// without a complete request, then those that are idle longest.
    pub(super) fn rank_to_evict(&self, limits: &Limits, now: Instant) -> Option<(bool, Instant)> {
        let expendable = match &self.state {
            _ if !self.out.is_empty() => true,
            State::Head => !self.served || self.input.is_empty(),
            State::Upload(upload) => !self.served && upload.request.share.is_none(),
            State::Handling | State::Streaming(_) | State::Linger => false,
        };
        // A client that opens thousands of connections at once sends its first requests seconds later.
        let idle_min = if self.served || !self.is_idle() {
            EVICT_IDLE_MIN
        } else {
            limits.first_byte_time
        };
        let is_due = expendable && now >= self.since + idle_min;
        is_due.then_some((self.served, self.since))
    }

    /// Bytes of memory in its buffers, without bodies that have reserved room.
    pub(super) fn buffered_bytes(&self) -> usize {
        let body = match &self.state {
            State::Upload(upload) if upload.request.share.is_none() => upload.request.body.len(),
            _ => 0,
        };
        self.input.capacity() + body + self.out.len()
    }

    /// The rate of its upload in bytes a second, if it has room and is slow enough to yield it.
    pub(super) fn yielding_rate(&self, now: Instant) -> Option<u64> {
        match &self.state {
            State::Upload(upload) => upload.yielding_rate(now),
            _ => None,
        }
    }

    /// When its current state or window times out; `None` while the handler has the request or produces a
    /// piece of a body.
    pub(super) fn deadline(&self, limits: &Limits) -> Option<Instant> {
        let time = match &self.state {
            _ if !self.out.is_empty() => limits.write_time,
            State::Head if self.input.is_empty() => limits.keep_alive + KEEP_ALIVE_GRACE,
            State::Head => limits.head_time,
            State::Upload(upload) if upload.waits => ROOM_WAIT,
            State::Upload(_) => limits.body_time,
            State::Linger => LINGER_TIME,
            State::Handling | State::Streaming(_) => return None,
        };
        Some(self.since + time)
    }

    /// Handles a deadline that has passed.
    pub(super) fn time_out(&mut self, turn: &mut Turn<'_>) -> Next {
        let limits = &turn.shared.limits;
        let least = |time: Duration| limits.rate_min * millis(time) / 1000;
        let moved = self.moved().saturating_sub(self.moved_before);
        match &self.state {
            _ if !self.out.is_empty() => {
                if moved < least(limits.write_time) {
                    return Next::Close;
                }
            }
            State::Upload(upload) if upload.waits => return Next::WantsRoom,
            State::Upload(_) => {
                if moved < least(limits.body_time) {
                    self.refuse(turn, Refusal::BodyTimedOut);
                }
            }
            State::Head if !self.input.is_empty() => self.refuse(turn, Refusal::HeadTimedOut),
            State::Head | State::Handling | State::Streaming(_) | State::Linger => {
                return Next::Close;
            }
        }
        self.begin_window(turn.now);
        self.advance(turn)
    }

    /// Bytes of the current body or reply that were transferred so far.
    fn moved(&self) -> u64 {
        match &self.state {
            _ if !self.out.is_empty() => self.written as u64,
            State::Upload(upload) => upload.count,
            _ => 0,
        }
    }

    pub(super) fn begin_window(&mut self, now: Instant) {
        self.since = now;
        self.moved_before = self.moved();
    }

    /// Takes steps until the connection must wait, is closed, or has used up its budget.
    pub(super) fn advance(&mut self, turn: &mut Turn<'_>) -> Next {
        turn.budget = TURN_BYTES_MAX;
        loop {
            if let Break(next) = self.step(turn) {
                return next;
            }
        }
    }

    fn step(&mut self, turn: &mut Turn<'_>) -> Step {
        self.write(turn)?;
        match &self.state {
            State::Head => self.head(turn),
            State::Upload(_) => self.upload(turn),
            State::Streaming(_) => self.stream(turn),
            State::Linger => self.linger(turn),
            State::Handling => Break(Next::Wait),
        }
    }

    /// Writes `out`.
    fn write(&mut self, turn: &Turn<'_>) -> Step {
        if self.out.is_empty() {
            return Continue(());
        }
        while self.written < self.out.len() {
            match self.stream.write(&self.out[self.written..]) {
                Ok(0) => return Break(Next::Close),
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Break(Next::Wait),
                Err(_) => return Break(Next::Close),
            }
        }
        (self.out, self.written) = (Vec::new(), 0);
        self.begin_window(turn.now);
        if matches!(self.state, State::Linger) {
            // This fails if the client has closed the connection.
            let _closed = self.stream.shutdown(Shutdown::Write);
        }
        Continue(())
    }

    /// Reads at most `bytes_max` bytes into the scratch buffer. Returns their number, 0 at the end.
    fn read(&mut self, turn: &mut Turn<'_>, bytes_max: usize) -> Step<usize> {
        let bytes_max = bytes_max.min(turn.scratch.len());
        while self.arriving != Arriving::Nothing {
            if turn.budget == 0 {
                return Break(Next::Again);
            }
            match self.stream.read(&mut turn.scratch[..bytes_max]) {
                Ok(count) => {
                    // After a short read the kernel has no more.
                    if count < bytes_max && self.arriving == Arriving::Bytes {
                        self.arriving = Arriving::Nothing;
                    }
                    turn.budget = turn.budget.saturating_sub(count);
                    return Continue(count);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.arriving = Arriving::Nothing;
                }
                Err(_) => return Break(Next::Close),
            }
        }
        Break(Next::Wait)
    }

    fn linger(&mut self, turn: &mut Turn<'_>) -> Step {
        self.input = Vec::new();
        let count = self.read(turn, usize::MAX)?;
        self.moved_before += count as u64;
        if count == 0 || self.moved_before > LINGER_BYTES_MAX {
            return Break(Next::Close);
        }
        Continue(())
    }

    fn head(&mut self, turn: &mut Turn<'_>) -> Step {
        self.input.drain(..head::empty_lines(&self.input));
        match Head::read(&self.input) {
            Err(refusal) => self.refuse(turn, refusal),
            Ok(Some((head, length))) => {
                self.input.drain(..length);
                self.begin(turn, head);
            }
            Ok(None) => {
                let is_first = self.input.is_empty();
                if is_first && self.input.capacity() > IDLE_BUFFER_BYTES_MAX {
                    self.input = Vec::new();
                }
                match self.read(turn, HEAD_BYTES_MAX)? {
                    0 if is_first => return Break(Next::Close),
                    0 => self.refuse(turn, Refusal::Malformed("the head ends early")),
                    count => {
                        if is_first {
                            self.begin_window(turn.now);
                        }
                        self.input.extend_from_slice(&turn.scratch[..count]);
                    }
                }
            }
        }
        Continue(())
    }

    /// Begins a request after its head was received.
    fn begin(&mut self, turn: &mut Turn<'_>, head: Head) {
        let framing = head.framing;
        self.to_head = head.method == Method::Head;
        self.is_http11 = head.is_http11;
        self.persistence = framing.persistence;
        let bytes_max = turn.shared.limits.body_bytes_max;
        let announced = match framing.body {
            Length::Bytes(bytes) => bytes,
            Length::Chunked => 0,
        };
        if announced > Upload::discard_max(bytes_max) {
            return self.refuse(turn, Refusal::BodyTooLarge);
        }
        let request = Request::new(head, self.key, turn.now, turn.shared);
        let refuse = |refusal| Then::Answer(turn.shared.handler.refusal(refusal));
        let then = match turn.admit(&request) {
            None => refuse(Refusal::Panicked),
            Some(Admission::Accept(_)) if announced > bytes_max as u64 => {
                refuse(Refusal::BodyTooLarge)
            }
            Some(Admission::Accept(lane)) => Then::Handle(lane),
            Some(Admission::Refuse(reply)) => Then::Answer(reply),
        };
        let mut upload = Upload::new(request, then, framing.body, turn.now);
        upload.asks_to_continue = framing.expects_continue && self.input.is_empty();
        if upload.is_complete() {
            return self.received(turn, upload);
        }
        // The client waits for the reply before it sends a body.
        if upload.asks_to_continue && matches!(upload.then, Then::Answer(_)) {
            return self.received(turn, upload);
        }
        self.state = State::Upload(Box::new(upload));
        self.begin_window(turn.now);
        self.receive(turn, 0);
    }

    fn upload(&mut self, turn: &mut Turn<'_>) -> Step {
        let State::Upload(upload) = &mut self.state else {
            return Continue(());
        };
        if upload.waits {
            return Break(Next::Wait);
        }
        if let Some(bytes) = upload.wants_room(turn.shared.limits.body_bytes_max) {
            if let Some(share) = turn.room.take(self.key, bytes) {
                upload.grant(share);
            } else {
                upload.waits = true;
                self.begin_window(turn.now);
                return Break(Next::Wait);
            }
        }
        if std::mem::take(&mut upload.asks_to_continue) {
            self.out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
            return Continue(());
        }
        // Without room, one read of a chunked body is limited to the size of a small body.
        let bytes_max = match upload.request.share {
            None => SMALL_BYTES_MAX,
            Some(_) => usize::MAX,
        };
        match self.read(turn, bytes_max)? {
            0 => self.refuse(turn, Refusal::Malformed("the body ends early")),
            count => self.receive(turn, count),
        }
        Continue(())
    }

    /// Passes `input` and the `count` bytes in the scratch buffer to the upload.
    fn receive(&mut self, turn: &mut Turn<'_>, count: usize) {
        let State::Upload(upload) = &mut self.state else {
            return;
        };
        let (input, fresh) = (&mut self.input, &turn.scratch[..count]);
        let received = if input.is_empty() {
            let consumed = upload.receive(fresh, turn.shared);
            consumed.map(|consumed| input.extend_from_slice(&fresh[consumed..]))
        } else {
            input.extend_from_slice(fresh);
            let consumed = upload.receive(input, turn.shared);
            consumed.map(|consumed| drop(input.drain(..consumed)))
        };
        let is_too_large = upload.count > Upload::discard_max(turn.shared.limits.body_bytes_max);
        match received {
            Err(why) => self.refuse(turn, Refusal::Malformed(why)),
            Ok(()) if upload.is_complete() || is_too_large => {
                if let State::Upload(upload) = std::mem::replace(&mut self.state, State::Head) {
                    self.received(turn, *upload);
                }
            }
            Ok(()) => {}
        }
    }

    /// Ends an upload: the body is complete, or the rest of it is not read.
    fn received(&mut self, turn: &mut Turn<'_>, upload: Upload) {
        let is_complete = upload.is_complete();
        let mut request = upload.request;
        request.received = turn.now;
        match upload.then {
            Then::Handle(lane) => self.dispatch(turn, request, lane),
            Then::Answer(mut reply) => {
                request.disarm();
                reply.close |= !is_complete;
                self.reply(turn, &reply);
            }
        }
    }

    /// Passes a complete request to the handler.
    fn dispatch(&mut self, turn: &mut Turn<'_>, request: Request, lane: Lane) {
        self.served = true;
        self.state = State::Handling;
        let in_flight = turn.shared.in_flight.fetch_add(1, Ordering::SeqCst);
        if in_flight >= turn.shared.limits.in_flight_max {
            return request.refuse(Refusal::Busy);
        }
        match lane {
            Lane::Io if request.body.len() <= SMALL_BYTES_MAX => turn.handle(request),
            Lane::Io | Lane::Worker => request.on_worker(),
        }
    }

    /// Sends the reply of the handler.
    pub(super) fn answered(&mut self, turn: &mut Turn<'_>, reply: &Reply) -> Next {
        if !matches!(self.state, State::Handling) {
            return Next::Wait;
        }
        self.reply(turn, reply);
        self.advance(turn)
    }

    /// Refuses the current request, and closes the connection after the reply.
    pub(super) fn refuse(&mut self, turn: &mut Turn<'_>, refusal: Refusal) {
        tracing::debug!(peer = %self.peer, ?refusal, "refused a request");
        let reply = turn.shared.handler.refusal(refusal);
        self.reply(turn, &reply.closing());
    }

    fn reply(&mut self, turn: &mut Turn<'_>, reply: &Reply) {
        self.leave(turn.shared, turn.room);
        let ends = reply.close || self.ends(turn);
        let kept = (!ends).then_some(turn.shared.limits.keep_alive);
        reply.encode(self.to_head, kept, &mut self.out);
        self.replied(turn, ends);
    }

    /// Whether the connection ends after the current request.
    fn ends(&mut self, turn: &mut Turn<'_>) -> bool {
        self.persistence == Persistence::Ends || (turn.stopping && !self.has_more(turn))
    }

    /// Continues after the last bytes of a reply were added to `out`.
    fn replied(&mut self, turn: &Turn<'_>, ends: bool) {
        self.state = if ends { State::Linger } else { State::Head };
        (self.to_head, self.persistence) = (false, Persistence::Kept);
        self.begin_window(turn.now);
    }

    /// Leaves the current state: releases its room, ends its request. The caller sends a reply or closes
    /// the connection.
    pub(super) fn leave(&mut self, shared: &Shared, room: &mut Room) {
        match std::mem::replace(&mut self.state, State::Head) {
            State::Upload(upload) => {
                if upload.waits {
                    room.leave(self.key);
                }
                upload.request.disarm();
            }
            State::Handling => drop(shared.in_flight.fetch_sub(1, Ordering::SeqCst)),
            State::Head | State::Streaming(_) | State::Linger => {}
        }
    }

    /// Whether the client has sent bytes after the current request.
    fn has_more(&mut self, turn: &mut Turn<'_>) -> bool {
        if self.input.is_empty()
            && let Continue(count) = self.read(turn, HEAD_BYTES_MAX)
        {
            self.input.extend_from_slice(&turn.scratch[..count]);
        }
        !self.input.is_empty()
    }

    /// Gives room to its upload and continues.
    pub(super) fn grant(&mut self, turn: &mut Turn<'_>, share: Share) -> Next {
        if let State::Upload(upload) = &mut self.state {
            upload.grant(share);
            self.begin_window(turn.now);
        }
        self.advance(turn)
    }
}
