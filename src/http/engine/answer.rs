//! Writing replies: in order, in one piece, and whatever became of the body.

use std::io::{self, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::framing::Persistence;
use super::lines::Turn;
use super::request::{BodyJob, Ending, Ticket};
use super::{MAY_BLOCK, Reply, Shared};

/// What waits for its turn on a connection.
pub(super) enum Outgoing {
    /// A reply.
    Answer(Answer),
    /// A body that is to be asked for with `100 Continue`.
    Body(BodyJob),
}

/// A reply and all it takes to write it.
pub(super) struct Answer {
    pub(super) wire: tiny_http::Request,
    pub(super) ticket: Ticket,
    pub(super) reply: Reply,
    pub(super) to_head: bool,
    pub(super) persistence: Persistence,
    pub(super) ending: Ending,
    /// Nothing is written: it is not believed, or its connection was given up since.
    pub(super) unwanted: bool,
}

/// The reply is ready: it is written when it is its turn, on a thread that may block.
pub(super) fn post(answer: Answer) {
    let (shared, peer) = (Arc::clone(&answer.ticket.shared), answer.ticket.peer);
    let seq = answer.ticket.seq;
    if let Some(turn) = shared.lines.ready(peer, seq, Outgoing::Answer(answer)) {
        begin(&shared, peer, turn);
    }
}

/// Goes on with what is in turn, here or on a thread that may block.
pub(super) fn begin(shared: &Shared, peer: SocketAddr, turn: Turn<Outgoing>) {
    match turn.item {
        Outgoing::Body(job) => {
            shared.lines.not_yet(peer);
            job.submit(shared);
        }
        Outgoing::Answer(mut answer) => {
            answer.unwanted |= turn.gone;
            if MAY_BLOCK.get() {
                write_from(answer);
            } else if let Err(answer) = shared.answers.submit(answer) {
                write_from(answer);
            }
        }
    }
}

/// Writes the reply, and those of the same connection that were waiting for it.
pub(super) fn write_from(answer: Answer) {
    let mut next = answer;
    loop {
        let (shared, peer) = (Arc::clone(&next.ticket.shared), next.ticket.peer);
        // In flight until the line has moved on.
        let (ticket, write) = next.into_write();
        // A panic inside the library must not leave the line standing.
        if catch_unwind(AssertUnwindSafe(write)).is_err() {
            shared.give_up(peer, Shutdown::Both);
        }
        let turn = shared.lines.written(peer);
        drop(ticket);
        match turn {
            None => return,
            Some(Turn {
                item: Outgoing::Answer(answer),
                gone,
            }) => {
                next = answer;
                next.unwanted |= gone;
            }
            Some(body) => return begin(&shared, peer, body),
        }
    }
}

impl Answer {
    /// Whether letting go of it takes nothing from anybody.
    fn may_go(&self) -> bool {
        self.unwanted && self.ending == Ending::Clean
    }

    /// The ticket, and the writing.
    fn into_write(self) -> (Ticket, impl FnOnce()) {
        let Self {
            wire,
            ticket,
            mut reply,
            to_head,
            persistence,
            ending,
            unwanted,
        } = self;
        let (shared, peer, seq) = (Arc::clone(&ticket.shared), ticket.peer, ticket.seq);
        let write = move || {
            if unwanted {
                return match ending {
                    Ending::Clean => let_go_unanswered(wire),
                    Ending::Cut => cut_loose(&shared, wire, Some(peer)),
                };
            }
            if shared.is_stopping() && shared.lines.is_last(peer, seq) {
                reply.close = true;
            }
            // The library would go on reading requests; we are not going to believe them.
            let parting = reply.close && persistence != Persistence::Ends;
            if parting {
                shared.lines.give_up(peer);
            }
            match ending {
                Ending::Clean => {
                    use io::ErrorKind::{BrokenPipe, ConnectionReset};
                    let written = write_whole(wire, &reply.encode(to_head, persistence));
                    // What was written in part must not be followed by another reply.
                    match written.map_err(|error| error.kind()) {
                        Ok(()) if parting && !shared.is_stopping() => {
                            shared.give_up(peer, Shutdown::Write);
                        }
                        Ok(()) => {}
                        Err(BrokenPipe | ConnectionReset) => shared.give_up_ended(peer),
                        Err(_) => shared.give_up(peer, Shutdown::Both),
                    }
                }
                Ending::Cut => {
                    shared.lines.give_up(peer);
                    write_and_part(&shared, peer, wire, &reply, to_head);
                }
            }
        };
        (ticket, write)
    }
}

/// One `write`, one `flush`: one segment on the wire where it fits.
fn write_whole(wire: tiny_http::Request, bytes: &[u8]) -> io::Result<()> {
    let mut writer = wire.into_writer();
    writer.write_all(bytes)?;
    writer.flush()
}

/// Replies to a request whose body was not read to its end, and parts with the connection.
///
/// Defect 2: dropping the request's reader reads the rest of the body, however long, into memory
/// allocated up front: not before the connection is ended. `upgrade` is the library's one way to
/// write without dropping it. It prints a head of its own; our header fields go in as the value of
/// one of them.
fn write_and_part(
    shared: &Shared,
    peer: SocketAddr,
    wire: tiny_http::Request,
    reply: &Reply,
    to_head: bool,
) {
    let believed = wire.body_length();
    let mut fields = Vec::new();
    reply.fields(&mut fields, Some("close"));
    let fields = fields.strip_prefix(b"Date: ").unwrap_or(&fields);
    let fields = fields.strip_suffix(b"\r\n").unwrap_or(fields);
    let header = tiny_http::Header::from_bytes(&b"Date"[..], fields);
    let head = tiny_http::Response::empty(reply.status);
    let head = match header {
        Ok(header) => head.with_header(header),
        Err(()) => head,
    };
    let mut stream = wire.upgrade("none", head);
    if !to_head {
        // Best effort: this client has already broken the rules.
        let _lost = stream.write_all(&reply.body).and_then(|()| stream.flush());
    }
    part(shared, Some(peer), stream, believed, drop);
}

/// Ends the connection of a request nobody believes, without an answer; may block.
pub(super) fn cut_loose(shared: &Shared, wire: tiny_http::Request, peer: Option<SocketAddr>) {
    let believed = wire.body_length();
    part(shared, peer, wire, believed, let_go_unanswered);
}

/// Dropped as it is, it would be answered.
fn let_go_unanswered(wire: tiny_http::Request) {
    drop(wire.into_writer());
}

/// Ends the connection, then lets go of what keeps its reader: that finds the end of the stream
/// where the rest of the body would be (also where the client had ended it before us). Where
/// connections cannot be ended, or the process would not survive it, it is kept for good.
fn part<T>(
    shared: &Shared,
    peer: Option<SocketAddr>,
    kept: T,
    believed: Option<usize>,
    let_go: fn(T),
) {
    if let Some(peer) = peer {
        shared.give_up(peer, Shutdown::Both);
    }
    if shared.sever.works() && can_be_allocated(believed.unwrap_or(0)) {
        return let_go(kept);
    }
    abandon(shared, kept);
    if let Some(peer) = peer {
        // Nothing more is read from it, ever: the next client from there is another one.
        shared.lines.forget(peer);
    }
}

/// Whether the library may allocate so much for a moment: it allocates what was announced and is
/// not here yet, touches none of it, and aborts the process if it cannot. Twice that to be sure.
fn can_be_allocated(bytes: usize) -> bool {
    Vec::<u8>::new()
        .try_reserve_exact(bytes.saturating_mul(2))
        .is_ok()
}

/// The same on a thread that must not block.
pub(super) fn let_go(
    shared: &Arc<Shared>,
    wire: tiny_http::Request,
    ending: Ending,
    peer: Option<SocketAddr>,
) {
    match ending {
        Ending::Clean => let_go_unanswered(wire),
        Ending::Cut => BodyJob::LetGo(wire, peer, Arc::clone(shared)).submit(shared),
    }
}

/// The same once all before it are answered: what it would end is owed those, and what the library
/// may have to say to what follows it comes after them.
pub(super) fn let_go_in_turn(
    shared: &Arc<Shared>,
    wire: tiny_http::Request,
    ending: Ending,
    peer: SocketAddr,
) {
    let may_go =
        |waiting: &Outgoing| matches!(waiting, Outgoing::Answer(answer) if answer.may_go());
    let Some((seq, replaced)) = shared.lines.wait(peer, may_go) else {
        return let_go(shared, wire, ending, Some(peer));
    };
    post(Answer {
        wire,
        ticket: Ticket::new(Arc::clone(shared), peer, seq),
        reply: Reply::empty(400),
        to_head: false,
        persistence: Persistence::Ends,
        ending,
        unwanted: true,
    });
    if let Some(Outgoing::Answer(replaced)) = replaced {
        let_go_unanswered(replaced.wire);
    }
}

/// Keeps it for good: a thread of the library and two descriptors stay with it (defect 2).
pub(super) fn abandon<T>(shared: &Shared, kept: T) {
    let count = shared.abandoned.fetch_add(1, Ordering::Relaxed) + 1;
    tracing::warn!(
        count,
        "a request announced more than this machine's memory; its connection can only be abandoned"
    );
    #[expect(
        clippy::mem_forget,
        reason = "dropping it would allocate the announced length and abort the process"
    )]
    std::mem::forget(kept);
}
