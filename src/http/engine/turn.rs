//! What a connection has of the loop while it is its turn, and what becomes of it afterwards.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use super::request::Request;
use super::room::Room;
use super::{Admission, HELD_UP_MIN, Shared};

/// What a connection needs of the loop for one turn.
pub(super) struct Turn<'a> {
    pub(super) now: Instant,
    pub(super) scratch: &'a mut [u8],
    pub(super) shared: &'a Arc<Shared>,
    pub(super) room: &'a mut Room,
    pub(super) stopping: bool,
    /// Bytes that this connection may still read.
    pub(super) budget: usize,
}

/// What becomes of a connection for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It waits for an event, a reply or its deadline.
    Wait,
    /// It has had its share of this turn.
    Again,
    /// It is over.
    Close,
    /// Its upload has waited for room for too long.
    WantsRoom,
}

impl Turn<'_> {
    /// Has the request handled on this thread.
    pub(super) fn handle(&mut self, request: Request) {
        let line = request.line();
        // Dropped by a panic, the request answers 500.
        let _panicked = catch_unwind(AssertUnwindSafe(|| request.handle()));
        self.shared.stepped(self.now, &line);
    }

    /// Has the request admitted or refused by its head; `None` where the handler panics.
    pub(super) fn admit(&mut self, request: &Request) -> Option<Admission> {
        let admit = || self.shared.handler.admit(request);
        let admission = catch_unwind(AssertUnwindSafe(admit));
        if self.now.elapsed() >= HELD_UP_MIN {
            self.shared.stepped(self.now, &request.line());
        }
        admission.ok()
    }
}
