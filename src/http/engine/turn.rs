//! A turn: the resources that the loop lends to a connection, and the state of the connection after it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use super::request::Request;
use super::room::Room;
use super::{Admission, HELD_UP_MIN, Shared};

/// The resources of the loop that one connection uses during its turn.
pub(super) struct Turn<'a> {
    pub(super) now: Instant,
    pub(super) scratch: &'a mut [u8],
    pub(super) shared: &'a Arc<Shared>,
    pub(super) room: &'a mut Room,
    pub(super) stopping: bool,
    /// Bytes that the connection may still read in this turn.
    pub(super) budget: usize,
}

/// How the loop continues with a connection after its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Wait for an event, a reply or the deadline.
    Wait,
    /// Give it another turn after the other connections: it has used up its budget.
    Again,
    /// Close it.
    Close,
    /// Make room: its upload has waited longer than `ROOM_WAIT`.
    WantsRoom,
}

impl Turn<'_> {
    /// Calls the handler on this thread.
    pub(super) fn handle(&mut self, request: Request) {
        let line = request.line();
        // A panic drops the request, which answers it with 500.
        let _panicked = catch_unwind(AssertUnwindSafe(|| request.handle()));
        self.shared.end_step(self.now, &line);
    }

    /// Lets the handler admit or refuse the request by its head; `None` if the handler panics.
    pub(super) fn admit(&mut self, request: &Request) -> Option<Admission> {
        let admit = || self.shared.handler.admit(request);
        let admission = catch_unwind(AssertUnwindSafe(admit));
        if self.now.elapsed() >= HELD_UP_MIN {
            self.shared.end_step(self.now, &request.line());
        }
        admission.ok()
    }
}
