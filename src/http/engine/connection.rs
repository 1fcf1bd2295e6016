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

mod bounds;
mod request;
mod streaming;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::ops::ControlFlow::{self, Break, Continue};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mio::net::TcpStream;

use self::streaming::Streaming;
use super::framing::Persistence;
use super::head::{self, HEAD_BYTES_MAX, Head};
use super::mailbox::Key;
use super::memory::BodyMemory;
use super::turn::{Next, Turn};
use super::upload::Upload;
use super::{Refusal, Reply, Shared};

/// Maximum bytes read from one connection in one turn.
const TURN_BYTES_MAX: usize = 256 << 10;
/// How long a connection is read from after it was shut down for writing.
const LINGER_TIME: Duration = Duration::from_secs(1);
/// Maximum bytes read in this time: a client that sends more does not read the reply.
const LINGER_BYTES_MAX: u64 = 8 << 20;
/// Maximum capacity of the input buffer that an idle connection keeps, in bytes.
pub(super) const IDLE_BUFFER_BYTES_MAX: usize = 1 << 10;

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

    /// Writes `out` until it is empty or the socket is full.
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
        if turn.budget == 0 {
            return Break(Next::Again);
        }
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
        self.leave(turn.shared, turn.memory);
        let ends = reply.close || self.ends(turn);
        let kept = (!ends).then_some(turn.shared.limits.keep_alive);
        reply.encode(self.to_head, kept, turn.date.now(), &mut self.out);
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

    /// Leaves the current state: releases its memory, ends its request. The caller sends a reply or closes
    /// the connection.
    pub(super) fn leave(&mut self, shared: &Shared, memory: &mut BodyMemory) {
        match std::mem::replace(&mut self.state, State::Head) {
            State::Upload(upload) => {
                if upload.awaits_memory {
                    memory.cancel(self.key);
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
}
