//! Produces the next piece of a streamed body, on a thread that may block.

use std::sync::Arc;

use super::mailbox::{Key, Message};
use super::stream::{Piece, Rest};
use super::{MayBlock, Shared};

/// The production of one piece. If it is dropped unfinished, because the queue is full or the source panics,
/// the piece has failed.
struct Production {
    key: Key,
    shared: Arc<Shared>,
    piece: Piece,
    rest: Rest,
}

/// Produces the next piece on a thread that may block and posts it to the mailbox.
pub(super) fn produce(rest: Rest, key: Key, shared: &Arc<Shared>) {
    let mut production = Production {
        key,
        shared: Arc::clone(shared),
        piece: Piece::Failed,
        rest,
    };
    shared.blocking.submit(Box::new(move || production.run()));
}

impl Production {
    fn run(&mut self) {
        self.piece = (self.rest.0)(&MayBlock::on_this_thread());
    }
}

impl Drop for Production {
    fn drop(&mut self) {
        let piece = std::mem::replace(&mut self.piece, Piece::Failed);
        let rest = std::mem::replace(&mut self.rest, Rest(Box::new(|_| Piece::Failed)));
        let message = Message::Piece(self.key, piece, rest);
        self.shared.mailbox.post(message);
    }
}
