//! The part of a connection that sends a [`stream`](crate::http::engine::stream): it asks for a piece when
//! the previous one is written.

use std::ops::ControlFlow::{Break, Continue};

use super::super::produce::produce;
use super::super::stream::{Coding, Piece, Rest};
use super::super::turn::{Next, Turn};
use super::{Connection, Reply, State, Step};

/// A body that is being sent.
#[derive(Debug)]
pub(super) struct Streaming {
    /// `None` while a piece is produced.
    rest: Option<Rest>,
    coding: Coding,
    /// Close the connection after the body.
    ends: bool,
}

impl Connection {
    /// Sends the head and the first piece of a reply of the handler.
    pub(in crate::http::engine) fn answered_with_stream(
        &mut self,
        turn: &mut Turn<'_>,
        reply: &Reply,
        rest: Rest,
    ) -> Next {
        if !matches!(self.state, State::Handling) {
            return Next::Wait;
        }
        self.leave(turn.shared, turn.memory);
        let (coding, cannot_continue) = if self.is_http11 {
            (Coding::Chunked, false)
        } else {
            (Coding::UntilClosed, !self.to_head)
        };
        let ends = reply.close || cannot_continue || self.ends(turn);
        let kept = (!ends).then_some(turn.shared.limits.keep_alive);
        reply.encode_head(Some(coding), kept, turn.date.now(), &mut self.out);
        if self.to_head {
            self.replied(turn, ends);
        } else {
            coding.encode(&reply.body, false, &mut self.out);
            self.state = State::Streaming(Streaming {
                rest: Some(rest),
                coding,
                ends,
            });
            self.begin_window(turn.now);
        }
        self.advance(turn)
    }

    /// Asks for the next piece, because the previous one is written.
    pub(super) fn stream(&mut self, turn: &Turn<'_>) -> Step {
        let State::Streaming(streaming) = &mut self.state else {
            return Continue(());
        };
        if let Some(rest) = streaming.rest.take() {
            produce(rest, self.key, turn.shared);
        }
        Break(Next::Wait)
    }

    /// Sends a piece, and requests the next one once it is written.
    pub(in crate::http::engine) fn produced(
        &mut self,
        turn: &mut Turn<'_>,
        piece: Piece,
        rest: Rest,
    ) -> Next {
        let State::Streaming(streaming) = &mut self.state else {
            return Next::Wait;
        };
        match piece {
            Piece::Failed => return Next::Close,
            Piece::More(bytes) => {
                streaming.coding.encode(&bytes, false, &mut self.out);
                streaming.rest = Some(rest);
                self.begin_window(turn.now);
            }
            Piece::Last(bytes) => {
                streaming.coding.encode(&bytes, true, &mut self.out);
                // During a shutdown no other request follows.
                let ends = streaming.ends || turn.stopping;
                self.replied(turn, ends);
            }
        }
        self.advance(turn)
    }
}
