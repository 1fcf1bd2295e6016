//! A turn: the resources that the loop lends to a connection, and the state of the connection after it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use super::memory::BodyMemory;
use super::reply::DateCache;
use super::request::Request;
use super::{Admission, Shared};

/// The resources of the loop that one connection uses during its turn.
pub(super) struct Turn<'a> {
    pub(super) now: Instant,
    pub(super) scratch: &'a mut [u8],
    pub(super) shared: &'a Arc<Shared>,
    pub(super) memory: &'a mut BodyMemory,
    pub(super) date: &'a mut DateCache,
    pub(super) stopping: bool,
    /// Bytes that the connection may still read in this turn.
    pub(super) budget: usize,
    /// Method and path of the last request of this turn, for the log.
    pub(super) line: &'a mut String,
}

/// How the loop continues with a connection after its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Wait for an event, a reply or the deadline.
    Wait,
    /// Give it another turn after the other connections: it has used up its budget.
    Again,
    Close,
    /// Refuse an upload: this one has waited for memory longer than `MEMORY_WAIT`.
    WaitedForMemory,
}

impl Turn<'_> {
    /// Lets the handler admit or refuse the request by its head; `None` if the handler panics.
    pub(super) fn admit(&mut self, request: &Request) -> Option<Admission> {
        self.line.clear();
        self.line.push_str(request.head.line());
        let admit = || self.shared.handler.admit(request);
        catch_unwind(AssertUnwindSafe(admit)).ok()
    }
}
